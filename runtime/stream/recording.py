"""The stage that records: first to disk, then to the frames, so that nothing is restored that is not safe."""

import sys
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain, groupby

from runtime.errors import DeployError, MachineError
from runtime.lines import Flag
from runtime.record.writer import LineWriter

from .books import Books
from .frames import Assembler, Frame
from .health import Stage
from .intake import PATIENCE, Gap, Item, Log
from .pool import Slot
from .queues import Queue
from .screening import Screen

CHECKPOINT_SECONDS = 1.0
AT_ONCE = 64
"""Lines that are written together, where so many wait."""
LINGER_S = 0.02
"""So long more lines are waited for: a wake-up and two writes for each of them cost more than all else that is done."""
LITTLE_ENDIAN = sys.byteorder == "little"
"""The record is; elsewhere the checksum of the line in memory is not the record's."""


@dataclass(frozen=True)
class ToFrames:
    """The way of recorded lines to what restores them."""

    assembler: Assembler
    frames: Queue[Frame]


class Recorder:
    """Screens, records and assembles lines; never waits for restoration where the source does not wait for us.

    Args:
        incoming: lines, gaps and breaks, in order.
        writer: the record; None where none is wanted.
        frames: where recorded lines go; None where nothing restores them: they are dropped.
        failed: called once when the record cannot be written any more.
        given_up: frames that restoration does not take are let go once it says so.
        linger: seconds that more lines are waited for before some are written.

    Attributes:
        failure: why the record ended.
        unfit: lines by what was wrong with them, {flag name: lines}.
    """

    def __init__(
        self,
        incoming: Queue[Item],
        writer: LineWriter | None,
        screen: Screen,
        frames: ToFrames | None,
        books: Books,
        stage: Stage,
        log: Log,
        failed: Callable[[DeployError], None],
        given_up: Callable[[], bool] = lambda: False,
        linger: float = 0.0,
    ) -> None:
        self._incoming, self._writer, self._screen, self._linger = incoming, writer, screen, linger
        self._frames, self._books = frames, books
        self._stage, self._log, self._failed = stage, log, failed
        self._given_up = given_up
        if writer is not None:
            writer.waiting = self._waiting
        self._due = time.monotonic() + CHECKPOINT_SECONDS
        self.failure: DeployError | None = None
        self.unfit: dict[str, int] = {}

    def run(self) -> None:
        """Work until the source's end has come through."""
        try:
            while not self._incoming.done:
                self._tick()
                # A frame goes on as soon as it is whole, not beside the next one.
                most = AT_ONCE if self._frames is None else min(AT_ONCE, self._frames.assembler.lacks)
                items = self._incoming.several(PATIENCE, most, self._linger)
                for lines, group in groupby(items, lambda item: isinstance(item, Slot)):
                    if lines:
                        self._lines([item for item in group if isinstance(item, Slot)])
                        continue
                    for item in group:
                        if isinstance(item, Gap):
                            self._miss(item.count)
                        else:
                            self._screen.broken()
                            self._give(lambda assembler: assembler.end(time.monotonic()))
            self._give(lambda assembler: [replace(one, last=True) for one in assembler.end(time.monotonic())])
        finally:
            if self._frames is not None:
                self._frames.frames.close()
            if self._writer is not None:
                self._guarded(self._writer.close)

    def _lines(self, slots: list[Slot]) -> None:
        """Lines that follow on each other: all are written, and then the frames begin to have them."""
        checksums = [self._looked_at(slot) for slot in slots]
        safe = len(slots) if self._writer is None else self._written(self._writer, slots, checksums)
        recorded, dropped = safe if self._writer is not None else 0, safe if self._frames is None else 0
        # What is not safe on disk counts as lines that never came.
        self._books.add(recorded=recorded, dropped=dropped, incomplete=len(slots) - safe)
        self._give(lambda assembler: chain.from_iterable(map(assembler.take, slots[:safe])))
        slots[0].pool.release(slots)

    def _looked_at(self, slot: Slot) -> int:
        """Flag what is wrong with a line; returns its checksum."""
        checksum = zlib.crc32(slot.line.data)
        found = self._screen.flags(slot.line, checksum)
        if found:
            slot.flags |= int(found)
            for flag in Flag:
                if found & flag:
                    name = str(flag.name).lower()
                    self.unfit[name] = self.unfit.get(name, 0) + 1
        return checksum

    def _written(self, writer: LineWriter, slots: list[Slot], checksums: list[int]) -> int:
        """How many of the lines, the first ones, are in the record now."""
        if self.failure is not None:
            return 0
        before = writer.appended
        self._guarded(
            lambda: writer.append_lines(
                [slot.line for slot in slots],
                [slot.sequence for slot in slots],
                [slot.frame_id for slot in slots],
                [slot.utc_ns for slot in slots],
                [slot.flags for slot in slots],
                checksums if LITTLE_ENDIAN else None,
            )
        )
        return writer.appended - before

    def _miss(self, count: int) -> None:
        self._give(lambda assembler: assembler.miss(count, time.monotonic()))

    def _give(self, completed: Callable[[Assembler], Iterable[Frame]]) -> None:
        if self._frames is None:
            return
        for frame in completed(self._frames.assembler):
            if not self._frames.frames.put(frame, self._tick, self._given_up):
                frame.release()

    def _tick(self) -> None:
        """A sign of life, and every second a checkpoint, also while restoration is waited for."""
        self._stage.beat()
        if self._writer is not None and time.monotonic() >= self._due:
            self._guarded(self._writer.checkpoint)
            self._due = time.monotonic() + CHECKPOINT_SECONDS

    def _waiting(self) -> None:
        self._stage.beat()
        if self._given_up():
            raise MachineError(
                "the stream ended while the record waited for room",
                key="--spool-limit",
                remedy="give it a larger limit",
            )

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except DeployError as error:
            if self.failure is None:
                self.failure = error
                self._log("failed", stage="record", error=error.one_line())
                self._failed(error)
