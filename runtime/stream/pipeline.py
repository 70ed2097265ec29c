"""A stream from its source to its sinks: the threads, what they share, how it starts, is watched and ends."""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.descriptors import hold_back
from runtime.errors import DeployError
from runtime.lines import LineFormat
from runtime.priority import go_first
from runtime.radiometry import Radiometry
from runtime.record.writer import LineWriter
from runtime.restore import Infer
from runtime.sinks.contract import Sink
from runtime.sources.contract import Source

from .books import Books, Count
from .frames import Assembler, Frame
from .health import Health, Stage
from .intake import Intake, Item, Log
from .joining import Joiner
from .missing import stand_in
from .outlets import OUTLET_CAPACITY, Distributor, Outlet, OutletWorker, SharedBlock
from .pool import LinePool
from .preparation import Preparation
from .preparing import SPACES, RestorerFacts
from .queues import Policy, Queue
from .recording import LINGER_S, Recorder, ToFrames
from .report import FrameReport
from .restoration import BUNDLE, Restoration, Speed
from .restoring import FrameRestorer
from .screening import Screen
from .selftest import SelfTest, TestFigures
from .snapshot import QueueFigures, RestorationFigures, Snapshot

STAGE_LIMIT_S = 10.0
"""A stage that gives no sign of life for so long is hung."""
TICK_S = 0.25
SIGNAL_GRACE_S = 2.5
"""After a signal the frame in work may take so long; under two seconds more, and the stream ends without it."""
LAST_WAIT_S = 1.0
SAVE_S = 0.7
OPTIONAL_GRACE_S = 10.0
"""Sinks that the stream can be without may take so long for their last blocks."""


@dataclass(frozen=True)
class StreamOptions:
    """How a stream runs.

    Attributes:
        seconds: it ends after so long; None for the source's end or a signal.
        line_buffers: lines that may wait to be recorded.
        frame_buffers: frames that may wait to be restored.
        policy: of restoration: `block` where the source waits for us, `drop-oldest` where it does not; None for the
            one that suits the source.
        bridge: as many missing lines in a row are interpolated; more end the frame.
        drain_seconds: after `seconds` of a live source, what is on its way may take so long.
        selftest_seconds: between two tests of the engine on its golden frames; 0 for none in flight.
        refresh_seconds: after so long the engine is opened anew, though no test has failed; 0 for never.
    """

    seconds: float | None = None
    line_buffers: int = 128
    frame_buffers: int = 1
    policy: Policy | None = None
    bridge: int = 4
    drain_seconds: float = 60.0
    selftest_seconds: float = 60.0
    refresh_seconds: float = 0.0


@dataclass(frozen=True)
class NamedSink:
    """A sink and how it is served; lines count as restored when the principal sink has them."""

    name: str
    sink: Sink
    policy: Policy = "drop-oldest"
    principal: bool = False


@dataclass(frozen=True)
class StreamResult:
    """What a stream did.

    Attributes:
        count: lines; none is pending.
        frames: restored, passed (as a whole), dropped, failed.
        seconds: it ran.
        ended_by: `source`, `duration`, `signal` or `failure`.
        failures: what went wrong, by stage, in the order of the stages.
        hung: stages that did not end; the process should end without waiting for them.
    """

    count: Count
    frames: dict[str, int]
    seconds: float
    ended_by: str
    failures: dict[str, DeployError] = field(default_factory=dict)
    hung: tuple[str, ...] = ()


def slots_needed(facts: RestorerFacts, options: StreamOptions) -> int:
    """Lines that are on their way at most: waiting for the record; in a frame in work, waiting, or being assembled.

    Two frames are in work: one in the engine, and one that is prepared meanwhile.

    With so many slots, recording never waits for one that restoration holds.
    """
    return options.line_buffers + (SPACES + options.frame_buffers + 1) * facts.frame[0] + 2


def bytes_needed(
    facts: RestorerFacts, options: StreamOptions, lines: LineFormat, output: LineFormat, sinks: int
) -> int:
    """Memory that a stream takes once, before its first line; the engine's own is not counted."""
    bands = lines.bands if facts.chosen is None else len(facts.chosen)
    blocks = 2 + sinks * (OUTLET_CAPACITY + 1) if sinks else 0
    # In the unit range, and what is missing; what the network made of it; blocks for the sinks.
    values = SPACES * (4 + 1) * bands * lines.samples
    values += (4 + blocks * output.dtype.itemsize) * output.bands * output.samples
    # What the engine is given, and what it made of a part, where the frame has several.
    engine = 4 * (math.prod(facts.signature.measured.shape) + math.prod(facts.signature.restored.shape))
    # The tail of the frame before, and the step from it.
    tails = 2 * 4 * facts.overlap * output.bands * output.samples
    return slots_needed(facts, options) * lines.line_bytes + facts.frame[0] * values + tails + engine


@dataclass(frozen=True)
class Restoring:
    """What restores the lines of a source.

    Attributes:
        facts: of the network.
        infer: runs the engine.
        radiometry: from digital numbers to the unit range.
        output: format of the restored lines.
        watch: tests the engine, and opens it anew; None where nobody can.
        opened_as: the words by which `deploy stream` opened the bundle, for what is told where it fails.
    """

    facts: RestorerFacts
    infer: Infer
    radiometry: Radiometry
    output: LineFormat
    watch: SelfTest | None = None
    opened_as: str = BUNDLE


class Stream:
    """A stream that runs once.

    Args:
        source: open; the caller closes it.
        restoring: what restores its lines, or why nothing does: then they are recorded, and dropped.
        writer: the record, None for none; closed by the stream.
        sinks: closed by the stream, but for those that stay open.
        options: how it runs.
        first_sequence: number of the first line.
        log: takes events.
    """

    def __init__(
        self,
        source: Source,
        restoring: Restoring | DeployError,
        writer: LineWriter | None,
        sinks: Sequence[NamedSink] = (),
        options: StreamOptions = StreamOptions(),
        *,
        first_sequence: int = 0,
        log: Log = lambda kind, **fields: None,
    ) -> None:
        self._source, self._options, self._log, self._writer = source, options, log, writer
        self.health = Health()
        self._books = Books()
        self._stages: dict[str, Stage] = {}
        self._crashes: dict[str, DeployError] = {}
        self._stop, self._given_up = threading.Event(), threading.Event()
        self._finished, self._over = threading.Event(), threading.Event()
        self._ended_by = "source"
        self._began = time.monotonic()
        self._deadline = math.inf
        self._speed = Speed()
        self._rates: dict[str, float] = {}
        self._suspect_lines = 0
        self._watch = None if isinstance(restoring, DeployError) else restoring.watch
        if self._watch is not None:
            self._watch.begin_at(first_sequence)
        self._last: FrameReport | None = None
        self._doubts: tuple[str, ...] = ()
        self._incoming: Queue[Item] = Queue("record", options.line_buffers, "block")
        self._queues: dict[str, Queue[Any]] = {"record": self._incoming}
        self._outlets = tuple(
            # Each queue drops for its own sink alone.
            Outlet(s.name, s.sink, Queue(s.name, OUTLET_CAPACITY, s.policy, SharedBlock.release), s.principal)
            for s in sinks
        )
        self._preparation: Preparation | None = None
        self._restoration: Restoration | None = None
        self._off = restoring if isinstance(restoring, DeployError) else None
        self._clipped: Callable[[], int] = int
        if isinstance(restoring, DeployError):
            screen = Screen(source.format, source.format.saturation, photograph=source.stated.photograph)
            frames, slots = None, options.line_buffers + 2
        else:
            screen, frames = self._restores(restoring, source)
            slots = slots_needed(restoring.facts, options)
        self._pool = LinePool(source.format, slots)
        self._intake = Intake(
            source, self._pool, self._incoming, self._books, self._stage("source"), self._tell, first_sequence
        )
        self._recorder = Recorder(
            self._incoming,
            writer,
            screen,
            frames,
            self._books,
            self._stage("record"),
            self._tell,
            lambda error: self.stop("failure"),
            self._given_up.is_set,
            LINGER_S if source.live else 0.0,
        )
        self._workers = {
            outlet.name: OutletWorker(
                outlet,
                self._stage(outlet.name, vital=outlet.principal),
                self._tell,
                self._settle_given,
                self._settle_lost,
                self._over.is_set,
            )
            for outlet in self._outlets
        }
        self._queues |= {outlet.name: outlet.queue for outlet in self._outlets}

    def _restores(self, restoring: Restoring, source: Source) -> tuple[Screen, ToFrames]:
        """What restores, from the frames on; returns what lines go through on their way there."""
        facts, options, radiometric = restoring.facts, self._options, restoring.radiometry
        policy: Policy = options.policy or ("drop-oldest" if source.live else "block")
        lines, overlap = facts.frame[0], min(facts.overlap, facts.frame[0] // 2)
        lost: deque[Frame] = deque()

        def dropped(frame: Frame) -> None:
            frame.release()
            lost.append(frame)

        frames: Queue[Frame] = Queue("restore", options.frame_buffers, policy, dropped)
        self._queues["restore"] = frames
        restorer = FrameRestorer(facts, source.format, restoring.infer, radiometric)
        self._preparation = Preparation(
            frames, restorer.preparer, restorer.spaces, self._stage("prepare"), self._restores_nothing
        )
        stage = self._stage("restore")
        distributor = Distributor(
            restoring.output, lines, self._outlets, self._settle_given, self._settle_lost, self._given_up.is_set,
            stage.beat, lambda: restorer.mark if restorer.passes_through else None, stand_in(source.format.dtype),
        )  # fmt: skip
        self._clipped = lambda: distributor.clipped
        joiner = Joiner(restorer.bands, restoring.output.samples, lines, overlap, distributor.emit, self._lose)
        self._restoration = Restoration(
            self._preparation, lost, restorer, joiner, distributor, stage, self._tell, self._seen, restoring.watch,
            self._suspected, restoring.opened_as,
        )  # fmt: skip
        area = facts.signature.is_area
        screen = Screen(
            source.format,
            radiometric.saturation,
            None if area else _judged(radiometric, facts),
            restorer.preparer.marks,
            photograph=source.stated.photograph or area,
        )
        return screen, ToFrames(Assembler(lines, overlap, options.bridge), frames)

    def _restores_nothing(self) -> bool:
        return self._given_up.is_set() or (self._restoration is not None and self._restoration.failure is not None)

    def stop(self, why: str = "signal") -> None:
        """End it cleanly; from any thread or a signal handler. The first reason counts."""
        if not self._stop.is_set():
            self._ended_by = why
        self._stop.set()

    def run(self, tick: Callable[[], None] = lambda: None) -> StreamResult:
        """Run to the end. `tick` is called a few times per second from this thread."""
        self._began, gone = time.monotonic(), self._given_up.is_set
        hold_back()
        work = {
            "source": self._take,
            "record": self._record,
            **({} if (preparation := self._preparation) is None else {"prepare": preparation.run}),
            **(
                {}
                if (restoration := self._restoration) is None
                else {"restore": partial(restoration.run, gone, self._left)}
            ),
            **{name: worker.run for name, worker in self._workers.items()},
        }
        threads = {
            name: threading.Thread(target=self._guarded, args=(name, job), name=name, daemon=True)
            for name, job in work.items()
        }
        for thread in threads.values():
            thread.start()
        self._wait(threads, tick)
        for queue in self._queues.values():
            queue.close()
        # What only waited for a stage that hangs can still save what it has.
        for name in self._workers:
            threads[name].join(SAVE_S / len(self._workers))
        hung = tuple(name for name, thread in threads.items() if thread.is_alive())
        self._over.set()
        if self._watch is not None and "restore" not in hung:
            self._watch.close()
        count, failures = self._books.close(record=self._writer is not None), self._failures()
        # That nothing restores was known from the start, and ended no stream.
        known = set() if self._off is None else {"restore"}
        ended_by = "failure" if failures.keys() - known else self._ended_by
        result = StreamResult(
            count, self.frames(), time.monotonic() - self._began, ended_by, failures, hung
        )  # fmt: skip
        self._tell("stop", ended_by=result.ended_by, lines=count.as_json(), frames=result.frames, hung=list(hung))
        return result

    def frames(self) -> dict[str, int]:
        """Frames so far: restored, passed through as a whole, dropped, failed in the engine, unfit for the network, and
        the last one where the end cut it off."""
        fates = {"restored": 0, "passed": 0, "dropped": 0, "failed": 0, "unfit": 0, "cut_off": 0}
        if (done := self._restoration) is None:
            return fates
        fates |= {"passed": done.passed, "failed": done.broken, "unfit": done.unfit, "cut_off": done.cut_off}
        rest = done.dropped - done.broken - done.unfit - done.cut_off
        return fates | {"restored": done.given - done.passed, "dropped": rest}

    def snapshot(self) -> Snapshot:
        """Everything that can be watched, of one moment; from any thread, and quick."""
        last, queues = self._last, self._queues.items()
        return Snapshot(
            state=self._state(),
            seconds=round(time.monotonic() - self._began, 3),
            lines=self._books.count,
            frames=self.frames(),
            rates=self._rates,
            latency_s=self._speed.latencies(),
            queues={name: QueueFigures(q.level, q.capacity, q.policy, q.drops) for name, q in queues},
            slots={"free": self._pool.free, "count": self._pool.count, "starved": self._intake.starved},
            flags=dict(self._recorder.unfit),
            clipped=self._clipped(),
            doubts=self._doubts,
            prompt=dict(last.metrics) if last else {},
            prompt_by=last.metrics_by if last else "",
            experts=last.experts if last else (),
            peak=last.peak if last else None,
            frame_seconds=dict(last.seconds) if last else {},
            source=dict(self._source.telemetry()),
            stages=self.health.report(),
            problems=self._problems(),
            restoration=self._figures(),
        )

    def _state(self) -> str:
        if self._over.is_set():
            return "stopped"
        return "draining" if self._stop.is_set() or self._finished.is_set() else "running"

    def _record(self) -> None:
        if self._source.live:
            go_first()
        self._recorder.run()

    def _take(self) -> None:
        if self._source.live:
            go_first()
        seconds, before = self._options.seconds, time.monotonic()
        try:
            self._intake.run(self._stop, seconds)
        finally:
            if not self._stop.is_set() and seconds is not None and time.monotonic() - before >= seconds:
                self._ended_by = "duration"
            self._finished.set()

    def _wait(self, threads: Mapping[str, threading.Thread], tick: Callable[[], None]) -> None:
        """Until all threads have ended, or their time is up."""
        reason, due = "", 0.0
        optional = {outlet.name for outlet in self._outlets if not outlet.principal}
        while alive := [name for name, thread in threads.items() if thread.is_alive()]:
            now = time.monotonic()
            if now >= due:
                self._rates, due = self._speed.rates(self._books.count.as_json()), now + 1.0
            tick()
            if (self._stop.is_set() or self._finished.is_set()) and reason != self._ended_by:
                reason = self._ended_by
                self._deadline = min(self._deadline, now + self._grace())
            if optional.issuperset(alive):
                # Nobody waits for ever for a preview.
                self._deadline = min(self._deadline, now + OPTIONAL_GRACE_S)
            if now >= self._deadline:
                if self._given_up.is_set():
                    return
                self._given_up.set()
                self._deadline = now + LAST_WAIT_S
            threads[alive[0]].join(TICK_S)

    def _left(self) -> float:
        """Seconds until nobody waits for what has not ended."""
        # A stop that was said this moment has no deadline yet.
        return min(self._deadline - time.monotonic(), self._grace() if self._stop.is_set() else math.inf)

    def _grace(self) -> float:
        """Seconds that what is on its way may take."""
        if self._ended_by in ("signal", "failure"):
            return SIGNAL_GRACE_S
        return self._options.drain_seconds if self._source.live else math.inf

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """A stage; a bug in it is not silent: it is logged, told, and ends the stream."""
        try:
            work()
        # The thread's last chance to say anything.
        except Exception as error:
            self._crashes[name] = DeployError(
                f"a bug of ours: {type(error).__name__}: {error}", key=name, remedy="please report it with the log"
            )
            self._tell("failed", stage=name, error="".join(traceback.format_exception(error)))
            self.stop("failure")
        finally:
            # Whoever still puts something in is let go.
            if name in self._queues:
                self._queues[name].close()
            self.health.remove(self._stages[name])

    def _failures(self) -> dict[str, DeployError]:
        found = {
            "source": self._intake.failure,
            "record": self._recorder.failure,
            "restore": self._off if self._restoration is None else self._restoration.failure,
            **{name: worker.failure for name, worker in self._workers.items()},
            **self._crashes,
        }
        return {name: error for name, error in found.items() if error is not None}

    def _problems(self) -> list[str]:
        """What failed, and what failed without an end to anything: a refresh of the engine."""
        unrefreshed = "" if self._restoration is None else self._restoration.unrefreshed
        return [*(error.one_line() for error in self._failures().values()), *filter(None, [unrefreshed])]

    def _stage(self, name: str, *, vital: bool = True) -> Stage:
        self._stages[name] = self.health.stage(name, STAGE_LIMIT_S, vital=vital)
        return self._stages[name]

    def _tell(self, kind: str, **fields: Any) -> None:
        """An event with the books of its moment."""
        self._log(kind, books=self._books.count.told(), **fields)

    def _seen(self, report: FrameReport) -> None:
        self._last = report
        self._doubts += report.doubts
        self._speed.frame(report)

    def _suspected(self, first: int, last: int, lines: int, why: str) -> None:
        self._suspect_lines += lines
        self._tell("suspect", sequence=first, last=last, lines=lines, why=why)

    def _figures(self) -> RestorationFigures:
        off, watch = "restore" in self._failures(), None if self._watch is None else self._watch.figures
        untested = 0 if self._restoration is None else self._restoration.untested
        return RestorationFigures("off" if off else "on", self._suspect_lines, watch or TestFigures(), untested)

    def _lose(self, first: int, last: int, lines: int) -> None:
        self._books.add(dropped=lines)
        self._tell("drop", sequence=first, last=last, lines=lines)

    def _settle_given(self, lines: int, passed: int) -> None:
        self._books.add(restored=lines, passed=passed)

    def _settle_lost(self, lines: int, passed: int) -> None:
        self._books.add(dropped=lines)


def _judged(radiometric: Radiometry, facts: RestorerFacts) -> NDArray[np.bool_]:
    """Elements [bands, samples] by which a line is judged: those that what the network sees is made of."""
    wanted = np.ones(radiometric.format.shape, np.bool_)
    if facts.chosen is not None:
        wanted[np.setdiff1d(np.arange(len(wanted)), facts.chosen)] = False
    wanted[[*facts.bad, *facts.lost]] = False
    return radiometric.needed(wanted)
