"""MATLAB files of version 7.3: HDF5, whose groups are structs and whose axes are MATLAB's in reverse."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import check_held, reason
from runtime.files.hdf5 import StoredArray
from runtime.files.layout import Order
from runtime.files.matlab_variables import DEEPEST, MEND, NUMERIC, Variable

_CLASS, _HEADER = "MATLAB_class", b"MATLAB"
_NO_NUMBERS = ("logical", "char", "cell", "struct", "function_handle")
_CLASSES = {kind: name for name, kind in NUMERIC.items()}


class Hdf5:
    """The variables of a version 7.3 file.

    Args:
        file: the open `h5py.File`.
        size, path: its bytes and its path.
        head: its first bytes.
    """

    def __init__(self, file: Any, size: int, path: Path, head: bytes) -> None:
        self._file, self._size, self._path = file, size, path
        self._headed = head.startswith(_HEADER)

    def top(self) -> list[Variable]:
        check_held(self._path, len(self._file))
        return [held for held in _held(self._file, ()) if not held.name.startswith("#")]

    def inside(self, variable: Variable) -> Iterator[Variable]:
        return self._inside(variable, set())

    def _inside(self, variable: Variable, seen: set[Any]) -> Iterator[Variable]:
        # Groups may hold each other: each is looked into once.
        if variable.kind == "struct" and len(variable.path) < DEEPEST and variable.place not in seen:
            seen.add(variable.place)
            for held in _held(variable.place, variable.path):
                yield held
                yield from self._inside(held, seen)

    def values(self, variable: Variable) -> tuple[NDArray[Any], np.dtype[Any]]:
        values = StoredArray(variable.place, self._size, self._path, variable.name, MEND).whole()
        return values.T, values.dtype

    def doubt(self, variable: Variable, order: Order, *, unfolded: bool) -> str | None:
        # MATLAB gives every array a class: one without, among others with it, was added later by another program.
        told = _CLASS in variable.place.attrs or (
            self._headed and not any(_CLASS in other.place.attrs for other in self.top() if other.place is not None)
        )
        if told:
            return None
        return (
            f"nothing in the file says that MATLAB wrote {variable.name}, so its axes may be reversed: "
            f"--layout {','.join(reversed(order))} turns them"
        )


@contextmanager
def opened_hdf5(path: Path, size: int, head: bytes) -> Iterator[Hdf5]:
    """The variables of an HDF5 file while it is open; whatever HDF5 finds wrong is a CubeFileError."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            yield Hdf5(file, size, path, head)
    except (CubeFileError, MemoryError):
        raise
    except Exception as error:
        raise CubeFileError(
            f"is damaged: {reason(error)}", file=path, remedy="copy it again or save it again with save -v7.3"
        ) from error


def _held(group: Any, path: tuple[str, ...]) -> Iterator[Variable]:
    """What a group holds by itself; links are named, never followed."""
    import h5py

    for name in group:
        held, kind, shape = None, "link", ()
        # What cannot be understood stands beside the cube, and does not keep it from being read.
        try:
            if isinstance(group.get(name, getlink=True), h5py.HardLink):
                held = group[name]
                kind, shape = _kind(h5py, held), tuple(getattr(held, "shape", None) or ())[::-1]
        except Exception:
            kind = "unreadable"
        yield Variable((*path, name), kind, shape, held)


def _kind(h5py: Any, held: Any) -> str:
    """The MATLAB class: the attribute where there is a plain one, else what the type says."""
    stated = ""
    if _CLASS in held.attrs:
        attribute = held.attrs.get_id(_CLASS)
        if attribute.shape == () and attribute.dtype.kind == "S" and attribute.dtype.itemsize <= 64:
            stated = bytes(held.attrs[_CLASS]).decode("ascii", "replace")
    if isinstance(held, h5py.Group):
        return "sparse" if "MATLAB_sparse" in held.attrs else stated or "struct"
    dtype = held.dtype
    if h5py.check_ref_dtype(dtype) is not None:
        # A struct that is not 1x1 is a group whose fields have a reference for each element.
        return stated or ("cell" if held.name.count("/") == 1 else "struct array")
    if h5py.check_enum_dtype(dtype) is not None or h5py.check_vlen_dtype(dtype) is not None:
        return "special"
    if stated in _NO_NUMBERS or "MATLAB_object_decode" in held.attrs:
        return stated or "opaque"
    if "MATLAB_empty" in held.attrs:
        return "empty"
    if dtype.names is not None:
        return "complex" if dtype.names == ("real", "imag") else "records"
    return _CLASSES.get(dtype.newbyteorder("=").str[1:], str(dtype))
