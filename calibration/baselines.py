"""Classical restoration of a degraded cube, one method per degradation: what a network has to beat.

Each is blind: it is told which degradation it undoes, never the severity or the truth, and estimates what it needs from
the cube itself. Cubes are float32 [bands, lines, samples], nominally in [0, 1]; nothing is clipped, except that counts
of photons are not negative. The methods and their constants were chosen by mean PSNR on CAVE training scenes (flowers,
beads, stuffed_toys, egyptian_statue; for blur and motionblur four more and every fourth band), none of which is a
validation scene; the docstrings give those means.

scikit-image, of the extra `report`, is imported when noise or poisson is first undone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import distance_transform_edt, gaussian_filter, zoom

from calibration.degradations import SR_FACTORS, lost_bands
from runtime.errors import CubeError, InputError, MachineError

Cube: TypeAlias = NDArray[np.float32]
Plane: TypeAlias = NDArray[np.float64]
Shrink: TypeAlias = Callable[[Plane, float], Plane]

SMALLEST_PLANE = 8
"""Lines and samples below which a plane holds too little to tell signal from noise or blur; it is left as it is."""
NOISE_MARGIN = 1.02
PATCH_SIZE, PATCH_REACH, PATCH_STRENGTH = 5, 6, 0.9
SPINS = tuple(product(range(4), repeat=2))
GAUSSIAN_MEDIAN = 0.6745
DARKEST_BAND = 1e-3
RING = 0.01
RINGS = (3, 25)
SCENE_SLOPE = 2.8
WIENER_FLOOR = 3e-4
UNSHARP_SIGMA, UNSHARP_AMOUNT = 6.0, 0.3


@dataclass(frozen=True)
class Baseline:
    """A classical method.

    Attributes:
        name: in words.
        restore: takes a degraded cube [bands, lines, samples] and returns a restored one of its shape.
    """

    name: str
    restore: Callable[[Cube], Cube]


def baseline(task: str, cube: Cube) -> Cube:
    """Restore a cube by the classical method for its degradation.

    Args:
        task: the degradation, a key of `BASELINES`.
        cube: degraded cube [bands, lines, samples], float.

    Returns:
        A new float32 cube of the same shape, finite.

    Raises:
        InputError: there is no baseline for this task.
        CubeError: it is no finite, non-empty float cube.
        MachineError: scikit-image is not installed.
    """
    if task not in BASELINES:
        raise InputError(
            "no baseline for this task", key="task", value=task, remedy=f"choose from {', '.join(BASELINES)}"
        )
    cube = np.asarray(cube)
    if cube.ndim != 3 or cube.size == 0 or cube.dtype.kind != "f" or not np.isfinite(cube).all():
        raise CubeError(
            "not a finite float cube",
            key="shape",
            value=list(cube.shape),
            remedy="give an array [bands, lines, samples], scaled to [0, 1]",
        )
    return np.array(BASELINES[task].restore(np.asarray(cube, np.float32)), np.float32)


def remove_noise(cube: Cube) -> Cube:
    """Non-local means on the principal components of the bands, without those that hold no more than noise.

    The rotation of the bands keeps white noise white and gathers the scene in a few components. The noise is estimated
    from the median of diagonal differences. 34.3 dB; components shrunk by cycle-spun Haar wavelets 33.9, by plain ones
    32.2, by total variation 29.9; band by band non-local means 28.5, wavelets 27.1; 3-D wavelets 23.7; degraded 15.2.
    """
    if _is_small(cube):
        return cube
    sigma = float(np.median(np.abs(_details(cube)))) / GAUSSIAN_MEDIAN
    if sigma == 0:
        return cube
    restoration = _restoration()

    def shrink(plane: Plane, deviation: float) -> Plane:
        smooth: Plane = restoration.denoise_nl_means(
            plane,
            patch_size=PATCH_SIZE,
            patch_distance=PATCH_REACH,
            h=PATCH_STRENGTH * deviation,
            sigma=deviation,
            fast_mode=True,
        )
        return smooth

    return _by_components(cube, sigma, shrink)


def remove_photon_noise(cube: Cube) -> Cube:
    """Cycle-spun Haar shrinkage on the principal components of bands that are scaled to equal noise.

    The variance of a count follows its mean: their ratio is estimated from diagonal differences of pixels, and every
    band is divided by the noise that its mean predicts. 35.0 dB; with non-local means instead 33.1; Anscombe transform
    and the same wavelets 33.8, whose bias grows where few photons fall; wavelets band by band 29.9; degraded 20.9.
    """
    total = float(cube.sum(dtype=np.float64))
    if _is_small(cube) or total <= 0:
        return cube
    restoration = _restoration()
    gain = float((_details(cube) ** 2).sum(dtype=np.float64)) / total
    levels = cube.mean((1, 2), keepdims=True)
    noise = np.sqrt(np.maximum(gain, 1e-12) * np.maximum(levels, DARKEST_BAND * levels.max()))

    def shrink(plane: Plane, deviation: float) -> Plane:
        smooth = np.zeros_like(plane)
        for shift in SPINS:
            turned = restoration.denoise_wavelet(
                np.roll(plane, shift, (0, 1)), sigma=deviation, wavelet="db1", method="BayesShrink", rescale_sigma=True
            )
            smooth += np.roll(turned, (-shift[0], -shift[1]), (0, 1)) / len(SPINS)
        return smooth

    return np.asarray(np.maximum(_by_components(cube / noise, 1.0, shrink) * noise, 0), np.float32)


def sharpen(cube: Cube) -> Cube:
    """Wiener deconvolution of a Gaussian blur whose width is estimated from the fall of the power spectrum.

    +5.6 dB over the blurred cube; with one width fixed between the two of the training recipe +2.5, by unsharp masking
    +2.2. Borders are reflected about the edge pixel, which a cosine transform inverts exactly.
    """
    if _is_small(cube):
        return cube
    lines, samples = cube.shape[1:]
    along, across = np.arange(lines) / (2 * (lines - 1)), np.arange(samples) / (2 * (samples - 1))
    frequency = np.hypot(along[:, None], across)
    waves = dctn(cube.astype(np.float64), type=1, axes=(1, 2))
    sigma = _blur_sigma((waves**2).sum(axis=0), frequency)
    response = np.exp(-2 * (np.pi * sigma * frequency) ** 2)
    inverse = response * (1 + WIENER_FLOOR) / (response**2 + WIENER_FLOOR)
    return np.asarray(idctn(waves * inverse, type=1, axes=(1, 2)), np.float32)


def unsharp(cube: Cube) -> Cube:
    """Unsharp masking of fixed radius and amount.

    +0.3 dB over the smeared cube, at worst -0.1. Wiener deconvolution along an estimated direction gains 2.6 dB where
    it is told the length of the path, which this is not; with the length estimated it lost 2.2 dB.
    """
    smooth = gaussian_filter(cube, (0, UNSHARP_SIGMA, UNSHARP_SIGMA), mode="mirror")
    return np.asarray(cube + UNSHARP_AMOUNT * (cube - smooth), np.float32)


def interpolate_pixels(cube: Cube) -> Cube:
    """Cubic splines through the low-resolution pixels, corner pixels on corner pixels.

    The factor, 4 or 2, is recognised by pixels that repeat exactly; a cube where none do is returned as it is. +3.4 dB
    over the repeated pixels.
    """
    for factor in sorted(SR_FACTORS, reverse=True):
        (of_line, line), (of_sample, sample) = (_repeats(n, factor) for n in cube.shape[1:])
        small = cube[:, line][:, :, sample]
        if np.array_equal(small[:, of_line][:, :, of_sample], cube):
            scale = [full / part for full, part in zip(cube.shape[1:], small.shape[1:], strict=True)]
            return np.stack([zoom(band, scale, order=3, mode="mirror", grid_mode=False) for band in small])
    return cube


def interpolate_elements(cube: Cube) -> Cube:
    """Linear interpolation over the bands between the elements of a pixel that are not zero, constant beyond them.

    A pixel of which nothing is known takes the spectrum of the nearest pixel that has one. 31.2 dB; degraded 17.2.
    """
    known = cube != 0
    some = known.any(axis=0)
    if not some.any():
        return cube
    restored = _interpolated(cube, known)
    line, sample = distance_transform_edt(~some, return_distances=False, return_indices=True)
    return restored[:, line, sample]


def interpolate_bands(cube: Cube) -> Cube:
    """Linear interpolation over the bands between those that are not zero throughout, constant beyond them.

    45.1 dB over the lost bands; degraded 16.1.
    """
    known = ~lost_bands(cube)
    return _interpolated(cube, np.broadcast_to(known[:, None, None], cube.shape)) if known.any() else cube


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "noise": Baseline("non-local means on principal components", remove_noise),
        "blur": Baseline("blind Wiener deconvolution", sharpen),
        "sr": Baseline("cubic interpolation", interpolate_pixels),
        "inpaint": Baseline("linear interpolation over bands", interpolate_elements),
        "bandloss": Baseline("linear interpolation over bands", interpolate_bands),
        "poisson": Baseline("wavelet shrinkage on principal components", remove_photon_noise),
        "motionblur": Baseline("unsharp masking", unsharp),
    }
)


def _is_small(cube: Cube) -> bool:
    return bool(min(cube.shape[1:]) < SMALLEST_PLANE)


def _details(cube: Cube) -> Cube:
    """Diagonal differences of neighbours [bands, lines - 1, samples - 1], of the noise's variance where it is white."""
    return np.asarray((cube[:, 1:, 1:] - cube[:, :-1, 1:] - cube[:, 1:, :-1] + cube[:, :-1, :-1]) / 2, np.float32)


def _restoration() -> Any:
    try:
        from skimage import restoration
    except ImportError as error:
        raise MachineError(
            "scikit-image is not installed, so no noise can be removed the classical way",
            key="scikit-image",
            remedy='pip install "damp-deploy[report]"',
        ) from error
    return restoration


def _by_components(cube: Cube, sigma: float, shrink: Shrink) -> Cube:
    """The cube with its principal components over the bands shrunk, those of noise `sigma` alone left out."""
    bands, pixels = len(cube), cube[0].size
    means = cube.mean((1, 2), keepdims=True, dtype=np.float64)
    spectra = (cube - means).reshape(bands, pixels)
    _, axes = np.linalg.eigh(spectra @ spectra.T)
    planes = (axes.T @ spectra).reshape(cube.shape)
    # The largest variance that noise alone gives a component (Marchenko and Pastur).
    noise = NOISE_MARGIN * sigma**2 * (1 + np.sqrt(bands / pixels)) ** 2
    kept = np.stack([shrink(plane, sigma) if plane.var() > noise else np.zeros_like(plane) for plane in planes])
    return np.asarray((axes @ kept.reshape(bands, pixels)).reshape(cube.shape) + means, np.float32)


def _blur_sigma(power: Plane, frequency: Plane) -> float:
    """Sigma in pixels of the Gaussian by which log power falls faster than that of a sharp scene, f^-2.8."""
    first, last = RINGS
    ring = np.minimum((frequency / RING).astype(int), last).ravel()
    counts = np.bincount(ring, minlength=last + 1)[first:last]
    sums = np.bincount(ring, power.ravel(), minlength=last + 1)[first:last]
    filled = sums > 0
    if np.count_nonzero(filled) < 3:
        return 0.0
    centres = (np.arange(first, last)[filled] + 0.5) * RING
    fall = np.log(sums[filled] / counts[filled]) + SCENE_SLOPE * np.log(centres)
    slope = float(np.polyfit(centres**2, fall, 1)[0])
    return float(np.sqrt(max(-slope, 0.0)) / (2 * np.pi))


def _repeats(full: int, factor: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For an axis of `full` pixels: the low-resolution pixel each one shows, and where each of those is first shown."""
    size = max(1, full // factor)
    shown = np.arange(full) * size // full
    return shown, np.searchsorted(shown, np.arange(size))


def _interpolated(cube: Cube, known: NDArray[np.bool_]) -> Cube:
    """Elements that are not known, linear over the bands between known ones; where a pixel has none, any value."""
    bands = len(cube)
    place = np.arange(bands)[:, None, None]
    before = np.maximum.accumulate(np.where(known, place, -1), axis=0)
    after = np.minimum.accumulate(np.where(known, place, bands)[::-1], axis=0)[::-1]
    low = np.clip(np.where(before < 0, after, before), 0, bands - 1)
    high = np.clip(np.where(after >= bands, before, after), 0, bands - 1)
    part = (place - low) / np.maximum(high - low, 1)
    below, above = np.take_along_axis(cube, low, 0), np.take_along_axis(cube, high, 0)
    return np.asarray(np.where(known, cube, below + part * (above - below)), np.float32)
