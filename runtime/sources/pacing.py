"""What sources without a camera share: the clock that lines are issued by, and the check of the buffer offered."""

import time
from math import isfinite

import numpy as np

from runtime.errors import CubeError, InputError
from runtime.lines import Line, LineFormat


class Pace:
    """Says when the next line is due, without drift: line n of a run n / rate seconds after its first.

    Who fell behind gets the overdue lines at once.

    Args:
        rate: lines per second; None for as fast as they are taken.

    Raises:
        InputError: the rate is not a finite number above 0.
    """

    def __init__(self, rate: float | None) -> None:
        if rate is not None and not (isfinite(rate) and rate > 0):
            raise InputError("not a rate", key="rate", value=rate, remedy="give lines per second, above 0")
        self._rate = rate
        self._start: float | None = None
        self._count = 0

    def wait(self, timeout: float) -> bool:
        """Sleep until the next line is due, at most `timeout` seconds; False where it is not due then."""
        if self._rate is None:
            return True
        now = time.monotonic()
        if self._start is None:
            self._start, self._count = now, 0
        remaining = self._start + self._count / self._rate - now
        if remaining > 0:
            time.sleep(max(0.0, min(remaining, timeout)))
        return remaining <= max(0.0, timeout)

    def step(self) -> None:
        """A line was issued."""
        self._count += 1

    def restart(self) -> None:
        """There was no line to issue: the next one begins a new run, and is due at once."""
        self._start = None


def check_buffer(line: Line, form: LineFormat) -> None:
    """Raise CubeError unless `line` can take a line of this format: its shape, its type, C-contiguous, writable."""
    if (
        isinstance(line, np.ndarray)
        and line.shape == form.shape
        and line.dtype == form.dtype
        and line.flags.carray  # C-contiguous, aligned and writable
    ):
        return
    raise CubeError(
        "the buffer does not fit the source's lines",
        key="line",
        value=f"{line.dtype} {list(line.shape)}" if isinstance(line, np.ndarray) else type(line).__name__,
        remedy=f"give a writable, C-contiguous array, {form.dtype} [{form.bands}, {form.samples}]",
    )
