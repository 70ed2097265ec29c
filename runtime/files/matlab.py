"""MATLAB files: the one 3-D array of a version 5 or 7.3 file, nothing else is looked into.

Version 5 ("MAT-File Level 5", MathWorks' "MAT-File Format") is walked here tag by tag, not by `scipy.io.loadmat`,
which allocates what a tag claims and instantiates objects. Version 7.3 is HDF5, see `hdf5`.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import allocated, check_expansion, fill, opened, reason
from runtime.files.hdf5 import damaged, is_hdf5, read_dataset
from runtime.files.layout import Order, check_shape, to_cube

_Endian = Literal["little", "big"]

_HEADER_BYTES = 128

_MATRIX, _COMPRESSED = 14, 15
_STORED_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC = {"double": "f8", "single": "f4"} | {
    f"{sign}int{8 * n}": f"{sign or 'i'}{n}" for n in (1, 2, 4, 8) for sign in ("", "u")
}
_CLASSES = dict(enumerate(("cell", "struct", "object", "char", "sparse", *_NUMERIC, "function", "opaque"), start=1))
_COMPLEX, _LOGICAL = 0x0800, 0x0200

_NAME_BYTES = 4096
_MOST_DIMENSIONS = 32


@dataclass(frozen=True)
class _Variable:
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int = 0
    size: int = 0
    compressed: bool = False

    def is_cube(self) -> bool:
        return self.kind in _NUMERIC and len(self.shape) == 3

    def __str__(self) -> str:
        return f"{self.name} ({'x'.join(map(str, self.shape)) + ' ' if self.shape else ''}{self.kind})"


def read_mat(path: Path, order: Order, key: str | None) -> NDArray[Any]:
    """The cube of a MATLAB file of version 5 to 7.3, as `arrays.read_npy` gives one.

    Args:
        order: of the cube's axes, as MATLAB shows them.
        key: the variable's name; None takes the only 3-D numeric array there is.

    Raises:
        CubeFileError: it is no such file or damaged; there is no such variable, or several to choose from; the variable
            is no 3-D array of real numbers; it is linked from elsewhere; it expands beyond the bound of
            `disk.check_expansion` or does not fit into memory.
    """
    with opened(path) as (file, size):
        head = _take(file.read, min(size, _HEADER_BYTES), path, "it")
        if is_hdf5(file, size):
            return to_cube(_read_hdf5(path, size, key), order)
        array, dtype = _read_level5(file, head, size, path, key)
        return to_cube(array, order, dtype)


def _chosen(variables: Sequence[_Variable], key: str | None, path: Path) -> _Variable:
    cubes = [variable for variable in variables if variable.is_cube()]
    listed = ", ".join(map(str, (cubes or variables)[:20]))
    if key is None:
        if len(cubes) == 1:
            return cubes[0]
        raise CubeFileError(
            f"{len(cubes)} 3-D numeric arrays: {listed}"
            if cubes
            else f"no 3-D numeric array among: {listed or 'nothing'}",
            file=path,
            key="key",
            remedy="name one of them as key" if cubes else "save the cube as a 3-D array",
        )
    named = [variable for variable in variables if variable.name == key]
    if len(named) != 1:
        raise CubeFileError(
            "is there several times" if named else "no such variable in the file",
            file=path,
            key="key",
            value=key,
            remedy=f"choose one of: {listed}" if listed else "the file holds no variables",
        )
    if not named[0].is_cube():
        problem = f"{named[0]} is not a 3-D array of real numbers"
        raise CubeFileError(problem, file=path, key=key, remedy="choose another or save it as one")
    return named[0]


def _read_level5(
    file: BinaryIO, head: bytes, size: int, path: Path, key: str | None
) -> tuple[NDArray[Any], np.dtype[Any]]:
    """The values as stored, in MATLAB's order of axes, and the type they stand for."""
    endian: _Endian | None = {b"IM": "little", b"MI": "big"}.get(head[126:128])  # type: ignore[assignment]
    if endian is None:
        firsts = [[int.from_bytes(head[at : at + 4], order) for at in (0, 4)] for order in ("little", "big")]
        if len(head) >= 20 and any(kind < 5000 and rows > 0 for kind, rows in firsts):
            raise CubeFileError(
                "MATLAB 4 files hold no 3-D arrays", file=path, remedy="save the cube again with save -v7 or -v7.3"
            )
        raise damaged(path, "neither version 5 nor HDF5")
    version = int.from_bytes(head[124:126], endian)
    if version != 0x0100:
        raise damaged(path, f"version {version:#06x} in the header")
    variable = _chosen(list(_walk(file, size, endian, path)), key, path)
    return _payload(file, variable, endian, path)


def _walk(file: BinaryIO, size: int, endian: _Endian, path: Path) -> Iterator[_Variable]:
    """Every top-level variable, by its tag and the first bytes behind it: linear in the number of variables."""
    offset = _HEADER_BYTES
    while offset < size:
        if offset + 8 > size:
            raise damaged(path, f"a tag is cut off at byte {offset}")
        file.seek(offset)
        tag = _take(file.read, 8, path, "it")
        kind, length = int.from_bytes(tag[:4], endian), int.from_bytes(tag[4:], endian)
        start = offset + 8
        if kind not in (_MATRIX, _COMPRESSED):
            raise damaged(path, f"an element of type {kind} at byte {offset} where a variable is expected")
        if start + length > size:
            raise damaged(path, f"the variable at byte {offset} claims {length} bytes, {size - start} are left")
        read = _segment(file, start, length, path, compressed=kind == _COMPRESSED)
        if kind == _COMPRESSED:
            inner = _take(read, 8, path)
            if int.from_bytes(inner[:4], endian) != _MATRIX:
                raise damaged(path, f"the compressed element at byte {offset} is no variable")
        # An element of no bytes is what MATLAB writes for an empty array inside another one.
        if length:
            name, what, shape = _described(read, endian, path)
            yield _Variable(name, what, shape, start, length, kind == _COMPRESSED)
        offset = start + length


def _segment(file: BinaryIO, start: int, length: int, path: Path, *, compressed: bool) -> Callable[[int], bytes]:
    """A function `read(n)` over `length` bytes from `start`, inflated if compressed: 1..n bytes, or none at the end."""
    position = start

    def stored(count: int) -> bytes:
        nonlocal position
        count = min(count, start + length - position)
        if count <= 0:
            return b""
        file.seek(position)
        piece = file.read(count)
        position += len(piece)
        return piece

    if not compressed:
        return stored
    inflater = zlib.decompressobj()

    def inflated(count: int) -> bytes:
        while not inflater.eof:
            source = inflater.unconsumed_tail or stored(min(max(count, 512), 1 << 16))
            try:
                piece = inflater.decompress(source, count)
            except zlib.error as error:
                raise damaged(
                    path, f"the variable at byte {start - 8} does not decompress ({reason(error)})"
                ) from error
            if piece:
                return piece
            if not source:
                raise damaged(path, f"the variable at byte {start - 8} is cut short")
        return b""

    return inflated


def _take(read: Callable[[int], bytes], count: int, path: Path, what: str = "a variable") -> bytes:
    data = b""
    while len(data) < count:
        piece = read(count - len(data))
        if not piece:
            raise damaged(path, f"{what} ends too early")
        data += piece
    return data


def _tag(read: Callable[[int], bytes], endian: _Endian, path: Path) -> tuple[int, int, bytes | None]:
    """Type and length of the next element, and its data where the tag itself holds them (1 to 4 bytes)."""
    data = _take(read, 8, path)
    first = int.from_bytes(data[:4], endian)
    if first >> 16:
        length = first >> 16
        if length > 4:
            raise damaged(path, "a small element of more than 4 bytes")
        return first & 0xFFFF, length, data[4 : 4 + length]
    return first, int.from_bytes(data[4:], endian), None


def _small(read: Callable[[int], bytes], endian: _Endian, path: Path, kinds: tuple[int, ...], most: int) -> bytes:
    """The data of the next element, one of `kinds`, at most `most` bytes long."""
    kind, length, data = _tag(read, endian, path)
    if kind not in kinds or length > most:
        raise damaged(path, f"an element of type {kind} and {length} bytes in the head of a variable")
    return _take(read, length + -length % 8, path)[:length] if data is None else data


def _described(read: Callable[[int], bytes], endian: _Endian, path: Path) -> tuple[str, str, tuple[int, ...]]:
    """Name, class and dimensions of the variable whose head `read` gives; it stands at the data afterwards."""
    flags = _small(read, endian, path, (5, 6), 8)
    if len(flags) != 8:
        raise damaged(path, "array flags of a wrong length")
    word = int.from_bytes(flags[:4], endian)
    kind = _CLASSES.get(word & 0xFF, f"class {word & 0xFF}")
    if kind in ("opaque", "function"):
        # These have no dimensions and their names are followed by what is never looked at.
        name = _small(read, endian, path, (1, 2, 16), _NAME_BYTES) if kind == "opaque" else b""
        return _text(name), kind, ()
    raw = _small(read, endian, path, (5, 6), 4 * _MOST_DIMENSIONS)
    shape = tuple(int.from_bytes(raw[i : i + 4], endian, signed=True) for i in range(0, len(raw) - 3, 4))
    if len(shape) < 2 or min(shape) < 0:
        raise damaged(path, f"dimensions {list(shape)}")
    name = _small(read, endian, path, (1, 2, 16), _NAME_BYTES)
    if word & _COMPLEX:
        kind = f"complex {kind}"
    elif word & _LOGICAL:
        kind = "logical"
    return _text(name), kind, shape


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "replace")


def _payload(file: BinaryIO, variable: _Variable, endian: _Endian, path: Path) -> tuple[NDArray[Any], np.dtype[Any]]:
    name = variable.name
    check_shape(variable.shape, path=path, key=name)
    read = _segment(file, variable.offset, variable.size, path, compressed=variable.compressed)
    if variable.compressed:
        _take(read, 8, path)
    _described(read, endian, path)
    kind, length, data = _tag(read, endian, path)
    dtype = np.dtype(_NUMERIC[variable.kind])
    check_expansion(path, prod(variable.shape) * dtype.itemsize, variable.size, key=name)
    if kind not in _STORED_TYPES:
        raise damaged(path, f"values of type {kind}", name)
    stored = np.dtype(("<" if endian == "little" else ">") + _STORED_TYPES[kind])
    if length != prod(variable.shape) * stored.itemsize:
        raise damaged(path, f"{length} bytes for {list(variable.shape)} of {stored}", name)
    array = allocated(path, variable.shape[::-1], stored, copies=1 + -(-dtype.itemsize // stored.itemsize))
    if fill(array, read if data is None else BytesIO(data).read) != array.nbytes:
        raise damaged(path, "it ends before its last element", name)
    if variable.compressed:
        _check_end(read, -length % 8 if data is None else 0, path, name)
    return array.T, dtype


def _check_end(read: Callable[[int], bytes], padding: int, path: Path, name: str) -> None:
    # The checksum of the compressed stream is verified where its end is read.
    rest = 0
    while piece := read(64):
        rest += len(piece)
        if rest > padding:
            raise damaged(path, "more values than its dimensions ask for", name)


def _read_hdf5(path: Path, size: int, key: str | None) -> NDArray[Any]:
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            variables = list(_hdf5_variables(h5py, file))
            if key in list(file) and not isinstance(file.get(key, getlink=True), h5py.HardLink):
                raise CubeFileError(
                    "is a link to another place", file=path, key=key, remedy="save the array itself into the file"
                )
            chosen = _chosen(variables, key, path)
            cube: NDArray[Any] = read_dataset(file[chosen.name], size, path, chosen.name).T
            return cube
    except (CubeFileError, MemoryError):
        raise
    except Exception as error:
        raise CubeFileError(
            f"is damaged: {reason(error)}", file=path, remedy="copy it again or save it again with save -v7.3"
        ) from error


def _hdf5_variables(h5py: Any, file: Any) -> Iterator[_Variable]:
    for name in file:
        if name.startswith("#") or not isinstance(file.get(name, getlink=True), h5py.HardLink):
            continue
        if file.get(name, getclass=True) is not h5py.Dataset:
            yield _Variable(name, "struct", ())
            continue
        dataset = file[name]
        yield _Variable(name, _hdf5_kind(h5py, dataset), tuple(dataset.shape or ())[::-1])


def _hdf5_kind(h5py: Any, dataset: Any) -> str:
    """The MATLAB class: the attribute where there is a plain one, else what the type says."""
    dtype = dataset.dtype
    if h5py.check_ref_dtype(dtype) is not None:
        return "cell"
    if h5py.check_enum_dtype(dtype) is not None or h5py.check_vlen_dtype(dtype) is not None:
        return "special"
    stated = ""
    if "MATLAB_class" in dataset.attrs:
        attribute = dataset.attrs.get_id("MATLAB_class")
        if attribute.shape == () and attribute.dtype.kind == "S" and attribute.dtype.itemsize <= 64:
            stated = bytes(dataset.attrs["MATLAB_class"]).decode("ascii", "replace")
    if stated in ("logical", "char", "cell", "struct", "function_handle") or "MATLAB_empty" in dataset.attrs:
        return stated or "empty"
    names = {name: kind for kind, name in _NUMERIC.items()}
    return names.get(dtype.newbyteorder("=").str[1:], str(dtype))
