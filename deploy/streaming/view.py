"""A running stream on the terminal: one screen that renews itself, or a line now and then where nobody watches."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from runtime.errors import plain

from .. import console as words
from .figures import (
    DASH,
    as_mapping,
    count_text,
    imbalance_text,
    off_balance,
    part_of,
    rate_text,
    seconds_text,
    share_of,
    troubles_of,
)
from .screen import render

SCREEN_SECONDS = 0.5
LINE_SECONDS = 10.0
LAST_SECONDS = 1.0
"""How long the end waits for a terminal that takes nothing."""


def plain_line(snapshot: Mapping[str, Any]) -> str:
    """The snapshot in one line for logs: counts, rate, latency and the fullest queue; what is wrong, if anything."""
    lines = part_of(snapshot, "lines")
    counts = " ".join(f"{name} {count_text(lines.get(name), '')}" for name in _LINE_COUNTS)
    rate = rate_text(part_of(snapshot, "rates").get("in"))
    parts = [
        f"lines {counts}",
        f"{rate} lines/s",
        f"latency p95 {seconds_text(part_of(snapshot, 'latency_s').get('p95'), 1)}",
    ]
    queues = [(name, as_mapping(queue)) for name, queue in part_of(snapshot, "queues").items()]
    if queues:
        name, queue = max(queues, key=lambda item: share_of(item[1].get("level"), item[1].get("capacity")) or 0.0)
        parts.append(
            f"queue {plain(name)} {count_text(queue.get('level'), '')}/{count_text(queue.get('capacity'), '')}"
        )
    if off := off_balance(snapshot):
        parts.append(imbalance_text(off))
    if snapshot.get("state") not in (None, "running"):
        parts.append(plain(snapshot["state"]))
    troubles = troubles_of(snapshot)
    if troubles:
        more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
        parts.append(f"problem: {troubles[0]}{more}")
    return " | ".join(parts).replace(DASH, "-")


_LINE_COUNTS = ("in", "recorded", "restored", "dropped", "incomplete", "pending")


class LiveView:
    """The view of a running stream on standard error, until the end of the `with` block.

    On a terminal the screen is renewed twice a second; elsewhere a plain line is written every ten seconds and a last
    one at the end. It has a thread of its own; a terminal that goes away or takes nothing does not hold the stream.

    Args:
        snapshot: figures of the stream; called from the view's thread. What it raises is shown as a problem.
        console: where to; None for standard error.
    """

    def __init__(self, snapshot: Callable[[], Mapping[str, Any]], console: Console | None = None) -> None:
        self._snapshot = snapshot
        self._console = words.errors if console is None else console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self._live: Live | None = None
        if self._console.is_terminal:
            # Standard output may be a file or a pipe that wants nothing but results.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),
                vertical_overflow="crop",
            )

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            return
        with suppress(OSError):
            self._show()
            if self._live is not None:
                self._live.stop()

    def _run(self) -> None:
        with suppress(OSError):
            while not self._stop.wait(LINE_SECONDS if self._live is None else SCREEN_SECONDS):
                self._show()

    def _show(self) -> None:
        try:
            snapshot = self._snapshot()
        except Exception as error:
            snapshot = {"problems": [f"the stream gave no figures ({type(error).__name__}: {error})"]}
        if self._live is None:
            self._console.print(Text(plain_line(snapshot)), soft_wrap=True)
        else:
            self._live.update(render(snapshot), refresh=True)
