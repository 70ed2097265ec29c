"""`deploy check`: does the bundle restore as PyTorch does, on cubes larger than a frame and several degradations?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from runtime.bundle import Bundle, load_bundle
from runtime.errors import GateError, InputError, MachineError
from runtime.restore import Infer, Restored, restore_cube
from runtime.sources.simulator import simulate_scene

from . import console
from .config import Config, GatesSection, with_overrides
from .options import config_option, engine_option, examples, ground, json_option, read_config

if TYPE_CHECKING:
    # The ground's: imported where it is used, so that a flight computer can show this command's help.
    from calibration.quality import Quality

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class TaskResult:
    """One degradation, restored by the engine and by PyTorch through the same tiles, blending and metrics.

    Attributes:
        task: the degradation.
        input, engine, pytorch: quality against the truth; over the lost bands where bands were lost.
        untiled: quality of PyTorch on the whole cube at once.
        max_difference: largest difference of engine and PyTorch, as a share of PyTorch's range.
        routing_agreement: share of tiles and layers in which both chose the same experts.
    """

    task: str
    input: Quality
    engine: Quality
    pytorch: Quality
    untiled: Quality
    max_difference: float
    routing_agreement: float

    @property
    def psnr_drop_db(self) -> float:
        """What the engine loses of PyTorch's PSNR, in dB."""
        return self.pytorch.psnr - self.engine.psnr

    @property
    def sam_rise_deg(self) -> float:
        """What the engine adds to PyTorch's spectral angle, in degrees."""
        return self.engine.sam - self.pytorch.sam

    @property
    def tiling_drop_db(self) -> float:
        """What cutting into tiles costs PyTorch itself, in dB."""
        return self.untiled.psnr - self.pytorch.psnr


@dataclass(frozen=True)
class Case:
    """The cubes of one degradation, for pictures."""

    task: str
    degraded: Float32
    restored: Float32
    truth: Float32
    gates: Float32


@dataclass(frozen=True)
class GateResult:
    """A gate: the worst figure over the degradations, and its limit (None where the gate is off)."""

    key: str
    measured: float
    limit: float | None
    passed: bool | None


GATES: dict[str, tuple[str, Callable[[TaskResult], float]]] = {
    "max_difference": ("at most", lambda r: r.max_difference),
    "psnr_drop_db": ("at most", lambda r: r.psnr_drop_db),
    "sam_rise_deg": ("at most", lambda r: r.sam_rise_deg),
    "routing_agreement": ("at least", lambda r: r.routing_agreement),
}
"""Gate -> which way its limit goes, and what it looks at."""

AUTO: dict[str, dict[str, float]] = {
    "fp32": {"max_difference": 1e-3, "psnr_drop_db": 0.01, "sam_rise_deg": 0.005, "routing_agreement": 1.0},
    "fp16": {"max_difference": 2e-2, "psnr_drop_db": 0.05, "sam_rise_deg": 0.02, "routing_agreement": 1.0},
    "bf16": {"max_difference": 5e-2, "psnr_drop_db": 0.1, "sam_rise_deg": 0.05, "routing_agreement": 1.0},
}
"""Precision -> limits where the configuration says `auto`."""


@click.command(
    epilog=examples(
        "deploy check build/bundle --checkpoint damp-tiny",
        "deploy check build/bundle --checkpoint model.pth --report check.html --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", help="The checkpoint that the bundle was built from.")
@click.option("--top-k", type=int, help="Where the checkpoint does not tell it; the bundle's own by default.")
@engine_option
@click.option("--report", type=click.Path(path_type=Path), help="Write a page with pictures and tables there.")
@config_option
@json_option
def command(
    bundle: Path,
    checkpoint: str | None,
    top_k: int | None,
    engine: str | None,
    report: Path | None,
    config_file: Path | None,
) -> dict[str, Any]:
    """Compare a bundle with PyTorch on a simulated scene; exit 1 when a gate of the configuration fails."""
    config = read_config(config_file, checkpoint_given=checkpoint is not None)
    config = with_overrides(config, {"model.checkpoint": checkpoint, "model.top_k": top_k})
    if report is not None and not report.absolute().parent.is_dir():
        raise InputError("no such folder", file=report, key="--report", remedy="make the folder first")
    with load_bundle(bundle, engine=engine) as loaded:
        results, cases = check(loaded, config)
        gates = judge(results, config.gates, loaded.manifest.precision.chosen)
        show(results, gates)
        if report is not None:
            from .evidence import check_report
            from .report import write_report

            write_report(report, check_report(loaded.manifest, results, gates, cases, str(config.model.checkpoint)))
            console.say(f"report     {report}")
    return conclude(results, gates, bundle)


def check(bundle: Bundle, config: Config) -> tuple[list[TaskResult], list[Case]]:
    """Run the degradations of `config.check` through engine and PyTorch. Raises DeployError."""
    if config.model.checkpoint is None:
        raise InputError(
            "no checkpoint is given", key="--checkpoint", remedy="give the checkpoint that the bundle was built from"
        )
    m = bundle.manifest
    top_k = config.model.top_k if config.model.top_k is not None else m.network.configuration.get("top_k")
    net = ground("export.networks").load_checkpoint(config.model.checkpoint, top_k)
    refuse_other_network(bundle, net)
    size = config.check.cube
    wavelengths = m.wavelengths if m.wavelengths and len(m.wavelengths) == m.bands else None
    truth = simulate_scene(config.check.seed, m.bands, size.lines, size.samples, wavelengths).truth
    multiple = ground("export.networks").architecture_of(net).SIZE_MULTIPLE
    whole = (-(-size.lines // multiple) * multiple, -(-size.samples // multiple) * multiple)
    torch_engine = ground("export.torch_engine").TorchEngine
    ways = _Ways(
        (bundle.engine.infer, (m.frame.lines, m.frame.samples), m.frame.overlap),
        (torch_engine(net, m.frame.lines, m.frame.samples).infer, (m.frame.lines, m.frame.samples), m.frame.overlap),
        (torch_engine(net, *whole).infer, whole, 0),
    )
    done = []
    degradations = ground("calibration.degradations").DEGRADATIONS
    with console.progress("checking") as moved:
        total = len(config.check.degradations)
        for index, task in enumerate(config.check.degradations):
            moved(index, total)
            degraded = degradations[task](truth, np.random.default_rng([config.check.seed, index]))
            done.append(_task(bundle, task, degraded, truth, ways))
    return [result for result, _ in done], [case for _, case in done]


Way = tuple[Infer, tuple[int, int], int]


@dataclass(frozen=True)
class _Ways:
    """How a cube goes through: what restores a frame, the frame's size, the overlap."""

    engine: Way
    pytorch: Way
    untiled: Way


def _task(bundle: Bundle, task: str, degraded: Float32, truth: Float32, ways: _Ways) -> tuple[TaskResult, Case]:
    from calibration.degradations import lost_bands
    from calibration.quality import quality

    try:
        engine = _restored(bundle, degraded, ways.engine)
    except MachineError as error:
        raise GateError(
            f"the engine failed on {task}: {error.problem}",
            file=bundle.path,
            key=error.key,
            value=error.value,
            remedy="do not fly this bundle on this machine",
        ) from error
    pytorch, untiled = _restored(bundle, degraded, ways.pytorch), _restored(bundle, degraded, ways.untiled)
    lost = lost_bands(degraded)
    bands = lost if lost.any() and not lost.all() else None
    span = float(np.ptp(pytorch.cube)) or 1.0
    same = ((engine.gates > 0) == (pytorch.gates > 0)).all(axis=-1)
    result = TaskResult(
        task,
        quality(degraded, truth, bands),
        quality(_cube(engine), truth, bands),
        quality(_cube(pytorch), truth, bands),
        quality(_cube(untiled), truth, bands),
        float(np.abs(_cube(engine) - _cube(pytorch)).max()) / span,
        float(same.mean()),
    )
    return result, Case(task, degraded, _cube(engine), truth, engine.gates)


def judge(results: list[TaskResult], gates: GatesSection, precision: str) -> list[GateResult]:
    """Hold the worst figure of each kind against its limit."""
    judged = []
    for key, (direction, figure) in GATES.items():
        figures = [figure(r) for r in results]
        worst = min(figures) if direction == "at least" else max(figures)
        asked = getattr(gates, key)
        limit = AUTO[precision][key] if asked == "auto" else asked
        passed = None if limit is None else (worst >= limit if direction == "at least" else worst <= limit)
        judged.append(GateResult(key, worst, limit, passed))
    return judged


def show(results: list[TaskResult], gates: list[GateResult]) -> None:
    """The tables for people."""
    console.table(
        "against the truth",
        ("degradation", "input dB", "engine dB", "PyTorch dB", "SSIM", "SAM deg", "ERGAS", "tiling costs dB"),
        [
            (
                r.task,
                f"{r.input.psnr:.2f}",
                f"{r.engine.psnr:.2f}",
                f"{r.pytorch.psnr:.2f}",
                f"{r.engine.ssim:.4f}",
                f"{r.engine.sam:.3f}",
                f"{r.engine.ergas:.2f}",
                f"{r.tiling_drop_db:+.3f}",
            )
            for r in results
        ],
    )
    rows = []
    for gate in gates:
        limit = "off" if gate.limit is None else f"{GATES[gate.key][0]} {gate.limit:g}"
        verdict = {True: "passed", False: "FAILED", None: "not judged"}[gate.passed]
        rows.append((gate.key, f"{gate.measured:.3g}", limit, verdict))
    console.table("engine against PyTorch, worst case", ("gate", "measured", "limit", "verdict"), rows)


def conclude(results: list[TaskResult], gates: list[GateResult], bundle: Path) -> dict[str, Any]:
    """What `--json` prints; raises GateError where a gate failed."""
    summary = {
        "bundle": str(bundle),
        "tasks": {r.task: _as_json(r) for r in results},
        "gates": {g.key: {"measured": g.measured, "limit": g.limit, "passed": g.passed} for g in gates},
        "tiling_drop_db": max(r.tiling_drop_db for r in results),
        "passed": all(g.passed is not False for g in gates),
    }
    failed = [g for g in gates if g.passed is False]
    if failed:
        error = GateError(
            "the engine does not restore as PyTorch does",
            file=bundle,
            key=f"gates.{failed[0].key}",
            value=float(f"{failed[0].measured:.6g}"),
            remedy=f"{GATES[failed[0].key][0]} {failed[0].limit:g} is asked for",
        )
        error.result = summary
        raise error
    return summary


def _as_json(result: TaskResult) -> dict[str, Any]:
    return {
        "input": asdict(result.input),
        "engine": asdict(result.engine),
        "pytorch": asdict(result.pytorch),
        "psnr_drop_db": result.psnr_drop_db,
        "sam_rise_deg": result.sam_rise_deg,
        "max_difference": result.max_difference,
        "routing_agreement": result.routing_agreement,
        "tiling_drop_db": result.tiling_drop_db,
    }


def _restored(bundle: Bundle, cube: Float32, way: Way) -> Restored:
    infer, frame, overlap = way
    m = bundle.manifest
    return restore_cube(cube, infer, bands=m.bands, frame=frame, overlap=overlap, metric_set=m.metric_set)


def _cube(restored: Restored) -> Float32:
    return np.asarray(restored.cube, np.float32)


def refuse_other_network(bundle: Bundle, net: Any) -> None:
    """Refuse a network of another configuration than the bundle's; other weights are warned of.

    Raises:
        InputError: naming the setting that differs.
    """
    made, given = bundle.manifest.network.configuration, net.config.as_dict()
    for key, value in given.items():
        value = list(value) if isinstance(value, tuple) else value
        if made.get(key) != value:
            raise InputError(
                f"the bundle was built from another network: it has {made.get(key)}, the checkpoint {value}",
                file=net.facts.file,
                key=key,
                remedy="give the checkpoint that the bundle was built from",
            )
    if net.facts.sha256 != bundle.manifest.network.checkpoint_sha256:
        console.warn(f"{net.facts.file.name} is not the very file that the bundle was built from")
