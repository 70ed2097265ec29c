"""What can be told of a real cube without its truth: the noise of its bands, its stripes, and how spectra were bent.

Cubes are [bands, lines, samples], finite; bands that say nothing are left out before. None of these figures alone tells
a good restoration: what copies a band from its neighbours has no noise left in it. The angle tells what that cost.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from calibration.quality import Cube, sam
from runtime.errors import CubeError

Bands = NDArray[np.float64]
RIDGE = 1e-12
"""Added to the bands' correlations, so that those of a cube without any noise can be inverted."""
TREND_SAMPLES = 9
"""A step from sample to sample that so many neighbours share is the scene's or the lens's, not a stripe."""
PARTS = 4
"""Of the lines, each with a brightness of the columns of its own: what all of them share is a stripe."""


def noise_per_band(cube: Cube) -> Bands:
    """Standard deviation of the noise of every band, float64 [bands], in units of the cube.

    What a linear regression of a band on all the others over all pixels leaves, per degree of freedom (Bioucas-Dias and
    Nascimento, "Hyperspectral subspace identification", IEEE TGRS 46(8), 2008; Roger and Arnold, "Reliably estimating
    the noise in AVIRIS hyperspectral images", Int. J. Remote Sensing 17(10), 1996, regress on neighbouring bands and
    samples in small blocks). Noise that bands share is not seen; signal that a band has alone counts as noise, and the
    cleanest bands of a few are found a little too noisy, by the noise of the others.

    Raises:
        CubeError: it has no more pixels than bands.
    """
    spectra, spread = _standard(cube)
    bands, pixels = spectra.shape
    inverse = np.linalg.inv(spectra @ spectra.T + RIDGE * np.eye(bands))
    # What is left of the i-th variable regressed on all others is 1 / (R^-1)_ii.
    return np.asarray(spread / np.sqrt(np.diag(inverse) * (pixels - bands)), np.float64)


def _standard(cube: Cube) -> tuple[Bands, Bands]:
    """Bands [bands, pixels] of mean 0 and length 1, and their lengths before. Raises CubeError."""
    bands, pixels = len(cube), cube.shape[1] * cube.shape[2]
    if pixels <= bands:
        raise CubeError(
            "the cube has too few pixels to tell noise from signal",
            key="cube",
            value=pixels,
            remedy=f"{bands + 1} or more",
        )
    spectra = cube.reshape(bands, pixels).astype(np.float64)
    spectra -= spectra.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.einsum("bp,bp->b", spectra, spectra))
    spectra /= np.where(spread > 0, spread, 1)[:, None]
    return spectra, spread


def snr_per_band(cube: Cube) -> Bands:
    """20 log10 of every band's mean over its noise in dB, float64 [bands]. Raises CubeError as `noise_per_band`."""
    mean = np.abs(cube.mean(axis=(1, 2), dtype=np.float64))
    return np.asarray(20 * np.log10(np.maximum(mean, 1e-12) / np.maximum(noise_per_band(cube), 1e-12)), np.float64)


def stripes_per_band(cube: Cube) -> Bands:
    """Standard deviation of the stripes along lines of every band, float64 [bands], in percent of the band's mean.

    Beside a low-pass of the columns' brightness, as the improvement factor of Corsini, Diani and Walzel ("Striping
    removal in MOS-B data", IEEE TGRS 38(3), 2000) has it. Ours: the median over lines of the step from one sample to
    the next takes the place of the difference of column means, so that an edge in the scene is no stripe; and the
    variance is the covariance of such medians between quarters of the lines, so that noise and texture, which they do
    not share, add nothing, and removing noise alone does not remove stripes. An edge along all lines counts as one.

    Raises:
        CubeError: it has less than 8 lines.
    """
    if cube.shape[1] < 2 * PARTS:
        raise CubeError(
            "the cube has too few lines to see stripes", key="cube", value=cube.shape[1], remedy=f"{2 * PARTS} or more"
        )
    steps = np.diff(cube.astype(np.float64), axis=2)
    step = np.stack([np.median(part, axis=1) for part in np.array_split(steps, PARTS, axis=1)])
    step -= uniform_filter1d(step, min(TREND_SAMPLES, step.shape[2]), axis=2, mode="nearest")
    shared = (step.sum(axis=0) ** 2 - (step**2).sum(axis=0)) / (PARTS * (PARTS - 1))
    # A step is the difference of two stripes.
    variance = np.mean(shared, axis=1) / 2
    mean = np.abs(cube.mean(axis=(1, 2), dtype=np.float64))
    return np.asarray(100 * np.sqrt(np.maximum(variance, 0)) / np.maximum(mean, 1e-12), np.float64)


def scene_in_change(restored: Cube, given: Cube) -> Bands:
    """How much of what a restoration changed in a band is of the scene, float64 [bands], 0 to 1; 0 where nothing was.

    What a good restoration takes away is noise, in which nothing of the picture is seen ("method noise": Buades, Coll
    and Morel, "A review of image denoising algorithms, with a new one", Multiscale Model. Simul. 4(2), 2005). Ours is
    its figure for bands: the share of the change's variance that a linear regression on all other bands of what was
    given explains, less what it would by chance (adjusted R squared). There is at least so much: of what a blur takes
    away the same pixel's other bands tell only a part.

    Raises:
        CubeError: it has no more pixels than bands.
    """
    spectra, _ = _standard(given)
    change = (restored.astype(np.float64) - given).reshape(spectra.shape)
    change -= change.mean(axis=1, keepdims=True)
    bands, pixels = spectra.shape
    alike, along = spectra @ spectra.T + RIDGE * np.eye(bands), spectra @ change.T
    power = np.einsum("bp,bp->b", change, change)
    shares = np.zeros(bands)
    for band in np.flatnonzero(power > np.finfo(np.float32).eps ** 2 * pixels):
        others = np.arange(bands) != band
        explained = along[others, band] @ np.linalg.solve(alike[np.ix_(others, others)], along[others, band])
        left = (1 - explained / power[band]) * (pixels - 1) / (pixels - bands)
        shares[band] = np.clip(1 - left, 0, 1)
    return shares


def clean_bands(snr: Bands) -> NDArray[np.bool_]:
    """The bands above the median SNR, bool [bands]: a restoration should leave them as they are."""
    return np.asarray(snr > np.median(snr), np.bool_)


def bend(restored: Cube, given: Cube, bands: NDArray[np.bool_]) -> float:
    """Mean spectral angle between a restored cube and what was given, over some bands, in degrees."""
    return sam(np.asarray(restored), np.asarray(given), bands)


def bend_of_noise(given: Cube, noise: Bands, bands: NDArray[np.bool_]) -> float:
    """The angle in degrees that noise [bands] makes in spectra of these bands: what removing it alone bends."""
    power = (given[bands].astype(np.float64) ** 2).sum(axis=0)
    noisy = np.sqrt((noise[bands] ** 2).sum())
    lengths = np.sqrt(np.maximum(power - noisy**2, noisy**2 * 1e-6))
    return float(np.degrees(np.arctan2(noisy, lengths)).mean())
