"""Which precision a build gets: the fastest that passes its gates, with everything that was measured on the way."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.engines import Engine, EngineOptions, available_engines, open_engine
from runtime.errors import GateError, MachineError
from runtime.signature import Signature

from . import console
from .config_sections import GatesSection
from .gates import CLEARLY, GateResult, failed, judge, told
from .graphs import Graphs, in_half_arithmetic
from .options import ground
from .plan import Plan
from .quantize import cases, figures_of

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show the commands' help.
    from calibration.agreement import Score
    from calibration.dataset import CalibrationSet
    from export.networks import Network
    from export.onnx import Probe

ORDER = ("int8", "fp16", "fp32")
"""From the one that is tried first."""
ROUNDS = 7
"""Frames that are timed of each engine, in turns."""
CPU_ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Candidate:
    """A precision, what it costs on the judged frames, and what it takes.

    Attributes:
        precision: of the graph.
        score: against PyTorch.
        gates: how it was judged.
        milliseconds: engine -> median time of a frame; empty where this machine does not run the target's engine.
    """

    precision: str
    score: Score
    gates: list[GateResult]
    milliseconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """No gate failed."""
        return not failed(self.gates)

    def as_json(self) -> dict[str, Any]:
        """For the manifest and `--json`."""
        return {
            **figures_of(self.score),
            "gates": {g.key: {"measured": g.measured, "limit": g.limit, "passed": g.passed} for g in self.gates},
            "milliseconds": dict(self.milliseconds),
        }


@dataclass(frozen=True)
class Decision:
    """What runs.

    Attributes:
        precision, engine: chosen.
        why: in a sentence; empty where nothing was to be decided.
        candidates: the precisions that were judged.
        milliseconds: engine -> time of a frame in the chosen precision, where that was measured.
        rivals: precisions that pass too, and that the target times against the chosen one.
    """

    precision: str
    engine: str
    why: str
    candidates: tuple[Candidate, ...]
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()


def judged_candidates(
    net: Network,
    plan: Plan,
    graphs: Graphs,
    frames: CalibrationSet,
    gates: GatesSection,
    engines: Mapping[str, str],
    kept: Path,
) -> tuple[tuple[Candidate, ...], dict[str, MachineError]]:
    """Score every variant on the judged frames, at the size of the build's frame.

    Args:
        net: the network.
        plan: what is built.
        graphs: its variants.
        frames: the calibration set, at the size of the build's frame.
        gates: the limits.
        engines: precision -> the engine that would run it: it is judged in no other, since engines differ in int8.
            What this machine cannot run is computed by ONNX Runtime, FP16 in FP16's arithmetic.
        kept: folder in which frames are kept.

    Returns:
        the candidates, and why others could not be computed.
    """
    signature = net.signature(plan.lines, plan.samples)
    scores: dict[str, list[Score]] = {name: [] for name in ORDER if name in graphs.variants}
    opened: dict[str, Engine] = {}
    failures: dict[str, MachineError] = {}
    agreement = ground("calibration.agreement")
    try:
        for name in list(scores):
            program, how = _program(graphs, name, plan)
            where = "onnxruntime" if how == "half" else engines.get(name, "onnxruntime")
            options = EngineOptions(plan.target.threads, "fp32" if how == "half" else name)
            try:
                opened[name] = open_engine(where, program, signature, options)
            except MachineError as error:
                failures[name] = error
        with console.progress("judging precisions") as moved:
            for number, case in enumerate(cases(net, frames, frames.judge, kept)):
                for name in set(opened) - set(failures):
                    try:
                        scores[name].append(agreement.score(opened[name].infer, signature, [case]))
                    except MachineError as error:  # noqa: PERF203
                        failures[name] = error
                moved(number + 1, len(frames.judge))
    finally:
        for one in opened.values():
            one.close()
    found = []
    for name, each in scores.items():
        if name in failures:
            continue
        joined = _joined(each)
        found.append(Candidate(name, joined, judge(gated(joined), gates, name)))
    return tuple(found), failures


def _program(graphs: Graphs, name: str, plan: Plan) -> tuple[bytes, str]:
    data = graphs.variants[name].data
    half = name == "fp16" or (name == "int8" and plan.half)
    return (in_half_arithmetic(data), "half") if half else (data, "plain")


def _joined(scores: Sequence[Score]) -> Score:
    agreement = ground("calibration.agreement")
    tasks: dict[str, list[Any]] = {}
    routing = agreement.Routing()
    for one in scores:
        routing += one.routing
        for task, cost in one.tasks.items():
            tasks.setdefault(task, []).append(cost)
    means = {task: agreement.mean_cost(costs) for task, costs in tasks.items()}
    joined: Score = agreement.Score(means, routing, max(one.max_difference for one in scores))
    return joined


def gated(score: Score) -> dict[str, float]:
    """What the gates look at."""
    return {
        "max_difference": score.max_difference,
        "psnr_drop_db": score.worst_psnr_drop_db,
        "mean_psnr_drop_db": score.mean_psnr_drop_db,
        "sam_rise_deg": max(t.sam_rise_deg for t in score.tasks.values()),
        "mean_sam_rise_deg": score.mean_sam_rise_deg,
        "routing_agreement": score.routing.agreement,
    }


def timed(
    graphs: Graphs, plan: Plan, signature: Signature, probe: Probe, precisions: Sequence[str]
) -> tuple[dict[tuple[str, str], float], dict[str, MachineError]]:
    """Median milliseconds of a frame here by (precision, engine), in turns; of the plan's engine, or all with `auto`.

    Returns:
        the times, and why a precision runs in none of the engines.

    Raises:
        MachineError: none of the precisions runs in any engine.
    """
    names = CPU_ENGINES if plan.engine == "auto" else (plan.engine,)
    installed = available_engines()
    opened: dict[tuple[str, str], Engine] = {}
    refused: dict[str, MachineError] = {}
    try:
        for precision in precisions:
            for name in names:
                if (precision == "bf16" and name == "onnxruntime") or (plan.engine == "auto" and not installed[name]):
                    continue
                program = graphs.chosen(precision).data
                options = EngineOptions(plan.target.threads, precision)
                try:
                    opened[precision, name] = open_engine(name, program, signature, options)
                except MachineError as error:
                    refused[precision] = error
        rounds: dict[tuple[str, str], list[float]] = {key: [] for key in opened}
        with console.progress("timing the engines") as moved:
            for number in range(ROUNDS + 1):
                for key, engine in opened.items():
                    began = time.perf_counter()
                    engine.infer(probe)
                    # The first frame also makes what an engine makes once.
                    if number:
                        rounds[key].append(time.perf_counter() - began)
                moved(number, ROUNDS)
    finally:
        for engine in opened.values():
            engine.close()
    refused = {precision: e for precision, e in refused.items() if all(p != precision for p, _ in opened)}
    if not opened:
        raise next(iter(refused.values()), None) or MachineError(
            "no engine that is installed here runs this precision",
            key="precision",
            value=precisions[0],
            remedy='pip install "damp-deploy[openvino]", or build with --precision fp32',
        )
    return {key: round(1000 * float(np.median(taken)), 3) for key, taken in rounds.items()}, refused


def fastest(times: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """{precision: the engine that runs it fastest here}."""
    engines: dict[str, str] = {}
    for precision, engine in times:
        held = engines.setdefault(precision, engine)
        engines[precision] = min(held, engine, key=lambda name: times[precision, name])
    return engines


def decide_by_speed(
    candidates: tuple[Candidate, ...],
    times: Mapping[tuple[str, str], float],
    left_out: Sequence[str],
    allowed: Collection[str] = ORDER,
) -> Decision:
    """The fastest of those that pass and that the target runs, where a lower precision is clearly faster."""
    measured = tuple(
        Candidate(c.precision, c.score, c.gates, {e: t for (p, e), t in times.items() if p == c.precision})
        for c in candidates
    )
    passing = [c for c in measured if c.passed and c.milliseconds and c.precision in allowed]
    reasons = [*left_out, *(_failed_why(c) for c in measured if not c.passed)]
    if not passing:
        raise _nothing_passes(measured, left_out, allowed)
    # From the highest precision down: each lower one has to earn its place.
    passing.sort(key=lambda c: -ORDER.index(c.precision))
    best = passing[0]
    for candidate in passing[1:]:
        faster = min(candidate.milliseconds.values()) <= CLEARLY * min(best.milliseconds.values())
        ratio = min(best.milliseconds.values()) / min(candidate.milliseconds.values())
        said = f"{candidate.precision} passes its gates and runs at {ratio:.2f} times the speed of {best.precision}"
        reasons.append(said if faster else f"{said}, which is not faster: {best.precision} is kept")
        best = candidate if faster else best
    engine = min(best.milliseconds, key=lambda name: best.milliseconds[name])
    return Decision(best.precision, engine, _why(reasons, best), measured, best.milliseconds)


def decide_unmeasured(
    candidates: tuple[Candidate, ...],
    engine: str,
    left_out: Sequence[str],
    *,
    made_there: bool,
    allowed: Collection[str] = ORDER,
) -> Decision:
    """For a target whose engine does not run here: FP16 where it passes, since int8 is often slower on a device."""
    passing = {c.precision: c for c in candidates if c.passed and c.precision in allowed}
    reasons = [*left_out, *(_failed_why(c) for c in candidates if not c.passed)]
    best = next((passing[p] for p in ("fp16", "fp32") if p in passing), None)
    if best is None:
        raise _nothing_passes(candidates, left_out, allowed)
    rivals = tuple(name for name in passing if name == "int8" and made_there)
    if "int8" in passing:
        then = (
            "`deploy finalize` builds both on the target and keeps the faster"
            if rivals
            else "build it with --precision int8 and compare the two with `deploy bench` on the target"
        )
        reasons.append(f"int8 passes its gates too, but is chosen only where its speed is measured: {then}")
    return Decision(best.precision, engine, _why(reasons, best), candidates, rivals=rivals)


def require_passed(candidates: tuple[Candidate, ...], precision: str) -> None:
    """Raise GateError with the figures where a precision that was asked for fails."""
    asked = next(c for c in candidates if c.precision == precision)
    missed = failed(asked.gates)
    if missed:
        error = GateError(
            f"{precision} was asked for and does not restore as PyTorch does: {'; '.join(told(g) for g in missed)}",
            key=f"gates.{missed[0].key}",
            value=float(f"{missed[0].measured:.6g}"),
            remedy="nothing was written; lower calibration.max_drop, give more cubes, or build with --precision auto",
        )
        error.result = {"candidates": {c.precision: c.as_json() for c in candidates}}
        raise error


def show(decision: Decision) -> None:
    """The table for people."""
    console.table(
        "precisions, against PyTorch on the judged frames only",
        ("precision", "loses dB", "worst dB", "SAM deg", "worst SAM", "same experts", "ms", "gates"),
        [
            (
                c.precision,
                f"{c.score.mean_psnr_drop_db:.4f}",
                f"{c.score.worst_psnr_drop_db:.4f}",
                f"{c.score.mean_sam_rise_deg:+.3f}",
                f"{max(t.sam_rise_deg for t in c.score.tasks.values()):+.3f}",
                f"{100 * c.score.routing.agreement:.2f} %",
                f"{min(c.milliseconds.values()):.1f}" if c.milliseconds else "not here",
                "passed" if c.passed else "FAILED",
            )
            for c in decision.candidates
        ],
    )


def _failed_why(candidate: Candidate) -> str:
    return f"{candidate.precision} fails {', '.join(told(g) for g in failed(candidate.gates))}"


def _why(reasons: list[str], best: Candidate) -> str:
    return f"auto: {'; '.join(reasons) or f'{best.precision} passes its gates and nothing else was to be chosen'}"


def _nothing_passes(candidates: tuple[Candidate, ...], left_out: Sequence[str], allowed: Collection[str]) -> GateError:
    idle = [f"{c.precision} passes, but is none of the target's" for c in candidates if c.passed]
    told_of = [*left_out, *(_failed_why(c) for c in candidates if not c.passed and c.precision in allowed), *idle]
    error = GateError(
        f"no precision of the target passes its gates: {'; '.join(told_of)}",
        key="gates",
        remedy="nothing was written; look at the figures with --json",
    )
    error.result = {"candidates": {c.precision: c.as_json() for c in candidates}}
    return error
