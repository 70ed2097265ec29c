"""The figures of snapshot spectrometers' published tables, against values made by hand and scikit-image."""

import numpy as np
import pytest

from calibration.quality import psnr, published_snapshot_psnr, published_snapshot_ssim, ssim
from runtime.errors import CubeError


@pytest.fixture(scope="module")
def cubes():
    generator = np.random.default_rng(3)
    ramp = np.linspace(-0.1, 1.1, 15)[:, None] * np.linspace(0.5, 1, 13)
    truth = (np.linspace(0.4, 1, 3)[:, None, None] * ramp).astype(np.float32)
    return (truth + generator.normal(0, 0.05, truth.shape)).astype(np.float32), truth


def in_8_bits(cube):
    return (np.clip(cube.astype(np.float64), 0, 1) * 255).round().astype(np.uint8)


def test_psnr_is_a_mean_over_bands_in_8_bits():
    truth = np.stack([np.full((2, 2), level, np.float32) for level in (0.2, 0.6, 1.0)])
    restored = truth.copy()
    restored[0] += 0.001  # within the same level
    restored[1, 0] += 20 / 255  # half of the band
    restored[2] += 0.5  # clipped away
    expected = (100 + 10 * np.log10(255**2 / (20**2 / 2)) + 100) / 3
    assert published_snapshot_psnr(restored, truth) == pytest.approx(expected, abs=1e-6)
    assert psnr(restored, truth) < 20


def test_psnr_is_that_of_the_bytes(cubes):
    a, b = (in_8_bits(cube).astype(float) for cube in cubes)
    expected = np.mean([10 * np.log10(255**2 / np.mean((x - y) ** 2)) for x, y in zip(a, b, strict=True)])
    assert published_snapshot_psnr(*cubes) == pytest.approx(expected, abs=1e-9)
    assert published_snapshot_psnr(*cubes) != pytest.approx(psnr(*cubes), abs=0.1)


def test_ssim_is_summed_by_hand_over_whole_windows_of_bytes(cubes):
    taps = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window = np.outer(taps, taps) / taps.sum() ** 2
    found = []
    for x, y in zip(*(in_8_bits(cube).astype(float) for cube in cubes), strict=True):
        for line in range(15 - 10):
            for sample in range(13 - 10):
                a, b = (plane[line : line + 11, sample : sample + 11] for plane in (x, y))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                both = (window * (a - ma) * (b - mb)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                found.append((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert published_snapshot_ssim(*cubes) == pytest.approx(np.mean(found), abs=1e-9)
    assert published_snapshot_ssim(*cubes) != pytest.approx(ssim(*cubes), abs=1e-3)


def test_equal_cubes_and_cubes_without_room_for_a_window(cubes):
    _, truth = cubes
    assert published_snapshot_psnr(truth, truth) == 100 and published_snapshot_ssim(truth, truth) == pytest.approx(1)
    with pytest.raises(CubeError, match="SSIM needs 11 lines and samples"):
        published_snapshot_ssim(truth[:, :10], truth[:, :10])
