"""What a Zarr store says of a cube, by the CF conventions: axes, wavelengths, scale, fill, place."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.envi_header import nanometres
from runtime.files.layout import AXES, DEFAULT_LAYOUT, check_type, checked_layout
from runtime.products.cf_bands import axes_named
from runtime.products.cf_place import spaced
from runtime.products.contract import Grid, Place, Quantity, Reading
from runtime.products.place_texts import with_texts
from runtime.products.strict_json import number_in
from runtime.products.zarr_chunks import Chunks
from runtime.products.zarr_meta import Array, Node, array_of, number_of, readable, single, wrong
from runtime.products.zarr_tree import Store
from runtime.stated import Stated

_MOST_BANDS, _MOST_PLACES = 100_000, 10_000_000
_GAINS = ("gain", "offset")
_MOST_CHUNK = 16 << 20
"""Bytes of a chunk of longitudes, of which a row is held."""


@dataclass(frozen=True)
class Told:
    """What is told of a cube.

    Attributes:
        axes: of the array that are bands, lines and samples.
        notes: for people.
        used: arrays that it was read from.
        gains: names of arrays of gains and offsets among them.
        located: longitudes and latitudes [lines, samples].
    """

    array: Array
    axes: tuple[int, int, int]
    stated: Stated
    fwhm: tuple[float, ...] | None
    quantity: Quantity | None
    unit: str | None
    place: Place
    notes: tuple[str, ...] = ()
    used: tuple[Node, ...] = ()
    gains: tuple[str, ...] = field(default=())
    located: tuple[Array, Array] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        bands, lines, samples = (self.array.shape[axis] for axis in self.axes)
        return bands, lines, samples


def find(store: Store, reading: Reading) -> tuple[Node, tuple[int, int, int], bool]:
    """The cube of a store, which of its axes are bands, lines and samples, and whether somebody says so.

    Raises:
        CubeFileError: there is none, or there are several and nobody says which.
    """
    nodes = store.arrays()
    if reading.key is not None:
        nodes = [node for node in nodes if reading.key.strip("/") in (node.name.strip("/"), *_last(node))]
        if len(nodes) > 1:
            nodes = [node for node in nodes if node.name.strip("/") == reading.key.strip("/")]
        if len(nodes) != 1:
            remedy = f"say one of --key {_names(_cubes(store.arrays())) or 'none: it holds no cube'}"
            raise CubeFileError("holds no such array", file=store.path, key=reading.key, remedy=remedy)
        array_of(nodes[0])
    found = nodes if reading.key is not None else _cubes(nodes)
    if len(found) > 1:
        remedy = f"say which: --key {found[0].name.strip('/')}"
        raise CubeFileError("holds several cubes", file=store.path, key="key", value=_names(found), remedy=remedy)
    if not found:
        # What keeps the largest array from being one is what its user asks for.
        for node in sorted(nodes, key=lambda node: -len(str(node.meta.get("shape")))):
            array_of(node)
        shapes = ", ".join(f"{node.name} {node.meta.get('shape')}" for node in nodes[:8])
        remedy = "give a store with an array of bands, lines and samples"
        raise CubeFileError("holds no cube", file=store.path, value=shapes or None, remedy=remedy)
    node = found[0]
    array = array_of(node)
    check_type(array.dtype, path=store.path, key=node.name)
    if len(array.shape) != 3:
        raise wrong(node, "shape", "has not three axes", list(array.shape), "give an array of bands, lines and samples")
    if 0 in array.shape:
        raise wrong(node, "shape", "holds nothing", list(array.shape), "give a store with data")
    named = _axes(node.dims)
    if named is not None:
        return node, named, True
    order = checked_layout(reading.layout or DEFAULT_LAYOUT, store.path)
    if len(order) != 3:
        problem, remedy = "is an order of two axes", f"say --layout {DEFAULT_LAYOUT}"
        raise CubeFileError(problem, file=store.path, key="layout", value=reading.layout, remedy=remedy)
    bands, lines, samples = (order.index(axis) for axis in AXES)
    return node, (bands, lines, samples), reading.layout is not None


def _last(node: Node) -> tuple[str, ...]:
    return (node.name.rpartition("/")[2],)


def _names(nodes: list[Node]) -> str:
    return ", ".join(node.name for node in nodes[:20])


def _cubes(nodes: list[Node]) -> list[Node]:
    """Arrays of three axes of numbers: those with an axis of bands, else those whose axes have no names."""
    three = [
        node
        for node in nodes
        if len(node.meta.get("shape") or ()) == 3 and (array := readable(node)) and array.dtype.kind in "iuf"
    ]
    return [node for node in three if _axes(node.dims)] or [node for node in three if not any(node.dims)]


def _axes(dims: tuple[str, ...]) -> tuple[int, int, int] | None:
    named = axes_named(dims)
    return None if named is None else (named.index("bands"), named.index("lines"), named.index("samples"))


def told(store: Store, reading: Reading) -> Told:
    """The cube of a store and all that is said of it; raises CubeFileError for what cannot be taken as it stands."""
    node, axes, said = find(store, reading)
    array = array_of(node)
    sides = _Sides(store, node, axes)
    notes: list[str] = []
    wavelengths = sides.lengths(("wavelength", "wavelengths"), notes, positive=True)
    fwhm = sides.lengths(("fwhm",), notes, positive=False)
    good = sides.values(("good_wavelengths", "bbl"))
    bad = () if good is None else tuple(np.flatnonzero(good == 0).tolist())
    unit = node.attributes.get("units")
    unit = unit if isinstance(unit, str) and unit else None
    gains, offsets = sides.scale()
    marks = _marks(array, notes)
    place = with_texts(_place(sides, notes), node.attributes.get)
    located = None if place.grid else sides.located()
    stated = Stated(
        gains=gains,
        offsets=offsets,
        marks=marks,
        bad=bad,
        wavelengths=wavelengths,
        axes=said,
        doubts=() if said else (f"nothing says which axis is which: --layout {DEFAULT_LAYOUT} is taken",),
    )
    quantity = quantity_of(node.name, node.attributes, unit)
    names = tuple(one.name for one in sides.used if one.name.rpartition("/")[2] in _GAINS)
    used = tuple(sides.used)
    return Told(array, axes, stated, fwhm, quantity, unit, place, tuple(notes), used, names, located)


class _Sides:
    """Arrays beside a cube, and which of them were used."""

    def __init__(self, store: Store, node: Node, axes: tuple[int, int, int]) -> None:
        self.store, self.node, self.axes = store, node, axes
        self.shape = tuple(node.meta["shape"][axis] for axis in axes)
        self.used: list[Node] = []

    def values(self, names: tuple[str, ...]) -> NDArray[np.float64] | None:
        """One number per band, of the first of these names that is there."""
        node = next((found for name in names if (found := self.store.beside(self.node, name)) is not None), None)
        if node is None or node is self.node or len(node.meta.get("shape") or ()) != 1:
            return None
        array = array_of(node)
        if array.shape != (self.shape[0],):
            remedy = "write the store again"
            raise wrong(node, "shape", f"has not one value for each of the {self.shape[0]} bands", array.shape, remedy)
        return self.numbers(array, _MOST_BANDS)

    def numbers(self, array: Array, most: int) -> NDArray[np.float64]:
        self.used.append(array.node)
        found = Chunks(array).whole(most).astype(np.float64)
        factor, added = (single(array.node.attributes.get(key)) for key in ("scale_factor", "add_offset"))
        found = found * (1.0 if factor is None else factor) + (added or 0.0)
        if not np.isfinite(found).all():
            raise wrong(array.node, array.node.name, "holds numbers that are not finite", remedy="write it again")
        return found

    def lengths(self, names: tuple[str, ...], notes: list[str], *, positive: bool) -> tuple[float, ...] | None:
        """Lengths in nanometres, one per band."""
        found = self.values(names)
        if found is None:
            return None
        node = self.used[-1]
        unit = node.attributes.get("units")
        in_nm = nanometres(tuple(found.tolist()), unit if isinstance(unit, str) else "")
        if in_nm is None:
            notes.append(f"{node.name} has no unit of length that is known ({str(unit)[:40]}); it is left out")
            return None
        if not (found > 0).all() if positive else not (found >= 0).all():
            raise wrong(node, node.name, "holds a length that is none", float(found.min()), "write it again")
        # A length in micrometres is a decimal number, whose product with 1000 has digits of no meaning.
        return in_nm if in_nm == tuple(found.tolist()) else tuple(float(f"{value:.12g}") for value in in_nm)

    def located(self) -> tuple[Array, Array] | None:
        """Longitudes and latitudes of every pixel, where both are plain decimal numbers on the cube's lines."""
        dims = tuple(self.node.dims[axis] for axis in self.axes[1:]) if self.node.dims else ()
        found = []
        for names in (("lon", "longitude"), ("lat", "latitude")):
            node = next((one for name in names if (one := self.store.beside(self.node, name)) is not None), None)
            array = None if node is None or node.dims != dims else readable(node)
            if array is None or array.shape != self.shape[1:] or array.dtype.kind != "f":
                return None
            if {"scale_factor", "add_offset"} & {*array.node.attributes}:
                return None
            if math.prod(array.unit) * array.dtype.itemsize > _MOST_CHUNK:
                return None
            found.append(array)
        self.used += [array.node for array in found]
        return found[0], found[1]

    def scale(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Gains and offsets: of CF's attributes, or of arrays with one value per band."""
        bands, said = self.shape[0], self.node.attributes
        found: list[tuple[float, ...] | None] = []
        for key, name in zip(("scale_factor", "add_offset"), _GAINS, strict=True):
            listed = self.values((name,))
            if key in said:
                number = single(said[key])
                if number is None or (key == "scale_factor" and number == 0):
                    raise wrong(self.node, key, "is no number that scales", said[key], "write the store again")
                if listed is not None:
                    raise wrong(self.node, key, f"and the array {name} both scale the cube", remedy="delete one")
                found.append((number,) * bands)
            else:
                found.append(None if listed is None else tuple(listed.tolist()))
            if name == "gain" and found[-1] is not None and 0 in found[-1]:
                raise wrong(self.node, name, "is 0 in a band", remedy="write the store again")
        return found[0], found[1]


def _marks(array: Array, notes: list[str]) -> tuple[float, ...]:
    """Values of missing pixels. In version 2 the array's own fill is one, as xarray and GDAL have it."""
    found: list[float] = []
    said = array.node.attributes
    for key in ("_FillValue", "missing_value"):
        for entry in said[key] if isinstance(said.get(key), list) else [said[key]] if key in said else []:
            mark = number_of(entry, array.dtype)
            if mark is None:
                raise wrong(array.node, key, f"is no number of {array.dtype}", entry, "write the store again")
            found.append(float(mark))
    if not found and array.node.version == 2 and array.fill is not None:
        found.append(float(array.fill))
        notes.append(f"its fill_value, {array.fill}, is taken for missing, as xarray does")
    return tuple({str(mark): mark for mark in found}.values())


def quantity_of(name: str, attributes: Mapping[str, Any], unit: str | None) -> Quantity | None:
    """What a value is, by the names and the unit of its array."""
    words = " ".join(str(attributes.get(key, ""))[:200] for key in ("standard_name", "long_name")).lower()
    words += " " + name.rpartition("/")[2].lower()
    kinds: tuple[Quantity, ...] = ("reflectance", "radiance")
    for kind in kinds:
        if kind in words:
            return kind
    if unit is not None and unit.lower() in ("count", "counts", "dn"):
        return "counts"
    return "radiance" if unit is not None and re.search(r"\bsr\b|sr-1|sr\^-1", unit) else None


def _place(sides: _Sides, notes: list[str]) -> Place:
    """The grid of `grid_mapping`; its transform from there or from evenly spaced coordinates."""
    named = sides.node.attributes.get("grid_mapping")
    name = re.split(r"[:\s]", named.strip(), maxsplit=1)[0] if isinstance(named, str) else "spatial_ref"
    node = sides.store.beside(sides.node, name) if name else None
    if node is None:
        if named is not None:
            notes.append(f"its grid mapping {str(named)[:60]!r} is not in the store")
        return Place()
    said = node.attributes
    crs = next((said[key] for key in ("crs_wkt", "spatial_ref") if isinstance(said.get(key), str)), "")
    transform = _transform(said.get("GeoTransform")) or _spaced(sides)
    sides.used.append(node)
    if not crs or transform is None:
        notes.append(f"{node.name} has {'no transform' if crs else 'no coordinate system'} that is read")
        return Place()
    return Place(grid=Grid(crs, transform, sides.shape[1], sides.shape[2]))


def _transform(said: object) -> tuple[float, float, float, float, float, float] | None:
    if isinstance(said, str) and len(said) < 1000:
        try:
            said = [float(word) for word in said.split()]
        except ValueError:
            return None
    if not isinstance(said, list) or len(said) != 6:
        return None
    numbers = [number_in(entry) for entry in said]
    a, b, c, d, e, f = (math.nan if entry is None else entry for entry in numbers)
    return None if not math.isfinite(a + b + c + d + e + f) or b * f == c * e else (a, b, c, d, e, f)


def _spaced(sides: _Sides) -> tuple[float, float, float, float, float, float] | None:
    """From the coordinates of the centres of pixels."""
    found: list[NDArray[np.float64]] = []
    for axis, length in zip(sides.axes[:0:-1], sides.shape[:0:-1], strict=True):
        dims = sides.node.dims
        node = sides.store.beside(sides.node, dims[axis]) if dims and dims[axis] else None
        array = None if node is None else readable(node)
        if array is None or array.shape != (length,):
            return None
        found.append(sides.numbers(array, _MOST_PLACES))
    x, y = found
    return spaced(x, y)
