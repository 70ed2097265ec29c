"""From what was asked to what is built: the graphs in every precision that is needed, and which of them runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.agreement import Score
from calibration.dataset import CalibrationSet
from calibration.half_arithmetic import half_arithmetic
from export import onnx as exporting
from export.networks import Network
from export.onnx import Probe
from runtime.errors import GateError, MachineError
from runtime.precisions import VARIANTS
from runtime.signature import Signature

from .. import console
from ..checking.half import in_half
from ..checking.probes import measuring
from ..config import Config
from .calibration_frames import simulated_frames
from .candidates import fastest, judged_candidates, timed
from .graphs import Graphs, exported, probe_frames
from .int8 import Flight, calibrate
from .int8_told import report_files
from .plan import Plan
from .precision import Decision, decide_by_speed, decide_unmeasured, require_passed, show


@dataclass(frozen=True)
class Variants:
    """The graphs of a build, and what led to the int8 one.

    Attributes:
        graphs: in every precision that may run.
        judged: frames that precisions are judged by, at the build's size; None where nothing is to be judged.
        facts: for the manifest's evidence.
        files: for the bundle.
        without_int8: why there is no int8 graph, where there might have been one.
        int8: the int8 graph's score on the judged frames, and the engine that it was taken in.
    """

    graphs: Graphs
    judged: CalibrationSet | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    without_int8: str | None = None
    int8: tuple[Score, str] | None = None


def make_variants(
    net: Network, plan: Plan, graphs: Graphs, frames: CalibrationSet | None, config: Config, work: Path
) -> Variants:
    """Add the int8 graph where one is asked for.

    Raises:
        GateError: int8 is asked for by name and nothing can run in it.
    """
    if plan.precision not in ("int8", "auto"):
        return Variants(graphs)
    judged = (frames or simulated_frames(config, net)).made_by(measuring(net, plan.lines, plan.samples))
    if frames is None:
        told = "no calibration cubes were given, so int8 was left out" if "int8" in plan.target.precisions else None
        return Variants(graphs, judged, without_int8=told)
    fp32 = graphs.variants["fp32"]
    export = exporting.export_graph
    small = frames.size != judged.size
    experts = plan.target.experts
    ranked = exported(lambda: export(net, *frames.size, experts), work, "searched")[0] if small else fp32
    try:
        found = calibrate(net, fp32.data, ranked.data, frames, judged, config, work, _flight(net, plan, graphs))
    except (GateError, MachineError) as error:
        if plan.precision == "int8":
            raise
        return Variants(graphs, judged, without_int8=f"int8 is out: {error.problem}")
    facts = found.facts
    console.say(
        f"int8       {100 * facts['int8_mac_share']:.1f} % of the multiply-adds, ranges by {facts['method']}; "
        f"{len(facts['kept_in_higher_precision'])} groups stay in {'fp16' if plan.half else 'fp32'}"
    )
    return Variants(
        graphs.having("int8", found.graph),
        judged,
        {"quantisation": facts},
        report_files(found.search),
        int8=(found.score, found.engine),
    )


def _flight(net: Network, plan: Plan, graphs: Graphs) -> Flight:
    """How an int8 graph of this build flies; what this machine cannot run is computed by ONNX Runtime."""
    if plan.half:
        made = lambda graph: in_half(graph, "int8", probe_frames(net, plan), net)  # noqa: E731
        return Flight(made=made, runs=half_arithmetic, precision="fp32")
    if plan.engine != "auto":
        return Flight(engine=lambda _: plan.engine)

    def fastest_here(graph: bytes) -> str:
        times, refused = timed(
            graphs.having("int8", graph), plan, net.signature(plan.lines, plan.samples), probe_frames(net, plan)[0],
            ("int8",),
        )  # fmt: skip
        if refused:
            raise refused["int8"]
        return fastest(times)["int8"]

    return Flight(engine=fastest_here)


def decide(
    net: Network, plan: Plan, variants: Variants, config: Config, signature: Signature, probe: Probe, work: Path
) -> Decision:
    """What runs: what was asked for, or the fastest that passes its gates; and the engine that runs it.

    Raises:
        GateError: what was asked for, or everything, fails its gates.
    """
    on_gpu, allowed = plan.half, plan.target.precisions
    if variants.judged is None:
        if plan.engine != "auto":
            return Decision(plan.precision, plan.engine, "", ())
        found, refused = timed(variants.graphs, plan, signature, probe, (plan.precision,))
        if plan.precision in refused:
            raise refused[plan.precision]
        of_engine = {engine: milliseconds for (_, engine), milliseconds in found.items()}
        return Decision(plan.precision, min(of_engine, key=lambda name: of_engine[name]), "", (), of_engine)
    names = [name for name in VARIANTS[::-1] if name in variants.graphs.variants]
    times, refused = ({}, {}) if on_gpu else timed(variants.graphs, plan, signature, probe, names)
    known = {}
    if variants.int8 is not None:
        known["int8"], its_own = variants.int8
        # It was searched in one engine: in another it may cost something else.
        times = {key: time for key, time in times.items() if key[0] != "int8" or key[1] == its_own}
    candidates, failures = judged_candidates(
        net, plan, variants.graphs.only(names if on_gpu else fastest(times)), variants.judged, config.gates,
        fastest(times), work / "frames", known,
    )  # fmt: skip
    refused = {**refused, **failures}
    if plan.precision in refused:
        raise refused[plan.precision]
    left_out = [f"{name} is out: {error.problem}" for name, error in refused.items()]
    reasons = [*([variants.without_int8] if variants.without_int8 else []), *left_out]
    if plan.precision == "int8":
        decision = asked_for_int8(plan, candidates, times)
    elif on_gpu:
        decision = decide_unmeasured(
            candidates, plan.engine, reasons, made_there=plan.target.made_there, allowed=allowed
        )
    else:
        decision = decide_by_speed(candidates, times, reasons, allowed)
    show(decision)
    console.say(f"chosen     {decision.precision}: {decision.why}", "bold")
    return decision


def asked_for_int8(plan: Plan, candidates: Any, times: dict[tuple[str, str], float]) -> Decision:
    """int8 because somebody said so: its gates hold, and where it is not faster a warning says so."""
    require_passed(candidates, "int8")
    if not times:
        return Decision("int8", plan.engine, "asked for; its speed is measured on the target", candidates)
    decision = decide_by_speed(candidates, times, [])
    own = {engine: t for (precision, engine), t in times.items() if precision == "int8"}
    engine = min(own, key=lambda name: own[name])
    ratio = times["fp32", engine] / own[engine]
    if ratio < 1:
        console.warn(f"int8 is slower than fp32 here, {own[engine]:g} ms against {times['fp32', engine]:g} in {engine}")
    why = f"asked for; {ratio:.2f} times the speed of fp32 in {engine} here"
    return Decision("int8", engine, why, decision.candidates, own)
