"""Memory for lines, taken once: every line that is on its way lies in a slot, and nobody copies it."""

from __future__ import annotations

import threading

import numpy as np

from runtime.lines import NO_FLAGS, Flag, Line, LineFormat


class Slot:
    """A place for one line. It is free again when everybody who held it has let go.

    Attributes:
        line: [bands, samples], C-contiguous.
        sequence: the stream's number of the line.
        frame_id, utc_ns, flags: as the source gave them; screening adds flags.
        arrived: time.monotonic() when it was taken.
    """

    __slots__ = ("_pool", "arrived", "flags", "frame_id", "holders", "line", "sequence", "utc_ns")

    def __init__(self, pool: LinePool, line: Line) -> None:
        self._pool, self.line = pool, line
        self.holders = self.sequence = self.frame_id = self.utc_ns = 0
        self.flags: Flag = NO_FLAGS
        self.arrived = 0.0

    def hold(self) -> Slot:
        """One more holder."""
        self._pool.hold(self)
        return self

    def release(self) -> None:
        """One holder less."""
        self._pool.release(self)


class LinePool:
    """Slots for `count` lines of a format, filled from one thread and released from any."""

    def __init__(self, format: LineFormat, count: int) -> None:
        # Written once, so that the memory is there before the first line comes, and not page by page in flight.
        memory = np.zeros((count, *format.shape), format.dtype)
        memory.fill(0)
        self._condition = threading.Condition()
        self._free = [Slot(self, line) for line in memory]
        self.count = count

    @property
    def free(self) -> int:
        return len(self._free)

    def acquire(self, timeout: float) -> Slot | None:
        """A free slot with one holder; None where there is none within `timeout` seconds."""
        with self._condition:
            if not self._free:
                self._condition.wait(timeout)
            if not self._free:
                return None
            slot = self._free.pop()
            slot.holders = 1
            return slot

    def hold(self, slot: Slot) -> None:
        with self._condition:
            slot.holders += 1

    def release(self, slot: Slot) -> None:
        with self._condition:
            slot.holders -= 1
            assert slot.holders >= 0, "a slot was released more often than held"
            if not slot.holders:
                self._free.append(slot)
                self._condition.notify()
