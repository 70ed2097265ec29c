"""The order of a cube's axes in files that do not state it, and which arrays can be cubes."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError

AXES = ("bands", "lines", "samples")
LAYOUTS = tuple(",".join(order) for order in permutations(("lines", "samples", "bands")))
DEFAULT_LAYOUT = "lines,samples,bands"
Order = tuple[str, str, str]
"""Names of the three axes, in the order of a file's."""

_REFUSED_KINDS = {
    "b": "truth values",
    "c": "complex numbers",
    "O": "Python objects",
    "S": "text",
    "U": "text",
    "V": "records",
}


def checked_layout(layout: str, path: Path) -> Order:
    """The three axis names of `layout`, such as 'lines,samples,bands'; CubeFileError unless it is one of LAYOUTS."""
    names = tuple(name.strip().lower() for name in layout.split(","))
    if ",".join(names) not in LAYOUTS:
        raise CubeFileError(
            "is not an order of the three axes",
            file=path,
            key="layout",
            value=layout,
            remedy="use one of " + " ".join(LAYOUTS),
        )
    return names[0], names[1], names[2]


def to_cube(array: NDArray[Any], order: Order, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """`array` with axes in `order` as [bands, lines, samples], of `dtype` or its own in native order, C-contiguous."""
    moved = array.transpose([order.index(axis) for axis in AXES])
    cube: NDArray[Any] = np.ascontiguousarray(moved, dtype=dtype or array.dtype.newbyteorder("="))
    return cube


def from_cube(cube: NDArray[Any], order: Order) -> NDArray[Any]:
    """A view of `cube` [bands, lines, samples] with its axes in `order`."""
    array: NDArray[Any] = cube.transpose([AXES.index(axis) for axis in order])
    return array


def check_type(dtype: np.dtype[Any], *, path: Path, key: str | None = None) -> None:
    """Raise CubeFileError unless `dtype` is a real number of at most 8 bytes."""
    if dtype.kind in "iuf" and dtype.itemsize <= 8:
        return
    what = _REFUSED_KINDS.get(dtype.kind, "values of this type")
    raise CubeFileError(
        f"holds {what}, not real numbers of 1 to 8 bytes",
        file=path,
        key=key,
        value=str(dtype),
        remedy="save the cube as integers or floats",
    )


def check_shape(shape: tuple[int, ...], *, path: Path, key: str | None = None) -> None:
    """Raise CubeFileError unless `shape` has three axes of 1 to 2**31 - 1 elements."""
    if len(shape) != 3 or not all(1 <= length < 2**31 for length in shape):
        raise CubeFileError(
            "a cube has three axes, none of them empty",
            file=path,
            key=key,
            value=list(shape),
            remedy="save it as a 3-D array",
        )
