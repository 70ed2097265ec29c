"""Digital numbers to the unit range and back: exact, and what does not fit is counted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runtime.errors import CubeError
from runtime.scaling import Conversion

INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_divided_by_the_scale(name: str) -> None:
    cube = np.array([0, 1, 50, 100, 127], name).reshape(1, 1, 5)
    unit = Conversion(100).to_unit(cube)
    assert unit.dtype == np.float32 and unit.flags.c_contiguous
    np.testing.assert_array_equal(unit, np.array([0, 0.01, 0.5, 1, 1.27], np.float32).reshape(1, 1, 5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("scale", [1.0, 250.0])
def test_floats_are_divided_alike(dtype: Any, scale: float) -> None:
    cube = np.array([-0.5, 0, 0.25, 3], dtype).reshape(2, 2, 1)
    unit = Conversion(scale).to_unit(cube)
    assert unit.dtype == np.float32 and unit.dtype.isnative
    np.testing.assert_array_equal(unit, (cube.astype(np.float64) / scale).astype(np.float32))


def test_doubles_beyond_float32_become_infinite_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit = Conversion().to_unit(np.array([1e300, -1e300, 1]).reshape(1, 1, 3))
    assert unit.ravel().tolist() == [np.inf, -np.inf, 1]


@settings(deadline=None, max_examples=200)
@given(
    st.data(),
    st.sampled_from(["u1", "i1", "u2", "i2"]),
    st.floats(0.5, 1e6, allow_nan=False, width=32),
)
def test_there_and_back_gives_the_same_numbers(data: st.DataObject, name: str, scale: float) -> None:
    cube = data.draw(arrays.arrays(np.dtype(name), (2, 3, 4)))
    back, outside = Conversion(scale).to_numbers(Conversion(scale).to_unit(cube), cube.dtype)
    assert back.dtype == cube.dtype and outside == 0
    np.testing.assert_array_equal(back, cube)


def test_whole_range_of_sixteen_bits_comes_back() -> None:
    for name, scale in (("u2", 65535.0), ("i2", 10000.0), ("u2", 4095.0), ("i2", 1.0)):
        limits = np.iinfo(name)
        cube = np.arange(limits.min, limits.max + 1, dtype=name).reshape(1, 256, 256)
        back, outside = Conversion(scale).to_numbers(Conversion(scale).to_unit(cube), cube.dtype)
        np.testing.assert_array_equal(back, cube)
        assert outside == 0


@pytest.mark.parametrize("name", INTEGERS)
def test_what_does_not_fit_is_set_to_the_limit_and_counted(name: str) -> None:
    limits = np.iinfo(name)
    scale = float(limits.max)
    cube = np.array([0, 0.5, -3, 2, 1e30, -1e30, 0.25], np.float32).reshape(1, 1, 7)
    numbers, outside = Conversion(scale).to_numbers(cube, np.dtype(name))
    assert numbers.dtype == np.dtype(name) and outside == 4
    assert [int(n) for n in numbers[0, 0, [2, 5]]] == [limits.min] * 2
    # Above 2**53 the largest float below the limit stands in for it.
    assert all(limits.max - int(n) <= limits.max // 2**52 for n in numbers[0, 0, [3, 4]])
    assert abs(int(numbers[0, 0, 1]) - limits.max / 2) <= max(0.5, limits.max / 2**52)


def test_the_limits_themselves_fit() -> None:
    for name in ("u1", "i1", "u2", "i2"):
        limits = np.iinfo(name)
        cube = np.array([limits.min, limits.max], np.float32).reshape(1, 1, 2)
        numbers, outside = Conversion().to_numbers(cube, np.dtype(name))
        assert numbers.ravel().tolist() == [limits.min, limits.max] and outside == 0
        for beyond in (limits.min - 1, limits.max + 1):
            assert Conversion().to_numbers(np.full((1, 1, 1), beyond, np.float32), np.dtype(name))[1] == 1


def test_numbers_are_rounded_not_cut() -> None:
    cube = np.array([0.004, 0.006, 0.0149, -0.006, -0.004], np.float32).reshape(1, 1, 5)
    assert Conversion(100).to_numbers(cube, np.dtype("i2"))[0].ravel().tolist() == [0, 1, 1, -1, 0]
    # -0.4 is no number below zero: it rounds into the range.
    assert Conversion(100).to_numbers(np.full((1, 1, 1), -0.004, np.float32), np.dtype("u1"))[1] == 0


@pytest.mark.parametrize("scale", [0, -1, -4095.0, float("nan"), float("inf"), float("-inf"), True])
def test_a_scale_that_is_not_a_positive_number_is_refused(scale: float) -> None:
    with pytest.raises(CubeError, match="scale: the scale is not a positive number"):
        Conversion(scale)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
def test_gains_and_offsets_are_applied_band_by_band_and_taken_back(dtype: Any) -> None:
    cube = np.arange(24).reshape(2, 3, 4).astype(dtype)
    made = Conversion(2.0, np.array([0.5, 0.25]), np.array([-1.0, 3.0]))
    unit = made.to_unit(cube)
    expected = (cube * np.array([0.5, 0.25])[:, None, None] + np.array([-1.0, 3.0])[:, None, None]) / 2
    np.testing.assert_allclose(unit, expected, rtol=1e-6)
    back, outside = made.to_numbers(unit, cube.dtype)
    np.testing.assert_allclose(back, cube, atol=1e-5)
    assert back.dtype == dtype and outside == 0
