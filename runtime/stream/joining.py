"""Restored frames back to lines: what two frames share is blended, and every line is settled exactly once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.arrays import Float32
from runtime.lines import Flag
from runtime.tiles import ramp

from .frames import Frame
from .report import FrameReport


@dataclass(frozen=True, eq=False)
class Piece:
    """Lines whose restoration is final.

    Attributes:
        values: float32 [bands, lines, samples]; valid until `emit` returns.
        report: of the frame that they are counted to.
        start: place of the first of them in that frame.
    """

    values: Float32
    report: FrameReport
    start: int


class Joiner:
    """Takes what became of frames, in their order; gives out the lines that are final, and counts those that are lost.

    What two neighbouring frames share is settled when it is known what became of the second: blended where both were
    restored, the one frame's where only one was, lost where none was.

    Args:
        bands, samples: of the restored lines.
        lines, overlap: of a frame.
        emit: takes the pieces, in the order of their lines.
        lose: takes the first and the last sequence number of lines that will never be given out, and how many of those
            numbers came.
    """

    def __init__(
        self,
        bands: int,
        samples: int,
        lines: int,
        overlap: int,
        emit: Callable[[Piece], None],
        lose: Callable[[int, int, int], None],
    ) -> None:
        self._overlap, self._emit, self._lose = overlap, emit, lose
        # sin^2 up and cos^2 down: neighbours' weights add to one, as in the tiles of a cube.
        self._rise = ramp(lines, overlap)[:overlap, None]
        self._tail = np.zeros((bands, overlap, samples), np.float32)
        self._step = np.zeros((bands, overlap, samples), np.float32)
        self._restored: FrameReport | None = None
        """The frame whose last lines lie in `_tail`."""
        self._loose: tuple[bool, ...] = ()
        """Which of a dropped frame's last lines came: the next frame may still restore them."""
        self._next = -1
        """Sequence number of the first line that waits for the next frame."""

    def restored(self, frame: Frame, values: Float32, report: FrameReport) -> None:
        """A frame was restored: float32 [bands, lines of the frame, samples], whose head is blended in place."""
        self._meet(frame)
        if self._restored is not None:
            self._blend(values[:, : self._overlap], self._restored, report)
        final = len(frame.slots) - frame.shared
        self._restored, self._loose = None, ()
        self._emit(Piece(values[:, :final], report, 0))
        if frame.shared:
            np.copyto(self._tail, values[:, final:])
            self._restored = report
        self._next = frame.first + final

    def _blend(self, head: Float32, before: FrameReport, report: FrameReport) -> None:
        """What both frames have, in place of `head`; a line that one of them passed through is never blended."""
        old, new = before.flags[-self._overlap :], report.flags[: self._overlap]
        new |= old & np.uint32(Flag.SUSPECT)
        passed_before, passed = (old & Flag.PASSED) > 0, (new & Flag.PASSED) > 0
        if not (passed_before.any() or passed.any()):
            np.subtract(head, self._tail, out=self._step)
            self._step *= self._rise
            np.add(self._tail, self._step, out=head)
            return
        for line in range(self._overlap):
            if passed[line] and not passed_before[line]:
                head[:, line], new[line] = self._tail[:, line], old[line]
            elif not passed[line] and not passed_before[line]:
                head[:, line] = self._tail[:, line] + self._rise[line] * (head[:, line] - self._tail[:, line])

    def dropped(self, frame: Frame) -> None:
        """A frame was dropped, or could not be restored."""
        self._meet(frame)
        final, begun = len(frame.slots) - frame.shared, 0
        if self._restored is not None:
            self._give_tail()
            begun = self._overlap
        self._lost(frame.first + begun, frame.taken[begun:final])
        self._loose = frame.taken[final:]
        self._next = frame.first + final

    def ended(self) -> None:
        """Nothing follows on the last frame."""
        self._give_tail()
        self._lost(self._next, self._loose)
        self._loose = ()

    def _lost(self, first: int, taken: tuple[bool, ...]) -> None:
        if any(taken):
            self._lose(first, first + len(taken) - 1, sum(taken))

    def _meet(self, frame: Frame) -> None:
        if frame.first != self._next:
            self.ended()

    def _give_tail(self) -> None:
        report, self._restored = self._restored, None
        if report is not None:
            self._emit(Piece(self._tail, report, len(report.sequence) - self._overlap))
