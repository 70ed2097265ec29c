"""A folder into which somebody else's program drops files, each read once when it is complete: the loop of it.

The folder is looked through five times a second, so that it may as well lie on a network share. What a file is, and
when it is complete, say `watch` for ENVI pairs and `watch_photos` for photographs.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from runtime.errors import CubeFileError, InputError, printable
from runtime.files.disk import reason
from runtime.lines import Broken, Ended, Event, Line, LineFormat, Missing, Quiet, Taken
from runtime.sources.contract import Source, SourceOptions
from runtime.sources.pacing import Pace, check_buffer
from runtime.sources.pairs import Skipped
from runtime.stated import Stated

PATIENCE = 10.0
POLL = 0.2


class Lines(Protocol):
    """The lines of a finished file, one after the other; see `envi_file.LineReader`."""

    next: int

    @property
    def left(self) -> int: ...
    def take(self, line: Line) -> Taken: ...
    def close(self) -> None: ...


class Finished(ABC):
    """A complete file, or pair, of a folder.

    Attributes:
        path: of what names it; name: of what holds its lines.
        stated: what it says of its numbers.
    """

    path: Path
    name: str
    stated: Stated

    @abstractmethod
    def format(self, options: SourceOptions) -> LineFormat:
        """Of its lines. Raises InputError: the options do not fit it."""

    @abstractmethod
    def lines(self, frame: int | None) -> Lines:
        """Its lines, from the first; `frame` as in `SourceOptions`. Raises CubeFileError."""

    @abstractmethod
    def sample(self) -> NDArray[Any] | None:
        """See `Source.sample`."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """See `Source.describe`."""

    def otherwise(self, first: Stated) -> str:
        """What it states otherwise than the first file, by name; empty where nothing."""
        return ""


class Folder(Protocol):
    """What lies in a folder; see `pairs.Pairs`."""

    patience: float
    what: str
    """One of its files, for people."""

    @property
    def waits(self) -> bool: ...
    def look(self) -> None: ...
    def finished(self) -> Iterator[Finished | Skipped]: ...
    def reasons(self) -> list[str]: ...


class Watch(Source):
    """The files of a folder, in the order of their last change, then of their names. Frame ids are lines of a file.

    It waits for the first complete one that is of the size which the options expect. That one says what the lines of
    all the others look like. It ends when nothing new came for `idle_seconds`, never where the options do not say.

    Raises:
        CubeFileError: there is no such folder, or no complete file came in the folder's patience.
        InputError: the options do not fit the first file.
    """

    live = False
    several = True

    def __init__(self, path: Path, folder: Folder, options: SourceOptions) -> None:
        self._idle = options.idle_seconds
        self._options = options
        self._pace = Pace(options.rate)
        self._path, self._folder = path, folder
        self._events: deque[Event] = deque()
        self._files = self._skipped = self._cut = 0
        self._open = True
        self._reader: Lines | None = None
        self._there = True
        self._look_at = -math.inf
        self._last = time.monotonic()
        self._file = self._first()
        self.format, self.stated = self._file.format(options), self._file.stated
        self._start(self._file)

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
        return self._file.sample()

    def telemetry(self) -> Mapping[str, float]:
        return {"files": self._files, "skipped": self._skipped, "cut_short": self._cut}

    def describe(self) -> dict[str, str]:
        return self._file.describe() | {"path": str(self._path)}

    def close(self) -> None:
        self._open = False
        self._events.clear()
        if self._reader is not None:
            self._reader.close()

    def _first(self) -> Finished:
        deadline = time.monotonic() + self._folder.patience
        while True:
            try:
                self._folder.look()
            except OSError as error:
                raise CubeFileError(
                    f"cannot be watched: {reason(error)}", file=self._path, remedy="give a folder that can be read"
                ) from error
            late = time.monotonic() >= deadline
            for found in self._folder.finished():
                if isinstance(found, Skipped):
                    self._skip(found)
                elif unfit := self._unfit(found):
                    self._skip(Skipped(found.path.name, unfit))
                else:
                    return found
            if late:
                why = [event.why for event in self._events if isinstance(event, Broken)] + self._folder.reasons()
                raise CubeFileError(
                    f"no complete {self._folder.what} within {self._folder.patience:g} s"
                    + "".join(f"; {text}" for text in why),
                    file=self._path,
                    remedy="start the recorder first, or allow more seconds of idleness (stream.idle_seconds)",
                )
            time.sleep(POLL)

    def _unfit(self, file: Finished) -> str:
        """Why a file cannot be of what is expected, so that it says nothing of the others; empty where it may be."""
        found, frame, samples = file.format(self._options), self._options.frame, self._options.samples
        if samples not in (None, found.samples):
            return f"its lines have {found.samples} samples, {samples} are expected"
        if frame is None:
            return ""
        if found.bands != 1:
            return f"it has {found.bands} bands, one is expected"
        try:
            file.lines(frame).close()
        except CubeFileError as error:
            return str(error)
        return ""

    def _take(self, reader: Lines, line: Line) -> Event:
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
        for found in self._folder.finished():
            if isinstance(found, Skipped):
                self._skip(found)
            elif self._begun(found):
                return
        nothing = looked and not self._folder.waits and not self._events
        if nothing and self._idle is not None and now - self._last >= self._idle:
            self._open = False

    def _look_through(self) -> None:
        start = time.monotonic()
        try:
            self._folder.look()
            self._there = True
        except OSError as error:
            if self._there:
                self._events.append(Broken(printable(f"{self._path} cannot be looked through: {reason(error)}")))
            self._there = False
        now = time.monotonic()
        # Looking through a folder of very many files takes a tenth of the time at most.
        self._look_at = now + max(POLL, 9 * (now - start))

    def _begun(self, file: Finished) -> bool:
        """Whether a complete file could be opened; why not is among the events."""
        try:
            if other := _differences(self.format, file.format(self._options)) or file.otherwise(self.stated):
                raise InputError(f"other {other} than the first file's", file=file.path)
            self._start(file)
        except InputError as error:
            self._skip(Skipped(file.path.name, str(error)))
            return False
        self._events.append(Broken(printable(f"next file: {file.name}")))
        return True

    def _start(self, file: Finished) -> None:
        self._reader = file.lines(self._options.frame)
        self._file = file
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
