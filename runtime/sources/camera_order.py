"""Images of a camera in the order of their frame ids, each id once: an image, what is wrong with it, or a gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NARROW = 65535
"""Frame ids of GigE Vision 1.x count from 1 to it, and again from 1."""


class FrameIds:
    """Unrolls frame ids to 64 bits by the signed difference to the highest one so far.

    It takes a jump of up to 32767 for what it is. Ids beyond 65535 show that the camera counts in 64 bits. GigE Vision
    leaves out 0; a camera that uses it counts modulo 65536.

    Args:
        start: what the first id becomes; None leaves it as it is.
        wide: the ids have 64 bits from the first (USB3 Vision).
    """

    def __init__(self, start: int | None = None, *, wide: bool = False) -> None:
        self._start = start
        self._modulus = None if wide else NARROW
        self._highest: tuple[int, int] | None = None

    def unroll(self, raw: int) -> int:
        """The id of 64 bits that stands for one as it was sent."""
        if self._modulus is not None and (raw > NARROW or raw == 0):
            self._modulus = None if raw else NARROW + 1
        if self._highest is None:
            self._highest = raw, raw if self._start is None else self._start
        highest_raw, highest = self._highest
        step = raw - highest_raw
        if self._modulus is not None:
            half = self._modulus // 2
            step = (step + half) % self._modulus - half
        if step > 0:
            self._highest = raw, highest + step
        return highest + step


@dataclass(frozen=True)
class Image:
    """A whole image in a buffer that was popped."""

    buffer: Any
    place: int
    utc_ns: int


@dataclass(frozen=True)
class Skipped:
    """Ids `first` to `first + count - 1` never came."""

    first: int
    count: int


class Order:
    """Puts images in the order of their ids; whole ones wait a while for those before them.

    Args:
        wait: seconds that one waits at most.
        depth: images that wait at most.
    """

    def __init__(self, wait: float, depth: int) -> None:
        self._wait, self._depth = wait, depth
        self.next_id: int | None = None
        self._held: dict[int, tuple[Image | str, float]] = {}

    def put(self, frame_id: int, image: Image | str, now: float) -> bool:
        """Take an image, or in its place what is wrong with it.

        Returns:
            False where its turn is over, or it is already here.
        """
        if self.next_id is None:
            self.next_id = frame_id
        if frame_id < self.next_id or frame_id in self._held:
            return False
        self._held[frame_id] = (image, now)
        return True

    def due(self) -> float | None:
        """When the image that waits longest has waited enough; None where none waits."""
        return next(iter(self._held.values()))[1] + self._wait if self._held else None

    def take(self, now: float, *, flush: bool = False) -> tuple[int, Image | str] | Skipped | None:
        """What comes next, if it is time for it; `flush` waits no longer."""
        if self.next_id is None or not self._held:
            return None
        if self.next_id in self._held:
            image, _ = self._held.pop(self.next_id)
            self.next_id += 1
            return self.next_id - 1, image
        due = self.due()
        if flush or len(self._held) >= self._depth or (due is not None and now >= due):
            skipped = Skipped(self.next_id, min(self._held) - self.next_id)
            self.next_id += skipped.count
            return skipped
        return None
