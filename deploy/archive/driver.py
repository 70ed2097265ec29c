"""Hands products out to workers, a few at a time, and settles each that comes back before the next."""

from __future__ import annotations

import heapq
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from types import FrameType
from typing import Any

from distributed import Client, Future, as_completed
from distributed.scheduler import KilledWorker

from runtime.errors import DeployError, InputError, MachineError

from .ledger import WRONG, Ledger, State
from .plan import Product
from .watch import Watch
from .work import Record, Task, part_files

AHEAD = 2
"""Tasks in flight for each worker: one is done, one waits."""
WAITS_S = (1.0, 5.0, 20.0)
"""Before what failed by the system's fault is tried again."""
PAUSE_S = 1.0
"""Between suspects: what a dying worker takes is to be back."""
WORKERLESS_S = 120.0
UNFIT = 3
"""Answers of workers that could not open the bundle, for each worker, before that is believed of all."""
ASK_S = 1.0
GRACE_S = 30.0


class SchedulerLostError(Exception):
    """The scheduler is gone, and what was in flight with it."""


class Stop:
    """Whether somebody wants the end: once, and running tasks may end; twice, at once."""

    asked = 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM for that while the block runs, in the process's main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(eq=False)
class _Open:
    """A product on its way, and how often each thing happened to it.

    Attributes:
        found: of a split one, the look at its pixels; digests: {part's first line: SHA-256} of parts that are there.
    """

    product: Product
    attempts: int = 0
    deaths: int = 0
    failures: int = 0
    seconds: float = 0.0
    found: Any = None
    digests: dict[int, str] = field(default_factory=dict)

    def next(self) -> list[Task]:
        """What is to be done for it now, nothing of it being done."""
        task, cuts = self.product.task, self.product.cuts
        if len(cuts) < 2:
            return [task]
        if self.found is None:
            return [replace(task, kind="survey")]
        files = part_files(task.out, task.key, len(cuts))
        if len(self.digests) == len(cuts):
            parts = tuple((file, self.digests[at]) for file, (at, _) in zip(files, cuts, strict=True))
            return [replace(task, kind="join", parts=parts, found=self.found)]
        return [
            replace(task, kind="part", lines=cut, parts=((file, ""),), found=self.found)
            for file, cut in zip(files, cuts, strict=True)
            if cut[0] not in self.digests
        ]


@dataclass(frozen=True)
class Pace:
    """Times and counts that are others in tests. Attributes as the constants of this module."""

    waits: tuple[float, ...] = WAITS_S
    pause: float = PAUSE_S
    workerless: float = WORKERLESS_S
    grace: float = GRACE_S
    ahead: int = AHEAD


@dataclass(eq=False)
class Driver:
    """What becomes of products; outlives schedulers.

    Attributes:
        products: that are to be restored, in this order.
        job: what a worker does with a task; a function of a module.
        ledger, watch: are told of each. stop: is asked before anything is handed out.
    """

    products: list[Product]
    job: Callable[[Task], Record]
    ledger: Ledger
    watch: Watch
    stop: Stop
    pace: Pace = field(default_factory=Pace)
    _open: dict[str, _Open] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._open = {one.task.path: _Open(one) for one in self.products}
        self.watch.pixels_left = sum(one.pixels for one in self.products)
        self._names = count()
        self._suspected: dict[Task, int] = {}

    @property
    def left(self) -> int:
        """Products that have not come to an end."""
        return len(self._open)

    @property
    def open(self) -> list[_Open]:
        """Of these."""
        return list(self._open.values())

    def refuse(self, errors: Iterable[tuple[str, InputError]]) -> None:
        """Settle products, (path, error), that nobody here can restore."""
        for path, error in errors:
            self._end(self._open[path], "refused", {"error": error.as_json(), "line": error.one_line()})

    def drive(self, client: Client) -> None:
        """Have them restored, until none is left or somebody wants the end.

        Raises:
            SchedulerLostError: the scheduler is gone; call it again with the client of another.
            DeployError: no worker is there, or none can open the bundle.
        """
        self._client, self._flying = client, dict[Future[Any], Task]()
        self._back = as_completed(with_results=True, raise_errors=False, loop=client.loop)
        self._waiting: deque[Task] = deque()
        self._later: list[tuple[float, int, Task]] = []
        # Who was suspected stays so, whatever became of the scheduler.
        self._suspects: deque[Task] = deque(t for t in self._suspected if t.path in self._open)
        for one in self._open.values():
            self._waiting += [task for task in one.next() if task not in self._suspected]
        self._workers: set[str] = set()
        self._asked = self._alone = 0.0
        self._unfit = 0
        self._met = time.monotonic()
        try:
            while self._open and not self.stop.asked:
                self._look_after_workers()
                self._hand_out()
                self._take(0.01)
                self.watch.tick()
            self._drain()
        finally:
            for path in self._open:
                if self.watch.states.get(path) == "running":
                    self.watch.states[path] = "planned"
                    self.ledger.mark(path, state="planned")
            if self._flying and client.status == "running":
                with suppress(Exception):
                    client.cancel(list(self._flying), force=True)

    def _drain(self) -> None:
        """Let what runs end for a while."""
        until = time.monotonic() + self.pace.grace
        if self.stop.asked and self._flying:
            self.watch.event("stopping", in_flight=len(self._flying))
        while self._flying and self.stop.asked == 1 and time.monotonic() < until:
            self._take(0.05)
            self.watch.tick()

    def _look_after_workers(self) -> None:
        now = time.monotonic()
        if now - self._asked < ASK_S:
            return
        self._asked = now
        if self._client.status != "running":
            raise SchedulerLostError
        try:
            there = set(self._client.nthreads())
        except Exception as error:
            raise SchedulerLostError from error
        if lost := self._workers - there:
            self.watch.gone(len(lost))
        if there != self._workers:
            changed = {"joined": sorted(there - self._workers), "left": sorted(self._workers - there)}
            self.watch.event("workers", count=len(there), **changed)
        self._workers = there
        self.watch.workers = len(there)
        if there:
            self._met = now
        elif now - self._met > self.pace.workerless:
            raise MachineError(
                f"no worker was there for {self.pace.workerless:.0f} s", remedy="start workers, and resume the archive"
            )

    def _hand_out(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._waiting.append(heapq.heappop(self._later)[2])
        while self._waiting and len(self._flying) < self.pace.ahead * len(self._workers):
            self._submit(self._waiting.popleft())
        # Suspects run when nobody is beside them in a worker who could be blamed.
        if self._waiting or self._later or any(t not in self._suspected for t in self._flying.values()):
            return
        if self._suspects and len(self._flying) < len(self._workers) and now - self._alone > self.pace.pause:
            self._alone = now
            self._submit(self._suspects.popleft())

    def _submit(self, task: Task) -> None:
        if task.path not in self._open:
            return
        # Dask knows a task by its name, and never does one again.
        name = f"restore-{task.key[:16]}-{task.kind}{task.lines[0]}-{next(self._names)}"
        try:
            future = self._client.submit(self.job, task, key=name, pure=False, retries=0)
        except Exception as error:
            if self._client.status == "running":
                raise
            raise SchedulerLostError from error
        self._flying[future] = task
        self._back.add(future)
        if self.watch.states.get(task.path) != "running":
            self.ledger.mark(task.path, state="running")
            self.watch.states[task.path] = "running"

    def _take(self, wait: float) -> None:
        if not self._back.has_ready():
            time.sleep(wait)
        while self._back.has_ready():
            future, result = next(self._back)
            task = self._flying.pop(future, None)
            future.release()
            if task is not None:
                self._settle(task, result)

    def _settle(self, task: Task, result: Any) -> None:
        if isinstance(result, tuple) and len(result) == 3 and isinstance(result[1], BaseException):
            result = result[1]
        one = self._open.get(task.path)
        if isinstance(result, CancelledError):
            raise SchedulerLostError
        if one is None:
            return
        if isinstance(result, KilledWorker):
            self._killed(one, task, result)
            return
        if isinstance(result, BaseException):
            # Nothing that `job` raises: Dask could not send or read it.
            told = DeployError(f"Dask could not do it: {type(result).__name__}: {result}", file=task.path)
            result = {"state": "failed", "error": told.as_json(), "line": told.one_line()}
        record: Mapping[str, Any] = result
        if record["state"] == "unfit":
            self._unfit += 1
            if self._unfit > UNFIT * max(1, len(self._workers)):
                raise _told_again(record)
            self._later_on(task, self.pace.pause)
            return
        self._unfit = 0
        self._suspected.pop(task, None)
        one.attempts += 1
        one.seconds += float(record.get("seconds", 0))
        if record["state"] == "failed" and record.get("retry") and one.failures < len(self.pace.waits):
            self.watch.event("again", path=task.path, line=record.get("line"), seconds=self.pace.waits[one.failures])
            self._later_on(task, self.pace.waits[one.failures])
            one.failures += 1
        elif record["state"] == "done" and task.kind == "survey" and "found" in record:
            one.found = record["found"]
            self._waiting.extendleft(reversed(one.next()))
        elif record["state"] == "done" and task.kind == "part":
            one.digests[task.lines[0]] = record["sha256"]
            if len(one.digests) == len(one.product.cuts):
                self._waiting.extendleft(one.next())
        else:
            self._end(one, record["state"], record)

    def _later_on(self, task: Task, seconds: float) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._names), task))

    def _killed(self, one: _Open, task: Task, error: KilledWorker) -> None:
        """Its workers died. The first time others may have been the reason."""
        one.deaths += error.allowed_failures + 1
        one.attempts += error.allowed_failures + 1
        self._suspected[task] = self._suspected.get(task, 0) + 1
        self.watch.event("killed", path=task.path, times=self._suspected[task])
        if self._suspected[task] == 1:
            self._suspects.append(task)
            return
        told = MachineError(
            "every process that restores it ends",
            file=task.path,
            remedy="give workers more with --memory; if that does not help, report it; `resume --again` tries again",
        )
        self._end(one, "quarantined", {"error": told.as_json(), "line": told.one_line()})

    def _end(self, one: _Open, state: State, record: Mapping[str, Any]) -> None:
        path = one.product.task.path
        del self._open[path]
        for task in [task for task in self._suspected if task.path == path]:
            del self._suspected[task]
        self._suspects = deque(task for task in self._suspects if task.path != path)
        self.ledger.mark(
            path, state=state, attempts=one.attempts, deaths=one.deaths, worker=record.get("worker"),
            seconds=round(one.seconds, 3), ended=time.time(), size=record.get("size"),
            changed=record.get("changed", WRONG if one.product.task.anew else None),
            result=record.get("result"), error=record.get("error"), line=record.get("line"),
        )  # fmt: skip
        told = {name: record[name] for name in ("worker", "traceback") if name in record}
        self.watch.settled(
            path, state, one.product.pixels, record.get("line"), seconds=round(one.seconds, 3),
            attempts=one.attempts, deaths=one.deaths, **told,
        )  # fmt: skip


def _told_again(record: Mapping[str, Any]) -> MachineError:
    told = record["error"]
    return MachineError(
        f"no worker can open the bundle: {told['message']}", file=told["file"], key=told["key"], value=told["value"],
        remedy=told["remedy"],
    )  # fmt: skip
