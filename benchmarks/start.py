"""From a command to its first word, and to its first restored frame: `python -m benchmarks.start`.

Bundles of `damp-small` for frames of 256x256 and 64x64 are built, or those of `--bundle DIR` are taken. Every
command runs in a process of its own, files and bytecode warm: medians of seven (`--runs`), wall and CPU seconds since
the process was started, and where the wall time goes; what is between the self-test and the first frame is the cube's
or the source's. A file gives its lines as fast as they are taken, `sim:` a hundred in a second: what its sensor takes
for a frame is not counted. Bars: help in 0.25 s, a first frame in 2 s. Exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from runtime.bundle_files import read_manifest
from runtime.files import write_cube
from runtime.simulation.simulator import simulate_scene

from .timing import show

HELP_BAR, FRAME_BAR = 0.25, 2.0
SIM_RATE = 100.0
PARTS = ("imports", "hashes", "engine", "self-test", "between", "frame")
HELP = "import sys; from deploy.cli import main; main()"
CHILD = """
import json, os, sys, time
began, into = float(sys.argv.pop(1)), sys.argv.pop(1)
spent = dict.fromkeys(("imports", "hashes", "engine", "self-test", "between", "frame"), 0.0)
from deploy.cli import run
if sys.argv[1] == "run":
    import deploy.commands.run_cube, deploy.commands.run_folder, deploy.commands.run_product, deploy.commands.run_video
else:
    import deploy.commands.stream_run
import runtime.bundle as opening
from runtime.engines.contract import Engine
spent["imports"] = time.time() - began

def timed(owner, name, part):
    of = getattr(owner, name)
    def timing(*given, **named):
        start = time.perf_counter()
        try:
            return of(*given, **named)
        finally:
            spent[part] += time.perf_counter() - start
    setattr(owner, name, timing)

timed(opening, "verified_bundle", "hashes")
timed(opening, "open_engine", "engine")
timed(opening.Bundle, "self_test", "self-test")
prove, infer = opening.Bundle.self_test, Engine.infer
proved = None

def self_test(bundle, *given):
    global proved
    found = prove(bundle, *given)
    proved = time.perf_counter()
    return found

def first(engine, feeds):
    if proved is None:
        return infer(engine, feeds)
    start = time.perf_counter()
    spent["between"] = start - proved
    infer(engine, feeds)
    spent["frame"] = time.perf_counter() - start
    with open(into, "w") as file:
        json.dump({"wall": time.time() - began, "cpu": time.process_time(), **spent}, file)
    os._exit(0)

opening.Bundle.self_test, Engine.infer = self_test, first
run(sys.argv[1:])
"""


def of_help(words: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds of a command that shows its help."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run([sys.executable, "-c", HELP, *words, "--help"], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.time() - began, "cpu": used}


def of_frame(words: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds until a command has its first restored frame, and where they went."""
    with tempfile.TemporaryDirectory() as name:
        into = Path(name) / "told.json"
        given = [word.replace("OUT", name) for word in words]
        command = [sys.executable, "-c", CHILD, str(time.time()), str(into), *given]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if not into.is_file():
            raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
        told: dict[str, float] = json.loads(into.read_text())
    return told


def built(folder: Path, side: int) -> Path:
    """A bundle of `damp-small`."""
    words = ["build", "--target", "cpu", "--checkpoint", "damp-small", "--size", f"{side}x{side}", "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "deploy", *words], check=True, capture_output=True)
    return folder


def median(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every figure."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> int:
    """Measure and print; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--bundle", type=Path, action="append", help="in place of those that are built")
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # As it is where it was installed, whatever this process was told of bytecode.
        environment = {key: text for key, text in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        bundles = asked.bundle or [built(folder / f"{side}", side) for side in (256, 64)]
        table = Table(title=f"seconds, medians of {asked.runs}")
        for heading in ("command", "wall", "CPU", *PARTS, "bar", ""):
            table.add_column(heading, justify="left" if heading == "command" else "right")
        missed = False
        for words in ([], ["run"], ["stream"], ["build"], ["inspect"]):
            of_help(words, environment)
            found = median([of_help(words, environment) for _ in range(asked.runs)])
            missed |= found["wall"] > HELP_BAR
            table.add_row(
                " ".join(["deploy", *words, "--help"]), f"{found['wall']:.2f}", f"{found['cpu']:.2f}",
                *[""] * len(PARTS), f"{HELP_BAR:g}", "reached" if found["wall"] <= HELP_BAR else "missed",
            )  # fmt: skip
        for bundle in bundles:
            manifest = read_manifest(bundle)
            lines, samples = manifest.signature.measured.size
            cube = folder / f"{lines}x{samples}.hdr"
            write_cube(cube, simulate_scene(0, manifest.signature.measured.bands, lines, samples).truth)
            about = f"{lines}x{samples}, {len(manifest.proofs)} golden frames"
            stream = ["stream", str(bundle), "--record", "OUT/raw", "--restored", "OUT/restored", "--source"]
            for what, words in (
                ("deploy run", ["run", str(bundle), str(cube), "--out", "OUT/restored.hdr"]),
                ("deploy stream --source envi:", [*stream, f"envi:{cube}"]),
                ("deploy stream --source sim:", [*stream, "sim:"]),
            ):
                of_frame(words, environment)
                found = median([of_frame(words, environment) for _ in range(asked.runs)])
                ours = found["wall"] - (lines / SIM_RATE if what.endswith("sim:") else 0)
                missed |= ours > FRAME_BAR
                table.add_row(
                    f"{what} ({about})", f"{found['wall']:.2f}", f"{found['cpu']:.2f}",
                    *[f"{found[part]:.2f}" for part in PARTS], f"{FRAME_BAR:g}",
                    "reached" if ours <= FRAME_BAR else "missed",
                )  # fmt: skip
    show(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
