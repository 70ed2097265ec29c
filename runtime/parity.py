"""How far two restorations of one frame are apart: in their elements, or in quality alone."""

import math
from typing import Literal

import numpy as np

from .arrays import Float32

Parity = Literal["elements", "quality"]
QUALITY_DB = 0.05
"""Of PSNR that rounding may cost or gain where it may move single elements by any amount."""
ALIKE = 0.05
"""Rms of the difference there, as a share of the range: engines and precisions of float32 stay below 0.011."""


def apart(made: Float32, expected: Float32, truth: Float32 | None = None) -> float:
    """Largest difference as a share of the expected range; where there is a truth the change of PSNR against it, in dB.

    Against a truth, values are clipped to [0, 1]; what is not alike at all is infinitely far.

    Args:
        made, expected: restorations, of one shape.
        truth: what they should be, of that shape too.
    """
    span = float(np.ptp(expected)) or 1.0
    if truth is None:
        return float(np.abs(made - expected).max()) / span
    if float(np.sqrt(np.mean(np.square(made - expected, dtype=np.float64)))) > ALIKE * span:
        return math.inf
    one, other = (
        float(np.mean(np.square(array.clip(0, 1) - truth, dtype=np.float64))) or 1e-10 for array in (made, expected)
    )
    return abs(10 * math.log10(one / other))


def told(value: float, truth: bool) -> str:
    """It, for people."""
    return f"{value:.1e} dB of PSNR" if truth else f"{value:.1e} of the range"
