"""What became of every product of an archive: one row each, in SQLite, written by the driver alone.

Losing it costs a scan: each output tells the key of what it was made from.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from runtime.errors import InputError

from .. import console

State = Literal["planned", "running", "done", "present", "refused", "failed", "quarantined"]
ENDS: tuple[State, ...] = ("done", "present", "refused", "failed", "quarantined")
LEDGER = "ledger.sqlite"
VERSION = 2
SCHEMA = """
create table if not exists products (
    path text primary key, state text not null, current integer not null,
    asked text, stamp text, key text, out text, format text, shape text, bytes integer, peak integer,
    attempts integer not null default 0, deaths integer not null default 0, worker text, seconds real, ended real,
    size integer, changed integer, result text, error text, line text, notes text
) without rowid
"""
WRONG = -1
NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "lustre", "beegfs", "ceph"}
"""Whose memory SQLite's write-ahead log cannot share."""


@dataclass(frozen=True)
class Row:
    """A product, as the ledger has it.

    Attributes:
        path: of the product. state: `State`. current: it belongs to the last run.
        asked, stamp: what was asked of it, as a hash, and [path, size, time] of each of its files: where both are the
            same again, so is all that was planned.
        key: of its restoration, which is in the output as well. out: path of that, within the archive.
        format, shape, bytes, peak: as they were planned; None where it could not be read.
        attempts: times that it was handed out and something came back. deaths: processes that ended under it.
        worker, seconds: who restored it, and how long that took. ended: when, Unix time.
        size, changed: bytes and time (ns) of the output's first file, by which it is known again without being opened.
            `WRONG` once `verify` found that it is not what was written: it is restored again.
        result: what was told of the restoration.
        notes: where the STAC item that names it says something else than its file.
        error, line: what went wrong, as `DeployError.as_json`, and in one line.
    """

    path: str
    state: State = "planned"
    current: bool = True
    asked: str | None = None
    stamp: tuple[tuple[str, int, int], ...] = ()
    key: str | None = None
    out: str | None = None
    format: str | None = None
    shape: tuple[int, ...] | None = None
    bytes: int | None = None
    peak: int | None = None
    attempts: int = 0
    deaths: int = 0
    worker: str | None = None
    seconds: float | None = None
    ended: float | None = None
    size: int | None = None
    changed: int | None = None
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    line: str | None = None
    notes: tuple[str, ...] = ()


COLUMNS = tuple(Row.__dataclass_fields__)
JSON = ("stamp", "shape", "result", "error", "notes")


class Ledger:
    """The ledger of the archive that `folder` belongs to; made where it is not there. A context manager.

    Attributes:
        lost: one was there and could not be read; it was moved aside.

    Raises:
        InputError: it is of another version, or the system refused.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self.lost = folder / LEDGER, False
        self._unwritten: dict[str, dict[str, Any]] = {}
        try:
            try:
                self._base = self._opened()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._move_aside()
                self._base = self._opened()
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"cannot be used: {error}", file=self.file, remedy="check the folder, its permissions and free space"
            ) from error

    def _opened(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.file, isolation_level=None, timeout=30)
        try:
            base.execute(f"pragma journal_mode={'truncate' if on_network_disk(self.file) else 'wal'}")
            # What a power cut takes from the ledger, outputs tell.
            base.execute("pragma synchronous=normal")
            (version,) = base.execute("pragma user_version").fetchone()
            if version not in (0, VERSION):
                raise InputError(
                    "is a ledger of another version of this program", file=self.file, value=version,
                    remedy="go on with that one, or move the file away: outputs tell what is done",
                )  # fmt: skip
            base.execute(SCHEMA)
            base.execute(f"pragma user_version={VERSION}")
            base.execute("select count(*) from products where state = ''").fetchone()
        except BaseException:
            base.close()
            raise
        return base

    def _move_aside(self) -> None:
        self.lost = True
        aside = self.file.with_name(f"{LEDGER}.damaged-{int(time.time())}")
        self.file.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.file.with_name(LEDGER + suffix).unlink(missing_ok=True)
        console.warn(f"{self.file} is damaged and was moved to {aside.name}; what is done is read from the outputs")

    def rows(self, *, current: bool = False) -> list[Row]:
        """All of them, or those of the last run, by path. Raises InputError."""
        where = "where current" if current else ""
        try:
            found = self._base.execute(f"select {', '.join(COLUMNS)} from products {where} order by path").fetchall()
        except sqlite3.Error as error:
            raise InputError(f"cannot be read: {error}", file=self.file, remedy="move it away and resume") from error
        return [_row(values) for values in found]

    def begin(self, rows: Iterable[Row]) -> None:
        """Take these as the run that is now: what else is known stays, and is no longer current."""
        marks = ", ".join("?" * len(COLUMNS))
        with self._transaction():
            self._base.execute("update products set current = 0")
            self._base.executemany(
                f"insert or replace into products ({', '.join(COLUMNS)}) values ({marks})", map(_values, rows)
            )

    def mark(self, path: str, **columns: Any) -> None:
        """Change columns of one row. What the disk does not take is written with the next that it takes."""
        self._unwritten.setdefault(path, {}).update(columns)
        with suppress(sqlite3.Error):
            self._write()

    def _write(self) -> None:
        with self._transaction():
            for path, columns in self._unwritten.items():
                values = {name: _value(name, value) for name, value in columns.items()}
                setting = ", ".join(f"{name} = :{name}" for name in values)
                self._base.execute(
                    f"update products set {setting} where path = :the_path", {**values, "the_path": path}
                )
        self._unwritten.clear()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._base)

    def close(self) -> None:
        """Write what is left and let go of it."""
        try:
            if self._unwritten:
                self._write()
        except sqlite3.Error as error:
            console.warn(f"{self.file} cannot be written: {error}; what is done is read from the outputs the next time")
        finally:
            self._base.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Transaction:
    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base

    def __enter__(self) -> None:
        self._base.execute("begin immediate")

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self._base.execute("commit")
        elif self._base.in_transaction:
            self._base.execute("rollback")


def _value(name: str, value: Any) -> Any:
    return json.dumps(value) if name in JSON and value is not None else value


def _values(row: Row) -> tuple[Any, ...]:
    return tuple(_value(name, getattr(row, name)) for name in COLUMNS)


def _row(values: tuple[Any, ...]) -> Row:
    told = dict(zip(COLUMNS, values, strict=True))
    for name in JSON:
        told[name] = None if told[name] is None else json.loads(told[name])
    told["current"] = bool(told["current"])
    told["shape"] = told["shape"] and tuple(told["shape"])
    told["notes"] = tuple(told["notes"] or ())
    told["stamp"] = tuple(map(tuple, told["stamp"] or ()))
    return Row(**told)


def on_network_disk(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a path lies on a disk that other computers share; False where the system does not tell."""
    place, found = path.absolute(), ("", "")
    with suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            fields = line.split(" ")
            if len(fields) > 2 and len(fields[1]) >= len(found[0]) and place.is_relative_to(fields[1]):
                found = (fields[1], fields[2])
    return found[1] in NETWORK_DISKS


def doubts_of(row: Row) -> Iterable[str]:
    """What is odd or doubtful of a restored product, one clause each."""
    yield from row.notes
    result = row.result or {}
    for name in ("suspect", "passed", "doubts"):
        yield from map(str, result.get(name) or ())
    if saturated := result.get("saturated"):
        yield f"{saturated} values do not fit the type and were set to its limit"
    if moved := result.get("moved"):
        yield f"{moved} restored values equalled a mark of missing pixels and were set to the number next to it"


def totals(states: Iterable[State]) -> dict[str, int]:
    """{"planned", "done", "present", "refused", "failed", "quarantined", "left"}: the first is the others' sum."""
    counted = Counter(states)
    ends = {str(state): counted[state] for state in ENDS}
    return {"planned": counted.total(), **ends, "left": counted.total() - sum(ends.values())}
