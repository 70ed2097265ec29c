"""Image quality: against values made by hand, scikit-image and torch; what is finite and what is refused."""

import dataclasses

import numpy as np
import pytest

from calibration.quality import Quality, ergas, max_difference, psnr, psnr_per_band, quality, sam, ssim
from runtime.errors import CubeError, InputError


@pytest.fixture(scope="module")
def cubes():
    generator = np.random.default_rng(3)
    ramp = np.linspace(0.1, 0.9, 30)[:, None] * np.linspace(0.5, 1, 26)
    truth = (np.linspace(0.4, 1, 7)[:, None, None] * ramp).astype(np.float32)
    restored = (truth + generator.normal(0, 0.05, truth.shape)).astype(np.float32)
    return restored, truth


def pixel(*spectrum):
    return np.array(spectrum, np.float32).reshape(-1, 1, 1)


def test_equal_cubes_have_the_best_figures(cubes):
    _, truth = cubes
    assert quality(truth, truth.copy()) == Quality(100.0, pytest.approx(1), 0.0, 0.0, 100.0, 0.0)


def test_psnr_is_of_the_mean_error_over_all_elements():
    truth = np.full((2, 3, 4), 0.5, np.float32)
    restored = truth.copy()
    restored[0] += 0.1
    assert psnr(restored, truth) == pytest.approx(-10 * np.log10(0.01 / 2), abs=1e-4)
    assert psnr(truth + np.float32(0.1), truth) == pytest.approx(20, abs=1e-4)
    assert psnr(truth + np.float32(10), truth) == pytest.approx(-20, abs=1e-4)


def test_psnr_is_scikit_images(cubes):
    metrics = pytest.importorskip("skimage.metrics")
    restored, truth = cubes
    expected = metrics.peak_signal_noise_ratio(truth.astype(float), restored.astype(float), data_range=1)
    assert psnr(restored, truth) == pytest.approx(expected, abs=1e-9)


def test_psnr_does_not_round_or_clip():
    truth = np.zeros((1, 2, 2), np.float32)
    assert psnr(truth + np.float32(1e-3), truth) == pytest.approx(60, abs=1e-3)
    assert psnr(truth - 2, truth) < 0
    assert psnr(truth + np.float32(1e-6), truth) == 100


def test_band_psnr_is_of_cubes_rounded_to_256_levels_and_capped():
    truth = np.stack([np.full((2, 2), level, np.float32) for level in (0.25, 0.5, 0.75)])
    restored = truth + np.array([0, 0.001, 10 / 256], np.float32)[:, None, None]
    bands = psnr_per_band(restored, truth)
    assert bands == pytest.approx([100, 100, 20 * np.log10(255 / 10)], abs=1e-9)
    assert quality(restored, truth).band_psnr == pytest.approx(bands.mean())


def test_ssim_is_scikit_images_away_from_the_border(cubes):
    metrics = pytest.importorskip("skimage.metrics")
    restored, truth = (np.pad(cube.astype(np.float64), ((0, 0), (12, 12), (12, 12))) for cube in cubes)
    expected = np.mean(
        [
            metrics.structural_similarity(
                a,
                b,
                data_range=1,
                gaussian_weights=True,
                sigma=1.5,
                truncate=3.5,
                use_sample_covariance=False,
                full=True,
            )[1][12:-12, 12:-12]
            for a, b in zip(restored, truth, strict=True)
        ]
    )
    # Padded with zeros far enough, scikit-image sees the zero border that ours is defined by.
    assert ssim(*cubes) == pytest.approx(expected, abs=1e-9)
    assert 0.3 < ssim(*cubes) < 0.99


def test_ssim_is_the_usual_torch_convolution(cubes):
    torch = pytest.importorskip("torch")
    a, b = (torch.tensor(cube, dtype=torch.float64)[:, None] for cube in cubes)
    axis = torch.arange(11, dtype=torch.float64) - 5
    taps = torch.exp(-(axis**2) / 4.5)
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2

    def mean(x):
        return torch.nn.functional.conv2d(x, window, padding=5)

    ma, mb = mean(a), mean(b)
    top = (2 * ma * mb + 1e-4) * (2 * (mean(a * b) - ma * mb) + 9e-4)
    bottom = (ma**2 + mb**2 + 1e-4) * (mean(a * a) - ma**2 + mean(b * b) - mb**2 + 9e-4)
    assert ssim(*cubes) == pytest.approx(float((top / bottom).mean()), abs=1e-12)


@pytest.mark.parametrize(
    ("restored", "truth", "angle"),
    [
        (pixel(1, 0), pixel(0, 1), 90),
        (pixel(1, 1), pixel(1, 0), 45),
        (pixel(0.2, 0.2), pixel(0.9, 0.9), 0),
        (pixel(-1, 0), pixel(1, 0), 180),
        (pixel(0, 0), pixel(0, 0), 0),
        (pixel(0, 0), pixel(0.3, 0.1), 90),
        (pixel(0.3), pixel(0.8), 0),
        (pixel(-0.3), pixel(0.8), 180),
        (pixel(1, 1e-6), pixel(1, 0), np.degrees(1e-6)),
    ],
)
def test_sam_of_spectra_made_by_hand(restored, truth, angle):
    assert sam(restored, truth) == pytest.approx(angle, abs=1e-9, rel=1e-5)


def test_sam_is_the_mean_angle_by_arccos(cubes):
    restored, truth = (cube.astype(np.float64) for cube in cubes)
    cosine = (restored * truth).sum(0) / np.sqrt((restored**2).sum(0) * (truth**2).sum(0))
    assert sam(*cubes) == pytest.approx(np.degrees(np.arccos(cosine)).mean(), abs=1e-9)


def test_ergas_is_relative_to_each_band():
    truth = np.stack([np.full((3, 3), 0.2, np.float32), np.full((3, 3), 0.8, np.float32)])
    restored = truth + np.array([0.02, 0.16], np.float32)[:, None, None]
    assert ergas(restored, truth) == pytest.approx(100 * np.sqrt((0.01 + 0.04) / 2), rel=1e-5)


def test_max_difference_finds_the_one_wrong_element(cubes):
    _, truth = cubes
    restored = truth.copy()
    restored[3, 4, 5] -= 2
    assert max_difference(restored, truth) == pytest.approx(2)


def test_a_mask_takes_the_figures_over_those_bands_only(cubes):
    restored, truth = cubes
    mask = np.zeros(7, bool)
    mask[[1, 4]] = True
    broken = restored.copy()
    broken[~mask] = 7
    assert quality(broken, truth, mask) == quality(restored[mask], truth[mask])
    assert psnr_per_band(broken, truth, mask) == pytest.approx(psnr_per_band(restored, truth)[mask])
    for figure in (psnr, ssim, sam, ergas, max_difference):
        assert figure(broken, truth, mask) == figure(restored[mask], truth[mask]) != figure(broken, truth)


def test_every_figure_gets_worse_with_more_noise(cubes):
    _, truth = cubes
    noise = np.random.default_rng(5).normal(0, 1, truth.shape).astype(np.float32)
    good, bad = (dataclasses.asdict(quality(truth + sigma * noise, truth)) for sigma in (0.02, 0.1))
    assert all(good[name] > bad[name] for name in ("psnr", "ssim", "band_psnr"))
    assert all(good[name] < bad[name] for name in ("sam", "ergas", "max_difference"))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (31, 1, 2)])
@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 0.5), (0.5, 0), (1e30, 0), (-3, 1e-30)])
def test_every_figure_is_a_finite_python_float(shape, a, b):
    figures = dataclasses.asdict(quality(np.full(shape, a, np.float32), np.full(shape, b, np.float32)))
    assert all(type(value) is float and np.isfinite(value) for value in figures.values()), figures


def test_half_precision_is_summed_in_double():
    truth = np.full((1, 64, 64), 0.5, np.float16)
    restored = truth + np.float16(0.0625)
    assert psnr(restored, truth) == pytest.approx(-20 * np.log10(0.0625), abs=1e-9)


@pytest.mark.parametrize(
    ("restored", "truth", "key"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 4, 3)), "restored"),
        (np.zeros((1, 2, 3, 4)), np.zeros((2, 3, 4)), "restored"),
        (np.zeros((2, 0, 4)), np.zeros((2, 0, 4)), "restored"),
        (np.full((2, 3, 4), np.nan), np.zeros((2, 3, 4)), "restored"),
        (np.zeros((2, 3, 4)), np.full((2, 3, 4), np.inf), "truth"),
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 4), np.uint8), "truth"),
    ],
)
def test_cubes_that_cannot_be_compared_are_refused(restored, truth, key):
    for figure in (quality, psnr, psnr_per_band, ssim, sam, ergas, max_difference):
        with pytest.raises(CubeError) as failure:
            figure(restored, truth)
        assert failure.value.key == key and failure.value.remedy


@pytest.mark.parametrize("mask", [np.zeros(7, bool), np.ones(6, bool), np.arange(7), np.ones((7, 1), bool)])
def test_a_mask_that_is_none_is_refused(mask, cubes):
    with pytest.raises(InputError) as failure:
        quality(*cubes, mask)
    assert failure.value.key == "bands"
