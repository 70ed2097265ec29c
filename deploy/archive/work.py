"""What is done with one product, and the small record that comes of it: in a worker, and before that, to plan it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.bundle import Bundle
from runtime.bundle_files import read_manifest
from runtime.by_lines.memory import planned
from runtime.by_lines.parts import join_parts, restore_part
from runtime.by_lines.product import judged, restore_product
from runtime.by_lines.provenance import digest_of, input_digest, key_of
from runtime.by_lines.ways import Ways, refuse_unfit
from runtime.durable import write_bytes
from runtime.errors import DeployError, InputError, MachineError
from runtime.manifest import Manifest
from runtime.meaning import Asked
from runtime.products import open_cube
from runtime.products.contract import Description, Reading
from runtime.products.naming import restored_name
from runtime.products.provenance import lacking, provenance_of
from runtime.products.stac import Asked as StacAsked
from runtime.products.stac import differences

if TYPE_CHECKING:
    from runtime.products.searching import Found

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
"""Rows of frames in a part of a giant cube, at least: what two parts both restore is 1 to 2 % of it."""
MOST_PARTS = 64


@dataclass(frozen=True)
class Task:
    """What a worker is given.

    Attributes:
        path, out: of the product, and of its restoration.
        key: of the restoration. order: how.
        kind: the whole product; of a split one the look at every pixel, a part, or all parts to be joined.
        lines: of a part: the first, and the one after the last.
        parts: the file of a part; to be joined, all of them in their order, each with its SHA-256.
        found: of a split one, what the look found (`runtime.by_lines.survey.Survey`).
        anew: what is at `out` is known to be wrong.
    """

    path: str
    out: str
    key: str
    order: Order
    kind: Literal["whole", "survey", "part", "join"] = "whole"
    lines: tuple[int, int] = (0, 0)
    parts: tuple[tuple[str, str], ...] = ()
    found: Any = field(default=None, compare=False)
    anew: bool = False


@dataclass(frozen=True)
class Look:
    """What a planner is given: a product, the folder of its restoration, how.

    Attributes:
        item: what a STAC item says of it. changed: its files are not those that the ledger knows, or were touched.
    """

    path: str
    folder: str
    order: Order
    item: StacAsked | None = None
    changed: bool = False


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


def reading_back(order: Order) -> Reading:
    """How outputs are opened: those like their inputs need what was said of these; others say all themselves."""
    return ways_of(order).reading if order.kind == "like" else Reading()


def looked_at(look: Look) -> Record:
    """What is known of a product without its pixels; `state` is planned, present, refused or failed."""
    path, ways = Path(look.path), ways_of(look.order)
    told: Record = {}
    try:
        told["stamp"] = stamp_of((path,))
        manifest = _manifest(look.order.bundle)
        with open_cube(path, ways.reading) as reader:
            described = reader.description
            refuse_unfit(manifest, described)
            peak = planned(manifest, reader, ways)
        if look.item is not None:
            told["notes"] = (*look.item.notes, *differences(look.item.item, described))
        told |= {"stamp": stamp_of(described.files), "format": described.format, "shape": described.shape}
        out = Path(look.folder, restored_name(described, look.order.kind))
        told |= {"key": key_of(described, look.order.seal, ways), "out": str(out)}
        told |= {"bytes": prod(described.shape) * described.dtype.itemsize}
        told |= {"peak": peak, "state": "planned"}
        told["cuts"] = parts_of(described.shape[1], manifest) if look.order.split else []
        if os.path.lexists(out):
            # Whoever lost the ledger, too, sees that an input is newer.
            changed = look.changed or max(time_ for _, _, time_ in told["stamp"]) > of_output(out)["changed"]
            made = made_with(out, told["key"], described if changed else None)
            if made is not None and not lacking(out):
                return {**told, **made, "state": "present"}
            if made is None and not look.order.replace:
                # Of the output's making, not of the product's: it is looked at again the next time.
                del told["stamp"]
                remedy = "give another --out, or --replace to put this one in its place"
                raise InputError("holds another restoration, or none", file=out, key="--out", remedy=remedy)
        return told
    except Exception as error:
        return {**told, **of_error(error, path)}


@lru_cache(1)
def _manifest(bundle: str) -> Manifest:
    return read_manifest(Path(bundle))


def made_with(out: Path, key: str, source: Description | None = None) -> Record | None:
    """What an output tells of its restoration, where it is there and was made with that key; else None.

    Args:
        source: whose bytes must be those that it was made from; they are all read.

    Raises:
        CubeFileError: they cannot be read.
    """
    told = provenance_of(out)
    if told is None or told.get("key") != key:
        return None
    if source is not None:
        made_from = told.get("input")
        if not isinstance(made_from, dict) or made_from.get("sha256") != input_digest(source):
            return None
    result = {
        name: told[name] for name in ("frames", "experts", "missing", "moved", "saturated", "suspect") if name in told
    }
    return {**of_output(out), "result": result}


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
        told = of_error(error, Path(task.path), Path(task.out))
    return {"seconds": round(time.monotonic() - began, 3), **told}


def _done(task: Task, bundle: Bundle, progress: Progress | None) -> Record:
    path, out, ways = Path(task.path), Path(task.out), ways_of(task.order)
    if task.kind == "part":
        return {"state": "done", "sha256": _part(task, bundle, ways)}
    # Its worker was taken for dead, or the answer was lost.
    if not task.anew and os.path.lexists(out) and not lacking(out):
        with open_cube(path, ways.reading) as reader:
            there = made_with(out, task.key, reader.description)
        if there is not None:
            _remove_parts(task)
            return {"state": "done", **there}
    if task.kind == "survey":
        with open_cube(path, ways.reading) as reader:
            return {"state": "done", "found": judged(bundle.manifest, reader, ways.asked, progress)}
    if task.kind == "join":
        parts = [(Path(part), sha256) for part, sha256 in task.parts]
        made = join_parts(bundle, path, parts, out, ways, task.found)
        _remove_parts(task)
    else:
        made = restore_product(bundle, path, out, ways, progress=progress)
    result = asdict(made)
    # Paths are within the archive, which may be moved.
    files = [os.path.relpath(file, out.parent) for file in result.pop("files")]
    return {"state": "done", **of_output(out), "result": {"files": files, **result}}


def _part(task: Task, bundle: Bundle, ways: Ways) -> str:
    """Restore a part, unless it is there from before; returns its SHA-256, which lies beside it with what it is of."""
    part = Path(task.parts[0][0])
    beside = part.with_suffix(".sha256")
    part.parent.mkdir(exist_ok=True)
    with open_cube(Path(task.path), ways.reading) as reader:
        stamp = json.dumps(stamp_of(reader.description.files))
    with suppress(OSError):
        known, _, source = beside.read_text("utf-8", "replace").partition(" ")
        if source == stamp and known == digest_of(part):
            return known
    made = restore_part(bundle, Path(task.path), part, ways, task.found, *task.lines)
    write_bytes(beside, f"{made} {stamp}".encode())
    return made


def _remove_parts(task: Task) -> None:
    for folder in {Path(part).parent for part, _ in task.parts}:
        shutil.rmtree(folder, ignore_errors=True)


def of_output(out: Path) -> Record:
    """By what an output is known again without being opened. Raises OSError."""
    status = out.stat()
    return {"size": status.st_size, "changed": status.st_mtime_ns}


def of_error(error: Exception, path: Path, out: Path | None = None) -> Record:
    """What went wrong: refused where it is the product's own fault, else failed; with `retry` where that may pass.

    Args:
        path: of the product. out: what was being written of it.
    """
    found, system = _known(error, path), _system_error(error)
    refused, retry = isinstance(found, InputError), False
    if system in PASSING:
        refused, retry = False, True
    elif system in LASTING or not path.exists():
        refused = False
    elif (
        out is not None
        and found.__cause__ is not None
        and found.file is not None
        and out in (place := Path(found.file), *place.parents)
    ):
        # GDAL refused to write it, and keeps the system's number to itself: a full disk as a rule.
        refused, retry = False, os.access(out.parent, os.W_OK)
    elif isinstance(found, MachineError):
        # What other workers take now they give back; a limit of our own stays.
        retry = found.key == "memory" and not isinstance(error, MemoryError)
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
            f"cannot be read or written: {error.strerror or error}",
            file=error.filename or path,
            remedy="check the disk",
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
    count = max(1, min(MOST_PARTS, lines // (FRAMES_OF_PART * max(1, frame - manifest.overlap))))
    return [(lines * n // count, lines * (n + 1) // count) for n in range(count)]


def part_files(out: str, key: str, count: int) -> tuple[str, ...]:
    """Where the parts of a product lie: beside it, in a folder of its key."""
    folder = Path(out).with_name(f".{Path(out).name}.{key[:16]}.parts")
    return tuple(str(folder / f"{number:06}.part") for number in range(count))


def search(order: Order, out: Path) -> Found:
    """The products that inputs hold, none of them in `out`, the archive's folder.

    Raises:
        CubeFileError: nothing can be found at all.
    """
    from runtime.products.searching import found_in

    return found_in([Path(path) for path in order.inputs], outside=order.outside, out=out)
