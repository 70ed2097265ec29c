"""`watch:DIR`: a folder into which a recorder drops ENVI pairs, each read once when it is complete.

The folder is looked through five times a second, so that it may as well lie on a network share.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import CubeFileError, InputError, printable
from runtime.files.disk import reason
from runtime.files.envi import DATA_SUFFIXES, EnviHeader, pair_of, read_header
from runtime.lines import Broken, Ended, Event, Line, LineFormat, Missing, Quiet
from runtime.sources.contract import Source, SourceOptions
from runtime.sources.envi_file import LineReader, described, format_of, path_of
from runtime.sources.pacing import Pace, check_buffer

PATIENCE = 10.0
POLL = 0.2

Status = tuple[str, int, int, int]
"""Name, inode, size and time of change (ns) of a file."""

Mark = tuple[Status | None, Status | None]
"""Header and data file of a pair; one of them is there."""

_SUFFIXES = ("", *DATA_SUFFIXES, *(suffix.upper() for suffix in DATA_SUFFIXES))


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

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._idle = options.idle_seconds
        self._options = options
        self._pace = Pace(options.rate)
        self._path = path
        self._pairs = _Pairs(path, PATIENCE if self._idle is None else self._idle)
        self._events: deque[Event] = deque()
        self._files = self._skipped = self._cut = 0
        self._open = True
        self._reader: LineReader | None = None
        self._there = True
        self._look_at = -math.inf
        self._last = time.monotonic()
        self._header = self._first_header()
        self._format = format_of(self._header, options)
        self._start(self._header)

    @property
    def format(self) -> LineFormat:
        return self._format

    def read(self, line: Line, timeout: float) -> Event:
        check_buffer(line, self._format)
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
                    remedy="start the recorder first, or allow more seconds of idleness",
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
            if isinstance(found, _Skipped):
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
            if other := _differences(self._format, format_of(header, self._options)):
                raise InputError(f"other {other} than the first file's", file=header.path)
            self._start(header)
        except InputError as error:
            self._skip(_Skipped(header.path.name, str(error)))
            return False
        self._events.append(Broken(printable(f"next file: {header.data_path.name}")))
        return True

    def _start(self, header: EnviHeader) -> None:
        self._reader = LineReader(header)
        self._header = header
        self._files += 1

    def _skip(self, skipped: _Skipped) -> None:
        self._skipped += 1
        self._events.append(Broken(printable(f"skipped {skipped.name}: {skipped.why}")))


@dataclass(frozen=True)
class _Skipped:
    name: str
    why: str


@dataclass(eq=False)
class _Waiting:
    """A pair, or half of one, that was not read yet."""

    path: Path
    mark: Mark
    since: float
    settled: bool = False
    why: str = ""


class _Pairs:
    """The pairs of a folder: which are complete, which are waited for, which have been dealt with.

    Attributes:
        patience: seconds that a pair may stay as it is without being complete.
        waiting: by name of the header, or of the data file where there is none.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self.patience = patience
        self.waiting: dict[str, _Waiting] = {}
        self._path = path
        self._read: set[Status] = set()
        self._given_up: set[Mark] = set()

    def look(self) -> None:
        """Look through the folder. Raises OSError."""
        files = _files(self._path)
        now = time.monotonic()
        before, self.waiting = self.waiting, {}
        for mark in _paired(files):
            header, data = mark
            if data in self._read or mark in self._given_up:
                continue
            name = (header or data or ("",))[0]
            pair = before.get(name)
            if pair is not None and pair.mark == mark:
                pair.settled = True
            else:
                pair = _Waiting(self._path / name, mark, now)
            self.waiting[name] = pair
        # What is gone from the folder need not be remembered for years.
        if len(self._read) + len(self._given_up) > 2 * len(files) + 1000:
            self._read = {data for data in self._read if data[0] in files}
            self._given_up = {mark for mark in self._given_up if any(one and one[0] in files for one in mark)}

    def ready(self) -> Iterator[EnviHeader | _Skipped]:
        """Complete pairs that did not change between two looks, and those that will not be waited for any longer."""
        for name, pair in sorted(self.waiting.items(), key=lambda item: (_changed(item[1].mark), item[0])):
            late = time.monotonic() - pair.since >= self.patience
            if not pair.settled or (pair.why and not late):
                continue
            header = _complete(pair.path)
            if isinstance(header, EnviHeader):
                del self.waiting[name]
                with suppress(OSError):
                    self._read.add(_status(header.data_path.name, header.data_path.stat()))
                if (data := pair.mark[1]) is not None:
                    self._read.add(data)
                yield header
                continue
            pair.why = header
            if late:
                del self.waiting[name]
                self._given_up.add(pair.mark)
                yield _Skipped(name, pair.why)

    def reasons(self) -> list[str]:
        """Why the pairs that are waited for are not complete."""
        return [pair.why for pair in self.waiting.values() if pair.why]


def _complete(path: Path) -> EnviHeader | str:
    try:
        header = read_header(path)
        # The data file must not have another header too.
        pair_of(header.data_path)
        return header
    except CubeFileError as error:
        return str(error)


def _files(folder: Path) -> dict[str, Status]:
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                status = entry.stat()
                if stat.S_ISREG(status.st_mode) and not entry.name.startswith("."):
                    found[entry.name] = _status(entry.name, status)
    return found


def _status(name: str, status: os.stat_result) -> Status:
    return name, status.st_ino, status.st_size, status.st_mtime_ns


def _paired(files: Mapping[str, Status]) -> Iterator[Mark]:
    """Headers with the first of their data files, if any, and data files without a header."""
    headers = [name for name in files if name.lower().endswith(".hdr")]
    paired = set()
    for name in headers:
        partners = [name[:-4] + suffix for suffix in _SUFFIXES if name[:-4] + suffix in files]
        paired.update(partners)
        yield files[name], files[partners[0]] if partners else None
    for name in files.keys() - paired - set(headers):
        if Path(name).suffix.lower() in DATA_SUFFIXES:
            yield None, files[name]


def _changed(mark: Mark) -> int:
    header, data = mark
    return (data or header or ("", 0, 0, 0))[3]


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
