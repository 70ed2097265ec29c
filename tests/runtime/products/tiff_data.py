"""Small TIFFs, and what an independent reader saw in the real and the miniature ones."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from runtime.products.contract import CubeReader


def cube(bands: int = 5, lines: int = 12, samples: int = 9, dtype: str = "i2") -> NDArray[Any]:
    """Numbers that all differ."""
    return (1 + np.arange(bands * lines * samples)).reshape(bands, lines, samples).astype(dtype)


def tiff(path: Path, numbers: NDArray[Any], **profile: Any) -> Any:
    """A TIFF of [bands, lines, samples] by rasterio, still open."""
    bands, lines, samples = numbers.shape
    profile = {"driver": "GTiff", "count": bands, "height": lines, "width": samples, "dtype": numbers.dtype} | profile
    file = rasterio.open(path, "w", **profile)
    file.write(numbers)
    return file


def whole(reader: CubeReader, lines: int = 5) -> NDArray[Any]:
    """The cube, by a few lines at a time."""
    every = reader.description.shape[1]
    return np.concatenate(
        [reader.read_lines(start, min(start + lines, every)) for start in range(0, every, lines)], axis=1
    )


def check_truth(reader: CubeReader, data_dir: Path, name: str) -> None:
    """Hold what a reader gives against `truth.json`."""
    truth = json.loads((data_dir / "products" / "truth.json").read_text())[name]
    said = reader.description
    numbers = whole(reader, 7)
    assert list(numbers.shape) == truth["shape"] == list(said.shape)
    assert str(numbers.dtype) == truth["stored"] == str(said.dtype)
    valid = np.isfinite(numbers)
    for mark in said.stated.marks:
        valid &= numbers != mark
    if (missing := reader.missing(0, said.shape[1])) is not None:
        valid &= ~missing
    bands = said.shape[0]
    gains, offsets = said.stated.gains or np.ones(bands), said.stated.offsets or np.zeros(bands)
    values = numbers * np.array(gains)[:, None, None] + np.array(offsets)[:, None, None]
    np.testing.assert_allclose([values[valid].min(), values[valid].max()], [truth["min"], truth["max"]], rtol=1e-6)
    assert int((~valid).all(0).sum()) == truth["missing_pixels"]
    assert (~valid).all((1, 2)).nonzero()[0].tolist() == truth["empty_bands"]
    step = max(1, bands // 6)
    spectrum = np.where(valid, values, np.nan)[::step, 9, 11]
    expected = np.array(truth["line9_sample11"], np.float64)
    np.testing.assert_allclose(spectrum, expected, atol=1e-6)
    wavelengths = None if said.stated.wavelengths is None else said.stated.wavelengths[:3]
    assert (wavelengths is None) == (truth["wavelengths_nm"] is None)
    if wavelengths is not None:
        np.testing.assert_allclose(wavelengths, truth["wavelengths_nm"], atol=1e-3)
        assert said.stated.wavelengths is not None
        assert len(said.stated.wavelengths) == bands


def hostile(data_dir: Path, folder: Path, part: str) -> dict[str, str]:
    """Write the files of one part of `make_hostile.py`; names and what each does."""
    spec = spec_from_file_location("make_hostile", data_dir / "products" / "make_hostile.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.OUT = folder
    getattr(module, part)()
    return dict(module.CASES)
