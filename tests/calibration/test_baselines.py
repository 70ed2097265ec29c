"""Baselines: each undoes its degradation by what can be known of it, without being told severity or truth."""

import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from calibration import degradations
from calibration.baselines import BASELINES
from calibration.degradations import PHOTOGRAPHS, TRAINING, UNSEEN, degrade
from calibration.quality import psnr
from runtime.errors import MachineError
from runtime.simulation.simulator import simulate_scene

TINY = [(1, 1, 1), (2, 1, 7), (1, 8, 8), (5, 9, 3), (3, 12, 10), (40, 8, 8)]


def rng(seed=1):
    return np.random.default_rng(seed)


def baseline(task, cube):
    return BASELINES[task].restore(cube)


@pytest.fixture(scope="module")
def scene():
    return simulate_scene(0, 16, 96, 96).truth


@pytest.fixture(scope="module")
def smooth():
    soft = gaussian_filter(rng(3).random((4, 48, 40)), (0, 5, 5), mode="mirror")
    return ((soft - soft.min()) / np.ptp(soft)).astype(np.float32)


@pytest.fixture(scope="module")
def straight():
    """Spectra that are straight lines over the bands."""
    start, slope = rng(4).uniform(0.2, 0.6, (2, 1, 24, 20))
    return (start + slope * np.arange(11)[:, None, None] / 20).astype(np.float32)


def test_there_is_one_for_every_task():
    assert set(BASELINES) == {*TRAINING, *UNSEEN, *PHOTOGRAPHS}
    assert all(each.name for each in BASELINES.values())


@pytest.mark.parametrize("task", BASELINES)
@pytest.mark.parametrize("shape", TINY)
def test_tiny_cubes_stay_finite_and_keep_their_shape(task, shape):
    cube = rng().uniform(0.1, 0.9, shape).astype(np.float32)
    degraded = degrade(cube, task, rng())
    before = degraded.copy()
    restored = baseline(task, degraded)
    assert restored.shape == shape and restored.dtype == np.float32 and np.isfinite(restored).all()
    assert np.array_equal(degraded, before)


@pytest.mark.parametrize("task", BASELINES)
@pytest.mark.parametrize("level", [0.0, 0.25])
def test_a_cube_of_one_value_stays_that(task, level):
    cube = np.full((4, 20, 24), level, np.float32)
    assert baseline(task, cube) == pytest.approx(cube, abs=1e-5)


# Of a simulated scene's fine texture too little outlasts motion blur for unsharp masking to gain.
@pytest.mark.parametrize(
    ("task", "least"),
    [("noise", 10), ("poisson", 6), ("blur", 0.5), ("sr", 1), ("inpaint", 8), ("bandloss", 10), ("motionblur", -0.1)],
)
def test_what_each_gains_on_a_simulated_scene(task, least, scene):
    for seed in range(2):
        degraded = degrade(scene, task, rng(seed))
        assert psnr(baseline(task, degraded), scene) > psnr(degraded, scene) + least


def test_lost_bands_of_straight_spectra_are_restored_exactly(straight):
    lost = straight.copy()
    lost[[2, 5, 6, 7]] = 0
    assert baseline("bandloss", lost) == pytest.approx(straight, abs=1e-6)
    lost[[0, 10]] = 0
    restored = baseline("bandloss", lost)
    assert np.array_equal(restored[0], straight[1]) and np.array_equal(restored[10], straight[9])


def test_lost_elements_of_straight_spectra_are_restored_exactly(straight):
    holes = straight.copy()
    holes[1:-1] = degradations.inpaint(straight[1:-1], rng(), rate=0.7)
    assert baseline("inpaint", holes) == pytest.approx(straight, abs=1e-6)


def test_known_elements_are_kept_and_empty_pixels_take_their_neighbours(straight):
    holes = degradations.inpaint(straight, rng(), rate=0.5)
    holes[:, 5, 5] = 0
    restored = baseline("inpaint", holes)
    assert np.array_equal(restored[holes != 0], holes[holes != 0])
    around = [restored[:, 5 + line, 5 + sample] for line, sample in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    assert any(np.array_equal(restored[:, 5, 5], spectrum) for spectrum in around)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_the_factor_is_recognised_and_a_smooth_cube_gains(factor, cut, smooth):
    smooth = smooth[:, cut:, :]
    coarse = degradations.sr(smooth, rng(), factor=factor)
    assert psnr(baseline("sr", coarse), smooth) > psnr(coarse, smooth) + 8


def test_a_cube_without_repeated_pixels_is_left_as_it_is(smooth):
    assert np.array_equal(baseline("sr", smooth), smooth)


@pytest.mark.parametrize("size", [9, 15])
def test_both_widths_of_blur_are_sharpened(size, scene):
    blurred = degradations.blur(scene, rng(), size=size)
    assert psnr(baseline("blur", blurred), scene) > psnr(blurred, scene) + 0.3


@pytest.mark.parametrize("angle", [0, 40, 90])
def test_unsharp_masking_gains_on_a_smooth_cube(angle, smooth):
    smeared = degradations.motionblur(smooth, rng(), angle=angle)
    assert psnr(baseline("motionblur", smeared), smooth) > psnr(smeared, smooth) + 0.3


def test_cubes_that_lack_nothing_are_left_as_they_are(scene):
    for task in ("inpaint", "bandloss", "sr"):
        assert np.array_equal(baseline(task, scene), scene)


def test_counts_are_not_negative(scene):
    assert baseline("poisson", degradations.poisson(scene, rng())).min() >= 0


def test_without_scikit_image_it_says_what_to_install(monkeypatch, scene):
    for name in ("skimage", "skimage.restoration"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MachineError, match=r"damp-deploy\[report\]"):
        baseline("noise", scene)
