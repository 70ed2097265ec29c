"""Products that say what becomes of them, so that drivers are tried with real workers and no network.

A product is a file `NAME.job` of one line: `write SECONDS`, `refuse`, `shake TIMES` (the disk fails so often), `die`,
`die TIMES` or `bug`. Its restoration is `NAME.npz`, of text. Each beginning is noted in `NAME.begun`, a line each.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.archive.order import Order
from deploy.archive.work import Look, Record, Task, of_error, of_output, stamp_of
from runtime.durable import replacing
from runtime.errors import CubeFileError
from runtime.products.stac import Asked

if TYPE_CHECKING:
    from deploy.archive.run import Craft


@dataclass(frozen=True)
class Found:
    products: tuple[Path, ...]
    refused: tuple[tuple[Path, CubeFileError], ...] = ()
    asked: Mapping[Path, Asked] = field(default_factory=dict)


def order(*inputs: Path, replace: bool = False) -> Order:
    return Order(bundle="/none", seal="0" * 64, inputs=tuple(map(str, inputs)), replace=replace)


def search(order: Order, out: Path) -> Found:
    files = [path for given in map(Path, order.inputs) for path in sorted(given.rglob("*.job"))]
    refused = [path for given in map(Path, order.inputs) for path in sorted(given.rglob("*.odd"))]
    return Found(tuple(files), tuple((path, CubeFileError("is odd", file=path, remedy="leave it")) for path in refused))


def look(look: Look) -> Record:
    path = Path(look.path)
    told = path.read_text().split()
    if told[0] == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    out = Path(look.folder, path.stem + ".npz")
    record: Record = {
        "state": "planned", "stamp": stamp_of((path,)), "format": "job", "shape": (1, 10, 10), "bytes": 100,
        "peak": int(told[1]) if told[0] == "large" else 1 << 20, "key": path.name.encode().hex(),
        "out": str(out),
    }  # fmt: skip
    return {**record, "state": "present", **of_output(out)} if out.exists() else record


def job(task: Task) -> Record:
    path, out = Path(task.path), Path(task.out)
    begun = path.with_suffix(".begun")
    with begun.open("a") as file:
        file.write(f"{os.getpid()}\n")
    times = len(begun.read_text().splitlines())
    what, *rest = path.read_text().split()
    number = float(rest[0]) if rest else float("inf")
    try:
        if what == "refuse":
            raise CubeFileError("is no cube", file=path, key="cube", remedy="give another")
        if what == "shake" and times <= number:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        if what == "bug":
            raise ZeroDivisionError
        if what == "die" and times <= number:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "write":
            time.sleep(number)
        with replacing(out) as part:
            part.write_text(f"restored {path.name}\n")
    except Exception as error:
        return of_error(error, path)
    return {
        "state": "done",
        "worker": str(os.getpid()),
        "seconds": 0.0,
        **of_output(out),
        "result": {"files": [out.name]},
    }


def craft() -> Craft:
    from deploy.archive.run import Craft

    return Craft(search, look, job, None)


def jobs(folder: Path, **what: str) -> Path:
    """A folder with products, each by its name what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in what.items():
        (folder / f"{name}.job").write_text(text)
    return folder


def begun(folder: Path) -> dict[str, int]:
    """{name: how often it was begun} of all products."""
    return {path.stem: len(path.read_text().splitlines()) for path in folder.rglob("*.begun")}
