"""Does `deploy stream` keep up with a snapshot spectrometer? `python -m benchmarks.snapshot --minutes 10`.

The simulator sends 30 coded frames of 256x310 a minute, MST-S with weights from a seed restores them, record and
restored cubes are written. Bars: every frame restored, none lost or dropped, no growth of memory of more than 2 % after
the first third, which has at least a minute. Exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.endurance import GROWTH_BAR, growth, watched
from export.networks import network_of, save_checkpoint
from export.networks.mst import Mst, MstConfig
from runtime.simulation.cassi import random_mask

from .timing import show

LINES, FRAMES_A_MINUTE = 256, 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, help="where lines go; by default a temporary folder")
    asked = parser.parse_args()
    frames = round(FRAMES_A_MINUTE * asked.minutes)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        source = f"sim:snapshot,rate={FRAMES_A_MINUTE * LINES / 60:g},count={frames * LINES}"
        command = (
            sys.executable, "-m", "deploy", "stream", built(folder), "--source", source, "--record", folder / "record",
            "--restored", folder / "restored", "--json",
        )  # fmt: skip
        result, memory = watched(subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True))
    lines, latency, (steady, grown) = result["lines"], result["latency_s"], growth(memory)
    grid = Table(title=f"MST-S, {FRAMES_A_MINUTE} frames a minute, {asked.minutes:g} minutes")
    for column in ("what", "figure", "bar"):
        grid.add_column(column)
    grid.add_row("frames sent", f"{frames}", "")
    grid.add_row("frames restored", f"{lines['restored'] / LINES:g}", f"{frames}")
    grid.add_row("lines lost, dropped", f"{lines['incomplete']}, {lines['dropped']}", "0, 0")
    grid.add_row("latency, seconds", ", ".join(f"{key} {value:.2f}" for key, value in latency.items() if value), "")
    if steady:
        grid.add_row("resident memory, MB", f"{min(steady) / 1e6:.1f} to {max(steady) / 1e6:.1f}", "")
        grid.add_row("its growth", f"{100 * grown:.2f} %", f"{100 * GROWTH_BAR:.0f} %")
    show(grid)
    return int(lines["restored"] != frames * LINES or grown > GROWTH_BAR)


def built(folder: Path) -> Path:
    """A bundle of MST-S for this computer."""
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    torch.manual_seed(0)
    module = Mst(MstConfig((2, 2, 2))).eval()
    module.mask = torch.from_numpy(random_mask(0))
    checkpoint = save_checkpoint(network_of(module), folder / "mst-s.safetensors")
    build(with_overrides(Config(), {"model.checkpoint": str(checkpoint)}), folder / "bundle")
    return folder / "bundle"


if __name__ == "__main__":
    sys.exit(main())
