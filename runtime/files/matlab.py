"""MATLAB files of version 5 to 7.3: the one array in them that is a cube.

An array is named as MATLAB names it: `scene`, or `scene.data` in a struct. Of one with all pixels of an image along one
axis, the size of the image is told behind its name: `Y:307x307`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice, product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError, plain
from runtime.files.disk import MOST_HELD, opened
from runtime.files.hdf5 import is_hdf5
from runtime.files.layout import AS_CUBE, AS_PLANE, AXES, Order, check_plane, check_shape, to_cube
from runtime.files.matlab_hdf5 import opened_hdf5
from runtime.files.matlab_level5 import HEADER_BYTES, Level5
from runtime.files.matlab_variables import NUMERIC, Contents, Variable

_MOST_LISTED = 20

_LINES = ("nrow", "nrows", "row", "rows", "height", "h", "lines", "nlines")
_SAMPLES = ("ncol", "ncols", "col", "cols", "columns", "ncolumns", "width", "w", "samples", "nsamples")

_Size = tuple[int, int]


def read_mat(path: Path, order: Order, key: str | None) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The cube of a MATLAB file of version 5 to 7.3, as `arrays.read_npy` gives one, and what is doubtful of its axes.

    Args:
        order: of the cube's axes, as MATLAB shows them. Of a 2-D array whose size is told it says how its pixels are
            counted: down the columns, as MATLAB counts, where lines come before samples.
        key: the array's name, behind those of the structs or groups that it is in, with dots or slashes between; for a
            2-D array followed by lines and samples of the image, as in `Y:307x307`. None takes the only 3-D numeric
            array outside structs; where `order` has two axes, the only 2-D one with more than one row and column. Of a
            struct the first 2000 fields are looked at, and 16 levels.

    Raises:
        CubeFileError: it is no such file or damaged; there is no such array, or several to choose from; it is no array
            of real numbers with the axes of `order`, or no 2-D array that the size fits; it is linked from elsewhere;
            it expands beyond the bound of `disk.check_expansion` or does not fit into memory.
    """
    with _contents(path) as contents:
        chosen, axes, doubts = _chosen(contents, order, key, path)
        array, dtype = contents.values(chosen)
        return to_cube(array.reshape(chosen.shape, order="F"), axes, dtype), doubts


class MatCube(NamedTuple):
    """The cube of a MATLAB file without its numbers: its name there, [bands, lines, samples], type, and doubts."""

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    doubts: tuple[str, ...]


def describe_mat(path: Path, order: Order, key: str | None) -> MatCube:
    """What `read_mat` would read; raises as it does."""
    with _contents(path) as contents:
        chosen, axes, doubts = _chosen(contents, order, key, path)
        bands, lines, samples = (chosen.shape[axes.index(axis)] if axis in axes else 1 for axis in AXES)
        return MatCube(chosen.name, (bands, lines, samples), np.dtype(NUMERIC[chosen.kind]), doubts)


@contextmanager
def _contents(path: Path) -> Iterator[Contents]:
    with opened(path) as (file, size):
        head = file.read(HEADER_BYTES)
        if is_hdf5(file, size):
            with opened_hdf5(path, size, head) as contents:
                yield contents
        else:
            yield Level5(file, size, path, head)


def _chosen(contents: Contents, order: Order, key: str | None, path: Path) -> tuple[Variable, Order, tuple[str, ...]]:
    """The array, with the shape that its cube has there, the order of its axes, and what is doubtful of them."""
    variable, size = _Choice(contents, path, key, len(order)).made()
    shape, doubts = variable.shape, [contents.doubt(variable, order, unfolded=size is not None)]
    if size is not None:
        axes, (shape, order, doubt) = order, _unfolded(variable, size, order, path)
        check_plane(shape[order.index("bands")], axes, path)
        doubts.append(doubt)
    check_shape(shape, path=path, key=variable.name, axes=len(order))
    return replace(variable, shape=shape), order, tuple(filter(None, doubts))


def _unfolded(variable: Variable, size: _Size, order: Order, path: Path) -> tuple[tuple[int, ...], Order, str | None]:
    """Shape and order of axes that MATLAB's `reshape` gives a 2-D array of pixels, and what is doubtful of them."""
    name, pixels, told = variable.name, prod(size), f"{size[0]}x{size[1]}"
    if pixels not in variable.shape:
        raise CubeFileError(
            f"{variable} has no axis of {told} = {pixels} pixels",
            file=path,
            key="key",
            value=f"{name}:{told}",
            remedy=f"tell lines and samples whose product is {_either(variable)}",
        )
    first, second = (axis for axis in order if axis != "bands")
    orders: list[Order] = [(first, second, "bands"), ("bands", first, second)]
    either = variable.shape == (pixels, pixels)
    bands_first = order[0] == "bands" if either else variable.shape[1] == pixels
    lengths = {"lines": size[0], "samples": size[1], "bands": variable.shape[not bands_first]}
    doubt = f"either axis of {name} may be its pixels: --layout {','.join(orders[not bands_first])} takes the other one"
    chosen = orders[bands_first]
    return tuple(lengths[axis] for axis in chosen), chosen, doubt if either else None


@dataclass(frozen=True)
class _Choice:
    """Which array of a file a key names; `axes` is how many it has unless its size is told."""

    contents: Contents
    path: Path
    key: str | None
    axes: int

    def made(self) -> tuple[Variable, _Size | None]:
        """The array, and the size that was told with it: then it has two axes. Raises CubeFileError."""
        if self.key is None:
            cubes = [variable for variable in self.top if self._fits(variable)]
            if len(cubes) == 1:
                return cubes[0], None
            raise self._not_one()
        named, size = self._named(self.key), None
        if not named and ":" in self.key:
            name, _, text = self.key.rpartition(":")
            if named := self._named(name):
                size = self._size(name, text)
        if len(named) != 1:
            raise self._not_named(several=bool(named))
        if not named[0].has_axes(2 if size else self.axes):
            raise self._no_cube(named[0], size)
        return named[0], size

    @cached_property
    def top(self) -> Sequence[Variable]:
        return self.contents.top()

    def _fits(self, variable: Variable) -> bool:
        """Whether it may be what is looked for where nobody says: scalars and vectors of MATLAB are 2-D, too."""
        return variable.has_axes(3) if self.axes == 3 else _is_flat(variable)

    def _named(self, key: str) -> list[Variable]:
        names = (key, key.lstrip("/").replace("/", "."))
        around = [v for v in self.top if any(name.startswith(f"{v.name}.") for name in names)]
        fields = islice(chain.from_iterable(map(self.contents.inside, around)), MOST_HELD)
        return [v for v in self.top if v.name in names] or [v for v in fields if v.name in names]

    def _size(self, name: str, text: str) -> _Size:
        match = re.fullmatch(r"([1-9]\d{0,9})x([1-9]\d{0,9})", text, re.ASCII)
        if match is None:
            remedy = f"tell lines and samples of the image, as in --key {name}:307x307"
            raise CubeFileError("is not the size of an image", file=self.path, key="key", value=text, remedy=remedy)
        return int(match[1]), int(match[2])

    @cached_property
    def _everything(self) -> list[Variable]:
        """The variables, each followed by what is in it; of hostile files not all."""
        found: list[Variable] = []
        for variable in self.top:
            found += self._with_fields(variable, max(0, MOST_HELD - len(found)))
        return found

    def _with_fields(self, variable: Variable, most: int) -> list[Variable]:
        try:
            return [variable, *islice(self.contents.inside(variable), most)]
        except CubeFileError:
            return [replace(variable, kind=f"unreadable {variable.kind}")]

    def _not_one(self) -> CubeFileError:
        cubes = [variable for variable in self._everything if self._fits(variable)]
        flat = max(filter(_is_flat, self._everything), key=lambda variable: prod(variable.shape), default=None)
        if cubes:
            outside = any(len(variable.path) == 1 for variable in cubes)
            kind = f"{self.axes}-D numeric array"
            what = f"{len(cubes)} {kind}s" if outside else f"no {kind} but in structs or groups"
            problem, remedy = f"{what}: {_listed(cubes)}", f"name one of them, as in --key {plain(cubes[0].name)}"
        else:
            problem = f"no {self.axes}-D numeric array among: {_listed(self._everything) or 'nothing'}"
            remedy = self._as_real() + (f", {AS_PLANE}, or {self._how(flat)}" if flat else "")
            if self.axes == 2 and any(variable.has_axes(3) for variable in self._everything):
                remedy = AS_CUBE
        return CubeFileError(problem, file=self.path, key="key", remedy=remedy)

    def _as_real(self) -> str:
        """How to save the cube, by what is there in its place."""
        held = [v for v in self._everything if 0 not in v.shape and v.kind not in ("logical", "char")]
        deep = next((v for v in held if len(v.shape) == 3), None)
        nest = next((v for v in held if v.kind in ("cell", "struct array")), None)
        if deep is not None:
            return f"save it as real numbers, as in cube = single(real({deep.name}))"
        if nest is not None:
            inside = f"{nest.name}{{1}}" if nest.kind == "cell" else f"{nest.name}(1)"
            return f"save one cube by itself, as in cube = {inside} or a field of it"
        return f"save the cube as a {self.axes}-D array"

    def _not_named(self, *, several: bool) -> CubeFileError:
        for variable in self._everything:
            within = f"{self.key}".startswith(f"{variable.name}.")
            if within and variable.kind == "struct" and prod(variable.shape) != 1:
                return self._in_structs(variable, variable.name)
        listed = _listed([variable for variable in self._everything if self._fits(variable)] or self._everything)
        return CubeFileError(
            "is there several times" if several else "no such variable in the file",
            file=self.path,
            key="key",
            value=self.key,
            remedy=f"choose one of: {listed}" if listed else "the file holds no variables",
        )

    def _no_cube(self, variable: Variable, size: _Size | None) -> CubeFileError:
        fields = [held for held in self._everything if self._fits(held) and held.name.startswith(f"{variable.name}.")]
        problem = f"{variable} is not a {2 if size else self.axes}-D array of real numbers"
        remedy = "choose another or save it as one"
        if variable.kind == "link":
            problem, remedy = "is a link to another place", "save the array itself into the file"
        elif variable.kind == "struct array":
            return self._in_structs(variable, ".".join(variable.path[:-1]))
        elif fields:
            remedy = f"choose one of: {_listed(fields)}"
        elif variable.has_axes(3):
            remedy = f"name it without a size: {variable.name}" if size else AS_CUBE
        elif _is_flat(variable):
            remedy = f"save it as one, {AS_PLANE}, or {self._how(variable)}"
        return CubeFileError(problem, file=self.path, key=self.key, remedy=remedy)

    def _in_structs(self, variable: Variable, structs: str) -> CubeFileError:
        problem, remedy = f"is in an array of structs: {variable}", f"save one by itself, as in one = {structs}(1)"
        return CubeFileError(problem, file=self.path, key="key", value=self.key, remedy=remedy)

    def _how(self, flat: Variable) -> str:
        """How to tell the size of a 2-D array's image: with the numbers, where those beside it tell some that fit."""
        beside = {
            variable.path[-1].lower().replace("_", ""): variable
            for variable in self._everything
            if variable.path[:-1] == flat.path[:-1] and variable.kind in NUMERIC and prod(variable.shape) == 1
        }
        how = f"if one axis of {flat.name} is all pixels of an image, name it with its"
        for pair in product(_LINES, _SAMPLES):
            with suppress(CubeFileError, KeyError, ValueError, OverflowError):
                told = [beside[name] for name in pair]
                lines, samples = (int(self.contents.values(variable)[0].item()) for variable in told)
                if lines > 0 and lines * samples in flat.shape:
                    said = " and ".join(variable.name for variable in told)
                    return f"{how} lines and samples, as {said} tell: --key {flat.name}:{lines}x{samples}"
        return f"{how} lines and samples: --key {flat.name}:LINESxSAMPLES ({_either(flat)} pixels)"


def _listed(variables: Sequence[Variable]) -> str:
    return ", ".join([str(variable) for variable in variables if variable.name][:_MOST_LISTED])


def _is_flat(variable: Variable) -> bool:
    return variable.has_axes(2) and 1 not in variable.shape


def _either(flat: Variable) -> str:
    return " or ".join(dict.fromkeys(map(str, flat.shape)))
