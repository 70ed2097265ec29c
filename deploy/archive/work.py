"""What is done with one product, and the small record that comes of it: in a worker, and before that, to plan it."""

from __future__ import annotations

import errno
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from runtime.bundle import Bundle
from runtime.errors import DeployError, InputError, MachineError
from runtime.manifest import Manifest
from runtime.meaning import Asked
from runtime.products import open_cube
from runtime.products.contract import Reading
from runtime.products.naming import restored_name
from runtime.restore_product import (
    Ways,
    join_parts,
    key_of,
    planned,
    present,
    refuse_unfit,
    restore_part,
    restore_product,
)

from ..answers import missing_package
from .order import Order

Record = dict[str, Any]
"""What came of something, as plain values: `state` (of `ledger.State`), and what else there is to tell."""
Progress = Callable[[int, int], None]
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "ENOSPC", "EDQUOT", "EBUSY", "EINTR", "ENETDOWN", "ENETUNREACH",
        "EHOSTDOWN", "EHOSTUNREACH", "ECONNRESET", "ENOTCONN", "EREMOTEIO", "ENFILE", "EMFILE", "ENOLCK",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Of the system's errors those that another try may not meet."""
LASTING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.ENODEV, errno.ENXIO})
"""Those that are no fault of the file that is read, and stay."""
FRAMES_OF_PART = 16
"""Rows of frames in a part of a giant cube: what two parts both restore is 1 to 2 % of it."""


@dataclass(frozen=True)
class Task:
    """What a worker is given.

    Attributes:
        path, out: of the product, and of its restoration.
        key: of the restoration. order: how.
        kind: the whole product, a part of it, or parts to be joined.
        lines: of a part: the first, and the one after the last.
        parts: the file of a part, or of all of them in their order.
    """

    path: str
    out: str
    key: str
    order: Order
    kind: Literal["whole", "part", "join"] = "whole"
    lines: tuple[int, int] = (0, 0)
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """What a planner is given: a product, the bundle's manifest, how."""

    path: str
    manifest: Manifest
    order: Order


def ways_of(order: Order) -> Ways:
    """How the runtime is told to restore a product."""
    return Ways(
        reading=Reading(order.layout, order.key, order.missing_chunks),
        asked=Asked(order.scale, order.marks, order.constant_bands),
        kind=order.kind,
        metrics=order.metrics,
        ortho=order.ortho,
        clip=order.clip,
        prompt=order.prompt,
        engine=order.engine,
    )


def looked_at(look: Look) -> Record:
    """What is known of a product without its pixels; `state` is planned, refused or failed."""
    path, ways = Path(look.path), ways_of(look.order)
    try:
        with open_cube(path, ways.reading) as reader:
            described = reader.description
        refuse_unfit(look.manifest, described)
        return {
            "state": "planned",
            "key": key_of(described, look.order.seal, ways),
            "name": restored_name(described, look.order.kind),
            "stamp": stamp_of(described.files),
            "format": described.format,
            "shape": described.shape,
            "bytes": prod(described.shape) * described.dtype.itemsize,
            "peak": planned(look.manifest, described, ways),
        }
    except Exception as error:
        return of_error(error, path)


def stamp_of(files: tuple[Path, ...]) -> tuple[tuple[str, int, int], ...]:
    """[path, size, time] of files. Raises OSError."""
    found = [(file, file.stat()) for file in files]
    return tuple((str(file), status.st_size, status.st_mtime_ns) for file, status in found)


def do(task: Task, bundle: Bundle, progress: Progress | None = None) -> Record:
    """Do it; whatever happens, a record comes of it.

    Args:
        bundle: whose seal is the order's.
        progress: called with (lines done, lines in all).
    """
    began = time.monotonic()
    try:
        told = _done(task, bundle, progress)
    except Exception as error:
        told = of_error(error, Path(task.path))
    return {"seconds": round(time.monotonic() - began, 3), **told}


def _done(task: Task, bundle: Bundle, progress: Progress | None) -> Record:
    path, out, ways = Path(task.path), Path(task.out), ways_of(task.order)
    if task.kind == "part":
        restore_part(bundle, path, Path(task.parts[0]), ways, *task.lines)
        return {"state": "done"}
    # Its worker was taken for dead, or the answer was lost.
    if present(out, task.key):
        return {"state": "done", **of_output(out)}
    if task.kind == "join":
        made = join_parts(bundle, path, [Path(part) for part in task.parts], out, ways)
    else:
        made = restore_product(bundle, path, out, ways, progress=progress)
    result = asdict(made)
    # Paths are within the archive, which may be moved.
    files = [str(Path(file).relative_to(out.parent)) for file in result.pop("files")]
    return {"state": "done", **of_output(out), "result": {"files": files, **result}}


def of_output(out: Path) -> Record:
    """By what an output is known again without being opened. Raises OSError."""
    status = out.stat()
    return {"size": status.st_size, "changed": status.st_mtime_ns}


def of_error(error: Exception, path: Path) -> Record:
    """What went wrong with a product: refused where it is the product's own fault, else failed; `retry` if it may pass."""
    found, system = _known(error, path), _system_error(error)
    refused, retry = isinstance(found, InputError), False
    if system in PASSING:
        refused, retry = False, True
    elif system in LASTING or not path.exists():
        refused = False
    elif isinstance(found, MachineError):
        # What other workers take now they give back.
        retry = found.key == "memory"
    told: Record = {"state": "refused" if refused else "failed", "retry": retry}
    told |= {"error": found.as_json(), "line": found.one_line()}
    if found.exit_code == DeployError.exit_code:
        told["traceback"] = "".join(traceback.format_exception(error))
    return told


def _known(error: Exception, path: Path) -> DeployError:
    if isinstance(error, DeployError):
        error.file = error.file or str(path)
        return error
    if isinstance(error, MemoryError):
        remedy = "give workers more with --memory, or take fewer of them"
        return MachineError("takes more memory than was declared", file=path, key="memory", remedy=remedy)
    if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)):
        return missing
    if isinstance(error, OSError):
        return MachineError(
            f"cannot be read or written: {error.strerror or error}", file=error.filename or path, remedy="check the disk"
        )
    remedy = "please report it with events.jsonl, where its traceback is"
    return DeployError(f"a bug of ours: {type(error).__name__}", file=path, remedy=remedy)


def _system_error(error: BaseException) -> int | None:
    """The number of the system's error behind another, also where HDF5 has it in its text alone."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            if seen.errno is not None:
                return seen.errno
            if told := re.search(r"errno = (\d{1,4})", str(seen)):
                return int(told[1])
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def parts_of(lines: int, manifest: Manifest) -> list[tuple[int, int]]:
    """Where a cube of so many lines is split; one part where that is not worth it."""
    frame = manifest.signature.measured.size[0]
    count = max(1, lines // (FRAMES_OF_PART * max(1, frame - manifest.overlap)))
    edges = [lines * n // count for n in range(count + 1)]
    return list(zip(edges, edges[1:], strict=False))


def part_files(task_out: str, key: str, count: int) -> tuple[str, ...]:
    """Where the parts of a product lie: beside it, in a folder of its key."""
    folder = Path(task_out).with_name(f".{Path(task_out).name}.{key[:16]}.parts")
    return tuple(str(folder / f"{number:06}") for number in range(count))


def line_of(error: Mapping[str, Any]) -> str:
    """An error of `DeployError.as_json` as one line."""
    told = DeployError(
        error["message"], file=error["file"], line=error["line"], key=error["key"], remedy=error["remedy"] or ""
    )
    return told.one_line()
