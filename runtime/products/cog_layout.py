"""The word in a TIFF that its blocks lie as a COG's do. GDAL before 3.11 writes it of pixel-interleaved ones alone.

Layout: https://gdal.org/en/stable/drivers/raster/cog.html, "header ghost area"; TIFF 6.0 and BigTIFF.
"""

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtime.files.tags import SIZES

COG = "COG"
"""Value of `LAYOUT` in GDAL's domain IMAGE_STRUCTURE."""
_OFFSETS = (273, 324)
"""Tags of the places of strips and of tiles."""
_TEXT = b"LAYOUT=IFDS_BEFORE_DATA\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
# The first directory follows at once, on a place that divides by 16: the text is filled up with blanks.
_FILLED = _TEXT + b" " * (-(43 + len(_TEXT)) % 16)
_GHOST = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(_FILLED) + _FILLED


def add_structure(source: Path, target: Path) -> None:
    """Copy a TIFF that GDAL wrote with its directories first, and say so in it. Raises OSError."""
    with source.open("rb") as file, target.open("w+b") as written:
        head = file.read(16)
        order, big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
        start = 16 if big else 8
        written.write(head[:start] + _GHOST)
        file.seek(start)
        shutil.copyfileobj(file, written, 1 << 24)
        patches = list(_moved(file.fileno(), order, big))
        for place, data in patches:
            written.seek(place + len(_GHOST) if place >= start else place)
            written.write(data)


def _moved(file: int, order: str, big: bool) -> Iterator[tuple[int, bytes]]:
    """Places in the file, and what stands there of places when all behind its header moves on."""
    wide, inline, number = ("Q", 8, "Q") if big else ("I", 4, "H")
    row, place = 4 + 2 * inline, inline

    def unpacked(kind: str, at: int) -> int:
        size = struct.calcsize(kind)
        return int(struct.unpack(order + kind, os.pread(file, size, at))[0])

    while at := unpacked(wide, place):
        yield place, struct.pack(order + wide, at + len(_GHOST))
        first, count = at + struct.calcsize(number), unpacked(number, at)
        for entry in range(first, first + count * row, row):
            tag, kind, values = struct.unpack(f"{order}HH{wide}", os.pread(file, 4 + inline, entry))
            value = entry + 4 + inline
            size = values * SIZES[kind]
            where = value
            if size > inline:
                where = unpacked(wide, value)
                yield value, struct.pack(order + wide, where + len(_GHOST))
            if tag in _OFFSETS:
                places = np.frombuffer(os.pread(file, size, where), f"{order}u{SIZES[kind]}")
                yield where, np.where(places > 0, places + len(_GHOST), 0).astype(places.dtype).tobytes()
        place = first + count * row
