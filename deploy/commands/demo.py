"""`deploy demo`: the whole way on a simulated scene, from a packaged model to a restored cube and a report."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np

from runtime.bundle import load_bundle
from runtime.durable import write_bytes
from runtime.errors import GateError, InputError
from runtime.files import read_cube
from runtime.restore_file import meaning_of_file, restore_file

from .. import console
from ..config import Config, with_overrides
from ..reporting.quicklooks import png_bytes, rgb, save_bytes, side_by_side, stretch_limits
from . import run_cube, simulate
from .check import conclude, show
from .options import examples, json_option

MODEL = "damp-tiny"
DEGRADATION = "noise,stripes"
SCENE = {"lines": 256, "samples": 256}
FRAME = {"lines": 128, "samples": 128}
SEED = 7
CHECKED = ("noise", "bandloss")
LEAST_GAIN_DB = 3.0


@click.command(epilog=examples("deploy demo --out build/demo"))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    help="Folder for everything that is made.",
)
@json_option
def command(out: Path) -> dict[str, Any]:
    """Simulate a scene, build a bundle for this CPU, check it against PyTorch, restore the scene, write a report.

    Every step is a command that you can type yourself; it is printed before it runs.
    """
    return demo(out)


def demo(out: Path) -> dict[str, Any]:
    """Run the demo into the folder `out`. Raises GateError where the restoration gains less than 3 dB."""
    from calibration.quality import quality

    from ..building import build
    from ..checking import check
    from ..checking.comparison import Case
    from ..reporting.check_report import assemble
    from ..reporting.page import Command, Fact, write_report

    if os.path.lexists(out):
        raise InputError("exists already", file=out, key="--out", remedy="give another --out")
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}", file=out, key="--out", remedy="give a folder you may write"
        ) from error
    scene, truth, bundle, restored = (
        out / "scene.hdr",
        out / "scene-truth.hdr",
        out / "bundle",
        out / "restored.hdr",
    )
    lines = (
        f"deploy simulate --out {_quoted(scene)} --degradation {DEGRADATION} --size 256x256 --seed {SEED}",
        f"deploy build --target cpu --checkpoint {MODEL} --size 128x128 --out {_quoted(bundle)}",
        f"deploy check {_quoted(bundle)} --checkpoint {MODEL}",
        f"deploy run {_quoted(bundle)} {_quoted(scene)} --out {_quoted(restored)}",
    )
    _step(lines[0])
    simulate.simulate(scene, DEGRADATION, SCENE, 31, (400.0, 700.0), SEED)
    _step(lines[1])
    flags = {"model.checkpoint": MODEL, "input.frame": FRAME, "check.degradations": list(CHECKED), "check.cube": SCENE}
    config = with_overrides(Config(), flags)
    build.build(config, bundle)
    _step(lines[2])
    with load_bundle(bundle) as loaded:
        found = check.check(loaded, config, wanted=())
        gates = check.judged(found, config)
        show(found, gates)
        _step(lines[3])
        source = read_cube(scene)
        meaning = meaning_of_file(loaded, source)
        run_cube.tell(loaded, source, meaning)
        fine = restore_file(loaded, source, meaning)
        run_cube.write(restored, source, fine, loaded.manifest)
    scale = fine.scale or 1.0
    degraded_cube = np.asarray(source.cube / scale, np.float32)
    restored_cube = np.asarray(read_cube(restored).cube / scale, np.float32)
    truth_cube = np.asarray(read_cube(truth).cube, np.float32)
    before, after = quality(degraded_cube, truth_cube), quality(restored_cube, truth_cube)
    stretch = stretch_limits(truth_cube, source.wavelengths)
    pictures = (("degraded", degraded_cube), ("restored", restored_cube), ("truth", truth_cube))
    looks = [rgb(cube, source.wavelengths, stretch) for _, cube in pictures]
    for (name, _), look in zip(pictures, looks, strict=True):
        save_bytes(out / f"{name}.png", png_bytes(look))
    save_bytes(out / "side-by-side.png", png_bytes(side_by_side(looks)))
    shown = Case("noise and stripes", degraded_cube, restored_cube, truth_cube, fine.gates)
    gain = after.psnr - before.psnr
    report = assemble(
        f"{MODEL} restores a simulated scene on this CPU",
        loaded,
        found,
        gates[found.chosen],
        tuple(Command(line) for line in lines),
        summary=(
            Fact("noisy cube", f"{before.psnr:.2f} dB"),
            Fact("restored cube", f"{after.psnr:.2f} dB", f"{gain:+.2f} dB"),
            Fact("spectral angle", f"{before.sam:.1f} to {after.sam:.1f} degrees"),
        ),
        lead=f"The restored cube is {gain:.1f} dB better than the noisy one, and the engine restores as PyTorch does.",
        shown=(shown, before, after),
    )
    write_report(out / "report.html", report)
    outcome = {
        "input_psnr": before.psnr,
        "restored_psnr": after.psnr,
        "gain_db": gain,
        "input_sam": before.sam,
        "restored_sam": after.sam,
        "bundle": str(bundle),
        "restored": str(restored),
        "report": str(out / "report.html"),
    }
    write_bytes(out / "demo.json", (json.dumps(outcome, indent=1) + "\n").encode())
    console.say(f"\nnoisy      {before.psnr:.2f} dB PSNR, {before.sam:.2f} degrees")
    console.say(f"restored   {after.psnr:.2f} dB PSNR, {after.sam:.2f} degrees ({gain:+.2f} dB)", "bold green")
    console.say(f"report     {out / 'report.html'}", "bold")
    console.say(f"pictures   {out / 'side-by-side.png'}: degraded, restored, truth")
    console.say(f"bundle     {bundle}")
    summary = conclude(found, gates, bundle, loaded.choice.why)
    if gain < LEAST_GAIN_DB:
        raise GateError(
            "the restored cube is not clearly better than the noisy one",
            file=out / "demo.json",
            key="gain_db",
            value=round(gain, 3),
            remedy=f"at least {LEAST_GAIN_DB:g} dB is expected of {MODEL}; please report this",
        )
    return {**outcome, "gates": summary["gates"]}


def _step(line: str) -> None:
    console.say(f"\n$ {line}", "bold cyan")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
