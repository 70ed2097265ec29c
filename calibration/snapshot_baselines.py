"""Classical reconstruction of what a coded-aperture snapshot spectrometer measured: what a network has to beat.

GAP-TV (Yuan, "Generalized alternating projection based total variation minimization for compressive sensing", ICIP
2016), accelerated: in turn the cube is brought to agree with the measurement, and smoothed band by band by scikit-image
(of the extra `report`, imported when it is first used).
"""

import numpy as np

from calibration.severity import needed
from runtime.arrays import Float32
from runtime.errors import CubeError
from runtime.simulation import cassi

ITERATIONS, WEIGHT, STEPS = 100, 0.4, 20
"""Chosen by mean PSNR of four CAVE training scenes, 64 x 64, through a binary and a grey mask: 24.6 dB.

A weight of 0.2 is as good, 0.1 and 0.8 are not; 5 steps lose 1 dB on one of them; 60 iterations lose 0.1 dB.
"""


def gap_tv(
    measurement: Float32, mask: Float32, *, iterations: int = ITERATIONS, weight: float = WEIGHT, steps: int = STEPS
) -> Float32:
    """The cube that explains a measurement and varies least.

    With `A` the model of `cassi.measure` without its factor 2 / 28, `y` the measurement without it, and
    `s = sum_i m_i^2` of each detector element, an iteration is `z += y - A x`, `x += A^T((z - A x) / s)` and some steps
    of Chambolle's total variation denoising of each band, from `x = z = 0`.

    Args:
        measurement: [lines, samples + 54].
        mask: [lines, samples] in [0, 1].
        iterations: of both in turn.
        weight: of total variation in denoising, in the cube's unit.
        steps: of denoising in an iteration.

    Returns:
        float32 [28, lines, samples], not clipped.

    Raises:
        CubeError: the measurement is not of this mask's size.
        MachineError: scikit-image is not installed.
    """
    lines, samples = mask.shape
    if measurement.shape != (lines, samples + cassi.DISPERSED):
        raise CubeError(
            f"the mask is for {lines} lines x {samples + cassi.DISPERSED} samples",
            key="measurement",
            value="x".join(map(str, measurement.shape)),
            remedy="give the mask that it was measured through",
        )
    denoise = needed("restoration").denoise_tv_chambolle
    factor = np.float32(cassi.BANDS / 2)
    energy = (cassi.shifted(mask) ** 2).sum(axis=0)
    energy[energy == 0] = 1
    seen = measurement * factor
    cube, total = np.zeros((cassi.BANDS, lines, samples), np.float32), np.zeros_like(seen)
    for _ in range(iterations):
        explained = cassi.measure(cube, mask) * factor
        total += seen - explained
        cube += mask * cassi.shift_back((total - explained) / energy)
        cube = denoise(cube, weight=weight, eps=0, max_num_iter=steps, channel_axis=0)
    return cube
