"""The order of a cube's axes in files that do not state it, and which arrays can be cubes."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError

AXES = ("bands", "lines", "samples")
PLANE_LAYOUTS = ("lines,samples", "samples,lines")
"""Of files that hold one band without an axis for it."""
LAYOUTS = (*(",".join(order) for order in permutations(("lines", "samples", "bands"))), *PLANE_LAYOUTS)
DEFAULT_LAYOUT = "lines,samples,bands"
Order = tuple[str, ...]
"""Names of the three axes, or of the two of a plane, in the order of a file's."""
AS_PLANE = f"read it as one band with --layout {PLANE_LAYOUTS[0]}"
AS_CUBE = f"give a layout of three axes, as in --layout {DEFAULT_LAYOUT}"
"""What to do where a file has two axes and three were told, and the other way round."""
ONE_BAND = "give a file of one band"
"""In place of `AS_CUBE` where nothing but one band is of use."""

_REFUSED_KINDS = {
    "b": "truth values",
    "c": "complex numbers",
    "O": "Python objects",
    "S": "text",
    "U": "text",
    "V": "records",
}


def checked_layout(layout: str, path: Path) -> Order:
    """The axis names of `layout`, such as 'lines,samples,bands'; CubeFileError unless it is one of LAYOUTS."""
    names = tuple(name.strip().lower() for name in layout.split(","))
    if ",".join(names) not in LAYOUTS:
        raise CubeFileError(
            "is not an order of the three axes, nor of the two of one band",
            file=path,
            key="layout",
            value=layout,
            remedy="use one of " + " ".join(LAYOUTS),
        )
    return names


def check_plane(bands: int, order: Order, path: Path) -> None:
    """Raise CubeFileError where `order` is that of one band and there are more."""
    if len(order) == 2 and bands != 1:
        raise CubeFileError("one band is expected", file=path, key="bands", value=bands, remedy=AS_CUBE)


def to_cube(array: NDArray[Any], order: Order, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """`array` with axes in `order` as [bands, lines, samples], of `dtype` or its own in native order, C-contiguous."""
    moved = array.transpose([order.index(axis) for axis in AXES if axis in order])
    cube: NDArray[Any] = np.ascontiguousarray(moved, dtype=dtype or array.dtype.newbyteorder("="))
    return cube if len(order) == 3 else cube[None]


def from_cube(cube: NDArray[Any], order: Order) -> NDArray[Any]:
    """A view of `cube` [bands, lines, samples], or of its only band, with axes in `order`."""
    axes = AXES if len(order) == 3 else AXES[1:]
    array: NDArray[Any] = (cube if len(order) == 3 else cube[0]).transpose([axes.index(axis) for axis in order])
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


def check_shape(shape: tuple[int, ...], *, path: Path, key: str | None = None, axes: int = 3) -> None:
    """Raise CubeFileError unless `shape` has as many axes, three or two, of 1 to 2**31 - 1 elements."""
    if len(shape) == axes and all(1 <= length < 2**31 for length in shape):
        return
    other = {(3, 2): f", or {AS_PLANE}", (2, 3): f", or {AS_CUBE}"}.get((axes, len(shape)), "")
    raise CubeFileError(
        f"{'a cube has three' if axes == 3 else 'one band has two'} axes, none of them empty",
        file=path,
        key=key,
        value=list(shape),
        remedy=f"save it as a {axes}-D array{other}",
    )
