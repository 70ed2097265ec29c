"""Between digital numbers and the network's unit range, by a scale that somebody said."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CubeError
from .masking import held, missing_pixels


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
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale <= 0:
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


def returned(
    restored: NDArray[np.float32],
    source: NDArray[Any],
    scale: float | None,
    ignore_value: float | None,
    *,
    clip: bool,
    unit: bool,
) -> tuple[NDArray[Any], int, int]:
    """A restored unit cube as its user gets it: in the source's type and scale, missing pixels as they were.

    Args:
        restored: float32 [bands, lines, samples] in the unit range.
        source: the cube that was restored.
        scale: what `source` was divided by; None for floats.
        ignore_value: mark of missing pixels in `source`, or None.
        clip: clip to [0, 1] first.
        unit: stay in the unit range as float32. Missing pixels are scaled too, but the mark itself stays the mark.

    Returns:
        (cube, values set to a limit of the type, values moved away from the mark that they happened to equal).
    """
    missing = missing_pixels(source, ignore_value)
    if clip:
        restored = np.clip(restored, 0, 1)
    saturated = 0
    if unit or scale is None:
        cube = np.array(restored, np.float32 if unit else source.dtype)
        cube[:, missing] = to_unit(source[:, missing], scale)
    else:
        cube, saturated = to_numbers(restored, scale, source.dtype)
        cube[:, missing] = source[:, missing]
    if ignore_value is None or math.isnan(ignore_value):
        return cube, saturated, 0
    mark = held(ignore_value, cube.dtype)
    if mark is None:
        return cube, saturated, 0
    equal = cube == mark
    equal[:, missing] = False
    cube[equal] = _next_to(mark)
    marks = np.zeros_like(equal)
    marks[:, missing] = source[:, missing] == held(ignore_value, source.dtype)
    cube[marks] = mark
    return cube, saturated, int(equal.sum())


def _next_to(mark: Any) -> Any:
    if mark.dtype.kind == "f":
        return np.nextafter(mark, mark.dtype.type(np.inf))
    return mark + 1 if mark < np.iinfo(mark.dtype).max else mark - 1
