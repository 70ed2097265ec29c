"""Lines of an HDF5 data set, however it is cut: read in order, no chunk is inflated twice."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.files.hdf5 import StoredArray
from runtime.files.layout import AXES
from runtime.products import contract
from runtime.products.spool import Spool, Tiles

SPOOLED_AT_ONCE = 64 << 20
"""Bytes of bands that are gathered before they go to the temporary file, or one chunk of bands where that is more."""


class LinesOf:
    """Lines of a data set of three axes, or of two without bands.

    The last row of chunks that was read in part is kept. Where a row is larger than `contract.LINE_OF_CHUNKS`, as where
    a chunk is a whole band, all is written once, at the first reading, to a temporary file [lines, bands, samples].

    Args:
        stored: the data set.
        axes: names of its axes in its order.
        bands: those along its axis of bands that are given, in this order; None of all.

    Attributes:
        shape: [bands, lines, samples] of what is given.
        block: lines of a row of chunks, 1 where any are read as well.
        holds: bytes that are kept, or taken while a chunk is inflated.
    """

    def __init__(self, stored: StoredArray, axes: tuple[str, ...], bands: tuple[int, ...] | None = None) -> None:
        self._stored = stored
        self._order = [AXES.index(axis) for axis in axes]
        lengths = dict(zip(axes, stored.shape, strict=True))
        self._bands = tuple(range(lengths.get("bands", 1))) if bands is None else bands
        self._range = range(min(self._bands), max(self._bands) + 1)
        self.shape = (len(self._bands), lengths["lines"], lengths["samples"])
        chunk = dict(zip(axes, stored.chunks or (), strict=False))
        self._row, self._chunk_bands = min(chunk.get("lines", 1), self.shape[1]), chunk.get("bands", 1)
        row, chunk_bytes = self._bytes_of(self._row), prod(stored.chunks or (0,)) * stored.dtype.itemsize
        self._spools = self._row > 1 and row > contract.LINE_OF_CHUNKS
        self.block = 1 if self._spools else self._row
        if self._spools:
            self.holds = max(SPOOLED_AT_ONCE, self._bytes_of(self._row, self._chunk_bands)) + 3 * chunk_bytes
        else:
            self.holds = row * (self._row > 1) + 3 * chunk_bytes
        self._kept: tuple[int, NDArray[Any]] | None = None
        self._tiles: Tiles | None = None

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Fill `out` [bands, stop - start, samples], of any strides. Raises as `CubeReader.read_lines` does."""
        if self._spools:
            if self._tiles is None:
                self._tiles = self._spooled()
            self._tiles.lines(start, out, [band - self._range.start for band in self._bands])
            return
        for top in range(start // self._row * self._row, stop, self._row):
            end = min(top + self._row, self.shape[1])
            low, high = max(start, top), min(stop, end)
            part = out[:, low - start : high - start]
            if (low, high) == (top, end):
                self._decode(top, end, part)
                continue
            if self._kept is None or self._kept[0] != top:
                self._kept = None
                row = np.empty((self.shape[0], end - top, self.shape[2]), self._stored.dtype)
                self._decode(top, end, row)
                self._kept = top, row
            part[...] = self._kept[1][:, low - top : high - top]

    def close(self) -> None:
        """Give the temporary file back."""
        if self._tiles is not None:
            self._tiles.close()

    def _bytes_of(self, lines: int, bands: int | None = None) -> int:
        count = len(self._range) if bands is None else bands
        size: int = count * lines * self.shape[2] * self._stored.dtype.itemsize
        return size

    def _decode(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Those lines, as they are stored; bands between the ones that are given are read with them."""
        if self._bands == tuple(self._range):
            self._decode_bands(self._range, start, stop, out)
            return
        every = np.empty((len(self._range), stop - start, self.shape[2]), self._stored.dtype)
        self._decode_bands(self._range, start, stop, every)
        out[...] = every[[band - self._range.start for band in self._bands]]

    def _decode_bands(self, bands: range, start: int, stop: int, out: NDArray[Any]) -> None:
        box = (slice(bands.start, bands.stop), slice(start, stop), slice(0, self.shape[2]))
        view = out.transpose(self._order) if len(self._order) == 3 else out[0].transpose([a - 1 for a in self._order])
        self._stored.read([box[axis] for axis in self._order], view)

    def _spooled(self) -> Tiles:
        """The data set in a temporary file, gathered by bands and rows of chunks."""
        first, step, dtype = self._range.start, self._chunk_bands, self._stored.dtype
        step *= max(1, SPOOLED_AT_ONCE // self._bytes_of(self._row, step))
        shape = (len(self._range), *self.shape[1:])
        tiles = Tiles(Spool(self._stored.path, self._bytes_of(self.shape[1])), shape, dtype, self.shape[2])
        try:
            for top in range(0, self.shape[1], self._row):
                end = min(top + self._row, self.shape[1])
                for low in range(first // step * step, self._range.stop, step):
                    bands = range(max(low, first), min(low + step, self._range.stop))
                    gathered = np.empty((end - top, len(bands), self.shape[2]), dtype).transpose(1, 0, 2)
                    self._decode_bands(bands, top, end, gathered)
                    tiles.put(bands.start - first, top, 0, gathered)
        except BaseException:
            tiles.close()
            raise
        return tiles
