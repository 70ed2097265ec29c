"""GAP-TV: its update rule written out in dense matrices, and what it gains on scenes."""

import os
from pathlib import Path

import numpy as np
import pytest

from calibration.quality import psnr
from calibration.snapshot_baselines import gap_tv
from runtime.errors import CubeError
from runtime.simulation.cassi import BANDS, WAVELENGTHS, measure, random_mask, resampled, shift_back
from runtime.simulation.simulator import simulate_scene

CAVE = Path(os.environ.get("DAMP_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cave"
LINES, SAMPLES = 8, 8


def dense(mask):
    """The matrix [detector elements, elements of the cube] without the factor 2 / 28."""
    lines, samples = mask.shape
    matrix = np.zeros((lines, samples + 54, BANDS, lines, samples))
    for band in range(BANDS):
        for line in range(lines):
            for sample in range(samples):
                matrix[line, sample + 2 * band, band, line, sample] = mask[line, sample]
    return matrix.reshape(lines * (samples + 54), -1)


def differences(lines, samples):
    """Two matrices [pixels, pixels] of a plane: towards the next line and the next sample, nothing at the border."""
    step = [np.eye(n, k=1) - np.eye(n) for n in (lines, samples)]
    for each in step:
        each[-1] = 0
    return np.kron(step[0], np.eye(samples)), np.kron(np.eye(lines), step[1])


@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_the_update_rule_in_dense_matrices(iterations):
    rng = np.random.default_rng(0)
    mask = random_mask(2, LINES, SAMPLES)
    # A column of the detector that no light reaches.
    mask[:, 0] = 0
    measurement = measure(rng.random((BANDS, LINES, SAMPLES)).astype(np.float32), mask)
    a, (down, right) = dense(mask), differences(LINES, SAMPLES)
    y, weight = 14 * measurement.astype(float).ravel(), 0.02
    s = np.diag(a @ a.T).copy()
    s[s == 0] = 1
    x, z = np.zeros(a.shape[1]), np.zeros(len(y))
    for _ in range(iterations):
        z = z + (y - a @ x)
        x = x + a.T @ ((z - a @ x) / s)
        planes = x.reshape(BANDS, -1).T
        # Chambolle (2004): p = (p + tau grad(u)) / (1 + tau |grad(u)| / weight), u = f + div p.
        p, q, smooth = np.zeros_like(planes), np.zeros_like(planes), planes
        for _ in range(2):
            by_line, by_sample = down @ smooth, right @ smooth
            length = 1 + 0.25 * np.hypot(by_line, by_sample) / weight
            p, q = (p + 0.25 * by_line) / length, (q + 0.25 * by_sample) / length
            smooth = planes - down.T @ p - right.T @ q
        x = smooth.T.ravel()
    found = gap_tv(measurement, mask, iterations=iterations, weight=weight, steps=3)
    np.testing.assert_allclose(found.ravel(), x, atol=1e-5 * np.abs(x).max())


def shifted_back(measurement, mask):
    """The networks' input as an estimate, at the brightness that fits the measurement best."""
    estimate = shift_back(measurement)
    explained = measure(estimate, mask)
    return (estimate * (measurement * explained).sum() / (explained**2).sum()).astype(np.float32)


def gain(scene, mask):
    measurement = measure(scene, mask)
    return psnr(gap_tv(measurement, mask), scene) - psnr(shifted_back(measurement, mask), scene)


def test_it_gains_on_a_simulated_scene():
    assert gain(simulate_scene(1, BANDS, 48, 48, WAVELENGTHS).truth, random_mask(1, 48, 48)) > 1


@pytest.mark.data
@pytest.mark.skipif(not CAVE.is_dir(), reason="CAVE left out: set DAMP_DATA to the folder of its folder")
@pytest.mark.parametrize(("name", "least"), [("cloth", 2), ("superballs", 4)])
def test_it_gains_on_a_real_scene(name, least):
    cube = np.load(CAVE / f"{name}.npz")["cube"][96:160, 96:160].transpose(2, 0, 1) / np.float32(65535)
    scene = resampled(cube, np.linspace(400, 700, 31).tolist())
    assert gain(scene, random_mask(1, 64, 64)) > least


def test_a_measurement_through_another_mask_is_refused():
    with pytest.raises(CubeError, match="the mask is for 8 lines x 62 samples"):
        gap_tv(np.zeros((8, 61), np.float32), random_mask(1, 8, 8))
