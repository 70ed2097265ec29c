"""Cubes as they are delivered and handed on: one contract, one module for each format.

A format that is read is one module and one line of `FORMATS`; one that is written, of `WRITERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import CubeFileError

if TYPE_CHECKING:
    from runtime.products.contract import CubeReader, CubeWriter, Reading, Result

__all__ = [
    "FORMATS",
    "LIKE",
    "WRITERS",
    "CubeReader",
    "CubeWriter",
    "Reading",
    "format_of",
    "holds",
    "open_cube",
    "open_writer",
    "suffix_of",
]


class Format(NamedTuple):
    """A format that is read.

    Attributes:
        name: in words of people, lower case, as `Description.format` has it.
        module: with `recognises(path) -> bool`, which looks at names and first bytes and never raises for what a file
            holds, and `open_reader(path, reading) -> CubeReader`, which raises CubeFileError (exit code 2), or
            ModuleNotFoundError where a library of an extra is not installed. Imported when it is asked.
        takes: fields of `Reading` that mean something to it.
    """

    name: str
    module: str
    takes: tuple[str, ...] = ()


FORMATS: tuple[Format, ...] = (
    Format("enmap", "runtime.products.enmap"),
    Format("desis", "runtime.products.desis"),
    Format("hyperion", "runtime.products.hyperion"),
    Format("prisma", "runtime.products.prisma", ("key",)),
    Format("emit", "runtime.products.emit", ("key",)),
    Format("aviris", "runtime.products.aviris", ("key",)),
    Format("hypso", "runtime.products.hypso", ("key",)),
    Format("netcdf", "runtime.products.cf", ("key", "layout")),
    Format("zarr", "runtime.products.zarr_store", ("key", "missing_chunks")),
    Format("pictures", "runtime.products.pictures"),
    Format("envi", "runtime.products.envi"),
    Format("geotiff", "runtime.products.geotiff"),
    Format("array", "runtime.products.arrays", ("key", "layout")),
)
"""The first that recognises a path reads it: what is particular comes before what is general."""

WRITERS: Mapping[str, str] = {
    "cog": "runtime.products.cog",
    "netcdf": "runtime.products.cf_writer",
    "zarr": "runtime.products.zarr_writer",
    "envi": "runtime.products.envi_writer",
}
"""Format that is asked for -> module with `SUFFIX` (of a file or folder, with its dot), `open_writer(out, result) ->
CubeWriter` and `holds(result) -> int`, the bytes that such a writer keeps beside the block it is given."""

LIKE: Mapping[str, str] = {
    "enmap": "runtime.products.tiff_writer",
    "desis": "runtime.products.tiff_writer",
    "hyperion": "runtime.products.tiff_writer",
    "geotiff": "runtime.products.tiff_writer",
    "prisma": "runtime.products.hdf5_writer",
    "emit": "runtime.products.hdf5_writer",
    "aviris": "runtime.products.hdf5_writer",
    "hypso": "runtime.products.hdf5_writer",
    "netcdf": "runtime.products.hdf5_writer",
    "zarr": "runtime.products.zarr_like",
    "pictures": "runtime.products.pictures_writer",
    "envi": "runtime.products.envi_writer",
    "array": "runtime.products.arrays_writer",
}
"""Format of a source -> module with `open_like(out, result) -> CubeWriter` and `holds_like(result) -> int`, which
writes the same kind: all but the cube's numbers is the source's."""


def __getattr__(name: str) -> Any:
    """The contract is imported when it is asked for: what tells the names of formats needs none of it."""
    if name not in ("CubeReader", "CubeWriter", "Reading"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runtime.products import contract

    return getattr(contract, name)


def format_of(path: Path) -> Format | None:
    """The format of a file or folder, None of one that is not read."""
    return next((one for one in FORMATS if import_module(one.module).recognises(path)), None)


def open_cube(path: str | Path, reading: Reading | None = None) -> CubeReader:
    """Open a product of any format that is read, whatever its size: nothing but what describes it is read.

    Raises:
        CubeFileError: it is missing, damaged, of no format that is read, holds no cube or several, or something that a
            stranger's file may not have.
        MachineError: a library that reads it is not installed, or cannot do so here.
    """
    from runtime.products.contract import Reading

    path = Path(path)
    found = format_of(path)
    if found is None:
        raise _unknown(path)
    reader: CubeReader = import_module(found.module).open_reader(path, reading or Reading())
    return reader


def open_writer(out: Path, result: Result, kind: str) -> CubeWriter:
    """A writer of the format `kind` of `WRITERS`, or `like` the source's. Raises as `CubeWriter` does."""
    module = import_module(LIKE[result.source.format] if kind == "like" else WRITERS[kind])
    writer: CubeWriter = (module.open_like if kind == "like" else module.open_writer)(out, result)
    return writer


def holds(result: Result, kind: str) -> int:
    """Bytes that such a writer keeps beside the block it is given."""
    module = import_module(LIKE[result.source.format] if kind == "like" else WRITERS[kind])
    kept: int = (module.holds_like if kind == "like" else module.holds)(result)
    return kept


def suffix_of(kind: str) -> str:
    """Of the files or folders of a format of `WRITERS`, with its dot."""
    suffix: str = import_module(WRITERS[kind]).SUFFIX
    return suffix


def _unknown(path: Path) -> CubeFileError:
    from runtime.files.foreign import refuse_foreign

    if not path.exists():
        return CubeFileError("no such file or folder", file=path, remedy="check the path")
    refuse_foreign(path)
    return CubeFileError(
        "is no product that is read", file=path, value=path.suffix or None, remedy="docs/products.md has a list of them"
    )
