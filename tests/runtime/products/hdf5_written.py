"""HDF5 files for tests, and everything in one as values that can be compared."""

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from runtime.products import FORMATS, CubeReader, CubeWriter, Reading
from runtime.products.contract import Quality, Result


def result_of(source: CubeReader, **changed: Any) -> Result:
    """What is written where a cube of the source's meaning is, by blocks from its own reader."""
    about = source.description
    marks = about.stated.marks
    said = {
        "shape": about.shape,
        "dtype": about.dtype,
        "stated": about.stated,
        "fwhm": about.fwhm,
        "quantity": about.quantity,
        "unit": about.unit,
        "place": about.place,
        "mark": marks[0] if marks else None,
        "reader": source,
    }
    return Result(about, **{**said, **changed})


def write_all(writer: CubeWriter, cube: np.ndarray, block: int = 7, **provenance: Any) -> tuple[Path, ...]:
    """`cube` by blocks of lines, with a quality that tells lines apart."""
    with writer:
        for start in range(0, cube.shape[1], block):
            part = cube[:, start : start + block]
            lines = (np.arange(start, start + part.shape[1]) % 256).astype(np.uint8)[:, None]
            writer.write_lines(part, Quality(np.broadcast_to(lines, part.shape[1:]), np.full(part.shape[1:], 3, "u1")))
        return writer.finish(provenance or {"version": "1.2"})


def contents(path: Path) -> dict[str, Any]:
    """Every object and attribute by its path: kind, type, size, layout, filters, values; references by what they name.

    Soft links are told by their target, a group that holds itself once.
    """
    told: dict[str, Any] = {}
    with h5py.File(path) as file:
        seen: dict[Any, str] = {}

        def value(found: Any) -> Any:
            if isinstance(found, h5py.Reference):
                return ("to", file[found].name if found else None)
            if isinstance(found, np.ndarray) and (found.dtype.kind == "O" or found.dtype.names):
                return [value(one) for one in found]
            if isinstance(found, np.void) and found.dtype.names:
                return [value(found[name]) for name in found.dtype.names]
            if isinstance(found, np.ndarray | np.generic):
                data = np.asarray(found)
                return (data.dtype.str, data.shape, hashlib.sha256(data.tobytes()).hexdigest())
            return found

        def look(where: str, held: Any) -> None:
            for name in held.attrs:
                kind = held.attrs.get_id(name).get_type()
                told[f"{where}@{name}"] = (type(kind).__name__, kind.get_size(), value(held.attrs[name]))
            if held in seen:
                told[where] = ("same as", seen[held])
                return
            seen[held] = where
            if isinstance(held, h5py.Dataset):
                made = held.id.get_create_plist()
                filters = [made.get_filter(index)[:3] for index in range(made.get_nfilters())]
                fill = value(held.fillvalue)
                told[where] = (held.dtype, held.shape, held.maxshape, held.chunks, filters, fill)
                told[f"{where}#"] = value(held[()]) if held.id.get_storage_size() else None
            elif isinstance(held, h5py.Group):
                told[where] = ("group", list(held))
                for name in held:
                    link = held.get(name, getlink=True)
                    if isinstance(link, h5py.HardLink):
                        look(f"{where.rstrip('/')}/{name}", held[name])
                    else:
                        told[f"{where.rstrip('/')}/{name}"] = (type(link).__name__, link.path)
            else:
                told[where] = ("type", held.dtype)

        look("/", file["/"])
    return told


def open_hdf5(path: Path, **said: Any) -> CubeReader:
    """The reader of an HDF5 product, without asking the formats of other files."""
    named = [one for one in FORMATS if one.name in ("prisma", "emit", "aviris", "hypso", "netcdf")]
    modules = [import_module(one.module) for one in named]
    found = next((one for one in modules if one.recognises(path)), modules[-1])
    reader: CubeReader = found.open_reader(path, Reading(**said))
    return reader
