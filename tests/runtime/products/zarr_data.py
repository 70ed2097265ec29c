"""Zarr stores of the tests, written by xarray and zarr: of version 3 where zarr 3 is installed, else of version 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from runtime.products.zarr_tree import zarr_version

xr = pytest.importorskip("xarray")
SHAPE = (6, 10, 9)
NEWEST = zarr_version()
"""Version of the format that is tested where a test says none."""
needs_3 = pytest.mark.skipif(NEWEST < 3, reason="zarr 2 writes no stores of version 3")
versions = pytest.mark.parametrize("version", [2, pytest.param(3, marks=needs_3)])


def dataset(cube: NDArray[Any], **attributes: Any) -> Any:
    """A cube [bands, lines, samples] of reflectance as CF has it, on a grid of 4 m."""
    bands, lines, samples = cube.shape
    place = {"crs_wkt": "EPSG:32632", "GeoTransform": "500000 4 0 5200000 0 -4"}
    return xr.Dataset(
        {"reflectance": (("wavelength", "y", "x"), cube, {"units": "1", "grid_mapping": "spatial_ref", **attributes})},
        coords={
            "wavelength": ("wavelength", np.linspace(400, 500, bands), {"units": "nm"}),
            "fwhm": ("wavelength", np.full(bands, 5.5), {"units": "nm"}),
            "good_wavelengths": ("wavelength", np.r_[np.ones(bands - 1, "u1"), np.zeros(1, "u1")]),
            "y": ("y", 5200000 - 4.0 * np.arange(lines) - 2),
            "x": ("x", 500000 + 4.0 * np.arange(samples) + 2),
            "spatial_ref": ((), 0, place),
        },
        attrs={"title": "made for a test"},
    )


def plain(folder: Path, version: int = NEWEST, cube: NDArray[Any] | None = None, **encoding: Any) -> Path:
    """A store of one cube in chunks of 6 x 4 x 5."""
    cube = numbers() if cube is None else cube
    path = folder / f"v{version}.zarr"
    said: dict[str, Any] = {"chunks": (6, 4, 5), **encoding}
    dataset(cube).to_zarr(path, zarr_format=version, consolidated=False, encoding={"reflectance": said})
    return path


def chunk_of(path: Path, *index: int) -> Path:
    """The file of a chunk of the cube of such a store."""
    folder = path / "reflectance"
    name = "/".join(map(str, ("c", *index))) if (folder / "zarr.json").exists() else ".".join(map(str, index))
    return folder / name


def numbers(dtype: str = "f4", shape: tuple[int, int, int] = SHAPE) -> NDArray[Any]:
    """Values that all differ, none of them 0."""
    return (np.arange(1, np.prod(shape) + 1).reshape(shape) / (1 if dtype[0] in "iu" else 1000)).astype(dtype)


def bare(path: Path, cube: NDArray[Any], version: int = NEWEST, separator: str = ".", **more: Any) -> Path:
    """A store that is nothing but an array, of version 2 with this between the numbers of a chunk."""
    if NEWEST < 3:
        if "compressors" in more:
            more["compressor"] = more.pop("compressors")
        array = zarr.create(
            cube.shape,
            dtype=cube.dtype,
            store=str(path),
            dimension_separator=separator,
            write_empty_chunks=True,
            **more,
        )
        array[...] = cube
        return path
    if version == 2:
        more["chunk_key_encoding"] = {"name": "v2", "separator": separator}
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.create_array(path, shape=cube.shape, dtype=cube.dtype, zarr_format=version, **more)
        array[...] = cube
    return path
