"""Zarr folders, versions 2 and 3: read by rows of chunks, whatever their size.

Of zarr's own library only the compressors are used; what is stored is taken apart here, within bounds.
"""

from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import allocated, mark_of
from runtime.products.contract import LINE_OF_CHUNKS, CubeReader, Description, Doubles, Reading
from runtime.products.spool import Spool, Tiles
from runtime.products.zarr_cf import Told, told
from runtime.products.zarr_chunks import Chunks
from runtime.products.zarr_meta import array_of
from runtime.products.zarr_tree import is_store, open_store


def recognises(path: Path) -> bool:
    """Whether it is a folder with the metadata of a Zarr store."""
    return is_store(path)


def open_reader(path: Path, reading: Reading) -> CubeReader:
    """Open a store.

    Raises:
        CubeFileError: it is damaged, holds no cube or several, or what a stranger's store may not have: links, objects,
            unknown codecs, filters; or chunks are missing and nobody says what they mean.
        MachineError: it is of version 3 and zarr 2 is installed.
        ModuleNotFoundError: zarr is not installed.
    """
    store = open_store(path)
    found = told(store, reading)
    chunks = Chunks(found.array)
    notes = list(found.notes)
    if chunks.missing and reading.missing_chunks == "refuse":
        raise CubeFileError(
            f"{chunks.missing} of {prod(chunks.grid)} chunks are missing",
            file=found.array.node.folder,
            remedy="copy the store again, or say --missing-chunks fill where nothing was measured in them",
        )
    if not chunks.stored:
        raise CubeFileError("not one of its chunks is stored", file=found.array.node.folder, remedy="copy it again")
    stated = found.stated
    fill = stated.marks[0] if stated.marks else 0.0 if found.array.fill is None else float(found.array.fill)
    if chunks.missing:
        stated = replace(stated, marks=stated.marks or (fill,))
        notes.append(f"{chunks.missing} of {prod(chunks.grid)} chunks are missing and hold {fill:g}")
    reader = _Reader(chunks, found, fill, path)
    files = [*chunks.files, store.nodes["/"].file, found.array.node.file]
    for node in found.used:
        files += [node.file, *Chunks(array_of(node)).files]
    reader.description = Description(
        format="zarr",
        path=path,
        files=tuple(dict.fromkeys(files)),
        shape=found.shape,
        dtype=found.array.dtype,
        block=1 if reader.spools else reader.row,
        holds=reader.holds,
        stated=stated,
        fwhm=found.fwhm,
        quantity=found.quantity,
        unit=found.unit,
        place=found.place,
        title=found.array.node.name,
        notes=tuple(notes),
    )
    return reader


class _Reader(CubeReader):
    def __init__(self, chunks: Chunks, found: Told, fill: float, path: Path) -> None:
        self._chunks, self._axes, self._path = chunks, found.axes, path
        self._shape, self._dtype, self._fill = found.shape, found.array.dtype, fill
        self._file, self._mark = found.array.node.file, mark_of(found.array.node.file)
        self._unit = [found.array.unit[axis] for axis in found.axes]
        self._grid = [chunks.grid[axis] for axis in found.axes]
        self.row = min(self._unit[1], self._shape[1])
        row = self._shape[0] * self.row * self._shape[2] * self._dtype.itemsize
        self.spools = row > LINE_OF_CHUNKS
        self.holds = 3 * prod(self._unit) * self._dtype.itemsize + (0 if self.spools else row)
        self._located = None if found.located is None else tuple(map(Chunks, found.located))
        self._tiles: Tiles | None = None
        self._kept: tuple[int, NDArray[Any]] | None = None

    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        bands, lines, samples = self._shape
        if not 0 <= start < stop <= lines:
            raise ValueError(f"lines {start} to {stop} of {lines}")
        if mark_of(self._file) != self._mark:
            remedy = "read it again when nothing writes to it"
            raise CubeFileError("was changed while it was read", file=self._file, remedy=remedy)
        out = allocated(self._path, (bands, stop - start, samples), self._dtype)
        if self.spools:
            self._spooled().lines(start, out)
            return out
        for row in range(start // self.row, -(-stop // self.row)):
            first, end = row * self.row, min(lines, (row + 1) * self.row)
            low, high = max(start, first), min(stop, end)
            part = out[:, low - start : high - start]
            if (low, high) == (first, end) and not (self._kept and self._kept[0] == row):
                self._read_row(row, part)
            else:
                part[...] = self._keep(row, end - first)[:, low - first : high - first]
        return out

    def located(self, start: int, stop: int) -> tuple[Doubles, Doubles] | None:
        if self._located is None:
            return None
        lon, lat = (chunks.lines(start, stop) for chunks in self._located)
        known = (np.abs(lon) <= 360) & (np.abs(lat) <= 90)
        return np.where(known, lon, np.nan), np.where(known, lat, np.nan)

    def close(self) -> None:
        self._kept = None
        if self._tiles is not None:
            self._tiles.close()
            self._tiles = None

    def _keep(self, row: int, lines: int) -> NDArray[Any]:
        """A row that was asked for in parts."""
        if self._kept is None or self._kept[0] != row:
            self._kept = None
            values = allocated(self._path, (self._shape[0], lines, self._shape[2]), self._dtype)
            self._read_row(row, values)
            self._kept = row, values
        return self._kept[1]

    def _read_row(self, row: int, out: NDArray[Any]) -> None:
        for band, column in product(range(self._grid[0]), range(self._grid[2])):
            values = self._piece(band, row, column)
            at = band * self._unit[0], column * self._unit[2]
            out[at[0] : at[0] + self._unit[0], :, at[1] : at[1] + self._unit[2]] = (
                self._fill if values is None else values
            )

    def _piece(self, band: int, row: int, column: int) -> NDArray[Any] | None:
        """A chunk as [bands, lines, samples]."""
        index = [0, 0, 0]
        for axis, number in zip(self._axes, (band, row, column), strict=True):
            index[axis] = number
        values = self._chunks.read(tuple(index))
        return None if values is None else values.transpose(self._axes)

    def _spooled(self) -> Tiles:
        if self._tiles is None:
            spool = Spool(self._path, prod(self._shape) * self._dtype.itemsize)
            tiles = Tiles(spool, self._shape, self._dtype, self._unit[2])
            try:
                for row, band, column in product(*(range(self._grid[axis]) for axis in (1, 0, 2))):
                    values = self._piece(band, row, column)
                    if values is None:
                        starts = [number * unit for number, unit in zip((band, row, column), self._unit, strict=True)]
                        sizes = (min(u, n - s) for u, n, s in zip(self._unit, self._shape, starts, strict=True))
                        values = np.broadcast_to(np.asarray(self._fill, self._dtype), tuple(sizes))
                    tiles.put(band * self._unit[0], row * self._unit[1], column * self._unit[2], values)
            except BaseException:
                tiles.close()
                raise
            self._tiles = tiles
        return self._tiles
