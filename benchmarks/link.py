"""Does `deploy stream` take all that a gigabit link carries? `python -m benchmarks.link --minutes 10`.

The virtual spectrometer of `benchmarks.endurance`, 224 bands x 640 samples in Mono12, is to send 411 lines per second,
118 MB, in packets of 9000 bytes, and is asked for more, since it sleeps a whole period after each. It runs at a real-
time priority where this user may give it one: a camera has a processor of its own. The stream goes before what else
runs here, where it may, and has camera buffers for two seconds. Lines go into a ring on disk, as a user would limit it,
and `damp-tiny` restores what it can.
Every number that the camera sent is in or missing, so lines in and incomplete are what it sent and what was lost. Bars:
411 lines per second, no line lost, none unequal to what was sent, none unaccounted for. Exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table

from runtime.record.index import read_index, stems, suffixed
from tests.contracts.spectrometer import ADDRESS, Spectrometer, network

from .endurance import SERVED_LINES, built, compare, watched
from .timing import show

CAMERA = (("chrt", "-f", "20"), ("nice", "-n", "-20"))
STREAM = (("nice", "-n", "-15"),)
"""Commands that let a process go before others, the better one first."""


@dataclass(frozen=True)
class Run:
    """What became of the lines.

    Attributes:
        told: by the stream at its end.
        source: what the source knew of its camera then.
        rate: lines per second that the camera sent.
        compared: see `endurance.compare`.
        camera_s, stream_s: processor seconds of both.
    """

    told: Mapping[str, Any]
    source: Mapping[str, float]
    rate: float
    compared: Mapping[str, int]
    camera_s: float
    stream_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=440.0, help="lines per second that the camera is asked for")
    parser.add_argument("--least", type=float, help="that it must send; by default 411, or the rate")
    parser.add_argument("--spool-limit", default="4GiB")
    parser.add_argument("--bundle", type=Path, help="by default damp-tiny for frames of 128x128, built here")
    parser.add_argument("--folder", type=Path, help="where the record goes; by default a temporary folder")
    parser.add_argument("--bands", type=int, default=224)
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--packet", type=int, default=9000, help="bytes of a packet")
    parser.add_argument("--buffers", type=int, default=800, help="images that may wait in the camera's stream")
    parser.add_argument("--restored", action="store_true", help="write what is restored to disk, too")
    asked = parser.parse_args()
    cube = np.random.default_rng(0).integers(0, 4095, (SERVED_LINES, asked.bands, asked.samples)).astype(np.uint16)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        bundle = (asked.bundle or built(folder / "bundle")).resolve()
        try:
            with network(folder) as camera:
                camera.under = first_permitted(CAMERA)
                camera.start(cube)
                run = flown(camera, bundle, folder, asked)
        except pytest.skip.Exception as why:
            print(f"left out: {why}")
            return 0
        asked.least = asked.least or min(411.0, asked.rate)
        return judge(asked, camera.under, run)


def first_permitted(commands: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The first command that this user may have a process go before others with; nothing where there is none."""
    for command in commands:
        try:
            tried = subprocess.run([*command, "true"], capture_output=True, check=False)
        except FileNotFoundError:
            continue
        if not tried.returncode and not tried.stderr:
            return command
    return ()


def flown(camera: Spectrometer, bundle: Path, folder: Path, asked: argparse.Namespace) -> Run:
    """Stream, and compare what is in the ring with what was sent."""
    config = folder / "deploy.yaml"
    config.write_text(
        f"stream:\n  camera: {{pixel_format: Mono12, frame_rate: {asked.rate:g}, packet_size: {asked.packet}, "
        f"buffers: {asked.buffers}}}\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result, _ = watched(
        camera.popen(
            *first_permitted(STREAM), sys.executable, "-m", "deploy", "stream", bundle,
            "--source", f"genicam:{ADDRESS}", "--config", config,
            "--record", folder / "record", "--spool-limit", asked.spool_limit,
            *(["--restored", folder / "restored"] if asked.restored else []),
            "--duration", 60 * asked.minutes, "--json", stdout=subprocess.PIPE,
        )
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    camera_s = camera.switch_off()
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record = folder / "record"
    return Run(result, last_figures(record), rate(record), compare(record, camera.cube), camera_s, spent)


def last_figures(record: Path) -> Mapping[str, float]:
    """The source's, in the last event that has them."""
    with (record / "stream.jsonl").open() as log:
        told = [found for line in log if isinstance(found := json.loads(line).get("source"), dict)]
    return told[-1] if told else {}


def rate(record: Path) -> float:
    """Lines per second that the camera sent, by numbers and times of those that are there."""
    index = np.concatenate([read_index(suffixed(stem, ".idx")) for stem in stems(record, "lines")])
    sent, times = (index[key].astype(np.int64) for key in ("sequence", "utc_ns"))
    return float(1e9 * (sent[-1] - sent[0]) / (times[-1] - times[0]))


def judge(asked: argparse.Namespace, under: tuple[str, ...], run: Run) -> int:
    """Print the table; 1 where a bar is missed."""
    lines, source = run.told["lines"], run.source
    seconds = 60 * asked.minutes
    off = lines["in"] - lines["restored"] - lines["dropped"] - lines["incomplete"]
    how = f"camera under {' '.join(under)}" if under else "camera without priority"
    grid = Table(title=f"{asked.bands} x {asked.samples} Mono12, {asked.minutes:g} minutes, {how}")
    grid.add_column("what")
    grid.add_column("figure", justify="right")
    grid.add_column("bar", justify="right")
    grid.add_row("lines per second, asked", f"{asked.rate:g}", "")
    grid.add_row("lines per second, sent", f"{run.rate:.1f}", f"{asked.least:.1f}")
    grid.add_row("MB per second", f"{run.rate * 2 * asked.bands * asked.samples / 1e6:.1f}", "")
    grid.add_row("lines sent, by their numbers", f"{lines['in']}", "")
    grid.add_row("lines recorded", f"{lines['recorded']}", "")
    grid.add_row("lines restored", f"{lines['restored']}", "")
    grid.add_row("lines dropped by restoration", f"{lines['dropped']}", "")
    grid.add_row("lines incomplete", f"{lines['incomplete']}", "0")
    grid.add_row("lines unaccounted for", f"{off}", "0")
    for name in ("damaged", "skipped", "late", "reconnects"):
        grid.add_row(f"camera's images {name}", f"{source.get(name, 0):.0f}", "0")
    for name in ("resent_packets", "underruns"):
        grid.add_row(name.replace("_", " "), f"{source.get(name, 0):.0f}", "")
    grid.add_row("lines in the ring", f"{run.compared['lines']}", "")
    grid.add_row("unequal to those sent", f"{run.compared['unequal']}", "0")
    grid.add_row("gaps in their numbers", f"{run.compared['gaps']}", "0")
    grid.add_row("cores' worth of time, camera", f"{run.camera_s / seconds:.2f}", "")
    grid.add_row("cores' worth of time, stream", f"{run.stream_s / seconds:.2f}", "")
    show(grid)
    lost = (lines["incomplete"], off, run.compared["unequal"], run.compared["gaps"])
    return int(any(lost) or run.rate < asked.least)


if __name__ == "__main__":
    sys.exit(main())
