"""Lines to overlapping frames: which lines a frame has, and which of them the next one has too."""

from dataclasses import dataclass

from runtime.lines import Flag

from .pool import Slot

_BREAK = int(Flag.BREAK)


@dataclass(frozen=True, eq=False)
class Frame:
    """Lines that are restored together, in order.

    Attributes:
        number: of the frame, from 0; numbers of dropped frames are missing later.
        first: sequence number of the first line; those of the others follow without a gap.
        run: that of the line with which its run began, of a file or an image: nothing before it belongs to it.
        slots: the lines; None where a line is missing and is to be interpolated.
        shared: how many of the last lines the next frame begins with; 0 where nothing follows on this one.
        completed: time.monotonic() at its last line.
        last: the stream ended in it.
    """

    number: int
    first: int
    run: int
    slots: tuple[Slot | None, ...]
    shared: int
    completed: float
    last: bool = False

    def release(self) -> None:
        """Let go of the lines."""
        came = [slot for slot in self.slots if slot is not None]
        if came:
            came[0].pool.release(came)

    @property
    def taken(self) -> tuple[bool, ...]:
        """Which lines came."""
        return tuple(slot is not None for slot in self.slots)


class Assembler:
    """Collects lines, one after the other, and gives a frame when one is full.

    Args:
        lines: of a frame.
        overlap: lines that neighbouring frames share, at most half of `lines`.
        bridge: as many missing lines in a row are interpolated, fewer than a frame has; more end the frame.
    """

    def __init__(self, lines: int, overlap: int, bridge: int) -> None:
        self._lines, self._overlap, self._bridge = lines, overlap, min(bridge, lines - 1)
        self._slots: list[Slot | None] = []
        self._first = self._inherited = self._number = self._gap = self._run = 0

    @property
    def lacks(self) -> int:
        """Lines that the next frame still waits for, at least one."""
        return self._lines - len(self._slots)

    def take(self, slot: Slot) -> list[Frame]:
        """Add a line, which the assembler holds from now on; returns the frames that this completes, mostly none."""
        done = []
        if slot.flags & _BREAK:
            done, self._run = self.end(slot.arrived), slot.sequence
        if not self._slots:
            self._first = slot.sequence
        for _ in range(self._gap if self._slots else 0):
            done += self._append(None, slot.arrived)
        self._gap = 0
        return done + self._append(slot.hold(), slot.arrived)

    def miss(self, count: int, now: float) -> list[Frame]:
        """`count` lines are missing here; returns the last frame before a gap that is too long to be bridged."""
        self._gap += count
        return self.end(now) if self._slots and self._gap > self._bridge else []

    def end(self, now: float) -> list[Frame]:
        """What comes next does not follow on what came.

        Returns:
            the last frame, shorter than the others; none where every line has been in a frame already.
        """
        self._gap = 0
        if len(self._slots) <= self._inherited:
            self._forget()
            return []
        frame = self._frame(0, now)
        self._slots, self._inherited = [], 0
        return [frame]

    def _append(self, slot: Slot | None, now: float) -> list[Frame]:
        self._slots.append(slot)
        if len(self._slots) < self._lines:
            return []
        frame = self._frame(self._overlap, now)
        self._slots = self._slots[self._lines - self._overlap :]
        for shared in self._slots:
            if shared is not None:
                shared.hold()
        self._first += self._lines - self._overlap
        self._inherited = self._overlap
        return [frame]

    def _frame(self, shared: int, now: float) -> Frame:
        self._number += 1
        return Frame(self._number - 1, self._first, self._run, tuple(self._slots), shared, now)

    def _forget(self) -> None:
        for slot in self._slots:
            if slot is not None:
                slot.release()
        self._slots, self._inherited = [], 0
