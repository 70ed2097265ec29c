"""What is missing of a frame, made up."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from runtime.filling import filled


def frame_of(
    rank: int = 3, *, bands: int = 12, size: int = 24, noise: float = 0.0, seed: int = 0
) -> NDArray[np.float32]:
    """Smooth spectra that vary in `rank` ways about a mean."""
    rng = np.random.default_rng(seed)
    at = np.linspace(0, 1, bands)
    spectra = np.stack([np.cos(np.pi * order * at) for order in range(1, rank + 1)])
    weights = rng.normal(0, 0.1, (rank, size * size))
    made = (0.5 + spectra.T @ weights).reshape(bands, size, size)
    return (made + rng.normal(0, noise, made.shape)).astype(np.float32)


def holes_of(shape: tuple[int, ...], share: float, seed: int = 1) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(shape) < share


def with_holes(frame: NDArray[np.float32], missing: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(missing, np.float32(0), frame)


def test_what_is_there_stays_and_the_given_frame_too() -> None:
    frame, missing = frame_of(), holes_of((12, 24, 24), 0.6)
    given = with_holes(frame, missing)
    kept = given.copy()
    made = filled(given, missing)
    assert np.array_equal(given, kept) and made is not given and made.dtype == np.float32
    assert np.array_equal(made[~missing], frame[~missing])


@pytest.mark.parametrize("value", [0.0, -9999.0, np.nan, np.inf])
def test_what_a_hole_holds_says_nothing(value: float) -> None:
    frame, missing = frame_of(), holes_of((12, 24, 24), 0.6)
    given = np.where(missing, np.float32(value), frame)
    assert np.array_equal(filled(given, missing), filled(with_holes(frame, missing), missing))


def test_nothing_missing_or_everything_is_the_frame_itself() -> None:
    frame = frame_of()
    assert filled(frame, np.zeros_like(frame, bool)) is frame
    assert filled(frame, np.ones_like(frame, bool)) is frame


def test_scattered_elements_follow_from_the_frames_own_spectra() -> None:
    frame, missing = frame_of(rank=3), holes_of((12, 24, 24), 0.5)
    error = np.abs(filled(with_holes(frame, missing), missing) - frame)
    # Of three ways to vary and six elements known of a pixel nearly all is known; few have less than three.
    assert np.median(error[missing]) < 2e-3
    assert np.sqrt(np.mean(error[missing] ** 2)) < 0.03


def test_noise_is_not_followed() -> None:
    clean, missing = frame_of(rank=2, size=48), holes_of((12, 48, 48), 0.3)
    noisy = clean + np.random.default_rng(3).normal(0, 0.05, clean.shape).astype(np.float32)
    error = filled(with_holes(noisy, missing), missing)[missing] - clean[missing]
    assert np.sqrt(np.mean(error**2)) < 0.04


@pytest.mark.parametrize("centres", [None, tuple(np.cumsum(np.arange(1.0, 13.0)))])
def test_lost_bands_are_monotone_cubic_over_wavelength(centres: tuple[float, ...] | None) -> None:
    frame = frame_of()
    missing = np.zeros_like(frame, bool)
    missing[[0, 5, 6]] = True
    made = filled(with_holes(frame, missing), missing, centres)
    places = np.arange(12.0) if centres is None else np.array(centres)
    there = [1, 2, 3, 4, 7, 8, 9, 10, 11]
    expected = PchipInterpolator(places[there], frame[there])(places[[5, 6]])
    assert np.allclose(made[[5, 6]], expected, atol=1e-6)
    assert np.array_equal(made[0], frame[1]), "constant beyond what is known"


def test_wavelengths_that_do_not_rise_are_not_followed() -> None:
    frame = frame_of()
    missing = np.zeros_like(frame, bool)
    missing[4] = True
    given = with_holes(frame, missing)
    assert np.array_equal(filled(given, missing, (5.0,) * 12), filled(given, missing))


def test_one_band_that_is_left_stands_for_all() -> None:
    frame = frame_of()
    missing = np.ones_like(frame, bool)
    missing[7] = False
    assert np.array_equal(filled(with_holes(frame, missing), missing), np.repeat(frame[7:8], 12, axis=0))


def test_a_pixel_of_which_nothing_is_known_takes_the_nearest_spectrum() -> None:
    frame = frame_of()
    missing = np.zeros_like(frame, bool)
    missing[:, 3, 5] = True
    missing[:, :, -2:] = True
    made = filled(with_holes(frame, missing), missing)
    assert np.array_equal(made[:, :, -1], frame[:, :, -3])
    assert any(np.array_equal(made[:, 3, 5], frame[:, line, 5 + s]) for line, s in ((2, 0), (4, 0), (3, 1), (3, -1)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 1, 1), (31, 1, 1), (3, 1, 2), (2, 16, 1), (40, 3, 3)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_frames_of_any_shape_become_finite(shape: tuple[int, int, int], share: float) -> None:
    frame = np.random.default_rng(5).random(shape, np.float32)
    missing = holes_of(shape, share, seed=6)
    missing.flat[0] = False
    made = filled(np.where(missing, np.float32(np.nan), frame), missing)
    assert made.shape == shape and np.isfinite(made).all()
    assert np.array_equal(made[~missing], frame[~missing])


def test_a_frame_of_one_value_stays_one() -> None:
    frame, missing = np.full((6, 9, 9), 0.25, np.float32), holes_of((6, 9, 9), 0.5)
    assert np.allclose(filled(with_holes(frame, missing), missing), 0.25, atol=1e-6)


def test_pixels_are_solved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, missing = frame_of(noise=0.01), holes_of((12, 24, 24), 0.6)
    whole = filled(with_holes(frame, missing), missing)
    monkeypatch.setattr("runtime.filling.AT_ONCE", 100)
    assert np.allclose(filled(with_holes(frame, missing), missing), whole, atol=1e-5)
