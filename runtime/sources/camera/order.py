"""Images of a camera in the order of their frame ids, each id once: an image, what is wrong with it, or a gap."""

from dataclasses import dataclass
from typing import Any

NARROW = 65535
"""Frame ids of GigE Vision 1.x count from 1 to it, and again from 1."""
BEHIND = 4
"""So many images in a row with ids that were over already, each one more than the last: the counter began again."""
WINDOW_NS = 50_000_000
"""A camera's rate is looked at over so long: the mean of a triggered one says nothing of its bursts."""
JUMP_IMAGES, JUMP_RATES = 1000, 10
"""A jump forward by more images than these, and than so many times what the time has room for, is none."""
THROWN_AWAY = 100
"""Aravis throws away GigE Vision images whose ids are up to so many behind the last, without a word."""


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


class Restarts:
    """Notices that a camera's counter began again though the camera was never away; nobody knows what is missing then.

    A late image now and then, or several that are not in a row, are none. Ids that begin again within 1000 images of
    where 16 bits wrap anyway look like a gap.

    Args:
        rate: images per second as the camera says; None where it does not. What was seen counts where it is more.
        depth: an image that is further back than this is not late.
    """

    def __init__(self, rate: float | None, depth: int) -> None:
        self._rate, self._depth = rate or 0.0, depth
        self._first: tuple[int, int] | None = None
        self._highest = (0, 0)
        self._read_at = 0.0
        self._window = (0, 0)
        self._fastest = 0.0
        self._ignored = 0
        self._behind: list[int] = []

    def noticed(
        self, raw: int, frame_id: int, next_id: int | None, utc_ns: int, read_at: float, ignored: int = 0
    ) -> bool:
        """Whether an image shows it.

        Args:
            raw, frame_id: its id as it was sent, and unrolled.
            next_id: of the image whose turn is next; None before the first.
            utc_ns: when it came, by a clock that may be set.
            read_at: seconds of a clock that may not, when it was read; its reader may have been held up.
            ignored: packets that Aravis has thrown away so far.
        """
        if next_id is not None and frame_id < next_id:
            following = bool(self._behind) and raw == self._behind[-1] + 1
            self._behind = [*self._behind, raw] if following else [raw]
            return frame_id < next_id - self._depth or len(self._behind) >= BEHIND
        self._behind = []
        if self._first is None:
            self._first = self._highest = self._window = (frame_id, utc_ns)
            self._read_at, self._ignored = read_at, ignored
        if frame_id <= self._highest[0]:
            return False
        jump, seconds = frame_id - self._highest[0], (utc_ns - self._highest[1]) / 1e9
        # The image is the first one that was not behind any more; each of those before has three packets at least.
        away, hidden = self._seen() * seconds - jump, max(raw - 1, BEHIND)
        if raw <= 2 * THROWN_AWAY and away >= BEHIND and ignored - self._ignored >= 2 * hidden:
            return True
        # A camera with a trigger may be faster than it says, and a clock that was set back says less than passed.
        room = max(self._rate, self._fastest) * max(seconds, read_at - self._read_at)
        if jump > JUMP_IMAGES + JUMP_RATES * room:
            return True
        self._highest, self._read_at, self._ignored = (frame_id, utc_ns), read_at, ignored
        self._look_at_rate()
        return False

    def _seen(self) -> float:
        """Images per second so far; 0 where there are too few to tell."""
        assert self._first is not None
        seconds = (self._highest[1] - self._first[1]) / 1e9
        return (self._highest[0] - self._first[0]) / seconds if seconds > 0 else 0.0

    def _look_at_rate(self) -> None:
        passed = self._highest[1] - self._window[1]
        if passed < 0:
            self._window = self._highest
        elif passed >= WINDOW_NS:
            self._fastest = max(self._fastest, 1e9 * (self._highest[0] - self._window[0]) / passed)
            self._window = self._highest


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
