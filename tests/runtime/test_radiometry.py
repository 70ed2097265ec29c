"""Radiometry of lines against the equations written straight down in float64."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import ConfigError, CubeError, CubeFileError, DeployError, InputError
from runtime.files import write_cube
from runtime.lines import LineFormat
from runtime.radiometry import Radiometry, load_radiometry
from runtime.radiometry.settings import checked_settings
from runtime.scaling import Conversion

BANDS, SAMPLES = 12, 20
EXACT = 4e-7
"""A few roundings of float32, relative."""


def line_format(dtype: Any = np.uint16, bands: int = BANDS, samples: int = SAMPLES, **known: Any) -> LineFormat:
    return LineFormat(bands, samples, np.dtype(dtype), **({"scale": 4095.0} | known))


def raw_line(dtype: Any = np.uint16, bands: int = BANDS, samples: int = SAMPLES, seed: int = 0) -> NDArray[Any]:
    top = 255 if np.dtype(dtype) == np.uint8 else 4095
    return np.random.default_rng(seed).integers(0, top, (bands, samples)).astype(dtype)


def applied(radiometry: Radiometry, raw: NDArray[Any]) -> NDArray[np.float32]:
    out = np.full(raw.shape, np.nan, np.float32)
    radiometry.apply_line(raw, out)
    return out


class Folder:
    """A folder of calibration files that fit the format of `line_format()`, with what is in them."""

    def __init__(self, path: Path) -> None:
        rng = np.random.default_rng(5)
        shape = (BANDS, SAMPLES)
        self.path = path
        self.dark = rng.uniform(80, 120, shape)
        self.long_dark = self.dark + rng.uniform(5, 20, shape)
        self.white = self.dark + rng.uniform(2000, 3000, shape)
        self.flat = rng.uniform(0.8, 1.2, shape)
        self.gain = rng.uniform(0.5, 1.5, shape) * np.geomspace(0.01, 10, BANDS)[:, None]
        for name in ("dark", "long_dark", "white", "flat", "gain"):
            np.save(path / f"{name}.npy", getattr(self, name))

    def save(self, name: str, array: Any) -> str:
        np.save(self.path / name, np.asarray(array))
        return name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("calibration"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.uint32])
def test_without_settings_a_line_is_what_a_cube_becomes(dtype: Any) -> None:
    format = line_format(dtype, scale=4095.0)
    raw = raw_line(dtype)
    if np.dtype(dtype).itemsize == 4:
        raw += 2**28 + 1
    out = applied(load_radiometry({}, format), raw)
    assert np.array_equal(out, Conversion(4095.0).to_unit(raw))


def test_floats_without_settings_stay_as_they_are() -> None:
    raw = raw_line(np.float32) / np.float32(7)
    assert np.array_equal(applied(load_radiometry({}, line_format(np.float32, scale=None)), raw), raw)


def test_integers_need_a_scale() -> None:
    with pytest.raises(ConfigError, match=r"radiometry\.scale: lines of integers need a scale"):
        load_radiometry({}, line_format(scale=None))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_dn(folder: Folder, dtype: Any) -> None:
    raw = raw_line(dtype)
    made = load_radiometry({"dark": "dark.npy", "flat": "flat.npy"}, line_format(dtype, scale=1000.0), folder.path)
    wanted = (raw.astype(np.float64) - folder.dark) / folder.flat / 1000
    np.testing.assert_allclose(applied(made, raw), wanted, rtol=EXACT, atol=1e-7)


def test_dn_of_a_dark_that_is_a_number() -> None:
    raw = raw_line()
    made = load_radiometry({"dark": 100, "gain": 2}, line_format(), ".")
    np.testing.assert_allclose(applied(made, raw), (raw - 100.0) * 2 / 4095, rtol=EXACT, atol=1e-7)


def test_flat_gain_and_three_kinds_of_bad_pixels(folder: Folder) -> None:
    raw, bad = raw_line(), np.zeros((BANDS, SAMPLES))
    flat, gain = folder.flat.copy(), folder.gain.copy()
    bad[3, 3] = 1
    flat[5, 5] = 0
    gain[7, 7] = np.nan
    chosen = {
        "flat": folder.save("hole_flat.npy", flat),
        "gain": folder.save("hole_gain.npy", gain),
        "bad_pixels": folder.save("three.npy", bad),
    }
    made = load_radiometry(chosen, line_format(), folder.path)
    assert np.argwhere(made.bad).tolist() == [[3, 3], [5, 5], [7, 7]]
    assert made.describe()["replaced"] == "3 of 240 (1 by flat: 1 not above 0, 1 by gain: 1 missing, 1 by bad_pixels)"
    wanted = repaired(raw / folder.flat * folder.gain / 4095, made.bad, "linear")
    np.testing.assert_allclose(applied(made, raw), wanted, rtol=EXACT, atol=1e-7)


def test_wide_integers_keep_their_last_bits(folder: Folder) -> None:
    raw = raw_line(np.int32) + 2**27
    dark = folder.save("wide.npy", np.full(raw.shape, 2.0**27))
    made = load_radiometry({"dark": dark, "scale": 4096}, line_format(np.int32), folder.path)
    assert np.array_equal(applied(made, raw), ((raw - 2**27) / 4096).astype(np.float32))


@pytest.mark.parametrize("time", [5, 2.5, list(np.linspace(1, 3, BANDS))])
def test_radiance(folder: Folder, time: Any) -> None:
    raw = raw_line()
    chosen = {"output": "radiance", "dark": "dark.npy", "gain": "gain.npy", "integration_time_ms": time, "scale": 40}
    wanted = (raw - folder.dark) * folder.gain / np.reshape(time, (-1, 1)) / 40
    np.testing.assert_allclose(
        applied(load_radiometry(chosen, line_format(), folder.path), raw), wanted, rtol=EXACT, atol=1e-6
    )


@pytest.mark.parametrize("panel", [0.95, list(np.linspace(0.9, 0.99, BANDS))])
def test_reflectance(folder: Folder, panel: Any) -> None:
    raw = raw_line()
    chosen = {"output": "reflectance", "dark": "dark.npy", "white": "white.npy", "panel_reflectance": panel}
    wanted = (raw - folder.dark) / (folder.white - folder.dark) * np.reshape(panel, (-1, 1))
    made = load_radiometry(chosen, line_format(), folder.path)
    assert made.scale == 1
    np.testing.assert_allclose(applied(made, raw), wanted, rtol=EXACT, atol=1e-7)


def test_reflectance_of_a_white_at_another_time(folder: Folder) -> None:
    """The white is brighter by the ratio of the times, and the dark goes along a line through two darks."""
    raw = raw_line()
    chosen = {
        "output": "reflectance",
        "panel_reflectance": 0.98,
        "dark": "dark.npy",
        "dark_time_ms": 2,
        "second_dark": "long_dark.npy",
        "second_dark_time_ms": 10,
        "white": "white.npy",
        "white_time_ms": 3,
        "integration_time_ms": 6,
    }

    def dark(time: float) -> NDArray[np.float64]:
        return folder.dark + (folder.long_dark - folder.dark) * (time - 2) / 8

    wanted = (raw - dark(6)) / (folder.white - dark(3)) * 3 / 6 * 0.98
    np.testing.assert_allclose(
        applied(load_radiometry(chosen, line_format(), folder.path), raw), wanted, rtol=EXACT, atol=1e-7
    )


def test_a_dark_of_another_time_is_refused_unless_it_is_said_to_be_a_bias(folder: Folder) -> None:
    raw = raw_line()
    chosen: dict[str, Any] = {"dark": "dark.npy", "dark_time_ms": 2, "integration_time_ms": 4}
    with pytest.raises(ConfigError, match=r"another integration time than the lines \(found '2 and 4 ms'\)"):
        load_radiometry(chosen, line_format(), folder.path)
    made = load_radiometry(chosen | {"dark_scales": "bias"}, line_format(), folder.path)
    np.testing.assert_allclose(applied(made, raw), (raw - folder.dark) / 4095, rtol=EXACT, atol=1e-7)
    load_radiometry(chosen | {"dark_time_ms": 4}, line_format(), folder.path)


def test_a_dark_does_not_serve_a_white_of_another_time(folder: Folder) -> None:
    chosen: dict[str, Any] = {
        "output": "reflectance",
        "panel_reflectance": 1,
        "dark": "dark.npy",
        "white": "white.npy",
        "white_time_ms": 3,
        "integration_time_ms": 6,
    }
    with pytest.raises(ConfigError, match=r"another integration time than the white \(found '6 and 3 ms'\)"):
        load_radiometry(chosen, line_format(), folder.path)
    made = load_radiometry(chosen | {"dark_scales": "bias"}, line_format(), folder.path)
    raw = raw_line()
    wanted = (raw - folder.dark) / (folder.white - folder.dark) / 2
    np.testing.assert_allclose(applied(made, raw), wanted, rtol=EXACT, atol=1e-7)


EVERYTHING: dict[str, Any] = {
    "output": "radiance",
    "dark": "dark.npy",
    "gain": "gain.npy",
    "integration_time_ms": 5,
    "scale": 40,
    "saturation": 4000,
    "bad_pixels": "bad.npy",
    "smile": list(np.linspace(-0.5, 0.5, SAMPLES)),
    "keystone": list(np.linspace(0, 1, BANDS)),
}


@pytest.fixture
def everything(folder: Folder) -> Radiometry:
    bad = np.zeros((BANDS, SAMPLES))
    bad[3, 4] = bad[:, 7] = bad[0, 0] = 1
    folder.save("bad.npy", bad)
    return load_radiometry(EVERYTHING, line_format(), folder.path)


def test_a_view_into_a_frame_gets_the_same_as_a_line(everything: Radiometry) -> None:
    lines = [raw_line(seed=seed) for seed in range(3)]
    before = [line.copy() for line in lines]
    frame = np.full((BANDS, 3, SAMPLES), np.nan, np.float32)
    for number, line in enumerate(lines):
        everything.apply_line(line, frame[:, number])
        assert np.array_equal(frame[:, number], applied(everything, line))
        assert np.array_equal(line, before[number])


@pytest.mark.parametrize("chosen", [{}, {"dark": "dark.npy", "flat": "flat.npy"}, EVERYTHING])
def test_nothing_is_allocated_per_line(everything: Radiometry, folder: Folder, chosen: dict[str, Any]) -> None:
    bands, samples = 120, 400
    rng = np.random.default_rng(1)
    for name in ("dark", "flat", "gain"):
        np.save(folder.path / f"large_{name}.npy", rng.uniform(0.9, 1.1, (bands, samples)))
    np.save(folder.path / "large_bad.npy", rng.random((bands, samples)) < 0.01)
    larger = {
        key: f"large_{value}" if isinstance(value, str) and value.endswith(".npy") else value
        for key, value in chosen.items()
    }
    if "smile" in larger:
        larger |= {"smile": [0.3] * samples, "keystone": [0.3] * bands}
    made = load_radiometry(larger, line_format(bands=bands, samples=samples, saturation=4000.0), folder.path)
    raw = np.minimum(raw_line(bands=bands, samples=samples), 3999)
    frame = np.zeros((bands, 4, samples), np.float32)
    mask = np.zeros((bands, samples), bool)

    def once() -> None:
        made.apply_line(raw, frame[:, 2])
        made.saturated(raw, mask)

    once()
    tracemalloc.start()
    try:
        for _ in range(3):
            once()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # NumPy's own casting buffers are 8192 elements each, up to three of them; a line would be 192 kB of float32.
    assert peak < 110_000


def test_saturation_counts_good_pixels_only(folder: Folder) -> None:
    bad = np.zeros((BANDS, SAMPLES))
    bad[2, 3] = 1
    raw = np.minimum(raw_line(), 3999).astype(np.uint16)
    raw[2, 3], raw[5, 6], raw[7, 8] = 4095, 4000, 4095
    chosen = {"bad_pixels": folder.save("one.npy", bad)}
    made = load_radiometry(chosen, line_format(saturation=3999.5), folder.path)
    mask = np.ones(raw.shape, bool)
    assert made.saturated(raw) == made.saturated(raw, mask) == 2
    assert sorted(map(tuple, np.argwhere(mask).tolist())) == [(5, 6), (7, 8)]
    assert load_radiometry(chosen, line_format(), folder.path).saturated(raw, mask) == 0
    assert not mask.any()


def test_the_mask_follows_replacement_and_resampling(folder: Folder) -> None:
    """What a result draws on is found by changing the saturated value and looking at what changes."""
    bad = np.zeros((BANDS, SAMPLES))
    bad[4, 10] = bad[6, 11] = 1
    raw = np.minimum(raw_line(), 3999).astype(np.uint16)
    raw[5, 10] = 4000
    other = raw.copy()
    other[5, 10] = 1
    chosen = {
        "bad_pixels": folder.save("two.npy", bad),
        "smile": [*np.linspace(-0.7, 0.7, SAMPLES - 10), *[1.0] * 10],
        "keystone": [0.25] * BANDS,
    }
    made = load_radiometry(chosen, line_format(saturation=4000.0), folder.path)
    mask = np.zeros(raw.shape, bool)
    assert made.saturated(raw, mask) == 1
    assert np.array_equal(mask, applied(made, raw) != applied(made, other))
    assert mask.sum() == 5


@pytest.mark.parametrize("smile", [0.0, 0.25, 1.0])
def test_what_is_needed_and_what_is_drawn_agree_with_what_is_done(folder: Folder, smile: float) -> None:
    bad = np.zeros((5, 8), np.uint8)
    bad[[0, 2, 3, 4], [1, 3, 3, 7]] = 1
    bad[:, 5] = 1
    format = LineFormat(5, 8, np.dtype(np.float32))
    chosen = {"bad_pixels": folder.save("elements.npy", bad), "smile": [smile] * 8, "keystone": [0.5] * 5}
    radiometry = load_radiometry(chosen, format, folder.path)
    spoilt = np.zeros((5, 8, 5, 8), bool)
    for band, sample in np.ndindex(5, 8):
        raw, out = np.ones((5, 8), np.float32), np.empty((5, 8), np.float32)
        raw[band, sample] = np.nan
        radiometry.apply_line(raw, out)
        spoilt[band, sample] = np.isnan(out)
        np.testing.assert_array_equal(radiometry.drawn(np.isnan(raw)), spoilt[band, sample])
    for band, sample in np.ndindex(5, 8):
        wanted = np.zeros((5, 8), bool)
        wanted[band, sample] = True
        np.testing.assert_array_equal(radiometry.needed(wanted), spoilt[:, :, band, sample])


def test_a_saturation_that_no_value_reaches_is_refused() -> None:
    with pytest.raises(InputError, match=r"radiometry\.saturation.*uint8"):
        load_radiometry({"saturation": 4095}, line_format(np.uint8))


def test_what_is_said_of_it(everything: Radiometry, folder: Folder) -> None:
    said = everything.describe()
    assert said["output"] == "radiance"
    assert said["dark"].endswith("dark.npy, 1 line")
    assert said["replaced"] == f"{BANDS + 2} of {BANDS * SAMPLES} ({BANDS + 2} by bad_pixels)"
    assert said["digest"] == everything.digest()
    json.dumps(said)


def test_the_digest_is_of_all_that_matters(folder: Folder, everything: Radiometry, tmp_path: Path) -> None:
    def digest(changes: dict[str, Any], **format: Any) -> str:
        return load_radiometry(EVERYTHING | changes, line_format(**format), folder.path).digest()

    flipped = np.load(folder.path / "dark.npy")
    flipped[3, 3] += 1e-6
    folder.save("flipped.npy", flipped)
    (folder.path / "copy.npy").write_bytes((folder.path / "dark.npy").read_bytes())
    assert digest({}) == digest({"dark": "copy.npy"}) == everything.digest()
    changed = [
        digest({"dark": "flipped.npy"}),
        digest({"integration_time_ms": 6}),
        digest({"scale": 41}),
        digest({"saturation": 3999}),
        digest({"bad_pixel_method": "samples"}),
        digest({"bad_pixels": None}),
        digest({"smile": None}),
        digest({"keystone": None}),
        digest({}, dtype=np.int16),
    ]
    assert len({everything.digest(), *changed}) == len(changed) + 1


@pytest.mark.parametrize(
    ("raw", "out"),
    [
        (lambda: raw_line(np.int16), lambda: np.zeros((BANDS, SAMPLES), np.float32)),
        (lambda: raw_line(samples=19), lambda: np.zeros((BANDS, SAMPLES), np.float32)),
        (lambda: raw_line(samples=BANDS, bands=SAMPLES).T, lambda: np.zeros((BANDS, SAMPLES), np.float32)),
        (raw_line, lambda: np.zeros((BANDS, SAMPLES))),
        (raw_line, lambda: np.zeros((SAMPLES, BANDS), np.float32)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(raw: Callable[[], Any], out: Callable[[], Any]) -> None:
    made = load_radiometry({}, line_format())
    with pytest.raises(CubeError, match="is not the array it should be"):
        made.apply_line(raw(), out())


@pytest.mark.parametrize(
    ("chosen", "key", "words"),
    [
        ({"drak": 1}, "drak", "not a key known here.*known are output, dark"),
        ({"dark": True}, "dark", "give a path or a number of DN"),
        ({"dark": float("nan")}, "dark", "give a path or a number of DN"),
        ({"output": "radiation"}, "output", "dn, radiance or reflectance"),
        ({"integration_time_ms": 0}, "integration_time_ms", "positive number of milliseconds"),
        ({"integration_time_ms": -1.5}, "integration_time_ms", "positive number of milliseconds"),
        ({"integration_time_ms": [1.0, 0.0]}, "integration_time_ms", "positive number of milliseconds"),
        ({"scale": 0}, "scale", "a positive number"),
        ({"response_range": [2, 3]}, "response_range", "the second above 1"),
        ({"white": "white.npy"}, "white", "has no effect here; it needs output: reflectance"),
        ({"dark": 3, "dark_time_ms": 3}, "dark_time_ms", "has no effect"),
        ({"second_dark": "dark.npy"}, "second_dark", "has no effect"),
        ({"white_time_ms": 3}, "white_time_ms", "has no effect"),
        ({"dark": "dark.npy", "dark_time_ms": 3}, "integration_time_ms", "is missing, dark_time_ms needs it"),
        ({"dark": "dark.npy", "second_dark": "long_dark.npy"}, "dark_time_ms", "is missing, a second_dark needs"),
        ({"output": "reflectance"}, "dark", "is missing.*`dark: 0` if the camera"),
        ({"output": "reflectance", "dark": 0}, "white", "is missing"),
        ({"output": "reflectance", "dark": 0, "white": "white.npy"}, "panel_reflectance", "is missing"),
        ({"output": "reflectance", "panel_reflectance": 99}, "panel_reflectance", "0.99, not 99"),
        ({"output": "reflectance", "flat": "flat.npy"}, "flat", "in reflectance it cancels"),
        ({"output": "radiance"}, "dark", "is missing"),
        ({"output": "radiance", "dark": 0}, "gain", "is missing"),
        ({"output": "radiance", "dark": 0, "gain": 1}, "integration_time_ms", "is missing"),
        ({"output": "radiance", "dark": 0, "gain": 1, "integration_time_ms": 1}, "scale", "is missing"),
        ({"gain": 0}, "gain", "a positive number"),
        ({"gain": [1.0] * 11}, "gain", "has 11 values for 12 bands"),
        ({"smile": [0.0] * BANDS}, "smile", "has 12 values for 20 samples"),
        ({"smile": [7.0] * SAMPLES}, "smile", "as large as half"),
        ({"dark": "no\nsuch"}, "dark", "give a path"),
    ],
)
def test_settings_that_do_not_make_sense(folder: Folder, chosen: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(DeployError, match=words) as caught:
        load_radiometry(chosen, line_format(), folder.path)
    assert caught.value.key == f"radiometry.{key}"
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_two_darks_of_the_same_time_make_no_line(folder: Folder) -> None:
    chosen = {
        "dark": "dark.npy",
        "second_dark": "long_dark.npy",
        "dark_time_ms": 3,
        "second_dark_time_ms": 3,
        "integration_time_ms": 5,
    }
    with pytest.raises(ConfigError, match="both darks have the same"):
        load_radiometry(chosen, line_format(), folder.path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(data: st.DataObject, tmp_path: Path) -> None:
    """The whole chain against loops in float64: dark, flat, bad pixels, smile and keystone."""
    bands, samples = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    seed = data.draw(st.integers(0, 2**32 - 1))
    method = data.draw(st.sampled_from(["linear", "samples"]))
    rng = np.random.default_rng(seed)
    shape = (bands, samples)
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]))
    dark, flat = rng.uniform(0, 50, shape), rng.uniform(0.7, 1.3, shape)
    bad = rng.random(shape) < data.draw(st.sampled_from([0, 0.1, 0.3]))
    bad[:, rng.random(samples) < data.draw(st.sampled_from([0, 0.2]))] = True
    if bad.mean() > 0.5:
        bad[:] = False
    smile = rng.uniform(-0.49, 0.49, samples) * min(bands, 4)
    keystone = rng.uniform(-0.49, 0.49, bands) * min(samples, 4)
    for name, array in (("dark", dark), ("flat", flat), ("bad", bad)):
        np.save(tmp_path / f"{name}.npy", array)
    chosen = {
        "dark": "dark.npy",
        "flat": "flat.npy",
        "bad_pixels": "bad.npy",
        "bad_pixel_method": method,
        "smile": smile.tolist(),
        "keystone": keystone.tolist(),
        "scale": 100,
    }
    raw = raw_line(dtype, bands, samples, seed)
    made = load_radiometry(chosen, line_format(dtype, bands, samples), tmp_path)
    straight = repaired((raw - dark) / flat / 100, bad, method)
    wanted = np.empty(shape)
    for b in range(bands):
        for s in range(samples):
            wanted[b, s] = bilinear(straight, b + smile[s], s + keystone[b])
    np.testing.assert_allclose(applied(made, raw), wanted, rtol=2e-6, atol=2e-5)


def repaired(line: NDArray[Any], bad: NDArray[np.bool_], method: str) -> NDArray[Any]:
    """Bad pixels replaced, column by column with np.interp."""
    if method == "samples":
        return repaired(line.T, bad.T, "linear").T
    line = line.copy()
    everywhere = np.arange(len(line))
    for s in range(line.shape[1]):
        good = ~bad[:, s]
        if good.any():
            line[:, s] = np.interp(everywhere, everywhere[good], line[good, s])
    some = np.flatnonzero(~bad.all(axis=0))
    for row in line:
        row[:] = np.interp(np.arange(len(row)), some, row[some])
    return line


def bilinear(line: NDArray[Any], b: float, s: float) -> float:
    across = [np.interp(s, np.arange(line.shape[1]), row) for row in line]
    return float(np.interp(b, np.arange(len(line)), across))


def test_an_envi_recording_is_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Seven lines at once, so that the last block is shorter.
    monkeypatch.setattr("runtime.radiometry.files.BLOCK", 7 * BANDS * SAMPLES * 4)
    rng = np.random.default_rng(2)
    recording = rng.normal(100, 3, (BANDS, 50, SAMPLES)).astype(np.float32)
    raw = raw_line()
    for suffix in ("bil", "bip", "bsq"):
        path = tmp_path / f"dark_{suffix}.{suffix}"
        write_cube(path, recording)
        made = load_radiometry({"dark": path.name}, line_format(), tmp_path)
        wanted = (raw - recording.mean(axis=1, dtype=np.float64)) / 4095
        np.testing.assert_allclose(applied(made, raw), wanted, rtol=EXACT, atol=1e-7)
        noise = np.median(recording.std(axis=1, ddof=1, dtype=np.float64))
        assert made.describe()["dark"].endswith(f"50 lines, noise {noise:.3g} DN")


def test_layouts_of_a_file(folder: Folder, tmp_path: Path) -> None:
    raw = raw_line()
    flat = folder.flat.astype(np.float32)
    write_cube(tmp_path / "line.bil", flat[:, None])
    write_cube(tmp_path / "image.bsq", flat[None])
    np.save(tmp_path / "array.npy", flat)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(flat))
    digests = {
        load_radiometry({"flat": name}, line_format(), tmp_path).digest()
        for name in ("line.bil", "line.hdr", "image.bsq", "array.npy", "fortran.npy")
    }
    assert len(digests) == 1
    made = load_radiometry({"flat": "image.bsq"}, line_format(), tmp_path)
    np.testing.assert_allclose(applied(made, raw), raw / flat.astype(float) / 4095, rtol=EXACT, atol=1e-7)


@pytest.mark.parametrize("key", ["dark", "flat"])
@pytest.mark.parametrize(
    "shape", [(SAMPLES, 1, BANDS), (1, SAMPLES, BANDS), (BANDS, 1, SAMPLES - 1), (2, BANDS, SAMPLES)]
)
def test_other_layouts_are_refused_with_what_fits(tmp_path: Path, key: str, shape: tuple[int, int, int]) -> None:
    write_cube(tmp_path / "wrong.bil", np.ones(shape, np.float32))
    with pytest.raises(CubeFileError, match=r"ENVI of 12 bands x .* x 20 samples, ENVI of 1 band x 12 lines x 20") as e:
        load_radiometry({key: "wrong.bil"}, line_format(), tmp_path)
    assert e.value.key == f"radiometry.{key}" and str(e.value.file).endswith("wrong.bil")


def test_a_flat_of_several_lines_is_refused(tmp_path: Path) -> None:
    write_cube(tmp_path / "flat.bil", np.ones((BANDS, 3, SAMPLES), np.float32))
    with pytest.raises(CubeFileError, match=r"12 bands x 3 lines x 20 samples.*1 line x 20 samples"):
        load_radiometry({"flat": "flat.bil"}, line_format(), tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a whole NumPy array file"),
        (b"\x93NUMPY\x01\x00\x06\x00{}   \n", "is not a whole NumPy array file"),
        (b"garbage" * 100, "is not a whole NumPy array file"),
        (None, "is not a whole NumPy array file"),
        (np.ones((SAMPLES, BANDS)), r"is \[samples, bands\] \(found \[20, 12\]\); .* or \.npy \[12, 20\]"),
        (np.ones(BANDS), r"has not the shape of the detector \(found \[12\]\)"),
        (np.ones((1, BANDS, SAMPLES)), "is not an array of real numbers"),
        (np.ones((BANDS, SAMPLES), np.complex64), "is not an array of real numbers"),
        (np.array([[None, {}]]), "is not a whole NumPy array file"),
        (np.ones((300, 300)), "is larger than a number per detector element"),
    ],
)
def test_damaged_and_foreign_npy_files(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "dark.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif content is None:
        np.save(path, np.ones((BANDS, SAMPLES)))
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(content)
    with pytest.raises(CubeFileError, match=words) as caught:
        load_radiometry({"dark": "dark.npy"}, line_format(), tmp_path)
    assert caught.value.key == "radiometry.dark"


def test_a_header_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (12, 99999999999), }".ljust(117) + b"\n"
    (tmp_path / "dark.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64))
    with pytest.raises(CubeFileError, match="is not a whole NumPy array file"):
        load_radiometry({"dark": "dark.npy"}, line_format(), tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dark.npz", "is not a format of calibration files"),
        ("dark.mat", "is not a format of calibration files"),
        ("missing.npy", "no such file"),
        ("missing.bil", "no such file"),
    ],
)
def test_files_of_other_formats_and_missing_ones(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(CubeFileError, match=words) as caught:
        load_radiometry({"dark": name}, line_format(), tmp_path)
    assert str(caught.value.file) == str(tmp_path / name)


def test_files_of_another_camera_are_refused(tmp_path: Path) -> None:
    ours = tuple(np.linspace(400, 1000, BANDS))
    for name, theirs in (("same", ours), ("near", [w + 3 for w in ours]), ("flipped", ours[::-1])):
        fields = {"wavelength units": "Nanometers", "wavelength": "{" + ", ".join(map(str, theirs)) + "}"}
        write_cube(tmp_path / f"{name}.bil", np.full((BANDS, 1, SAMPLES), 9, np.uint16), fields=fields)
    format = line_format(wavelengths=ours)
    load_radiometry({"dark": "same.bil"}, format, tmp_path)
    load_radiometry({"dark": "near.bil"}, format, tmp_path)
    with pytest.raises(CubeFileError, match=r"wavelengths are up to 600\.0 nm from those of the lines"):
        load_radiometry({"dark": "flipped.bil"}, format, tmp_path)


def test_the_examples_of_the_documentation_are_settings() -> None:
    text = (Path(__file__).parents[2] / "docs/radiometry.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    outputs = [checked_settings(yaml.safe_load(example)).output for example in examples]
    assert outputs == ["reflectance", "radiance"]
