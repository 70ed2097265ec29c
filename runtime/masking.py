"""Pixels that a file marks as missing: kept out of the network, put back untouched."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CubeError


def missing_pixels(cube: NDArray[Any], ignore_value: float | None) -> NDArray[np.bool_]:
    """Pixels [lines, samples] that hold the ignore value (possibly NaN) in any band.

    Args:
        cube: [bands, lines, samples].
        ignore_value: the file's mark, None for no mark.
    """
    if ignore_value is None:
        return np.zeros(cube.shape[1:], np.bool_)
    if math.isnan(ignore_value):
        return np.asarray(np.isnan(cube).any(axis=0))
    mark = held(ignore_value, cube.dtype)
    return np.zeros(cube.shape[1:], np.bool_) if mark is None else np.asarray((cube == mark).any(axis=0))


def held(ignore_value: float, dtype: np.dtype[Any]) -> Any:
    """The ignore value as an array of `dtype` holds it; None where it cannot."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(ignore_value)
    limits = np.iinfo(dtype)
    fits = (
        math.isfinite(ignore_value)
        and ignore_value == int(ignore_value)
        and limits.min <= int(ignore_value) <= limits.max
    )
    return dtype.type(int(ignore_value)) if fits else None


def filled(cube: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[Any]:
    """A copy whose missing pixels hold the mean of the others, band by band; `cube` itself where none is missing.

    Raises:
        CubeError: every pixel is missing.
    """
    if not missing.any():
        return cube
    if missing.all():
        raise CubeError("every pixel is marked as missing", key="data ignore value", remedy="give a cube with data")
    out: NDArray[Any] = np.array(cube)
    for band in out:
        mean = band[~missing].mean(dtype=np.float64)
        band[missing] = np.rint(mean) if cube.dtype.kind in "iu" else mean
    return out
