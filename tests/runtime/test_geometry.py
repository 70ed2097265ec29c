"""Lines of images: every pixel is where the configuration says, looked up one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.sources.camera.geometry import Geometry

IMAGE = np.random.default_rng(0).permutation(11 * 14).reshape(11, 14).astype(np.uint16)


def lines_of(geometry: Geometry) -> Any:
    lines, bands, samples = geometry.shape(*IMAGE.shape)
    out = np.zeros((lines, bands, samples), IMAGE.dtype)
    for index in range(lines):
        geometry.copy_line(IMAGE, index, out[index])
    return out


@pytest.mark.parametrize("flip_samples", [False, True])
@pytest.mark.parametrize("flip_bands", [False, True])
@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_line_scan(axis: Any, flip_bands: bool, flip_samples: bool) -> None:
    found = lines_of(Geometry(spectral_axis=axis, flip_bands=flip_bands, flip_samples=flip_samples))
    bands, samples = (11, 14) if axis == "rows" else (14, 11)
    assert found.shape == (1, bands, samples)
    for band in range(bands):
        for sample in range(samples):
            b = bands - 1 - band if flip_bands else band
            s = samples - 1 - sample if flip_samples else sample
            assert found[0, band, sample] == (IMAGE[b, s] if axis == "rows" else IMAGE[s, b])


@pytest.mark.parametrize("order", [None, (5, 0, 3, 1, 4, 2)])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
def test_mosaic(order: tuple[int, ...] | None, flips: tuple[bool, bool]) -> None:
    geometry = Geometry(geometry="mosaic", pattern=(2, 3), band_order=order, flip_bands=flips[0], flip_samples=flips[1])
    found = lines_of(geometry)
    assert found.shape == (5, 6, 4)
    for line in range(5):
        for band in range(6):
            for sample in range(4):
                b = 5 - band if flips[0] else band
                row, column = divmod(b if order is None else order[b], 3)
                s = 3 - sample if flips[1] else sample
                assert found[line, band, sample] == IMAGE[line * 2 + row, s * 3 + column]


def test_only_the_default_is_plain() -> None:
    assert Geometry().plain
    assert not Geometry(flip_samples=True).plain
    assert not Geometry(spectral_axis="columns").plain


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"geometry": "mosaic"}, "camera.pattern: a mosaic needs the rows and columns"),
        ({"geometry": "mosaic", "pattern": (0, 4)}, r"camera.pattern.*found \(0, 4\)"),
        ({"geometry": "mosaic", "pattern": (1, 1)}, r"camera.pattern.*for example 4x4"),
        ({"geometry": "mosaic", "pattern": (2, 2), "band_order": (0, 1, 2)}, "band_order.*each of the 4 filters"),
        ({"geometry": "mosaic", "pattern": (2, 2), "band_order": (1, 2, 3, 4)}, "by its place from 0 to 3"),
        ({"geometry": "mosaic", "pattern": (2, 2), "spectral_axis": "columns"}, "camera.spectral_axis"),
        ({"pattern": (2, 2)}, "camera.pattern: pattern belongs to mosaics"),
        ({"band_order": (0, 1)}, "camera.band_order: band_order belongs to mosaics"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Geometry(**settings).check()


def test_an_image_smaller_than_the_pattern() -> None:
    with pytest.raises(InputError, match="image of 3 x 9 is smaller than the pattern"):
        Geometry(geometry="mosaic", pattern=(4, 4)).shape(3, 9)
