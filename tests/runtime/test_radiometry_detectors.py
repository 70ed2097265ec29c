"""What real and made-up detectors do to a scene, and that it is gone afterwards: bad pixels, smile, keystone, flats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files import read_cube, write_cube
from runtime.lines import LineFormat
from runtime.radiometry import Radiometry, load_radiometry

EMIT = (328, 1280)


def formatted(bands: int, samples: int, dtype: Any = np.float32, scale: float = 1.0) -> LineFormat:
    return LineFormat(bands, samples, np.dtype(dtype), scale=scale)


def applied(radiometry: Radiometry, raw: NDArray[Any]) -> NDArray[np.float32]:
    out = np.full(raw.shape, np.nan, np.float32)
    radiometry.apply_line(raw, out)
    return out


def with_bad(tmp_path: Path, bad: NDArray[Any], **more: Any) -> Radiometry:
    np.save(tmp_path / "bad.npy", bad)
    return load_radiometry({"bad_pixels": "bad.npy", **more}, formatted(*bad.shape), tmp_path)


def column_scatter(line: NDArray[Any]) -> float:
    """How much neighbouring samples differ, as a share of their mean; the largest of all bands."""
    return float((np.abs(np.diff(line, axis=1)).max(axis=1) / np.abs(line.mean(axis=1))).max())


@pytest.mark.parametrize("method", ["linear", "samples"])
@pytest.mark.parametrize("value", [1e4, np.nan, np.inf])
def test_a_plane_is_restored_within_its_good_pixels(tmp_path: Path, method: str, value: float) -> None:
    """Replacement is linear: a plane survives runs of bad bands and samples, whatever the bad pixels hold."""
    plane = 5 + 2.0 * np.arange(10)[:, None] + 3.0 * np.arange(14)
    bad = np.zeros(plane.shape, bool)
    bad[2:6, 3] = bad[4, 6:10] = bad[8, 1] = True
    raw = np.where(bad, value, plane).astype(np.float32)
    np.testing.assert_allclose(applied(with_bad(tmp_path, bad, bad_pixel_method=method), raw), plane, rtol=1e-6)


def test_at_the_ends_the_last_good_band_is_repeated(tmp_path: Path) -> None:
    line = np.arange(1.0, 13).reshape(6, 2).astype(np.float32)
    bad = np.zeros(line.shape, bool)
    bad[:2, 0] = bad[4:, 1] = True
    out = applied(with_bad(tmp_path, bad), line)
    assert out[:, 0].tolist() == [5, 5, 5, 7, 9, 11]
    assert out[:, 1].tolist() == [2, 4, 6, 8, 8, 8]


def test_a_sample_without_a_good_band_is_made_from_its_neighbours(tmp_path: Path) -> None:
    line = np.tile([0.0, 9, 9, 30, 40], (4, 1)).astype(np.float32)
    bad = np.zeros(line.shape, bool)
    bad[:, 1:3] = True
    # A neighbour's own bad pixel is replaced first.
    bad[1, 3] = True
    line[1, 3] = 1e6
    out = applied(with_bad(tmp_path, bad), line)
    np.testing.assert_allclose(out, np.tile([0, 10, 20, 30, 40], (4, 1)), rtol=1e-6)


def test_bad_samples_at_the_edge_repeat_the_last_good_one(tmp_path: Path) -> None:
    line = np.arange(20.0).reshape(4, 5).astype(np.float32)
    bad = np.zeros(line.shape, bool)
    bad[:, 0] = bad[:, 4] = True
    out = applied(with_bad(tmp_path, bad), line)
    assert np.array_equal(out[:, 0], line[:, 1]) and np.array_equal(out[:, 4], line[:, 3])


def test_a_band_without_a_good_sample_is_made_from_its_neighbours(tmp_path: Path) -> None:
    line = np.repeat(10.0 * np.arange(5), 4).reshape(5, 4).astype(np.float32)
    bad = np.zeros(line.shape, bool)
    bad[2] = True
    for method in ("linear", "samples"):
        out = applied(with_bad(tmp_path, bad, bad_pixel_method=method), np.where(bad, -1, line).astype(np.float32))
        np.testing.assert_allclose(out, line, rtol=1e-6)


def test_a_file_that_calls_most_pixels_bad_is_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(CubeFileError, match=r"99 of 100 elements are bad.*is it the other way round") as caught:
        with_bad(tmp_path, np.arange(100).reshape(10, 10) != 0)
    assert caught.value.key == "radiometry.bad_pixels"


def test_a_curved_line_of_a_lamp_becomes_straight(tmp_path: Path) -> None:
    """A lamp's line is centred at band 20 + smile; afterwards its centre is at band 20 for every sample."""
    bands, samples = 41, 64
    smile = 1.8 * (np.linspace(-1, 1, samples) ** 2 - 0.4)
    band = np.arange(bands)[:, None]
    raw = (1000 * np.exp(-0.5 * ((band - 20 - smile) / 3) ** 2)).astype(np.float32)
    made = load_radiometry({"smile": smile.tolist()}, formatted(bands, samples), tmp_path)

    def centres(line: NDArray[Any]) -> NDArray[Any]:
        return np.asarray((band * line).sum(axis=0) / line.sum(axis=0), np.float64)

    assert np.ptp(centres(raw)) > 1.7
    np.testing.assert_allclose(centres(applied(made, raw)), 20, atol=0.005)


def test_an_edge_that_runs_across_samples_becomes_straight(tmp_path: Path) -> None:
    """A bright stripe is centred at sample 30 + keystone; afterwards at sample 30 in every band."""
    bands, samples = 24, 61
    keystone = np.linspace(-1.3, 2.1, bands)
    sample = np.arange(samples)
    raw = (1000 * np.exp(-0.5 * ((sample - 30 - keystone[:, None]) / 3) ** 2)).astype(np.float32)
    made = load_radiometry({"keystone": keystone.tolist()}, formatted(bands, samples), tmp_path)
    out = applied(made, raw)
    np.testing.assert_allclose((sample * out).sum(axis=1) / out.sum(axis=1), 30, atol=0.005)


def test_smile_and_keystone_of_each_element(tmp_path: Path) -> None:
    """Linear interpolation is exact for a plane; both shifts may differ from element to element, and be in ENVI."""
    shape = (16, 18)
    rng = np.random.default_rng(3)
    smile, keystone = rng.uniform(-1.5, 1.5, shape), rng.uniform(-1.5, 1.5, shape)
    np.save(tmp_path / "smile.npy", smile)
    write_cube(tmp_path / "keystone.bil", keystone[:, None])
    band, sample = np.arange(16)[:, None], np.arange(18)
    plane = (7 + 3 * band + 2 * sample).astype(np.float32)
    made = load_radiometry({"smile": "smile.npy", "keystone": "keystone.bil"}, formatted(*shape), tmp_path)
    wanted = 7 + 3 * np.clip(band + smile, 0, 15) + 2 * np.clip(sample + keystone, 0, 17)
    np.testing.assert_allclose(applied(made, plane), wanted, rtol=1e-5)


def test_whole_shifts_move_values_and_repeat_the_edge(tmp_path: Path) -> None:
    line = np.arange(12.0).reshape(4, 3).astype(np.float32)
    out = applied(load_radiometry({"smile": [1.0, 0.0, -1.0]}, formatted(4, 3), tmp_path), line)
    assert out.tolist() == [[3, 1, 2], [6, 4, 2], [9, 7, 5], [9, 10, 8]]


def test_a_profile_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "keystone.npy", np.zeros(5))
    with pytest.raises(CubeFileError, match="has 5 values for 4 bands") as caught:
        load_radiometry({"keystone": "keystone.npy"}, formatted(4, 5), tmp_path)
    assert str(caught.value.file).endswith("keystone.npy")


@pytest.mark.parametrize("broken", [0.0, -3.0, np.nan, np.inf, 1e9, 1e-9])
def test_what_is_no_response_is_a_bad_pixel_and_no_huge_gain(tmp_path: Path, broken: float) -> None:
    """Of a flat, a gain and a white: the scene is even, so it stays even."""
    rng = np.random.default_rng(4)
    response = rng.uniform(0.9, 1.1, (20, 30))
    scene = np.linspace(100, 200, 20)[:, None]
    raw = (scene * response).astype(np.float32)
    response[5, 6] = response[12, 13] = broken
    with np.errstate(divide="ignore"):
        np.save(tmp_path / "gain.npy", 1 / response)
    np.save(tmp_path / "flat.npy", response)
    chosen: list[dict[str, Any]] = [{"flat": "flat.npy"}, {"gain": "gain.npy"}]
    if np.isfinite(broken):
        np.save(tmp_path / "white.npy", response * 200 + 50)
        raw_white = {
            "output": "reflectance",
            "dark": 50,
            "white": "white.npy",
            "panel_reflectance": 1.0,
            "scale": 0.005,
        }
        chosen.append(raw_white)
    for settings in chosen:
        made = load_radiometry(settings, formatted(20, 30), tmp_path)
        assert np.argwhere(made.bad).tolist() == [[5, 6], [12, 13]]
        out = applied(made, raw + 50 if "white" in settings else raw)
        np.testing.assert_allclose(out, np.broadcast_to(scene, out.shape), rtol=1e-5)


@pytest.mark.parametrize("key", ["flat", "gain"])
def test_a_band_or_sample_that_is_mostly_no_response_is_bad_as_a_whole(tmp_path: Path, key: str) -> None:
    """What is left of it passes by chance: unlit, a flat field is noise."""
    response = np.ones((20, 30))
    response[:11, 4] = -1
    response[9, :16] = 1e6
    response[:10, 20] = -1
    np.save(tmp_path / "some.npy", response)
    bad = load_radiometry({key: "some.npy"}, formatted(20, 30), tmp_path).bad
    assert bad[:, 4].all() and bad[9].all() and not bad[10:, 20].any()
    assert bad.sum() == 20 + 30 - 1 + 9


@pytest.mark.parametrize("key", ["flat", "gain", "white"])
def test_a_file_with_too_little_response_is_refused_with_the_count(tmp_path: Path, key: str) -> None:
    response = np.full((20, 30), 100.0)
    response[:, :7] = 0
    np.save(tmp_path / "some.npy", response)
    chosen: dict[str, Any] = {key: "some.npy"}
    if key == "white":
        chosen |= {"output": "reflectance", "dark": 0, "panel_reflectance": 0.9}
    with pytest.raises(CubeFileError, match=r"unusable in 140 of 600 elements \(23 %\), 140 of them not above 0") as e:
        load_radiometry(chosen, formatted(20, 30), tmp_path)
    assert e.value.key == f"radiometry.{key}"


def test_a_white_below_the_dark_is_refused(tmp_path: Path) -> None:
    """Files given the wrong way round."""
    np.save(tmp_path / "dark.npy", np.full((6, 7), 3000.0))
    np.save(tmp_path / "white.npy", np.full((6, 7), 100.0))
    chosen = {"output": "reflectance", "dark": "dark.npy", "white": "white.npy", "panel_reflectance": 0.9}
    with pytest.raises(CubeFileError, match="white less dark is unusable in 42 of 42 elements"):
        load_radiometry(chosen, formatted(6, 7), tmp_path)


def test_the_range_of_a_response_can_be_widened(tmp_path: Path) -> None:
    flat = np.ones((6, 7))
    flat[:, 0] = 0.1
    np.save(tmp_path / "flat.npy", flat)
    assert load_radiometry({"flat": "flat.npy"}, formatted(6, 7), tmp_path).bad[:, 0].all()
    wide = {"flat": "flat.npy", "response_range": [0.05, 5]}
    assert not load_radiometry(wide, formatted(6, 7), tmp_path).bad.any()


@pytest.mark.data
def test_the_dark_of_a_headwall_leaves_nothing_behind(data_dir: Path) -> None:
    path = data_dir / "calib/headwall_dark_1600.raw"
    dark = read_cube(path).cube[:, 0]
    scene = np.broadcast_to(np.linspace(5, 4000, 978).astype(np.uint16)[:, None], dark.shape)
    raw = np.ascontiguousarray(scene + dark, np.uint16)
    assert column_scatter(raw) > 0.3
    made = load_radiometry({"dark": str(path)}, formatted(978, 1600, np.uint16, 4095.0), ".")
    assert np.array_equal(applied(made, raw), (scene / 4095).astype(np.float32))


@pytest.mark.data
def test_the_flat_field_of_aviris3_leaves_no_stripes(data_dir: Path) -> None:
    """That of its pipeline is a correction: it is multiplied by. Where no light falls it holds 0.1."""
    path = data_dir / "calib/aviris3_flatfield.dat"
    correction = read_cube(path).cube[0].astype(np.float64)
    scene = np.linspace(1000, 3000, EMIT[0])[:, None]
    raw = (scene / correction).astype(np.float32)
    lit = slice(40, 1250)
    assert column_scatter(raw[:, lit]) > 0.5
    made = load_radiometry({"gain": str(path)}, formatted(*EMIT), ".")
    assert column_scatter(applied(made, raw)[:, lit]) < 1e-5


@pytest.mark.data
def test_a_flat_is_divided_by(data_dir: Path) -> None:
    """The same file as the response that it is the inverse of; 0.1 where no light falls makes bad pixels."""
    path = data_dir / "calib/aviris3_flatfield.dat"
    response = read_cube(path).cube[0].astype(np.float64)
    scene = np.linspace(1000, 3000, EMIT[0])[:, None]
    made = load_radiometry({"flat": str(path)}, formatted(*EMIT), ".")
    assert made.bad[response < 0.15].all()
    out = applied(made, (scene * response).astype(np.float32))
    lit = out[30:300, 40:1250]
    assert column_scatter(lit) < 1e-5
    np.testing.assert_allclose(lit, np.broadcast_to(scene[30:300], lit.shape), rtol=1e-5)


@pytest.mark.data
def test_huge_values_of_emits_flat_field_make_bad_pixels(data_dir: Path) -> None:
    path = data_dir / "calib/emit_flatfield_20241024.dat"
    correction = read_cube(path).cube[0].astype(np.float64)
    made = load_radiometry({"gain": str(path)}, formatted(*EMIT), ".")
    assert made.bad[(correction <= 0) | (correction > 100)].all()
    assert made.bad.mean() < 0.1
    # Outside the lit area the raw line is all noise of the dark; none of it may grow.
    noise = np.random.default_rng(0).normal(0, 1, EMIT).astype(np.float32)
    assert np.abs(applied(made, noise)).max() < 100 < np.abs(noise * correction).max()


@pytest.mark.data
def test_raw_lines_of_emit(data_dir: Path, tmp_path: Path) -> None:
    """A slit lit in part, in the lab: a dark made of two lines' unlit part, and the real list of bad elements."""
    calib = data_dir / "calib"
    raw = np.ascontiguousarray(read_cube(calib / "emit_raw_lab.raw").cube.transpose(1, 0, 2))
    bad = read_cube(calib / "emit_badelements.dat").cube[0] != 0
    rows, unlit, lit = slice(20, 300), slice(600, 1240), slice(80, 440)
    dark = np.broadcast_to(np.median(raw[:2, :, unlit], axis=(0, 2))[:, None], EMIT).copy()
    dark[:, unlit] = raw[:2, :, unlit].mean(axis=0)
    np.save(tmp_path / "dark.npy", dark)
    chosen = {"dark": "dark.npy", "bad_pixels": str(calib / "emit_badelements.dat"), "scale": 1}
    line = np.empty(EMIT, np.float32)
    load_radiometry(chosen, formatted(*EMIT, np.int16), tmp_path).apply_line(raw[2], line)
    good = ~bad[rows, unlit]
    assert raw[2][rows, unlit][good].std() > 50 and np.abs(line[rows, unlit][good]).mean() < 2

    def strangeness(values: NDArray[Any]) -> float:
        """How far the worst tenth of the lit bad elements stand out among their neighbours."""
        beside = (np.roll(values, 1, axis=1) + np.roll(values, -1, axis=1)) / 2
        return float(np.percentile(np.abs(values - beside)[rows, lit][bad[rows, lit]], 90))

    assert strangeness(raw[2] - dark) > 2000 and strangeness(line) < 200


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "vnir", "times"),
    [("specim_fenix_radiometric.dat", 348, (28.0, 7.9992)), ("specim_fenix1k_radiometric.dat", 352, (40.0, 7.4992))],
)
def test_radiance_of_a_fenix_with_two_detectors(
    data_dir: Path, name: str, vnir: int, times: tuple[float, float]
) -> None:
    """Two detectors with a time each (tint1, tint2 of the header) and a gain per pixel."""
    path = data_dir / "calib" / name
    gain = read_cube(path).cube[:, 0].astype(np.float64)
    time = np.where(np.arange(len(gain)) < vnir, *times)
    raw = np.random.default_rng(0).integers(100, 4000, gain.shape).astype(np.uint16)
    chosen = {
        "output": "radiance",
        "dark": 90,
        "gain": str(path),
        "integration_time_ms": time.tolist(),
        "scale": 50,
    }
    made = load_radiometry(chosen, formatted(*gain.shape, np.uint16, 4095.0), ".")
    assert not made.bad.any()
    np.testing.assert_allclose(applied(made, raw), (raw - 90.0) * gain / time[:, None] / 50, rtol=1e-6, atol=1e-7)


@pytest.mark.data
def test_the_destriping_matrix_of_hypso1(data_dir: Path, tmp_path: Path) -> None:
    """It is kept as [samples, bands]: refused as it is, taken when turned."""
    with np.load(data_dir / "calib/hypso1_destriping_matrix.npz") as archive:
        matrix = archive["arr_0"]
    np.save(tmp_path / "as_it_is.npy", matrix)
    np.save(tmp_path / "turned.npy", matrix.T)
    format = formatted(120, 684, np.uint16, 65535.0)
    with pytest.raises(CubeFileError, match=r"found \[684, 120\]\); what fits: .*\.npy \[120, 684\]"):
        load_radiometry({"gain": "as_it_is.npy"}, format, tmp_path)
    made = load_radiometry({"gain": "turned.npy"}, format, tmp_path)
    raw = np.ascontiguousarray(np.rint(50_000 / matrix.T), np.uint16)
    assert column_scatter(raw) > 0.05 and column_scatter(applied(made, raw)) < 5e-5
