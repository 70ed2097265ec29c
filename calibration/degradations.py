"""Degradations of a clean cube: one definition for training, calibration and checks.

Each is a function `(cube, rng, **severity) -> cube`. Cubes are float32 [bands, lines, samples], reflectance or radiance
scaled to [0, 1]. The output has the shape of the input, is a new array, is never clipped, and follows from the cube
and the state of `rng` alone. A severity left out is drawn from `rng` by the training recipe. All raise CubeError for
what is no finite, non-empty float cube.

noise, blur, sr, inpaint and bandloss, with their severities, are the training tasks of DAMP (arXiv 2512.20251);
motionblur and poisson are its unseen tasks, for which the paper gives no severity: length and peak are our choice, as
are the sensor faults stripes, deadlines and mixed, the noise of a sound sensor, faint, and the optics of astigmatism.
Those of photographs are in `calibration.photographs`.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate, correlate1d

from calibration import photographs
from calibration.severity import BRIGHTEST, Cube, checked, whole, within
from runtime.errors import InputError

Degradation: TypeAlias = Callable[[Cube, np.random.Generator], Cube]

NOISE_SIGMAS = (30 / 255, 70 / 255)
BLUR_SIZES = (9, 15)
SR_FACTORS = (2, 4)
INPAINT_RATES = (0.7, 0.8)
BANDLOSS_RATES = (0.1, 0.2)
POISSON_PEAK = 10.0
MOTION_LENGTH = 15
FAINT_SIGMAS = (5e-4, 0.02)
LONG_AXES, SHORT_AXES, LARGEST_AXIS = (2.5, 8.0), (0.3, 2.5), 60
BICUBIC_A = -0.75


def noise(cube: Cube, rng: np.random.Generator, *, sigma: float | None = None) -> Cube:
    """Add white Gaussian noise.

    Args:
        sigma: standard deviation in units of the cube, >= 0; drawn from U(30, 70) / 255 if None.

    Raises:
        InputError: sigma is negative or not finite.
    """
    cube = checked(cube)
    if sigma is None:
        sigma = rng.uniform(*NOISE_SIGMAS)
    within("sigma", sigma, 0, BRIGHTEST)
    noisy = rng.standard_normal(cube.shape, dtype=np.float32)
    noisy *= np.float32(sigma)
    noisy += cube
    return noisy


def faint(
    cube: Cube, rng: np.random.Generator, *, least: float = FAINT_SIGMAS[0], most: float = FAINT_SIGMAS[1]
) -> Cube:
    """Add white Gaussian noise of another strength to every band, as a sound sensor's bands have it.

    Args:
        least, most: deviations in units of the cube, from 1e-6, between which each band's is drawn, log-uniform; the
            defaults are 66 and 34 dB below 1.0, our choice.

    Raises:
        InputError: they are below 1e-6, not finite or the wrong way round.
    """
    cube = checked(cube)
    within("least", least, 1 / BRIGHTEST, BRIGHTEST)
    within("most", most, least, BRIGHTEST)
    sigmas = np.exp(rng.uniform(np.log(least), np.log(most), len(cube))).astype(np.float32)
    return np.asarray(cube + sigmas[:, None, None] * rng.standard_normal(cube.shape, dtype=np.float32))


def blur(cube: Cube, rng: np.random.Generator, *, size: int | None = None) -> Cube:
    """Convolve every band with a normalised Gaussian, borders reflected about the edge pixel.

    Args:
        size: side of the kernel in pixels, odd; sigma = 0.3 ((size - 1) / 2 - 1) + 0.8; 9 or 15 if None.

    Raises:
        InputError: size is even or outside 1 to 999.
    """
    cube = checked(cube)
    if size is None:
        size = int(rng.choice(BLUR_SIZES))
    whole("size", size, 1, 999)
    if size % 2 == 0:
        raise InputError("the kernel size is even", key="size", value=size, remedy="give an odd number of pixels")
    kernel = gaussian_kernel(size)
    along = correlate1d(cube, kernel, axis=1, mode="mirror")
    return np.asarray(correlate1d(along, kernel, axis=2, mode="mirror"), np.float32)


def gaussian_kernel(size: int) -> NDArray[np.float64]:
    """The kernel [size] of `blur`, sums to 1; size odd."""
    reach = (size - 1) / 2
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (0.3 * (reach - 1) + 0.8)) ** 2)
    return np.asarray(kernel / kernel.sum())


def sr(cube: Cube, rng: np.random.Generator, *, factor: int | None = None) -> Cube:
    """Lose resolution as in super-resolution: bicubic down by `factor`, then pixels repeated to the old size.

    Down is torch's `interpolate(mode="bicubic", align_corners=True)`: cubic convolution with a = -0.75, corner pixels
    on corner pixels, no anti-aliasing, size floor(n / factor) but at least 1. Where `factor` does not divide the size,
    the low-resolution pixels are spread evenly (nearest neighbour).

    Args:
        factor: 1 to 64; 2 or 4 if None.

    Raises:
        InputError: factor is outside 1 to 64 or no whole number.
    """
    cube = checked(cube)
    if factor is None:
        factor = int(rng.choice(SR_FACTORS))
    whole("factor", factor, 1, 64)
    return _coarsened(_coarsened(cube, factor, axis=1), factor, axis=2)


def inpaint(cube: Cube, rng: np.random.Generator, *, rate: float | None = None) -> Cube:
    """Set elements to zero, each on its own with probability `rate`.

    Args:
        rate: 0 to 1; 0.7 or 0.8 if None.

    Raises:
        InputError: rate is outside [0, 1].
    """
    cube = checked(cube)
    if rate is None:
        rate = float(rng.choice(INPAINT_RATES))
    within("rate", rate, 0, 1)
    return np.asarray(cube * (rng.random(cube.shape, dtype=np.float32) >= rate), np.float32)


def bandloss(cube: Cube, rng: np.random.Generator, *, rate: float | None = None) -> Cube:
    """Set whole bands to zero: round(rate * bands) of them, at least one, at random. `lost_bands` tells which.

    Args:
        rate: share of bands lost, 0 to 1; 0.1 or 0.2 if None.

    Raises:
        InputError: rate is outside [0, 1].
    """
    cube = checked(cube)
    if rate is None:
        rate = float(rng.choice(BANDLOSS_RATES))
    within("rate", rate, 0, 1)
    lost: Cube = np.array(cube)
    lost[rng.choice(len(cube), max(1, round(rate * len(cube))), replace=False)] = 0
    return lost


def motionblur(
    cube: Cube, rng: np.random.Generator, *, length: int = MOTION_LENGTH, angle: float | None = None
) -> Cube:
    """Smear every band evenly along a straight path, borders reflected about the edge pixel.

    Args:
        length: of the path in pixels, 1 (no smear) to 999; the default is our choice.
        angle: of the path in degrees, 0 along samples, 90 along lines; drawn from U(0, 180) if None.

    Raises:
        InputError: length is no whole number from 1 to 999, or angle is not finite.
    """
    cube = checked(cube)
    if angle is None:
        angle = rng.uniform(0, 180)
    kernel = motion_kernel(length, angle)
    reach = len(kernel) // 2
    _, lines, samples = cube.shape
    padded = np.pad(cube, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    smeared = np.zeros_like(cube)
    for row, column in np.argwhere(kernel):
        smeared += kernel[row, column] * padded[:, row : row + lines, column : column + samples]
    return smeared


def motion_kernel(length: int, angle: float) -> NDArray[np.float32]:
    """Square kernel of odd side of an even motion: `length` points a pixel apart, shared bilinearly; sums to 1.

    Args:
        length: of the path in pixels, 1 to 999.
        angle: in degrees, 0 along samples, 90 along lines.

    Raises:
        InputError: length is no whole number from 1 to 999, or angle is not finite.
    """
    whole("length", length, 1, 999)
    within("angle", angle, -1e6, 1e6)
    reach = length // 2
    # Rounding puts a path along an axis exactly on it, without a fringe of weights near zero.
    direction = np.round([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))], 12)
    return _shared((np.arange(length) - (length - 1) / 2)[:, None] * direction, reach)


def _shared(points: NDArray[np.floating], reach: int) -> NDArray[np.float32]:
    """Kernel [2 reach + 1, 2 reach + 1] of points [N, 2] about its middle, each shared bilinearly by four pixels."""
    points = reach + points
    base = points.astype(int)
    part = points - base
    kernel = np.zeros((2 * reach + 2, 2 * reach + 2))
    for row in (0, 1):
        for column in (0, 1):
            weight = np.abs(1 - row - part[:, 0]) * np.abs(1 - column - part[:, 1])
            np.add.at(kernel, (base[:, 0] + row, base[:, 1] + column), weight)
    return (kernel[:-1, :-1] / len(points)).astype(np.float32)


def astigmatism(
    cube: Cube,
    rng: np.random.Generator,
    *,
    long: float | None = None,
    short: float | None = None,
    angle: float | None = None,
) -> Cube:
    """Convolve every band with an even ellipse, borders reflected as in `blur`.

    A point that astigmatic optics see out of focus is one, as round as their pupil halfway between the two foci and a
    line in each (geometrical optics: Born and Wolf, Principles of Optics, 4.6).

    Args:
        long, short: half axes in pixels, above 0 to 60; drawn from U(2.5, 8) and U(0.3, 2.5) if None.
        angle: of the long one in degrees, 0 along samples, 90 along lines; drawn from U(0, 180) if None.

    Raises:
        InputError: a half axis is outside (0, 60], or angle is not finite.
    """
    cube = checked(cube)
    long = rng.uniform(*LONG_AXES) if long is None else long
    short = rng.uniform(*SHORT_AXES) if short is None else short
    kernel = elliptic_kernel(long, short, rng.uniform(0, 180) if angle is None else angle)
    return np.asarray([correlate(band, kernel, mode="mirror") for band in cube], np.float32)


def elliptic_kernel(long: float, short: float, angle: float) -> NDArray[np.float32]:
    """Square kernel of odd side of an even ellipse; sums to 1. Raises InputError, see `astigmatism`."""
    within("long", long, 1e-3, LARGEST_AXIS)
    within("short", short, 1e-3, LARGEST_AXIS)
    within("angle", angle, -1e6, 1e6)
    reach = math.ceil(max(long, short))
    # Less than half a pixel apart, and never fewer than make a round ellipse.
    side = np.linspace(-1, 1, 4 * max(reach, 4) + 1)
    disc = np.stack(np.meshgrid(short * side, long * side, indexing="ij"), axis=-1)
    across, along = disc[np.hypot(*np.meshgrid(side, side)) <= 1].T
    sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    return _shared(np.stack([along * sine + across * cosine, along * cosine - across * sine], axis=1), reach)


def poisson(cube: Cube, rng: np.random.Generator, *, peak: float = POISSON_PEAK) -> Cube:
    """Count photons: Poisson(peak * cube) / peak. Negative elements count none.

    Args:
        peak: photons at 1.0, above 0. The default of 10 is our choice: noise of sigma 0.14 at a signal of 0.2.

    Raises:
        InputError: peak is outside (0, 1e6].
    """
    cube = checked(cube)
    within("peak", peak, 1e-6, BRIGHTEST)
    counts = rng.poisson(np.maximum(cube, 0) * peak)
    return np.asarray(counts / peak, np.float32)


def stripes(cube: Cube, rng: np.random.Generator, *, gain: float = 0.05, offset: float = 0.03) -> Cube:
    """Give every detector element a gain and an offset error of its own, as an uncalibrated line-scan sensor does.

    The detector of a line-scan sensor is [bands, samples], so that the error is constant along lines.

    Args:
        gain: standard deviation of the relative gain error, 0 to 1.
        offset: standard deviation of the offset in units of the cube, 0 to 1.

    Raises:
        InputError: gain or offset is outside [0, 1].
    """
    cube = checked(cube)
    within("gain", gain, 0, 1)
    within("offset", offset, 0, 1)
    detector = (2, len(cube), 1, cube.shape[2])
    gains, offsets = rng.standard_normal(detector, dtype=np.float32)
    return np.asarray(cube * (1 + gain * gains) + offset * offsets, np.float32)


def deadlines(cube: Cube, rng: np.random.Generator, *, bands: float = 0.3, samples: float = 0.05) -> Cube:
    """Kill columns of the detector: in some bands, some samples read one value along all lines.

    Half of them read zero, the others are stuck at a value from U(0, 1).

    Args:
        bands: share of bands that have dead columns, 0 to 1, at least one band.
        samples: share of samples that are dead in such a band, 0 to 1, at least one.

    Raises:
        InputError: bands or samples is outside [0, 1].
    """
    cube = checked(cube).copy()
    within("bands", bands, 0, 1)
    within("samples", samples, 0, 1)
    count, width = len(cube), cube.shape[2]
    dead = max(1, round(samples * width))
    for band in rng.choice(count, max(1, round(bands * count)), replace=False):
        columns = rng.choice(width, dead, replace=False)
        stuck = rng.random(dead, dtype=np.float32)
        cube[band][:, columns] = stuck * (rng.random(dead) < 0.5)
    return cube


def mixed(cube: Cube, rng: np.random.Generator) -> Cube:
    """A worn sensor: noise of sigma U(10, 30) / 255, mild stripes, dead columns, one band in ten lost.

    Bands are lost last, so that they are exactly zero and `lost_bands` finds them.
    """
    worn = noise(cube, rng, sigma=rng.uniform(10 / 255, 30 / 255))
    worn = stripes(worn, rng, gain=0.03, offset=0.02)
    worn = deadlines(worn, rng, bands=0.2, samples=0.03)
    return bandloss(worn, rng, rate=0.1)


DEGRADATIONS: Mapping[str, Degradation] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            noise, blur, sr, inpaint, bandloss, poisson, motionblur, stripes, deadlines, mixed, astigmatism,
            faint,
            photographs.haze, photographs.rain, photographs.snow, photographs.lowlight, photographs.defocus,
            photographs.grain, photographs.jpeg,
        )
    }
)  # fmt: skip
TRAINING = ("noise", "blur", "sr", "inpaint", "bandloss")
UNSEEN = ("motionblur", "poisson")
LOSE = ("inpaint", "bandloss", "deadlines", "mixed")
"""What leaves elements without a value."""
PHOTOGRAPHS = ("haze", "rain", "snow", "lowlight", "motionblur", "defocus", "grain", "jpeg")
"""What cameras and weather do to photographs; `motionblur` is that of cubes."""


def degrade(cube: Cube, names: str | Sequence[str], rng: np.random.Generator) -> Cube:
    """Apply degradations one after the other, each with the severity that training gives it.

    Args:
        cube: [bands, lines, samples] in [0, 1].
        names: keys of `DEGRADATIONS`, in order, as a comma list ("blur,noise") or a sequence.
        rng: source of all randomness.

    Raises:
        InputError: a name is unknown, or there is none.
    """
    for name in parse_degradations(names):
        cube = DEGRADATIONS[name](cube, rng)
    return cube


def parse_degradations(names: str | Sequence[str]) -> tuple[str, ...]:
    """The names in a comma list or sequence, checked; to refuse a wrong one before any work is done.

    Raises:
        InputError: a name is unknown, or there is none.
    """
    given = tuple(name.strip() for name in (names.split(",") if isinstance(names, str) else names))
    allowed = ", ".join(DEGRADATIONS)
    if not given:
        raise InputError("no degradation is named", key="degradation", remedy=f"choose from {allowed}")
    for name in given:
        if name not in DEGRADATIONS:
            near = difflib.get_close_matches(name.lower(), DEGRADATIONS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                "unknown degradation", key="degradation", value=name, remedy=f"{hint}choose from {allowed}"
            )
    return given


def lost(name: str, cube: Cube) -> NDArray[np.bool_] | None:
    """Elements [bands, lines, samples] of a degraded cube that are known to be missing; None where none can be.

    Those of `LOSE` that are zero: what a sensor tells by a mark, or its list of bad elements.
    """
    return cube == 0 if name in LOSE else None


def lost_bands(cube: Cube) -> NDArray[np.bool_]:
    """Which bands are zero throughout, bool [bands]: those that `bandloss` took, over which quality is then measured.

    Args:
        cube: degraded cube [bands, lines, samples]; noise added after the loss hides it.
    """
    return np.asarray(~np.any(cube, axis=(1, 2)), np.bool_)


def _coarsened(cube: Cube, factor: int, axis: int) -> Cube:
    full = cube.shape[axis]
    size = max(1, full // factor)
    position = np.linspace(0, full - 1, size) if size > 1 else np.zeros(1)
    base = np.minimum(position.astype(int), full - 1)
    part = position - base
    shape = [1, 1, 1]
    shape[axis] = size
    small = np.zeros((*cube.shape[:axis], size, *cube.shape[axis + 1 :]), np.float32)
    for tap in (-1, 0, 1, 2):
        weight = _cubic(np.abs(part - tap)).astype(np.float32).reshape(shape)
        small += weight * np.take(cube, np.clip(base + tap, 0, full - 1), axis=axis)
    return np.asarray(np.take(small, np.arange(full) * size // full, axis=axis), np.float32)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((BICUBIC_A + 2) * distance - (BICUBIC_A + 3)) * distance**2 + 1
    far = BICUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
