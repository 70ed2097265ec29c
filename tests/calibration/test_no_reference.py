"""Figures without a truth: on cubes made of known noise, stripes and spectra they are what was put in."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.no_reference import (
    bend,
    bend_of_noise,
    clean_bands,
    noise_per_band,
    scene_in_change,
    snr_per_band,
    stripes_per_band,
)
from runtime.errors import CubeError

BANDS, LINES, SAMPLES = 40, 64, 80
SIGMA = np.geomspace(0.005, 0.05, BANDS)


@pytest.fixture(scope="module")
def clean() -> NDArray[np.float64]:
    """Mixtures of three spectra, smooth in space but for edges."""
    rng = np.random.default_rng(0)
    spectra = 0.3 + 0.2 * np.sin(np.linspace(0, 3, BANDS)[:, None] * [1, 2, 3] + [0, 1, 2])
    line, sample = np.mgrid[0:LINES, 0:SAMPLES] / 40
    shares = np.stack([1 + np.sin(line), 1 + np.cos(sample + line), 1.0 * (sample + line > 1.5)])
    shares += 0.1 * rng.standard_normal((3, LINES, SAMPLES))
    return np.einsum("bk,kls->bls", spectra, shares / 4)


def noisy(clean: NDArray[np.float64], seed: int = 1) -> NDArray[np.float64]:
    return clean + SIGMA[:, None, None] * np.random.default_rng(seed).standard_normal(clean.shape)


def test_the_noise_of_every_band_is_found(clean: NDArray[np.float64]) -> None:
    given = noisy(clean)
    # Noise of the regressors is in what is left too: the estimate is a little high where a band is cleaner than others.
    np.testing.assert_allclose(noise_per_band(given), SIGMA, rtol=0.25)
    np.testing.assert_allclose(snr_per_band(given), 20 * np.log10(clean.mean((1, 2)) / SIGMA), atol=2)
    assert (snr_per_band(clean) > 100).all()
    with pytest.raises(CubeError, match="too few pixels"):
        noise_per_band(given[:, :4, :6])
    with pytest.raises(CubeError, match="too few lines"):
        stripes_per_band(given[:, :7])


def test_texture_that_all_bands_show_is_no_noise(clean: NDArray[np.float64]) -> None:
    texture = 0.2 * np.random.default_rng(3).standard_normal((1, LINES, SAMPLES))
    np.testing.assert_allclose(noise_per_band(noisy(clean) + texture), SIGMA, rtol=0.25)


@pytest.mark.parametrize("percent", [1.0, 5.0])
def test_stripes_are_found_and_neither_noise_nor_scenes_are_stripes(clean: NDArray[np.float64], percent: float) -> None:
    mean = clean.mean((1, 2))
    offsets = np.random.default_rng(2).standard_normal((BANDS, 1, SAMPLES)) * mean[:, None, None] * percent / 100
    striped = stripes_per_band(noisy(clean) + offsets)
    assert striped.mean() == pytest.approx(percent, rel=0.15)
    for unstriped in (
        noisy(clean),
        clean,
        clean + np.linspace(0, 1, SAMPLES),
        # Along samples they are the scene's lines.
        (noisy(clean) + offsets).transpose(0, 2, 1),
    ):
        assert stripes_per_band(unstriped).mean() < 0.5 * min(percent, 1)


def test_removing_noise_alone_bends_as_much_as_noise_does(clean: NDArray[np.float64]) -> None:
    given = noisy(clean)
    cleaner = clean_bands(snr_per_band(given))
    assert cleaner.sum() == BANDS // 2 and cleaner[: BANDS // 2 - 1].all()
    expected = bend_of_noise(given, SIGMA, cleaner)
    assert bend(given, given, cleaner) == pytest.approx(0, abs=1e-3)
    # The noise along a spectrum bends nothing, and is one of many bands' here.
    assert bend(clean, given, cleaner) == pytest.approx(expected, rel=0.15)
    tilted = given * np.linspace(0.8, 1.2, BANDS)[:, None, None]
    assert bend(tilted, given, cleaner) > 1.5 * expected
    assert bend(1.1 * given, given, cleaner) == pytest.approx(0, abs=1e-3)
    np.testing.assert_allclose(bend_of_noise(given, 0 * SIGMA, cleaner), 0, atol=1e-6)


def test_what_was_changed_is_noise_or_the_scene(clean: NDArray[np.float64]) -> None:
    given = noisy(clean)
    assert (scene_in_change(given, given) == 0).all()
    assert scene_in_change(clean, given).max() < 0.05
    # Half of what is changed is noise, half the scene.
    spread = clean.std((1, 2))
    halved = scene_in_change(0.5 * given, given)
    np.testing.assert_allclose(halved, spread**2 / (spread**2 + SIGMA**2), atol=0.1)
    half = clean * (1 - SIGMA / spread)[:, None, None]
    np.testing.assert_allclose(scene_in_change(half, given), 0.5, atol=0.1)
