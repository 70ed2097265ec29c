"""Classical restoration of a degraded cube, one method per degradation: what a network has to beat.

Each is blind: it is told which degradation it undoes, never the severity or the truth, and estimates what it needs from
the cube itself. Cubes are float32 [bands, lines, samples], nominally in [0, 1]; nothing is clipped, except that counts
of photons are not negative. These are the methods of scikit-image, SciPy and NumPy as they come; stronger ones can be
built from them. Methods and constants were chosen by mean PSNR on CAVE training scenes, none of which is a validation
scene; the docstrings give those means. scikit-image, of the extra `report`, is imported when it is first used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, zoom

from calibration.degradations import SR_FACTORS, lost_bands
from calibration.measuring import Measuring
from calibration.photograph_baselines import clear_haze, lighten, refocus, take_the_median
from calibration.severity import Cube, needed
from calibration.snapshot_baselines import gap_tv

SMALLEST_PLANE = 8
"""Lines and samples below which a plane holds too little to tell signal from noise or blur; it is left as it is."""
PATCH_SIZE, PATCH_REACH, PATCH_STRENGTH = 5, 6, 0.6


@dataclass(frozen=True)
class Baseline:
    """A classical method.

    Attributes:
        name: in words.
        restore: takes what was measured, a degraded cube [bands, lines, samples], and returns a restored one; raises
            MachineError where scikit-image is needed and not installed.
    """

    name: str
    restore: Callable[[Cube], Cube]


def remove_noise(cube: Cube) -> Cube:
    """scikit-image's non-local means over all bands at once, the noise estimated by its wavelets.

    14.4 to 25.7 dB; band by band 24.6, its wavelets 23.6.
    """
    if _is_small(cube) or not np.ptp(cube):
        return cube
    restoration = needed("restoration")
    sigma = float(np.nan_to_num(np.mean(restoration.estimate_sigma(cube, channel_axis=0))))
    if sigma == 0:
        return cube
    smooth = restoration.denoise_nl_means(
        cube,
        patch_size=PATCH_SIZE,
        patch_distance=PATCH_REACH,
        h=PATCH_STRENGTH * sigma,
        sigma=sigma,
        fast_mode=True,
        channel_axis=0,
    )
    # A single band loses its axis there.
    return np.asarray(smooth, np.float32).reshape(cube.shape)


def remove_photon_noise(cube: Cube) -> Cube:
    """scikit-image's wavelet shrinkage (BayesShrink), band by band, the noise of every band estimated.

    17.4 to 23.3 dB; its non-local means band by band 21.0.
    """
    if _is_small(cube):
        return cube
    restoration = needed("restoration")

    def shrunk(band: Cube) -> Cube:
        made = restoration.denoise_wavelet(band, method="BayesShrink", mode="soft", rescale_sigma=True)
        return np.asarray(np.where(np.isfinite(made), made, band), np.float32)

    return np.asarray(np.maximum([shrunk(band) if np.ptp(band) else band for band in cube], 0), np.float32)


def sharpen(cube: Cube) -> Cube:
    """scikit-image's unsharp masking, radius and amount fixed for the blurs of training: +2.1 dB."""
    return _unsharp(cube, radius=2, amount=2)


def sharpen_smeared(cube: Cube) -> Cube:
    """scikit-image's unsharp masking, radius and amount fixed for motion blur: +0.2 dB."""
    return _unsharp(cube, radius=6, amount=0.3)


def _unsharp(cube: Cube, radius: float, amount: float) -> Cube:
    filters = needed("filters")
    sharpened = [filters.unsharp_mask(band, radius, amount, preserve_range=True) for band in cube]
    return np.asarray(np.stack(sharpened), np.float32)


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
        "noise": Baseline("non-local means", remove_noise),
        "blur": Baseline("unsharp masking", sharpen),
        "sr": Baseline("cubic interpolation", interpolate_pixels),
        "inpaint": Baseline("linear interpolation over bands", interpolate_elements),
        "bandloss": Baseline("linear interpolation over bands", interpolate_bands),
        "poisson": Baseline("wavelet shrinkage", remove_photon_noise),
        "motionblur": Baseline("unsharp masking", sharpen_smeared),
        "haze": Baseline("dark channel prior", clear_haze),
        "rain": Baseline("median", take_the_median),
        "snow": Baseline("median", take_the_median),
        "lowlight": Baseline("CLAHE", lighten),
        "defocus": Baseline("Wiener filter", refocus),
        "grain": Baseline("non-local means", remove_noise),
        "jpeg": Baseline("non-local means", remove_noise),
    }
)
"""By degradation."""
INSTRUMENTS: Mapping[str, tuple[str, Callable[[Cube, Cube], Cube]]] = MappingProxyType({"mask": ("GAP-TV", gap_tv)})
"""By the array of an instrument that such a method needs beside a measurement [1, lines, samples]."""


def baseline_of(measuring: Measuring, task: str) -> Baseline | None:
    """The classical method that stands beside a network; None where none is known."""
    if measuring.measure is None:
        return BASELINES[task]
    key = next((key for key in INSTRUMENTS if key in measuring.instrument), None)
    if key is None:
        return None
    (name, restore), array = INSTRUMENTS[key], measuring.instrument[key]
    return Baseline(name, lambda measured: restore(measured[0], array))


def _is_small(cube: Cube) -> bool:
    return bool(min(cube.shape[1:]) < SMALLEST_PLANE)


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
