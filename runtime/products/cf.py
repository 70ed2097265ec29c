"""NetCDF-4 in general: a variable of three dimensions, one of which is that of the bands (CF conventions 1.11)."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from runtime.files.hdf5 import is_hdf5
from runtime.files.layout import checked_layout
from runtime.products.cf_bands import WAVELENGTHS, axes_named
from runtime.products.cf_meaning import (
    BY_BAND,
    bad_bands,
    beside,
    crs_of,
    mapped,
    mapping_of,
    packed,
    quantity_of,
    wavelengths_of,
)
from runtime.products.cf_place import spaced
from runtime.products.contract import CubeReader, Description, Doubles, Grid, Place, Reading
from runtime.products.hdf5_reader import Hdf5Reader, needed, opened_as
from runtime.products.hdf5_tree import CubePart, Tree, band_list, chosen
from runtime.products.place_texts import with_texts
from runtime.stated import Stated
from runtime.untrusted import open_regular


def recognises(path: Path) -> bool:
    """Whether its bytes are HDF5's and its name is not MATLAB's."""
    if path.suffix.lower() == ".mat":
        return False
    try:
        file, size = open_regular(path)
        with file:
            return is_hdf5(file, size)
    except (OSError, ValueError):
        return False


def open_reader(path: Path, reading: Reading) -> CubeReader:
    """Open it.

    Of an HDF5 file without dimensions `reading.layout` says which axis is which, and `reading.key` which array it is.

    Raises:
        CubeFileError: also where it holds no such variable, or several and `reading.key` names none.
    """
    return opened_as(path, reading, _reader)


def _reader(tree: Tree, reading: Reading) -> Hdf5Reader:
    where, axes, scales = _cube(tree, reading)
    stored = needed(tree, where, (None, None, None))
    shape = tuple(stored.shape[axes.index(axis)] for axis in ("bands", "lines", "samples"))
    bands, lines, samples = shape
    wavelengths = _wavelengths(tree, where, bands, scales.get("bands"))
    fwhm, good = beside(tree, where, ["fwhm"]), beside(tree, where, ["good_wavelengths"])
    grid = _grid(tree, where, (lines, samples), scales)
    names = tuple(tree.text(where, name) for name in ("standard_name", "long_name"))
    about = Description(
        format="netcdf",
        path=tree.path,
        files=(tree.path,),
        shape=(bands, lines, samples),
        dtype=stored.dtype,
        stated=replace(
            _scaled(tree, where, packed(tree, where, stored.dtype, bands), bands),
            bad=bad_bands(tree, good, bands) if good else (),
            wavelengths=wavelengths,
        ),
        fwhm=wavelengths_of(tree, fwhm, bands, "nm") if fwhm else None,
        quantity=quantity_of(where.rpartition("/")[2]) or quantity_of(*names),
        unit=tree.text(where, "units"),
        place=with_texts(Place(grid=grid), lambda key: tree.text(where, key)),
        title=where,
        notes=() if wavelengths else ("its wavelengths are not in the file",),
    )
    parts = [CubePart(where, axes, tuple(range(bands)))]
    return Hdf5Reader(tree, about, parts, located=None if grid else _located(tree, where, (lines, samples)))


def _cube(tree: Tree, reading: Reading) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Path and axes of the one cube, and the paths of the variables that stand for its axes."""
    held, links = tree.datasets()
    dimensions = tree.dimensions(held)
    cubes: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
    bare = []
    for where, dataset in held.items():
        if len(dataset.shape or ()) != 3:
            continue
        scales = [dimensions.get(where, {}).get(axis) for axis in range(3)]
        axes = axes_named([scale and scale.rpartition("/")[2] for scale in scales])
        if axes is None:
            bare.append(where)
        else:
            cubes[where] = axes, {axis: scale for axis, scale in zip(axes, scales, strict=True) if scale}
    if not cubes and bare:
        where = chosen(tree, bare, reading.key)
        if reading.layout is None:
            remedy = "say it, as in --layout lines,samples,bands"
            raise tree.wrong("does not say which axis is which", where, list(held[where].shape), remedy)
        axes = checked_layout(reading.layout, tree.path)
        if len(axes) != 3:
            raise tree.wrong("has three axes", "layout", reading.layout, "say it, as in --layout lines,samples,bands")
        return where, axes, {}
    if not cubes and links:
        raise tree.wrong("is a link, and no cube is in the file", links[0], remedy="save what it links to in the file")
    where = chosen(tree, list(cubes), reading.key)
    return where, *cubes[where]


def _wavelengths(tree: Tree, where: str, bands: int, scale: str | None) -> tuple[float, ...] | None:
    """Of the dimension's own variable, unless it counts bands or is none; else of one that is named so."""
    at = scale if scale and scale.rpartition("/")[2].casefold() in WAVELENGTHS and _is_variable(tree, scale) else None
    at = at or beside(tree, where, [name for name in WAVELENGTHS if scale is None or name != scale.lstrip("/")])
    return wavelengths_of(tree, at, bands) if at else None


def _scaled(tree: Tree, where: str, stated: Stated, bands: int) -> Stated:
    """With a gain and an offset of each band, where the cube says so in our words: CF conventions have none."""
    gain, offset = beside(tree, where, ["gain"]), beside(tree, where, ["offset"])
    if tree.text(where, "comment") != BY_BAND or gain is None or offset is None:
        return stated
    gains = band_list(tree, tree.numbers(gain), bands, gain)
    return replace(stated, gains=gains, offsets=band_list(tree, tree.numbers(offset), bands, offset, above=None))


def _is_variable(tree: Tree, where: str) -> bool:
    """Whether a dimension has values of its own; NetCDF says so in its name."""
    return not (tree.text(where, "NAME") or "").startswith("This is a netCDF dimension but not a netCDF variable")


def _grid(tree: Tree, where: str, shape: tuple[int, int], scales: dict[str, str]) -> Grid | None:
    """The map grid: by its mapping, or by it and the coordinates, which are of the centres of pixels."""
    mapping = mapping_of(tree, where)
    if mapping is None or (found := mapped(tree, mapping, shape)):
        return found if mapping else None
    crs = crs_of(tree, mapping)
    across, down = (
        _coordinates(tree, scales.get(axis), length) for axis, length in (("samples", shape[1]), ("lines", shape[0]))
    )
    if crs is None or across is None or down is None or (transform := spaced(across, down)) is None:
        return None
    return Grid(crs, transform, *shape)


def _coordinates(tree: Tree, scale: str | None, length: int) -> Doubles | None:
    """Of an axis, one for each line or sample, where it has them."""
    values = np.asarray(tree.numbers(scale) if scale and _is_variable(tree, scale) else (), np.float64)
    return values if values.shape == (length,) and np.isfinite(values).all() else None


def _located(tree: Tree, where: str, shape: tuple[int, int]) -> tuple[str, str] | None:
    """Longitudes and latitudes of every pixel beside the cube."""
    pair = [beside(tree, where, names) for names in (("lon", "longitude"), ("lat", "latitude"))]
    if pair[0] is None or pair[1] is None:
        return None
    same = all(getattr(tree.find(one), "shape", None) == shape for one in pair if one)
    return (pair[0], pair[1]) if same else None
