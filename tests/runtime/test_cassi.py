"""The forward model of a snapshot spectrometer against loops in float64; noise; masks in files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from runtime.errors import CubeError, CubeFileError, InputError
from runtime.simulation import cassi

LINES, SAMPLES = 8, 12


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return np.random.default_rng(0).random((LINES, SAMPLES), np.float32)


@pytest.fixture(scope="module")
def cube() -> np.ndarray:
    return np.random.default_rng(1).random((28, LINES, SAMPLES), np.float32)


def test_a_measurement_is_the_sum_of_coded_bands_moved_right(cube: np.ndarray, mask: np.ndarray) -> None:
    expected = np.zeros((LINES, SAMPLES + 54))
    for r in range(LINES):
        for c in range(SAMPLES + 54):
            for i in range(28):
                if 0 <= c - 2 * i < SAMPLES:
                    expected[r, c] += 2 / 28 * float(mask[r, c - 2 * i]) * float(cube[i, r, c - 2 * i])
    found = cassi.measure(cube, mask)
    assert found.dtype == np.float32 and found.shape == (LINES, SAMPLES + 54)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_cube_of_another_size_is_refused(cube: np.ndarray, mask: np.ndarray) -> None:
    for other in (cube[:27], cube[:, 1:], cube[..., 1:]):
        with pytest.raises(CubeError, match="28 bands x 8 lines x 12 samples"):
            cassi.measure(other, mask)


def test_bands_are_shifted_back_to_where_the_mask_has_them(mask: np.ndarray) -> None:
    measured = np.arange(LINES * (SAMPLES + 54), dtype=np.float32).reshape(LINES, -1)
    bands = cassi.shift_back(measured)
    assert bands.shape == (28, LINES, SAMPLES)
    for i in (0, 1, 27):
        np.testing.assert_array_equal(bands[i], measured[:, 2 * i : 2 * i + SAMPLES])
    phi = cassi.shifted(mask)
    assert phi.shape == (28, LINES, SAMPLES + 54)
    for i in range(28):
        np.testing.assert_array_equal(cassi.shift_back(phi[i])[i], mask)
        assert phi[i].sum() == pytest.approx(mask.sum())


def test_noise_has_the_variance_of_electrons_and_of_reading() -> None:
    electrons, read, level = 500.0, 20.0, 0.8
    seen = cassi.noisy(np.full((400, 500), level, np.float32), np.random.default_rng(0), electrons, read)
    assert seen.dtype == np.float32
    assert seen.mean() == pytest.approx(level, abs=5e-4)
    assert seen.std() == pytest.approx(np.sqrt(level * electrons + read**2) / electrons, rel=0.01)
    dark = cassi.noisy(np.full((200, 200), -1.0, np.float32), np.random.default_rng(1), electrons, 0.0)
    assert not dark.any()


def test_bands_are_interpolated_linearly() -> None:
    own = np.arange(400.0, 701.0, 10.0)
    cube = np.broadcast_to((own / 1000)[:, None, None], (31, 2, 3)).astype(np.float32)
    found = cassi.resampled(cube, own.tolist())
    np.testing.assert_allclose(found[:, 1, 2], np.array(cassi.WAVELENGTHS) / 1000, atol=1e-6)
    peak = np.zeros((31, 1, 1), np.float32)
    peak[6] = 1
    at = dict(zip(cassi.WAVELENGTHS, cassi.resampled(peak, own.tolist())[:, 0, 0], strict=True))
    assert at[453.5] == pytest.approx(0.35, abs=1e-6) and at[462.0] == pytest.approx(0.8, abs=1e-6)
    assert at[471.5] == 0
    exact = cassi.resampled(np.arange(28, dtype=np.float32)[:, None, None], cassi.WAVELENGTHS)
    np.testing.assert_array_equal(exact[:, 0, 0], np.arange(28))


@pytest.mark.parametrize("centres", [[460.0, 700.0], [400.0, 640.0], [700.0, 400.0], [400.0, 500.0, 700.0]])
def test_bands_that_do_not_cover_the_instrument_s_are_refused(centres: list[float]) -> None:
    with pytest.raises(CubeError, match=r"453\.5 to 648 nm"):
        cassi.resampled(np.zeros((2, 1, 1), np.float32), centres)


def test_a_mask_is_read_from_an_array(mask: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", mask)
    np.savez(tmp_path / "mask.npz", mask=mask, other=mask[::-1])
    np.save(tmp_path / "open.npy", (mask > 0.5).astype(np.uint8))
    np.testing.assert_array_equal(cassi.read_mask(tmp_path / "mask.npy"), mask)
    np.testing.assert_array_equal(cassi.read_mask(tmp_path / "mask.npz"), mask)
    np.testing.assert_array_equal(cassi.read_mask(f"{tmp_path}/mask.npz:other"), mask[::-1])
    savemat(tmp_path / "mask.mat", {"mask": mask, "other": mask[::-1]})
    np.testing.assert_array_equal(cassi.read_mask(tmp_path / "mask.mat"), mask)
    savemat(tmp_path / "one.mat", {"aperture": mask})
    np.testing.assert_array_equal(cassi.read_mask(tmp_path / "one.mat"), mask)
    with h5py.File(tmp_path / "python.mat", "w") as file:
        file["mask"] = mask
    with pytest.raises(InputError, match="may be turned"):
        cassi.read_mask(tmp_path / "python.mat")
    with pytest.raises(CubeFileError, match="mask, other"):
        cassi.read_mask(f"{tmp_path}/mask.npz:absent")
    found = cassi.read_mask(tmp_path / "open.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, mask > 0.5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda mask: mask[1:], "multiples of 4"),
        (lambda mask: 1.5 * mask, "0 to 1"),
        (lambda mask: mask - 0.5, "0 to 1"),
        (lambda mask: np.where(mask > 0.9, np.inf, mask), "finite"),
        (lambda mask: np.full_like(mask, 0.25), "not in others"),
    ],
)
def test_what_is_no_mask_is_refused(change, told: str, mask: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", change(mask))
    with pytest.raises(InputError, match=told) as caught:
        cassi.read_mask(tmp_path / "mask.npy")
    assert caught.value.key == "mask" and "mask.npy" in str(caught.value)


def test_a_cube_and_a_file_that_is_none_are_no_masks(cube: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "cube.npy", cube)
    (tmp_path / "text.npy").write_text("no array")
    for name in ("cube.npy", "text.npy", "absent.npy"):
        with pytest.raises(CubeFileError, match=name):
            cassi.read_mask(tmp_path / name)
