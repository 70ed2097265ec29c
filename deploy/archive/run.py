"""An archive from its plan to its last product."""

from __future__ import annotations

import time
from asyncio import TimeoutError as AsyncioTimeoutError
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

from runtime.bundle_files import head_of
from runtime.engines import CPU_ENGINES
from runtime.errors import DeployError, GateError, InputError, MachineError
from runtime.machine import available_cores

from .. import console
from ..answers import INTERRUPTED
from . import work, worker
from .cluster import Joined, joined, own_cluster
from .driver import Driver, Pace, SchedulerLostError, Stop
from .ledger import Ledger, doubts_of, totals
from .lock import alone, sweep
from .order import FOLDER, Order, keep
from .plan import FLOOR, Found, Plan, Product, Room, end_of, fitting, plan_of, room_for
from .question import found_for
from .security import Tls, security_of
from .watch import Watch
from .work import Look, Record, Task

RESTARTS = 3
"""Of a cluster of our own whose scheduler is lost."""
PATIENCE_S = 300.0
"""With a scheduler of somebody's that is lost."""
FIRST_S = 60.0
"""For its answer, and its first worker, at the start."""
LISTED = 100
"""Errors that `--json` has; the ledger has all."""


class InterruptedArchiveError(DeployError):
    """Somebody wanted the end; a rerun goes on."""

    exit_code = INTERRUPTED


@dataclass(frozen=True)
class Means:
    """What restores.

    Attributes:
        scheduler, tls, insecure: of somebody's cluster; without, one of this computer's own is made.
        workers, memory: of that: how many, and bytes of each; None for what fits.
        threads: of each engine; None for this computer's cores shared out.
        dashboard: whether it shows Dask's own page, on this computer alone.
        again: try again what was refused or quarantined before.
        patience: seconds with a scheduler of somebody's that is lost.
    """

    scheduler: str | None = None
    tls: Tls | None = None
    insecure: bool = False
    workers: int | None = None
    memory: int | None = None
    threads: int | None = None
    dashboard: bool = False
    again: bool = False
    patience: float = PATIENCE_S


@dataclass(frozen=True)
class Craft:
    """What is done with products: `search` finds them, `look` plans one, `job` restores it in a worker that `plugin`
    made ready, given the memory that a product may take there."""

    search: Callable[[Order, Path], Found]
    look: Callable[[Look], Record]
    job: Callable[[Task], Record]
    plugin: Callable[[int | None, int | None], WorkerPlugin] | None


def craft_of(order: Order) -> Craft:
    """Restoration with the order's bundle."""

    def plugin(threads: int | None, memory: int | None) -> WorkerPlugin:
        return worker.OpenBundle(order.bundle, order.seal, order.engine, order.prompt, threads, memory)

    return Craft(work.search, work.looked_at, worker.job, plugin)


def run_archive(
    order: Order, out: Path, means: Means, *, craft: Craft | None = None, pace: Pace | None = None
) -> dict[str, Any]:
    """Restore an archive, or what is left of it; returns what `--json` prints.

    Raises:
        GateError: some were refused, failed or were quarantined; all have been tried, and `report` counts them.
        InterruptedArchiveError: somebody wanted the end.
        InputError: another driver is at it, or nothing can be done at all.
        MachineError: it cannot be done here, or the scheduler or all workers are gone.
    """
    began, craft = time.monotonic(), craft or craft_of(order)
    security = security_of(means.scheduler, means.tls, insecure=means.insecure) if means.scheduler else None
    if means.memory is not None and means.memory < FLOOR:
        raise InputError(
            "is less than a worker takes with nothing to do", key="--memory", value=f"{means.memory} bytes",
            remedy=f"say {FLOOR >> 20}MiB or more, or leave it out: `deploy archive plan` tells what products take",
        )  # fmt: skip
    order, found, anew = found_for(order, out, craft.search)
    _make_folders(out)
    stop = Stop()
    with alone(out), Ledger(out / FOLDER) as ledger, stop.heard():
        watch = Watch(out / FOLDER)
        watch.event("started", bundle=order.bundle, inputs=order.inputs[:LISTED], seal=order.seal)
        if anew:
            console.warn(f"{out} is begun anew: {anew}; what else was restored into it stays, and is verified no more")
        keep(order, out)
        with console.progress("looking") as moved:

            def looked(done: int, total: int) -> None:
                moved(done, total)
                if stop.asked:
                    raise KeyboardInterrupt

            plan = plan_of(order, out, ledger.rows(), found, craft.look, again=means.again, looked=looked)
        shared = means.scheduler is not None
        sweep(out, shared=shared, keys=[one.task.key for one in plan.todo])
        room = None
        if plan.todo and not shared:
            alone_ = craft.plugin is not None and _engine(order) not in CPU_ENGINES
            room = room_for([one.peak for one in plan.todo], means.workers, means.memory, alone=alone_)
            plan = _fitted(plan, room.memory, f"of {room.memory / 2**30:.2f} GiB")
        ledger.begin(plan.rows)
        watch.states = {row.path: row.state for row in plan.rows}
        _say(plan, room, means)
        for row in plan.rows:
            if row.line is not None:
                watch.settled(row.path, row.state, line=row.line)
        try:
            _make_places(plan.todo)
            driver = Driver(plan.todo, craft.job, ledger, watch, stop, pace or Pace())
            with watch.shown():
                _drive(driver, craft, room, means, security)
        except DeployError as error:
            error.report = _told(watch, out, began)
            raise
        finally:
            sweep(out, shared=shared, keys=[one.task.key for one in plan.todo])
            counted = totals(watch.states.values())
            watch.event("ended", products=counted, seconds=round(time.monotonic() - began, 3))
            watch.tick(now=True)
        restored = [row for row in ledger.rows(current=True) if row.state in ("done", "present")]
        odd = sum(any(doubts_of(row)) for row in restored)
    return _ended(watch, out, began, odd, stopped=bool(stop.asked))


def _engine(order: Order) -> str:
    return order.engine or head_of(Path(order.bundle)).manifest.target.engine


def _make_folders(out: Path) -> None:
    try:
        out.mkdir(exist_ok=True)
        (out / FOLDER).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", file=out, key="--out", remedy="give a folder that you may write to"
        ) from error


def _make_places(todo: list[Product]) -> None:
    """The folders that outputs go into; one that cannot be made is told by each of its products."""
    for place in {Path(one.task.out).parent for one in todo}:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)


def _fitted(plan: Plan, memory: int, whose: str) -> Plan:
    todo, too_large = fitting(plan.todo, memory, whose)
    # What it needs may be there the next time.
    ends: dict[str, dict[str, Any]] = {path: {**end_of(error), "stamp": ()} for path, error in too_large}
    return Plan([replace(row, **ends.get(row.path, {})) for row in plan.rows], todo)


def _say(plan: Plan, room: Room | None, means: Means) -> None:
    counted = totals(row.state for row in plan.rows)
    console.say(
        f"products    {counted['planned']}: {counted['left']} to restore, {counted['present']} present, "
        f"{counted['refused'] + counted['quarantined'] + counted['failed']} refused"
    )
    for row in plan.rows:
        for note in row.notes:
            console.warn(f"{row.path}: {note}")
    if room is not None:
        console.say(f"workers     {room.workers} on this computer, {room.memory / 2**30:.2f} GiB each")
    elif means.scheduler is not None:
        console.say(f"scheduler   {means.scheduler}")


def _drive(driver: Driver, craft: Craft, room: Room | None, means: Means, security: Any) -> None:
    """Until nothing is left: a scheduler that is lost is started, or waited for, again; so often, or so long."""
    lost, until = 0, 0.0
    while driver.left and not driver.stop.asked:
        try:
            with _cluster(room, means, security, first=not lost) as cluster:
                _prepare(cluster, driver, craft, room, means)
                until = 0.0
                driver.drive(cluster.client)
                if not cluster.own and craft.plugin is not None:
                    with suppress(Exception):
                        cluster.client.unregister_worker_plugin(worker.PLUGIN)
        except (SchedulerLostError, _NotYetError) as error:  # noqa: PERF203
            lost += 1
            now = time.monotonic()
            until = until or now + means.patience
            driver.watch.event("scheduler lost", times=lost)
            if room is not None and lost > RESTARTS:
                raise MachineError(f"the scheduler was lost {lost} times", remedy="resume the archive") from error
            if room is None and now > until:
                raise MachineError(
                    f"the scheduler was lost, and is not back after {means.patience:.0f} s",
                    key="--scheduler",
                    value=means.scheduler,
                    remedy="start it, and its workers, and resume the archive",
                ) from error
            time.sleep(min(1.0, means.patience / 10))


class _NotYetError(Exception):
    """A scheduler that was lost is not back, or nobody works for it yet."""


@contextmanager
def _cluster(room: Room | None, means: Means, security: Any, *, first: bool) -> Iterator[Joined]:
    with ExitStack() as undo:
        if room is not None:
            yield undo.enter_context(own_cluster(room.workers, room.memory, dashboard=means.dashboard))
            return
        assert means.scheduler is not None, "there is no room without one"
        try:
            found = undo.enter_context(joined(means.scheduler, security, timeout=FIRST_S if first else 5.0))
        except MachineError as error:
            if first:
                raise
            raise _NotYetError from error
        yield found


def _prepare(cluster: Joined, driver: Driver, craft: Craft, room: Room | None, means: Means) -> None:
    """Wait for a worker, and let each of them open the bundle. Raises DeployError."""
    client, memory = cluster.client, None if room is None else room.memory
    if cluster.dashboard:
        driver.watch.dashboard = cluster.dashboard
        driver.watch.event("dashboard", link=cluster.dashboard)
        console.say(f"dashboard   {cluster.dashboard}")
    try:
        client.wait_for_workers(1, timeout=FIRST_S)
    except (TimeoutError, AsyncioTimeoutError) as error:
        raise MachineError(
            f"no worker was there for {FIRST_S:.0f} s", key="--scheduler", value=cluster.address,
            remedy="start workers for it, and look at what they say",
        ) from error  # fmt: skip
    if room is None:
        limits = [one["memory_limit"] for one in client.scheduler_info()["workers"].values()]
        memory = min((limit for limit in limits if limit), default=None)
        if memory is not None:
            driver.refuse(fitting([one.product for one in driver.open], memory, f"of {cluster.address}")[1])
    client.subscribe_topic(worker.TOPIC, driver.watch.block)
    if craft.plugin is not None:
        threads = means.threads
        if threads is None and room is not None:
            threads = max(1, available_cores() // room.workers)
        began = time.monotonic()
        try:
            client.register_plugin(craft.plugin(threads, memory))
        except DeployError:
            raise
        except OSError as error:
            raise SchedulerLostError from error
        except Exception as error:
            raise MachineError(
                f"workers cannot do it: {type(error).__name__}: {error}", key="--scheduler", value=cluster.address,
                remedy="install the same versions of damp-deploy, Dask and Python on every computer",
            ) from error  # fmt: skip
        driver.watch.event("bundle opened", seconds=round(time.monotonic() - began, 3))


def _told(watch: Watch, out: Path, began: float) -> dict[str, Any]:
    counted = totals(watch.states.values())
    return {"products": counted, "seconds": round(time.monotonic() - began, 3), "out": str(out)}


def _ended(watch: Watch, out: Path, began: float, odd: int, *, stopped: bool) -> dict[str, Any]:
    told = {**_told(watch, out, began), "to_be_looked_at": odd}
    counted: dict[str, int] = told["products"]
    ends = [f"{counted[state]} {state}" for state in ("done", "present", "refused", "failed", "quarantined")]
    console.say(f"archive     {', '.join(ends)} of {counted['planned']} in {told['seconds']:.1f} s", "bold")
    if odd:
        console.warn(f"{odd} restored products are to be looked at: `deploy archive report {out}` tells why")
    if counted["left"]:
        assert stopped, "the driver ends before only where somebody wants it"
        error: DeployError = InterruptedArchiveError(
            f"interrupted: {counted['left']} of {counted['planned']} products are left", file=out,
            remedy=f"`deploy archive resume {out}` goes on",
        )  # fmt: skip
        error.report = told
        raise error
    wrong = {state: counted[state] for state in ("refused", "failed", "quarantined") if counted[state]}
    if wrong:
        told["errors"] = watch.lines_told[:LISTED]
        error = GateError(
            f"{sum(wrong.values())} of {counted['planned']} products were not restored: "
            + ", ".join(f"{count} {state}" for state, count in wrong.items()),
            file=out,
            remedy=f"`deploy archive report {out}` has each with its reason",
        )
        error.report = told
        raise error
    console.say(f"wrote       {out}", "bold green")
    return told
