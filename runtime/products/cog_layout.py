"""A TIFF laid out as a COG, and what tells readers so. GDAL before 3.11 writes that of pixel-interleaved ones alone.

All directories stand first, behind a text that says how; each strip or tile has its size before it and its last 4 bytes
behind it: https://gdal.org/en/stable/drivers/raster/cog.html, "header ghost area"; TIFF 6.0 and BigTIFF.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.files.tags import SIZES

COG = "COG"
"""Value of `LAYOUT` in GDAL's domain IMAGE_STRUCTURE."""
_PLACES, _LENGTHS = (273, 324), (279, 325)
"""Tags of strips and tiles."""
_TEXT = (
    b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    b"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
)
# The first directory follows at once, on a place that divides by 16: the text is filled up with blanks.
_FILLED = _TEXT + b" " * (-(43 + len(_TEXT)) % 16)
_GHOST = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(_FILLED) + _FILLED


def lay_out(source: Path, target: Path) -> None:
    """Copy a TIFF that GDAL wrote, whose smallest overviews come first, as a COG. Raises OSError."""
    with source.open("rb") as file, target.open("wb") as written:
        form = _Form(file)
        directories = list(form.directories())
        places = [directory.numbers(form, _PLACES) for directory in directories]
        lengths = np.concatenate([directory.numbers(form, _LENGTHS) for directory in directories])
        front = form.start + len(_GHOST)
        starts = front + np.cumsum([0, *(directory.size(form) for directory in directories)])
        every = np.concatenate(places)
        stored = np.flatnonzero(every)
        stored = stored[np.argsort(every[stored], kind="stable")]
        moved = np.zeros_like(every)
        moved[stored] = starts[-1] + 4 + np.cumsum(lengths[stored] + 8) - (lengths[stored] + 8)
        written.write(form.head + _GHOST)
        following = [*starts[1:-1].tolist(), 0]
        parts = np.split(moved, np.cumsum([len(some) for some in places])[:-1])
        for directory, part, at, then in zip(directories, parts, starts.tolist(), following, strict=False):
            written.write(directory.packed(form, part, at, then))
        for place, length in zip(every[stored].tolist(), lengths[stored].tolist(), strict=True):
            block = os.pread(file.fileno(), length, place)
            written.write(struct.pack("<I", length) + block + block[-4:])


class _Form:
    """Byte order and width of a TIFF's offsets."""

    def __init__(self, file: BinaryIO) -> None:
        head = os.pread(file.fileno(), 16, 0)
        self._file = file.fileno()
        self.order, big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
        self.wide, self.number, self.inline = ("Q", "Q", 8) if big else ("I", "H", 4)
        self.start = 2 * self.inline
        self.row = 4 + self.start
        self._first = self.unpacked(self.wide, self.inline)[0]
        self.head = head[: self.inline] + self.pack(self.wide, self.start + len(_GHOST))

    def pack(self, kind: str, *values: int) -> bytes:
        return struct.pack(self.order + kind, *values)

    def unpacked(self, kind: str, at: int) -> tuple[int, ...]:
        size = struct.calcsize(self.order + kind)
        return struct.unpack(self.order + kind, os.pread(self._file, size, at))

    def directories(self) -> Iterator["_Directory"]:
        at = self._first
        while at:
            first, count = at + struct.calcsize(self.number), self.unpacked(self.number, at)[0]
            entries = []
            for entry in range(first, first + count * self.row, self.row):
                tag, kind, values = self.unpacked(f"HH{self.wide}", entry)
                size, where = values * SIZES[kind], entry + 4 + self.inline
                if size > self.inline:
                    where = self.unpacked(self.wide, where)[0]
                entries.append(_Entry(tag, kind, values, os.pread(self._file, size, where)))
            yield _Directory(entries)
            at = self.unpacked(self.wide, first + count * self.row)[0]


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    data: bytes


class _Directory(NamedTuple):
    entries: list[_Entry]

    def numbers(self, form: _Form, tags: tuple[int, int]) -> NDArray[Any]:
        entry = next(entry for entry in self.entries if entry.tag in tags)
        return np.frombuffer(entry.data, f"{form.order}u{SIZES[entry.kind]}").astype(np.int64)

    def size(self, form: _Form) -> int:
        outside = sum(len(_even(entry.data)) for entry in self.entries if len(entry.data) > form.inline)
        return _table(form, len(self.entries)) + outside

    def packed(self, form: _Form, places: NDArray[Any], at: int, then: int) -> bytes:
        """Its bytes at `at`, with other places of strips or tiles and of the directory behind it."""
        table, outside = form.pack(form.number, len(self.entries)), b""
        behind = at + _table(form, len(self.entries))
        for tag, kind, count, old in self.entries:
            data = places.astype(f"{form.order}u{SIZES[kind]}").tobytes() if tag in _PLACES else old
            table += form.pack(f"HH{form.wide}", tag, kind, count)
            if len(data) > form.inline:
                table += form.pack(form.wide, behind + len(outside))
                outside += _even(data)
            else:
                table += data.ljust(form.inline, b"\0")
        return _even(table + form.pack(form.wide, then)) + outside


def _even(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 8)


def _table(form: _Form, entries: int) -> int:
    """Bytes of a directory without what stands outside of it."""
    size = struct.calcsize(form.number) + entries * form.row + form.inline
    return size + -size % 8
