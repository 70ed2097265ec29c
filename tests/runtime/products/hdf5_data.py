"""HDF5 products that tests make, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.products import FORMATS, Reading
from runtime.products.hdf5_reader import Hdf5Reader

NAMES = ("prisma", "emit", "aviris", "hypso", "netcdf")


def opened(path: Path, reading: Reading | None = None) -> Hdf5Reader:
    """The reader of the first HDF5 format that recognises the file."""
    modules = [import_module(one.module) for one in FORMATS if one.name in NAMES]
    reader: Hdf5Reader = next(one for one in modules if one.recognises(path)).open_reader(path, reading or Reading())
    return reader


def refused(path: Path, match: str, reading: Reading | None = None) -> CubeFileError:
    """The error with which a file is refused, when it is opened or read."""
    with pytest.raises(CubeFileError, match=match) as caught, opened(path, reading) as reader:
        reader.read_lines(0, reader.description.shape[1])
        reader.glt()
        reader.located(0, 1)
    assert caught.value.file == str(path)
    assert caught.value.remedy
    return caught.value


def values(shape: tuple[int, ...], dtype: str = "f4", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def emit(
    path: Path, change: Callable[[h5py.File], object] = lambda file: None, shape: tuple[int, ...] = (4, 3, 5)
) -> Path:
    """An EMIT L2A product of lines, samples, bands; `change` has the open file."""
    with h5py.File(path, "w") as file:
        file.attrs["instrument"], file.attrs["spatial_ref"] = "EMIT", np.bytes_("EPSG:4326")
        file.attrs["geotransform"] = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]
        file["reflectance"] = values(shape)
        file["sensor_band_parameters/wavelengths"] = np.linspace(400, 440, shape[2], dtype="f4")
        file["location/glt_x"], file["location/glt_y"] = np.ones((6, 7), "i4"), np.ones((6, 7), "i4")
        change(file)
    return path


def put(file: h5py.File, where: str, data: object, **attributes: object) -> None:
    """Replace a data set, or make it."""
    if where in file:
        del file[where]
    file[where] = data
    for name, value in attributes.items():
        file[where].attrs[name] = value
