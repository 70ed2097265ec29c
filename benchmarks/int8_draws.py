"""INT8 whoever calibrates it: builds with any eight scenes, and what each of them costs.

`python -m benchmarks.int8_draws --data CAVE [--models damp-small,damp-tiny] [--draws 5] [--out FOLDER]`. Every draw
takes eight of the scenes that the models were trained on, by its seed; one more takes eight that are named. Each is a
`deploy build --target intel --precision auto` of its own; then follow as many of `deploy check` on the scenes that were
never trained on nor calibrated with. What is done is a JSON file for each draw in the folder: a run that was stopped
goes on.
Bar: all gates pass, in the build and in the check, with at least 65 % of the multiply-adds in INT8.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from runtime.durable import write_bytes

VALIDATION = ("cloth", "superballs", "paints", "thread_spools")
NAMED = ("balloons", "beads", "clay", "flowers", "glass_tiles", "pompoms", "sponges", "stuffed_toys")
SHARE = 0.65
GATES = ("psnr_drop_db", "mean_psnr_drop_db", "sam_rise_deg", "mean_sam_rise_deg", "routing_agreement")


def scenes_of(data: Path, draw: str) -> tuple[str, ...]:
    """The eight scenes of a draw: `named`, or a seed."""
    if draw == "named":
        return NAMED
    every = sorted(f.stem for f in data.glob("*.npz") if f.stem not in VALIDATION)
    return tuple(sorted(np.random.default_rng(int(draw)).choice(every, len(NAMED), replace=False)))


def deploy(*arguments: object) -> tuple[int, dict[str, Any]]:
    """(exit code, what `--json` printed)."""
    command = [sys.executable, "-m", "deploy", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}


def built(model: str, draw: str, data: Path, out: Path, size: str) -> dict[str, Any]:
    """Build one draw."""
    scenes = scenes_of(data, draw)
    cubes = out / f"{model}-{draw}-cubes"
    cubes.mkdir(exist_ok=True)
    for name in scenes:
        (cubes / f"{name}.npz").unlink(missing_ok=True)
        (cubes / f"{name}.npz").symlink_to((data / f"{name}.npz").resolve())
    began = time.monotonic()
    code, told = deploy(
        "build", "--target", "intel", "--checkpoint", model, "--precision", "auto", "--calibration", cubes,
        "--size", size, "--replace", "--out", out / f"{model}-{draw}-bundle",
    )  # fmt: skip
    shutil.rmtree(cubes)
    seconds = time.monotonic() - began
    return {"model": model, "draw": draw, "scenes": scenes, "seconds": seconds, "code": code, "built": told}


def checked(found: dict[str, Any], data: Path, out: Path) -> dict[str, Any]:
    """With the check of its bundle, where that has INT8."""
    if "int8" not in found["built"].get("candidates", {}):
        return found
    bundle = out / f"{found['model']}-{found['draw']}-bundle"
    scenes = ",".join(VALIDATION)
    code, told = deploy("check", bundle, "--checkpoint", found["model"], "--data", data, "--scenes", scenes)
    return {**found, "check_code": code, "checked": told}


def row(found: dict[str, Any]) -> tuple[bool, list[str]]:
    """Whether the bar is reached, and the line of the table."""
    built = found["built"]
    candidates = built.get("candidates", {})
    if "int8" not in candidates:
        why = built["precision"]["why"] if candidates else f"the build failed: {built['error']['message']}"
        return False, [found["model"], found["draw"], "none", why, *[""] * (len(GATES) + 1), f"{found['seconds']:.0f}"]
    gates = candidates["int8"]["gates"]
    share = built["calibration"]["int8_mac_share"]
    times = [min(candidates[p]["milliseconds"].values(), default=np.nan) for p in ("fp32", "int8")]
    passed = all(g["passed"] is not False for g in gates.values())
    told = found.get("checked", {})
    # Where a gate fails the figures are beside the error.
    checked = told.get("result", told).get("variants", {}).get("int8", {})
    figures = [f"{gates[key]['measured']:.3f} of {gates[key]['limit']:g}" for key in GATES]
    independent = (
        f"{checked.get('mean_psnr_drop_db', np.nan):.3f} dB, {checked.get('mean_sam_rise_deg', np.nan):+.2f} deg"
    )
    reached = passed and share >= SHARE and found.get("check_code") == 0
    return reached, [
        found["model"], found["draw"], f"{100 * share:.1f} %", *figures, f"{times[0] / times[1]:.2f}",
        f"{'passed' if found.get('check_code') == 0 else 'FAILED'}: {independent}", f"{found['seconds']:.0f}",
    ]  # fmt: skip


def main() -> int:
    """Print the table; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", default="damp-small,damp-tiny")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--size", default="256x256", metavar="LINESxSAMPLES")
    parser.add_argument("--out", type=Path, default=Path("build/int8-draws"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    table = Table(title="INT8 of any eight scenes; what each gate measured, and its limit")
    for column in ("model", "draw", "in INT8", *GATES, "times as fast", "check of other scenes", "seconds"):
        table.add_column(column)
    draws = [(m, d) for m in asked.models.split(",") for d in (*map(str, range(asked.draws)), "named")]
    files = {(model, draw): asked.out / f"{model}-{draw}.json" for model, draw in draws}

    def keep(file: Path, found: dict[str, Any]) -> None:
        write_bytes(file, (json.dumps(found, indent=1) + "\n").encode())

    for (model, draw), file in files.items():
        if not file.exists():
            keep(file, built(model, draw, asked.data, asked.out, asked.size))
    every = []
    for file in files.values():
        found = json.loads(file.read_bytes())
        if "checked" not in found:
            keep(file, found := checked(found, asked.data, asked.out))
        reached, cells = row(found)
        every.append(reached)
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    return 0 if all(every) else 1


if __name__ == "__main__":
    sys.exit(main())
