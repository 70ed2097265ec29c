"""Does `deploy stream` lose a line, or grow, in a long flight? `python -m benchmarks.endurance --minutes 30`.

A virtual spectrometer of 224 bands x 640 samples in Mono12 on loopback is asked for 330 lines per second, recorded into
a ring, and restored by `damp-tiny` as far as the cores allow that camera, record and restoration share. Then every line
in the ring is compared with the one that was sent. Bars: no line lost, none unequal, no growth of more than 2 % after
the first third, which has at least a minute. Exit code 1 when one is missed. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.table import Table

from runtime.record.index import read_index, stems, suffixed
from tests.contracts.spectrometer import ADDRESS, Spectrometer, spectrometer

from .timing import show

GROWTH_BAR = 0.02
WARM_UP = 60
"""Seconds in which everything is used for the first time."""
SERVED_LINES = 1000
FRAME = "128x128"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--spool-limit", default="2GiB")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--folder", type=Path, help="where the record goes; by default a temporary folder")
    parser.add_argument("--bands", type=int, default=224)
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--rate", type=float, default=330.0)
    asked = parser.parse_args()
    shape = (SERVED_LINES, asked.bands, asked.samples)
    cube = np.random.default_rng(0).integers(0, 4095, shape).astype(np.uint16)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        bundle = asked.bundle or built(folder / "bundle")
        try:
            with spectrometer(cube, folder=folder) as camera:
                result, memory = streamed(camera, bundle, folder, asked)
        except pytest.skip.Exception as why:
            print(f"left out: {why}")
            return 0
        compared = compare(folder / "record", cube)
    return judge(asked, result, memory, compared)


def built(out: Path) -> Path:
    """A bundle of damp-tiny for this computer."""
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    build(with_overrides(Config(), {"model.checkpoint": "damp-tiny", "input.frame": FRAME}), out)
    return out


def streamed(
    camera: Spectrometer, bundle: Path, folder: Path, asked: argparse.Namespace
) -> tuple[dict[str, Any], list[int]]:
    """What the stream told at its end, and its resident memory in bytes, second by second."""
    config = folder / "deploy.yaml"
    config.write_text(f"stream:\n  camera: {{pixel_format: Mono12, frame_rate: {asked.rate:g}}}\n")
    command = (
        sys.executable, "-m", "deploy", "stream", bundle.resolve(), "--source", f"genicam:{ADDRESS}",
        "--config", config, "--record", folder / "record", "--spool-limit", asked.spool_limit,
        "--restored", folder / "restored", "--duration", 60 * asked.minutes, "--json",
    )  # fmt: skip
    return watched(camera.popen(*command, stdout=subprocess.PIPE))


def watched(process: subprocess.Popen[str]) -> tuple[dict[str, Any], list[int]]:
    """What a stream with `--json` told at its end, and its resident memory in bytes, second by second."""
    memory = []
    with process:
        while process.poll() is None:
            memory.append(resident(process.pid))
            time.sleep(1.0)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    # Its last seconds are those of the shutdown.
    return result, [size for size in memory[:-5] if size]


def growth(memory: list[int]) -> tuple[list[int], float]:
    """The memory behind its first third, which has at least a minute, and by what share it grew there."""
    steady = memory[max(len(memory) // 3, WARM_UP) :]
    return steady, max(steady) / min(steady) - 1 if steady else 0.0


def resident(process: int) -> int:
    """Resident memory of a process in bytes, 0 where it has ended (proc(5))."""
    try:
        rows = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) << 10 for row in rows if row.startswith("VmRSS:")), 0)


def compare(record: Path, cube: NDArray[np.uint16]) -> dict[str, int]:
    """Lines in the ring, those that are not the ones served, and places where numbers are left out."""
    lines = unequal = gaps = 0
    start: int | None = None
    last: int | None = None
    for stem in stems(record, "lines"):
        index = read_index(suffixed(stem, ".idx"))
        if not len(index):
            continue
        raw = np.memmap(suffixed(stem, ".raw"), "<u2", "r", shape=(len(index), *cube.shape[1:]))
        ids = index["frame_id"].astype(np.int64)
        if start is None:
            # Only the camera knows at which of its lines it was when the record began.
            start = next(place for place in range(len(cube)) if np.array_equal(cube[place], raw[0])) - int(ids[0])
        unequal += sum(
            not np.array_equal(line, cube[(start + number) % len(cube)])
            for line, number in zip(raw, ids.tolist(), strict=True)
        )
        sequence = index["sequence"].astype(np.int64)
        gaps += int(np.count_nonzero(np.diff(sequence) != 1)) + (last is not None and int(sequence[0]) != last + 1)
        lines, last = lines + len(index), int(sequence[-1])
    return {"lines": lines, "unequal": unequal, "gaps": gaps}


def judge(asked: argparse.Namespace, result: dict[str, Any], memory: list[int], compared: dict[str, int]) -> int:
    """Print the table; 1 where a bar is missed."""
    lines = result["lines"]
    steady, grown = growth(memory)
    off = lines["in"] - lines["restored"] - lines["dropped"] - lines["incomplete"]
    grid = Table(title=f"{asked.bands} bands x {asked.samples} samples, {asked.minutes:g} minutes")
    grid.add_column("what")
    grid.add_column("figure", justify="right")
    grid.add_column("bar", justify="right")
    grid.add_row("lines sent", f"{lines['in']}", "")
    grid.add_row("lines per second, asked", f"{asked.rate:g}", "")
    grid.add_row("lines per second, sent", f"{lines['in'] / (60 * asked.minutes):.1f}", "")
    grid.add_row("lines lost", f"{lines['incomplete']}", "0")
    grid.add_row("lines restored", f"{lines['restored']}", "")
    grid.add_row("lines dropped by restoration", f"{lines['dropped']}", "")
    grid.add_row("lines unaccounted for", f"{off}", "0")
    grid.add_row("lines in the ring", f"{compared['lines']}", "")
    grid.add_row("unequal to those sent", f"{compared['unequal']}", "0")
    grid.add_row("gaps in their numbers", f"{compared['gaps']}", "0")
    if steady:
        grid.add_row("resident memory, MB", f"{min(steady) / 1e6:.1f} to {max(steady) / 1e6:.1f}", "")
        grid.add_row("its growth", f"{100 * grown:.2f} %", f"{100 * GROWTH_BAR:.0f} %")
    show(grid)
    counts = (lines["incomplete"], off, compared["unequal"], compared["gaps"])
    return int(any(counts) or grown > GROWTH_BAR)


if __name__ == "__main__":
    sys.exit(main())
