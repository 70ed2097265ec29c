"""Between digital numbers and the network's unit range, by a scale that somebody said."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CubeError


def to_unit(cube: NDArray[Any], scale: float | None) -> NDArray[np.float32]:
    """Float32 cube for the network: integers divided by `scale`, floats as they are.

    Raises:
        CubeError: an integer cube without a scale, a scale that is not positive, or a type that is not a real number.
    """
    if cube.dtype.kind == "f":
        # What float32 cannot hold becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(cube, np.float32)
    if cube.dtype.kind not in "iu":
        raise CubeError("not a cube of real numbers", key="cube", value=cube.dtype, remedy="give integers or floats")
    if scale is None:
        raise CubeError(
            "a cube of integers needs a scale, and neither flag, file nor bundle tells one",
            key="scale",
            remedy="say which digital number stands for 1.0, for example --scale 4095",
        )
    if not math.isfinite(scale) or scale <= 0:
        raise CubeError("the scale is not a positive number", key="scale", value=scale, remedy="for example 4095")
    return np.ascontiguousarray(cube / np.float64(scale), np.float32)


def to_numbers(cube: NDArray[np.float32], scale: float, dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """A unit cube back in digital numbers of an integer type, rounded.

    Returns:
        (cube of `dtype`, how many values the type cannot hold and were set to its limit).
    """
    limits = np.iinfo(dtype)
    numbers = np.rint(cube.astype(np.float64) * scale)
    outside = int(((numbers < limits.min) | (numbers > limits.max)).sum())
    # 2**63 is a float64 and no int64: clip below the largest float that fits.
    top = np.nextafter(float(limits.max), 0) if float(limits.max) > limits.max else float(limits.max)
    return np.clip(numbers, float(limits.min), top).astype(dtype), outside
