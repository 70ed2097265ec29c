"""What degradations and baselines ask: of a cube, of a severity, of scikit-image."""

from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeError, InputError, MachineError

Cube: TypeAlias = NDArray[np.float32]
"""[bands, lines, samples]."""
BRIGHTEST = 1e6


def checked(cube: Any) -> Cube:
    cube = np.asarray(cube)
    if cube.ndim != 3 or cube.size == 0:
        raise CubeError(
            "not a cube", key="shape", value=list(cube.shape), remedy="give an array [bands, lines, samples]"
        )
    if cube.dtype.kind != "f":
        raise CubeError(
            "the cube is not floating point", key="dtype", value=cube.dtype, remedy="scale it to [0, 1] as float32"
        )
    # One pass: NaN and infinity fail the comparison as well.
    if not max(-float(cube.min()), float(cube.max())) <= BRIGHTEST:
        raise CubeError(
            "the cube holds NaN, infinity or values far outside [0, 1]",
            key="cube",
            remedy="mask or repair it and scale it to [0, 1]",
        )
    return np.asarray(cube, np.float32)


def within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError("out of range", key=key, value=value, remedy=f"give a number from {low:g} to {high:g}")


def whole(key: str, value: float, low: int, high: int) -> None:
    within(key, value, low, high)
    if value != int(value):
        raise InputError("not a whole number", key=key, value=value, remedy=f"give one from {low} to {high}")


def needed(module: str) -> Any:
    """A module of scikit-image. Raises MachineError where it is not installed."""
    try:
        return import_module(f"skimage.{module}")
    except ImportError as error:
        raise MachineError(
            "scikit-image is not installed, so nothing can be restored the classical way",
            key="scikit-image",
            remedy='pip install "damp-deploy[report]"',
        ) from error
