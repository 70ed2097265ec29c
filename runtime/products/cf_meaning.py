"""What the attributes of a NetCDF variable say of its numbers, after the CF conventions (1.11, cfconventions.org)."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from runtime.files.envi_header import nanometres
from runtime.products.contract import Grid, Quantity
from runtime.products.hdf5_tree import Tree, band_list
from runtime.stated import Stated

BY_BAND = "number * gain + offset of its band is the physical value, in the unit given"
"""`comment` of a cube beside which the variables `gain` and `offset` have a number for each band."""
Transform = tuple[float, float, float, float, float, float]


def packed(tree: Tree, where: str, dtype: np.dtype[Any], bands: int, *, mark: float | None = None) -> Stated:
    """Gains, offsets and marks that `scale_factor`, `add_offset`, `_FillValue` and `missing_value` say.

    Args:
        mark: where neither of the last two is there.

    Raises:
        CubeFileError: a scale is 0 or not finite; a mark is none that `dtype` holds.
    """
    scale, offset = tree.value(where, "scale_factor"), tree.value(where, "add_offset")
    for name, value in (("scale_factor", scale), ("add_offset", offset)):
        if value is not None and (not isfinite(value) or (name == "scale_factor" and value == 0)):
            raise tree.wrong("is no such number", f"{where} {name}", value)
    marks = [(f"{where} {name}", value) for name in _MARKS for value in tree.values(where, name) or ()]
    if not marks and mark is not None:
        marks = [(where, mark)]
    said = scale is not None or offset is not None
    return Stated(
        gains=(1.0 if scale is None else scale,) * bands if said else None,
        offsets=(offset or 0.0,) * bands if said else None,
        marks=tuple(dict.fromkeys(_mark(tree, key, value, dtype) for key, value in marks)),
        axes=True,
    )


_MARKS = ("_FillValue", "missing_value")


def _mark(tree: Tree, key: str, value: float, dtype: np.dtype[Any]) -> float:
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = float(dtype.type(value))
        fits = isfinite(held) or not isfinite(value)
    else:
        limits = np.iinfo(dtype)
        held, fits = value, isfinite(value) and value.is_integer() and limits.min <= value <= limits.max
    if not fits:
        raise tree.wrong(f"is a mark that {dtype} does not hold", key, value)
    return held


def wavelengths_of(tree: Tree, where: str, bands: int, unit: str = "") -> tuple[float, ...] | None:
    """Wavelengths or widths at a path in nm, None where nothing is.

    Args:
        unit: where it has no `units`; empty where nobody knows.

    Raises:
        CubeFileError: there are not as many as bands, or one is not above 0; their unit is not known.
    """
    values = band_list(tree, tree.numbers(where), bands, where)
    if values is None:
        return None
    unit = tree.text(where, "units") or unit
    found = nanometres(values, unit)
    if found is None:
        remedy = "say the bands' wavelengths in nm in its `units`"
        raise tree.wrong("the unit of these wavelengths is not known", where, unit or values[0], remedy)
    return found


def bad_bands(tree: Tree, where: str, bands: int) -> tuple[int, ...]:
    """Bands that a list of `good_wavelengths` calls bad, from 0; none of a list that calls all so."""
    good = band_list(tree, tree.numbers(where), bands, where, above=None) or ()
    bad = tuple(band for band, value in enumerate(good) if value == 0)
    return bad if len(bad) < bands else ()


def quantity_of(*texts: str | None) -> Quantity | None:
    """What names of a variable say that it holds; None where they name nothing, or two."""
    said = " ".join(text for text in texts if text).casefold()
    kinds: tuple[Quantity, ...] = ("reflectance", "radiance", "counts")
    found = [kind for kind in kinds if kind in said]
    return found[0] if len(found) == 1 else None


def transform_of(tree: Tree, where: str, name: str) -> Transform | None:
    """A geotransform in GDAL's order, as numbers or as a text. Raises CubeFileError where it has no area."""
    told = tree.values(where, name, 6)
    if told is None:
        return None
    x, along_x, across_x, y, along_y, across_y = told
    if not all(map(isfinite, told)) or along_x * across_y == across_x * along_y:
        raise tree.wrong("is no geotransform", f"{where} {name}", " ".join(map(str, told)))
    return x, along_x, across_x, y, along_y, across_y


def mapped(tree: Tree, where: str, shape: tuple[int, ...]) -> Grid | None:
    """The grid of `shape` [lines, samples] that a grid mapping variable tells by itself."""
    transform, crs = transform_of(tree, where, "GeoTransform"), crs_of(tree, where)
    return Grid(crs, transform, *shape) if transform and crs else None


def beside(tree: Tree, where: str, names: Sequence[str]) -> str | None:
    """The path of the first of these names in the group of a variable or, as CF looks for them, in one above."""
    group = where
    while group:
        group = group.rpartition("/")[0]
        for name in names:
            if tree.find(f"{group}/{name}") is not None:
                return f"{group}/{name}"
    return None


def mapping_of(tree: Tree, where: str) -> str | None:
    """The path of a variable's grid mapping; of several the first."""
    words = (tree.text(where, "grid_mapping") or "").split()
    return beside(tree, where, [words[0].rstrip(":").rpartition("/")[2]]) if words else None


def crs_of(tree: Tree, where: str) -> str | None:
    """The coordinate system of a grid mapping variable or of a group, as it has it."""
    return tree.text(where, "crs_wkt") or tree.text(where, "spatial_ref")
