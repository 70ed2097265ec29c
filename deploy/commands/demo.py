"""`deploy demo`: the whole way on a simulated scene, from a packaged model to what it restores and a report."""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from runtime.errors import GateError, InputError

from .. import console
from .options import examples, json_option

SEED = 7
SCENE = {"lines": 256, "samples": 256}


@dataclass(frozen=True)
class Shown:
    """What is shown of networks of one kind.

    Attributes:
        what: they restore.
        suffix: of its file.
        degradation: what the scene suffers, and what stands beside the restored one, in words.
        checked: what the bundle is checked by.
        side: of a frame, unless the network has one alone.
        least: decibels that are gained at least over what stands beside.
    """

    what: str
    suffix: str
    degradation: tuple[str, str]
    checked: tuple[str, ...]
    side: int
    least: float


SHOWN = {
    "cube": Shown("cube", ".hdr", ("noise,stripes", "noise and stripes"), ("noise", "bandloss"), 128, 3.0),
    # What looks at whole frames gets the picture as one.
    "rgb": Shown("photograph", ".png", ("rain", "rain"), ("rain", "haze"), 256, 1.0),
    "coded": Shown("cube", ".hdr", ("snapshot", "GAP-TV"), ("snapshot", "noisy"), 256, 1.0),
}
"""Kind of what is measured -> what is shown."""


@click.command(epilog=examples("deploy demo --out build/demo", "deploy demo --network dfpir-tiny --out build/rain"))
@click.option("--network", default="damp-tiny", show_default=True, help="A packaged model.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    help="Folder for everything that is made.",
)
@json_option
def command(network: str, out: Path) -> dict[str, Any]:
    """Simulate a scene, build a bundle for this CPU, check it against PyTorch, restore the scene, write a report.

    Every step is a command that you can type yourself; it is printed before it runs.
    """
    return demo(out, network)


def demo(out: Path, network: str) -> dict[str, Any]:
    """Run the demo into the folder `out`. Raises GateError where the restoration gains too little."""
    import numpy as np

    from calibration.baselines import baseline_of
    from calibration.quality import quality
    from export.networks import load_checkpoint
    from runtime.bundle import load_bundle
    from runtime.durable import write_bytes
    from runtime.files import read_cube
    from runtime.restore_file import meaning_of_file, restore_file
    from runtime.trust import NO_KEYRING, trust_here

    from ..building import build
    from ..checking import check
    from ..checking.comparison import Case
    from ..checking.probes import measuring
    from ..config import Config, with_overrides
    from ..reporting.check_report import assemble
    from ..reporting.page import Command, Fact, write_report
    from ..reporting.quicklooks import fitted, png_bytes, rgb, save_bytes, side_by_side, stretch_limits
    from . import run_cube, simulate
    from .check import conclude, show
    from .simulate_snapshot import simulate_snapshot

    net = load_checkpoint(network)
    keyring = trust_here().place
    if os.path.lexists(out):
        raise InputError("exists already", file=out, key="--out", remedy="give another --out")
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}", file=out, key="--out", remedy="give a folder you may write"
        ) from error
    shown, coded = SHOWN[net.smallest.measured.kind], net.architecture.measure is not None
    degradation, called = shown.degradation
    prompt = next((name for name, each in net.conditions.items() if degradation in each.tasks), "")
    scene, truth, restored = (out / f"{name}{shown.suffix}" for name in ("scene", "scene-truth", "restored"))
    bundle = out / "bundle"
    mask, size = bundle / "instrument" / "mask.npy", f" --size {shown.side}x{shown.side}"
    seen = f"--snapshot --mask {_quoted(mask)}" if coded else f"--degradation {degradation} --size 256x256"
    lines = (
        f"deploy build --target cpu --checkpoint {network}{size if not coded else ''} --out {_quoted(bundle)}",
        f"deploy simulate --out {_quoted(scene)} {seen} --seed {SEED}",
        f"deploy check {_quoted(bundle)} --checkpoint {network}",
        f"deploy run {_quoted(bundle)} {_quoted(scene)} --out {_quoted(restored)}{prompt and f' --prompt {prompt}'}",
    )
    flags: dict[str, Any] = {
        "model.checkpoint": network, "check.degradations": list(shown.checked), "check.cube": SCENE,
    }  # fmt: skip
    if not coded:
        flags["input.frame"] = {"lines": shown.side, "samples": shown.side}
    config = with_overrides(Config(), flags)
    _step(lines[0])
    build.build(config, bundle)
    _step(lines[1])
    if coded:
        simulate_snapshot(scene, str(mask), None, None, None, SEED)
    else:
        simulate.simulate(scene, degradation, SCENE, 31, (400.0, 700.0), SEED)
    _step(lines[2])
    # This process has just built it, and nobody has signed it.
    with load_bundle(bundle, prompt=prompt or None, trust=NO_KEYRING) as loaded:
        found = check.check(loaded, config, wanted=(), trust=NO_KEYRING)
        gates = check.judged(found, config)
        show(found, gates)
        _step(lines[3])
        source = read_cube(scene)
        meaning = meaning_of_file(loaded, source)
        run_cube.tell(loaded, source, meaning)
        fine = restore_file(loaded, source, meaning)
        run_cube.write(restored, source, fine, loaded.manifest)
    scale = fine.scale or 1.0
    measured = np.asarray(source.cube / scale, np.float32)
    way = measuring(net, *loaded.manifest.signature.measured.size)
    classical = baseline_of(way, degradation) if coded else None
    degraded_cube = measured if classical is None else classical.restore(measured)
    restored_cube = np.asarray(read_cube(restored).cube / scale, np.float32)
    truth_file = read_cube(truth)
    truth_cube = np.asarray(truth_file.cube / (scale if source.photograph else 1.0), np.float32)
    before, after = quality(degraded_cube, truth_cube), quality(restored_cube, truth_cube)
    stretch = stretch_limits(truth_cube, truth_file.wavelengths)
    beside = called if coded else "degraded"
    looks = {
        name: fitted(rgb(cube, truth_file.wavelengths, stretch), shortest=256)
        for name, cube in ((beside, degraded_cube), ("restored", restored_cube), ("truth", truth_cube))
    }
    if coded:
        looks = {"measured": fitted(rgb(measured), shortest=256), **looks}
    for name, look in looks.items():
        save_bytes(out / f"{name}.png", png_bytes(look))
    save_bytes(out / "side-by-side.png", png_bytes(side_by_side(list(looks.values()))))
    routing = fine.gates if fine.side else np.zeros((0, 0), np.float32)
    case = Case(degradation if coded else called, None if coded else degraded_cube, restored_cube, truth_cube, routing)
    gain, over = after.psnr - before.psnr, f"by {called}" if coded else "it was"
    report = assemble(
        f"{network} restores a simulated scene on this CPU",
        loaded,
        found,
        gates[found.chosen],
        tuple(Command(line) for line in lines),
        summary=(
            Fact(f"{beside} {shown.what}", f"{before.psnr:.2f} dB"),
            Fact(f"restored {shown.what}", f"{after.psnr:.2f} dB", f"{gain:+.2f} dB"),
            Fact("spectral angle", f"{before.sam:.1f} to {after.sam:.1f} degrees"),
        ),
        lead=f"The restored {shown.what} is {gain:.1f} dB better than {over}, and the engine restores as PyTorch does.",
        shown=(case, None if coded else before, after),
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
    console.say(f"\n{beside:<10} {before.psnr:.2f} dB PSNR, {before.sam:.2f} degrees")
    console.say(f"restored   {after.psnr:.2f} dB PSNR, {after.sam:.2f} degrees ({gain:+.2f} dB)", "bold green")
    console.say(f"report     {out / 'report.html'}", "bold")
    console.say(f"pictures   {out / 'side-by-side.png'}: {', '.join(looks)}")
    console.say(f"bundle     {bundle}")
    if keyring:
        console.warn(f"this bundle is not signed: `deploy sign` it before other commands open it here ({keyring})")
    summary = conclude(found, gates, bundle, loaded.choice.why)
    if gain < shown.least:
        raise GateError(
            f"the restored {shown.what} is not clearly better than {over}",
            file=out / "demo.json",
            key="gain_db",
            value=round(gain, 3),
            remedy=f"at least {shown.least:g} dB is expected of a packaged model; please report this",
        )
    return {**outcome, "gates": summary["gates"]}


def _step(line: str) -> None:
    console.say(f"\n$ {line}", "bold cyan")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
