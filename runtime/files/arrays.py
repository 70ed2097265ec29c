"""NumPy files: `.npy` in and out, `.npz` in. No pickle, and nothing is allocated that the file does not hold."""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite, prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from runtime.errors import CubeFileError, DeployError
from runtime.files.disk import (
    MOST_HELD,
    PIECE,
    allocated,
    check_expansion,
    check_held,
    fill,
    opened,
    reason,
    refuse_inputs,
    write_together,
)
from runtime.files.layout import AXES, Order, check_plane, check_shape, check_type, from_cube, to_cube
from runtime.files.rows import Rows, read_rows, write_rows

HEADER_BYTES = 10_000
WAVELENGTH_KEY = "wavelength_nm"

_ENCRYPTED = 0x1


def read_npy(path: Path, order: Order) -> NDArray[Any]:
    """The cube of a `.npy` file with its axes in `order`.

    Returns:
        [bands, lines, samples] in native byte order and the file's own type, C-contiguous.

    Raises:
        CubeFileError: it is no `.npy` file, needs pickle, is not an array of real numbers with the axes of `order`, its
            size is not what its header says, or it does not fit into memory.
    """
    with opened(path) as (file, size):
        rows = npy_rows(file, path, size, order)
        if rows.depth < 2:
            return read_rows(file, path, rows, 0, rows.shape[1])
        # Lines that are the fastest axis are read whole, and turned.
        file.seek(0)
        return to_cube(_array(file, path, size, None, dimensions=len(order)), order)


def npy_rows(file: BinaryIO, path: Path, size: int, order: Order, key: str | None = None) -> Rows:
    """How the cube of a `.npy` stream of `size` bytes lies in it; raises as `read_npy` does. Its numbers come next."""
    head, shape, fortran, dtype = _head(file, path, size, key, dimensions=len(order))
    return rows_of(shape, order, dtype, head.tell(), fortran=fortran)


def rows_of(
    shape: Sequence[int], order: Order, dtype: np.dtype[Any], offset: int = 0, *, fortran: bool = False
) -> Rows:
    """How an array of this shape, with its axes in `order`, lies in a file."""
    axes, lengths = (tuple(order[::-1]), tuple(shape[::-1])) if fortran else (tuple(order), tuple(shape))
    if len(axes) == 2:
        axes, lengths = ("bands", *axes), (1, *lengths)
    bands, lines, samples = (lengths[axes.index(axis)] for axis in AXES)
    return Rows((bands, lines, samples), axes, dtype, offset)


def read_npz(path: Path, order: Order, key: str | None) -> tuple[NDArray[Any], tuple[float, ...] | None]:
    """The cube of a `.npz` file, as `read_npy` gives it, and its array `wavelength_nm` in nanometres, None without one.

    Args:
        key: the array's name, `cube` if None.

    Raises:
        CubeFileError: as `read_npy`; there is no such array; it expands beyond the bound of `disk.check_expansion`.
    """
    with _opened_npz(path) as members:
        with members.whole(members.name(key)) as (stream, size):
            cube = to_cube(_array(stream, path, size, members.name(key), dimensions=len(order)), order)
        return cube, members.wavelengths(members.name(key), len(cube))


def npz_rows(path: Path, order: Order, key: str | None) -> tuple[Rows, tuple[float, ...] | None]:
    """How the cube of a `.npz` file lies in its array, and its wavelengths; raises as `read_npz` does."""
    with _opened_npz(path) as members:
        with members.opened(members.name(key)) as (stream, size):
            rows = npy_rows(stream, path, size, order, members.name(key))
        return rows, members.wavelengths(members.name(key), rows.shape[0])


def unpack_npz(path: Path, key: str | None, write: Callable[[bytes], object]) -> None:
    """Hand on the bytes of a `.npz` file's array, its header among them. Raises CubeFileError as `read_npz`."""
    with _opened_npz(path) as members, members.whole(members.name(key)) as (stream, size):
        while size and (piece := stream.read(min(PIECE, size))):
            write(piece)
            size -= len(piece)
        if size:
            raise CubeFileError("ends before its last element", file=path, key=key, remedy="copy it again")


class _Members(NamedTuple):
    """The arrays of a `.npz` file that is open."""

    path: Path
    size: int
    archive: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]

    def name(self, key: str | None) -> str:
        """That of the cube; CubeFileError where there is no such array."""
        name = "cube" if key is None else key
        names = sorted(member.removesuffix(".npy") for member in self.members if member.endswith(".npy"))
        if name not in names:
            raise CubeFileError(
                "no such array in the file",
                file=self.path,
                key="key",
                value=name,
                remedy="choose one of " + ", ".join(names[:20]) if names else "it holds no arrays",
            )
        return name

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """An array's bytes, and how many there are; what goes wrong in the block is a CubeFileError."""
        member = self.members[f"{name}.npy"]
        if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CubeFileError(
                "is encrypted or compressed in an unusual way",
                file=self.path,
                key=name,
                remedy="write it with numpy.savez",
            )
        check_expansion(self.path, member.file_size, min(member.compress_size, self.size), key=name)
        try:
            with self.archive.open(member) as stream:
                yield cast(BinaryIO, stream), member.file_size
        except (DeployError, OSError):
            raise
        except Exception as error:
            raise _damaged(self.path, name, error) from error

    @contextmanager
    def whole(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """The same for who reads it to its end, where its checksum is verified."""
        with self.opened(name) as (stream, size):
            yield stream, size
            if stream.read(1):
                raise zipfile.BadZipFile("it is longer than the archive says")

    def wavelengths(self, cube: str, bands: int) -> tuple[float, ...] | None:
        if f"{WAVELENGTH_KEY}.npy" not in self.members or cube == WAVELENGTH_KEY:
            return None
        with self.whole(WAVELENGTH_KEY) as (stream, size):
            values = _array(stream, self.path, size, WAVELENGTH_KEY, dimensions=1)
        return _wavelengths(values, bands, self.path)


@contextmanager
def _opened_npz(path: Path) -> Iterator[_Members]:
    with opened(path) as (file, size):
        try:
            reader = _Listed(cast(io.RawIOBase, file))
            archive = zipfile.ZipFile(reader)
            reader.most = size
        except Exception as error:
            raise _damaged(path, None, error) from error
        with archive:
            check_held(path, len(archive.infolist()))
            members = {member.filename: member for member in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise CubeFileError("two arrays have the same name", file=path, remedy="write the file again")
            yield _Members(path, size, archive, members)


class _Listed(io.BufferedReader):
    """An archive whose list of members, which `zipfile` reads at once, must not be longer than that of many arrays."""

    most = MOST_HELD << 8

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise ValueError(f"its list of arrays takes {size} bytes")
        return super().read(size)


def _wavelengths(values: NDArray[Any], bands: int, path: Path) -> tuple[float, ...]:
    wavelengths = tuple(float(value) for value in values)
    if len(wavelengths) != bands:
        raise CubeFileError(
            f"has {len(wavelengths)} values for {bands} bands",
            file=path,
            key=WAVELENGTH_KEY,
            remedy="correct the list, or the layout if the cube's axes are in another order",
        )
    if not all(map(isfinite, wavelengths)):
        raise CubeFileError(
            "holds values that are not finite", file=path, key=WAVELENGTH_KEY, remedy="correct the list"
        )
    return wavelengths


def _damaged(path: Path, key: str | None, error: Exception) -> CubeFileError:
    return CubeFileError(
        f"is damaged: {reason(error)}", file=path, key=key, remedy="copy it again or write it with numpy"
    )


def _array(file: BinaryIO, path: Path, size: int, key: str | None, *, dimensions: int) -> NDArray[Any]:
    """The array of a `.npy` stream of `size` bytes, in the axes and byte order of the file."""
    head, shape, fortran, dtype = _head(file, path, size, key, dimensions=dimensions)
    array = allocated(path, shape[::-1] if fortran else shape, dtype, copies=2)

    def read(count: int) -> bytes:
        return head.read(count) or file.read(count)

    if fill(array, read) != array.nbytes:
        raise CubeFileError("ends before its last element", file=path, key=key, remedy="copy it again")
    return array.T if fortran else array


def _head(
    file: BinaryIO, path: Path, size: int, key: str | None, *, dimensions: int
) -> tuple[io.BytesIO, tuple[int, ...], bool, np.dtype[Any]]:
    """The first bytes, read as far as the header, and the array's shape, order and type, checked."""
    head = io.BytesIO(_read_up_to(file, min(size, HEADER_BYTES + 12)))
    shape, fortran, dtype = _header(head, path, key)
    check_type(dtype, path=path, key=key)
    if dimensions > 1:
        check_shape(shape, path=path, key=key, axes=dimensions)
    elif len(shape) != dimensions or 0 in shape:
        raise CubeFileError(
            f"must have {dimensions} axis", file=path, key=key, value=list(shape), remedy="correct the array"
        )
    expected = head.tell() + prod(shape) * dtype.itemsize
    if expected != size:
        raise CubeFileError(
            f"holds {size} bytes, its header asks for {expected} ({list(shape)} of {dtype})",
            file=path,
            key=key,
            remedy="copy it again; one array only can be in it",
        )
    return head, shape, fortran, dtype


def _read_up_to(file: BinaryIO, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := file.read(count - len(data))):
        data += piece
    return data


def _header(head: BinaryIO, path: Path, key: str | None) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = npy.read_magic(head)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"unknown version {version}")
        # Version 3 differs from 2 in the encoding of field names only, and arrays with fields are refused.
        read: Callable[..., Any] = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran, dtype = read(head, max_header_size=HEADER_BYTES)
        return tuple(int(length) for length in shape), bool(fortran), dtype
    except Exception as error:
        raise CubeFileError(
            f"is not a NumPy array file: {reason(error)}", file=path, key=key, remedy="write it with numpy.save"
        ) from error


def write_npy(path: Path, cube: NDArray[Any], order: Order, inputs: Sequence[Path]) -> None:
    """Write a `.npy` file in one step: it is whole afterwards, or what was there before still is.

    Args:
        cube: [bands, lines, samples], real numbers of at most 8 bytes.
        order: of the axes in the file; of two, where the cube has one band.
        inputs: files that must not be overwritten.

    Raises:
        CubeFileError: the cube is of another kind, the target is an input, or the system refused to write.
    """
    check_type(cube.dtype, path=path)
    check_shape(cube.shape, path=path)
    check_plane(len(cube), order, path)
    refuse_inputs(path, inputs)
    shape = from_cube(cube, order).shape

    def write(file: BinaryIO) -> None:
        write_npy_header(file, shape, cube.dtype)
        write_rows(file, rows_of(shape, order, cube.dtype, file.tell()), 0, cube)

    write_together([(path, write)])


def write_npy_header(file: BinaryIO, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Begin a `.npy` file of an array of this shape, in C order."""
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    npy.write_array_header_1_0(file, header)
    file.flush()
