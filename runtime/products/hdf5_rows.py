"""A data set of an HDF5 file, filled by lines: what HDF5 takes are whole rows of chunks."""

import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.files.disk import PIECE
from runtime.files.layout import AXES
from runtime.products.contract import LINE_OF_CHUNKS
from runtime.products.hdf5_lines import LinesOf


class Rows:
    """Lines of a data set, gathered until a row of its chunks is whole, so that each chunk is compressed once.

    A row of more than `LINE_OF_CHUNKS` bytes waits in an unlinked file.

    Args:
        dataset: the `h5py.Dataset`, without values.
        axes: `bands`, `lines` and `samples` in its order; without `bands` where it has none.
        bands: those of its bands that are given, in the order of the blocks; None of all.
        others: what has the values of the others, in their order.
        folder: where a row too large for memory waits.
    """

    def __init__(
        self,
        dataset: Any,
        axes: Sequence[str],
        folder: Path,
        bands: Sequence[int] | None = None,
        others: LinesOf | None = None,
    ) -> None:
        self._dataset, self._source = dataset, others
        self._order = [axes.index(name) for name in AXES if name in axes]
        self._lines = dataset.shape[axes.index("lines")]
        self._count = row_of(dataset.shape, dataset.chunks, dataset.dtype.itemsize, axes)
        self._bands = None if bands is None else np.array(bands, np.intp)
        self._others = left_of(dataset.shape, axes, bands) if bands is not None else ()
        self._first = self._held = 0
        shape = [dataset.shape[axis] for axis in self._order]
        shape[-2] = self._count
        kind = dataset.dtype.newbyteorder("=")
        self._step = shape[0]
        if prod(shape) * kind.itemsize > LINE_OF_CHUNKS and len(shape) == 3:
            deep = dataset.chunks[axes.index("bands")] if dataset.chunks else 1
            self._step = deep * max(1, 4 * PIECE // (deep * prod(shape[1:]) * kind.itemsize))
            # Line by line in the file, as they come.
            self._row = _on_disk(folder, (shape[1], shape[0], shape[2]), kind).transpose(1, 0, 2)
        else:
            stored = np.empty([shape[self._order.index(axis)] for axis in range(len(shape))], kind)
            self._row = stored.transpose(self._order)

    @property
    def missing(self) -> int:
        """Lines that are not there yet."""
        left: int = self._lines - self._first - self._held
        return left

    def append(self, block: NDArray[Any]) -> None:
        """Lines [bands, n, samples], or [n, samples] of a data set without bands; n is not more than `missing`."""
        done, count = 0, block.shape[-2]
        while done < count:
            length = min(self._count, self._lines - self._first)
            if self._held == 0 and self._source is not None:
                same = np.empty((len(self._others), length, self._row.shape[-1]), self._row.dtype)
                self._source.read(self._first, self._first + length, same)
                self._row[list(self._others), :length] = same
            step = min(count - done, length - self._held)
            into, part = slice(self._held, self._held + step), block[..., done : done + step, :]
            if self._bands is None:
                self._row[..., into, :] = part
            else:
                self._row[self._bands, into] = part
            self._held += step
            done += step
            if self._held == length:
                self._write(length)
                self._first, self._held = self._first + length, 0

    def _write(self, length: int) -> None:
        row = self._row[..., :length, :]
        lines = slice(self._first, self._first + length)
        back = np.argsort(self._order)
        if row.ndim == 2:
            self._dataset[self._selection(lines)] = row.transpose(back)
            return
        for band in range(0, row.shape[0], self._step):
            bands = slice(band, min(band + self._step, row.shape[0]))
            self._dataset[self._selection(bands, lines)] = row[bands].transpose(back)

    def _selection(self, *parts: Any) -> tuple[Any, ...]:
        """An index of the data set from one of [bands, lines]."""
        whole: list[Any] = [slice(None)] * len(self._order)
        for axis, part in zip(self._order, parts, strict=False):
            whole[axis] = part
        return tuple(whole)


def left_of(shape: Sequence[int], axes: Sequence[str], bands: Sequence[int]) -> tuple[int, ...]:
    """Bands of a data set that are not among `bands`."""
    return tuple(sorted({*range(shape[axes.index("bands")])} - {*bands}))


def row_of(shape: Sequence[int], chunks: Sequence[int] | None, itemsize: int, axes: Sequence[str]) -> int:
    """Lines of a row of chunks; of a data set without chunks those that make a piece."""
    at = axes.index("lines")
    if chunks:
        return min(chunks[at], shape[at])
    return max(1, min(shape[at], PIECE * shape[at] // (prod(shape) * itemsize)))


def held(shape: Sequence[int], chunks: Sequence[int] | None, itemsize: int, axes: Sequence[str]) -> int:
    """Bytes of memory that `Rows` takes, HDF5's own copy of a chunk counted."""
    row = row_of(shape, chunks, itemsize, axes) * prod(shape) // shape[axes.index("lines")] * itemsize
    chunk = prod(chunks or (1,)) * itemsize
    # A row that waits on disk is taken from there in pieces.
    return (row if row <= LINE_OF_CHUNKS else 4 * PIECE + chunk) + 3 * chunk


def _on_disk(folder: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    with tempfile.TemporaryFile(dir=folder) as file:
        # A map of a file whose blocks are not there would end the process where the disk is full.
        os.posix_fallocate(file.fileno(), 0, prod(shape) * kind.itemsize)
        return np.memmap(file, kind, "r+", shape=shape)
