"""What every precision costs on the judged frames, and what a frame takes in it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration import agreement
from calibration.agreement import Score
from calibration.dataset import CalibrationSet
from calibration.figures import figures
from calibration.half_arithmetic import half_arithmetic
from export.networks import Network
from export.onnx import Probe
from runtime.engines import CPU_ENGINES, PORTABLE, Engine, EngineOptions, available_engines, open_engine
from runtime.errors import MachineError
from runtime.precisions import VARIANTS, computes_half
from runtime.signature import Signature

from .. import console
from ..checking.gates import GateResult, failed, judge
from ..config.sections import GatesSection
from .calibration_frames import cases
from .graphs import Graphs
from .plan import Plan
from .scores import figures_of

ROUNDS = 7
"""Frames that are timed of each engine, in turns."""


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
            "gates": {g.figure.key: g.as_json() for g in self.gates},
            "milliseconds": dict(self.milliseconds),
        }


def judged_candidates(
    net: Network,
    plan: Plan,
    graphs: Graphs,
    frames: CalibrationSet,
    gates: GatesSection,
    engines: Mapping[str, str],
    kept: Path,
    known: Mapping[str, Score],
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
        known: precision -> its score on these frames, where it was measured already.

    Returns:
        the candidates, and why others could not be computed.
    """
    signature = net.signature(plan.lines, plan.samples)
    scores: dict[str, list[Score]] = {
        name: [known[name]] if name in known else [] for name in VARIANTS[::-1] if name in graphs.variants
    }
    opened: dict[str, Engine] = {}
    failures: dict[str, MachineError] = {}
    with ExitStack() as stack:
        for name in scores.keys() - known.keys():
            program, half = graphs.variants[name].data, computes_half(name, plan.half)
            program = half_arithmetic(program) if half else program
            where = PORTABLE if half else engines.get(name, PORTABLE)
            options = EngineOptions(plan.target.threads, "fp32" if half else name)
            try:
                opened[name] = stack.enter_context(open_engine(where, program, signature, options))
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
    joined = {name: agreement.joined(each) for name, each in scores.items() if name not in failures}
    return tuple(Candidate(name, score, judge(figures(score), gates, name)) for name, score in joined.items()), failures


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
    with ExitStack() as stack:
        for precision in precisions:
            for name in names:
                if (precision == "bf16" and name == PORTABLE) or (plan.engine == "auto" and not installed[name]):
                    continue
                program = graphs.chosen(precision).data
                options = EngineOptions(plan.target.threads, precision)
                try:
                    opened[precision, name] = stack.enter_context(open_engine(name, program, signature, options))
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
