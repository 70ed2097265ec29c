"""Whoever looks on: three lines of a terminal, a log of events, a file for Prometheus."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from runtime.durable import write_bytes
from runtime.errors import InputError, plain, printable

from .. import console
from .ledger import State, totals

EVENTS, PROMETHEUS = "events.jsonl", "archive.prom"
RECENT = 50
"""Products that the rate is taken from."""
SHOWN = 20
"""Errors that are told one by one."""
DRAW_S, WRITE_S = 0.25, 5.0


class Watch:
    """Counts and tells. Used by the driver's thread, but for `block`.

    Attributes:
        states: of every product of this run, by path.
        dashboard: link to Dask's own page. lines_told: errors, one line each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.states, self.dashboard = folder, dict[str, State](), ""
        self.began = time.monotonic()
        self.pixels_left = self.workers = self.deaths = 0
        self.lines_told: list[str] = []
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._busy: dict[str, tuple[str, int, int]] = {}
        self._lock = threading.Lock()
        self._drawn = self._written = 0.0
        self._live: Live | None = None
        self._broken = False

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the lines while the block runs, where somebody looks on."""
        if not console.errors().is_terminal:
            yield
            return
        with Live(console=console.errors(), auto_refresh=False, transient=True) as self._live:
            try:
                yield
            finally:
                self._live = None

    def event(self, what: str, **told: Any) -> None:
        """One line in the log of events."""
        line = json.dumps({"time": round(time.time(), 3), "event": what, **told}, default=str)
        try:
            with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            self._unwritable(self.folder / EVENTS, error.strerror or str(error))

    def settled(self, path: str, state: State, pixels: int = 0, line: str | None = None, **told: Any) -> None:
        """A product has come to an end."""
        self.states[path] = state
        self.pixels_left -= pixels
        if state == "done":
            self._recent.append((time.monotonic(), pixels))
        with self._lock:
            self._busy = {worker: busy for worker, busy in self._busy.items() if busy[0] != path}
        self.event("product", path=path, state=state, line=line, **told)
        if line is not None:
            self.lines_told.append(f"{state}: {line}")
            if len(self.lines_told) <= SHOWN:
                console.complain(self.lines_told[-1])
            elif len(self.lines_told) == SHOWN + 1:
                console.complain("and more: `deploy archive report` has all of them")

    def block(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """A worker tells where it is; called by the client's thread."""
        _, told = event
        with suppress(KeyError, TypeError, ValueError), self._lock:
            self._busy[str(told["worker"])] = (str(told["path"]), int(told["done"]), int(told["lines"]))

    def gone(self, names: int) -> None:
        """So many workers have ended."""
        self.deaths += names
        with self._lock:
            # Who they were is not known by the name that they gave; those that live tell again within a second.
            self._busy.clear()

    def tick(self, *, now: bool = False) -> None:
        """Draw and write what it is time for."""
        at = time.monotonic()
        if self._live is not None and at - self._drawn > DRAW_S:
            self._drawn = at
            self._live.update(Text("\n").join(self.lines()), refresh=True)
        if now or at - self._written > WRITE_S:
            self._written = at
            try:
                write_bytes(self.folder / PROMETHEUS, self.exposition().encode())
            except InputError as error:
                self._unwritable(self.folder / PROMETHEUS, error.problem)

    def _unwritable(self, file: Path, why: str) -> None:
        if not self._broken:
            self._broken = True
            console.warn(f"{file}: {why}; the archive goes on without")

    @property
    def rate(self) -> float | None:
        """Pixels in a second, from the last products."""
        if len(self._recent) < 2:
            return None
        first, last = self._recent[0], self._recent[-1]
        pixels = sum(count for _, count in self._recent) - first[1]
        return pixels / (last[0] - first[0]) if last[0] > first[0] else None

    @property
    def seconds_left(self) -> float | None:
        """What is left takes about so long."""
        rate = self.rate
        return None if not rate else max(0, self.pixels_left) / rate

    def lines(self) -> list[Text]:
        """What a terminal shows."""
        counted = totals(self.states.values())
        ends = [f"{counted[state]} {state}" for state in ("done", "present", "refused", "failed", "quarantined")]
        rate, left = self.rate, self.seconds_left
        pace = [f"{rate:.3g} pixels/s"] if rate else []
        pace += [f"about {_duration(left)} left"] if left is not None else []
        pace += [f"{self.workers} worker{'s' * (self.workers != 1)}"]
        pace += [f"{self.deaths} died"] if self.deaths else []
        with self._lock:
            busy = sorted(self._busy.values())
        at = [f"{plain(Path(path).name)} {done}/{lines}" for path, done, lines in busy]
        shown = [
            f"products  {', '.join(ends)} of {counted['planned']}",
            f"pace      {', '.join(pace)}",
            f"busy      {', '.join(at) or '-'}",
        ]
        return [Text(printable(line), overflow="ellipsis", no_wrap=True) for line in shown]

    def exposition(self) -> str:
        """What Prometheus' node exporter reads from a file, in its text format."""
        counted = totals(self.states.values())
        told = ["# HELP damp_archive_products Products by what became of them.", "# TYPE damp_archive_products gauge"]
        told += [
            f'damp_archive_products{{state="{state}"}} {count}'
            for state, count in counted.items()
            if state != "planned"
        ]
        gauges: list[tuple[str, str, float | None]] = [
            ("products_planned", "Products of this run.", counted["planned"]),
            ("workers", "Workers that are there.", self.workers),
            ("worker_deaths", "Workers that ended since the start.", self.deaths),
            ("pixels_per_second", "From the last products.", self.rate),
            ("seconds_left", "About what the rest takes.", self.seconds_left),
            ("uptime_seconds", "Since the driver was started.", round(time.monotonic() - self.began, 3)),
            ("written_timestamp_seconds", "When this was written, Unix time.", round(time.time(), 3)),
        ]
        for name, about, value in gauges:
            if value is not None:
                told += [f"# HELP damp_archive_{name} {about}", f"# TYPE damp_archive_{name} gauge"]
                told += [f"damp_archive_{name} {value}"]
        return "\n".join(told) + "\n"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
