"""HDF5 files: data sets read within bounds, as MATLAB 7.3 and NetCDF-4 keep their arrays.

Chunks are taken as stored and inflated here, since HDF5's own filter inflates without a bound and loads plug-ins.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import allocated, check_expansion
from runtime.files.layout import check_shape, check_type

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}


@dataclass(frozen=True)
class Where:
    """A data set, for errors.

    Attributes:
        path, name: of its file, of itself.
        kind: what wrote the file.
        mend: how to write it again.
    """

    path: Path
    name: str
    kind: str = "HDF5"
    mend: str = "save it again, without compression or with deflate"

    def refused(self, problem: str, remedy: str = "", value: object = None) -> CubeFileError:
        """The data set cannot be taken as it is."""
        return CubeFileError(problem, file=self.path, key=self.name, value=value, remedy=remedy or self.mend)

    def damaged(self, why: str) -> CubeFileError:
        """It is not what it says."""
        return self.refused(f"is no valid {self.kind} file: {why}")


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


def read_dataset(dataset: Any, size: int, where: Where) -> NDArray[Any]:
    """The values of an h5py data set with three axes, in its order of axes and its own type.

    Args:
        size: bytes of its file.

    Raises:
        CubeFileError: it is damaged or holds none; its values lie elsewhere, or are compressed in a way that is not
            undone here; it expands beyond the bound of `disk.check_expansion` or does not fit into memory.
    """
    if dataset.is_virtual or dataset.external:
        raise where.refused("its values lie in other files", "save the array itself into the file")
    path, name = where.path, where.name
    check_type(dataset.dtype, path=path, key=name)
    check_shape(dataset.shape, path=path, key=name)
    stored = min(dataset.id.get_storage_size(), size)
    if stored == 0:
        raise where.refused("holds no values", "save it again")
    expanded = prod(dataset.shape) * dataset.dtype.itemsize
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    if any(number not in _FILTERS for number in filters):
        raise where.refused(f"is compressed in a way {where.kind} does not write", value=filters)
    if dataset.chunks is None:
        if expanded > stored:
            raise where.damaged(f"{stored} bytes for {list(dataset.shape)} of {dataset.dtype}")
        array = allocated(path, dataset.shape, dataset.dtype, copies=2)
        dataset.read_direct(array)
        return array
    check_expansion(path, max(expanded, prod(dataset.chunks) * dataset.dtype.itemsize), stored, key=name)
    array = allocated(path, dataset.shape, dataset.dtype, copies=2)
    _read_chunks(dataset, array, filters, size, where)
    return array


def _read_chunks(dataset: Any, array: NDArray[Any], filters: list[int], size: int, where: Where) -> None:
    chunk = dataset.chunks
    if dataset.id.get_num_chunks() != prod(-(-length // step) for length, step in zip(array.shape, chunk, strict=True)):
        raise where.refused("some of its values were never written", "save it again")
    for corner in product(*(range(0, length, step) for length, step in zip(array.shape, chunk, strict=True))):
        info = dataset.id.get_chunk_info_by_coord(corner)
        if info.byte_offset is None or info.byte_offset + info.size > size:
            raise where.damaged(f"the chunk at {list(corner)} lies outside the file")
        mask, raw = dataset.id.read_direct_chunk(corner)
        values = _unfiltered(raw, mask, filters, chunk, array.dtype, where)
        inside = tuple(
            slice(start, min(start + step, length))
            for start, step, length in zip(corner, chunk, array.shape, strict=True)
        )
        array[inside] = values[tuple(slice(0, part.stop - part.start) for part in inside)]


def _unfiltered(
    raw: bytes, mask: int, filters: list[int], chunk: tuple[int, ...], dtype: np.dtype[Any], where: Where
) -> NDArray[Any]:
    """A chunk's values: the filters undone, the last one first, none allowed to give more than the chunk holds."""
    expected = prod(chunk) * dtype.itemsize
    for index in reversed(range(len(filters))):
        if mask >> index & 1:
            continue
        kind = _FILTERS[filters[index]]
        if kind == "fletcher32":
            raw = raw[:-4]
        elif kind == "deflate":
            inflater = zlib.decompressobj()
            # A checksum may have been stored before the deflation, behind the values.
            raw = inflater.decompress(raw, expected + 5)
            if not inflater.eof:
                raise where.damaged(f"a chunk inflates beyond its {expected} bytes or is cut short")
        elif len(raw) == expected:
            raw = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
    if len(raw) != expected:
        raise where.damaged(f"a chunk holds {len(raw)} bytes instead of {expected}")
    return np.frombuffer(raw, dtype).reshape(chunk)
