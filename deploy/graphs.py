"""The graphs of a bundle: exported once, rewritten in the precision that runs, each held against PyTorch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.durable import write_bytes
from runtime.engines import ENGINES, GPU_ENGINES, METRICS_ENGINES, EngineOptions, open_engine
from runtime.errors import GateError, InputError, MachineError
from runtime.prompts import TOLERANCES, Prompts
from runtime.signature import Signature

from . import console
from .options import ground
from .plan import Plan

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show the commands' help.
    from calibration.measuring import Measuring
    from export.metrics import PromptMetrics
    from export.networks import Network
    from export.onnx import Agreement, Graph, Probe

PROBE_DEGRADATIONS = ("noise", "blur", "inpaint", "bandloss")
COMPUTED_FROM = {"bf16": "fp32"}
"""Precision -> the variant that it is computed from, where that is another."""


@dataclass(frozen=True)
class Graphs:
    """The graphs of a bundle.

    Attributes:
        variants: type of the weights (`fp32`, `fp16`, `int8`) -> graph.
        seconds: the export took.
    """

    variants: Mapping[str, Graph]
    seconds: float

    def chosen(self, precision: str) -> Graph:
        """The graph that runs in this precision; bfloat16 is computed from the float32 graph."""
        return self.variants[COMPUTED_FROM.get(precision, precision)]

    def paths(self) -> dict[str, str]:
        """Variant -> path inside the bundle."""
        return {name: f"graphs/{name}.onnx" for name in self.variants}

    def having(self, name: str, data: bytes) -> Graphs:
        """These graphs and one more variant."""
        first = self.variants["fp32"]
        graph = dataclasses.replace(first, data=data, nodes=ground("export.onnx").count_nodes(data))
        return dataclasses.replace(self, variants={**self.variants, name: graph})

    def only(self, names: Collection[str]) -> Graphs:
        """The float32 graph and those of these names."""
        kept = {name: graph for name, graph in self.variants.items() if name == "fp32" or name in names}
        return dataclasses.replace(self, variants=kept)


def make_graphs(net: Network, plan: Plan, work: Path) -> Graphs:
    """Export the float32 graph, or take it from an unfinished build; with its FP16 variant where the plan needs it."""
    graph, seconds = exported(lambda: ground("export.onnx").export_graph(net, plan.lines, plan.samples), work, "graph")
    graphs = Graphs({"fp32": graph}, seconds)
    if plan.precision == "fp16" or (plan.precision == "auto" and "fp16" in plan.target.precisions):
        try:
            graphs = graphs.having("fp16", in_half(graph.data, "fp16", probe_frames(net, plan)))
        except MachineError as error:
            if plan.precision == "fp16":
                raise
            console.warn(f"fp16 is left out: {error.problem}")
    return graphs


def in_half(data: bytes, name: str, probes: Sequence[Probe]) -> bytes:
    """A graph rewritten in FP16 with float32 islands, its biases corrected on these probes; says what was done."""
    with console.progress("rewriting the graph in FP16"):
        corrected = ground("calibration.rounding").with_corrected_biases(data, probes)
        typed = ground("calibration.typed").half_precision(corrected)
    console.say(
        f"{name:<10} {typed.half} nodes in FP16, {typed.single} in float32 islands, {typed.casts} casts, "
        f"{typed.flushed} weights too small for full digits"
    )
    half: bytes = typed.data
    return half


def in_half_arithmetic(data: bytes) -> bytes:
    """An FP16 graph whose rounding float32 kernels compute, see `calibration.half_arithmetic`."""
    rounded: bytes = ground("calibration.half_arithmetic").half_arithmetic(data)
    return rounded


def measure(net: Network, plan: Plan, graphs: Graphs, engine: str) -> tuple[dict[str, Agreement], list[Probe]]:
    """Compare every variant with PyTorch on frames that make it choose different experts.

    Args:
        net: the network.
        plan: what is built, in its final precision.
        graphs: its graphs.
        engine: the engine that runs the chosen one here: the target's own, or ONNX Runtime in place of one that needs
            a GPU. FP16 is always computed in FP16's arithmetic, see `calibration.half_arithmetic`.

    Returns:
        variant or precision -> agreement, and the probes.

    Raises:
        GateError: a graph does not compute what PyTorch does.
    """
    onnx = ground("export.onnx")
    found: dict[str, Agreement] = {}
    with console.progress("comparing the graphs with PyTorch") as moved:
        probes: list[Probe] = onnx.diverse_probes(net, probe_frames(net, plan))
        size = (plan.lines, plan.samples)
        found["fp32"] = onnx.compare(net, graphs.variants["fp32"], probes, size, moved)
        for name in (*graphs.variants, plan.precision):
            graph = graphs.chosen(name)
            if name == "fp16" or (name == "int8" and plan.half):
                found[name] = _compare_half(net, graph, probes, size, moved, name)
            elif name != "fp32" or (plan.precision == "fp32" and engine != "onnxruntime"):
                # What is chosen is compared in its engine, what else is in the bundle in the portable one.
                runs_in = engine if name in (plan.precision, "int8") else "onnxruntime"
                found[name] = onnx.compare(net, graph, probes, size, moved, engine_name=runs_in, precision=name)
    return found, probes


def _compare_half(
    net: Network, graph: Graph, probes: list[Probe], size: tuple[int, int], moved: Any, precision: str
) -> Agreement:
    """An FP16 graph against PyTorch with every FP16 tensor rounded as FP16: no CPU engine does that by itself."""
    rounded = dataclasses.replace(graph, data=in_half_arithmetic(graph.data))
    try:
        agreement: Agreement = ground("export.onnx").compare(net, rounded, probes, size, moved, precision=precision)
    except MachineError as error:
        raise GateError(
            f"the {precision} graph leaves the range of FP16 between its nodes",
            key=precision,
            value=error.value,
            remedy="build with --precision fp32; nothing was written",
        ) from error
    return agreement


def golden_probe(net: Network, plan: Plan, graphs: Graphs, probes: list[Probe]) -> Probe:
    """The first probe on which int8, where the bundle has it, chooses the network's own experts.

    Raises:
        GateError: there is none, so that no engine of it could be proved.
    """
    reference = ground("export.torch_engine").TorchEngine(net, plan.lines, plan.samples)
    routing = reference.signature.routing
    if "int8" not in graphs.variants or routing is None:
        return probes[0]
    data = graphs.variants["int8"].data
    program = in_half_arithmetic(data) if plan.half else data
    with open_engine("onnxruntime", program, reference.signature, EngineOptions(plan.target.threads)) as engine:
        for probe in probes:
            one, other = (way.infer(probe)[routing.name] > 0 for way in (engine, reference))
            if np.array_equal(one, other):
                return probe
    raise GateError(
        "int8 chooses other experts than PyTorch on every probe",
        key="int8",
        remedy="nothing was written; build with --precision fp32 or fp16",
    )


def check_engine(asked: str | None, own: str, precision: str) -> str:
    """The engine to build for: what was asked for, or the target's own.

    Raises:
        InputError: there is no such engine, or the target cannot run it. Only an engine that loads the graph itself can
            take the place of the target's own, one of the GPU's on a GPU and one of the CPU's on a CPU.
    """
    engine = own if asked is None else asked
    same_place = GPU_ENGINES if own in GPU_ENGINES else {*ENGINES, "auto"} - GPU_ENGINES
    others = sorted(same_place - {*ground("export.targets").ENGINE_FILES, own})
    if engine not in (own, *others):
        raise InputError(
            "the target does not run this engine" if engine in {*ENGINES, "auto"} else "unknown engine",
            key="--engine",
            value=engine,
            remedy=f"leave it out for {own}, or give one of {', '.join(others)}",
        )
    if precision == "bf16" and engine == "onnxruntime":
        raise InputError(
            "ONNX Runtime does not compute in bfloat16 on a CPU",
            key="--engine",
            value=engine,
            remedy="use --engine openvino, or --precision fp32",
        )
    return engine


def check_metrics(asked: str, engine: str) -> None:
    """Refuse a graph of metrics where the engine computes none. Raises InputError."""
    if asked == "graph" and engine not in METRICS_ENGINES:
        raise InputError(
            "this engine does not compute metrics from a graph",
            key="--metrics",
            value=f"{asked}, with {engine}",
            remedy=f"use --metrics host, or --engine {' or '.join(METRICS_ENGINES)} where the target has it",
        )


def metrics_graph(
    module: PromptMetrics, signature: Signature, probes: Sequence[Probe], work: Path
) -> tuple[bytes, dict[str, float]]:
    """The graph of a frame's metrics, and how far it is from NumPy on these frames. Raises GateError."""
    made = ground("export.metrics_graph")
    graph, _ = exported(lambda: made.export_metrics(module, signature), work, "metrics")
    frames = [probe[signature.measured.name] for probe in probes]
    with console.progress("comparing the metrics' graph with NumPy"):
        apart: dict[str, float] = made.compare_metrics(graph, signature, frames)
    name = max(apart, key=lambda metric: apart[metric] / TOLERANCES[metric])
    console.say(
        f"metrics    a graph of {graph.nodes} nodes, opset {graph.opset}; nearest to its limit is {name}, "
        f"{apart[name]:.1e} from NumPy's (limit {TOLERANCES[name]:.0e})"
    )
    return graph.data, apart


def measuring(net: Network, lines: int, samples: int) -> Measuring:
    """How frames of a size come from clean cubes for a network."""
    signature, architecture = net.signature(lines, samples), net.architecture
    made: Measuring = ground("calibration.measuring").Measuring(
        Prompts(signature, net.constants), architecture.tasks, architecture.measure
    )
    return made


def probe_frames(net: Network, plan: Plan) -> list[Probe]:
    """What a network is fed with for a simulated scene, damaged or measured in several ways."""
    return simulated_probes(net, (plan.lines, plan.samples), plan.wavelengths)


def simulated_probes(net: Network, size: tuple[int, int], wavelengths: Sequence[float]) -> list[Probe]:
    """`probe_frames` of another size; wavelengths in nm that are not one per band are left aside."""
    from runtime.sources.simulator import simulate_scene

    way = measuring(net, *size)
    restored = way.signature.restored
    centres = wavelengths if len(wavelengths) == restored.bands else None
    scene = simulate_scene(0, restored.bands, *restored.size, centres).truth
    tasks = PROBE_DEGRADATIONS if way.measure is None else way.tasks
    return [way.feeds(way.measured(task, scene, np.random.default_rng([0, index]))) for index, task in enumerate(tasks)]


def exported(export: Callable[[], Graph], work: Path, name: str) -> tuple[Graph, float]:
    """The graph, exported or from an unfinished build of the same plan, and the seconds that its export took."""
    onnx = ground("export.onnx")
    graph_file, facts_file = work / f"{name}.onnx", work / f"{name}.json"
    try:
        facts, data = json.loads(facts_file.read_bytes()), graph_file.read_bytes()
        if hashlib.sha256(data).hexdigest() == facts["sha256"]:
            found: Graph = onnx.Graph(data, int(facts["nodes"]), int(facts["opset"]))
            console.say("going on with an unfinished build: its graph is used again")
            return found, float(facts["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        # No unfinished build, or a damaged one: the graph is exported anew.
        facts_file.unlink(missing_ok=True)
    began = time.monotonic()
    with console.progress("exporting the graph"):
        graph = export()
    seconds = time.monotonic() - began
    write_bytes(graph_file, graph.data)
    facts = {
        "sha256": hashlib.sha256(graph.data).hexdigest(),
        "nodes": graph.nodes,
        "opset": graph.opset,
        "seconds": seconds,
    }
    write_bytes(facts_file, json.dumps(facts).encode())
    return graph, seconds
