"""Which chunks of a Zarr array are stored, and what they hold."""

import os
import re
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import allocated, check_expansion, reason
from runtime.products.zarr_codecs import CodecError, checksum
from runtime.products.zarr_meta import Array
from runtime.untrusted import open_regular

Index = tuple[int, ...]
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")
_ABSENT = np.uint64(0xFFFFFFFFFFFFFFFF)
AGAIN = "copy the store again"


class Chunks:
    """The chunks of an array as they were when it was opened; nothing is decoded for it.

    Attributes:
        array: whose they are.
        grid: how many there are along each axis, of inner chunks where files are shards.
        stored, missing: how many are stored, and how many are not.

    Raises:
        CubeFileError: an index of a shard is damaged, or a folder cannot be read.
    """

    def __init__(self, array: Array) -> None:
        self.array = array
        self.grid = _grid(array.shape, array.unit)
        self._files = dict(sorted(_found(array)))
        self._places: dict[Index, NDArray[np.uint64]] = {}
        if array.inner is None:
            self.stored = len(self._files)
        else:
            self._places = {index: self._index(index) for index in self._files}
            self.stored = sum(self._count(index, places) for index, places in self._places.items())
        self.missing = prod(self.grid) - self.stored

    @property
    def files(self) -> tuple[Path, ...]:
        """In the order of their numbers."""
        return tuple(map(self.array.file_of, self._files))

    def has(self, index: Index) -> bool:
        """Whether the chunk is stored."""
        return self._place(index) is not None

    def read(self, index: Index) -> NDArray[Any] | None:
        """The values of a chunk [its part inside the array], None of one that is not stored.

        Raises:
            CubeFileError: it is damaged, holds more or less than it should, or was changed since the array was opened.
            MachineError: there is not the memory.
        """
        array, place = self.array, self._place(index)
        if place is None:
            return None
        outer, offset, size = place
        path = array.file_of(outer)
        expanded = prod(array.unit) * array.dtype.itemsize
        if expanded > 1 << 20:
            check_expansion(path, expanded, size)
            allocated(path, array.unit, array.dtype, copies=3)
        if size > expanded + expanded // 8 + (1 << 16):
            raise CubeFileError("is longer than a chunk of it can be", file=path, value=size, remedy=AGAIN)
        try:
            values = array.codecs.decoded(self._bytes(outer, offset, size), array.unit)
        except CodecError as error:
            raise CubeFileError(f"a chunk is damaged: {error}", file=path, key=_said(index), remedy=AGAIN) from error
        return values[tuple(slice(0, size) for size in self.inside(index))]

    def inside(self, index: Index) -> tuple[int, ...]:
        """How much of a chunk lies inside the array."""
        array = self.array
        return tuple(
            min(unit, length - number * unit)
            for unit, length, number in zip(array.unit, array.shape, index, strict=True)
        )

    def whole(self, most: int) -> NDArray[Any]:
        """A small array, fill where nothing is stored; raises CubeFileError where it has more values than `most`."""
        array = self.array
        if prod(array.shape) > most:
            raise CubeFileError(f"holds more than {most} values", file=array.node.file, remedy="check the store")
        out = np.full(array.shape, 0 if array.fill is None else array.fill, array.dtype)
        for index in product(*map(range, self.grid)):
            if (values := self.read(index)) is not None:
                place = tuple(
                    slice(number * unit, number * unit + size)
                    for number, unit, size in zip(index, array.unit, values.shape, strict=True)
                )
                out[place] = values
        return out

    def lines(self, start: int, stop: int) -> NDArray[np.float64]:
        """Lines of an array [lines, samples], NaN where nothing is stored."""
        step, across = self.array.unit
        out = np.full((stop - start, self.array.shape[1]), np.nan)
        for row, column in product(range(start // step, -(-stop // step)), range(self.grid[1])):
            if (values := self.read((row, column))) is not None:
                low, high = max(start, row * step), min(stop, (row + 1) * step)
                part = values[low - row * step : high - row * step]
                out[low - start : high - start, column * across : column * across + part.shape[1]] = part
        return out

    def _place(self, index: Index) -> tuple[Index, int, int] | None:
        """The file of a chunk, and where in it."""
        array = self.array
        if array.inner is None:
            return (index, 0, self._files[index][0]) if index in self._files else None
        ratio = [outer // inner for outer, inner in zip(array.chunks, array.inner, strict=True)]
        outer = tuple(number // share for number, share in zip(index, ratio, strict=True))
        places = self._places.get(outer)
        if places is None:
            return None
        offset, size = places[tuple(number % share for number, share in zip(index, ratio, strict=True))]
        return None if offset == _ABSENT and size == _ABSENT else (outer, int(offset), int(size))

    def _index(self, index: Index) -> NDArray[np.uint64]:
        """Offset and bytes of each inner chunk of a shard (Zarr v3, sharding_indexed)."""
        array = self.array
        shape = [outer // inner for outer, inner in zip(array.chunks, array.inner or (), strict=True)]
        size, path = self._files[index][0], array.file_of(index)
        length = prod(shape) * 16 + 4 * array.index_summed
        if size < length:
            raise CubeFileError("is shorter than the index of its chunks", file=path, value=size, remedy=AGAIN)
        raw = self._bytes(index, size - length if array.index_at_end else 0, length)
        if array.index_summed and checksum(raw[:-4]) != raw[-4:]:
            problem = "the index of its chunks is damaged: was it written to its end?"
            raise CubeFileError(problem, file=path, remedy=AGAIN)
        places = np.frombuffer(raw, "<u8", prod(shape) * 2).astype(np.uint64).reshape(*shape, 2)
        absent = (places == _ABSENT).all(-1)
        bounded = (places <= np.uint64(size)).all(-1)
        if not (absent | (bounded & (places.sum(-1) <= np.uint64(size)))).all():
            raise CubeFileError("the index of its chunks points outside it", file=path, remedy=AGAIN)
        return places

    def _count(self, index: Index, places: NDArray[np.uint64]) -> int:
        """Chunks of a shard that are stored and lie inside the array."""
        begins = [number * share for number, share in zip(index, places.shape[:-1], strict=True)]
        inside = tuple(slice(0, max(0, end - begin)) for begin, end in zip(begins, self.grid, strict=True))
        return int(np.count_nonzero((places[inside] != _ABSENT).any(-1)))

    def _bytes(self, index: Index, offset: int, size: int) -> bytes:
        path = self.array.file_of(index)
        try:
            file, _ = open_regular(path, links=False)
            with file:
                status = os.fstat(file.fileno())
                if (status.st_size, status.st_mtime_ns) != self._files[index]:
                    remedy = "read it again when nothing writes to it"
                    raise CubeFileError("was changed while it was read", file=path, remedy=remedy)
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise CubeFileError(f"cannot be read: {reason(error)}", file=path, remedy=AGAIN) from error
        if len(data) != size:
            raise CubeFileError("is shorter than it was", file=path, remedy=AGAIN)
        return data


def _grid(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-length // step) for length, step in zip(shape, chunks, strict=True))


def _said(index: Index) -> str:
    return f"chunk {', '.join(map(str, index))}"


def _found(array: Array) -> Iterator[tuple[Index, tuple[int, int]]]:
    """The numbers of chunks or shards that are stored inside the array, with size and time of their files."""
    grid, folder = _grid(array.shape, array.chunks), array.node.folder
    if array.prefix and (array.separator == "/" or not grid):
        folder = folder / "c" if grid else folder
    try:
        yield from _below(array, grid, folder, ())
    except OSError as error:
        raise CubeFileError(f"cannot be read: {reason(error)}", file=folder, remedy="check it") from error


def _below(array: Array, grid: tuple[int, ...], folder: Path, first: Index) -> Iterator[tuple[Index, tuple[int, int]]]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            index = _numbers(array, grid, entry.name, first)
            if index is None:
                continue
            if len(index) < len(grid):
                if entry.is_dir(follow_symlinks=False):
                    yield from _below(array, grid, folder / entry.name, index)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield index, (status.st_size, status.st_mtime_ns)


def _numbers(array: Array, grid: tuple[int, ...], name: str, first: Index) -> Index | None:
    """The number, or its part so far, that the name of an entry continues."""
    if not grid:
        return () if name == ("c" if array.prefix else "0") else None
    parts = name.split(".") if array.separator == "." else [name]
    if array.separator == "." and array.prefix:
        if parts[0] != "c":
            return None
        parts = parts[1:]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    index = (*first, *map(int, parts))
    if array.separator == "." and len(index) != len(grid):
        return None
    inside = all(number < most for number, most in zip(index, grid, strict=False))
    return index if inside and len(index) <= len(grid) else None
