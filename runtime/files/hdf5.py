"""HDF5 files: data sets read within bounds, whole or in part.

Chunks are taken as stored and inflated here, since HDF5's own filter inflates without a bound and loads plug-ins.
"""

import zlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from math import prod
from pathlib import Path
from struct import unpack
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import SMALL_EXPANSION, allocated, check_expansion
from runtime.files.layout import check_type

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
BLOCK, MODULUS = 1 << 20, 65535
"""Words of a checksum that are summed at a time, and what the sums are taken modulo."""
MOST_CHUNKS = 1 << 20
"""Chunks that a data set may be cut into: each takes microseconds to look at."""
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
_NAMED = {
    4: "szip",
    5: "nbit",
    6: "scale-offset",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32026: "Blosc2",
}


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


class StoredArray:
    """An h5py data set of numbers that lie in its own file, all of them there. Making it reads none.

    Args:
        dataset: the h5py data set.
        size: bytes of its file.
        path, name: of its file and of itself, for errors.
        mend: what to do where it is damaged or of a kind that is not read.

    Attributes:
        shape, chunks: in the file's order of axes; `chunks` is None where the numbers lie in one piece.
        dtype: in native byte order.

    Raises:
        CubeFileError: its numbers lie elsewhere, are of a type or compressed in a way that is not read, were never
            written, or it claims more than the bounds of `disk.check_expansion`.
    """

    def __init__(self, dataset: Any, size: int, path: Path, name: str, mend: str) -> None:
        self._dataset, self._size, self.path, self.name, self._mend = dataset, size, path, name, mend
        if dataset.is_virtual or dataset.external:
            remedy = "save the array itself into the file"
            raise CubeFileError("its values lie in other files", file=path, key=name, remedy=remedy)
        self._stored = _type_of(dataset, path, name)
        self.dtype = self._stored.newbyteorder("=")
        self._filters = self._pipeline()
        stored = dataset.id.get_storage_size()
        if dataset.shape is None or stored == 0:
            raise CubeFileError("holds no values", file=path, key=name, remedy="save it again")
        self.shape, self.chunks = tuple(dataset.shape), dataset.chunks
        claimed = prod(self.shape) * self.dtype.itemsize
        if self.chunks is None:
            if claimed > stored or (dataset.id.get_offset() or 0) + claimed > size:
                raise self._damaged(f"{stored} bytes for {list(self.shape)} of {self.dtype}")
            return
        check_expansion(path, max(claimed, prod(self.chunks) * self.dtype.itemsize), min(stored, size), key=name)
        self._check_chunks()

    def read(self, box: Sequence[slice], out: NDArray[Any]) -> None:
        """Fill `out`, of any strides, with the numbers within `box`: a slice with both ends along each axis.

        Raises:
            CubeFileError: chunks are damaged, or inflate beyond their size.
            MachineError: a chunk does not fit into memory.
        """
        if self.chunks is None:
            whole = out if out.flags.c_contiguous and out.dtype == self.dtype else np.empty(out.shape, self.dtype)
            self._dataset.read_direct(whole, tuple(box) if box else None)
            if whole is not out:
                out[...] = whole
            return
        starts = (
            range(part.start // step * step, part.stop, step) for part, step in zip(box, self.chunks, strict=True)
        )
        for corner in product(*starts):
            values = self._chunk(corner)
            of_chunk, of_out = [], []
            for part, start, step in zip(box, corner, self.chunks, strict=True):
                low, high = max(part.start, start), min(part.stop, start + step)
                of_chunk.append(slice(low - start, high - start))
                of_out.append(slice(low - part.start, high - part.start))
            out[tuple(of_out)] = values[tuple(of_chunk)]

    def whole(self) -> NDArray[Any]:
        """All of it. Raises as `read`, and MachineError where it does not fit into memory twice."""
        array = allocated(self.path, self.shape, self.dtype, copies=2)
        self.read([slice(0, length) for length in self.shape], array)
        return array

    def _damaged(self, why: str) -> CubeFileError:
        return CubeFileError(f"is damaged: {why}", file=self.path, key=self.name, remedy=self._mend)

    def _pipeline(self) -> list[int]:
        properties = self._dataset.id.get_create_plist()
        filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
        if unknown := [number for number in filters if number not in _FILTERS]:
            raise CubeFileError(
                "is compressed in a way that is not undone here",
                file=self.path,
                key=self.name,
                value=", ".join(_NAMED.get(number, f"filter {number}") for number in unknown),
                remedy=self._mend,
            )
        return filters

    def _check_chunks(self) -> None:
        """Every chunk there once, inside the file. Asked for all at once: each by itself would walk the whole index."""
        grid = [-(-length // step) for length, step in zip(self.shape, self.chunks, strict=True)]
        count = prod(grid)
        if self._dataset.id.get_num_chunks() != count:
            problem, remedy = "some of its values were never written", "save it again"
            raise CubeFileError(problem, file=self.path, key=self.name, remedy=remedy)
        if count > MOST_CHUNKS:
            problem, remedy = f"is cut into more than {MOST_CHUNKS} chunks", "save it again in larger ones"
            raise CubeFileError(problem, file=self.path, key=self.name, value=count, remedy=remedy)
        seen, wrong = np.zeros(grid, np.bool_), []

        def look(info: Any) -> bool | None:
            corner = [divmod(at, step) for at, step in zip(info.chunk_offset, self.chunks, strict=True)]
            place = tuple(at for at, _ in corner)
            inside = all(not rest and at < length for (at, rest), length in zip(corner, grid, strict=True))
            if not inside or info.byte_offset is None or info.byte_offset + info.size > self._size or seen[place]:
                wrong.append(list(info.chunk_offset))
                return True
            seen[place] = True
            return None

        self._dataset.id.chunk_iter(look)
        if wrong or not seen.all():
            raise self._damaged(f"the chunk at {wrong[0]} lies outside the file" if wrong else "it has no such chunks")

    def _chunk(self, corner: tuple[int, ...]) -> NDArray[Any]:
        if prod(self.chunks) * self.dtype.itemsize > SMALL_EXPANSION:
            allocated(self.path, self.chunks, self.dtype, copies=3)
        mask, raw = self._dataset.id.read_direct_chunk(corner)
        values: NDArray[Any] = self._unfiltered(raw, mask).reshape(self.chunks)
        return values

    def _unfiltered(self, raw: bytes, mask: int) -> NDArray[Any]:
        """A chunk's values: the filters undone, the last one first, none allowed to give more than the chunk holds."""
        width = self._stored.itemsize
        expected = prod(self.chunks) * width
        for index in reversed(range(len(self._filters))):
            if mask >> index & 1:
                continue
            kind = _FILTERS[self._filters[index]]
            if kind == "fletcher32":
                raw, stored = raw[:-4], raw[-4:]
                # Some versions of HDF5 wrote the bytes of each half in the other order.
                if len(stored) < 4 or _fletcher32(raw) not in [
                    tuple(half % MODULUS for half in unpack(order, stored)) for order in ("<HH", ">HH")
                ]:
                    raise self._damaged("the checksum of a chunk is not that of its values")
            elif kind == "deflate":
                inflater = zlib.decompressobj()
                # A checksum may have been stored before the deflation, behind the values.
                raw = inflater.decompress(raw, expected + 5)
                if not inflater.eof:
                    raise self._damaged(f"a chunk inflates beyond its {expected} bytes or is cut short")
            else:
                # A checksum may have been stored before the shuffle: bytes beyond whole elements stay where they are.
                rest = len(raw) - len(raw) % width
                raw = np.frombuffer(raw[:rest], np.uint8).reshape(width, -1).T.tobytes() + raw[rest:]
        if len(raw) != expected:
            raise self._damaged(f"a chunk holds {len(raw)} bytes instead of {expected}")
        return np.frombuffer(raw, self._stored)


def _type_of(dataset: Any, path: Path, name: str) -> np.dtype[Any]:
    """The type of real numbers as they are stored; bits that HDF5 would have to rearrange are no such."""
    import h5py

    dtype: np.dtype[Any] = np.dtype("V1")
    with suppress(TypeError):
        dtype = dataset.dtype
    check_type(dtype, path=path, key=name)
    plain: np.dtype[Any] = np.dtype(dtype.str)
    if not dataset.id.get_type().equal(h5py.h5t.py_create(plain)):
        remedy = "save it as plain integers or floats"
        raise CubeFileError("holds enumerated or packed numbers", file=path, key=name, value=str(dtype), remedy=remedy)
    return plain


def _fletcher32(raw: bytes) -> tuple[int, int]:
    """The two sums of HDF5's checksum (H5_checksum_fletcher32), modulo `MODULUS`: of words, of their running sums."""
    words = np.frombuffer(raw + b"\0" * (len(raw) % 2), ">u2")
    first = second = 0
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK].astype(np.int64)
        left = np.arange(len(words) - start, len(words) - start - len(block), -1) % MODULUS
        first, second = first + int(block.sum()), second + int((block * left).sum())
    return first % MODULUS, second % MODULUS
