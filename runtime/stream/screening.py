"""What a line's numbers say of it: lines that no network should see are found before anything is made of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.lines import NO_FLAGS, Flag, Line, LineFormat

SATURATED_SHARE = 0.25
"""A line with more of its values at the detector's limit is passed through as a whole."""


class Screen:
    """Flags for one line after the other; it remembers the line before by its checksum.

    Args:
        format: of the lines.
        saturation: digital number at which the detector is at its limit; None where nobody knows it.
        bad: bool [bands, samples], elements whose values are replaced: they say nothing of the line.
    """

    def __init__(self, format: LineFormat, saturation: float | None, bad: NDArray[np.bool_] | None = None) -> None:
        self._saturation = saturation
        self._good = None if bad is None or not bad.any() else ~bad
        self._floats = format.dtype.kind == "f"
        self._values = format.bands * format.samples
        self._mask = np.empty(format.shape, np.bool_)
        self._before: int | None = None

    def flags(self, line: Line, checksum: int) -> Flag:
        """What is wrong with a line.

        Args:
            line: [bands, samples].
            checksum: of its bytes; two equal ones in a row are a line that was sent twice.
        """
        found = NO_FLAGS
        if self._before == checksum:
            found |= Flag.REPEATED
        self._before = checksum
        largest = line.max()
        if self._floats and not (np.isfinite(largest) and np.isfinite(line.min())):
            return found | Flag.NOT_FINITE
        if largest == line[0, 0] and largest == line.min():
            found |= Flag.EMPTY
        if self._saturation is not None and largest >= self._saturation:
            np.greater_equal(line, self._saturation, out=self._mask)
            if self._good is not None:
                np.logical_and(self._mask, self._good, out=self._mask)
            count = np.count_nonzero(self._mask)
            if count:
                found |= Flag.SATURATED if count > SATURATED_SHARE * self._values else Flag.SOME_SATURATED
        return found

    def broken(self) -> None:
        """The next line has no line before it."""
        self._before = None
