"""Prompt metrics: against plain float64 definitions and the public reference, at the edges, and what they cost."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import runtime.metrics
from runtime.errors import CubeError
from runtime.metrics import LOG_FLOOR, LOGARITHMS, METRIC_SETS, METRICS, prompt_metrics, raw_metrics
from tests.golden.scene import KINDS, degraded, scene

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
Cube = NDArray[np.float32]
AT = {name: place for place, name in enumerate(METRICS)}


# The definitions, in float64 and without haste


def defined_curvature(x: NDArray[np.float64], positions: NDArray[np.intp] | None) -> list[float]:
    spectra = x.reshape(len(x), -1).T
    if positions is not None:
        spectra = spectra[positions]
    if len(x) < 3:
        return [0.0, 0.0, 0.0]
    d = np.diff(spectra, n=2, axis=1)
    deviation = d.std(axis=1, ddof=1).mean() if d.shape[1] > 1 else 0.0
    return [np.abs(d).mean(axis=1).mean(), deviation, np.abs(d).max(axis=1).mean()]


def defined_correlation(x: NDArray[np.float64]) -> list[float]:
    bands = len(x)
    centred = x.reshape(bands, -1) - x.reshape(bands, -1).mean(axis=1, keepdims=True)
    r = np.eye(bands)
    for i in range(bands):
        for j in range(bands):
            if i != j:
                squares = max((centred[i] ** 2).sum(), 1e-8) * max((centred[j] ** 2).sum(), 1e-8)
                r[i, j] = (centred[i] * centred[j]).sum() / np.sqrt(squares)
    adjacent = np.array([r[i, i + 1] for i in range(bands - 1)])
    s = np.maximum(np.linalg.svd(r, compute_uv=False), 1e-8)
    p = s / s.sum()
    return [
        adjacent.mean() if bands > 1 else 0.0,
        adjacent.std() if bands > 1 else 0.0,
        r.mean(),
        r.std(),
        np.exp(-(p * np.log(p + 1e-8)).sum()),
    ]


def symmetric_hann(n: int) -> NDArray[np.float64]:
    return np.ones(1) if n == 1 else 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / (n - 1))


def defined_spectrum(x: NDArray[np.float64]) -> list[float]:
    height, width = x.shape[1:]
    window = symmetric_hann(height)[:, None] * symmetric_hann(width)[None]
    line, sample = np.indices((height, width))
    distance = np.hypot(line - height // 2, sample - width // 2)
    far = distance > min(height // 2, width // 2) // 3
    ratios, flatness = [], []
    for band in x:
        f = np.abs(np.fft.fftshift(np.fft.fft2(band * window)))
        ratios.append((f**2)[far].sum() / ((f**2).sum() + 1e-8))
        m = f + 1e-8
        flatness.append(np.exp(np.log(m).mean()) / m.mean())
    return [np.mean(ratios), np.mean(flatness)]


def defined_gradients(x: NDArray[np.float64]) -> list[float]:
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], float)
    height, width = x.shape[1:]
    rows = []
    for band in x:
        padded = np.pad(band, 1)
        gx, gy = np.zeros((2, height, width))
        for i in range(3):
            for j in range(3):
                part = padded[i : i + height, j : j + width]
                gx += kernel[i, j] * part
                gy += kernel[j, i] * part
        magnitude, angle = np.sqrt(gx**2 + gy**2), np.arctan2(gy, gx)
        ddof = 1 if band.size > 1 else 0
        deviation = magnitude.std(ddof=ddof)
        share = (magnitude > magnitude.mean() + deviation).mean()
        rows.append([magnitude.mean(), deviation, magnitude.max(), share, angle.std(ddof=ddof)])
    return list(np.mean(rows, axis=0))


def defined(cube: NDArray[np.floating], positions: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
    x = np.asarray(cube, np.float64)
    return np.array(
        [*defined_curvature(x, positions), *defined_correlation(x), *defined_spectrum(x), *defined_gradients(x)]
    )


def assert_as_defined(cube: Cube, relative: float = 1e-4, **looser: float) -> None:
    """Within 1e-4 of the definition, or of 1e-6 where a metric is all but zero."""
    found, expected = raw_metrics(cube).astype(np.float64), defined(cube)
    tolerance = np.full(len(METRICS), relative)
    for name, value in looser.items():
        tolerance[AT[name]] = value
    wrong = np.abs(found - expected) > tolerance * np.abs(expected) + 1e-6
    assert not wrong.any(), {METRICS[i]: (found[i], expected[i]) for i in np.flatnonzero(wrong)}


def noise(*shape: int, seed: int = 0) -> Cube:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def smooth(*shape: int) -> Cube:
    axes = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return (0.5 + 0.4 * np.sin(5 * axes[0] + 3 * axes[1]) * np.cos(4 * axes[2])).astype(np.float32)


def sparse(*shape: int) -> Cube:
    cube = noise(*shape, seed=3)
    return np.where(cube > 0.99, cube, 0).astype(np.float32)


@pytest.mark.parametrize("make", [noise, smooth, sparse])
@pytest.mark.parametrize("shape", [(31, 64, 64), (8, 40, 72), (5, 33, 47), (4, 7, 129), (3, 128, 5), (12, 17, 17)])
def test_metrics_are_as_defined(make: Callable[..., Cube], shape: tuple[int, int, int]) -> None:
    # A spectrum that ends in float32 rounding has the flatness of that rounding.
    assert_as_defined(make(*shape), spectral_flatness=1.0 if make is smooth else 1e-4)


@pytest.mark.parametrize(("bands", "lines", "samples"), [(31, 96, 128), (6, 61, 83)])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_degraded_scenes_are_as_defined(kind: str, bands: int, lines: int, samples: int) -> None:
    if kind == "sr":
        lines, samples = lines // 4 * 4, samples // 4 * 4
    # Flat blocks: the sum of a Sobel's terms is zero or a rounding error, and atan2 tells them apart.
    orientation = 0.15 if kind == "sr" else 1e-4
    assert_as_defined(degraded(kind, scene(11, bands, lines, samples), 5), orientation_std=orientation)


def test_metrics_of_strong_blur_are_as_defined_but_for_rounding_of_the_flatness() -> None:
    blurred = gaussian_filter(scene(2, 9, 128, 128), (0, 2.6, 2.6), mode="reflect")
    assert_as_defined(blurred, spectral_flatness=1.0, high_frequency_ratio=1e-3)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_few_bands(bands: int) -> None:
    assert_as_defined(noise(bands, 20, 24))


@pytest.mark.parametrize(
    "shape", [(5, 1, 1), (1, 1, 1), (5, 1, 9), (5, 9, 1), (4, 2, 2), (4, 2, 9), (4, 3, 3), (3, 1, 2)]
)
def test_tiny_cubes(shape: tuple[int, int, int]) -> None:
    found = raw_metrics(noise(*shape))
    assert np.isfinite(found).all()
    assert_as_defined(noise(*shape))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -0.25])
def test_constant_cubes(value: float) -> None:
    cube = np.full((6, 20, 24), value, np.float32)
    found = dict(zip(METRICS, raw_metrics(cube), strict=True))
    assert found["curvature_mean"] == found["curvature_std"] == found["curvature_max"] == 0
    # No band varies: nothing correlates but each band with itself.
    assert found["adjacent_correlation_mean"] == 0 and found["effective_rank"] == pytest.approx(6, rel=1e-5)
    if value == 0:
        assert found["spectral_flatness"] == pytest.approx(1, abs=1e-5)
        assert not any(v for k, v in found.items() if "gradient" in k or "ratio" in k or "orientation" in k)
    else:
        assert found["gradient_max"] == pytest.approx(abs(value) * 3 * np.sqrt(2), rel=1e-6)
        assert_as_defined(cube, spectral_flatness=2)


def test_lost_and_equal_bands() -> None:
    cube = scene(4, 10, 32, 32)
    cube[[2, 3, 7]] = 0
    cube[5] = cube[4]
    cube[6] = 0.3
    assert_as_defined(cube)


def test_equal_bands_have_rank_one() -> None:
    cube = np.repeat(noise(1, 30, 30), 8, axis=0)
    assert raw_metrics(cube)[AT["effective_rank"]] == pytest.approx(1, abs=1e-4)
    assert raw_metrics(cube)[AT["correlation_mean"]] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("offset", [100.0, -50.0, 1000.0])
def test_a_large_offset_costs_no_digits_of_the_correlation(offset: float) -> None:
    cube = noise(6, 64, 64) + np.float32(offset)
    assert_as_defined(cube, spectral_flatness=0.5, high_frequency_ratio=0.1)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_metrics_of_other_scales_are_as_defined(scale: float) -> None:
    assert_as_defined(noise(5, 32, 40) * np.float32(scale))


# The public reference


@pytest.mark.parametrize("name", ["options", "main", "odd"])
def test_metrics_are_the_references(name: str) -> None:
    with np.load(GOLDEN / f"damp-{name}-small.npz") as file:
        golden = dict(file)
    bands = json.loads(str(golden["config"]))["inp_channels"]
    size = 128 if name == "main" else 64
    clean = scene(9 if name == "odd" else 7, bands, size, size)
    for place, kind in enumerate(KINDS):
        cube = degraded(kind, clean, (200 if name == "odd" else 100) + place)
        error = np.abs(raw_metrics(cube, golden["sample_index"]) / golden[f"{kind}/raw_metrics"][0] - 1)
        tolerance = np.full(len(METRICS), 1e-4)
        tolerance[AT["orientation_std"]] = 0.15 if kind == "sr" else 1e-4
        assert (error < tolerance).all(), kind


# Positions


def test_positions_choose_the_pixels_of_the_curvature_alone() -> None:
    cube = noise(7, 12, 15)
    positions = np.array([3, 100, 3, 179])
    found = raw_metrics(cube, positions)
    assert found == pytest.approx(defined(cube, positions), rel=1e-4, abs=1e-6)
    assert np.array_equal(found[3:], raw_metrics(cube)[3:])
    for form in (positions[None], positions.tolist(), positions.astype(np.uint16), positions.astype(np.int32)[None]):
        assert np.array_equal(raw_metrics(cube, form), found)


def test_every_position_is_the_default() -> None:
    cube = noise(7, 100, 101)
    assert raw_metrics(cube, np.arange(10_100)) == pytest.approx(raw_metrics(cube), rel=1e-6)


def test_many_positions_are_their_mean() -> None:
    cube = noise(5, 150, 150)
    positions = np.random.default_rng(1).integers(0, 22_500, 30_000)
    assert raw_metrics(cube, positions)[:3] == pytest.approx(defined(cube, positions)[:3], rel=1e-5)


@pytest.mark.parametrize(
    "positions",
    [
        [180],
        [-1],
        [0, 2**40],
        np.array([2**64 - 1], np.uint64),
        [0.0, 1.0],
        [True],
        [],
        3,
        [[0], [1]],
        [[[0]]],
        ["0"],
        [None],
        [[]],
    ],
)
def test_positions_that_are_none_are_refused(positions: object) -> None:
    with pytest.raises(CubeError) as caught:
        raw_metrics(noise(7, 12, 15), positions)  # type: ignore[arg-type]
    assert caught.value.key == "sample_index" and caught.value.remedy


# Sets


@pytest.mark.parametrize("make", [noise, smooth, sparse])
def test_paper6_is_six_of_the_fifteen(make: Callable[..., Cube]) -> None:
    cube = make(9, 40, 50)
    fifteen = dict(zip(METRICS, raw_metrics(cube), strict=True))
    six = prompt_metrics(cube, "paper6")
    assert six.dtype == np.float32 and six.shape == (6,)
    assert six.tolist() == [fifteen[name] for name in METRIC_SETS["paper6"]]
    positions = [5, 17]
    assert prompt_metrics(cube, "paper6", positions)[2:4].tolist() == raw_metrics(cube, positions)[:2].tolist()


def test_sets_are_the_references_and_the_papers() -> None:
    assert METRIC_SETS["reference15"] == METRICS and len(set(METRICS)) == 15
    assert [AT[name] for name in METRIC_SETS["paper6"]] == [8, 9, 0, 1, 11, 3]
    assert np.array_equal(prompt_metrics(noise(3, 9, 9), "reference15"), raw_metrics(noise(3, 9, 9)))


@pytest.mark.parametrize("kind", KINDS)
def test_log6_is_the_logarithm_of_paper6_with_one_minus_the_correlation(kind: str) -> None:
    cube = degraded(kind, scene(11, 9, 64, 80), 5)
    found = prompt_metrics(cube, "log6")
    assert found.dtype == np.float32 and found.shape == (6,)
    np.testing.assert_allclose(found[:5], np.log10(prompt_metrics(cube, "paper6")[:5]), atol=1e-6)
    # Of float32's 1 - r few digits would be left.
    correlation = defined_correlation(cube.astype(np.float64))[0]
    assert found[5] == pytest.approx(np.log10(1 - correlation), abs=1e-4)
    positions = [5, 17]
    np.testing.assert_allclose(
        prompt_metrics(cube, "log6", positions)[2:4], np.log10(raw_metrics(cube, positions)[:2]), atol=1e-6
    )


def test_log6_has_a_floor() -> None:
    low = np.log10(np.float32(LOG_FLOOR))
    # Dark: no energy, no curvature, no gradient; flatness and decorrelation are 1.
    assert prompt_metrics(np.zeros((5, 20, 24), np.float32), "log6") == pytest.approx([low, 0, *[low] * 3, 0], abs=1e-5)
    equal = np.repeat(noise(1, 30, 30), 5, axis=0)
    assert prompt_metrics(equal, "log6")[[2, 3, 5]] == pytest.approx([low] * 3)
    faint = prompt_metrics(noise(5, 20, 24) * np.float32(1e-7), "log6")
    assert faint[[2, 3, 4]] == pytest.approx([low] * 3) and np.isfinite(faint).all()


def test_log6_names_the_metrics_of_paper6() -> None:
    assert tuple(LOGARITHMS) == METRIC_SETS["log6"]
    assert tuple(metric for metric, _, _ in LOGARITHMS.values()) == METRIC_SETS["paper6"]


@pytest.mark.parametrize("name", ["paper6", "log6"])
def test_six_metrics_compute_only_what_they_need(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cube = noise(5, 20, 20)
    expected = prompt_metrics(cube, name)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("not needed")

    for module, function in (
        (np, "arctan2"),
        (np, "count_nonzero"),
        (np.linalg, "eigvalsh"),
        (np.linalg, "eigh"),
        (np.linalg, "svd"),
    ):
        monkeypatch.setattr(module, function, refuse)
    assert np.array_equal(prompt_metrics(cube, name), expected)
    with pytest.raises(AssertionError, match="not needed"):
        raw_metrics(cube)


@pytest.mark.parametrize("name", ["paper", "", "REFERENCE15"])
def test_an_unknown_set_is_refused(name: str) -> None:
    with pytest.raises(CubeError, match="reference15, paper6, log6"):
        prompt_metrics(noise(3, 9, 9), name)


# Input


def test_any_memory_order_and_float_type_will_do() -> None:
    cube = noise(6, 21, 30)
    expected = raw_metrics(cube)
    lines_first = np.ascontiguousarray(cube.transpose(1, 2, 0)).transpose(2, 0, 1)
    wide = np.zeros((12, 42, 60), np.float32)
    wide[::2, ::2, ::2] = cube
    read_only = cube.copy()
    read_only.setflags(write=False)
    forms = (
        lines_first,
        np.asfortranarray(cube),
        wide[::2, ::2, ::2],
        cube[:, ::-1].copy()[:, ::-1],
        cube.astype(np.float64),
        cube.astype(">f4"),
        cube.astype(np.longdouble),
        read_only,
    )
    for form in forms:
        assert np.array_equal(raw_metrics(form), expected)
    assert np.array_equal(raw_metrics(cube.tolist()), expected)
    half = cube.astype(np.float16)
    assert np.array_equal(raw_metrics(half), raw_metrics(half.astype(np.float32)))


@pytest.mark.parametrize("name", METRIC_SETS)
def test_the_input_is_not_modified_nor_kept(name: str) -> None:
    cube = noise(6, 21, 30)
    before = cube.copy()
    found = prompt_metrics(cube, name)
    assert np.array_equal(cube, before) and not np.shares_memory(found, cube)
    cube[:] = 0
    assert found.any()


@pytest.mark.parametrize(
    "cube",
    [
        np.zeros((4, 4), np.float32),
        np.zeros(4, np.float32),
        np.zeros((1, 4, 4, 4), np.float32),
        np.float32(1),
        np.zeros((0, 4, 4), np.float32),
        np.zeros((4, 0, 4), np.float32),
        np.zeros((4, 4, 4), np.uint16),
        np.zeros((4, 4, 4), np.int64),
        np.zeros((4, 4, 4), bool),
        np.zeros((4, 4, 4), complex),
        np.zeros((4, 4, 4), object),
        np.full((4, 4, 4), "x"),
        None,
    ],
)
def test_what_is_no_cube_is_refused(cube: object) -> None:
    with pytest.raises(CubeError) as caught:
        raw_metrics(cube)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2 and caught.value.key == "cube" and caught.value.remedy
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", METRIC_SETS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (4, 20, 29), (2, 10, 3)])
def test_values_that_are_not_finite_are_counted_and_located(name: str, value: float, place: tuple[int, ...]) -> None:
    cube = noise(5, 21, 30)
    cube[place] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CubeError, match=rf"1 values are not finite, the first in band {place[0]}"):
            prompt_metrics(cube, name)


def test_opposite_infinities_are_found() -> None:
    cube = noise(5, 21, 30)
    cube[1, 0, 0], cube[1, 0, 1] = np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CubeError, match="2 values are not finite, the first in band 1"):
            raw_metrics(cube)


@pytest.mark.parametrize("name", METRIC_SETS)
@pytest.mark.parametrize("value", [1e20, -1e30, 3e38])
def test_huge_values_give_finite_metrics_or_one_clear_error(name: str, value: float) -> None:
    cube = noise(5, 21, 30) * np.float32(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert np.isfinite(prompt_metrics(cube, name)).all()
        except CubeError as error:
            assert "too large" in str(error) and "[0, 1]" in error.remedy


def test_float64_values_beyond_float32_are_refused_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CubeError):
            raw_metrics(np.full((5, 9, 9), 1e300))


@pytest.mark.parametrize("value", [1e-20, 1e-38, 1e-45])
def test_tiny_values_give_finite_metrics(value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(raw_metrics(noise(5, 21, 30) * np.float32(value))).all()


# Cost


@pytest.mark.parametrize("name", METRIC_SETS)
def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cube = scene(3, 11, 131, 190)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(runtime.metrics, "_threads", lambda threads=threads: threads)
        results.append(prompt_metrics(cube, name).tobytes())
    assert len(set(results)) == 1


def test_a_second_run_gives_the_same_bits() -> None:
    cube = scene(3, 31, 96, 96)
    assert len({raw_metrics(cube).tobytes() for _ in range(5)}) == 1


@pytest.mark.parametrize("name", METRIC_SETS)
def test_extra_memory_stays_under_four_cubes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(runtime.metrics, "_threads", lambda: 8)
    cube = noise(31, 448, 448)
    tracemalloc.start()
    try:
        prompt_metrics(cube, name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * cube.nbytes
