"""Sources and lines for the stream's tests: what they issue is known, and they do as they are told."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from runtime.lines import NO_FLAGS, Ended, Event, Flag, Line, LineFormat, Quiet, Taken
from runtime.sources.contract import Source

SHAPE = (3, 16)
FORMAT = LineFormat(*SHAPE, np.dtype(np.uint16), scale=4095.0, saturation=4095.0)


def line(number: int, format: LineFormat = FORMAT) -> Line:
    """A line that only its number gives."""
    rng = np.random.default_rng(number)
    return rng.integers(1, 4000, format.shape).astype(format.dtype)


class Script(Source):
    """Issues events from a list: a number is the line of that number, an array a line, an event itself.

    Args:
        events: what it issues.
        live: see `Source`.
        pause: seconds before each line.
    """

    def __init__(
        self,
        events: Sequence[int | Line | Event | Exception],
        format: LineFormat = FORMAT,
        live: bool = False,
        pause: float = 0.0,
    ) -> None:
        self.live, self.format, self._pause = live, format, pause
        self._events = list(events)
        self._place = self._number = 0
        self.closed = False

    def read(self, line: Line, timeout: float) -> Event:
        if self._place == len(self._events):
            return Ended()
        event = self._events[self._place]
        self._place += 1
        if isinstance(event, Exception):
            raise event
        if isinstance(event, int):
            event = globals()["line"](event, self.format)
        if not isinstance(event, np.ndarray):
            if isinstance(event, Quiet):
                time.sleep(timeout)
            return event
        if self._pause:
            time.sleep(self._pause)
        line[:] = event
        self._number += 1
        return Taken(self._number, 1_000_000_000 + self._number, Flag.BREAK if self._place == 1 else NO_FLAGS)

    def describe(self) -> dict[str, str]:
        return {"kind": "script"}

    def close(self) -> None:
        self.closed = True
