"""A data set of an HDF5 file, filled by lines: what HDF5 takes are whole rows of chunks."""

import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.files.disk import PIECE, read_at
from runtime.files.layout import AXES
from runtime.products import contract, hdf5_lines
from runtime.products.hdf5_lines import LinesOf


class Rows(Closing):
    """Lines of a data set, gathered until a row of its chunks is whole, so that each chunk is compressed once.

    A row of more than `contract.LINE_OF_CHUNKS` bytes waits in an unlinked file, [lines, bands, samples].

    Args:
        dataset: the `h5py.Dataset`, without values.
        axes: `bands`, `lines` and `samples` in its order; without `bands` where it has none.
        folder: where a row waits that is too large for memory.
        bands: those of its bands that are given, in the order of the blocks; None of all.
        others: what has the values of the others, in their order; `close` closes it.
    """

    def __init__(
        self,
        dataset: Any,
        axes: Sequence[str],
        folder: Path,
        bands: Sequence[int] | None = None,
        others: LinesOf | None = None,
    ) -> None:
        self._dataset, self._source, self._folder = dataset, others, folder
        self._order = [axes.index(name) for name in AXES if name in axes]
        lengths = dict(zip(axes, dataset.shape, strict=True))
        self._lines, self._every = lengths["lines"], lengths.get("bands", 1)
        every = self._every
        self._bands = tuple(range(every)) if bands is None else tuple(bands)
        self._others = tuple(sorted({*range(every)} - {*self._bands}))
        self._count = row_of(dataset.shape, dataset.chunks, dataset.dtype.itemsize, axes)
        self._first = self._held = 0
        kind = dataset.dtype.newbyteorder("=")
        line = every * lengths["samples"] * kind.itemsize
        self._file: BinaryIO | None = None
        self._step = every
        if self._count * line > contract.LINE_OF_CHUNKS:
            deep = dict(zip(axes, dataset.chunks or (), strict=False)).get("bands", 1)
            self._step = deep * max(1, hdf5_lines.SPOOLED_AT_ONCE * every // (deep * self._count * line))
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            self._row = np.empty((every, 0, lengths["samples"]), kind)
        else:
            # In the order of the data set, so that HDF5 takes it as it is.
            stored = np.empty([self._count if axis == "lines" else lengths[axis] for axis in axes], kind)
            self._row = stored.transpose(self._order)
            if len(axes) == 2:
                self._row = self._row[None]

    @property
    def missing(self) -> int:
        """Lines that are not there yet."""
        left: int = self._lines - self._first - self._held
        return left

    def append(self, block: NDArray[Any]) -> None:
        """Lines [bands, n, samples], [1, n, samples] of a data set without bands; n is not more than `missing`."""
        done, count = 0, block.shape[1]
        while done < count:
            length = min(self._count, self._lines - self._first)
            step = min(count - done, length - self._held)
            self._put(self._bands, block[:, done : done + step])
            if self._source is not None:
                start = self._first + self._held
                same = np.empty((len(self._others), step, block.shape[2]), self._row.dtype)
                self._source.read(start, start + step, same)
                self._put(self._others, same)
            self._held, done = self._held + step, done + step
            if self._held == length:
                for band in range(0, self._every, self._step):
                    self._write(band, length)
                self._first, self._held = self._first + length, 0

    def close(self) -> None:
        """Give the temporary file back."""
        if self._file is not None:
            self._file.close()
        if self._source is not None:
            self._source.close()

    def _put(self, bands: tuple[int, ...], lines: NDArray[Any]) -> None:
        whole = bands == tuple(range(bands[0], bands[-1] + 1))
        if self._file is None:
            into = slice(bands[0], bands[-1] + 1) if whole else list(bands)
            self._row[into, self._held : self._held + lines.shape[1]] = lines
            return
        every, samples = self._every, self._row.shape[2]
        for line in range(lines.shape[1]):
            values = np.ascontiguousarray(lines[:, line], self._row.dtype)
            start = (self._held + line) * every
            for first, part in [(bands[0], values)] if whole else zip(bands, values, strict=True):
                _write_at(self._file, (start + first) * samples * values.itemsize, part)

    def _write(self, first: int, length: int) -> None:
        """Bands from `first` of the row that is held, into the data set."""
        if self._file is None:
            values = self._row[:, :length]
        else:
            every, samples = self._every, self._row.shape[2]
            gathered = np.empty((length, min(self._step, every - first), samples), self._row.dtype)
            for line, part in enumerate(gathered):
                read_at(self._file, self._folder, (line * every + first) * samples * part.itemsize, part)
            values = gathered.transpose(1, 0, 2)
        box = [slice(first, first + len(values)), slice(self._first, self._first + length), slice(None)]
        if len(self._order) == 2:
            box, values = box[1:], values[0]
        back = np.argsort(self._order)
        self._dataset[tuple(box[axis] for axis in back)] = values.transpose(back)


def row_of(shape: Sequence[int], chunks: Sequence[int] | None, itemsize: int, axes: Sequence[str]) -> int:
    """Lines of a row of chunks; of a data set without chunks those that make a piece."""
    at = axes.index("lines")
    if chunks:
        return min(chunks[at], shape[at])
    return max(1, min(shape[at], PIECE * shape[at] // (prod(shape) * itemsize)))


def held(shape: Sequence[int], chunks: Sequence[int] | None, itemsize: int, axes: Sequence[str]) -> int:
    """Bytes of memory that `Rows` takes, HDF5's copies of a chunk counted."""
    lengths, deep = dict(zip(axes, shape, strict=True)), dict(zip(axes, chunks or (), strict=False)).get("bands", 1)
    lines = row_of(shape, chunks, itemsize, axes)
    row = lines * lengths["bands"] * lengths["samples"] * itemsize
    if row > contract.LINE_OF_CHUNKS:
        row = 2 * max(hdf5_lines.SPOOLED_AT_ONCE, row * deep // lengths["bands"])
    return row + 3 * prod(chunks or (0,)) * itemsize


def _write_at(file: BinaryIO, offset: int, values: NDArray[Any]) -> None:
    data = values.reshape(-1).view(np.uint8).data
    while len(data):
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written
