"""Degradations of photographs: weather, lenses, little light and compression, as programs make them of clean ones.

Functions as in `calibration.degradations`, for cubes that hold a photograph: [bands, lines, samples], display values
in [0, 1] (sRGB, gamma about 2.2). Where a camera clips and counts, these do: `lowlight`, `grain` and `jpeg` give what 8
bits hold. J is the clean picture.

    haze      J t + A (1 - t), t = exp(-beta d)              the scattering model of Koschmieder; d a depth in [0, 1]
    rain      1 - (1 - J)(1 - S)                             streaks S of light over the picture (screen blending)
    snow      J (1 - M) + c M                                flakes M of opacity up to 1 and of brightness c
    lowlight  (Poisson(p e J^2.2) / p + N(0, r))^(1 / 2.2)   exposure e, p electrons at 1.0, read noise r
    defocus   J * disc                                       a disc of radius r with a soft rim (circle of confusion)
    grain     N(0, sigma) added, clipped and cut to 8 bits   the noise of DFPIR's training (arXiv 2505.12630)
    jpeg      what JPEG of quality q leaves                  libjpeg's scale, chroma halved

No depth is known of a photograph: `haze` takes one that falls from the horizon to the foreground, with hills of smooth
noise on it. Severities that are left out are drawn; their ranges are our choice, near to those of the usual sets
(RESIDE, Rain100, Snow100K, LOL).
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter
from scipy.signal import fftconvolve

from calibration.severity import Cube, checked, whole, within

GAMMA = 2.2
LEVELS = 255
HAZE_BETAS, AIRLIGHTS = (0.5, 1.6), (0.7, 1.0)
RAIN_DROPS, RAIN_LENGTHS, RAIN_LEAN, RAIN_LIGHT = (0.005, 0.02), (9, 25), 20.0, (0.4, 0.8)
SNOW_FLAKES, SNOW_SIZES = (0.001, 0.004), (0.6, 2.2)
EXPOSURES, ELECTRONS, READ_NOISE = (0.04, 0.2), 1500.0, 0.002
RADII = (1.5, 4.5)
SIGMAS = (15 / LEVELS, 25 / LEVELS, 50 / LEVELS)
QUALITIES = (10, 40)
REACH = 8
"""Side in sigmas of the smooth noise that depth is made of, as a share of the picture's shorter side: one eighth."""


def haze(cube: Cube, rng: np.random.Generator, *, beta: float | None = None, airlight: float | None = None) -> Cube:
    """Scatter light in the air between scene and camera.

    Args:
        beta: scattering over the whole depth, 0 to 10; drawn from U(0.5, 1.6) if None.
        airlight: light of the air, 0 to 1; drawn from U(0.7, 1) if None.

    Raises:
        InputError: beta or airlight is out of range.
    """
    cube = checked(cube)
    beta = rng.uniform(*HAZE_BETAS) if beta is None else beta
    airlight = rng.uniform(*AIRLIGHTS) if airlight is None else airlight
    within("beta", beta, 0, 10)
    within("airlight", airlight, 0, 1)
    seen = np.exp(-beta * _depth(cube.shape[1:], rng))
    return np.asarray(cube * seen + airlight * (1 - seen), np.float32)


def _depth(size: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """[lines, samples] in [0, 1], far at the top."""
    hills = gaussian_filter(rng.standard_normal(size), max(1.0, min(size) / REACH), mode="nearest")
    hills /= max(float(np.abs(hills).max()), 1e-12)
    fall = np.linspace(1, 0.2, size[0])[:, None]
    return np.asarray(np.clip(fall + 0.25 * hills, 0, 1))


def rain(cube: Cube, rng: np.random.Generator, *, drops: float | None = None) -> Cube:
    """Draw bright streaks that lean a little, all in about one direction.

    Args:
        drops: share of pixels in which a streak is centred, 0 to 1; drawn from U(0.005, 0.02) if None.

    Raises:
        InputError: drops is out of range.
    """
    cube = checked(cube)
    drops = rng.uniform(*RAIN_DROPS) if drops is None else drops
    within("drops", drops, 0, 1)
    lean, streaks = rng.uniform(-RAIN_LEAN, RAIN_LEAN), np.zeros(cube.shape[1:])
    for length in rng.integers(*RAIN_LENGTHS, size=3):
        falling = (rng.random(cube.shape[1:]) < drops / 3) * rng.uniform(*RAIN_LIGHT, cube.shape[1:])
        # As thin as a pixel, whatever its length: light is not spread but drawn.
        streaks += fftconvolve(falling, _line(int(length), 90 + lean + rng.uniform(-3, 3)), mode="same")
    streaks = np.clip(streaks, 0, 1)
    return np.asarray(1 - (1 - cube) * (1 - streaks), np.float32)


def _line(length: int, angle: float) -> NDArray[np.float64]:
    """A line in a square, 1 on it and falling to 0 within a pixel beside it; its ends fade."""
    reach = length // 2 + 1
    line, sample = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    direction = np.deg2rad(angle)
    along = sample * np.cos(direction) + line * np.sin(direction)
    across = np.abs(sample * np.sin(direction) - line * np.cos(direction))
    return np.asarray(np.clip(1 - across, 0, 1) * np.clip(1 - (2 * np.abs(along) / length) ** 2, 0, 1))


def snow(cube: Cube, rng: np.random.Generator, *, flakes: float | None = None) -> Cube:
    """Let flakes of several sizes fall between scene and camera.

    Args:
        flakes: share of pixels in which a flake is centred, for each of three sizes, 0 to 1; drawn from U(0.001, 0.004)
            if None.

    Raises:
        InputError: flakes is out of range.
    """
    cube = checked(cube)
    flakes = rng.uniform(*SNOW_FLAKES) if flakes is None else flakes
    within("flakes", flakes, 0, 1)
    clear = np.ones(cube.shape[1:])
    for size in rng.uniform(*SNOW_SIZES, 3):
        there = (rng.random(cube.shape[1:]) < flakes / size) * rng.uniform(0.5, 1, cube.shape[1:])
        around = disc(2 * size)
        clear *= 1 - np.clip(fftconvolve(there, around / around.max(), mode="same"), 0, 1)
    return np.asarray(cube * clear + rng.uniform(0.85, 1) * (1 - clear), np.float32)


def lowlight(cube: Cube, rng: np.random.Generator, *, exposure: float | None = None) -> Cube:
    """Expose too little: linear light times `exposure`, shot and read noise, eight bits.

    Args:
        exposure: share of the light, above 0 to 1; drawn log-uniform from 0.04 to 0.2 if None.

    Raises:
        InputError: exposure is out of range.
    """
    cube = checked(cube)
    exposure = float(np.exp(rng.uniform(*np.log(EXPOSURES)))) if exposure is None else exposure
    within("exposure", exposure, 1e-4, 1)
    light = exposure * np.clip(cube, 0, 1) ** GAMMA
    counted = rng.poisson(light * ELECTRONS) / ELECTRONS + READ_NOISE * rng.standard_normal(cube.shape)
    return np.asarray(np.rint(LEVELS * np.clip(counted, 0, 1) ** (1 / GAMMA)) / LEVELS, np.float32)


def defocus(cube: Cube, rng: np.random.Generator, *, radius: float | None = None) -> Cube:
    """Convolve every band with a disc, borders reflected about the edge pixel.

    Args:
        radius: of the disc in pixels, 0.5 to 100; drawn from U(1.5, 4.5) if None.

    Raises:
        InputError: radius is out of range.
    """
    cube = checked(cube)
    radius = rng.uniform(*RADII) if radius is None else radius
    within("radius", radius, 0.5, 100)
    around = disc(radius)
    return np.stack([convolve(band, around / around.sum(), mode="mirror") for band in cube]).astype(np.float32)


def disc(radius: float) -> NDArray[np.float64]:
    """A square that is 1 within `radius` pixels of its middle and 0 beyond, falling over one pixel."""
    reach = int(np.ceil(radius))
    away = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
    return np.asarray(np.clip(radius + 0.5 - away, 0, 1))


def grain(cube: Cube, rng: np.random.Generator, *, sigma: float | None = None) -> Cube:
    """Add white Gaussian noise, clip to [0, 1] and cut, not round, to eight bits.

    Args:
        sigma: standard deviation, >= 0; 15, 25 or 50 of 255 if None.

    Raises:
        InputError: sigma is out of range.
    """
    cube = checked(cube)
    sigma = float(rng.choice(SIGMAS)) if sigma is None else sigma
    within("sigma", sigma, 0, 1)
    noisy = cube + sigma * rng.standard_normal(cube.shape)
    return np.asarray(np.floor(LEVELS * np.clip(noisy, 0, 1)) / LEVELS, np.float32)


def jpeg(cube: Cube, rng: np.random.Generator, *, quality: int | None = None) -> Cube:
    """Write and read a JPEG: of three bands as one picture of colours, of others band by band.

    Args:
        quality: 1 to 95; drawn from 10 to 40 if None.

    Raises:
        InputError: quality is out of range or no whole number.
    """
    cube = checked(cube)
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1)) if quality is None else quality
    whole("quality", quality, 1, 95)
    levels = np.rint(LEVELS * np.clip(cube, 0, 1)).astype(np.uint8)
    if len(levels) == 3:
        made = _compressed(levels.transpose(1, 2, 0), quality).transpose(2, 0, 1)
    else:
        made = np.stack([_compressed(band, quality) for band in levels])
    return np.asarray(made / np.float32(LEVELS), np.float32)


def _compressed(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    held = io.BytesIO()
    Image.fromarray(picture).save(held, "JPEG", quality=int(quality), subsampling="4:2:0")
    return np.asarray(Image.open(held))
