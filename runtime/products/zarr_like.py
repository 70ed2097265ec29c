"""A Zarr store like its source: of the same version, copied file by file, in which only the cube's chunks are new."""

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.products.contract import PROVENANCE, CubeWriter, Quality, Reading, Result
from runtime.products.strict_json import read_object
from runtime.products.written import check_lines
from runtime.products.zarr_cf import Told, told
from runtime.products.zarr_chunks import Chunks
from runtime.products.zarr_codecs import CodecError
from runtime.products.zarr_folder import Hidden, writing
from runtime.products.zarr_meta import Array, Node, said_fill, said_mark
from runtime.products.zarr_rows import Rows, metadata_of, write_json, write_metadata
from runtime.products.zarr_tree import Store, open_store
from runtime.products.zarr_writer import layers, provenance_text
from runtime.untrusted import open_regular

_SCALES = ("scale_factor", "add_offset", "valid_min", "valid_max", "valid_range")


def open_like(out: Path, result: Result) -> CubeWriter:
    """A writer of the source's kind; see `CubeWriter`.

    Raises:
        CubeFileError: also where the result has another shape than the source, or codecs that cannot be written here.
        MachineError, ModuleNotFoundError: as for a reader.
    """
    source = result.source
    if result.shape != source.shape:
        problem = f"{list(result.shape)} is not the shape of the source, {list(source.shape)}"
        raise CubeFileError(problem, file=out, remedy="write it as zarr, not like the input")
    store = open_store(source.path)
    return _Writer(out, result, store, told(store, Reading(key=source.title)))


def holds_like(result: Result) -> int:
    """Bytes that such a writer keeps: a row of chunks or shards."""
    found = told(open_store(result.source.path), Reading(key=result.source.title))
    bands, lines, samples = (found.array.chunks[axis] for axis in found.axes)
    return Rows.holds(result.shape, (bands, lines, samples), result.dtype.itemsize)


class _Writer(CubeWriter):
    def __init__(self, out: Path, result: Result, store: Store, found: Told) -> None:
        self._result, self._store, self._found = result, store, found
        self._hidden = Hidden(out, store.path)
        self._stack = ExitStack()
        self._stack.callback(self._hidden.close)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self._cube = self._target()
        try:
            self._cube.codecs.encoded(np.zeros((1,) * 3, self._cube.dtype))
        except CodecError as error:
            raise CubeFileError(f"cannot be written: {error}", file=self._hidden.out, remedy="write zarr") from error
        self._group = self._cube.node.name.rpartition("/")[0]
        self._rows = [Rows(self._cube, self._found.axes, self._hidden.out)]
        self._beside: Hidden | None = None
        self._layers: list[Array] = []
        if self._result.quality:
            self._layers = self._quality()
            self._rows += [Rows(array, (0, 1), self._hidden.out) for array in self._layers]
        for rows in self._rows:
            self._stack.callback(rows.close)

    def _target(self) -> Array:
        """The cube's array as it will be: the source's, with another type and scale where the numbers have them."""
        result, array = self._result, self._found.array
        node = array.node
        inner = node.name.strip("/")
        meta, said, fill = dict(node.meta), dict(node.attributes), array.fill
        other = result.unit_range or result.dtype != array.dtype
        if other:
            kind = "data_type" if node.version == 3 else "dtype"
            meta[kind] = result.dtype.name if node.version == 3 else result.dtype.newbyteorder("<").str
            for key in ("_FillValue", "missing_value", *(_SCALES if result.unit_range else ())):
                said.pop(key, None)
            fill = None
            if result.unit_range:
                said["units"] = "1"
        marked = result.mark is not None and str(float(result.mark)) in map(str, self._found.stated.marks)
        if result.mark is not None and (other or not marked):
            fill = result.dtype.type(result.mark)
            if node.version == 3:
                said["_FillValue"] = said_mark(result.mark, result.dtype)
        if other or fill is not array.fill:
            empty = 0 if node.version == 3 else None
            meta["fill_value"] = empty if fill is None else said_fill(float(fill), result.dtype)
        stored = array.codecs.stored
        if other:
            stored = result.dtype.newbyteorder("<" if node.version == 2 else stored.byteorder)
        codecs = replace(array.codecs, stored=stored)
        written = Node(self._hidden.path / inner, node.name, node.version, meta, said)
        held = fill if fill is not None else result.dtype.type(0)
        return replace(array, node=written, dtype=result.dtype.newbyteorder("="), fill=held, codecs=codecs)

    def _quality(self) -> list[Array]:
        """The layer's arrays: in the cube's group, or in a store beside where the store is nothing but the cube."""
        _, lines, samples = self._result.shape
        dims = self._found.array.node.dims
        named = (dims[self._found.axes[1]], dims[self._found.axes[2]]) if all(dims) and dims else ("y", "x")
        folder = self._hidden.path / self._group.strip("/")
        if self._cube.node.name == "/":
            out = self._hidden.out
            self._beside = Hidden(out.with_name(f"{out.stem}_quality{out.suffix}"), self._store.path)
            self._stack.callback(self._beside.close)
            folder = self._beside.path
        step = self._found.array.chunks[self._found.axes[1]]
        found = layers(folder, self._cube.node.version, lines, samples, named, step)
        return [replace(one, node=replace(one.node, name=f"{self._group}{one.node.name}")) for one in found]

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        parts: list[NDArray[Any]] = [cube]
        if self._result.quality:
            if quality is None:
                raise ValueError("a layer of quality is written, and no quality was given")
            parts += [quality.seen, quality.expert]
        with writing(self._hidden.out):
            for rows, part in zip(self._rows, parts, strict=True):
                rows.append(part)

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        out = self._hidden.out
        check_lines(self._rows[0].done, self._result.shape[1], out)
        told_of = {PROVENANCE: provenance_text(provenance)}
        nodes = [array.node for array in (self._cube, *self._layers)]
        root = self._store.nodes["/"]
        if root.is_array:
            nodes[0] = replace(nodes[0], attributes={**nodes[0].attributes, **told_of})
        else:
            nodes.append(replace(root, folder=self._hidden.path, attributes={**root.attributes, **told_of}))
        with writing(out):
            new = self._metadata(nodes)
            self._copy(set(new))
            for file, content in new.items():
                write_json(file, content)
            self._consolidate(nodes)
            if self._beside is not None:
                write_metadata(Node(self._beside.path, "/", root.version, _group_meta(root.version), told_of))
        written = [one for one in (self._hidden, self._beside) if one is not None]
        for one in reversed(written):
            one.place()
        self.close()
        return tuple(one.out for one in written)

    def close(self) -> None:
        self._stack.close()

    def _copy(self, new: set[Path]) -> None:
        """All of the source but the cube's chunks, arrays that are no longer true, and what is `new`."""
        source, target = self._store.path, self._hidden.path
        left = set(Chunks(self._found.array).files)
        gone = {self._store.nodes[name].folder for name in self._found.gains} if self._result.unit_range else set()
        own = {source / array.node.name.strip("/") for array in self._layers if self._beside is None}
        for place, folders, files in os.walk(source):
            folder = Path(place)
            folders[:] = sorted(name for name in folders if folder / name not in gone | own)
            inner = target / folder.relative_to(source)
            inner.mkdir(exist_ok=True)
            for name in sorted(files):
                if folder / name not in left and inner / name not in new and inner / name != target / ".zmetadata":
                    _copy_file(folder / name, inner / name)

    def _metadata(self, nodes: list[Node]) -> dict[Path, Mapping[str, Any]]:
        """{file: content} of metadata that are not those of the source."""
        new: dict[Path, Mapping[str, Any]] = {}
        for node in nodes:
            source = self._store.nodes.get(node.name)
            old = metadata_of(source) if source is not None else {}
            for name, content in metadata_of(self._with_consolidated(node, nodes)).items():
                if old.get(name) != content:
                    new[node.folder / name] = content
        return new

    def _with_consolidated(self, node: Node, nodes: list[Node]) -> Node:
        """In version 3 what a root says of all others lies in its own metadata."""
        held = node.meta.get("consolidated_metadata")
        if node.name != "/" or not isinstance(held, dict) or not isinstance(held.get("metadata"), dict):
            return node
        said = {name: value for name, value in held["metadata"].items() if not self._is_gone(name)}
        said |= {one.name.strip("/"): metadata_of(one)["zarr.json"] for one in nodes if one.name != "/"}
        return replace(node, meta={**node.meta, "consolidated_metadata": {**held, "metadata": said}})

    def _consolidate(self, nodes: list[Node]) -> None:
        """In version 2 it lies in a file."""
        file = self._store.path / ".zmetadata"
        if not file.is_file():
            return
        content = read_object(file, links=False, nan=True)
        held = content.get("metadata")
        said = dict(held) if isinstance(held, dict) else {}
        said = {name: value for name, value in said.items() if not self._is_gone(name.rpartition("/")[0])}
        for node in nodes:
            inner = f"{node.name.strip('/')}/".lstrip("/")
            said |= {f"{inner}{name}": value for name, value in metadata_of(node).items()}
        write_json(self._hidden.path / ".zmetadata", {**content, "metadata": said})

    def _is_gone(self, name: str) -> bool:
        return self._result.unit_range and f"/{name}" in self._found.gains


def _group_meta(version: int) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group"} if version == 3 else {"zarr_format": 2}


def _copy_file(source: Path, target: Path) -> None:
    with open_regular(source, links=False)[0] as read, target.open("xb") as write:
        shutil.copyfileobj(read, write, 1 << 20)
        write.flush()
        os.fsync(write.fileno())
