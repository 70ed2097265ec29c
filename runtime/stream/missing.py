"""Missing values on their way from restoration to the sinks, which write the source's ignore value for them.

As a number, the ignore value would not outlive scaling and blending, and other values could become it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOWEST = np.float32(np.finfo(np.float32).min)
LOW = np.float32(-1e30)
"""No radiance is so low; what was blended with the lowest number is."""


def stand_in(dtype: np.dtype[Any]) -> np.float32:
    """What stands for a missing value of lines of a type: integers are never NaN, floats never the lowest number."""
    number: np.float32 = np.float32(np.nan) if dtype.kind in "iu" else LOWEST
    return number


def stands_in(values: NDArray[np.float32], stand_in: np.float32, out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which values a stand-in is, or was blended with; into `out` of the same shape."""
    if np.isnan(stand_in):
        np.isnan(values, out=out)
    else:
        np.less(values, LOW, out=out)
    return out
