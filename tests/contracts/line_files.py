"""Line files checked against the lines that were served, without the code that wrote them.

Every served line tells its own number in every value, so that a line in the wrong place is found.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.files.envi import read_envi
from runtime.lines import LineFormat

TYPES = {1: "u1", 2: "<i2", 3: "<i4", 4: "<f4", 5: "<f8", 12: "<u2", 13: "<u4", 14: "<i8", 15: "<u8"}
SMALL = LineFormat(bands=3, samples=50, dtype=np.dtype("u2"))

Serve = Callable[[int], NDArray[Any]]


def served(format: LineFormat = SMALL) -> Serve:
    """Lines by their number: noise that is the same every time, and unlike that of any other number."""
    noise = np.random.default_rng(0).integers(0, 2**32, format.shape, "u8")

    def line(number: int) -> NDArray[Any]:
        mixed = (noise + np.uint64(number)) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(40)).astype(format.dtype)

    return line


def known(number: int) -> tuple[int, int, int]:
    """Frame id, time and flags that the tests give the line of that number."""
    return number * 3 + 2**33, 1_700_000_000_000_000_000 + number * 3_030_303, number % 2048


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        sequence: numbers of all whole lines.
        promised: lines that the headers promise.
        segments: number of data files.
        bytes: of all files of that name, whatever they are.
    """

    sequence: list[int]
    promised: int
    segments: int
    bytes: int


def data_files(folder: Path, name: str) -> list[Path]:
    """The data file, or those of a ring's segments, oldest first."""
    return sorted(folder.glob(f"{name}.raw")) or sorted(
        (path for path in folder.glob(f"{name}-*.raw")), key=lambda path: int(path.stem.rpartition("-")[2])
    )


def header_numbers(header: Path) -> dict[str, int]:
    """What the header says of the layout."""
    assert re.search("^interleave = bil$", header.read_text(), re.MULTILINE)
    rows = re.findall(r"^([a-z ]+) = (\d+)$", header.read_text(), re.MULTILINE)
    return {key: int(value) for key, value in rows}


def check_folder(
    folder: Path, name: str = "lines", line: Serve | None = None, *, format: LineFormat = SMALL, closed: bool = True
) -> Found:
    """Assert that every line is the one that was served, in order, and that no header promises more than is there.

    Args:
        line: what was served; without it the values are compared with their checksums only.
        closed: nothing torn may be there, and headers promise all lines.
    """
    size = format.line_bytes
    sequence: list[int] = []
    promised = 0
    files = data_files(folder, name)
    for path in files:
        entries = path.with_suffix(".idx")
        # A process may be killed between making or deleting the two.
        data, index = path.read_bytes(), entries.read_bytes() if closed or entries.exists() else b""
        whole = min(len(data) // size, len(index) // 32)
        header = path.with_suffix(".hdr")
        if header.exists():
            numbers = header_numbers(header)
            assert (numbers["bands"], numbers["samples"]) == format.shape
            assert TYPES[numbers["data type"]] == format.dtype.newbyteorder("<")
            assert (numbers["byte order"], numbers["header offset"]) == (0, 0)
            assert 1 <= numbers["lines"] <= whole, f"{header.name} is ahead of its data"
            promised += numbers["lines"]
            if not closed:
                whole = numbers["lines"]
        if closed:
            assert len(data) == whole * size and len(index) == whole * 32, f"{path.name} is torn"
            assert header.exists() == (whole > 0)
            assert not whole or numbers["lines"] == whole
        elif not header.exists():
            whole = 0
        for number in range(whole):
            stored = data[number * size : (number + 1) * size]
            count, *rest, crc, flags = struct.unpack_from("<QQQII", index, number * 32)
            assert zlib.crc32(stored) == crc, f"{path.name}: line {number} has the wrong checksum"
            assert not sequence or count > sequence[-1], f"{path.name}: line {number} does not rise"
            sequence.append(count)
            if line is not None:
                assert stored == line(count).astype(format.dtype.newbyteorder("<")).tobytes(), f"line {count} is wrong"
                assert (*rest, flags) == known(count)
    everything = [path for path in folder.iterdir() if path.name.startswith((name, f".{name}"))]
    return Found(sequence, promised, len(files), bytes_of(everything))


def assert_others_read(folder: Path, name: str = "lines") -> int:
    """Assert that SPy and GDAL find in each file the values that we find.

    Returns:
        the lines in them.
    """
    import rasterio
    import spectral

    lines = 0
    for path in data_files(folder, name):
        header = path.with_suffix(".hdr")
        ours = read_envi(header)
        theirs = spectral.open_image(str(header)).load(dtype=ours.dtype, scale=False)
        np.testing.assert_array_equal(np.asarray(theirs).transpose(2, 0, 1), ours)
        with rasterio.open(path) as opened:
            np.testing.assert_array_equal(opened.read(), ours)
        lines += ours.shape[1]
    return lines


def bytes_of(files: Iterable[Path]) -> int:
    """Bytes of files, some of which may have been temporary and be gone by now."""
    total = 0
    for path in files:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
