"""Memory for lines, taken once: every line that is on its way lies in a slot, and nobody copies it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np

from runtime.lines import Line, LineFormat


class Slot:
    """A place for one line. It is free again when everybody who held it has let go.

    Attributes:
        line: [bands, samples], C-contiguous.
        pool: that it is of.
        sequence: the stream's number of the line.
        frame_id, utc_ns, flags: as the source gave them, as a plain number; screening adds flags.
        arrived: time.monotonic() when it was taken.
    """

    __slots__ = ("arrived", "flags", "frame_id", "holders", "line", "pool", "sequence", "utc_ns")

    def __init__(self, pool: LinePool, line: Line) -> None:
        self.pool, self.line = pool, line
        self.holders = self.sequence = self.frame_id = self.utc_ns = 0
        self.flags = 0
        self.arrived = 0.0

    def hold(self) -> Slot:
        """One more holder."""
        with self.pool.changed:
            self.holders += 1
        return self

    def release(self) -> None:
        """One holder less."""
        self.pool.release((self,))


class LinePool:
    """Slots for `count` lines of a format, filled from one thread and released from any.

    Attributes:
        slots: the free ones, which only who holds `changed` touches.
    """

    def __init__(self, format: LineFormat, count: int) -> None:
        # Written once, so that the memory is there before the first line comes, and not page by page in flight.
        memory = np.zeros((count, *format.shape), format.dtype)
        memory.fill(0)
        self.changed = threading.Condition()
        self.slots = [Slot(self, line) for line in memory]
        self.count = count

    def release(self, slots: Iterable[Slot]) -> None:
        """One holder less of each."""
        with self.changed:
            for slot in slots:
                slot.holders -= 1
                assert slot.holders >= 0, "a slot was released more often than held"
                if not slot.holders:
                    self.slots.append(slot)
            self.changed.notify()

    @property
    def free(self) -> int:
        return len(self.slots)

    def acquire(self, timeout: float) -> Slot | None:
        """A free slot with one holder; None where there is none within `timeout` seconds."""
        with self.changed:
            if not self.slots:
                self.changed.wait(timeout)
            if not self.slots:
                return None
            slot = self.slots.pop()
            slot.holders = 1
            return slot
