"""`watch:DIR`: a folder into which a recorder drops ENVI pairs, each read once when it is complete.

The folder is looked through five times a second, so that it may as well lie on a network share. No line is given twice:
a file that is touched or grows after it was read is not read again; it is told, and what it grew by is left out.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runtime.errors import CubeFileError, InputError, printable
from runtime.files.disk import reason
from runtime.files.envi_header import EnviHeader, stated_by
from runtime.lines import Broken, Ended, Event, Line, LineFormat, Missing, Quiet
from runtime.sources.contract import Source, SourceOptions
from runtime.sources.envi_file import LineReader, converting, described, format_of, path_of, sampled
from runtime.sources.pacing import Pace, check_buffer
from runtime.sources.pairs import Pairs, Skipped

PATIENCE = 10.0
POLL = 0.2


def open_source(address: str, options: SourceOptions) -> Watch:
    """Open a folder, and wait for its first complete pair, which says what the lines of all the others look like.

    It ends when nothing new came for `idle_seconds`, never where the options do not say. For as long, or 10 s, a pair
    may stay incomplete or unreadable before it is skipped.

    Raises:
        CubeFileError: there is no such folder, or no complete pair came in that time.
        InputError: the address is empty, or the options do not fit the first file.
    """
    return Watch(path_of(address, "watch"), options)


class Watch(Source):
    """The pairs of a folder, in the order of their last change, then of their names. Frame ids are lines of a file."""

    live = False
    several = True

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._idle = options.idle_seconds
        self._options = options
        self._pace = Pace(options.rate)
        self._path = path
        self._pairs = Pairs(path, PATIENCE if self._idle is None else self._idle)
        self._events: deque[Event] = deque()
        self._files = self._skipped = self._cut = 0
        self._open = True
        self._reader: LineReader | None = None
        self._there = True
        self._look_at = -math.inf
        self._last = time.monotonic()
        self._header = self._first_header()
        self.format, self.stated = format_of(self._header, options), stated_by(self._header)
        self._start(self._header)

    def read(self, line: Line, timeout: float) -> Event:
        check_buffer(line, self.format)
        deadline = time.monotonic() + timeout
        while True:
            if self._events:
                return self._events.popleft()
            if not self._open:
                return Ended()
            if self._reader is not None:
                if not self._pace.wait(deadline - time.monotonic()):
                    return Quiet()
                return self._take(self._reader, line)
            self._look()
            if self._events or self._reader is not None or not self._open:
                continue
            self._pace.restart()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return Quiet()
            time.sleep(min(POLL / 2, remaining))

    def sample(self) -> NDArray[Any] | None:
        return sampled(self._header, self._header.lines)

    def telemetry(self) -> Mapping[str, float]:
        return {"files": self._files, "skipped": self._skipped, "cut_short": self._cut}

    def describe(self) -> dict[str, str]:
        return described("watch", self._header) | {"path": str(self._path), "model": "folder of ENVI files"}

    def close(self) -> None:
        self._open = False
        self._events.clear()
        if self._reader is not None:
            self._reader.close()

    def _first_header(self) -> EnviHeader:
        deadline = time.monotonic() + self._pairs.patience
        while True:
            try:
                self._pairs.look()
            except OSError as error:
                raise CubeFileError(
                    f"cannot be watched: {reason(error)}", file=self._path, remedy="give a folder that can be read"
                ) from error
            late = time.monotonic() >= deadline
            for found in self._pairs.ready():
                if isinstance(found, EnviHeader):
                    return found
                self._skip(found)
            if late:
                why = [event.why for event in self._events if isinstance(event, Broken)] + self._pairs.reasons()
                raise CubeFileError(
                    f"no complete ENVI pair within {self._pairs.patience:g} s" + "".join(f"; {text}" for text in why),
                    file=self._path,
                    remedy="start the recorder first, or allow more seconds of idleness (stream.idle_seconds)",
                )
            time.sleep(POLL)

    def _take(self, reader: LineReader, line: Line) -> Event:
        event: Event
        try:
            event = reader.take(line)
        except CubeFileError as error:
            event = Missing(reader.next, reader.left, str(error))
            self._cut += 1
            reader.close()
        self._pace.step()
        if not reader.left:
            reader.close()
            self._reader = None
        self._last = time.monotonic()
        return event

    def _look(self) -> None:
        """Begin the next file, or put what happened among the events."""
        now = time.monotonic()
        looked = now >= self._look_at
        if looked:
            self._look_through()
        for found in self._pairs.ready():
            if isinstance(found, Skipped):
                self._skip(found)
            elif self._begun(found):
                return
        nothing = looked and not self._pairs.waiting and not self._events
        if nothing and self._idle is not None and now - self._last >= self._idle:
            self._open = False

    def _look_through(self) -> None:
        start = time.monotonic()
        try:
            self._pairs.look()
            self._there = True
        except OSError as error:
            if self._there:
                self._events.append(Broken(printable(f"{self._path} cannot be looked through: {reason(error)}")))
            self._there = False
        now = time.monotonic()
        # Looking through a folder of very many files takes a tenth of the time at most.
        self._look_at = now + max(POLL, 9 * (now - start))

    def _begun(self, header: EnviHeader) -> bool:
        """Whether a complete pair could be opened; why not is among the events."""
        try:
            if other := _differences(self.format, format_of(header, self._options)) or converting(self.stated, header):
                raise InputError(f"other {other} than the first file's", file=header.path)
            self._start(header)
        except InputError as error:
            self._skip(Skipped(header.path.name, str(error)))
            return False
        self._events.append(Broken(printable(f"next file: {header.data_path.name}")))
        return True

    def _start(self, header: EnviHeader) -> None:
        self._reader = LineReader(header)
        self._header = header
        self._files += 1

    def _skip(self, skipped: Skipped) -> None:
        self._skipped += 1
        self._events.append(Broken(printable(f"skipped {skipped.name}: {skipped.why}")))


def _differences(first: LineFormat, other: LineFormat) -> str:
    """What of two formats differs, by name; empty where nothing does. Centres may differ by a tenth of a nanometre."""
    keys = ("bands", "samples", "dtype", "scale", "ignore_value")
    # By their text, since the mark of missing pixels may be NaN.
    names = [key.replace("_", " ") for key in keys if repr(getattr(first, key)) != repr(getattr(other, key))]
    one, two = first.wavelengths, other.wavelengths
    if one is None or two is None:
        same = one is two
    else:
        same = len(one) == len(two) and all(abs(a - b) <= 0.1 for a, b in zip(one, two, strict=True))
    return ", ".join(names if same else [*names, "wavelengths"])
