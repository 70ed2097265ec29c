"""What a line's numbers say of it: lines that no network should see are found before anything is made of them."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.lines import NO_FLAGS, Flag, Line, LineFormat
from runtime.meaning import Mark

SATURATED_SHARE = 0.25
"""A line with more of its values at the detector's limit is passed through as a whole."""


SAMPLED = 256
"""Elements that are looked at first: where they differ, the others need not be."""


class Screen:
    """Flags for one line after the other; it remembers the line before.

    Args:
        format: of the lines.
        saturation: digital number at which the detector is at its limit; None where nobody knows it.
        judged: bool [bands, samples], elements that say something of the line: of bands that are restored, and not
            replaced; None for all.
        marks: of missing values, which are no fault of the line.
        photograph: one value all over, and a line like the one before, are what a picture shows, and no fault either.
    """

    def __init__(
        self,
        format: LineFormat,
        saturation: float | None,
        judged: NDArray[np.bool_] | None = None,
        marks: Sequence[Mark] = (),
        *,
        photograph: bool = False,
    ) -> None:
        self._photograph = photograph
        self._wild = [mark for mark in marks if not math.isfinite(mark.low)]
        self._saturation = saturation
        self._floats = format.dtype.kind == "f"
        self._mask = np.empty(format.shape, np.bool_)
        some = judged is not None and judged.any() and not judged.all()
        self._judged = judged if some else None
        self._ignored = None if self._judged is None else ~self._judged
        self._values = int(np.count_nonzero(judged)) if some and judged is not None else format.bands * format.samples
        self._before: int | None = None
        self._last: _Judged | None = None
        if self._judged is not None:
            self._last = _Judged(self._judged, format)

    def flags(self, line: Line, checksum: int) -> Flag:
        """What is wrong with a line.

        Args:
            line: [bands, samples].
            checksum: of its bytes; two equal ones in a row are a line that was sent twice.
        """
        top = line.max()
        found = NO_FLAGS if self._photograph else self._repeated(line, checksum)
        if self._floats and not self._finite(line, top):
            if not self._whole_bands(line):
                return found | Flag.NOT_FINITE
            found |= Flag.DEAD_BANDS
        if not self._photograph and self._constant(line, top):
            found |= Flag.EMPTY
        if self._saturation is not None and top >= self._saturation:
            np.greater_equal(line, self._saturation, out=self._mask)
            if self._judged is not None:
                np.logical_and(self._mask, self._judged, out=self._mask)
            count = np.count_nonzero(self._mask)
            if count:
                found |= Flag.SATURATED if count > SATURATED_SHARE * self._values else Flag.SOME_SATURATED
        return found

    def broken(self) -> None:
        """The next line has no line before it."""
        self._before = None
        if self._last is not None:
            self._last.forget()

    def _repeated(self, line: Line, checksum: int) -> Flag:
        if self._last is not None:
            return Flag.REPEATED if self._last.equals(line) else NO_FLAGS
        same, self._before = self._before == checksum, checksum
        return Flag.REPEATED if same else NO_FLAGS

    def _finite(self, line: Line, top: np.generic) -> bool:
        if self._ignored is None and np.isfinite(top) and np.isfinite(line.min()):
            return True
        np.isfinite(line, out=self._mask)
        if self._ignored is not None:
            np.logical_or(self._mask, self._ignored, out=self._mask)
        for mark in self._wild:
            self._mask |= mark.found(line)
        return bool(self._mask.all())

    def _whole_bands(self, line: Line) -> bool:
        """Whether what is not finite fills whole bands, and others are there."""
        finite = np.isfinite(line)
        there = finite.any(axis=1)
        wild = ~finite[there] if self._ignored is None else ~finite[there] & ~self._ignored[there]
        return bool(there.any() and not wild.any())

    def _constant(self, line: Line, top: np.generic) -> bool:
        if self._last is not None:
            return self._last.constant(line)
        return bool(line[0, 0] == top and top == line.min())


class _Judged:
    """Compares lines by the elements that count, and keeps the line before."""

    def __init__(self, judged: NDArray[np.bool_], format: LineFormat) -> None:
        self._ignored = ~judged
        places = np.flatnonzero(judged)
        self._some = places[np.linspace(0, len(places) - 1, min(SAMPLED, len(places))).astype(np.intp)]
        self._before = np.zeros(format.shape, format.dtype)
        self._known = False
        self._mask = np.empty(format.shape, np.bool_)

    def forget(self) -> None:
        self._known = False

    def constant(self, line: Line) -> bool:
        some = line.reshape(-1)[self._some]
        return bool((some == some[0]).all()) and self._all(np.equal(line, some[0], out=self._mask))

    def equals(self, line: Line) -> bool:
        """Whether it is the line before; it takes that one's place."""
        same = self._known and np.array_equal(line.reshape(-1)[self._some], self._before.reshape(-1)[self._some])
        same = same and self._all(np.equal(line, self._before, out=self._mask))
        np.copyto(self._before, line)
        self._known = True
        return same

    def _all(self, mask: NDArray[np.bool_]) -> bool:
        return bool(np.logical_or(mask, self._ignored, out=mask).all())
