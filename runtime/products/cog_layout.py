"""What tells a reader that a TIFF is laid out as a COG. GDAL before 3.11 writes it of pixel-interleaved ones alone.

A text behind the header, and of each strip or tile its size before it and its last 4 bytes behind it:
https://gdal.org/en/stable/drivers/raster/cog.html, "header ghost area"; TIFF 6.0 and BigTIFF.
"""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

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


def add_structure(source: Path, target: Path) -> None:
    """Copy a TIFF that GDAL wrote, its directories first, as a COG. Raises OSError."""
    with source.open("rb") as file, target.open("wb") as written:
        head = file.read(16)
        order, big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
        start = 16 if big else 8
        pointers, tables = _directories(file, order, big)
        places = np.concatenate([table.places for table in tables])
        lengths = np.concatenate([table.lengths for table in tables])
        stored = np.flatnonzero(places)
        stored = stored[np.argsort(places[stored], kind="stable")]
        data = int(places[stored[0]])
        moved = np.zeros_like(places)
        moved[stored] = data + len(_GHOST) + 4 + np.concatenate([[0], np.cumsum(lengths[stored] + 8)[:-1]])
        file.seek(0)
        front = bytearray(file.read(data))
        for pointer in pointers:
            wide = order + ("Q" if big else "I")
            struct.pack_into(wide, front, pointer, struct.unpack_from(wide, front, pointer)[0] + len(_GHOST))
        for table in tables:
            count = len(table.places)
            front[table.where : table.where + count * table.dtype.itemsize] = (
                moved[:count].astype(table.dtype).tobytes()
            )
            moved = moved[count:]
        written.write(front[:start] + _GHOST + front[start:])
        for place, length in zip(places[stored].tolist(), lengths[stored].tolist(), strict=True):
            block = os.pread(file.fileno(), length, place)
            written.write(struct.pack("<I", length) + block + block[-4:])


class _Table:
    """Strips or tiles of a directory: where the list of their places stands, of which type, and what it says."""

    def __init__(self, where: int, places: NDArray[Any], lengths: NDArray[Any]) -> None:
        self.where, self.dtype = where, places.dtype
        self.places, self.lengths = places.astype(np.int64), lengths.astype(np.int64)


def _directories(file: BinaryIO, order: str, big: bool) -> tuple[list[int], list[_Table]]:
    """Where offsets stand that move with what they point to, and the strips or tiles of all directories."""
    wide, inline, number = ("Q", 8, "Q") if big else ("I", 4, "H")
    row, pointer = 4 + 2 * inline, inline
    pointers: list[int] = []
    tables: list[_Table] = []

    def unpacked(kind: str, at: int) -> tuple[int, ...]:
        return struct.unpack(order + kind, os.pread(file.fileno(), struct.calcsize(order + kind), at))

    while at := unpacked(wide, pointer)[0]:
        pointers.append(pointer)
        first, count = at + struct.calcsize(number), unpacked(number, at)[0]
        found = {}
        for entry in range(first, first + count * row, row):
            tag, kind, values = unpacked(f"HH{wide}", entry)
            where, size = entry + 4 + inline, values * SIZES[kind]
            if size > inline:
                pointers.append(where)
                where = unpacked(wide, where)[0]
            if tag in (*_PLACES, *_LENGTHS):
                array = np.frombuffer(os.pread(file.fileno(), size, where), f"{order}u{SIZES[kind]}")
                found[tag in _PLACES] = where, array
        tables.append(_Table(*found[True], found[False][1]))
        pointer = first + count * row
    return pointers, tables
