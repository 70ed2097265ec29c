"""NumPy files: `.npy` in and out, `.npz` in. No pickle, and nothing is allocated that the file does not hold."""

import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from math import isfinite, prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from runtime.errors import CubeFileError
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
from runtime.files.layout import Order, check_plane, check_shape, check_type, from_cube, to_cube

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
        return to_cube(_array(file, path, size, None, dimensions=len(order)), order)


def read_npz(path: Path, order: Order, key: str | None) -> tuple[NDArray[Any], tuple[float, ...] | None]:
    """The cube of a `.npz` file, as `read_npy` gives it, and its array `wavelength_nm` in nanometres, None without one.

    Args:
        key: the array's name, `cube` if None.

    Raises:
        CubeFileError: as `read_npy`; there is no such array; it expands beyond the bound of `disk.check_expansion`.
    """
    name = "cube" if key is None else key
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
            names = sorted(member.removesuffix(".npy") for member in members if member.endswith(".npy"))
            if f"{name}.npy" not in members:
                raise CubeFileError(
                    "no such array in the file",
                    file=path,
                    key="key",
                    value=name,
                    remedy="choose one of " + ", ".join(names[:20]) if names else "it holds no arrays",
                )
            cube = to_cube(_member(archive, members[f"{name}.npy"], path, size, name, dimensions=len(order)), order)
            if f"{WAVELENGTH_KEY}.npy" not in members or name == WAVELENGTH_KEY:
                return cube, None
            values = _member(archive, members[f"{WAVELENGTH_KEY}.npy"], path, size, WAVELENGTH_KEY, dimensions=1)
    return cube, _wavelengths(values, cube.shape[0], path)


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


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, size: int, key: str, *, dimensions: int
) -> NDArray[Any]:
    if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CubeFileError(
            "is encrypted or compressed in an unusual way", file=path, key=key, remedy="write it with numpy.savez"
        )
    check_expansion(path, member.file_size, min(member.compress_size, size), key=key)
    try:
        with archive.open(member) as stream:
            array = _array(cast(BinaryIO, stream), path, member.file_size, key, dimensions=dimensions)
            # The checksum is verified where the end is read.
            if stream.read(1):
                raise zipfile.BadZipFile("it is longer than the archive says")
            return array
    except (CubeFileError, OSError):
        raise
    except Exception as error:
        raise _damaged(path, key, error) from error


def _damaged(path: Path, key: str | None, error: Exception) -> CubeFileError:
    return CubeFileError(
        f"is damaged: {reason(error)}", file=path, key=key, remedy="copy it again or write it with numpy"
    )


def _array(file: BinaryIO, path: Path, size: int, key: str | None, *, dimensions: int) -> NDArray[Any]:
    """The array of a `.npy` stream of `size` bytes, in the axes and byte order of the file."""
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
    array = allocated(path, shape[::-1] if fortran else shape, dtype, copies=2)

    def read(count: int) -> bytes:
        return head.read(count) or file.read(count)

    if fill(array, read) != array.nbytes:
        raise CubeFileError("ends before its last element", file=path, key=key, remedy="copy it again")
    return array.T if fortran else array


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
    array = from_cube(cube, order)
    header = {"descr": npy.dtype_to_descr(cube.dtype), "fortran_order": False, "shape": array.shape}
    step = max(1, PIECE // (prod(array.shape[1:]) * array.itemsize))

    def write(file: BinaryIO) -> None:
        npy.write_array_header_1_0(file, header)
        for first in range(0, array.shape[0], step):
            block = np.ascontiguousarray(array[first : first + step])
            file.write(block.data)

    write_together([(path, write)])
