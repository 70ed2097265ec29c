"""A data set of an HDF5 file, filled by lines: what HDF5 takes are whole rows of chunks."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.files.disk import PIECE
from runtime.files.layout import AXES
from runtime.products import contract, hdf5_lines
from runtime.products.hdf5_lines import LinesOf
from runtime.products.spool import Spool, Tiles


class Rows(Closing):
    """Lines of a data set, gathered until a row of its chunks is whole, so that each chunk is compressed once.

    A row of more than `contract.LINE_OF_CHUNKS` bytes waits in a temporary file, [lines, bands, samples].

    Args:
        dataset: the `h5py.Dataset`, without values.
        axes: `bands`, `lines` and `samples` in its order; without `bands` where it has none.
        out: what is written; a row that is too large for memory waits beside it, where there is room.
        bands: those of its bands that are given, in the order of the blocks; None of all.
        others: what has the values of the others, in their order; `close` closes it.
    """

    def __init__(
        self,
        dataset: Any,
        axes: Sequence[str],
        out: Path,
        bands: Sequence[int] | None = None,
        others: LinesOf | None = None,
    ) -> None:
        self._dataset, self._source = dataset, others
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
        self._tiles: Tiles | None = None
        self._step = every
        if self._count * line > contract.LINE_OF_CHUNKS:
            deep = dict(zip(axes, dataset.chunks or (), strict=False)).get("bands", 1)
            self._step = deep * max(1, hdf5_lines.SPOOLED_AT_ONCE * every // (deep * self._count * line))
            shape, size = (every, self._count, lengths["samples"]), self._count * line
            self._tiles = Tiles(Spool(out, size, out.parent), shape, kind, shape[2])
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
        if self._tiles is not None:
            self._tiles.close()
        if self._source is not None:
            self._source.close()

    def _put(self, bands: tuple[int, ...], lines: NDArray[Any]) -> None:
        whole = bands == tuple(range(bands[0], bands[-1] + 1))
        if self._tiles is None:
            into = slice(bands[0], bands[-1] + 1) if whole else list(bands)
            self._row[into, self._held : self._held + lines.shape[1]] = lines
            return
        for first, part in [(bands[0], lines)] if whole else zip(bands, lines[:, None], strict=True):
            self._tiles.put(first, self._held, 0, part)

    def _write(self, first: int, length: int) -> None:
        """Bands from `first` of the row that is held, into the data set."""
        if self._tiles is None:
            values = self._row[:, :length]
        else:
            values = np.empty((min(self._step, self._every - first), length, self._row.shape[2]), self._row.dtype)
            self._tiles.get(first, 0, 0, values)
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
