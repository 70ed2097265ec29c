"""What is to be done: every product that is found, what becomes of it, and the memory that this takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

from runtime.errors import DeployError, InputError, MachineError
from runtime.files.disk import available_memory
from runtime.machine import available_cores
from runtime.products.naming import RESTORED
from runtime.products.provenance import lacking
from runtime.products.stac import Asked

from .apart import each
from .ledger import WRONG, Row, State
from .order import Order, asked_of
from .work import Look, Record, Task, of_output, stamp_of

MARGIN, FITS, LEAST = 1.5, 0.85, 768 << 20
"""Of a worker's memory: what it has for the largest product, as a multiple; the share of it that a product may take,
since with more Dask pauses the worker; and the smallest."""
FLOOR = 256 << 20
"""Bytes below which no worker lives: Python, Dask and an engine with nothing to do."""
LOOKING = 2 << 30
"""Bytes that a process may take which looks at products without reading their pixels."""


class Found(Protocol):
    """`runtime.products.searching.Found`."""

    @property
    def products(self) -> Sequence[Path]: ...
    @property
    def refused(self) -> Sequence[tuple[Path, DeployError]]: ...
    @property
    def asked(self) -> Mapping[Path, Asked]: ...


@dataclass(frozen=True)
class Product:
    """A product to be restored.

    Attributes:
        task: of the whole. pixels: of it. peak: bytes that a process takes which restores it.
        cuts: [first line, the one after the last] of its parts; one or none where it is not split.
    """

    task: Task
    pixels: int
    peak: int
    cuts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """Attributes:
    rows: of every product, in the order in which they were found. todo: those to be restored, the largest first.
    """

    rows: list[Row]
    todo: list[Product]


def plan_of(
    order: Order,
    out: Path,
    known: Iterable[Row],
    found: Found,
    look: Callable[[Look], Record],
    *,
    again: bool = False,
    looked: Callable[[int, int], object] = lambda done, total: None,
) -> Plan:
    """Look at every product that is not known yet.

    Args:
        known: rows of runs before; nothing is opened of what has not changed since.
        found: see `work.search`.
        look: `work.looked_at`.
        again: try again what was refused or quarantined before.
        looked: called with (products looked at, products to look at).
    """
    asked, before = asked_of(order), {row.path: row for row in known}
    rows, cuts = dict[str, Row](), dict[str, tuple[tuple[int, int], ...]]()
    looks: list[Look] = []
    for path in dict.fromkeys(map(str, found.products)):
        row = before.get(path)
        if row is not None and row.asked == asked and (same := _as_before(row, out, order, again)):
            rows[path] = same
        else:
            mine = row is not None and row.asked == asked and row.out is not None
            folder = Path(str(row.out)).parent if row is not None and mine else _folder(path, order.inputs)
            wrong = mine and row is not None and row.changed == WRONG
            again_ = order.model_copy(update={"replace": order.replace or wrong})
            looks.append(Look(path, str(out / folder), again_, found.asked.get(Path(path)), _changed(row)))
            rows[path] = Row(path)
    if looks:
        for number, (item, record) in enumerate(each(look, looks, memory=LOOKING), 1):
            rows[item.path] = _looked(item, record, asked, out, before.get(item.path))
            cuts[item.path] = tuple(record.get("cuts", ())) if record else ()
            looked(number, len(looks))
    for at, error in found.refused:
        error.file = error.file or str(at)
        state: State = "refused" if os.path.lexists(at) else "failed"
        rows[str(at)] = Row(str(at), state, asked=asked, error=error.as_json(), line=error.one_line())
    # Inputs may be deleted once they were verified: their outputs are the archive's all the same.
    for row in before.values():
        if row.current and row.asked == asked and not os.path.lexists(row.path):
            if row.state in ("done", "present"):
                rows[row.path] = replace(row, state="present")
            elif row.changed == WRONG:
                gone = MachineError(
                    "has gone, and its output is not what was written", file=row.path, remedy="put it back"
                )
                rows[row.path] = replace(row, state="failed", error=gone.as_json(), line=gone.one_line())
    rows = {row.path: row for row in _without_twins(rows.values())}
    todo = [_product(row, out, order, cuts.get(row.path, ())) for row in rows.values() if row.state == "planned"]
    return Plan(list(rows.values()), sorted(todo, key=lambda one: -one.pixels))


def _as_before(row: Row, out: Path, order: Order, again: bool) -> Row | None:
    """What is known of a product that has not changed; None where it has, or must be looked at again."""
    if not row.stamp or _changed(row):
        return None
    if row.state in ("refused", "quarantined"):
        return None if again else replace(row, current=True)
    if row.out is None or row.key is None or order.split:
        return None
    place = out / row.out
    if row.changed == WRONG:
        return replace(row, state="planned", current=True, error=None, line=None, attempts=0, deaths=0)
    if not os.path.lexists(place) or (row.state in ("done", "present") and lacking(place)):
        return replace(row, state="planned", current=True, error=None, line=None, result=None, attempts=0, deaths=0)
    with suppress(OSError):
        if row.state in ("done", "present") and of_output(place) == {"size": row.size, "changed": row.changed}:
            return replace(row, state="present", current=True)
    return None


def _changed(row: Row | None) -> bool:
    """Whether a product's files are others than the ledger knows."""
    if row is None or not row.stamp:
        return False
    try:
        return stamp_of(tuple(Path(file) for file, _, _ in row.stamp)) != row.stamp
    except OSError:
        return True


def _folder(path: str, inputs: Sequence[str]) -> Path:
    """Where its restoration goes, within the archive: as deep as the product lies in a folder that was named."""
    for given in inputs:
        # What was named itself, or lies outside, goes to the top; inputs that are added later change no name.
        folder, inner = Path(given), Path(path).parent
        if path == given:
            break
        if inner.is_relative_to(folder):
            return inner.relative_to(folder)
    return Path()


def _looked(look: Look, record: Record | None, asked: str, out: Path, before: Row | None) -> Row:
    if record is None:
        error = MachineError(
            "the process that opens it ends", file=look.path, remedy="report it; `resume --again` tries again"
        )
        stamp = _stamp_or_none(look.path)
        return Row(look.path, "quarantined", asked=asked, stamp=stamp, error=error.as_json(), line=error.one_line())
    columns = {name: record[name] for name in Row.__dataclass_fields__ if name in record}
    if "out" in columns:
        columns["out"] = os.path.relpath(columns["out"], out)
    row = Row(**{**columns, "path": look.path, "asked": asked})
    if before is not None and before.changed == WRONG and before.out == row.out and row.state in ("planned", "present"):
        return replace(row, state="planned", changed=WRONG, result=before.result)
    if row.state == "present" and before is not None and before.key == row.key:
        # Its output was touched, and is the same.
        told = {name: getattr(before, name) for name in ("result", "attempts", "deaths", "worker", "seconds", "ended")}
        row = replace(row, **told)
    return row


def _stamp_or_none(path: str) -> tuple[tuple[str, int, int], ...]:
    with suppress(OSError):
        return stamp_of((Path(path),))
    return ()


def _without_twins(rows: Iterable[Row]) -> Iterable[Row]:
    """Refuse what would be written where another product is."""
    rows = list(rows)
    taken: dict[str, str] = {}
    # What is there already stays.
    for state in ("present", "planned"):
        for row in rows:
            if row.state == state and row.out is not None:
                taken.setdefault(_claim(row.out), row.path)
    for row in rows:
        if row.state in ("planned", "present") and row.out is not None:
            other = taken[_claim(row.out)]
            if other != row.path:
                error = InputError(
                    f"would become files of the same names as {other}", file=row.path, key="--out", value=row.out,
                    remedy="restore it into another archive, or rename one",
                )  # fmt: skip
                # What it would be is not known again: the other one may be gone the next time.
                row = replace(row, state="refused", out=None, stamp=(), error=error.as_json(), line=error.one_line())
        yield row


def _claim(out: str) -> str:
    """What no other output's name may begin with: side files, such as the quality, have it in theirs."""
    place = Path(out)
    stem, restored, _ = place.name.rpartition(RESTORED)
    return str(place.with_name(stem + restored if stem else place.name))


def _product(row: Row, out: Path, order: Order, cuts: tuple[tuple[int, int], ...]) -> Product:
    assert row.out is not None and row.key is not None, "it is planned"
    task = Task(row.path, str(out / row.out), row.key, order, anew=row.changed == WRONG)
    return Product(task, prod((row.shape or (0, 0, 0))[1:]), row.peak or 0, cuts)


@dataclass(frozen=True)
class Room:
    """How many workers, with how many bytes each."""

    workers: int
    memory: int


def room_for(peaks: Sequence[int], workers: int | None, memory: int | None, *, alone: bool = False) -> Room:
    """What a cluster of this computer's own is to be.

    Args:
        peaks: bytes of every product.
        workers, memory: that were asked for; None for as many as there is room for, and what the largest product needs.
        alone: the network runs on a GPU, which workers would share.

    Raises:
        MachineError: it has not the memory.
        InputError: no product fits into the memory that was asked for.
    """
    if memory is not None and (least := min(peaks)) > FITS * memory:
        raise InputError(
            f"is too little for every product: the smallest takes {least / 2**20:.0f} MiB of a worker's memory, of "
            f"which it may take {FITS:.0%}",
            key="--memory", value=f"{memory / 2**20:.0f} MiB",
            remedy=f"say --memory {MARGIN * max(peaks) / 2**30:.1f}GiB, or leave it out",
        )  # fmt: skip
    there = available_memory()
    needed = [max(LEAST, int(MARGIN * peak)) for peak in peaks]
    limit = memory or max((one for one in needed if one <= there), default=LEAST)
    most = max(1, min(1 if alone else available_cores(), len(peaks), there // limit))
    count = workers or most
    if count * limit > there:
        raise MachineError(
            f"{count} worker{'s' * (count != 1)} of {limit / 2**30:.2f} GiB take more memory than there is",
            key="--workers" if workers else "--memory",
            value=f"{there / 2**30:.2f} GiB are free",
            remedy=f"say --workers {max(1, there // limit)}" if there >= limit else "free memory, or say less --memory",
        )
    return Room(count, limit)


def fitting(products: Iterable[Product], memory: int, whose: str) -> tuple[list[Product], list[tuple[str, InputError]]]:
    """Products that workers of so many bytes can restore, and (path, error) of others."""
    fit, too_large = [], []
    for one in products:
        if one.peak <= FITS * memory:
            fit.append(one)
            continue
        error = InputError(
            f"restoring it takes {one.peak / 2**20:.0f} MiB of memory, a worker {whose} may take "
            f"{FITS * memory / 2**20:.0f}",
            file=one.task.path,
            key="memory",
            remedy=f"say --memory {MARGIN * one.peak / 2**30:.1f}GiB, or build the bundle for frames of fewer lines",
        )
        too_large.append((one.task.path, error))
    return fit, too_large


def end_of(error: DeployError) -> dict[str, object]:
    """Columns of a row that ended with an error before anything was tried."""
    state: State = "refused" if isinstance(error, InputError) else "failed"
    return {"state": state, "error": error.as_json(), "line": error.one_line()}
