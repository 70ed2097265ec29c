"""RGB photographs lifted to smooth spectra, for scenes that no spectrometer saw.

A photograph's linear R, G and B weigh three reflectances that are computed as in Mallett and Yuksel, "Spectral primary
decomposition for rendering with sRGB reflectance" (EGSR 2019): the smoothest ones, between 0 and 1 and summing to 1 at
every wavelength, that are the primaries of sRGB under D65. The eye is that of Wyman, Sloan and Shirley, "Simple
analytic approximations to the CIE XYZ color matching functions" (JCGT 2013), so that no table has to be kept.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import minimize

from runtime.arrays import Float32
from runtime.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")
FINEST, COARSEST = 380, 720
"""Nanometres between which the eye sees; beyond them the spectra go on as they end."""
STEP = 10
D65 = (
    49.9755, 54.6482, 82.7549, 91.486, 93.4318, 86.6823, 104.865, 117.008, 117.812, 114.861, 115.923, 108.811, 109.354,
    107.802, 104.79, 107.689, 104.405, 104.046, 100.0, 96.3342, 95.788, 88.6856, 90.0062, 89.5991, 87.6987, 83.2886,
    83.6992, 80.0268, 80.2146, 82.2778, 78.2842, 69.7213, 71.6091, 74.349, 61.604,
)  # fmt: skip
"""CIE standard illuminant D65 (ISO/CIE 11664-2) from 380 to 720 nm."""
SRGB = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
"""XYZ to linear sRGB, IEC 61966-2-1."""
MODES = ("RGB", "L")
LARGEST = 64_000_000
"""Pixels: 3 GB on the way."""
HALVED = 2
"""Sides are divided by it, which averages away what JPEG and the mosaic of the camera's filters left."""


def linear(photograph: NDArray[np.uint8]) -> Float32:
    """Linear R, G and B, 0 to 1, of what `read_photograph` gives."""
    return np.asarray(np.square(photograph, dtype=np.float32) / np.float32(255**2))


def read_photograph(path: Path) -> NDArray[np.uint8]:
    """A photograph at half its size as [3, lines, samples], linear light in 255ths of its square root.

    The square root keeps dark pixels apart in a byte; `linear` undoes it.

    Raises:
        InputError: the file is no photograph, or another than 8 bits of RGB or grey without transparency, or too large.
    """
    encoded = np.asarray(read_pixels(path), np.float32) / 255
    light = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lines, samples = (n // HALVED for n in light.shape[:2])
    blocks = light[: lines * HALVED, : samples * HALVED].reshape(lines, HALVED, samples, HALVED, 3).mean(axis=(1, 3))
    return np.asarray(np.rint(np.sqrt(blocks) * 255), np.uint8).transpose(2, 0, 1)


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """A photograph as it is, [lines, samples, 3].

    Raises:
        InputError: the file is no photograph, or another than 8 bits of RGB or grey without transparency, or too large.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in MODES or "transparency" in image.info or image.width * image.height > LARGEST:
                told = f"{image.width} x {image.height}, {image.mode}"
                raise InputError(
                    "is no photograph of 8 bits a colour, opaque, and of at most 64 megapixels", file=path, value=told,
                    remedy="convert it, or leave it out",
                )  # fmt: skip
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError("is no photograph", file=path, value=error, remedy="leave it out") from error


def spectra(wavelengths: Sequence[float]) -> Float32:
    """Reflectances of pure red, green and blue at wavelengths in nm, [bands, 3]; each row sums to 1."""
    at, basis = _basis()
    return np.stack([np.interp(wavelengths, at, column) for column in basis.T], axis=1).astype(np.float32)


@cache
def _basis() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(wavelengths [n], reflectances [n, 3]): least sum of squared steps under the constraints above."""
    at = np.arange(FINEST, COARSEST + 1, STEP, dtype=np.float64)
    seen = _eye(at) * np.array(D65)
    to_rgb = np.array(SRGB) @ seen / seen[1].sum()
    count = len(at)

    def cost(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        steps = np.diff(flat.reshape(3, count), axis=1)
        slope = np.zeros((3, count))
        slope[:, 1:] += 2 * steps
        slope[:, :-1] -= 2 * steps
        return float((steps**2).sum()), slope.ravel()

    # White light's own residue under rounded matrices: all three colours, which sum to one, must have it together.
    wanted = np.eye(3) * (to_rgb @ np.ones(count))[:, None]
    colour = np.kron(np.eye(3), to_rgb)
    whole = np.tile(np.eye(count), 3)
    # The third spectrum's colour follows from the other two and the sum.
    rows = np.vstack([colour[:6], whole])
    values = np.concatenate([wanted.T.ravel()[:6], np.ones(count)])
    found = minimize(
        cost, np.full(3 * count, 1 / 3), jac=True, method="SLSQP", bounds=[(0, 1)] * (3 * count),
        constraints={"type": "eq", "fun": lambda flat: rows @ flat - values, "jac": lambda _: rows},
        options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    assert found.success, found.message
    return at, found.x.reshape(3, count).T


def _eye(nm: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE 1931 colour matching functions [3, n], the sums of Gaussians of Wyman et al. (their listing 1)."""

    def lobe(height: float, centre: float, below: float, above: float) -> NDArray[np.float64]:
        return height * np.exp(-0.5 * ((nm - centre) / np.where(nm < centre, below, above)) ** 2)

    return np.stack(
        [
            lobe(1.056, 599.8, 37.9, 31.0) + lobe(0.362, 442.0, 16.0, 26.7) + lobe(-0.065, 501.1, 20.4, 26.2),
            lobe(0.821, 568.8, 46.9, 40.5) + lobe(0.286, 530.9, 16.3, 31.1),
            lobe(1.217, 437.0, 11.8, 36.0) + lobe(0.681, 459.0, 26.0, 13.8),
        ]
    )
