"""Arrays of a Zarr store written by lines: chunks and shards as soon as a row of them is full, metadata when asked."""

import json
import os
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.products.contract import LINE_OF_CHUNKS
from runtime.products.spool import Spool, Tiles
from runtime.products.zarr_codecs import Codecs, Step, checksum
from runtime.products.zarr_meta import Array, Node, said_fill

_LEVEL = 3
_NAMES_3 = {"f2": "float16", "f4": "float32", "f8": "float64"}
Names = Sequence[str]


def write_file(path: Path, data: bytes) -> None:
    """Write and sync a new file, and the folders above it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """The same of metadata."""
    write_file(path, json.dumps(content, indent=2).encode() + b"\n")


def new_array(
    folder: Path,
    name: str,
    version: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    dims: Names,
    attributes: Mapping[str, Any] | None = None,
    *,
    chunks: tuple[int, ...] | None = None,
    fill: float | None = None,
) -> Array:
    """An array that is going to be written, compressed by zstd.

    Args:
        folder: of its group.
        dims: names of its axes.
        fill: of pixels without a value; None where it has no such mark.
    """
    dtype = dtype.newbyteorder("=")
    chunks = chunks or tuple(max(1, length) for length in shape)
    told: dict[str, Any] = dict(attributes or {})
    said = None if fill is None else said_fill(fill, dtype)
    meta: dict[str, Any]
    if version == 3:
        named = _NAMES_3.get(dtype.str[1:]) or f"{'u' * (dtype.kind == 'u')}int{8 * dtype.itemsize}"
        meta = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": named,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": said_fill(0, dtype) if said is None else said,
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}} if dtype.itemsize > 1 else {"name": "bytes"},
                {"name": "zstd", "configuration": {"level": _LEVEL, "checksum": False}},
            ],
            "dimension_names": list(dims),
            "attributes": told,
        }
    else:
        told["_ARRAY_DIMENSIONS"] = list(dims)
        meta = {
            "zarr_format": 2,
            "shape": list(shape),
            "chunks": list(chunks),
            "dtype": dtype.newbyteorder("<").str,
            "compressor": {"id": "zstd", "level": _LEVEL},
            "fill_value": said,
            "order": "C",
            "filters": None,
        }
    node = Node(folder / name, f"/{name}", version, meta, told)
    steps = (Step("zstd", {"level": _LEVEL, "checksum": False}),)
    codecs = Codecs(dtype.newbyteorder("<"), tuple(range(len(shape))), steps)
    held = dtype.type(0 if fill is None else fill)
    separator, prefix = ("/", True) if version == 3 else (".", False)
    return Array(node, shape, chunks, dtype, held, codecs, separator, prefix)


def metadata_of(node: Node) -> dict[str, Mapping[str, Any]]:
    """{name of a file: what it says} of an array or a group."""
    if node.version == 3:
        return {"zarr.json": {**node.meta, "attributes": dict(node.attributes)}}
    meta = node.meta or {"zarr_format": 2}
    return {node.file.name: meta, **({".zattrs": node.attributes} if node.attributes else {})}


def write_metadata(node: Node) -> None:
    """Write the metadata of an array or a group."""
    for name, content in metadata_of(node).items():
        write_json(node.folder / name, content)


def write_whole(array: Array, values: NDArray[Any]) -> None:
    """Write a small array of one chunk."""
    if values.size:
        write_file(array.file_of((0,) * values.ndim), array.codecs.encoded(np.asarray(values, array.dtype)))


class Rows(Closing):
    """Takes lines of a cube or of a plane, and writes a row of files whenever it is full.

    Args:
        array: of two or three axes.
        axes: of the array that are bands, lines and samples; lines and samples of a plane.
        path: of the product, for errors.
    """

    def __init__(self, array: Array, axes: tuple[int, ...], path: Path) -> None:
        self._array, self._axes = array, axes
        self._plane = len(axes) == 2
        shape, unit = ([sizes[axis] for axis in axes] for sizes in (array.shape, array.chunks))
        if self._plane:
            shape, unit = [1, *shape], [1, *unit]
        self._shape, self._unit = shape, unit
        self.done = 0
        self._tiles: Tiles | None = None
        self._row: NDArray[Any] | None = None
        row = (shape[0], min(unit[1], shape[1]), shape[2])
        if (size := prod(row) * array.dtype.itemsize) > LINE_OF_CHUNKS:
            self._tiles = Tiles(Spool(path, size), row, array.dtype, unit[2])
        else:
            self._row = np.empty(row, array.dtype)

    @staticmethod
    def holds(shape: tuple[int, int, int], unit: tuple[int, int, int], itemsize: int) -> int:
        """Bytes that a writer of such an array keeps."""
        row = shape[0] * min(unit[1], shape[1]) * shape[2] * itemsize
        return 3 * prod(unit) * itemsize + (row if row <= LINE_OF_CHUNKS else 0)

    def append(self, lines: NDArray[Any]) -> None:
        """Lines [bands, n, samples], or [n, samples] of a plane. Raises OSError."""
        lines = lines[None] if self._plane else lines
        taken, count = 0, lines.shape[1]
        if self.done + count > self._shape[1]:
            raise ValueError(f"{self.done + count} lines of {self._shape[1]}")
        while taken < count:
            at = self.done % self._unit[1]
            n = min(count - taken, self._unit[1] - at)
            part = lines[:, taken : taken + n]
            if self._row is not None:
                self._row[:, at : at + n] = part
            elif self._tiles is not None:
                for sample in range(0, self._shape[2], self._unit[2]):
                    self._tiles.put(0, at, sample, part[:, :, sample : sample + self._unit[2]])
            self.done, taken = self.done + n, taken + n
            if self.done % self._unit[1] == 0 or self.done == self._shape[1]:
                self._flush((self.done - 1) // self._unit[1])

    def close(self) -> None:
        self._row = None
        if self._tiles is not None:
            self._tiles.close()

    def _flush(self, row: int) -> None:
        lines = min(self._unit[1], self._shape[1] - row * self._unit[1])
        steps = [range(0, self._shape[axis], self._unit[axis]) for axis in (0, 2)]
        for band, sample in product(*steps):
            bands, samples = (min(self._unit[axis], self._shape[axis] - at) for axis, at in ((0, band), (2, sample)))
            chunk = np.full(self._unit, 0 if self._array.fill is None else self._array.fill, self._array.dtype)
            part = chunk[:bands, :lines, :samples]
            if self._row is not None:
                part[...] = self._row[band : band + bands, :lines, sample : sample + samples]
            elif self._tiles is not None:
                self._tiles.get(band, 0, sample, part)
            self._write((band // self._unit[0], row, sample // self._unit[2]), chunk)

    def _write(self, place: tuple[int, int, int], chunk: NDArray[Any]) -> None:
        numbers, values = (place[1:], chunk[0]) if self._plane else (place, chunk)
        index = [0] * len(self._axes)
        for axis, number in zip(self._axes, numbers, strict=True):
            index[axis] = number
        values = values.transpose(np.argsort(self._axes))
        encoded = shard_of(self._array, values) if self._array.inner else self._array.codecs.encoded(values)
        write_file(self._array.file_of(tuple(index)), encoded)


def shard_of(array: Array, values: NDArray[Any]) -> bytes:
    """A shard with all of its chunks and the index of them (Zarr v3, sharding_indexed)."""
    inner = array.inner or array.chunks
    counts = [length // step for length, step in zip(values.shape, inner, strict=True)]
    places = np.empty((*counts, 2), "<u8")
    length = prod(counts) * 16 + 4 * array.index_summed
    offset = 0 if array.index_at_end else length
    parts = []
    for index in product(*map(range, counts)):
        inside = tuple(slice(number * step, (number + 1) * step) for number, step in zip(index, inner, strict=True))
        parts.append(array.codecs.encoded(values[inside]))
        places[index] = offset, len(parts[-1])
        offset += len(parts[-1])
    table = places.tobytes()
    table += checksum(table) if array.index_summed else b""
    return b"".join((*parts, table) if array.index_at_end else (table, *parts))
