"""What an archive costs, and what kills do to it: `python -m benchmarks.archive`.

A bundle of `damp-nano` for frames of 64x64 is built, or `--bundle DIR` is taken, and so many cubes of five formats,
of which three in a hundred are cut short, are restored by two workers of one thread. Bars: less than 50 ms of each
product are not spent on its restoration; both workers are busy for 90 % of the time from the first product to the
last; a finished archive is looked through in less than 1 s, or 1 s for each 1000 products; after kills of workers, of
drivers and of schedulers every output is the very bytes that a run without them gives, and none is half there. Exit
code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.faults.__main__ import built
from benchmarks.timing import show
from runtime.bundle_files import read_manifest
from runtime.files import write_cube

WORKERS = 2
KINDS = (".npy", ".npz", ".bil", ".tif", ".nc")
HOSTILE = 33
"""Of so many cubes one is cut short."""
OVERHEAD_S, BUSY, RERUN_S = 0.05, 0.9, 1.0
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Setting:
    """Where everything lies, and the SHA-256 of every output of a run without kills."""

    folder: Path
    bundle: Path
    inputs: Path
    digests: dict[str, str]


@dataclass(frozen=True)
class Row:
    """A figure and its bar."""

    what: str
    figure: str
    bar: str
    reached: bool


def main() -> int:
    """Measure and print; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--products", type=int, default=100)
    parser.add_argument("--side", type=int, default=160, help="lines and samples of each")
    parser.add_argument("--workers", type=int, default=20, help="workers that are killed")
    parser.add_argument("--drivers", type=int, default=10, help="drivers that are killed")
    parser.add_argument("--schedulers", type=int, default=2, help="schedulers that are killed")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = (asked.bundle or built(folder / "bundle")).resolve()
        inputs = cubes(folder / "in", bundle, asked.products, asked.side)
        calm = folder / "calm"
        told = run(bundle, inputs, calm)
        setting = Setting(folder, bundle, inputs, digests(calm))
        rows = [*costs(setting, calm, told, asked.products)]
        chance = random.Random(asked.seed)
        for what, kills, kill in (
            ("workers", asked.workers, killed_workers),
            ("drivers", asked.drivers, killed_drivers),
            ("schedulers", asked.schedulers, killed_schedulers),
        ):
            if kills:
                rows.append(after(what, setting, kills, kill, chance))
    show(table(rows))
    return int(not all(row.reached for row in rows))


def cubes(folder: Path, bundle: Path, count: int, side: int) -> Path:
    """Cubes that a bundle's network takes, each different, of five formats; some are cut short."""
    folder.mkdir()
    bands, rng = read_manifest(bundle).signature.measured.bands, np.random.default_rng(0)
    line, sample = np.mgrid[0:side, 0:side] / side
    for number in range(count):
        scene = 0.5 + 0.3 * np.sin(3 * line + number)[..., None] * np.cos(2 * sample)[..., None]
        noisy = scene + 0.02 * rng.standard_normal((side, side, bands))
        cube = (20000 * np.clip(noisy, 0, 1)).astype(np.uint16).transpose(2, 0, 1)
        path = folder / f"cube-{number:04}{KINDS[number % len(KINDS)]}"
        write(path, np.ascontiguousarray(cube))
        if number % HOSTILE == HOSTILE - 1:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
    return folder


def write(path: Path, cube: NDArray[np.uint16]) -> None:
    """A cube [bands, lines, samples] as others write it."""
    if path.suffix == ".npy":
        np.save(path, cube.transpose(1, 2, 0))
    elif path.suffix == ".npz":
        np.savez_compressed(path, cube=cube.transpose(1, 2, 0))
    elif path.suffix == ".bil":
        write_cube(path, cube)
    elif path.suffix == ".tif":
        size = {"count": len(cube), "height": cube.shape[1], "width": cube.shape[2]}
        with rasterio.open(path, "w", driver="GTiff", dtype="uint16", compress="deflate", **size) as image:
            image.write(cube)
    else:
        with h5py.File(path, "w") as file:
            made = file.create_dataset("cube", data=cube, chunks=(len(cube), 8, cube.shape[2]), compression="gzip")
            for axis, name in enumerate(("bands", "y", "x")):
                scale = file.create_dataset(name, data=np.arange(cube.shape[axis]))
                scale.make_scale(name)
                made.dims[axis].attach_scale(scale)


def command(setting_bundle: Path, inputs: Path, out: Path, *more: str) -> list[str]:
    own = () if "--scheduler" in more else ("--workers", str(WORKERS))
    given = ("run", setting_bundle, inputs, "--out", out, "--scale", "20000", *own, *more, "--json")
    return [sys.executable, "-m", "deploy", "archive", *map(str, given)]


def run(bundle: Path, inputs: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run to the end; what `--json` printed."""
    done = subprocess.run(command(bundle, inputs, out, *more), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def digests(out: Path) -> dict[str, str]:
    """{path within: SHA-256} of all that is not the ledger's."""
    files = (path for path in out.rglob("*") if path.is_file() and ".damp_deploy" not in path.parts)
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def costs(setting: Setting, calm: Path, told: dict[str, Any], given: int) -> Iterator[Row]:
    """Of a run without kills, and of the same again."""
    events = [json.loads(line) for line in (calm / ".damp_deploy" / "events.jsonl").read_text().splitlines()]
    products = [event for event in events if event["event"] == "product" and event.get("state") == "done"]
    begun = next(event["time"] for event in events if event["event"] == "workers")
    wall, work = products[-1]["time"] - begun, sum(event["seconds"] for event in products)
    count = len(products)
    overhead = (WORKERS * wall - work) / count
    yield Row("products", f"{count}, {work / count:.2f} s each", "", told["products"]["done"] == count)
    refused = told["products"]["refused"]
    yield Row("cut short, refused", f"{refused}", f"{given // HOSTILE}", refused == given // HOSTILE == given - count)
    yield Row("from the start to the first worker", f"{begun - events[0]['time']:.1f} s", "", True)
    yield Row("of each product not its restoration", f"{1e3 * overhead:.0f} ms", "50 ms", overhead < OVERHEAD_S)
    yield Row("workers busy", f"{work / wall / WORKERS:.1%}", "90 %", work / wall / WORKERS >= BUSY)
    again = run(setting.bundle, setting.inputs, calm)
    assert again["products"]["present"] == count, "nothing is restored again"
    bar = RERUN_S * max(1.0, count / 1000)
    yield Row(
        f"looking through {count} that are done", f"{again['seconds']:.2f} s", f"{bar:g} s", again["seconds"] < bar
    )


Kill = Callable[[Setting, Path, int, random.Random], int]


def after(what: str, setting: Setting, kills: int, kill: Kill, chance: random.Random) -> Row:
    """What is there after so many kills, and a run to the end."""
    out = setting.folder / what
    done = kill(setting, out, kills, chance)
    run(setting.bundle, setting.inputs, out)
    found = digests(out)
    same = sum(found.get(name) == digest for name, digest in setting.digests.items())
    odd = len(found.keys() - setting.digests.keys())
    figure = f"{same} of {len(setting.digests)} files the same, {odd} left over"
    return Row(f"{done} {what} killed", figure, "all, 0", same == len(setting.digests) and not odd)


def killed_workers(setting: Setting, out: Path, kills: int, chance: random.Random) -> int:
    done = 0
    while done < kills:
        with started(command(setting.bundle, setting.inputs, out)) as driver:
            while driver.poll() is None and done < kills:
                time.sleep(chance.uniform(0.5, 2))
                if at_work(out) and (workers := children(driver.pid)):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    done += 1
            driver.wait(PATIENCE_S)
        if done < kills:
            forget(out, chance)
    return done


def killed_drivers(setting: Setting, out: Path, kills: int, chance: random.Random) -> int:
    for _ in range(kills):
        with started(command(setting.bundle, setting.inputs, out)) as driver:
            time.sleep(chance.uniform(3, 14))
        if driver.returncode == 0:
            forget(out, chance)
    return kills


def killed_schedulers(setting: Setting, out: Path, kills: int, chance: random.Random) -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{found.getsockname()[1]}"
    dask = [sys.executable, "-m", "distributed.cli."]
    scheduler = [*dask[:2], dask[2] + "dask_scheduler", "--host", address, "--no-dashboard"]
    workers = [*dask[:2], dask[2] + "dask_worker", address, "--nworkers", str(WORKERS), "--nthreads", "1",
               "--no-dashboard", "--death-timeout", "10"]  # fmt: skip
    done = 0
    with ExitStack() as undo:
        driver = None
        while done < kills:
            with started(scheduler), started(workers):
                if driver is None or driver.poll() is not None:
                    if driver is not None:
                        forget(out, chance)
                    told = command(setting.bundle, setting.inputs, out, "--scheduler", address)
                    driver = undo.enter_context(started(told))
                time.sleep(chance.uniform(10, 20))
            done += 1
    return done


def at_work(out: Path) -> bool:
    """Whether a run's workers are there: what was spawned before looked at products."""
    events = out / ".damp_deploy" / "events.jsonl"
    said = events.read_text().splitlines() if events.is_file() else []
    return any('"event": "workers"' in line for line in said[-1 - _since_start(said) :])


def _since_start(said: list[str]) -> int:
    return next((n for n, line in enumerate(reversed(said)) if '"event": "started"' in line), 0)


def forget(out: Path, chance: random.Random) -> None:
    """Remove half of the outputs, so that there is something to do again."""
    for stem in sorted({path.name.partition("_restored")[0] for path in out.glob("*_restored.*")}):
        if chance.random() < 0.5:
            for path in out.glob(f"{stem}_restored*"):
                path.unlink()


@contextmanager
def started(line: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed at the end; its own children see that, and end."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def children(pid: int) -> list[int]:
    """Processes that another one spawned to work."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in line:
            found.append(int(process.name))
    return found


def table(rows: list[Row]) -> Table:
    """All of it."""
    made = Table(title=f"archives, {WORKERS} workers of one thread")
    made.add_column("what")
    for heading in ("figure", "bar", ""):
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(row.what, row.figure, row.bar, "" if not row.bar else "reached" if row.reached else "missed")
    return made


if __name__ == "__main__":
    sys.exit(main())
