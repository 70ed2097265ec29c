"""Missing pixels: found by the file's mark, filled for the network, never guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.errors import CubeError
from runtime.masking import filled, missing_pixels


def cube_of(dtype: Any) -> np.ndarray:
    return (np.arange(24).reshape(2, 3, 4) + 1).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "i8", "f4", "f8"])
def test_without_a_mark_nothing_is_missing(dtype: str) -> None:
    missing = missing_pixels(cube_of(dtype), None)
    assert missing.shape == (3, 4) and missing.dtype == bool and not missing.any()


@pytest.mark.parametrize(
    ("dtype", "mark"),
    [("i2", -9999), ("u2", 65535), ("u1", 0), ("i4", -(2**31)), ("f4", -9999), ("f8", -1e34), ("f4", 0), ("f2", -1)],
)
def test_a_pixel_is_missing_where_any_band_holds_the_mark(dtype: str, mark: float) -> None:
    cube = cube_of(dtype)
    cube[0, 1, 2] = cube[1, 2, 0] = cube[0, 0, 0] = cube[1, 0, 0] = mark
    expected = np.zeros((3, 4), bool)
    expected[1, 2] = expected[2, 0] = expected[0, 0] = True
    np.testing.assert_array_equal(missing_pixels(cube, float(mark)), expected)


@pytest.mark.parametrize("mark", [0.1, -3.4028235e38, 1.0e-20, -9999.99])
def test_floats_hold_the_mark_as_their_type_rounds_it(mark: float) -> None:
    cube = cube_of("f4")
    cube[1, 1, 1] = mark
    assert np.flatnonzero(missing_pixels(cube, mark)).tolist() == [5]


def test_nan_as_a_mark_is_found() -> None:
    cube = cube_of("f4")
    cube[1, 0, 3] = np.nan
    assert np.flatnonzero(missing_pixels(cube, float("nan"))).tolist() == [3]
    assert not missing_pixels(cube_of("i2"), float("nan")).any()


@pytest.mark.parametrize("mark", [-9999.0, 0.5, 70000.0, 1e300])
def test_a_mark_that_the_type_cannot_hold_marks_nothing(mark: float) -> None:
    assert not missing_pixels(cube_of("u1"), mark).any()
    assert not missing_pixels(cube_of("u2"), mark).any()


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_missing_pixels_get_the_mean_of_the_others_band_by_band(dtype: str) -> None:
    cube = cube_of(dtype)
    cube[:, 1, 2] = 200 if dtype == "u1" else -100
    missing = np.zeros((3, 4), bool)
    missing[1, 2] = True
    kept = cube.copy()
    result = filled(cube, missing)
    np.testing.assert_array_equal(cube, kept)
    assert result.dtype == cube.dtype and not np.shares_memory(result, cube)
    np.testing.assert_array_equal(result[:, ~missing], cube[:, ~missing])
    for band, values in zip(result, cube, strict=True):
        mean = values[~missing].mean()
        assert band[1, 2] == (round(mean) if dtype in ("u1", "i2") else pytest.approx(mean))


def test_a_nan_mark_leaves_no_nan_behind() -> None:
    cube = cube_of("f4")
    cube[0, 2, 2] = np.nan
    assert np.isfinite(filled(cube, missing_pixels(cube, float("nan")))).all()


def test_a_cube_without_missing_pixels_is_not_copied() -> None:
    cube = cube_of("i2")
    assert filled(cube, np.zeros((3, 4), bool)) is cube


def test_a_cube_of_nothing_but_missing_pixels_is_refused() -> None:
    with pytest.raises(CubeError, match="data ignore value: every pixel is marked as missing"):
        filled(np.zeros((2, 3, 4), np.int16), np.ones((3, 4), bool))
