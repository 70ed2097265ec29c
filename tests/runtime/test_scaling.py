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
from runtime.scaling import returned, to_numbers, to_unit

INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_divided_by_the_scale(name: str) -> None:
    cube = np.array([0, 1, 50, 100, 127], name).reshape(1, 1, 5)
    unit = to_unit(cube, 100)
    assert unit.dtype == np.float32 and unit.flags.c_contiguous
    np.testing.assert_array_equal(unit, np.array([0, 0.01, 0.5, 1, 1.27], np.float32).reshape(1, 1, 5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("scale", [None, 255.0])
def test_floats_pass_as_they_are(dtype: Any, scale: float | None) -> None:
    cube = np.array([-0.5, 0, 0.25, 3], dtype).reshape(2, 2, 1)
    unit = to_unit(cube, scale)
    assert unit.dtype == np.float32 and unit.dtype.isnative
    np.testing.assert_array_equal(unit, cube)


def test_doubles_beyond_float32_become_infinite_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit = to_unit(np.array([1e300, -1e300, 1]).reshape(1, 1, 3), None)
    assert unit.ravel().tolist() == [np.inf, -np.inf, 1]


@settings(deadline=None, max_examples=200)
@given(
    st.data(),
    st.sampled_from(["u1", "i1", "u2", "i2"]),
    st.floats(0.5, 1e6, allow_nan=False, width=32),
)
def test_there_and_back_gives_the_same_numbers(data: st.DataObject, name: str, scale: float) -> None:
    cube = data.draw(arrays.arrays(np.dtype(name), (2, 3, 4)))
    back, outside = to_numbers(to_unit(cube, scale), scale, cube.dtype)
    assert back.dtype == cube.dtype and outside == 0
    np.testing.assert_array_equal(back, cube)


def test_whole_range_of_sixteen_bits_comes_back() -> None:
    for name, scale in (("u2", 65535.0), ("i2", 10000.0), ("u2", 4095.0), ("i2", 1.0)):
        limits = np.iinfo(name)
        cube = np.arange(limits.min, limits.max + 1, dtype=name).reshape(1, 256, 256)
        back, outside = to_numbers(to_unit(cube, scale), scale, cube.dtype)
        np.testing.assert_array_equal(back, cube)
        assert outside == 0


@pytest.mark.parametrize("name", INTEGERS)
def test_what_does_not_fit_is_set_to_the_limit_and_counted(name: str) -> None:
    limits = np.iinfo(name)
    scale = float(limits.max)
    cube = np.array([0, 0.5, -3, 2, 1e30, -1e30, 0.25], np.float32).reshape(1, 1, 7)
    numbers, outside = to_numbers(cube, scale, np.dtype(name))
    assert numbers.dtype == np.dtype(name) and outside == 4
    assert [int(n) for n in numbers[0, 0, [2, 5]]] == [limits.min] * 2
    # Above 2**53 the largest float below the limit stands in for it.
    assert all(limits.max - int(n) <= limits.max // 2**52 for n in numbers[0, 0, [3, 4]])
    assert abs(int(numbers[0, 0, 1]) - limits.max / 2) <= max(0.5, limits.max / 2**52)


def test_the_limits_themselves_fit() -> None:
    for name in ("u1", "i1", "u2", "i2"):
        limits = np.iinfo(name)
        cube = np.array([limits.min, limits.max], np.float32).reshape(1, 1, 2)
        numbers, outside = to_numbers(cube, 1.0, np.dtype(name))
        assert numbers.ravel().tolist() == [limits.min, limits.max] and outside == 0
        for beyond in (limits.min - 1, limits.max + 1):
            assert to_numbers(np.full((1, 1, 1), beyond, np.float32), 1.0, np.dtype(name))[1] == 1


def test_numbers_are_rounded_not_cut() -> None:
    cube = np.array([0.004, 0.006, 0.0149, -0.006, -0.004], np.float32).reshape(1, 1, 5)
    assert to_numbers(cube, 100, np.dtype("i2"))[0].ravel().tolist() == [0, 1, 1, -1, 0]
    # -0.4 is no number below zero: it rounds into the range.
    assert to_numbers(np.full((1, 1, 1), -0.004, np.float32), 100, np.dtype("u1"))[1] == 0


@pytest.mark.parametrize("scale", [0, -1, -4095.0, float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_is_not_a_positive_number_is_refused(scale: float) -> None:
    with pytest.raises(CubeError, match="scale: the scale is not a positive number"):
        to_unit(np.ones((1, 1, 1), np.int16), scale)


def test_integers_without_a_scale_are_refused_with_the_remedy() -> None:
    with pytest.raises(CubeError, match=r"a cube of integers needs a scale.*--scale 4095") as caught:
        to_unit(np.ones((1, 1, 1), np.uint8), None)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("dtype", [bool, complex, object, "S4", "U4", "M8[s]", "m8[s]", [("a", "f4")]])
def test_what_is_not_a_real_number_is_refused(dtype: Any) -> None:
    with pytest.raises(CubeError, match="not a cube of real numbers"):
        to_unit(np.zeros((1, 1, 1), dtype), 255)


def partly_missing() -> np.ndarray:
    """int16 DN [2, 1, 3], the middle pixel missing in its second band alone."""
    return np.array([[[3470, 5445, 4204]], [[100, -9999, 300]]], np.int16)


def test_missing_pixels_come_back_as_they_were() -> None:
    source = partly_missing()
    restored = np.full(source.shape, 0.5, np.float32)
    cube, saturated, moved = returned(restored, source, 1e4, -9999.0, clip=False, unit=False)
    np.testing.assert_array_equal(cube, [[[5000, 5445, 5000]], [[5000, -9999, 5000]]])
    assert (cube.dtype, saturated, moved) == (np.int16, 0, 0)


def test_missing_pixels_of_a_unit_cube_are_scaled_but_for_the_mark() -> None:
    source = partly_missing()
    restored = np.full(source.shape, 0.5, np.float32)
    cube, _, moved = returned(restored, source, 1e4, -9999.0, clip=True, unit=True)
    expected = np.array([[[0.5, 0.5445, 0.5]], [[0.5, -9999, 0.5]]], np.float32)
    np.testing.assert_array_equal(cube, expected)
    assert (cube.dtype, moved) == (np.float32, 0)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_restored_value_never_becomes_a_mark(dtype: Any, unit: bool) -> None:
    source = np.array([[[0, 7, 9]]], dtype)
    scale = 10.0 if dtype is np.int16 else None
    cube, _, moved = returned(np.array([[[0.5, -0.1, 0.0]]], np.float32), source, scale, 0.0, clip=True, unit=unit)
    assert cube[0, 0, 0] == 0 and (cube[0, 0, 1:] > 0).all() and moved == 2


def test_a_mark_at_the_end_of_the_type_is_left_downwards() -> None:
    source = np.array([[[255, 7]]], np.uint8)
    cube, saturated, moved = returned(np.full((1, 1, 2), 3.0, np.float32), source, 100.0, 255.0, clip=False, unit=False)
    assert cube.tolist() == [[[255, 254]]] and (saturated, moved) == (2, 1)
