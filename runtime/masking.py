"""Pixels that a file marks as missing: kept out of the network, put back untouched."""

from __future__ import annotations

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
    # Float cubes hold the mark as their own type rounds it.
    mark = np.asarray(ignore_value).astype(cube.dtype) if cube.dtype.kind == "f" else ignore_value
    return np.asarray((cube == mark).any(axis=0))


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
