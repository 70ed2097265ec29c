"""The ENVI pairs that a recorder drops into a folder: which are there, and which are complete."""

import os
import stat
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import CubeFileError
from runtime.files.envi import DATA_SUFFIXES, likely, may_hold_data, pair_of, read_header
from runtime.files.envi_header import EnviHeader

Status = tuple[str, int, int, int]
"""Name, inode, size and time of change (ns) of a file."""

Mark = tuple[Status | None, tuple[Status, ...]]
"""Header and what may be the data file of a pair; one of them is there."""

SAMPLED_BYTES = 1 << 16
"""Of a data file, by which it is known again."""


@dataclass(frozen=True)
class Skipped:
    """A pair that is not read: its name, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class _Known:
    """A data file that was read.

    Attributes:
        lines: that it had.
        place, crc: CRC-32 of bytes that stay where they are when it grows.
        spread: CRC-32 of bytes from all over it.
    """

    lines: int
    place: tuple[int, int]
    crc: int | None
    spread: int | None


@dataclass(eq=False)
class _Waiting:
    """A pair, or half of one, that was not read yet."""

    path: Path
    mark: Mark
    since: float
    settled: bool = False
    why: str = ""


class Pairs:
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
        self._known: dict[tuple[str, int], _Known] = {}
        self._given_up: set[Mark] = set()

    def look(self) -> None:
        """Look through the folder. Raises OSError."""
        files = _files(self._path)
        now = time.monotonic()
        before, self.waiting = self.waiting, {}
        for mark in _paired(files):
            header, data = mark
            if mark in self._given_up or (data and self._read.issuperset(data)):
                continue
            name = (header or data[0])[0]
            pair = before.get(name)
            if pair is not None and pair.mark == mark:
                pair.settled = True
            else:
                pair = _Waiting(self._path / name, mark, now)
            self.waiting[name] = pair
        # What is gone from the folder need not be remembered for years.
        if len(self._read) + len(self._known) + len(self._given_up) > 3 * len(files) + 1000:
            self._known = {data: known for data, known in self._known.items() if data[0] in files}
            self._read = {data for data in self._read if data[0] in files}
            self._given_up = {
                mark for mark in self._given_up if any(one and one[0] in files for one in (mark[0], *mark[1]))
            }

    def ready(self) -> Iterator[EnviHeader | Skipped]:
        """Complete pairs that did not change between two looks, and those that will not be waited for any longer."""
        for name, pair in sorted(self.waiting.items(), key=lambda item: (_changed(item[1].mark), item[0])):
            late = time.monotonic() - pair.since >= self.patience
            if not pair.settled or (pair.why and not late):
                continue
            header = _complete(pair.path)
            if isinstance(header, EnviHeader):
                del self.waiting[name]
                again = _status_of(header.data_path) in self._read
                self._read.update(pair.mark[1])
                if again:
                    continue
                known = self._remember(header)
                yield Skipped(name, known) if known else header
                continue
            pair.why = header
            if late:
                del self.waiting[name]
                self._given_up.add(pair.mark)
                yield Skipped(name, pair.why)

    def _remember(self, header: EnviHeader) -> str:
        """Why a data file is not read: it was, and has only grown or been touched since; empty where it is new."""
        name = header.data_path.name
        if (status := _status_of(header.data_path)) is None:
            return ""
        # What came after the header was read is not of this reading.
        if status[2] == header.header_offset + header.lines * header.line_bytes:
            self._read.add(status)
        before = self._known.get(status[:2])
        place = _place(header)
        spread = _sampled(header.data_path, *_all_over(status[2]))
        self._known[status[:2]] = _Known(header.lines, place, _sampled(header.data_path, place), spread)
        if before is None or before.crc is None:
            return ""
        # The same inode may be another file, or the same one written anew.
        if header.lines > before.lines and _sampled(header.data_path, before.place) == before.crc:
            return (
                f"{name} grew after it was read: {header.lines - before.lines} new lines are left out; "
                "read a file that is still recorded with envi-live:PATH"
            )
        if header.lines == before.lines and spread is not None and spread == before.spread:
            return f"{name} was touched after it was read, and holds what it held: it is not read again"
        return ""

    def reasons(self) -> list[str]:
        """Why the pairs that are waited for are not complete."""
        return [pair.why for pair in self.waiting.values() if pair.why]


def _place(header: EnviHeader) -> tuple[int, int]:
    """Position and number of bytes that stay where they are when lines are added: the last, in bsq the first."""
    if header.interleave == "bsq":
        return header.header_offset, min(SAMPLED_BYTES, header.lines * header.samples * header.dtype.itemsize)
    count = min(SAMPLED_BYTES, header.lines * header.line_bytes)
    return header.header_offset + header.lines * header.line_bytes - count, count


def _all_over(size: int) -> list[tuple[int, int]]:
    """Places from the first to the last byte of a file."""
    count = SAMPLED_BYTES // 4
    return [(max(0, size - count) * part // 31, count) for part in range(32)]


def _sampled(path: Path, *places: tuple[int, int]) -> int | None:
    with suppress(OSError), path.open("rb") as file:
        crc = 0
        for start, count in places:
            file.seek(start)
            crc = zlib.crc32(file.read(count), crc)
        return crc
    return None


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


def _status_of(path: Path) -> Status | None:
    with suppress(OSError):
        return _status(path.name, path.stat())
    return None


def _paired(files: Mapping[str, Status]) -> Iterator[Mark]:
    """Headers with what is likely their data, if anything, and data files without a header."""
    headers = [name for name in files if name.lower().endswith(".hdr")]
    named: defaultdict[str, list[str]] = defaultdict(list)
    for name in filter(may_hold_data, sorted(files)):
        for stem in (name, name.rpartition(".")[0]):
            named[stem].append(name)
    paired = set(headers)
    for name in headers:
        paired.update(named[name[:-4]])
        yield files[name], tuple(files[data] for data in likely(name[:-4], named[name[:-4]]))
    for name in files.keys() - paired:
        if Path(name).suffix.lower() in DATA_SUFFIXES:
            yield None, (files[name],)


def _changed(mark: Mark) -> int:
    header, data = mark
    return max((one[3] for one in data), default=header[3] if header else 0)
