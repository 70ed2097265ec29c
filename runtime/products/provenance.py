"""How an output says it was made: what `damp_deploy` holds inside it, or beside it where it has no room."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.products.contract import PROVENANCE
from runtime.untrusted import TooLargeError, read_untrusted

LARGEST = 8 << 20
"""Bytes that a provenance may have."""
HDF5 = (".nc", ".nc4", ".h5", ".he5", ".hdf5")


def beside(path: Path) -> Path:
    """The file beside an output that holds its provenance, where it has no room for it."""
    return path.with_name(f"{path.stem}.{PROVENANCE}.json")


def lacking(path: Path) -> tuple[Path, ...]:
    """Files beside an output of ours that belong to it and are gone; what is in a folder is not looked at."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in (*HDF5, ".npz"):
        return ()
    quality = path.with_name(f"{path.stem}_quality")
    if suffix in (".tif", ".tiff"):
        files = [quality.with_name(f"{quality.name}.tif")]
    elif suffix == ".npy":
        files = [beside(path), quality.with_name(f"{quality.name}.npy")]
    else:
        pair = (quality.with_name(f"{quality.name}{end}") for end in (".img", ".hdr"))
        files = [path.with_suffix(".hdr"), beside(path), *pair]
    return tuple(file for file in files if not file.is_file())


def provenance_of(path: Path) -> dict[str, Any] | None:
    """What an output of ours says of how it was made; None of anything else, and of what cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, RuntimeError, TooLargeError, RecursionError):
        text = _text(path)
        if text is not None and isinstance(found := json.loads(text), dict):
            return found
    return None


def _text(path: Path) -> str | None:
    if path.is_dir():
        for name in (f"{PROVENANCE}.json", "zarr.json", ".zattrs"):
            if (path / name).is_file():
                return _of_json(path / name)
        return None
    if path.suffix.lower() in HDF5:
        return _of_hdf5(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        return _of_tiff(path)
    if path.suffix.lower() == ".npz":
        return _of_npz(path)
    return read_untrusted(beside(path), LARGEST).decode()


def _of_json(file: Path) -> str | None:
    text = read_untrusted(file, LARGEST).decode()
    if file.name == f"{PROVENANCE}.json":
        return text
    found = json.loads(text)
    told: Any = found.get("attributes", found).get(PROVENANCE)
    return json.dumps(told) if isinstance(told, Mapping) else told


def _of_hdf5(path: Path) -> str | None:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        told = file.attrs.get(PROVENANCE)
        if told is None and isinstance(file.get(PROVENANCE, getlink=True), h5py.HardLink):
            found = file[PROVENANCE]
            told = found[()] if isinstance(found, h5py.Dataset) and found.shape == () else found.attrs.get(PROVENANCE)
    return told.decode() if isinstance(told, bytes) else told


def _of_tiff(path: Path) -> str | None:
    from runtime.products.gdal import Tiff

    with Tiff(path) as image, image.asking() as asked:
        told: str | None = asked.tags().get(PROVENANCE)
    return told


def _of_npz(path: Path) -> str | None:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return str(arrays[PROVENANCE][()])
