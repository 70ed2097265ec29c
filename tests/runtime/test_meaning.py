"""What the numbers of a cube mean: marks, bad bands, scales and gains, with what is told and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.errors import CubeError
from runtime.meaning import Asked, Known, Meaning, meaning_of
from runtime.stated import NOTHING, Stated

BANDS, LINES, SAMPLES = 9, 24, 20
KNOWN = Known("bundle", 10000, None, BANDS)


def reflectance(seed: int = 0) -> np.ndarray:
    """float64 [bands, lines, samples], 0.05 to 0.95."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:LINES, :SAMPLES]
    smooth = 0.5 + 0.3 * np.sin(x / 5) * np.cos(y / 7)
    tilt = np.linspace(0.7, 1.2, BANDS)[:, None, None]
    return np.clip(smooth * tilt + rng.normal(0, 0.02, (BANDS, LINES, SAMPLES)), 0.05, 0.95)


def numbers(dtype: Any, scale: float = 10000) -> np.ndarray:
    cube = reflectance()
    return np.rint(cube * scale).astype(dtype) if np.dtype(dtype).kind in "iu" else cube.astype(dtype)


def border(cube: np.ndarray) -> np.ndarray:
    """Bool [lines, samples]: three columns."""
    place = np.zeros(cube.shape[1:], bool)
    place[:, :3] = True
    return place


def understood(cube: np.ndarray, stated: Stated = NOTHING, **asked: Any) -> Meaning:
    return meaning_of(cube, stated, Asked(**asked), KNOWN)


# Marks


@pytest.mark.parametrize(
    ("dtype", "mark"),
    [("i2", -9999), ("u2", 65535), ("u1", 0), ("i4", -(2**31)), ("f4", -9999), ("f8", -1e34), ("f4", 0), ("f2", -1),
     ("f4", np.nan), ("f4", -3.4028235e38), ("f4", -9999.99)],
)  # fmt: skip
@pytest.mark.parametrize("whose", ["file", "flag"])
def test_a_pixel_is_missing_where_any_band_holds_the_mark(dtype: str, mark: float, whose: str) -> None:
    cube = numbers(dtype, 200 if dtype == "u1" else 10000)
    cube[0, 1, 2] = cube[1, 2, 0] = cube[:, 0, 0] = mark
    stated, marks = (Stated(scale=None, marks=(mark,)), None) if whose == "file" else (NOTHING, (mark,))
    found = understood(cube, stated, marks=marks, scale=200.0 if dtype == "u1" else None)
    assert np.flatnonzero(found.missing).tolist() == [0, SAMPLES + 2, 2 * SAMPLES] and not found.doubts
    assert found.marks[0].whence == whose
    unit = found.unit(cube)
    assert np.isfinite(unit).all() and unit.min() > 0 and unit.max() < 1
    for values, mended in zip(reflectance(), unit, strict=True):
        assert mended[found.missing] == pytest.approx(values[~found.missing].mean(), abs=0.005)


UNNAMED = [
    ("f4", -9999), ("f8", -9999), ("f4", -999), ("f4", -32768), ("f4", -3.4028234663852886e38),
    ("f8", -1.7976931348623157e308),
    ("f4", 1e20), ("f4", -1e34), ("f4", 9.969209968386869e36), ("f4", -0.9999), ("f4", -1),
    ("f4", 65535), ("f4", -8888),
    ("f4", np.inf), ("f4", -np.inf), ("f2", -9999),
    ("i2", -9999), ("i2", -32768), ("i2", -32767), ("u2", 65535), ("i4", -9999), ("i4", -(2**31)), ("i4", 2**31 - 1),
    ("u4", 2**32 - 1), ("i2", -999),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "mark"), UNNAMED)
def test_a_mark_that_nobody_named_is_seen_and_told(dtype: str, mark: float) -> None:
    cube = numbers(dtype)
    place = border(cube)
    clean = understood(cube)
    cube[:, place] = mark
    found = understood(cube)
    np.testing.assert_array_equal(found.missing, place)
    assert len(found.doubts) == 1 and f"{place.sum()} pixels" in found.doubts[0] and "--ignore-value" in found.doubts[0]
    assert found.marks[0].whence == "data" and not found.bad
    np.testing.assert_array_equal(found.unit(cube)[:, ~place], clean.unit(numbers(dtype))[:, ~place])
    told = understood(cube, marks=(mark,))
    assert not told.doubts and (told.missing == place).all()


def test_two_marks_that_nobody_named_are_both_seen() -> None:
    cube = numbers("f4")
    cube[:, :2] = -9999
    cube[:, -1, :4] = 1e20
    found = understood(cube)
    assert int(found.missing.sum()) == 2 * SAMPLES + 4 and len(found.doubts) == 2


TOGETHER = [
    ("f4", -9999 * np.linspace(0.9955, 1.0042, BANDS)),
    ("f4", np.where(np.arange(BANDS) % 2, -9999.0, -9998.0)),
    ("f4", np.linspace(-99, -98, BANDS)),
    ("i2", np.where(np.arange(BANDS) % 2, -32768, -32767)),
    ("i4", np.linspace(-9999, -9990, BANDS)),
    ("u2", np.where(np.arange(BANDS) % 2, 65535, 65534)),
]


@pytest.mark.parametrize(("dtype", "fills"), TOGETHER, ids=range(len(TOGETHER)))
def test_marks_that_lie_close_together_are_one(dtype: str, fills: np.ndarray) -> None:
    cube = numbers(dtype)
    place = border(cube)
    cube[:, place] = fills[:, None].astype(dtype)
    found = understood(cube)
    np.testing.assert_array_equal(found.missing, place)
    assert len(found.doubts) == 1 and f"{place.sum()} pixels" in found.doubts[0]


def test_a_mark_that_few_values_equal_and_many_nearly_do() -> None:
    cube = numbers("f4")
    place = border(cube)
    cube[:, place] = (-9999 * np.linspace(0.9955, 1.0042, BANDS))[:, None]
    cube[4, :10, :3] = -9999
    found = understood(cube, Stated(marks=(-9999,)))
    np.testing.assert_array_equal(found.missing, place)
    assert any(f"{place.sum()} pixels lie within 0.5 %" in doubt for doubt in found.doubts)


@pytest.mark.parametrize("value", [0, -1, -100, -1000])
def test_spectra_of_one_value_that_nobody_named_are_told(value: int) -> None:
    cube = numbers("i2")
    cube[:, border(cube)] = value
    found = understood(cube)
    told = f"{border(cube).sum()} pixels hold {value}"
    assert any(told in doubt and f"--ignore-value {value}" in doubt for doubt in found.doubts)
    assert not understood(cube, marks=()).doubts


def test_measurements_are_no_marks() -> None:
    for cube in (numbers("f4"), numbers("i2"), numbers("u2")):
        assert understood(cube).marks == ()
    dead = numbers("i2")
    # Dead pixels, lost elements, glints and saturation are what networks restore.
    dead[np.random.default_rng(1).random(dead.shape) < 0.7] = 0
    assert not understood(dead).missing.any()
    bright = numbers("u2")
    bright[:, 3:5, 3:5] = 14000
    assert not understood(bright).missing.any()
    saturated = np.minimum(numbers("u2"), 6000)
    assert not understood(saturated).missing.any()


def test_none_means_that_nothing_is_missing() -> None:
    cube = numbers("i2")
    cube[:, border(cube)] = -9999
    found = understood(cube, Stated(marks=(-9999,)), marks=())
    assert not found.missing.any() and found.marks == ()


TURNED = [
    ("f4", -0.9999, lambda n: -0.9999 * np.linspace(0.9955, 1.0042, n), None, "0.5 %"),
    ("f4", -9999, lambda n: np.full(n, -9999 * 1.003), None, "0.5 %"),
    ("f4", -3.4e38, lambda n: np.full(n, -3.4028235e38), None, "0.5 %"),
    ("i2", -0.9999, lambda n: np.full(n, -9999), 10000.0, "hold -9999"),
    ("f4", -9999, lambda n: np.full(n, -0.9999), 10000.0, "hold -0.9999"),
    ("u2", -9999, lambda n: np.full(n, 55537), None, "hold 55537"),
    ("i2", 65535, lambda n: np.full(n, -1), None, "hold -1"),
    ("u2", -9999, lambda n: np.zeros(n), None, "hold 0"),
    ("i2", -99999, lambda n: np.full(n, -32768), None, "hold -32768"),
    ("i2", 1e20, lambda n: np.full(n, 32767), None, "hold 32767"),
    ("u1", -9999, lambda n: np.zeros(n), None, "hold 0"),
    ("f4", -1e39, lambda n: np.full(n, -3.4028235e38), None, "hold"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "named", "became", "factor", "told"), TURNED, ids=range(len(TURNED)))
def test_a_mark_that_became_another_number_on_its_way_is_recognised_and_told(
    dtype: str, named: float, became: Any, factor: float | None, told: str
) -> None:
    scale = 200.0 if dtype == "u1" else 10000.0
    cube = numbers(dtype, scale)
    if dtype[0] == "f" and factor is not None:
        cube = (reflectance() * 1.0).astype(dtype)
    place = border(cube)
    cube[:, place] = became(BANDS)[:, None].astype(dtype)
    asked = 1.0 if dtype[0] == "f" else scale
    found = understood(cube, Stated(scale=factor, marks=(named,)), scale=asked)
    np.testing.assert_array_equal(found.missing, place)
    assert any(told in doubt and f"{place.sum()} pixels" in doubt for doubt in found.doubts), found.doubts


def test_values_about_a_mark_that_are_measurements_stay_measurements() -> None:
    cube = numbers("f4")
    # 0.5 lies in the midst of the values, and none equals it.
    cube[cube == np.float32(0.5)] = 0.51
    assert not understood(cube, Stated(marks=(0.5,))).missing.any()


@pytest.mark.parametrize("mark", [math.nan, math.inf, -math.inf])
def test_a_mark_that_is_no_integer_is_doubted(mark: float) -> None:
    found = understood(numbers("u2"), Stated(marks=(mark,)))
    assert not found.missing.any() and "which no uint16 is" in found.doubts[0]
    assert not understood(numbers("f4"), Stated(marks=(mark,))).doubts


@pytest.mark.parametrize("mark", [-9999.0, 0.5, 70000.0, 1e300])
def test_a_mark_that_is_nowhere_marks_nothing_and_is_not_told(mark: float) -> None:
    found = understood(numbers("u2"), Stated(marks=(mark,)))
    assert not found.missing.any() and not found.doubts


def test_nan_that_nobody_called_missing_is_refused_with_the_flag() -> None:
    cube = numbers("f4")
    cube[3, 4, 5] = np.nan
    with pytest.raises(CubeError, match=r"not finite in 1 pixel, the first in band 4 .*--ignore-value nan"):
        understood(cube)
    assert int(understood(cube, marks=(np.nan,)).missing.sum()) == 1


def test_nothing_but_missing_pixels_is_refused() -> None:
    cube = numbers("i2")
    cube[::2, ::2] = cube[1::2, 1::2] = -9999
    cube[0] = np.where(np.arange(SAMPLES) % 2, -9999, cube[0])
    cube[1] = np.where(np.arange(SAMPLES) % 2, cube[1], -9999)
    with pytest.raises(CubeError, match=r"every pixel is marked as missing|no band holds data"):
        understood(cube, Stated(marks=(-9999,)))


# Bands


def bad(kind: str, dtype: str) -> tuple[np.ndarray, Stated]:
    cube, stated = numbers(dtype), NOTHING
    if kind == "listed":
        cube[3:5] = cube[3:5] * 0.1
        stated = Stated(bad=(3, 4))
    elif kind == "marked":
        cube[3:5], stated = -9999, Stated(marks=(-9999,))
    elif kind == "mostly marked":
        cube[3:5, :, 2:], stated = -9999, Stated(marks=(-9999,))
    elif kind == "unnamed fill":
        cube[3:5] = -9999
    elif kind == "zero":
        cube[3:5] = 0
    elif kind == "constant":
        cube[3:5] = -0.01 if dtype[0] == "f" else 17
    elif kind == "nan":
        cube[3:5] = np.nan
    elif kind == "infinite":
        cube[3:5] = np.inf
    elif kind == "saturated":
        cube[3:5] = 4095 if dtype == "i2" else 1.2
        cube[3:5, 0, :9] = 0.3 if dtype == "f4" else 3000
    elif kind == "nearly zero":
        cube[3:5] = 0
        cube[3:5, 5, 5] = 0.5 if dtype == "f4" else 5000
    return cube, stated


@pytest.mark.parametrize("dtype", ["f4", "i2"])
@pytest.mark.parametrize(
    "kind",
    [
        "listed",
        "marked",
        "mostly marked",
        "unnamed fill",
        "zero",
        "constant",
        "nan",
        "infinite",
        "saturated",
        "nearly zero",
    ],
)
def test_bands_that_say_nothing_are_left_out_and_come_back_as_they_were(kind: str, dtype: str) -> None:
    if kind in ("nan", "infinite") and dtype == "i2":
        pytest.skip("the type has no such value")
    cube, stated = bad(kind, dtype)
    found = understood(cube, stated)
    assert sorted(found.bad) == [3, 4] and not found.missing.any()
    assert any("bands 4 to 5 are" in told and "2 in all" in told for told in (*found.notes, *found.doubts))
    unit, clean = found.unit(cube), reflectance()
    # Interpolated for the network's eyes: the scene is smooth over wavelength.
    assert float(np.abs(unit[3:5] - clean[3:5]).mean()) < 0.05
    restored = np.full(cube.shape, 0.5, np.float32)
    back, _, _ = found.given_back(restored, cube, clip=False, unit=False)
    np.testing.assert_array_equal(back[3:5], cube[3:5])
    assert back[0, 0, 0] == (5000 if dtype == "i2" else 0.5)


def test_bands_are_bridged_over_wavelength() -> None:
    cube = np.repeat(np.array([0.1, 0.0, 0.4], np.float32)[:, None, None], 30, axis=1).repeat(30, axis=2)
    cube += np.random.default_rng(0).normal(0, 1e-3, cube.shape).astype(np.float32)
    cube[1] = np.nan
    for centres, expected in ((None, 0.25), ((400.0, 410.0, 430.0), 0.2), ((430.0, 410.0, 400.0), 0.25)):
        found = meaning_of(cube, Stated(wavelengths=centres))
        assert found.unit(cube)[1].mean() == pytest.approx(expected, abs=2e-3)


def test_a_band_of_one_value_may_be_restored() -> None:
    cube, _ = bad("zero", "i2")
    found = understood(cube, constant_bands="restore")
    assert not found.bad and found.unit(cube)[3].max() == 0


def test_a_cube_of_one_value_is_not_nothing() -> None:
    assert not understood(np.full((BANDS, 8, 8), 0.5, np.float32)).bad
    assert not understood(np.full((BANDS, 8, 8), 32767, np.int16), scale=32767.0).bad


def test_marks_and_bad_bands_together() -> None:
    cube = numbers("i2")
    cube[3:5] = -9999
    cube[:, border(cube)] = -9999
    found = understood(cube, Stated(marks=(-9999,)))
    assert sorted(found.bad) == [3, 4] and (found.missing == border(cube)).all()


# Scales and gains


def converted(cube: np.ndarray, stated: Stated, **asked: Any) -> np.ndarray:
    return understood(cube, stated, **asked).unit(cube)


GAINS = tuple(np.linspace(0.5e-4, 1.5e-4, BANDS).tolist())
OFFSETS = tuple(np.linspace(-0.02, 0.02, BANDS).tolist())


def behind_gains(gains: Any, offsets: Any = 0.0) -> np.ndarray:
    g, o = (np.broadcast_to(values, BANDS)[:, None, None] for values in (gains, offsets))
    return np.rint((reflectance() - o) / g)


RIGHT = [
    ("integers, the bundle's scale", numbers("i2"), NOTHING, {}, 1e-4),
    ("integers, the file's factor", numbers("u2", 4000), Stated(scale=4000), {}, 3e-4),
    ("integers, the flag", numbers("u2", 4000), Stated(scale=123), {"scale": 4000.0}, 3e-4),
    ("integers, percent", numbers("u1", 100), Stated(scale=100), {}, 6e-3),
    ("integers, a multiplier", numbers("i2"), Stated(scale=0.0001), {}, 1e-4),
    ("floats as they are", numbers("f4"), NOTHING, {}, 1e-6),
    ("floats, the file's factor", (reflectance() * 1e4).astype("f4"), Stated(scale=10000), {}, 1e-5),
    ("floats, the flag", (reflectance() * 1e4).astype("f4"), NOTHING, {"scale": 10000.0}, 1e-5),
    ("floats, percent", (reflectance() * 100).astype("f8"), Stated(scale=100), {}, 1e-5),
    ("floats, a multiplier", (reflectance() * 1e4).astype("f4"), Stated(scale=1e-4), {}, 1e-5),
    ("one gain", behind_gains(1e-4).astype("u2"), Stated(gains=(1e-4,) * BANDS), {}, 1e-4),
    ("gains per band", behind_gains(GAINS).astype("u2"), Stated(gains=GAINS), {}, 1e-4),
    ("gains and offsets", behind_gains(GAINS, OFFSETS).astype("i2"), Stated(gains=GAINS, offsets=OFFSETS), {}, 1e-4),
    ("offsets alone", (reflectance() + 0.5).astype("f4"), Stated(offsets=(-0.5,) * BANDS), {}, 1e-5),
    ("reflectance gains", behind_gains(GAINS).astype("u2"), Stated(reflectance_gains=GAINS), {}, 1e-4),
    ("gains of 1 say nothing", numbers("i2"), Stated(gains=(1.0,) * BANDS, offsets=(0.0,) * BANDS), {}, 1e-4),
    ("gain and factor that agree", numbers("i2"), Stated(gains=(1e-4,) * BANDS, scale=10000), {}, 1e-4),
    ("gains of floats", behind_gains(GAINS).astype("f4"), Stated(gains=GAINS), {}, 1e-4),
    ("a scale behind gains", (behind_gains(GAINS) * 2).astype("f4"), Stated(gains=GAINS), {"scale": 2.0}, 1e-4),
    ("the flag above gain and offset", numbers("i2"), Stated(gains=(2e-4,) * BANDS, offsets=(-0.1,) * BANDS),
     {"scale": 10000.0}, 1e-4),
    ("the flag above one gain", numbers("i2"), Stated(gains=(2e-4,) * BANDS), {"scale": 10000.0}, 1e-4),
]  # fmt: skip


@pytest.mark.parametrize(("cube", "stated", "asked", "step"), [row[1:] for row in RIGHT], ids=[row[0] for row in RIGHT])
def test_numbers_come_to_the_unit_range(cube: np.ndarray, stated: Stated, asked: dict[str, Any], step: float) -> None:
    found = understood(cube, stated, **asked)
    unit = found.unit(cube)
    np.testing.assert_allclose(unit, reflectance(), atol=step)
    # And back into the very numbers they were.
    back, outside, _ = found.given_back(unit, cube, clip=False, unit=False)
    assert back.dtype == cube.dtype and outside == 0
    np.testing.assert_allclose(
        back.astype(float), cube.astype(float), rtol=2e-6, atol=0 if cube.dtype.kind in "iu" else 1e-3
    )
    as_unit, _, _ = found.given_back(unit, cube, clip=False, unit=True)
    np.testing.assert_array_equal(as_unit, unit)


def hot(cube: np.ndarray) -> np.ndarray:
    """With one element that is far too bright."""
    cube[2, 3, 4] = 4.5
    return cube


REFUSED = [
    (numbers("u2", 4095), Stated(scale=1), {}, "reflectance scale factor: the numbers reach .*--scale"),
    ((reflectance() * 100).astype("f4"), NOTHING, {}, "the numbers reach .* as they are .*--scale"),
    (numbers("f4"), Stated(scale=10000), {}, "converted already .*--scale 1 if they are, --scale 10000"),
    (numbers("f4"), Stated(gains=GAINS), {}, "data gain values: .*converted already"),
    (hot(numbers("f4")), Stated(scale=10000), {}, "converted already"),
    (hot(numbers("f4")), Stated(gains=GAINS), {}, "converted already"),
    (numbers("f4"), Stated(scale=100), {}, "converted already"),
    (numbers("f4"), Stated(scale=0.0001), {}, "converted already"),
    (numbers("i2"), Stated(gains=tuple(g * 1e4 for g in GAINS)), {}, "data gain values: the numbers reach"),
    (numbers("i2"), Stated(gains=GAINS, scale=10000), {}, "not one and the same"),
    (numbers("i2"), Stated(gains=GAINS, reflectance_gains=GAINS), {}, "two sets of gains"),
    (numbers("i2"), NOTHING, {"scale": -1.0}, "not a positive number"),
]  # fmt: skip


@pytest.mark.parametrize(("cube", "stated", "asked", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_has_no_single_reading_is_refused(
    cube: np.ndarray, stated: Stated, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(CubeError, match=words):
        understood(cube, stated, **asked)


def test_integers_that_nobody_has_a_scale_for_are_refused() -> None:
    with pytest.raises(CubeError, match=r"scale: a cube of integers needs a scale.*--scale 4095"):
        meaning_of(numbers("i2"))


@pytest.mark.parametrize("dtype", [bool, complex, object, "S4", "U4", "M8[s]"])
def test_what_is_not_a_real_number_is_refused(dtype: Any) -> None:
    with pytest.raises(CubeError, match="not a cube of real numbers"):
        meaning_of(np.zeros((1, 1, 1), dtype))


def test_scales_that_do_not_look_right_are_doubted() -> None:
    dim = understood(numbers("i2", 500))
    assert any(" % of the bundle's scale 10000" in doubt for doubt in dim.doubts)
    spiky = numbers("f4")
    spiky[2, 3, 4] = 30
    assert any("values reach 30" in doubt and "--scale" in doubt for doubt in understood(spiky).doubts)
    assert not understood(numbers("i2", 500), scale=500.0).doubts
    # A sensor of more bits than somebody said: most numbers are still below 4.
    for far in (2.5, 5):
        by_flag = understood(numbers("i2"), scale=10000 / far).doubts
        by_file = understood(numbers("i2"), Stated(scale=10000 / far)).doubts
        for doubts in (by_flag, by_file):
            assert any("values reach" in doubt and "--scale" in doubt for doubt in doubts)
    glint = numbers("i2")
    glint[:, 3, 4] = 29000
    assert not understood(glint, scale=10000.0).doubts
    deep = numbers("f4")
    deep[:, 3, 3:9] = np.linspace(-300, -200, 6)
    assert any("down to -300" in doubt and "--ignore-value" in doubt for doubt in understood(deep).doubts)
    assert any("times what --scale says" in doubt for doubt in understood(numbers("f4"), scale=1e4).doubts)


def test_what_readers_doubt_and_axes_and_wavelengths_are_told() -> None:
    stated = Stated(doubts=("a line of the header",), wavelengths=tuple(np.linspace(700, 900, BANDS).tolist()))
    known = replace(KNOWN, wavelengths=np.linspace(400, 700, BANDS).tolist())
    found = meaning_of(numbers("i2"), stated, known=known)
    assert found.doubts[0] == "a line of the header" and "300 nm from those" in found.doubts[1]
    turned = meaning_of(numbers("i2").transpose(1, 2, 0), known=KNOWN)
    assert any("--layout" in doubt for doubt in turned.doubts)


@pytest.mark.parametrize(
    ("shape", "axes", "doubtful"),
    [
        ((BANDS + 7, 40, 30), False, True),
        ((BANDS + 7, 40, 30), True, False),
        ((BANDS + 7, 40, 30), None, False),
        ((BANDS + 1, 64, 64), False, True),
        ((BANDS, 40, BANDS), False, True),
        ((BANDS, 40, BANDS), None, False),
        ((64, BANDS, 64), None, True),
        ((64, BANDS, 64), True, False),
    ],
)
def test_axes_that_nobody_said_are_doubted_where_another_may_be_the_bands(
    shape: tuple[int, int, int], axes: bool | None, doubtful: bool
) -> None:
    cube = np.random.default_rng(0).random(shape, np.float32)
    doubts = meaning_of(cube, Stated(axes=axes), known=replace(KNOWN, bands=BANDS)).doubts
    assert any("--layout" in doubt for doubt in doubts) is doubtful


@pytest.mark.parametrize(("dtype", "scale", "top"), [("f4", None, 1.0), ("i2", 10_000.0, 10_000)])
def test_what_resampling_makes_beside_a_mark_is_told(dtype: str, scale: float | None, top: float) -> None:
    cube = ((0.2 + 0.3 * np.random.default_rng(1).random((BANDS, 24, 24))) * top).astype(dtype)
    cube[:, :, :4] = -9999
    asked = Asked(scale)
    assert not any("resampling" in doubt for doubt in meaning_of(cube, Stated(marks=(-9999.0,)), asked).doubts)
    weight = np.linspace(0.4, 0.6, 6)
    cube[:, 3:9, 4] = cube[:, 3:9, 4] * (1 - weight) - 9999 * weight
    (doubt,) = (d for d in meaning_of(cube, Stated(marks=(-9999.0,)), asked).doubts if "resampling" in d)
    assert "pixels beside the mark -9999 hold values between it and all others" in doubt


# Back


def given_back(
    source: np.ndarray, restored: float, mark: float, scale: float | None, **how: bool
) -> tuple[np.ndarray, int, int]:
    found = meaning_of(source, Stated(marks=(mark,)), Asked(scale))
    return found.given_back(
        np.full(source.shape, restored, np.float32), source, **{"clip": False, "unit": False, **how}
    )


def partly_missing() -> np.ndarray:
    """int16 DN [2, 1, 3], the middle pixel missing in its second band alone."""
    return np.array([[[3470, 5445, 4204]], [[100, -9999, 300]]], np.int16)


def test_missing_pixels_come_back_as_they_were() -> None:
    cube, saturated, moved = given_back(partly_missing(), 0.5, -9999, 1e4)
    np.testing.assert_array_equal(cube, [[[5000, 5445, 5000]], [[5000, -9999, 5000]]])
    assert (cube.dtype, saturated, moved) == (np.int16, 0, 0)
    cube, _, moved = given_back(partly_missing(), 0.5, -9999, 1e4, unit=True, clip=True)
    np.testing.assert_array_equal(cube, np.array([[[0.5, 0.5445, 0.5]], [[0.5, -9999, 0.5]]], np.float32))
    assert (cube.dtype, moved) == (np.float32, 0)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_restored_value_never_becomes_a_mark(dtype: Any, unit: bool) -> None:
    source = np.array([[[0, 7, 9]]], dtype)
    cube, _, moved = given_back(source, -0.1, 0, 10.0, unit=unit, clip=True)
    assert cube[0, 0, 0] == 0 and (cube[0, 0, 1:] > 0).all() and moved == 2


def test_a_mark_at_the_end_of_the_type_is_left_downwards() -> None:
    cube, saturated, moved = given_back(np.array([[[255, 7]]], np.uint8), 3.0, 255, 100.0)
    assert cube.tolist() == [[[255, 254]]] and (saturated, moved) == (2, 1)


@pytest.mark.parametrize(("dtype", "mark"), [("u8", 2**64 - 1), ("i8", 2**63 - 1), ("i8", -(2**63))])
def test_the_ends_of_64_bits_are_marks_like_others(dtype: str, mark: int) -> None:
    cube = numbers("i4").astype(dtype)
    cube[:, :4, :3] = mark
    found = understood(cube, scale=10000.0)
    assert int(found.missing.sum()) == 12 and len(found.doubts) == 1


@pytest.mark.parametrize(
    ("dtype", "mark"), [("f4", -3.4028234663852886e38), ("f4", -12345.68), ("f8", -12345.678901234)]
)
def test_a_mark_that_is_confirmed_as_it_is_told_is_silent(dtype: str, mark: float) -> None:
    cube = numbers(dtype)
    cube[:, :4, :3] = mark
    (doubt,) = understood(cube).doubts
    said = float(doubt.rpartition("confirm it with --ignore-value ")[2].partition(",")[0])
    again = meaning_of(cube, NOTHING, Asked(marks=(said,)), KNOWN)
    assert not again.doubts and int(again.missing.sum()) == 12


def test_what_is_said_besides_the_files_marks_is_told_with_them() -> None:
    cube = numbers("f4")
    cube[:, :2, :3] = 0
    cube[:, 4, 4] = np.nan
    with pytest.raises(CubeError) as caught:
        meaning_of(cube, Stated(marks=(0.0,)), known=KNOWN)
    assert "--ignore-value nan --ignore-value 0" in caught.value.remedy


def test_edges_are_doubted_beside_a_mark_alone() -> None:
    rng = np.random.default_rng(3)
    cube = (0.3 + 0.05 * rng.standard_normal((BANDS, 30, 30))).astype("f4")
    cube[4] += 0.3 * rng.standard_normal((30, 30))
    # A noisy band and a mark that no pixel holds, or one far from it.
    assert not meaning_of(cube, Stated(marks=(-9999.0,)), known=KNOWN).doubts
    upper = np.rint(cube * 10000).clip(0, 20000).astype("u2")
    upper[:, :, :5] = 65535
    assert not any("resampling" in d for d in meaning_of(upper, Stated(scale=1e4, marks=(65535.0,))).doubts)
    upper[:, 3:9, 5] = (0.8 * upper[:, 3:9, 5] + 0.2 * 65535).astype("u2")
    assert any(
        "6 pixels beside the mark 65535" in d for d in meaning_of(upper, Stated(scale=1e4, marks=(65535.0,))).doubts
    )


def test_remedies_about_scales_work_when_they_are_followed() -> None:
    cube = numbers("i2")
    gains = tuple([0.01] * BANDS)
    with pytest.raises(CubeError) as caught:
        meaning_of(cube, Stated(gains=gains), known=KNOWN)
    scale = float(caught.value.remedy.partition("--scale ")[2].split(",")[0])
    assert not meaning_of(cube, Stated(gains=gains), Asked(scale), KNOWN).doubts
    assert not meaning_of(numbers("f4") * 100, NOTHING, Asked(1.0), KNOWN).doubts
    varying = tuple(np.linspace(1e-5, 2e-5, BANDS).tolist())
    with pytest.raises(CubeError, match=r"converted already.*delete data gain values from the header"):
        meaning_of(numbers("f4"), Stated(gains=varying), known=KNOWN)
