"""Whites, darks and flats that were not recorded well: what is wrong in them is a bad pixel, counted and told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files import write_cube
from runtime.lines import LineFormat
from runtime.radiometry import Radiometry, load_radiometry
from runtime.radiometry.bad_pixels import unlit

BANDS, SAMPLES, LINES, LIMIT = 20, 30, 40, 4095
FORMAT = LineFormat(BANDS, SAMPLES, np.dtype(np.uint16), scale=4095.0)
SHAPE = (BANDS, SAMPLES)
SOME = ((3, 4), (3, 5), (11, 20))
KEYS = ("dark", "second_dark", "white", "flat")


class Recordings:
    """Good recordings of a detector in a folder, and what is written over them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rng = folder, np.random.default_rng(8)
        spectrum = np.sin(np.linspace(0.4, 2.6, BANDS))[:, None]
        dark = self.rng.uniform(90, 110, SHAPE)
        response = self.rng.uniform(0.97, 1.03, SHAPE)
        self.means = {
            "dark": dark, "second_dark": dark + 20, "white": dark + 3000 * spectrum * response, "flat": response * 2000,
        }  # fmt: skip
        self.made: dict[str, NDArray[Any]] = {key: self.recorded(key, mean) for key, mean in self.means.items()}

    def recorded(self, key: str, mean: NDArray[Any], noise: float = 3) -> NDArray[np.uint16]:
        """[lines, bands, samples]; a flat is one line."""
        lines = 1 if key == "flat" else LINES
        return np.rint(mean + self.rng.normal(0, noise, (lines, *SHAPE))).clip(0, 65535).astype(np.uint16)

    def put(self, key: str, value: float, *elements: tuple[int, int], lines: int | None = None) -> None:
        """Elements of the first so many lines, or of all."""
        for band, sample in elements:
            self.made[key][:lines, band, sample] = value

    def load(
        self, key: str, format: LineFormat = FORMAT, fields: dict[str, str] | None = None, **told: Any
    ) -> Radiometry:
        """Radiometry that needs `key`."""
        for name, lines in self.made.items():
            cube = np.moveaxis(np.asarray(lines), 0, 1)
            write_cube(self.folder / f"{name}.bil", cube, fields=(fields or {}) if name == key else {})
        chosen: dict[str, Any] = {"dark": "dark.bil"}
        if key == "second_dark":
            times = {"dark_time_ms": 2, "second_dark_time_ms": 4, "integration_time_ms": 3}
            chosen |= {"second_dark": "second_dark.bil", **times}
        elif key == "white":
            chosen |= {"output": "reflectance", "white": "white.bil", "panel_reflectance": 1}
        elif key == "flat":
            chosen |= {"flat": "flat.bil"}
        return load_radiometry(chosen | told, format, self.folder)

    def judged(self, key: str, reason: str, elements: Any = SOME, **how: Any) -> Radiometry:
        """That these elements are bad for that reason, and that it is said."""
        made = self.load(key, **how)
        assert sorted(map(tuple, np.argwhere(made.bad).tolist())) == sorted(elements)
        count = len(elements)
        assert made.describe()["replaced"] == f"{count} of 600 ({count} by {key}: {reason})"
        return made


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    return Recordings(tmp_path)


@pytest.mark.parametrize("key", KEYS)
def test_good_recordings_have_no_bad_pixels_and_no_doubts(recordings: Recordings, key: str) -> None:
    for told in ({}, {"saturation": LIMIT}):
        made = recordings.load(key, **told)
        assert made.describe()["replaced"] == "0 of 600" and made.doubts == ()


@pytest.mark.parametrize("key", KEYS)
def test_references_with_gains_are_refused(recordings: Recordings, key: str) -> None:
    with pytest.raises(CubeFileError, match=f"radiometry.{key}: states gains"):
        recordings.load(key, fields={"data gain values": "{" + ", ".join(["4"] * BANDS) + "}"})
    recordings.load(key, fields={"data gain values": "{" + ", ".join(["1"] * BANDS) + "}"})


LIMITS: dict[str, Callable[[], dict[str, Any]]] = {
    "settings": lambda: {"saturation": LIMIT},
    "the lines' format": lambda: {"format": replace(FORMAT, saturation=4000.5)},
    "settings before format": lambda: {"saturation": LIMIT, "format": replace(FORMAT, saturation=60000.0)},
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("key", KEYS)
def test_elements_at_the_limit_that_is_told(recordings: Recordings, key: str, limit: str) -> None:
    recordings.put(key, LIMIT, *SOME)
    made = recordings.judged(key, "3 saturated", **LIMITS[limit]())
    (doubt,) = made.doubts
    assert f"{key}.bil: 3 of 600 elements are replaced" in doubt and doubt.endswith("has 3 saturated")


@pytest.mark.parametrize("key", KEYS)
def test_elements_at_the_end_of_the_files_own_type(recordings: Recordings, key: str) -> None:
    recordings.put(key, 65535, SOME[0])
    recordings.judged(key, "1 saturated", SOME[:1])
    recordings.made = {name: (lines // 20).astype(np.uint8) for name, lines in recordings.made.items()}
    recordings.put(key, 255, SOME[0])
    assert "1 saturated" in recordings.load(key).describe()["replaced"]


@pytest.mark.parametrize("clip", [3060, 3080, 3120])
def test_a_plateau_is_a_limit_that_nobody_told(recordings: Recordings, clip: int) -> None:
    recordings.made["white"] = np.minimum(recordings.made["white"], clip)
    share = (recordings.made["white"] == clip).mean(axis=0)
    made = recordings.load("white")
    assert np.array_equal(made.bad, share > 0.01) and made.bad.any()
    assert f"{np.count_nonzero(share == 1)} saturated and" in made.describe()["replaced"]


@pytest.mark.parametrize("key", ["dark", "second_dark", "white"])
def test_one_element_that_is_always_the_highest_while_the_others_vary(recordings: Recordings, key: str) -> None:
    recordings.put(key, LIMIT, SOME[0])
    recordings.judged(key, "1 saturated", SOME[:1])


def test_a_plateau_of_a_recording_that_was_averaged_before(recordings: Recordings) -> None:
    """Where nothing varies in time, many elements of one value are one; a few are not, nor is an even white."""
    white = recordings.means["white"]
    for name, values, count in (
        ("clipped", np.minimum(white, 3060.0), np.count_nonzero(white >= 3060)),
        ("smooth", white, 0),
        ("rough", np.rint(white / 20) * 20, 0),
        ("even", np.full(SHAPE, 3000.0), 0),
        (
            "a few dull",
            np.where(recordings.rng.random(SHAPE) < 0.03, recordings.rng.uniform(2000, 2900, SHAPE), 3000.0),
            0,
        ),
    ):
        np.save(recordings.folder / f"{name}.npy", values)
        assert recordings.load("white", white=f"{name}.npy").bad.sum() == count, name
    assert count == 0 and np.count_nonzero(white >= 3060) > 20


def test_whites_at_the_limit_in_some_lines_only(recordings: Recordings) -> None:
    """The mean of what is clipped is too low: above 1 % of the lines it counts."""
    recordings.made["white"] = np.repeat(recordings.made["white"], 5, axis=0)
    for element, lines in (((2, 2), 2), ((4, 4), 3), ((6, 6), 100), ((8, 8), 200)):
        recordings.put("white", LIMIT, element, lines=lines)
    elements = [(4, 4), (6, 6), (8, 8)]
    recordings.judged("white", "1 saturated and 2 saturated in some lines", elements, saturation=LIMIT)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, "marked", "marked at times"])
@pytest.mark.parametrize("key", KEYS)
def test_elements_that_are_missing(recordings: Recordings, key: str, hole: Any) -> None:
    fields = None
    if isinstance(hole, str):
        lines = 1 if hole == "marked at times" else LINES
        fields = {"data ignore value": "7"}
        recordings.put(key, 7, *SOME, lines=lines)
    else:
        recordings.made[key] = recordings.made[key].astype(np.float32)
        recordings.put(key, hole, *SOME)
    made = recordings.judged(key, "3 missing", fields=fields)
    raw = np.full(SHAPE, 1000, np.uint16)
    out = np.empty(SHAPE, np.float32)
    made.apply_line(raw, out)
    assert np.isfinite(out).all() and len(made.doubts) == 1


@pytest.mark.parametrize("key", ["dark", "second_dark", "white"])
def test_elements_that_are_missing_in_an_image(recordings: Recordings, key: str) -> None:
    values = recordings.means[key].copy()
    values[3, 4] = np.nan
    np.save(recordings.folder / "image.npy", values)
    recordings.judged(key, "1 missing", SOME[:1], **{key: "image.npy"})


@pytest.mark.parametrize(
    ("key", "reason"), [("dark", "zero"), ("second_dark", "zero"), ("white", "not above 0"), ("flat", "not above 0")]
)
def test_elements_that_are_zero(recordings: Recordings, key: str, reason: str) -> None:
    recordings.put(key, 0, *SOME)
    recordings.judged(key, f"3 {reason}")


def test_darks_near_zero_have_zeros(recordings: Recordings) -> None:
    for dark in (
        np.zeros(SHAPE),
        recordings.rng.normal(0, 2, SHAPE).clip(0),
        recordings.rng.normal(0, 2, SHAPE).round(),
        recordings.rng.uniform(0, 50, SHAPE) * (recordings.rng.random(SHAPE) > 0.1),
        np.full(SHAPE, np.nan),
    ):
        assert not unlit(dark).any()


def test_elements_whose_light_is_within_the_noise(recordings: Recordings) -> None:
    """Where the panel is as dark as the dark, the ratio of two noises is no reflectance."""
    dark = recordings.means["dark"]
    white = recordings.means["white"]
    # Two bands that get next to no light: their elements are alike, and all of them 5 DN above the dark.
    white[[0, 1]] = dark[[0, 1]] + 5
    recordings.made["white"] = recordings.recorded("white", white, noise=10)
    recordings.made["dark"] = recordings.recorded("dark", dark, noise=10)
    made = recordings.load("white", response_range=[0.01, 100])
    assert made.bad[:2].all() and not made.bad[2:].any()
    assert "60 by white: " in made.describe()["replaced"] and "below the noise" in made.describe()["replaced"]
    # The mean of many lines is quieter.
    recordings.made["white"] = np.repeat(recordings.recorded("white", white, noise=0.3), 3, axis=0)
    recordings.made["dark"] = recordings.recorded("dark", dark, noise=0.3)
    assert not recordings.load("white", response_range=[0.01, 100]).bad.any()


def test_a_lamp_that_flickers_makes_no_noise_in_dim_bands(recordings: Recordings) -> None:
    dark, white = recordings.means["dark"], recordings.means["white"]
    white[:3] = dark[:3] + 30 * recordings.rng.uniform(0.97, 1.03, (3, SAMPLES))
    light = 1 + recordings.rng.normal(0, 0.05, (LINES, 1, 1))
    recordings.made["white"] = recordings.recorded("white", dark + light * (white - dark))
    made = recordings.load("white", response_range=[0.01, 100])
    assert not made.bad.any() and float(made.describe()["white"].split("noise ")[1].split()[0]) > 60


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("value", "reason", "remedy"), [(LIMIT, "saturated", "record it again below"), (7, "missing", "record it again")]
)
def test_too_many_are_refused_with_the_reason(
    recordings: Recordings, key: str, value: int, reason: str, remedy: str
) -> None:
    recordings.made[key][:, :, :7] = value
    with pytest.raises(
        CubeFileError, match=rf"unusable in 140 of 600 elements \(23 %\), 140 of them {reason}"
    ) as caught:
        recordings.load(key, fields={"data ignore value": "7"}, saturation=LIMIT)
    assert caught.value.key == f"radiometry.{key}" and caught.value.remedy.startswith(remedy)


def test_a_recording_that_is_all_at_the_limit_or_missing_is_refused(recordings: Recordings) -> None:
    for value in (65535, 7):
        recordings.made["white"][:] = value
        with pytest.raises(CubeFileError, match="unusable in 600 of 600"):
            recordings.load("white", fields={"data ignore value": "7"})


def test_an_element_is_counted_once_and_each_file_has_its_own(recordings: Recordings) -> None:
    """What the dark lacks is not the white's fault."""
    recordings.put("dark", LIMIT, (3, 4))
    recordings.put("white", LIMIT, (3, 4), (9, 9))
    made = recordings.load("white", saturation=LIMIT)
    assert made.describe()["replaced"] == "2 of 600 (1 by dark: 1 saturated, 1 by white: 1 saturated)"
    assert [Path(doubt.split(":")[0]).name for doubt in made.doubts] == ["dark.bil", "white.bil"]


def test_reflectance_is_right_where_the_white_was_saturated(recordings: Recordings) -> None:
    """The scene is even along bands, so that what stands in for an element is right; a clipped gain would not be."""
    rng, folder = recordings.rng, recordings.folder
    dark, light = recordings.means["dark"], np.linspace(800, 2000, BANDS)[:, None] * rng.uniform(0.9, 1.1, SHAPE)
    truth = np.broadcast_to(rng.uniform(0.1, 0.9, SAMPLES), SHAPE)
    recordings.made["dark"] = recordings.recorded("dark", dark)
    recordings.made["white"] = np.minimum(recordings.recorded("white", dark + 2 * light), LIMIT)
    made = recordings.load("white", saturation=LIMIT, white_time_ms=2, integration_time_ms=1, dark_scales="bias")
    out = np.empty(SHAPE, np.float32)
    made.apply_line(np.rint(dark + light * truth).astype(np.uint16), out)
    assert made.bad.sum() > 20 and folder.is_dir()
    np.testing.assert_allclose(out, truth, atol=0.005)


def test_a_dark_with_some_lines_at_the_limit_has_its_own_mean(recordings: Recordings) -> None:
    recordings.made["dark"] = np.tile(recordings.made["dark"], (5, 1, 1))
    recordings.put("dark", LIMIT, *SOME, lines=1)
    dark = recordings.load("dark", saturation=LIMIT)
    line = np.full(SHAPE, 1000, np.uint16)
    out = np.empty(SHAPE, np.float32)
    dark.apply_line(line, out)
    expected = (1000 - recordings.means["dark"]) / 4095
    assert max(abs(out[place] - expected[place]) for place in SOME) < 1e-3


@pytest.mark.parametrize(("light", "refused"), [(0.02, True), (0.8, False)])
def test_a_white_whose_lines_are_not_alike(recordings: Recordings, light: float, refused: bool) -> None:
    dark = recordings.means["dark"]
    recordings.made["white"][:20] = dark + light * (recordings.made["white"][:20] - dark)
    if refused:
        with pytest.raises(
            CubeFileError, match=r"20 of its 40 lines are darker than the brightest, down to 2 %.*cut it"
        ):
            recordings.load("white")
    else:
        assert any("20 of its 40 lines are darker" in doubt for doubt in recordings.load("white").doubts)


@pytest.mark.parametrize("key", KEYS)
def test_references_with_a_factor_of_their_own_are_refused(recordings: Recordings, key: str) -> None:
    with pytest.raises(CubeFileError, match=r"reflectance scale factor.*not applied.*found '4'"):
        recordings.load(key, fields={"reflectance scale factor": "4"})
    for same in ("1", "4095"):
        recordings.load(key, fields={"reflectance scale factor": same})


def test_bands_that_a_white_calls_bad_are_told(recordings: Recordings) -> None:
    good = ", ".join("0" if band in (3, 4) else "1" for band in range(BANDS))
    told = recordings.load("white", fields={"bbl": f"{{{good}}}"}).doubts
    assert len(told) == 1 and "calls bands 4 to 5 bad; they are used" in told[0]
