"""Degradations of photographs and what undoes them: each against its formula, on pictures with known answers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from calibration import photographs
from calibration.baselines import BASELINES
from calibration.degradations import DEGRADATIONS, PHOTOGRAPHS
from calibration.photographs import GAMMA, LEVELS, disc
from calibration.quality import psnr
from runtime.arrays import Float32
from runtime.errors import InputError
from runtime.simulation.simulator import simulate_scene


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def picture() -> Float32:
    """[3, 96, 128], smooth with edges."""
    scene = simulate_scene(3, 3, 96, 128).truth
    return np.asarray(np.clip(scene / scene.max(), 0, 1), np.float32)


def test_haze_is_koschmieders_model_and_thicker_where_it_is_far(picture: Float32) -> None:
    made = photographs.haze(picture, rng(), beta=1.2, airlight=0.9)
    seen = (made - 0.9) / (picture - 0.9)
    # One transmission for all bands of a pixel, between exp(-beta) and 1.
    assert np.ptp(seen[:, np.abs(picture - 0.9).min(axis=0) > 0.1], axis=0).max() < 1e-4
    assert seen.min() > np.exp(-1.2) - 1e-3 and seen.max() < 1 + 1e-3
    assert seen[:, :20].mean() < seen[:, -20:].mean() - 0.2
    np.testing.assert_array_equal(photographs.haze(picture, rng(), beta=0, airlight=0.9), picture)


def test_rain_adds_light_in_one_direction(picture: Float32) -> None:
    made = photographs.rain(picture, rng(), drops=0.01)
    streaks = 1 - (1 - made) / (1 - picture * 0.999)
    assert (made >= picture - 1e-6).all() and made.max() <= 1
    wet = streaks[0] - streaks[0].mean()
    # Neighbours along the fall are alike, those beside it are not.
    along, beside = (float((wet[a] * wet[b]).mean()) for a, b in (((slice(1, None),), (slice(-1),)), (
        (slice(None), slice(1, None)), (slice(None), slice(-1)))))  # fmt: skip
    assert along > 1.5 * beside
    np.testing.assert_allclose(photographs.rain(picture, rng(), drops=0), picture, atol=1e-6)


def test_snow_covers_pixels_alike_in_all_bands(picture: Float32) -> None:
    made = photographs.snow(picture, rng(), flakes=0.003)
    covered = np.abs(made - picture).max(axis=0) > 0.2
    assert 0.01 < covered.mean() < 0.4 and made[:, covered].mean() > picture[:, covered].mean()
    np.testing.assert_allclose(photographs.snow(picture, rng(), flakes=0), picture, atol=1e-6)


def test_little_light_is_counted_and_held_in_eight_bits() -> None:
    grey = np.full((3, 100, 100), 0.8, np.float32)
    made = photographs.lowlight(grey, rng(), exposure=0.1)
    light = made.astype(np.float64) ** GAMMA
    assert light.mean() == pytest.approx(0.1 * 0.8**GAMMA, rel=0.02)
    electrons = 0.1 * 0.8**GAMMA * photographs.ELECTRONS
    expected = np.hypot(np.sqrt(electrons) / photographs.ELECTRONS, photographs.READ_NOISE)
    assert light.std() == pytest.approx(expected, rel=0.1)
    assert np.abs(made * LEVELS - np.rint(made * LEVELS)).max() < 1e-4


def test_defocus_spreads_a_point_into_a_disc() -> None:
    point = np.zeros((2, 21, 21), np.float32)
    point[:, 10, 10] = 1
    made = photographs.defocus(point, rng(), radius=3)
    of = disc(3)
    np.testing.assert_allclose(made[0, 7:14, 7:14], of / of.sum(), atol=1e-7)
    assert of.sum() == pytest.approx(np.pi * 3**2, rel=0.05) and made.sum() == pytest.approx(2)


def test_grain_is_cut_to_eight_bits_not_rounded() -> None:
    grey = np.full((3, 200, 200), 0.5, np.float32)
    made = photographs.grain(grey, rng(), sigma=25 / 255)
    assert made.std() == pytest.approx(25 / 255, rel=0.02)
    assert made.mean() == pytest.approx(0.5 - 0.5 / LEVELS, abs=1e-3)
    assert set(np.unique(np.rint(made * LEVELS))) <= set(range(256)) and made.min() >= 0 and made.max() <= 1


def test_jpeg_is_pillows(picture: Float32) -> None:
    levels = np.rint(picture * 255).astype(np.uint8).transpose(1, 2, 0)
    held = io.BytesIO()
    Image.fromarray(levels).save(held, "JPEG", quality=20, subsampling="4:2:0")
    expected = np.asarray(Image.open(held), np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(photographs.jpeg(picture, rng(), quality=20), expected, atol=1e-6)
    bands = photographs.jpeg(np.concatenate([picture, picture])[:5], rng(), quality=20)
    assert bands.shape == (5, 96, 128) and psnr(bands, np.concatenate([picture, picture])[:5]) > 20


@pytest.mark.parametrize(
    ("task", "severity"),
    [
        ("haze", {"beta": -1}), ("haze", {"airlight": 2}), ("rain", {"drops": 2}), ("snow", {"flakes": -0.1}),
        ("lowlight", {"exposure": 0}), ("defocus", {"radius": 0}), ("grain", {"sigma": float("nan")}),
        ("jpeg", {"quality": 0}), ("jpeg", {"quality": 20.5}),
    ],
)  # fmt: skip
def test_severities_out_of_range_are_refused(picture: Float32, task: str, severity: dict[str, float]) -> None:
    with pytest.raises(InputError) as caught:
        getattr(photographs, task)(picture, rng(), **severity)
    assert caught.value.key == next(iter(severity))


@pytest.mark.parametrize("task", [task for task in PHOTOGRAPHS if task in ("haze", "rain", "defocus", "grain")])
def test_baselines_bring_a_photograph_nearer_to_the_truth(picture: Float32, task: str) -> None:
    gains = []
    for seed in range(3):
        damaged = DEGRADATIONS[task](picture, rng(seed))
        restored = BASELINES[task].restore(damaged)
        assert restored.shape == picture.shape and restored.dtype == np.float32
        gains.append(psnr(np.clip(restored, 0, 1), picture) - psnr(np.clip(damaged, 0, 1), picture))
    assert np.mean(gains) > 0


def test_what_is_dark_is_lightened_in_its_colours(picture: Float32) -> None:
    dark = photographs.lowlight(picture, rng(), exposure=0.05)
    lit = BASELINES["lowlight"].restore(dark)
    assert lit.mean() > 2 * dark.mean()
    shown = dark.min(axis=0) > 0.05
    np.testing.assert_allclose(lit[0][shown] / lit[1][shown], dark[0][shown] / dark[1][shown], rtol=1e-4)
