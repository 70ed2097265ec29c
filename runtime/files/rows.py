"""Lines of a cube in a file of plain numbers, whatever the order of its axes: read and written by blocks."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import PIECE, allocated, read_at, write_at
from runtime.files.layout import AXES, Order

_RUN, _BLOCK, _MOST = 64 << 10, 1 << 20, 256 << 20
"""Bytes that a block should have together and in all, and shall not have more of than one line has."""


@dataclass(frozen=True)
class Rows:
    """How the numbers of a cube lie in a file.

    Attributes:
        shape: [bands, lines, samples].
        order: its axes in the file, the slowest first.
        dtype: with its byte order.
        offset: bytes before the first number.
    """

    shape: tuple[int, int, int]
    order: Order
    dtype: np.dtype[Any]
    offset: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """In the file's order."""
        return tuple(self.shape[AXES.index(axis)] for axis in self.order)

    @property
    def depth(self) -> int:
        """Axes before the lines."""
        return self.order.index("lines")

    @property
    def run_bytes(self) -> int:
        """Of a line, those that lie together."""
        return prod(self.lengths[self.depth + 1 :]) * self.dtype.itemsize

    @property
    def line_bytes(self) -> int:
        return self.shape[0] * self.shape[2] * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The byte behind the last number."""
        return self.offset + self.shape[1] * self.line_bytes

    @property
    def best_lines(self) -> int:
        """Lines to read at once, so that neither many small reads nor much memory are needed."""
        # Where lines are the fastest axis they are turned (`turn_rows`) before they are read.
        run = self.run_bytes if self.depth == 1 else self.line_bytes
        wanted = max(-(-_RUN // run), -(-_BLOCK // self.line_bytes))
        return max(1, min(self.shape[1], wanted, _MOST // self.line_bytes))

    @property
    def holds(self) -> int:
        """Bytes beside a block while it is read or written, or all is turned."""
        return max(8 * PIECE if self.depth == 2 else PIECE, self.line_bytes)

    @property
    def turned(self) -> "Rows":
        """The same cube with its lines as the slowest axis, in a file of its own."""
        return Rows(self.shape, ("lines", *(axis for axis in self.order if axis != "lines")), self.dtype)

    def block(self, lines: int) -> tuple[int, ...]:
        """The shape of so many lines as they lie in the file."""
        return tuple(lines if axis == "lines" else n for axis, n in zip(self.order, self.lengths, strict=True))

    def cube(self, block: NDArray[Any]) -> NDArray[Any]:
        """A view [bands, lines, samples] of a block as it lies in the file."""
        cube: NDArray[Any] = block.transpose([self.order.index(axis) for axis in AXES])
        return cube

    def places(self, start: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Where the runs of lines from `start` lie: index before the lines, and byte."""
        before = self.lengths[: self.depth]
        for number, index in enumerate(product(*map(range, before))):
            yield index, self.offset + (number * self.shape[1] + start) * self.run_bytes


def read_block(file: BinaryIO, path: Path, rows: Rows, start: int, block: NDArray[Any]) -> int:
    """Fill a block (`Rows.block`) from line `start`, by plain reads.

    Returns:
        its whole lines; fewer than it has where the file ends before, none where the lines are not the slowest axis.

    Raises:
        CubeFileError: the system cannot read the file.
    """
    if not rows.depth:
        return read_at(file, path, rows.offset + start * rows.line_bytes, block) // rows.line_bytes
    if block.shape == rows.lengths:
        return rows.shape[1] if read_at(file, path, rows.offset, block) == block.nbytes else 0
    for index, place in rows.places(start):
        if read_at(file, path, place, block[index]) < block[index].nbytes:
            return 0
    return int(block.shape[rows.depth])


def read_rows(file: BinaryIO, path: Path, rows: Rows, start: int, stop: int) -> NDArray[Any]:
    """Lines `start` to `stop` [bands, stop - start, samples] in native byte order, C-contiguous.

    Raises:
        CubeFileError: the file ends before them, or cannot be read.
        MachineError: there is not the memory.
    """
    native, count = rows.dtype.newbyteorder("="), stop - start
    cube = allocated(path, (rows.shape[0], count, rows.shape[2]), native)
    if rows.order == AXES:
        _read_whole(file, path, rows, start, cube.view(rows.dtype))
        if rows.dtype != native:
            cube.byteswap(inplace=True)
        return cube
    step = max(1, min(count, PIECE // rows.line_bytes))
    block = allocated(path, rows.block(step), rows.dtype)
    for first in range(0, count, step):
        part = block[(slice(None),) * rows.depth + (slice(0, min(step, count - first)),)]
        _read_whole(file, path, rows, start + first, part)
        cube[:, first : first + step] = rows.cube(part)
    return cube


def _read_whole(file: BinaryIO, path: Path, rows: Rows, start: int, block: NDArray[Any]) -> None:
    if read_block(file, path, rows, start, block) < block.shape[rows.depth]:
        raise CubeFileError(
            f"the data file ends at byte {os.fstat(file.fileno()).st_size}, before the lines asked for",
            file=path,
            remedy="wait until they are written, or copy the file again",
        )


def write_rows(file: BinaryIO, rows: Rows, start: int, cube: NDArray[Any]) -> None:
    """Put lines [bands, n, samples] of any byte order where they lie from line `start`.

    Where lines are the fastest axis that is slow unless all are given (`turn_back`). Raises OSError.
    """
    array = cube.transpose([AXES.index(axis) for axis in rows.order])
    if not rows.depth or array.shape == rows.lengths:
        place = rows.offset + start * rows.line_bytes
        step = max(1, PIECE // (prod(array.shape[1:]) * rows.dtype.itemsize))
        for first in range(0, len(array), step):
            piece = np.ascontiguousarray(array[first : first + step], rows.dtype)
            _write(file, piece, place)
            place += piece.nbytes
        return
    for index, place in rows.places(start):
        _write(file, np.ascontiguousarray(array[index], rows.dtype), place)


def _write(file: BinaryIO, values: NDArray[Any], place: int) -> None:
    write_at(file.fileno(), values.reshape(-1).view(np.uint8).data, place)


def turn_rows(file: BinaryIO, path: Path, rows: Rows, target: BinaryIO) -> Rows:
    """Copy a cube whose lines are the fastest axis so that they are the slowest; how it lies in `target`.

    Raises:
        CubeFileError: the file ends before its last number, or cannot be read.
        OSError: the system does not take it.
    """
    for slab, place in _slabs(path, rows):
        _read_all(file, path, rows.offset + place, slab)
        for line, values in enumerate(np.ascontiguousarray(slab.transpose(2, 0, 1))):
            _write(target, values, line * rows.line_bytes + place // rows.shape[1])
    return rows.turned


def turn_back(file: BinaryIO, path: Path, rows: Rows, target: BinaryIO) -> None:
    """The other way: from `rows.turned` in `file` to `rows` in `target`. Raises as `turn_rows`."""
    for slab, place in _slabs(path, rows):
        by_line = slab.reshape(rows.shape[1], *slab.shape[:2])
        for line, values in enumerate(by_line):
            _read_all(file, path, line * rows.line_bytes + place // rows.shape[1], values)
        _write(target, np.ascontiguousarray(by_line.transpose(1, 2, 0)), rows.offset + place)


def _slabs(path: Path, rows: Rows) -> Iterator[tuple[NDArray[Any], int]]:
    """Room for parts of a cube [slowest axis, next, lines], and the byte of each behind `rows.offset`."""
    slow, middle, lines = rows.lengths
    one = middle * lines * rows.dtype.itemsize
    step = max(1, min(slow, 4 * PIECE // one))
    slab = allocated(path, (step, middle, lines), rows.dtype, copies=2)
    for first in range(0, slow, step):
        yield slab[: min(step, slow - first)], first * one


def _read_all(file: BinaryIO, path: Path, place: int, array: NDArray[Any]) -> None:
    if read_at(file, path, place, array) < array.nbytes:
        raise CubeFileError("ends before its last number", file=path, remedy="copy it again")
