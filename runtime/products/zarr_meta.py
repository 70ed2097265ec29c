"""Metadata of Zarr arrays, versions 2 and 3, read strictly into one form, and written again."""

import base64
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import CubeFileError
from runtime.products.strict_json import number_in
from runtime.products.zarr_codecs import CodecError, Codecs, Step, check_steps, step_of

CONVERT = "write it again with zarr as plain numbers, compressed by zstd, gzip or blosc"
_MOST = 1 << 40
_TYPE = re.compile(r"[<>|](?:b1|[iu][1248]|f[248])")
_TYPES = {
    "bool": "?", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8", "uint8": "u1", "uint16": "u2",
    "uint32": "u4", "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8",
}  # fmt: skip
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Node:
    """A folder with metadata.

    Attributes:
        folder: that holds it.
        name: inside the store, `/` for its root.
        version: 2 or 3.
        meta: what its `zarr.json` or `.zarray` says; empty of a group of version 2.
        attributes: of it.
    """

    folder: Path
    name: str
    version: int
    meta: Mapping[str, Any]
    attributes: Mapping[str, Any]

    @property
    def is_array(self) -> bool:
        return "shape" in self.meta

    @property
    def file(self) -> Path:
        """Its metadata."""
        name = "zarr.json" if self.version == 3 else ".zarray" if self.is_array else ".zgroup"
        return self.folder / name

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of its axes, empty where it has none, or says something else."""
        found = self.meta.get("dimension_names") if self.version == 3 else self.attributes.get("_ARRAY_DIMENSIONS")
        shape = self.meta.get("shape")
        if not isinstance(found, list) or not isinstance(shape, list) or len(found) != len(shape):
            return ()
        return tuple(name if isinstance(name, str) else "" for name in found)


@dataclass(frozen=True)
class Array:
    """An array that can be read.

    Attributes:
        node: its metadata.
        shape: of it.
        chunks: what a file holds.
        dtype: in native order.
        fill: of what is not stored; None where it says none.
        codecs: of a file, or of an inner chunk.
        inner: shape of an inner chunk of a shard, None where files are chunks.
        index_at_end: of a shard.
        index_summed: the index of a shard is followed by its checksum.
        separator: between the numbers of a chunk in the names of files.
        prefix: these names begin with `c`.
    """

    node: Node
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: Any
    codecs: Codecs
    separator: str
    prefix: bool
    inner: tuple[int, ...] | None = None
    index_at_end: bool = True
    index_summed: bool = True

    @property
    def unit(self) -> tuple[int, ...]:
        """What is decoded at once."""
        return self.inner or self.chunks

    def file_of(self, index: tuple[int, ...]) -> Path:
        """Where a chunk or shard lies."""
        parts = [*(["c"] if self.prefix else []), *map(str, index)] or ["0"]
        return self.node.folder.joinpath(*self.separator.join(parts).split("/"))


def array_of(node: Node) -> Array:
    """An array by its metadata; raises CubeFileError for what is not plain numbers in plain chunks."""
    try:
        return _array_3(node) if node.version == 3 else _array_2(node)
    except CodecError as error:
        raise wrong(node, "codecs", str(error)) from error


def readable(node: Node) -> Array | None:
    """The array, None where it holds something else than numbers in plain chunks."""
    try:
        return array_of(node)
    except CubeFileError:
        return None


def wrong(node: Node, key: str, problem: str, value: object = None, remedy: str = CONVERT) -> CubeFileError:
    """Metadata that cannot be taken as they are."""
    return CubeFileError(problem, file=node.file, key=key, value=value, remedy=remedy)


def _sizes(node: Node, key: str, value: object, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 32:
        raise wrong(node, key, "is no list of sizes", value)
    for entry in value:
        if isinstance(entry, bool) or not isinstance(entry, int) or not least <= entry <= _MOST:
            raise wrong(node, key, "is no size", entry)
    return tuple(value)


def _shapes(node: Node, chunks: object, key: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = _sizes(node, "shape", node.meta.get("shape"), 0)
    pieces = _sizes(node, key, chunks, 1)
    if len(pieces) != len(shape):
        raise wrong(node, key, f"has {len(pieces)} axes, shape has {len(shape)}")
    return shape, pieces


def _array_2(node: Node) -> Array:
    meta = node.meta
    said = meta.get("dtype")
    if said == "|O":
        raise wrong(node, "dtype", "holds Python objects, which are not read", said)
    if not isinstance(said, str) or not _TYPE.fullmatch(said):
        raise wrong(node, "dtype", "holds no plain numbers", said)
    if meta.get("filters"):
        raise wrong(node, "filters", "is filtered, which is not undone here", meta["filters"])
    shape, chunks = _shapes(node, meta.get("chunks"), "chunks")
    order, separator = meta.get("order", "C"), meta.get("dimension_separator", ".")
    if order not in ("C", "F") or separator not in (".", "/"):
        raise wrong(node, "order", "or its dimension_separator is not known", [order, separator])
    stored = np.dtype(said)
    axes = tuple(range(len(shape)))
    compressor = meta.get("compressor")
    steps: tuple[Step, ...] = ()
    if compressor is not None:
        name = compressor.get("id") if isinstance(compressor, dict) else compressor
        if name == "crc32c":
            name = None
        steps = (step_of(str(name), compressor if isinstance(compressor, dict) else {}, stored.itemsize),)
    codecs = Codecs(stored, axes[::-1] if order == "F" else axes, steps)
    dtype = stored.newbyteorder("=")
    return Array(node, shape, chunks, dtype, _fill(node, dtype), codecs, separator, prefix=False)


def _array_3(node: Node) -> Array:
    meta = node.meta
    said = meta.get("data_type")
    if not isinstance(said, str) or said not in _TYPES:
        raise wrong(node, "data_type", "holds no plain numbers", said)
    if meta.get("storage_transformers"):
        raise wrong(node, "storage_transformers", "is stored in a way that is not known")
    unknown = [key for key, value in meta.items() if key not in _KNOWN_3 and not _may_ignore(value)]
    if unknown:
        raise wrong(node, unknown[0][:60], "is an extension that is not known")
    grid, keys = _named(node, "chunk_grid", meta.get("chunk_grid")), meta.get("chunk_key_encoding")
    if grid[0] != "regular":
        raise wrong(node, "chunk_grid", "is no regular grid of chunks", grid[0])
    shape, chunks = _shapes(node, grid[1].get("chunk_shape"), "chunk_grid")
    encoding, settings = _named(node, "chunk_key_encoding", keys)
    separator = settings.get("separator", "/" if encoding == "default" else ".")
    if encoding not in ("default", "v2") or separator not in (".", "/"):
        raise wrong(node, "chunk_key_encoding", "is not known", encoding)
    dtype = np.dtype(_TYPES[said])
    array = Array(node, shape, chunks, dtype, _fill(node, dtype), Codecs(dtype, ()), separator, encoding == "default")
    listed = _listed(node, meta.get("codecs"))
    if listed and listed[0][0] == "sharding_indexed":
        if len(listed) > 1:
            raise wrong(node, "codecs", "shards are compressed once more")
        return _sharded(array, listed[0][1])
    return _replaced(array, codecs=_codecs(node, listed, dtype, len(shape)))


_KNOWN_3 = frozenset(
    {
        "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs",
        "attributes", "dimension_names", "storage_transformers",
    }
)  # fmt: skip


def _may_ignore(value: object) -> bool:
    return isinstance(value, dict) and value.get("must_understand") is False


def _replaced(array: Array, **more: Any) -> Array:
    return Array(**{**array.__dict__, **more})


def _sharded(array: Array, settings: Mapping[str, Any]) -> Array:
    node = array.node
    inner = _sizes(node, "chunk_shape", settings.get("chunk_shape"), 1)
    if len(inner) != len(array.chunks) or any(outer % one for outer, one in zip(array.chunks, inner, strict=True)):
        raise wrong(node, "chunk_shape", "does not divide the shard", list(inner))
    if math.prod(outer // one for outer, one in zip(array.chunks, inner, strict=True)) > 1 << 20:
        raise wrong(node, "chunk_shape", "a shard of more than a million chunks", list(inner))
    index = _codecs(node, _listed(node, settings.get("index_codecs")), np.dtype("u8"), len(inner) + 1)
    location = settings.get("index_location", "end")
    summed = [step.name for step in index.steps]
    if summed not in ([], ["crc32c"]) or index.stored != np.dtype("<u8") or location not in ("start", "end"):
        raise wrong(node, "index_codecs", "the index of its shards is stored in a way that is not known")
    codecs = _codecs(node, _listed(node, settings.get("codecs")), array.dtype, len(inner))
    return _replaced(array, codecs=codecs, inner=inner, index_at_end=location == "end", index_summed=bool(summed))


def _named(node: Node, key: str, value: object) -> tuple[str, Mapping[str, Any]]:
    name, settings = (value, None) if isinstance(value, str) else (None, None)
    if isinstance(value, dict):
        name, settings = value.get("name"), value.get("configuration")
    if not isinstance(name, str) or not (settings is None or isinstance(settings, dict)):
        raise wrong(node, key, "has no name")
    return name, settings or {}


def _listed(node: Node, value: object) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, list) or len(value) > 16:
        raise wrong(node, "codecs", "is no list of codecs")
    return [_named(node, "codecs", entry) for entry in value]


def _codecs(node: Node, listed: list[tuple[str, Mapping[str, Any]]], dtype: np.dtype[Any], axes: int) -> Codecs:
    order: tuple[int, ...] = tuple(range(axes))
    if listed and listed[0][0] == "transpose":
        said = listed[0][1].get("order")
        if not isinstance(said, list) or sorted(map(str, said)) != sorted(map(str, order)):
            raise wrong(node, "codecs", "transpose has no order of the axes", said)
        order, listed = tuple(int(axis) for axis in said), listed[1:]
    if not listed or listed[0][0] != "bytes":
        raise wrong(node, "codecs", "an array is stored in a way that is not known", listed[0][0] if listed else None)
    endian = listed[0][1].get("endian", "little")
    if endian not in ("little", "big"):
        raise wrong(node, "codecs", "has an endian that is not known", endian)
    steps = tuple(step_of(name, settings, dtype.itemsize) for name, settings in listed[1:])
    if any(step.name in ("zlib", "lz4") for step in steps):
        raise wrong(node, "codecs", "is not known in version 3", [step.name for step in steps])
    check_steps(steps)
    return Codecs(dtype.newbyteorder("<" if endian == "little" else ">"), order, steps)


def _fill(node: Node, dtype: np.dtype[Any]) -> Any:
    said = node.meta.get("fill_value")
    if said is None and node.version == 2:
        return None
    if dtype.kind == "b":
        return np.bool_(said is True or said == 1)
    found = number_of(said, dtype)
    if found is None:
        raise wrong(node, "fill_value", f"is no number of {dtype}", said)
    return dtype.type(found)


def number_of(said: object, dtype: np.dtype[Any]) -> float | None:
    """A fill as metadata spell it, as a number that `dtype` holds; None where it does not."""
    if isinstance(said, list) and len(said) == 1:
        said = said[0]
    if isinstance(said, str) and dtype.kind == "f":
        said = _WORDS.get(said, said)
        if isinstance(said, str):
            return _encoded(said, dtype)
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = float(dtype.type(said))
        return held if not math.isfinite(said) or math.isfinite(held) else None
    whole = int(said) if isinstance(said, int) or said.is_integer() else None
    limits = np.iinfo(dtype)
    return whole if whole is not None and limits.min <= whole <= limits.max else None


def _encoded(said: str, dtype: np.dtype[Any]) -> float | None:
    """Bits in hexadecimal (Zarr v3) or, as xarray writes `_FillValue`, a double in base64."""
    try:
        if said.startswith("0x"):
            return float(np.frombuffer(bytes.fromhex(said[2:]), dtype.newbyteorder(">"))[0])
        data = base64.b64decode(said, validate=True)
        return number_of(struct.unpack("<d", data)[0], dtype)
    except (ValueError, struct.error, IndexError):
        return None


def said_fill(value: float, dtype: np.dtype[Any]) -> Any:
    """A fill as `fill_value` spells it."""
    if dtype.kind != "f":
        return int(value)
    words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return words.get(str(float(value)), float(value))


def said_mark(value: float, dtype: np.dtype[Any]) -> Any:
    """A fill as xarray spells `_FillValue` in version 3."""
    if dtype.kind != "f":
        return int(value)
    return base64.b64encode(struct.pack("<d", float(value))).decode()


def single(said: object) -> float | None:
    """A finite number, or the one of a list."""
    return number_in(said[0] if isinstance(said, list) and len(said) == 1 else said)
