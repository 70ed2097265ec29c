"""The stages behind restoration: lines in their final type, in blocks that sinks share, each in its own thread."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.arrays import Float32
from runtime.errors import DeployError, plain
from runtime.lines import Flag, LineFormat
from runtime.sinks.contract import Block, Sink

from .health import Stage
from .intake import PATIENCE, Log
from .joining import Piece
from .missing import stands_in
from .queues import Queue

Settle = Callable[[int, int], None]
"""Called with the lines that came and were given out or lost, and how many of them were passed through."""


class SharedBlock:
    """Memory for a block that several sinks read; free again when the last has let go."""

    def __init__(self, format: LineFormat, lines: int, free: Queue[SharedBlock]) -> None:
        self._values = np.zeros((lines, *format.shape), format.dtype)
        self._free, self._lock, self._holders = free, threading.Lock(), 0
        self.block: Block | None = None

    def fill(self, piece: Piece, write: Callable[[Piece, np.ndarray], None], holders: int) -> None:
        """Take a piece, for so many holders."""
        lines, report, start = piece.values.shape[1], piece.report, piece.start
        write(piece, self._values[:lines])
        part = slice(start, start + lines)
        self._holders = holders
        self.block = Block(
            self._values[:lines], report.sequence[part], report.frame_id[part], report.utc_ns[part], report.flags[part],
            report.number, report.metrics, report.experts, report.latency_s,
        )  # fmt: skip

    def release(self) -> None:
        """One holder less."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self.block = None
        self._free.put(self)


@dataclass(frozen=True, eq=False)
class Outlet:
    """A sink, its queue, and what it is called.

    Attributes:
        principal: lines count as restored when this sink has written them; else when they are handed out.
    """

    name: str
    sink: Sink
    queue: Queue[SharedBlock]
    principal: bool = False


OUTLET_CAPACITY = 2
"""Blocks that may wait for a sink."""


class OutletWorker:
    """Runs one sink; when the sink fails, the stream goes on without it.

    Args:
        outlet: what it runs.
        stage: its heartbeat.
        given: entered in the books when the principal sink has written lines.
        lost: entered when it could not.
        over: the books are closed: nothing is written any more.
    """

    def __init__(
        self,
        outlet: Outlet,
        stage: Stage,
        log: Log,
        given: Settle,
        lost: Settle,
        over: Callable[[], bool],
    ) -> None:
        self._outlet, self._stage, self._log, self._given, self._lost = outlet, stage, log, given, lost
        self._over = over
        self.failure: DeployError | None = None

    def run(self) -> None:
        """Work until the queue is closed and empty, then close the sink, unless it stays open."""
        queue = self._outlet.queue
        while not queue.done:
            self._stage.beat()
            shared = queue.get(PATIENCE)
            if shared is not None:
                if not self._over():
                    self._write(shared)
                shared.release()
            self._guarded(self._outlet.sink.tick)
        if not self._outlet.sink.stays_open:
            self._guarded(self._outlet.sink.close, always=True)

    def _write(self, shared: SharedBlock) -> None:
        block = shared.block
        assert block is not None
        self._guarded(lambda: self._outlet.sink.write(block))
        if self._outlet.principal:
            (self._given if self.failure is None else self._lost)(*settled(block.flags))

    def _guarded(self, action: Callable[[], None], *, always: bool = False) -> None:
        """Do something with the sink unless it has failed."""
        if self.failure is not None and not always:
            return
        try:
            action()
        except DeployError as error:
            self._fail(error, error.one_line())
        # A bug in a sink is no reason to end the record.
        except Exception as error:
            bug = DeployError(
                f"a bug of ours: {type(error).__name__}: {plain(error)}",
                key=self._outlet.name,
                remedy="please report it with the log",
            )
            self._fail(bug, "".join(traceback.format_exception(error)))

    def _fail(self, error: DeployError, told: str) -> None:
        if self.failure is None:
            self.failure = error
            self._log("failed", stage=self._outlet.name, error=told)


def settled(flags: np.ndarray) -> tuple[int, int]:
    """(lines that came, those of them that were passed through); interpolated lines never came."""
    passed = int(np.count_nonzero(flags & Flag.PASSED))
    return int(np.count_nonzero(flags & Flag.RESTORED)) + passed, passed


class Distributor:
    """Turns pieces into blocks of the output's type and hands them to every outlet.

    Args:
        format: of the restored lines; integers are the unit range times `format.scale`, rounded.
        lines: the most lines of a piece.
        outlets: where the blocks go.
        given, lost: entered in the books for lines that no principal sink will account for.
        given_up: asked while it waits for a free block.
        waiting: called now and then while it waits.
        mark: tells the mark, written where a piece is its stand-in and nowhere else; None while there is none.
        missing: the stand-in, see `missing`.

    Attributes:
        clipped: values that the output's type could not hold and that were set to its limit.
    """

    def __init__(
        self,
        format: LineFormat,
        lines: int,
        outlets: tuple[Outlet, ...],
        given: Settle,
        lost: Settle,
        given_up: Callable[[], bool],
        waiting: Callable[[], None],
        mark: Callable[[], float | None],
        missing: np.float32,
    ) -> None:
        self._mark = mark
        self._missing = missing
        self._format, self._outlets, self._given, self._lost = format, outlets, given, lost
        self._given_up, self._waiting = given_up, waiting
        self._principal = any(outlet.principal for outlet in outlets)
        count = 2 + sum(outlet.queue.capacity + 1 for outlet in outlets)
        self._free: Queue[SharedBlock] = Queue("blocks", count, "block")
        for _ in range(count if outlets else 0):
            self._free.put(SharedBlock(format, lines, self._free))
        self._whole = format.dtype.kind in "iu"
        self._scaled = np.zeros((lines, format.samples), np.float32)
        self._outside = np.zeros(self._scaled.shape, np.bool_)
        self.clipped = 0

    def emit(self, piece: Piece) -> None:
        """Hand a piece on."""
        counts = settled(piece.report.flags[piece.start : piece.start + piece.values.shape[1]])
        if not self._outlets:
            self._given(*counts)
            return
        shared = self._block()
        if shared is None:
            self._lost(*counts)
            return
        shared.fill(piece, self._write, len(self._outlets))
        taken = [outlet.queue.put(shared, self._waiting) for outlet in self._outlets]
        for outlet, was_taken in zip(self._outlets, taken, strict=True):
            if not was_taken:
                shared.release()
                if outlet.principal:
                    self._lost(*counts)
        if not self._principal:
            self._given(*counts)

    def close(self) -> None:
        """No more pieces."""
        for outlet in self._outlets:
            outlet.queue.close()

    def _block(self) -> SharedBlock | None:
        while not self._given_up():
            self._waiting()
            shared = self._free.get(PATIENCE)
            if shared is not None:
                return shared
        return None

    def _write(self, piece: Piece, out: np.ndarray) -> None:
        """The piece [bands, lines, samples] as `out` [lines, bands, samples] in the output's type."""
        named = self._mark()
        mark = None if named is None else np.float32(self._format.dtype.type(named))
        # Band by band: what one needs stays in the processor's cache.
        for band, values in enumerate(piece.values):
            out[:, band] = self._final(values, mark)

    def _final(self, values: Float32, mark: np.float32 | None) -> Float32:
        """Numbers [lines, samples] that are those of the output's type; valid until the next."""
        restored = values
        scaled, outside = self._scaled[: len(values)], self._outside[: len(values)]
        if self._whole:
            np.multiply(values, np.float32(self._format.scale or 1.0), out=scaled)
            values = np.rint(scaled, out=scaled)
            limits = np.iinfo(self._format.dtype)
            # The largest float32 that the type holds: 2**31 - 1 would be rounded up.
            top = np.float32(limits.max)
            top = top if int(top) <= limits.max else np.nextafter(top, np.float32(0))
            # NaN is within nothing.
            if not (scaled.min() >= limits.min and scaled.max() <= top):
                for beyond, limit in ((np.greater, limits.max), (np.less, limits.min)):
                    self.clipped += int(np.count_nonzero(beyond(scaled, np.float32(limit), out=outside)))
                np.clip(scaled, np.float32(limits.min), top, out=scaled)
        if mark is not None:
            # Behind blending, scaling and clipping, since each of them can make the ignore value of other numbers.
            np.equal(values, mark, out=outside)
            if values is not scaled:
                np.copyto(scaled, values)
            np.copyto(scaled, _beside(mark, self._format.dtype), where=outside)
            np.copyto(scaled, mark, where=stands_in(restored, self._missing, out=outside))
            values = scaled
        return values


def _beside(mark: np.float32, dtype: np.dtype[Any]) -> np.float32:
    """The number of a type that is nearest to the ignore value and is not it."""
    if dtype.kind == "f":
        # Beside 0 the smallest one with all its digits.
        near: np.float32 = np.finfo(np.float32).tiny if mark == 0 else np.nextafter(mark, np.float32(np.inf))
        return near
    step = 1 if mark < np.iinfo(dtype).max else -1
    whole: np.float32 = np.float32(int(mark) + step)
    return whole
