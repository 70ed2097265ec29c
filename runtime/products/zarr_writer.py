"""New Zarr stores by the CF conventions, as xarray opens them: version 3, or 2 where zarr 2 is installed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.plain_json import plain_json
from runtime.products.cf_bands import band_axis, of_bands
from runtime.products.cf_place import axes_of, mapping_of
from runtime.products.contract import PROVENANCE, CubeWriter, Grid, Quality, Result
from runtime.products.place_texts import texts_of
from runtime.products.written import LAYERS, check_lines, scale_of
from runtime.products.zarr_folder import Hidden, writing
from runtime.products.zarr_meta import Array, Node, said_mark
from runtime.products.zarr_rows import Rows, metadata_of, new_array, write_json, write_metadata, write_whole
from runtime.products.zarr_tree import zarr_version

SUFFIX = ".zarr"
SEEN, EXPERT = f"{PROVENANCE}_seen", f"{PROVENANCE}_expert"
_UNIT = (64, 32, 256)
"""Bands, lines and samples of a chunk."""


def open_writer(out: Path, result: Result) -> CubeWriter:
    """A writer of a store [wavelength, y, x]; see `CubeWriter`. ModuleNotFoundError where zarr is not installed."""
    return _Writer(out, result, zarr_version())


def holds(result: Result) -> int:
    """Bytes that such a writer keeps: a row of chunks."""
    return Rows.holds(result.shape, _unit(result.shape), result.dtype.itemsize)


def layers(group: Path, version: int, lines: int, samples: int, dims: tuple[str, str], step: int) -> list[Array]:
    """The arrays of a quality layer, of `Quality.seen` and `Quality.expert`, in a group."""
    kind = np.dtype(np.uint8)
    chunks = (max(1, min(step, lines)), samples)
    return [
        new_array(group, f"{PROVENANCE}_{name}", version, (lines, samples), kind, dims, attributes, chunks=chunks)
        for name, attributes in LAYERS.items()
    ]


def provenance_text(provenance: Mapping[str, Any]) -> str:
    """As it stands in an attribute."""
    return json.dumps(plain_json(provenance), sort_keys=True, ensure_ascii=False)


class _Writer(CubeWriter):
    def __init__(self, out: Path, result: Result, version: int) -> None:
        self._result, self._version = result, version
        self._hidden = Hidden(out, result.source.path)
        self._stack = ExitStack()
        self._stack.callback(self._hidden.close)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        result, group = self._result, self._hidden.path
        _, lines, samples = result.shape
        self._band = band_axis(result.stated.wavelengths)
        # A reader tells places of its own lines alone.
        same = result.place.grid is None and result.shape[1:] == result.source.shape[1:]
        self._located = same and result.reader is not None and result.reader.located(0, 1) is not None
        self._arrays = list(self._small())
        for array, values in self._arrays:
            with writing(self._hidden.out):
                write_whole(array, values)
        cube = self._new(_named(result), result.shape, result.dtype, (self._band, "y", "x"), self._attributes(),
                         chunks=_unit(result.shape), fill=result.mark)  # fmt: skip
        self._rows = [Rows(cube, (0, 1, 2), self._hidden.out)]
        planes: list[Array] = []
        if result.quality:
            planes = layers(group, self._version, lines, samples, ("y", "x"), _UNIT[1])
        if self._located:
            kind, chunks = np.dtype(np.float64), (max(1, min(_UNIT[1], lines)), samples)
            for name, standard, unit in (("lon", "longitude", "degrees_east"), ("lat", "latitude", "degrees_north")):
                said = {"standard_name": standard, "units": unit, **_marked(np.nan, kind, self._version)}
                planes.append(self._new(name, (lines, samples), kind, ("y", "x"), said, chunks=chunks, fill=np.nan))
        self._rows += [Rows(plane, (0, 1), self._hidden.out) for plane in planes]
        for rows in self._rows:
            self._stack.callback(rows.close)
        self._nodes = [array.node for array, _ in self._arrays] + [array.node for array in (cube, *planes)]

    def _new(self, name: str, *rest: Any, **more: Any) -> Array:
        return new_array(self._hidden.path, name, self._version, *rest, **more)

    def _attributes(self) -> dict[str, Any]:
        """Of the cube."""
        result = self._result
        told: dict[str, Any] = {"long_name": f"restored {_named(result)}"}
        if result.unit is not None or result.quantity == "reflectance":
            told["units"] = result.unit or "1"
        gains, offsets = scale_of(result)
        if gains and "gain" not in of_bands(result) and (gains[0], offsets[0]) != (1, 0):
            told |= {"scale_factor": gains[0], "add_offset": offsets[0]}
        if result.place.grid is not None:
            told["grid_mapping"] = "spatial_ref"
        beside = [array.node.name[1:] for array, _ in self._arrays if array.node.name[1:] not in (self._band, "x", "y")]
        if self._located:
            beside += ["lon", "lat"]
        told |= texts_of(result.place)
        if beside:
            told["coordinates"] = " ".join(beside)
        if result.mark is not None:
            told |= _marked(result.mark, result.dtype, self._version)
        return told

    def _small(self) -> Iterator[tuple[Array, NDArray[Any]]]:
        """Arrays beside the cube."""
        for name, (values, said) in of_bands(self._result).items():
            yield self._new(name, values.shape, values.dtype, (self._band,), said), values
        if self._result.place.grid is not None:
            yield from self._grid(self._result.place.grid)

    def _grid(self, grid: Grid) -> Iterator[tuple[Array, NDArray[Any]]]:
        yield self._new("spatial_ref", (), np.dtype(np.int32), (), mapping_of(grid)), np.zeros((), np.int32)
        for name, (values, said) in axes_of(grid).items():
            yield self._new(name, values.shape, values.dtype, (name,), said), values

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        start, stop = self._rows[0].done, self._rows[0].done + cube.shape[1]
        parts: list[NDArray[Any]] = [cube]
        if self._result.quality:
            if quality is None:
                raise ValueError("a layer of quality is written, and no quality was given")
            parts += [quality.seen, quality.expert]
        if self._located and self._result.reader is not None:
            parts += self._result.reader.located(start, stop) or ()
        with writing(self._hidden.out):
            for rows, part in zip(self._rows, parts, strict=True):
                rows.append(part)

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        out, result = self._hidden.out, self._result
        check_lines(self._rows[0].done, result.shape[1], out)
        root_attributes = {"Conventions": "CF-1.11", PROVENANCE: provenance_text(provenance)}
        meta: dict[str, Any] = {"zarr_format": 2}
        names = sorted((node.name[1:], node) for node in self._nodes)
        if self._version == 3:
            held = {name: metadata_of(node)["zarr.json"] for name, node in names}
            inline = {"kind": "inline", "must_understand": False, "metadata": held}
            meta = {"zarr_format": 3, "node_type": "group", "consolidated_metadata": inline}
        root = Node(self._hidden.path, "/", self._version, meta, root_attributes)
        with writing(out):
            for node in self._nodes:
                write_metadata(node)
            write_metadata(root)
            if self._version == 2:
                told = {f"{name}/{file}": said for name, node in names for file, said in metadata_of(node).items()}
                content = {"metadata": {**metadata_of(root), **told}, "zarr_consolidated_format": 1}
                write_json(self._hidden.path / ".zmetadata", content)
        self._hidden.place()
        self.close()
        return (out,)

    def close(self) -> None:
        self._stack.close()


def _named(result: Result) -> str:
    """The name of the cube: of what its values are, where they are that."""
    physical = result.quantity in ("reflectance", "radiance") and (result.stated.gains or not result.unit_range)
    return str(result.quantity) if physical else "cube"


def _marked(mark: float, dtype: np.dtype[Any], version: int) -> dict[str, Any]:
    """In version 2 the array's own fill says it."""
    return {"_FillValue": said_mark(mark, dtype)} if version == 3 else {}


def _unit(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    bands, lines, samples = (min(one, length) for one, length in zip(_UNIT, shape, strict=True))
    return bands, lines, samples
