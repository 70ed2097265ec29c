"""The stage at the source: every event becomes a line in a slot, a gap with numbers, or a break."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from runtime.errors import DeployError
from runtime.lines import NO_FLAGS, Broken, Ended, Flag, Missing, Taken
from runtime.sources.contract import Source

from .books import Books
from .health import Stage
from .pool import LinePool, Slot
from .queues import Queue

PATIENCE = 0.2
CLOCK_STEP_NS = 1_000_000_000
Log = Callable[..., None]
"""Called with the kind of an event and its fields."""


@dataclass(frozen=True)
class Gap:
    """Lines that never came: numbers `first` to `first + count`."""

    first: int
    count: int


@dataclass(frozen=True)
class Cut:
    """What comes next does not follow."""


Item = Slot | Gap | Cut


class Intake:
    """Takes lines until the source ends or it is told to stop.

    Attributes:
        failure: what ended it, if not the source's end.
        next_sequence: number of the next line.
        starved: how often there was no free slot, so that a camera's own buffers had to wait.
    """

    def __init__(
        self, source: Source, pool: LinePool, out: Queue[Item], books: Books, stage: Stage, log: Log, first: int
    ) -> None:
        self._source, self._pool, self._out = source, pool, out
        self._clock: int | None = None
        self._books, self._stage, self._log = books, stage, log
        self.next_sequence = first
        self.failure: DeployError | None = None
        self.starved = 0

    def run(self, stop: Event, seconds: float | None) -> None:
        """Take lines.

        Args:
            stop: ends it.
            seconds: ends it after so long; None for never.
        """
        ends = None if seconds is None else time.monotonic() + seconds
        slot: Slot | None = None
        due = Flag.BREAK
        try:
            while not stop.is_set() and (ends is None or time.monotonic() < ends):
                self._stage.beat()
                slot = slot or self._pool.acquire(PATIENCE)
                if slot is None:
                    self.starved += 1
                    continue
                event = self._source.read(slot.line, PATIENCE)
                if isinstance(event, Taken):
                    self._give(slot, event, due)
                    slot, due = None, NO_FLAGS
                elif isinstance(event, Missing):
                    self._miss(event)
                    due |= Flag.GAP
                elif isinstance(event, Broken):
                    self._log("broken", why=event.why, sequence=self.next_sequence)
                    self._out.put(Cut(), self._stage.beat)
                    due |= Flag.BREAK
                elif isinstance(event, Ended):
                    break
        except DeployError as error:
            self.failure = error
            self._log("failed", stage="source", error=error.one_line())
        finally:
            if slot is not None:
                slot.release()
            self._out.close()

    def _watch_clock(self, utc_ns: int) -> None:
        """Times of a camera's lines go on as time does; a clock that is set is told."""
        apart = utc_ns - time.monotonic_ns()
        if self._source.live and self._clock is not None and abs(apart - self._clock) > CLOCK_STEP_NS:
            self._log("clock", sequence=self.next_sequence, seconds=round((apart - self._clock) / 1e9, 3))
        self._clock = apart

    def _give(self, slot: Slot, event: Taken, due: Flag) -> None:
        self._watch_clock(event.utc_ns)
        slot.sequence, slot.frame_id, slot.utc_ns = self.next_sequence, event.frame_id, event.utc_ns
        slot.flags, slot.arrived = int(event.flags) | int(due), time.monotonic()
        self.next_sequence += 1
        self._books.add(issued=1)
        self._out.put(slot, self._stage.beat)

    def _miss(self, event: Missing) -> None:
        first = self.next_sequence
        self.next_sequence += event.count
        self._books.add(issued=event.count, incomplete=event.count)
        self._log("gap", sequence=first, count=event.count, frame_id=event.frame_id, why=event.why)
        self._out.put(Gap(first, event.count), self._stage.beat)
