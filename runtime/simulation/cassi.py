"""A coded-aperture snapshot spectrometer (CASSI): 28 bands coded by a mask, dispersed, and recorded as one frame.

The model is that of the simulation benchmark (Meng et al., TSA-Net, ECCV 2020; Cai et al., MST, CVPR 2022): a single
disperser that moves every band two samples further than the one before.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.arrays import Float32
from runtime.errors import CubeError, CubeFileError, InputError
from runtime.files import CubeFile, read_cube

STEP = 2
"""Samples by which the prism moves a band further than the one before it."""
# fmt: off
WAVELENGTHS = (
    453.5, 457.5, 462.0, 466.0, 471.5, 476.5, 481.5, 487.0, 492.5, 498.0, 504.0, 510.0, 516.0, 522.5,
    529.5, 536.5, 544.0, 551.5, 558.5, 567.5, 575.5, 584.5, 594.5, 604.0, 614.5, 625.0, 636.5, 648.0,
)
"""Band centres in nm, of the prism and not equidistant."""
# fmt: on
BANDS = len(WAVELENGTHS)
RANDOM = "random:"
DISPERSED = STEP * (BANDS - 1)
"""Samples by which a measurement is wider than its mask."""


def measure(cube: Float32, mask: Float32) -> Float32:
    """What the detector sees of a cube: `Y[r, c] = 2 / 28 sum_i m[r, c - 2 i] X[i, r, c - 2 i]`, without noise.

    Args:
        cube: [28, lines, samples] in [0, 1].
        mask: [lines, samples] in [0, 1].

    Returns:
        measurement, float32 [lines, samples + 54].

    Raises:
        CubeError: the cube has other bands, lines or samples.
    """
    if cube.shape != (BANDS, *mask.shape):
        raise CubeError(
            f"the mask is for {BANDS} bands x {mask.shape[0]} lines x {mask.shape[1]} samples",
            key="cube",
            value="x".join(map(str, cube.shape)),
            remedy="resample its bands, and cut it or the mask",
        )
    lines, samples = mask.shape
    seen = np.zeros((lines, samples + DISPERSED), np.float32)
    for band, plane in enumerate(cube):
        seen[:, STEP * band : STEP * band + samples] += mask * plane
    return np.asarray(seen / np.float32(BANDS) * np.float32(2), np.float32)


ELECTRONS, READ = (1.0, 1e9), (0.0, 1e6)
"""From and to, of a detector that is simulated."""


def noisy(measurement: Float32, rng: np.random.Generator, electrons: float, read: float) -> Float32:
    """The same with shot and read noise: Poisson(Y e) / e + N(0, read / e).

    Args:
        measurement: [lines, samples], not negative.
        rng: random numbers.
        electrons: e, what the detector collects where the measurement is 1.
        read: read noise, electrons rms.
    """
    collected = rng.poisson(np.maximum(measurement, 0) * electrons) + read * rng.standard_normal(measurement.shape)
    return np.asarray(collected / electrons, np.float32)


def shift_back(measurement: Float32) -> Float32:
    """The bands where the mask has them: band i [lines, samples] is the measurement from sample 2 i on.

    Args:
        measurement: [lines, samples + 54].

    Returns:
        float32 [28, lines, samples].
    """
    samples = measurement.shape[1] - DISPERSED
    return np.stack([measurement[:, STEP * i : STEP * i + samples] for i in range(BANDS)])


def shifted(mask: Float32) -> Float32:
    """The mask of every band where its light falls on the detector, zeros elsewhere.

    Args:
        mask: [lines, samples].

    Returns:
        float32 [28, lines, samples + 54].
    """
    lines, samples = mask.shape
    out = np.zeros((BANDS, lines, samples + DISPERSED), np.float32)
    for band in range(BANDS):
        out[band, :, STEP * band : STEP * band + samples] = mask
    return out


def resampled(cube: Float32, wavelengths: Sequence[float], wanted: Sequence[float] = WAVELENGTHS) -> Float32:
    """A cube in other bands, the instrument's 28, interpolated linearly between the two nearest of its own.

    Args:
        cube: [bands, lines, samples].
        wavelengths: of its bands in nm, increasing.
        wanted: of the other bands.

    Returns:
        float32 [other bands, lines, samples].

    Raises:
        CubeError: its bands are not in increasing order, or do not cover the wanted ones.
    """
    own = np.asarray(wavelengths, np.float64)
    if len(own) != len(cube) or (np.diff(own) <= 0).any() or own[0] > min(wanted) or own[-1] < max(wanted):
        raise CubeError(
            f"bands in increasing order from {min(wanted):g} to {max(wanted):g} nm are needed",
            key="wavelengths",
            value=f"{len(own)} of {own.min():g} to {own.max():g} nm",
            remedy="give a cube that covers them, with the wavelength of each band",
        )
    place = np.interp(wanted, own, np.arange(len(own)))
    low = np.minimum(place.astype(int), len(own) - 2)
    share = (place - low).astype(np.float32)[:, None, None]
    return np.asarray(cube[low] * (1 - share) + cube[low + 1] * share, np.float32)


def random_mask(seed: int, lines: int = 256, samples: int = 256) -> Float32:
    """A mask for whom no instrument's is at hand, whose neighbours correlate as a real one's do (0.66, then 0.2).

    Cells of 2 x 2 pixels are open or shut at even odds. They lie half a pixel off the detector's: each of its pixels is
    the mean of four, itself and those to the right, below and below right. What is shut lets 1 % through.

    Args:
        seed: of the cells.
        lines, samples: of the mask.

    Returns:
        float32 [lines, samples] in [0.01, 1].
    """
    cells = np.random.default_rng(seed).random((lines // 2 + 1, samples // 2 + 1)) < 0.5
    fine = np.kron(cells, np.ones((2, 2)))
    seen = sum(fine[i : i + lines, j : j + samples] for i in (0, 1) for j in (0, 1))
    return np.asarray(np.clip(seen / 4, 0.01, 1), np.float32)


def mask_of(text: str) -> Float32:
    """A mask by its file, see `read_mask`, or `random:SEED[,LINESxSAMPLES]`. Raises InputError, CubeFileError."""
    if not text.startswith(RANDOM):
        return read_mask(text)
    match = re.fullmatch(rf"{RANDOM}(\d{{1,10}})(?:,(\d{{1,4}})x(\d{{1,4}}))?", text, re.ASCII)
    if match is None:
        raise InputError("not a random mask", key="mask", value=text, remedy="for example random:1,256x256")
    size = (int(match[2]), int(match[3])) if match[2] else (256, 256)
    return checked_mask(random_mask(int(match[1]), *size).astype(np.float64), text)


def read_mask(said: str | Path) -> Float32:
    """A mask from `.npy`, `.npz`, `.mat`, ENVI, or a picture whose brightest number stands for open.

    Args:
        said: the file; [lines, samples] in [0, 1], of a picture integers that are divided by their type's largest. Of
            several arrays in one that is called `mask`, or as FILE:ARRAY says.

    Returns:
        float32 [lines, samples], both multiples of 4.

    Raises:
        CubeFileError: the file cannot be read.
        InputError: it is no mask: another shape, values that are not finite or beyond [0, 1], or nothing but one value;
            or which axis is which is doubtful.
    """
    file, colon, array = str(said).rpartition(":")
    inner = bool(colon) and not Path(said).exists() and Path(file).exists()
    try:
        found = read_cube(file, key=array, plane=True) if inner else _mask_file(Path(said))
    except CubeFileError as error:
        path, names = Path(file if inner else said), re.sub(r", as in --key .*", "", error.remedy or "")
        if error.key == "key":
            error.remedy = f"say which is the mask, as in {path.name}:ARRAY; {names}"
        elif error.key == "layout":
            error.remedy = "save it as one plane, [lines, samples]"
        raise
    for doubt in found.doubts:
        raise InputError(
            f"the mask may be turned: {doubt}", file=found.path, key="mask", remedy="save it as .npy, [lines, samples]"
        )
    plane = found.cube[0]
    if found.format == "photograph":
        plane = plane / np.float32(np.iinfo(plane.dtype).max)
    return checked_mask(np.asarray(plane, np.float64), str(said))


def _mask_file(path: Path) -> CubeFile:
    """A file's only plane, or the array in it that is called `mask`."""
    try:
        return read_cube(path, key="mask", plane=True)
    except CubeFileError as error:
        if error.key != "key":
            raise
        return read_cube(path, plane=True)


def checked_mask(mask: np.ndarray[tuple[int, ...], np.dtype[np.float64]], name: str) -> Float32:
    """A mask as the networks take it, see `read_mask`; `name` stands in errors. Raises InputError."""
    problem: str | None = None
    if mask.ndim != 2 or min(mask.shape) < 4 or any(length % 4 for length in mask.shape):
        problem, value = "a mask is [lines, samples], both multiples of 4", "x".join(map(str, mask.shape))
    elif not np.isfinite(mask).all():
        problem, value = "a mask holds finite numbers", f"{int((~np.isfinite(mask)).sum())} are not"
    elif mask.min() < 0 or mask.max() > 1:
        problem, value = "a mask holds numbers from 0 to 1", f"{mask.min():g} to {mask.max():g}"
    elif mask.min() == mask.max():
        problem, value = "a mask opens in some places and not in others", f"{mask.min():g} everywhere"
    if problem is not None:
        raise InputError(problem, key="mask", value=f"{name}: {value}", remedy="give the instrument's own mask")
    return mask.astype(np.float32)
