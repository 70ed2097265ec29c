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
        wanted = max(-(-_RUN // self.run_bytes), -(-_BLOCK // self.line_bytes))
        return max(1, min(self.shape[1], wanted, _MOST // self.line_bytes))

    @property
    def holds(self) -> int:
        """Bytes beside a block while it is read or written."""
        return max(PIECE, self.line_bytes)

    def block(self, lines: int) -> tuple[int, ...]:
        """The shape of so many lines as they lie in the file."""
        return tuple(lines if axis == "lines" else n for axis, n in zip(self.order, self.lengths, strict=True))

    def cube(self, block: NDArray[Any]) -> NDArray[Any]:
        """A view [bands, lines, samples] of a block as it lies in the file."""
        return block.transpose([self.order.index(axis) for axis in AXES])

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
    """Put lines [bands, n, samples] of any byte order where they lie from line `start`. Raises OSError."""
    array = cube.transpose([AXES.index(axis) for axis in rows.order])
    if not rows.depth or array.shape == rows.lengths:
        place = rows.offset + start * rows.line_bytes
        step = max(1, PIECE // (prod(array.shape[1:]) * rows.dtype.itemsize))
        for first in range(0, len(array), step):
            piece = np.ascontiguousarray(array[first : first + step], rows.dtype)
            write_at(file.fileno(), piece.reshape(-1).view(np.uint8).data, place)
            place += piece.nbytes
        return
    plane, held = np.empty(0), -1
    for index, place in rows.places(start):
        # Of axes before the lines the slowest alone is taken apart: the rest is turned at once.
        if index[0] != held:
            plane, held = np.ascontiguousarray(array[index[0]], rows.dtype), index[0]
        write_at(file.fileno(), plane[index[1:]].reshape(-1).view(np.uint8).data, place)


def turn_rows(file: BinaryIO, path: Path, rows: Rows, target: BinaryIO) -> Rows:
    """Copy a cube whose lines are the fastest axis so that they are the slowest; how it lies in `target`.

    Raises:
        CubeFileError: the file ends before its last number, or cannot be read.
        OSError: the system does not take it.
    """
    slow, middle, lines = rows.lengths
    turned = Rows(rows.shape, ("lines", *rows.order[:2]), rows.dtype)
    step = max(1, min(slow, 4 * PIECE // (middle * lines * rows.dtype.itemsize)))
    block = allocated(path, (step, middle, lines), rows.dtype, copies=2)
    for first in range(0, slow, step):
        part = block[: min(step, slow - first)]
        if read_at(file, path, rows.offset + first * part[0].nbytes, part) < part.nbytes:
            raise CubeFileError("ends before its last number", file=path, remedy="copy it again")
        by_line = np.ascontiguousarray(part.transpose(2, 0, 1))
        for line, values in enumerate(by_line):
            place = (line * slow + first) * middle * rows.dtype.itemsize
            write_at(target.fileno(), values.reshape(-1).view(np.uint8).data, place)
    return turned
