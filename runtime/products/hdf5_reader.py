"""The reader of every HDF5 product: lines of its cube, places of its pixels, its lookup table."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.files.disk import allocated
from runtime.files.hdf5 import StoredArray
from runtime.products.contract import CubeReader, Description, Doubles, Glt, Reading
from runtime.products.hdf5_lines import LinesOf
from runtime.products.hdf5_tree import CubePart, Tree


class Hdf5Reader(CubeReader):
    """An open HDF5 product.

    Args:
        tree: its file, which `close` closes.
        about: what it is; `block` and `holds` are found here.
        parts: where its bands lie, in the order of the description.
        located: paths of longitudes and latitudes [lines, samples].
        glt: paths of samples and lines of the lookup table to `about.place.ortho`.

    Attributes:
        cube_parts: `parts`.
    """

    def __init__(
        self,
        tree: Tree,
        about: Description,
        parts: Sequence[CubePart],
        *,
        located: tuple[str, str] | None = None,
        glt: tuple[str, str] | None = None,
    ) -> None:
        self._tree, self.cube_parts, self._glt = tree, tuple(parts), glt
        self._cubes = [self._lines_of(part.path, part.axes, part.bands, about.shape) for part in parts]
        self._places = [self._lines_of(where, ("lines", "samples"), None, about.shape) for where in located or ()]
        self._fills = [tree.values(where, "_FillValue") or () for where in located or ()]
        block = min(lcm(*(lines.block for lines in self._cubes)), about.shape[1])
        holds = sum(lines.holds for lines in (*self._cubes, *self._places))
        self.description = replace(about, block=block, holds=holds)

    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        about = self.description
        with self._tree.guarded(pixels=True):
            cube = allocated(about.path, (about.shape[0], stop - start, about.shape[2]), about.dtype)
            first = 0
            for lines in self._cubes:
                lines.read(start, stop, cube[first : first + lines.shape[0]])
                first += lines.shape[0]
            return cube

    def located(self, start: int, stop: int) -> tuple[Doubles, Doubles] | None:
        if not self._places:
            return None
        found = []
        for lines, fills, most in zip(self._places, self._fills, (360, 90), strict=True):
            place = np.empty((1, stop - start, lines.shape[2]), np.float64)
            with self._tree.guarded(pixels=True):
                lines.read(start, stop, place)
            known = np.abs(place) <= most
            for fill in fills:
                known &= place != fill
            found.append(np.where(known, place, np.nan)[0])
        unknown = np.isnan(found[0]) | np.isnan(found[1])
        longitudes, latitudes = (np.where(unknown, np.nan, place) for place in found)
        return longitudes, latitudes

    def glt(self) -> Glt | None:
        grid = self.description.place.ortho
        if grid is None or self._glt is None:
            return None
        tables, outside = [], np.ones((grid.lines, grid.samples), np.bool_)
        for where in self._glt:
            stored = self._tree.array(where, (grid.lines, grid.samples))
            if stored is None or stored.dtype.kind not in "iu":
                raise self._tree.wrong("is no lookup table of whole numbers", where)
            with self._tree.guarded(pixels=True):
                table = stored.whole().astype(np.int64)
            # Filled from a neighbour: the place is true all the same.
            outside &= np.isin(table, [0, *(self._tree.values(where, "_FillValue") or ())])
            tables.append(np.abs(table))
        for where, table, most in zip(self._glt, tables, self.description.shape[:0:-1], strict=True):
            wrong = ~outside & ((table < 1) | (table > most))
            if wrong.any():
                value = int(table[wrong][0])
                raise self._tree.wrong(f"points outside the cube, where 1 to {most} are in it", where, value)
        samples, lines = (np.where(outside, -1, table - 1).astype(np.int32) for table in tables)
        return Glt(grid, lines, samples)

    def close(self) -> None:
        for lines in (*self._cubes, *self._places):
            lines.close()
        self._tree.close()

    def _lines_of(
        self, where: str, axes: tuple[str, ...], bands: tuple[int, ...] | None, shape: tuple[int, ...]
    ) -> LinesOf:
        lengths = {"bands": None, "lines": shape[1], "samples": shape[2]}
        stored = needed(self._tree, where, [lengths[axis] for axis in axes])
        return LinesOf(stored, axes, bands)


def needed(tree: Tree, where: str, shape: Sequence[int | None]) -> StoredArray:
    """The numbers at a path, as `Tree.array`. Raises CubeFileError where nothing is there."""
    stored = tree.array(where, shape)
    if stored is None:
        raise tree.wrong("is not there", where)
    return stored


def opened_as(path: Path, reading: Reading, make: Callable[[Tree, Reading], Hdf5Reader]) -> Hdf5Reader:
    """The reader that `make` makes of a file; closed where it cannot."""
    tree = Tree(path)
    try:
        with tree.guarded():
            return make(tree, reading)
    except BaseException:
        tree.close()
        raise
