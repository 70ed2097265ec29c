"""How far two restorations of one frame are apart: in their elements, or in quality alone."""

import math
from typing import Literal

import numpy as np

from .arrays import Float32
from .precisions import PRECISIONS

Parity = Literal["elements", "quality"]
QUALITY_DB = 0.05
"""Of PSNR that rounding may cost or gain where it may move single elements by any amount."""
ALIKE = 0.05
"""Rms of the difference there, as a share of the range: engines and precisions of float32 stay below 0.011."""


def apart(made: Float32, expected: Float32, truth: Float32 | None = None, precision: str = "fp32") -> float:
    """Largest difference as a share of the expected range; where there is a truth the change of PSNR against it, in dB.

    Against a truth, values are clipped to [0, 1]; what is not alike at all is infinitely far.

    Args:
        made, expected: restorations, of one shape.
        truth: what they should be, of that shape too.
        precision: that `made` was computed in; in some the root mean square of the difference counts, not the largest.
    """
    span = float(np.ptp(expected)) or 1.0
    by_rms = PRECISIONS[precision].by_rms
    if truth is None and not by_rms:
        return float(np.abs(made - expected).max()) / span
    rms = float(np.sqrt(np.mean(np.square(made - expected, dtype=np.float64)))) / span
    if truth is None:
        return rms
    if rms > ALIKE:
        return math.inf
    one, other = (
        float(np.mean(np.square(array.clip(0, 1) - truth, dtype=np.float64))) or 1e-10 for array in (made, expected)
    )
    return abs(10 * math.log10(one / other))


def told(value: float, truth: bool, precision: str = "fp32") -> str:
    """It, for people."""
    if truth:
        return f"{value:.1e} dB of PSNR"
    return f"{value:.1e} of the range" + (" (rms)" if PRECISIONS[precision].by_rms else "")
