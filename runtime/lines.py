"""What the stream is made of: lines of a spectrometer, their place in the count, and what is known of each.

A line is one image of the slit, [bands, samples]. Every line that a source issues gets a sequence number, those that
never came among them, so that nothing can be lost without a gap in the numbers.
"""

from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Flag(IntFlag):
    """What is known of a line, as the index files write it (32 bits)."""

    BREAK = 1
    """It does not follow the line before: the first of a run, of a file, or after the camera came back."""
    GAP = 2
    """Lines are missing directly before it."""
    NOT_FINITE = 4
    """It holds NaN or infinite values."""
    EMPTY = 8
    """All of its values are equal: no light, no detector, or no data."""
    SOME_SATURATED = 16
    """Some of its values are at the detector's limit; they are passed through, the others restored."""
    SATURATED = 32
    """Too much of it is at the detector's limit to restore it."""
    REPEATED = 64
    """It equals the line before, value for value."""
    DEAD_BANDS = 128
    """Some of its bands hold no number at all; they are passed through, the others restored."""
    RESTORED = 256
    """The network's output."""
    PASSED = 512
    """Passed through as it came, not restored."""
    INTERPOLATED = 1024
    """It never came, or came damaged: made from its neighbours."""
    PADDED = 2048
    """Restored in a frame that was not full and was filled up by reflection."""
    END = 4096
    """The last line of a picture."""
    SUSPECT = 8192
    """Restored, but what came out does not look like a restoration of what came in."""


NO_FLAGS = Flag(0)
UNFIT = Flag.NOT_FINITE | Flag.EMPTY | Flag.SATURATED | Flag.REPEATED
"""A line with one of these is passed through."""


@dataclass(frozen=True)
class LineFormat:
    """What every line of a source looks like.

    Attributes:
        bands, samples: shape of a line.
        dtype: of its values, in native byte order.
        scale: digital number that stands for 1.0, where the source tells; None otherwise and for floats.
        saturation: digital number at which the detector is at its limit; None where it is not known.
        wavelengths: centres of the bands in nm, where the source tells.
        ignore_value: mark of missing pixels, where the source tells.
    """

    bands: int
    samples: int
    dtype: np.dtype[Any]
    scale: float | None = None
    saturation: float | None = None
    wavelengths: tuple[float, ...] | None = None
    ignore_value: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.bands, self.samples)

    @property
    def line_bytes(self) -> int:
        return self.bands * self.samples * self.dtype.itemsize


@dataclass(frozen=True)
class Taken:
    """A whole line was put into the buffer that was offered.

    Attributes:
        frame_id: the source's own number of it: the camera's frame id unrolled to 64 bits, a file's line number.
        utc_ns: when it was taken, nanoseconds since 1970 UTC.
        flags: what the source knows of it.
    """

    frame_id: int
    utc_ns: int
    flags: Flag = NO_FLAGS


@dataclass(frozen=True)
class Missing:
    """Lines that the source issued and that never came, or came damaged.

    Attributes:
        frame_id: of the first of them.
        count: how many, at least 1.
        why: for the log.
    """

    frame_id: int
    count: int
    why: str


@dataclass(frozen=True)
class Quiet:
    """No line within the time that was given; the source is still there, or is trying to get back."""


@dataclass(frozen=True)
class Broken:
    """What comes next does not follow what came before, and nobody knows how many lines lie between.

    Attributes:
        why: for the log: the camera vanished, the next file of a folder.
    """

    why: str


@dataclass(frozen=True)
class Ended:
    """No line will come any more."""


Event = Taken | Missing | Quiet | Broken | Ended
Line = NDArray[Any]
