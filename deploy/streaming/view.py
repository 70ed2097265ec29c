"""A running stream on the terminal: one screen that renews itself, or a line now and then where nobody watches."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.text import Text

from runtime.errors import plain
from runtime.stream.snapshot import Snapshot

from .. import console as words
from .figures import DASH, count_text, imbalance_text, off_balance, rate_text, seconds_text, troubles_of
from .screen import Screen

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

SCREEN_SECONDS = 0.5
LINE_SECONDS = 10.0
LAST_SECONDS = 1.0
"""How long the end waits for a terminal that takes nothing."""


def plain_line(snapshot: Snapshot) -> str:
    """The snapshot in one line for logs: counts, rate, latency and the fullest queue; what is wrong, if anything."""
    counts = " ".join(f"{name} {count_text(n, '')}" for name, n in snapshot.lines.told().items() if name != "passed")
    name, queue = max(snapshot.queues.items(), key=lambda item: item[1].level / item[1].capacity)
    parts = [
        f"lines {counts}",
        f"{rate_text(snapshot.rates.get('in'))} lines/s",
        f"latency p95 {seconds_text(snapshot.latency_s.get('p95'), 1)}",
        f"queue {plain(name)} {queue.level}/{queue.capacity}",
    ]
    if off := off_balance(snapshot):
        parts.append(imbalance_text(off))
    if snapshot.state != "running":
        parts.append(snapshot.state)
    troubles = troubles_of(snapshot)
    if troubles:
        more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
        parts.append(f"problem: {troubles[0]}{more}")
    return " | ".join(parts).replace(DASH, "-")


class LiveView:
    """The view of a running stream on standard error, until the end of the `with` block.

    On a terminal the screen is renewed twice a second; elsewhere a plain line is written every ten seconds and a last
    one at the end. It has a thread of its own; a terminal that goes away or takes nothing does not hold the stream.

    Args:
        snapshot: figures of the stream; called from the view's thread. What it raises is shown as a problem.
        console: where to; None for standard error.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], console: Console | None = None) -> None:
        self._snapshot = snapshot
        self._console = words.errors() if console is None else console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self._live: Live | None = None
        if self._console.is_terminal:
            from rich.live import Live

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
            shown = Text(plain_line(snapshot)) if self._live is None else Screen(snapshot)
        except Exception as error:
            shown = Text(plain(f"problem: the stream gave no figures ({type(error).__name__}: {error})"))
        if self._live is None:
            self._console.print(shown, soft_wrap=True)
        else:
            self._live.update(shown, refresh=True)
