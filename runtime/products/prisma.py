"""PRISMA L1 radiance, L2B radiance and L2C and L2D reflectance, HDF-EOS5 as ASI delivers them.

Two cubes [line, band, sample] of 16-bit numbers, VNIR and SWIR, each with a scale of its own; bands of wavelength 0 do
not exist. Names and values after ASI's "PRISMA Products Specification" and ESA's SNAP.
"""

from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools
from runtime.products.contract import CubeReader, Description, Grid, Place, Quantity, Reading
from runtime.products.hdf5_lines import LinesOf
from runtime.products.hdf5_reader import Hdf5Reader, needed, opened_as
from runtime.products.hdf5_tree import CubePart, Tree, band_list, chosen, recognised
from runtime.stated import Stated

_SWATHS = "/HDFEOS/SWATHS"
_DETECTORS = ("VNIR", "SWIR")
_AXES = ("lines", "bands", "samples")
_UNIT = "W m-2 sr-1 um-1"
_LEVELS: dict[str, tuple[Quantity, str | None]] = {
    "L1": ("radiance", _UNIT),
    "L2B": ("radiance", _UNIT),
    "L2C": ("reflectance", None),
    "L2D": ("reflectance", None),
}
_INVALID, _SATURATED = 1, 2
"""In the matrices of errors: no valid pixel in L1 (of L2); in saturation (of L1)."""


def recognises(path: Path) -> bool:
    """Whether it has a swath that is named as PRISMA's are."""
    return recognised(path, lambda tree: any(name.startswith("PRS_") for name in tree.names(_SWATHS)))


def open_reader(path: Path, reading: Reading) -> CubeReader:
    """Open the co-registered cube, or the swath that `reading.key` names. Raises CubeFileError."""
    return opened_as(path, reading, _Prisma)


class _Prisma(Hdf5Reader):
    def __init__(self, tree: Tree, reading: Reading) -> None:
        swath = _swath(tree, reading.key)
        level = swath.split("_")[1]
        data = f"{_SWATHS}/{swath}/Data Fields"
        parts, gains, offsets, wavelengths, fwhm = [], [], [], [], []
        for detector in _DETECTORS:
            where = f"{data}/{detector}_Cube"
            stored = needed(tree, where, (None, None, None))
            if stored.dtype != np.uint16:
                raise tree.wrong("holds no 16-bit numbers", where, str(stored.dtype))
            bands, centres, widths = _bands(tree, detector.title(), stored.shape[1])
            gain, offset = _scale(tree, level, detector.title())
            parts.append(CubePart(where, _AXES, bands))
            gains += [gain] * len(bands)
            offsets += [offset] * len(bands)
            wavelengths += [centres[band] for band in bands]
            fwhm += [widths[band] for band in bands]
            lines, samples = stored.shape[::2]
        quantity, unit = _LEVELS[level]
        grid = _grid(tree, (lines, samples)) if level == "L2D" else None
        about = Description(
            format="prisma",
            path=tree.path,
            files=(tree.path,),
            shape=(len(gains), lines, samples),
            dtype=np.dtype(np.uint16),
            stated=Stated(gains=tuple(gains), offsets=tuple(offsets), wavelengths=tuple(wavelengths), axes=True),
            fwhm=tuple(fwhm),
            quantity=quantity,
            unit=unit,
            place=Place(grid=grid),
            title=f"{_SWATHS}/{swath}",
        )
        located = None if grid else _located(tree, f"{_SWATHS}/{swath}/Geolocation Fields")
        super().__init__(tree, about, parts, located=located)
        self._invalid, self._saturated = (
            [
                self._lines_of(where, _AXES, part.bands, about.shape)
                for part, detector in zip(parts, _DETECTORS, strict=True)
                if tree.find(where := f"{data}/{detector}_PIXEL_{name}_ERR_MATRIX") is not None
            ]
            for name in ("L2", "SAT")
        )
        self._empty: tuple[tuple[int, int], Bools] | None = None

    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        cube = super().read_lines(start, stop)
        if self._invalid:
            self._empty = (start, stop), np.logical_not(cube.any(axis=0))
        return cube

    def missing(self, start: int, stop: int) -> Bools | None:
        """Pixels that are marked and have 0 in every band: no fill is declared, and 0 alone is one of L2's values."""
        if not self._invalid:
            return None
        if self._empty is None or self._empty[0] != (start, stop):
            self.read_lines(start, stop)
        assert self._empty is not None
        return self._empty[1] & self._any(self._invalid, _INVALID, start, stop)

    def saturated(self, start: int, stop: int) -> Bools | None:
        return self._any(self._saturated, _SATURATED, start, stop) if self._saturated else None

    def close(self) -> None:
        for lines in (*self._invalid, *self._saturated):
            lines.close()
        super().close()

    def _any(self, matrices: list[LinesOf], value: int, start: int, stop: int) -> Bools:
        found = np.zeros((stop - start, self.description.shape[2]), np.bool_)
        for lines in matrices:
            with self._tree.guarded(pixels=True):
                errors = np.empty((lines.shape[0], stop - start, lines.shape[2]), np.uint8)
                lines.read(start, stop, errors)
            found |= (errors == value).any(axis=0)
        return found


def _swath(tree: Tree, key: str | None) -> str:
    """The swath of the one co-registered cube, or the one that is named."""
    names = tree.names(_SWATHS)
    swaths = [name for name in names if name.startswith("PRS_") and name.split("_")[1] in _LEVELS]
    cubes = [name for name in swaths if tree.find(f"{_SWATHS}/{name}/Data Fields/VNIR_Cube") is not None]
    if key is None:
        cubes = [name for name in cubes if name.endswith("_HCO")]
    if not cubes:
        raise tree.wrong("holds no co-registered cube (HCO)", _SWATHS, ", ".join(names), "give an L1 or L2 product")
    return chosen(tree, [f"{_SWATHS}/{name}" for name in cubes], key).rpartition("/")[2]


def _bands(tree: Tree, detector: str, count: int) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Bands of a detector that exist, and the wavelengths and widths of all of its, in nm."""
    lists = []
    for name in (f"List_Cw_{detector}", f"List_Fwhm_{detector}"):
        values = band_list(tree, tree.values("/", name), count, name, above=None)
        if values is None or min(values) < 0:
            raise tree.wrong("is not there, or negative", name)
        lists.append(values)
    bands = tuple(band for band, centre in enumerate(lists[0]) if centre > 0)
    if not bands:
        raise tree.wrong("says that no band exists", f"List_Cw_{detector}")
    return bands, lists[0], lists[1]


def _scale(tree: Tree, level: str, detector: str) -> tuple[float, float]:
    """Gain and offset of a detector. Raises CubeFileError where readers of it differ: an offset of L1 other than 0."""
    if level == "L1":
        factor, offset = _number(tree, f"ScaleFactor_{detector}"), _number(tree, f"Offset_{detector}")
        if offset:
            raise tree.wrong("what an offset other than 0 means is not known", f"Offset_{detector}", offset)
        if factor <= 0:
            raise tree.wrong("is no factor", f"ScaleFactor_{detector}", factor)
        return 1 / factor, 0.0
    low, high = (_number(tree, f"L2Scale{detector}{end}") for end in ("Min", "Max"))
    if high <= low:
        raise tree.wrong("is not above the smallest value", f"L2Scale{detector}Max", high)
    return (high - low) / 65535, low


def _number(tree: Tree, name: str) -> float:
    found = tree.value("/", name)
    if found is None or not isfinite(found):
        raise tree.wrong("is not there" if found is None else "is not finite", name, found)
    return found


def _located(tree: Tree, group: str) -> tuple[str, str] | None:
    """Longitudes and latitudes: of L1 those of the VNIR cube, which the SWIR cube lies upon."""
    for end in ("_VNIR", ""):
        pair = (f"{group}/Longitude{end}", f"{group}/Latitude{end}")
        if all(tree.find(one) is not None for one in pair):
            return pair
    return None


def _grid(tree: Tree, shape: tuple[int, int]) -> Grid | None:
    """The grid of an L2D cube. Its corners are the centres of corner pixels."""
    code = _number(tree, "Epsg_Code")
    x, y = (
        [_number(tree, f"Product_{corner}corner_{axis}") for corner in ("UL", "UR", "LL", "LR")]
        for axis in ("easting", "northing")
    )
    if min(shape) < 2 or min(x) == max(x) or min(y) == max(y):
        raise tree.wrong("its corners are no grid", "Product_ULcorner_easting", min(x))
    along, across = (max(x) - min(x)) / (shape[1] - 1), (max(y) - min(y)) / (shape[0] - 1)
    transform = (min(x) - along / 2, along, 0.0, max(y) + across / 2, 0.0, -across)
    return Grid(f"EPSG:{int(code)}", transform, *shape)
