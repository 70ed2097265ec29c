"""Image quality of a restored cube against the truth, and of one engine's output against another's.

Cubes are [bands, lines, samples] of any float type, nominally in [0, 1]; nothing is clipped, and sums are in float64.
`bands`, a bool mask [bands], restricts a figure to some bands: to the lost ones after band loss. Every figure is finite
for every finite pair of cubes, so that it can stand in JSON; for others each raises what `quality` does. The
definitions are those DAMP (arXiv 2512.20251) is measured by, except `psnr`, which counts neither rounding nor the
infinite PSNR of an untouched band.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from runtime.errors import CubeError, InputError

Cube: TypeAlias = NDArray[np.floating[Any]]
Mask: TypeAlias = NDArray[np.bool_]
Plane: TypeAlias = NDArray[np.float64]

PSNR_CAP = 100.0
SSIM_SIZE = 11
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2
SAM_EPSILON = 1e-8
ERGAS_DARKEST = 1e-4


@dataclass(frozen=True)
class Quality:
    """Figures of one restored cube.

    Attributes:
        psnr: in dB, higher is better, at most 100.
        ssim: -1 to 1, higher is better.
        sam: mean spectral angle in degrees, 0 to 180, lower is better.
        ergas: relative error in percent, lower is better.
        band_psnr: in dB, mean of `psnr_per_band`, the figure published for DAMP.
        max_difference: largest absolute difference of an element.
    """

    psnr: float
    ssim: float
    sam: float
    ergas: float
    band_psnr: float
    max_difference: float


def quality(restored: Cube, truth: Cube, bands: Mask | None = None) -> Quality:
    """All figures of `restored` against `truth`, cubes [bands, lines, samples], over the bands of a mask or all.

    Raises:
        CubeError: the cubes differ in shape, are empty, not floating point or not finite.
        InputError: the mask is no bool [bands] or selects nothing.
    """
    restored, truth = _pair(restored, truth, bands)
    return Quality(
        psnr=psnr(restored, truth),
        ssim=ssim(restored, truth),
        sam=sam(restored, truth),
        ergas=ergas(restored, truth),
        band_psnr=float(psnr_per_band(restored, truth).mean()),
        max_difference=max_difference(restored, truth),
    )


def psnr(restored: Cube, truth: Cube, bands: Mask | None = None) -> float:
    """-10 log10 of the mean squared error over all elements, in dB, peak 1.

    At most 100 dB, which is what equal cubes are given.
    """
    restored, truth = _pair(restored, truth, bands)
    return _decibels(float(_errors(restored, truth).mean()))


def psnr_per_band(restored: Cube, truth: Cube, bands: Mask | None = None) -> NDArray[np.float64]:
    """The reference's PSNR of each band in dB, [bands]: both cubes rounded as round(256 x), then 255^2 / MSE.

    At most 100 dB; the reference itself gives infinity where the rounded bands are equal. Its mean is
    `Quality.band_psnr`.
    """
    restored, truth = _pair(restored, truth, bands)
    errors = (np.mean((np.round(256 * a) - np.round(256 * b)) ** 2) for a, b in _planes(restored, truth))
    return np.array([_decibels(float(error) / 255**2) for error in errors])


def ssim(restored: Cube, truth: Cube, bands: Mask | None = None) -> float:
    """Structural similarity, mean over pixels and bands: Gaussian window 11 x 11 of sigma 1.5, zeros beyond the border.

    C1 = 0.01^2, C2 = 0.03^2; variances are those of the window, without Bessel's correction.
    """
    restored, truth = _pair(restored, truth, bands)
    return float(np.mean([_ssim(a, b).mean() for a, b in _planes(restored, truth)]))


def published_snapshot_psnr(restored: Cube, truth: Cube) -> float:
    """PSNR in dB as tables of snapshot spectrometers have it (TSA-Net, MST, BiSRNet), and nothing of ours.

    Both cubes clipped to [0, 1] and rounded to 255 x; mean over bands of 10 log10(255^2 / MSE), each at most 100 dB.
    """
    restored, truth = _pair(restored, truth, None)
    return float(np.mean([_decibels(float(np.mean((a - b) ** 2))) for a, b in _in_8_bits(restored, truth)]))


def published_snapshot_ssim(restored: Cube, truth: Cube) -> float:
    """SSIM as the same tables have it: of both cubes in 8 bits, only where the whole window lies in the picture.

    Raises:
        CubeError: as `quality`, or there is no such place: less than 11 lines or samples.
    """
    restored, truth = _pair(restored, truth, None)
    if min(truth.shape[1:]) < SSIM_SIZE:
        raise CubeError(
            f"SSIM needs {SSIM_SIZE} lines and samples",
            key="truth",
            value=list(truth.shape),
            remedy="give larger cubes",
        )
    inside = (slice(SSIM_SIZE // 2, -(SSIM_SIZE // 2)),) * 2
    return float(np.mean([_ssim(a, b)[inside] for a, b in _in_8_bits(restored, truth)]))


def sam(restored: Cube, truth: Cube, bands: Mask | None = None) -> float:
    """Angle between the two spectra of a pixel, in degrees, mean over pixels.

    Spectra are divided by their norm, or by 1e-8 if that is larger; the angle is 2 atan2(|u - v|, |u + v|), which is
    exact for equal spectra where arccos is not. So two zero spectra are 0 apart, a zero and any other spectrum 90;
    with one band the angle is 0, or 180 where the signs differ.
    """
    restored, truth = _pair(restored, truth, bands)
    shape = restored.shape[1:]
    lengths = np.zeros((2, *shape))
    for a, b in _planes(restored, truth):
        lengths += a**2, b**2
    of_restored, of_truth = np.maximum(np.sqrt(lengths), SAM_EPSILON)
    apart, together = np.zeros(shape), np.zeros(shape)
    for a, b in _planes(restored, truth):
        u, v = a / of_restored, b / of_truth
        apart += (u - v) ** 2
        together += (u + v) ** 2
    return float(np.degrees(2 * np.arctan2(np.sqrt(apart), np.sqrt(together))).mean())


def ergas(restored: Cube, truth: Cube, bands: Mask | None = None) -> float:
    """Relative global error in percent: 100 sqrt(mean over bands of MSE / (mean of the true band)^2).

    A true band of a mean below 1e-4 counts as one of 1e-4.
    """
    restored, truth = _pair(restored, truth, bands)
    levels = np.array([max(abs(float(b.mean())), ERGAS_DARKEST) for _, b in _planes(restored, truth)])
    return float(100 * np.sqrt(np.mean(_errors(restored, truth) / levels**2)))


def max_difference(restored: Cube, truth: Cube, bands: Mask | None = None) -> float:
    """Largest absolute difference of an element."""
    restored, truth = _pair(restored, truth, bands)
    return max(float(np.abs(a - b).max()) for a, b in _planes(restored, truth))


def _ssim(a: Plane, b: Plane) -> Plane:
    mean_a, mean_b = _windowed(a), _windowed(b)
    spread = _windowed(a * a) - mean_a**2 + _windowed(b * b) - mean_b**2
    shared = _windowed(a * b) - mean_a * mean_b
    brightness = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    return np.asarray(brightness * (2 * shared + SSIM_C2) / (spread + SSIM_C2))


def _windowed(plane: Plane) -> Plane:
    window = np.exp(-0.5 * ((np.arange(SSIM_SIZE) - SSIM_SIZE // 2) / SSIM_SIGMA) ** 2)
    window /= window.sum()
    along = correlate1d(plane, window, axis=0, mode="constant")
    return np.asarray(correlate1d(along, window, axis=1, mode="constant"))


def _errors(restored: Cube, truth: Cube) -> NDArray[np.float64]:
    return np.array([np.mean((a - b) ** 2) for a, b in _planes(restored, truth)])


def _decibels(error: float) -> float:
    return min(PSNR_CAP, float(-10 * np.log10(max(error, 1e-300))))


def _planes(restored: Cube, truth: Cube) -> Iterator[tuple[Plane, Plane]]:
    # Band by band, so that float64 costs the memory of a few planes and not of two cubes.
    for a, b in zip(restored, truth, strict=True):
        yield a.astype(np.float64), b.astype(np.float64)


def _in_8_bits(restored: Cube, truth: Cube) -> Iterator[tuple[Plane, Plane]]:
    """Planes clipped to [0, 1], of 256 levels."""
    for a, b in _planes(restored, truth):
        yield np.rint(np.clip(a, 0, 1) * 255) / 255, np.rint(np.clip(b, 0, 1) * 255) / 255


def _pair(restored: Cube, truth: Cube, bands: Mask | None) -> tuple[Cube, Cube]:
    restored, truth = np.asarray(restored), np.asarray(truth)
    for key, cube in (("restored", restored), ("truth", truth)):
        if cube.ndim != 3 or cube.size == 0:
            raise CubeError(
                "not a cube", key=key, value=list(cube.shape), remedy="give an array [bands, lines, samples]"
            )
        if cube.dtype.kind != "f":
            raise CubeError(
                "the cube is not floating point", key=key, value=cube.dtype, remedy="scale it to [0, 1] as float32"
            )
        if not np.isfinite(cube).all():
            raise CubeError("the cube holds NaN or infinity", key=key, remedy="mask or repair it")
    if restored.shape != truth.shape:
        raise CubeError(
            f"the shape is not that of the truth, {list(truth.shape)}",
            key="restored",
            value=list(restored.shape),
            remedy="compare cubes of the same bands, lines and samples",
        )
    if bands is None:
        return restored, truth
    mask = np.asarray(bands)
    if mask.dtype != np.bool_ or mask.shape != restored.shape[:1]:
        raise InputError(
            "not a mask of the bands",
            key="bands",
            value=f"{mask.dtype} {list(mask.shape)}",
            remedy=f"give bool [{len(restored)}]",
        )
    if not mask.any():
        raise InputError("the mask selects no band", key="bands", remedy="leave it out to measure all bands")
    return restored[mask], truth[mask]
