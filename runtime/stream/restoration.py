"""The stage that restores: as many frames as this computer can, and an account of all others."""

import math
import time
from collections import deque
from collections.abc import Callable

from runtime.arrays import Float32
from runtime.errors import CubeError, DeployError, MachineError
from runtime.priority import yield_to_others

from .frames import Frame
from .health import Stage
from .intake import PATIENCE, Log
from .joining import Joiner
from .outlets import Distributor
from .preparation import Preparation, Ready
from .preparing import AbandonedError
from .report import FrameReport
from .restoring import MENDED, FrameRestorer
from .selftest import SelfTest

TRIES = 3
"""After so many failures of the engine in a row it is opened anew, though its self-test finds nothing."""
REPAIRS, REPAIRS_S = 3, 600.0
"""More repairs in so many seconds are of no use: then lines are recorded only."""
ENGINE_LIMIT_S = 300.0
"""One run of the engine may take so long before the stage counts as hung."""
BUNDLE = "BUNDLE"
"""What `deploy stream` opens, where nobody says it."""


class Restoration:
    """Takes prepared frames, gives lines to the distributor, in order.

    Args:
        prepared: where they come from; `lost` is what was dropped before.
        restorer, joiner, distributor: what is done with them.
        watch: tests the engine, and opens it anew; None where nobody can.
        suspect: called with the first and the last number of lines that may be wrong, how many of them were restored,
            and why.
        opened_as: what `deploy stream` was given, see `restoration_off`.
        seen: called with the report of every frame that was given out.

    Attributes:
        given, passed, dropped, broken: frames; passed as a whole, and those that the engine failed on.
        untested: lines that were restored since the last round of self-tests, for which the end left no time.
        unrefreshed: why the last refresh failed; empty where it did not.
    """

    def __init__(
        self,
        prepared: Preparation,
        lost: deque[Frame],
        restorer: FrameRestorer,
        joiner: Joiner,
        distributor: Distributor,
        stage: Stage,
        log: Log,
        seen: Callable[[FrameReport], None],
        watch: SelfTest | None = None,
        suspect: Callable[[int, int, int, str], None] = lambda first, last, lines, why: None,
        opened_as: str = BUNDLE,
    ) -> None:
        self._watch, self._suspect, self._opened_as = watch, suspect, opened_as
        self._repairs: deque[float] = deque(maxlen=REPAIRS)
        self._restored: deque[tuple[int, int]] = deque()
        self._prepared, self._lost, self._restorer = prepared, lost, restorer
        self._joiner, self._distributor = joiner, distributor
        self._stage, self._log, self._seen = stage, log, seen
        self._failures = 0
        self._took = 0.0
        self.failure: DeployError | None = None
        self.untested, self.unrefreshed = 0, ""
        self.given = self.passed = self.dropped = self.broken = self.unfit = self.cut_off = 0

    def run(self, given_up: Callable[[], bool], left: Callable[[], float] = lambda: math.inf) -> None:
        """Work until the last frame has come through; after `given_up` says so, every frame is dropped.

        Args:
            left: seconds that there are still for tests.
        """
        yield_to_others()
        try:
            while not self._prepared.ready.done:
                self._stage.beat()
                ready = self._prepared.ready.get(PATIENCE)
                if ready is not None:
                    self._account(ready.frame)
                    self._frame(ready, given_up)
                    ready.frame.release()
                    self._prepared.free.put(ready.space)
                if not given_up():
                    self._look(idle=ready is None)
            self._account(None)
            self._joiner.ended()
        finally:
            self._prepared.free.close()
            self._distributor.close()
        self._last_round(left)

    def _last_round(self, left: Callable[[], float]) -> None:
        """Every golden frame once more: what was restored since the last time, nobody tests later."""
        watch = self._watch
        if watch is None or not watch.in_flight or self.failure is not None or not self._restored:
            return
        watch.reached = self._restored[-1][1]
        while watch.oldest < watch.reached:
            if self._took > left():
                self.untested, last = self._since(watch.oldest)
                self._log("untested", sequence=watch.oldest, last=last, lines=self.untested)
                return
            began = time.monotonic()
            if not self._tested(watch, mend=False):
                return
            self._took = max(self._took, time.monotonic() - began)

    def _account(self, frame: Frame | None) -> None:
        """Frames that the queue dropped before this one, or all that it dropped."""
        while self._lost and (frame is None or self._lost[0].number < frame.number):
            self._drop(self._lost.popleft(), "restoration was behind")

    def _drop(self, frame: Frame, why: str) -> None:
        self.dropped += 1
        last = frame.first + len(frame.slots) - 1
        self._log("drop-frame", frame=frame.number, sequence=frame.first, last=last, why=why)
        self._joiner.dropped(frame)

    def _frame(self, ready: Ready, given_up: Callable[[], bool]) -> None:
        frame = ready.frame
        if self.failure is not None or given_up():
            self._drop(frame, "the engine failed" if self.failure is not None else "the stream ended")
            return
        if self._restorer.cut_off(frame):
            self._drop(frame, "the end cut it off")
            self.cut_off += 1
            return
        try:
            with self._stage.busy(ENGINE_LIMIT_S):
                values, report = self._restored_of(ready, given_up)
        except AbandonedError:
            self._drop(frame, "the stream ended")
            return
        except CubeError as error:
            self._told_unfit(frame, error)
            self._drop(frame, error.problem)
            self.unfit += 1
            return
        # An engine may raise whatever its library does; the record must go on.
        except Exception as error:
            self._broken(frame, error)
            return
        self._failures = 0
        if not report.passed:
            self._took = report.seconds["whole"]
        self.given += 1
        self.passed += report.passed
        for doubt in report.doubts:
            self._log("doubt", frame=frame.number, sequence=frame.first, what=doubt)
        behind = frame.first + len(frame.slots)
        if self._watch is not None:
            # What the next frame shares is not settled yet.
            self._watch.reached = behind - frame.shared
            while self._restored and self._restored[0][1] <= self._watch.oldest:
                self._restored.popleft()
            self._restored.append((frame.first, behind))
        if report.suspect:
            self._suspect(frame.first, behind - 1, sum(frame.taken), report.suspect)
            self._alarm()
        self._joiner.restored(frame, values, report)
        self._seen(report)

    def _restored_of(self, ready: Ready, given_up: Callable[[], bool]) -> tuple[Float32, FrameReport]:
        """As `FrameRestorer.run`; a frame that no network should see comes out as it came, where that is possible."""
        beat = self._stage.beat
        if ready.made is None:
            raise ready.error or AbandonedError
        if isinstance(ready.error, CubeError):
            self._told_unfit(ready.frame, ready.error)
        try:
            return self._restorer.run(ready.made, given_up, beat)
        except CubeError as error:
            if not self._restorer.passes_through:
                raise
            self._told_unfit(ready.frame, error)
            return self._restorer.pass_through(ready.frame, ready.space, beat)

    def _told_unfit(self, frame: Frame, error: CubeError) -> None:
        """Not the engine's fault: the frame's numbers are none that a network should see."""
        self._log("unfit", frame=frame.number, sequence=frame.first, error=error.one_line())

    def _broken(self, frame: Frame, error: Exception) -> None:
        self._failures += 1
        told = error.one_line() if isinstance(error, DeployError) else f"{type(error).__name__}: {error}"
        self._log("failed", stage="restoration", frame=frame.number, error=told)
        self._drop(frame, "the engine failed")
        self.broken += 1
        self._alarm()
        if self._failures >= TRIES:
            why = f"the engine failed on {TRIES} frames in a row: {told}"
            # What it made before may be wrong, too.
            if self._watch is None or self._tested(self._watch):
                self._repair(why)

    def _alarm(self) -> None:
        if self._watch is not None:
            self._watch.alarm()

    def _look(self, *, idle: bool) -> None:
        """A self-test between two frames, where one is due, and what follows from it."""
        watch = self._watch
        if watch is None or self.failure is not None:
            return
        if refresh := watch.refresh_due():
            # What it restored is judged by what it is now, not by the fresh one.
            watch.alarm()
        if (refresh or watch.due(idle=idle)) and self._tested(watch) and refresh:
            self._renew(repair=False, why="it was time")

    def _tested(self, watch: SelfTest, *, mend: bool = True) -> bool:
        """A self-test that found nothing; what it finds is listed, and repaired where lines are still to come."""
        preparer = self._restorer.preparer
        # The first proof runs the graphs that make prompts, too.
        with self._stage.busy(ENGINE_LIMIT_S), preparer.alone(self._stage.beat):
            found = watch.test()
            try:
                altered = preparer.tables.mend()
            except MachineError as error:
                self._off(error.one_line())
                return False
            preparer.mended += altered > 0
        if altered:
            self._list(watch, f"{altered} of {MENDED}")
            self._log("repaired", why="the radiometry's tables were put back")
        if found is None:
            self._log("selftest", ok=True)
            return True
        told = found.one_line()
        self._log("selftest", ok=False, error=told)
        self._list(watch, told)
        if mend:
            self._repair(told)
        elif not watch.ever_good:
            self._off(told)
        return False

    def _list(self, watch: SelfTest, why: str) -> None:
        """Tell which lines were restored since the test that fails was last good."""
        lines, last = self._since(watch.since)
        if lines:
            self._suspect(watch.since, last, lines, why)

    def _since(self, at: int) -> tuple[int, int]:
        """How many lines were restored from that number on, and the number of the last one."""
        lines = 0
        for first, behind in self._restored:
            lines, at = lines + max(0, behind - max(first, at)), max(at, behind)
        return lines, at - 1

    def _repair(self, why: str) -> None:
        """Another engine in the place of one that is wrong, or none from now on."""
        now, often = time.monotonic(), len(self._repairs) == REPAIRS
        if self._watch is None or (often and now - self._repairs[0] < REPAIRS_S):
            self._off(f"{why}; it was opened anew {REPAIRS} times" if often else why)
            return
        self._repairs.append(now)
        self._renew(repair=True, why=why)

    def _renew(self, *, repair: bool, why: str) -> None:
        assert self._watch is not None, "somebody opens engines"
        try:
            with self._stage.busy(ENGINE_LIMIT_S), self._restorer.preparer.alone(self._stage.beat):
                fresh = self._watch.renew(repair=repair)
                self._restorer.use(fresh.engine.infer, fresh.prompts)
        # Whatever a library raises, or where there is no memory for another engine.
        except Exception as error:
            told = error.one_line() if isinstance(error, DeployError) else f"{type(error).__name__}: {error}"
            if not repair:
                self.unrefreshed = f"the engine could not be opened anew, the one before goes on: {told}"
            self._log("failed", stage="engine", error=told)
            if repair:
                self._off(f"{why}; opened anew: {told}")
            return
        self._failures, self.unrefreshed = 0, ""
        self._restored.clear()
        self._log("repaired" if repair else "refreshed", why=why)

    def _off(self, why: str) -> None:
        self._stage.well = False
        self.failure = restoration_off(DeployError(why), self._opened_as)
        self._log("failed", stage="restoration", error=self.failure.one_line())


def restoration_off(why: DeployError, opened_as: str = BUNDLE) -> MachineError:
    """What is told where lines are recorded and nothing restores them.

    Args:
        why: nothing does.
        opened_as: the words by which `deploy stream` opened the bundle: its folder, or `--store` and that.
    """
    return MachineError(
        f"restoration is off, lines are recorded only: {why.problem}",
        file=why.file,
        key="restoration",
        value=why.value,
        remedy=f"restore the record later: `deploy stream {opened_as} --source file:RECORD/lines.hdr --restored OTHER`",
    )


class Speed:
    """Lines per second over the last seconds, and latencies of the last frames."""

    def __init__(self, seconds: float = 5.0, frames: int = 256) -> None:
        self._seconds = seconds
        self._counts: deque[tuple[float, dict[str, int]]] = deque()
        self._latencies: deque[float] = deque(maxlen=frames)

    def frame(self, report: FrameReport) -> None:
        """A frame was restored."""
        self._latencies.append(report.latency_s)

    def rates(self, counts: dict[str, int]) -> dict[str, float]:
        """Lines per second of each count since some seconds ago; to be asked about once a second, from one thread."""
        now = time.monotonic()
        self._counts.append((now, counts))
        while len(self._counts) > 2 and now - self._counts[1][0] > self._seconds:
            self._counts.popleft()
        then, before = self._counts[0]
        span = now - then
        return {name: (counts[name] - before[name]) / span if span else 0.0 for name in counts}

    def latencies(self) -> dict[str, float]:
        """Quantiles in seconds of the last frames; empty before the first."""
        ordered = sorted(self._latencies)
        if not ordered:
            return {}
        return {f"p{q}": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 95, 99)}
