"""HDF5 files: data sets read within bounds, as MATLAB 7.3 keeps its arrays.

Chunks are taken as stored and inflated here, since HDF5's own filter inflates without a bound and loads plug-ins.
"""

import zlib
from itertools import product
from math import prod
from pathlib import Path
from struct import unpack
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import allocated, check_expansion
from runtime.files.layout import check_type

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
MEND = "save it again with save -v7 or -v7.3"
BLOCK, MODULUS = 1 << 20, 65535
"""Words of a checksum that are summed at a time, and what the sums are taken modulo."""
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}


def damaged(path: Path, why: str, key: str | None = None) -> CubeFileError:
    """The file, or its variable `key`, is not what it says."""
    return CubeFileError(f"is no valid MATLAB file: {why}", file=path, key=key, remedy=MEND)


def is_hdf5(file: BinaryIO, size: int) -> bool:
    """Whether a file of `size` bytes is HDF5."""
    # The format allows the signature at 0, 512 and every doubling of it; MATLAB uses 512.
    offset = 0
    while offset + len(_SIGNATURE) <= size:
        file.seek(offset)
        if file.read(len(_SIGNATURE)) == _SIGNATURE:
            return True
        offset = max(512, offset * 2)
    return False


def read_dataset(dataset: Any, size: int, path: Path, name: str) -> NDArray[Any]:
    """The values of an h5py data set, in its order of axes and its own type.

    Args:
        size: bytes of its file.
        path, name: of its file and of itself, for errors.

    Raises:
        CubeFileError: it is damaged or holds none; its values lie elsewhere, or are compressed in a way that is not
            undone here; it expands beyond the bound of `disk.check_expansion` or does not fit into memory.
    """
    if dataset.is_virtual or dataset.external:
        remedy = "save the array itself into the file"
        raise CubeFileError("its values lie in other files", file=path, key=name, remedy=remedy)
    check_type(dataset.dtype, path=path, key=name)
    stored = min(dataset.id.get_storage_size(), size)
    if stored == 0:
        raise CubeFileError("holds no values", file=path, key=name, remedy="save it again")
    expanded = prod(dataset.shape) * dataset.dtype.itemsize
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    if any(number not in _FILTERS for number in filters):
        problem = "is compressed in a way MATLAB does not write"
        raise CubeFileError(problem, file=path, key=name, value=filters, remedy=MEND)
    if dataset.chunks is None:
        if expanded > stored:
            raise damaged(path, f"{stored} bytes for {list(dataset.shape)} of {dataset.dtype}", name)
        array = allocated(path, dataset.shape, dataset.dtype, copies=2)
        dataset.read_direct(array)
        return array
    check_expansion(path, max(expanded, prod(dataset.chunks) * dataset.dtype.itemsize), stored, key=name)
    array = allocated(path, dataset.shape, dataset.dtype, copies=2)
    _read_chunks(dataset, array, filters, size, path, name)
    return array


def _read_chunks(dataset: Any, array: NDArray[Any], filters: list[int], size: int, path: Path, name: str) -> None:
    chunk = dataset.chunks
    if dataset.id.get_num_chunks() != prod(-(-length // step) for length, step in zip(array.shape, chunk, strict=True)):
        raise CubeFileError("some of its values were never written", file=path, key=name, remedy="save it again")
    for corner in product(*(range(0, length, step) for length, step in zip(array.shape, chunk, strict=True))):
        info = dataset.id.get_chunk_info_by_coord(corner)
        if info.byte_offset is None or info.byte_offset + info.size > size:
            raise damaged(path, f"the chunk at {list(corner)} lies outside the file", name)
        mask, raw = dataset.id.read_direct_chunk(corner)
        values = _unfiltered(raw, mask, filters, chunk, array.dtype, path, name)
        inside = tuple(
            slice(start, min(start + step, length))
            for start, step, length in zip(corner, chunk, array.shape, strict=True)
        )
        array[inside] = values[tuple(slice(0, part.stop - part.start) for part in inside)]


def _fletcher32(raw: bytes) -> tuple[int, int]:
    """The two sums of HDF5's checksum (H5_checksum_fletcher32), modulo `MODULUS`: of words, of their running sums."""
    words = np.frombuffer(raw + b"\0" * (len(raw) % 2), ">u2")
    first = second = 0
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK].astype(np.int64)
        left = np.arange(len(words) - start, len(words) - start - len(block), -1) % MODULUS
        first, second = first + int(block.sum()), second + int((block * left).sum())
    return first % MODULUS, second % MODULUS


def _unfiltered(
    raw: bytes, mask: int, filters: list[int], chunk: tuple[int, ...], dtype: np.dtype[Any], path: Path, name: str
) -> NDArray[Any]:
    """A chunk's values: the filters undone, the last one first, none allowed to give more than the chunk holds."""
    expected = prod(chunk) * dtype.itemsize
    for index in reversed(range(len(filters))):
        if mask >> index & 1:
            continue
        kind = _FILTERS[filters[index]]
        if kind == "fletcher32":
            raw, stored = raw[:-4], raw[-4:]
            # Some versions of HDF5 wrote the bytes of each half in the other order.
            if len(stored) < 4 or _fletcher32(raw) not in [
                tuple(half % MODULUS for half in unpack(order, stored)) for order in ("<HH", ">HH")
            ]:
                raise damaged(path, "the checksum of a chunk is not that of its values", name)
        elif kind == "deflate":
            inflater = zlib.decompressobj()
            # A checksum may have been stored before the deflation, behind the values.
            raw = inflater.decompress(raw, expected + 5)
            if not inflater.eof:
                raise damaged(path, f"a chunk inflates beyond its {expected} bytes or is cut short", name)
        else:
            # A checksum may have been stored before the shuffle, whose bytes beyond whole elements stay where they are.
            rest = len(raw) - len(raw) % dtype.itemsize
            raw = np.frombuffer(raw[:rest], np.uint8).reshape(dtype.itemsize, -1).T.tobytes() + raw[rest:]
    if len(raw) != expected:
        raise damaged(path, f"a chunk holds {len(raw)} bytes instead of {expected}", name)
    return np.frombuffer(raw, dtype).reshape(chunk)
