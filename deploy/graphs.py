"""The graphs of a bundle: exported once, rewritten in the precision that runs, each held against PyTorch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.durable import write_bytes
from runtime.engines import ENGINES, EngineOptions, available_engines, open_engine
from runtime.errors import GateError, InputError, MachineError

from . import console
from .options import ground
from .plan import Plan

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show the commands' help.
    from export.onnx import Agreement, Graph, Probe

PROBE_DEGRADATIONS = ("noise", "blur", "inpaint", "bandloss")
ENGINE_RUNS = 7
"""Frames that each engine restores before the fastest is chosen."""


@dataclass(frozen=True)
class Graphs:
    """The graphs of a bundle.

    Attributes:
        variants: type of the weights (`fp32`, `fp16`) -> graph.
        runs: precision that the engine is told -> variant that it loads; bfloat16 is computed from the float32 graph.
        seconds: the export took.
    """

    variants: Mapping[str, Graph]
    runs: Mapping[str, str]
    seconds: float

    def chosen(self, precision: str) -> Graph:
        """The graph that runs in this precision."""
        return self.variants[self.runs[precision]]

    def paths(self) -> dict[str, str]:
        """Variant -> path inside the bundle."""
        return {name: f"graphs/{name}.onnx" for name in self.variants}


def make_graphs(net: Any, plan: Plan, work: Path) -> Graphs:
    """Export the float32 graph (or take it from an unfinished build) and rewrite it as the plan's precision asks."""
    graph, seconds = _exported(net, plan, work)
    variants, runs = {"fp32": graph}, {plan.precision: "fp32"}
    if plan.precision == "fp16":
        with console.progress("rewriting the graph in FP16"):
            typed = ground("calibration.typed").half_precision(graph.data)
            nodes = ground("export.onnx").count_nodes(typed.data)
        variants["fp16"] = type(graph)(typed.data, nodes, graph.opset)
        runs = {"fp16": "fp16"}
        console.say(
            f"fp16       {typed.half} nodes in FP16, {typed.single} in float32 islands, {typed.casts} casts, "
            f"{typed.flushed} weights too small for full digits"
        )
    return Graphs(variants, runs, seconds)


def measure(net: Any, plan: Plan, graphs: Graphs, engine: str) -> tuple[dict[str, Agreement], list[Probe]]:
    """Compare every variant with PyTorch on frames that make it choose different experts.

    Args:
        net: the network.
        plan: what is built.
        graphs: its graphs.
        engine: the engine that runs the chosen one here: the target's own, or ONNX Runtime in place of one that needs
            a GPU. An FP16 graph is always run in FP16's arithmetic, see `calibration.half_arithmetic`.

    Returns:
        variant or precision -> agreement, and the probes.

    Raises:
        GateError: a graph does not compute what PyTorch does.
    """
    onnx = ground("export.onnx")
    found: dict[str, Agreement] = {}
    with console.progress("comparing the graph with PyTorch") as moved:
        probes: list[Probe] = onnx.diverse_probes(net, *probe_frames(net.config.bands, plan, net.config.metric_set))
        found["fp32"] = onnx.compare(net, graphs.variants["fp32"], probes, moved)
        if plan.precision == "fp16":
            found["fp16"] = _compare_half(net, graphs.variants["fp16"], probes, moved)
        elif plan.precision != "fp32" or engine != "onnxruntime":
            graph = graphs.chosen(plan.precision)
            found[plan.precision] = onnx.compare(
                net, graph, probes, moved, engine_name=engine, precision=plan.precision
            )
    return found, probes


def _compare_half(net: Any, graph: Graph, probes: list[Probe], moved: Any) -> Agreement:
    """The FP16 graph against PyTorch with every FP16 tensor rounded as FP16: no CPU engine does that by itself."""
    rounded = dataclasses.replace(graph, data=ground("calibration.half_arithmetic").half_arithmetic(graph.data))
    try:
        agreement: Agreement = ground("export.onnx").compare(net, rounded, probes, moved, precision="fp16")
    except MachineError as error:
        raise GateError(
            "the FP16 graph leaves the range of FP16 between its nodes",
            key="fp16",
            value=error.value,
            remedy="build with --precision fp32; nothing was written",
        ) from error
    return agreement


def choose_engine(graphs: Graphs, plan: Plan, spec: Any, probe: Probe) -> tuple[str, dict[str, float]]:
    """The engine for a target without a GPU: the plan's, or with `auto` the fastest here by a short measurement.

    Returns:
        the engine's name, and engine -> median milliseconds per frame (empty where nothing was to be chosen).

    Raises:
        MachineError: no installed engine runs the plan's precision.
    """
    if plan.engine != "auto":
        return plan.engine, {}
    program, options = graphs.chosen(plan.precision).data, EngineOptions(plan.target.threads, plan.precision)
    opened, times = {}, {}
    try:
        for name in ("onnxruntime", "openvino"):
            if (plan.precision == "bf16" and name == "onnxruntime") or not available_engines()[name]:
                continue
            opened[name] = open_engine(name, program, spec, options)
        with console.progress("timing the engines") as moved:
            rounds: dict[str, list[float]] = {name: [] for name in opened}
            for number in range(ENGINE_RUNS + 1):
                for name, engine in opened.items():
                    began = time.perf_counter()
                    engine.infer(*probe)
                    # The first frame also makes what an engine makes once.
                    if number:
                        rounds[name].append(time.perf_counter() - began)
                moved(number, ENGINE_RUNS)
        times = {name: round(1000 * float(np.median(taken)), 3) for name, taken in rounds.items()}
    finally:
        for engine in opened.values():
            engine.close()
    if not times:
        raise MachineError(
            "no engine that is installed here runs this precision",
            key="precision",
            value=plan.precision,
            remedy='pip install "damp-deploy[openvino]", or build with --precision fp32',
        )
    return min(times, key=lambda name: times[name]), times


def check_engine(asked: str | None, own: str, precision: str, *, gpu: bool) -> str:
    """The engine to build for: what was asked for, or the target's own. Raises InputError where that cannot be."""
    if asked is None or asked == own:
        engine = own
    elif gpu:
        raise InputError(
            "the target has an engine of its own", key="--engine", value=asked, remedy=f"leave it out, it is {own}"
        )
    elif asked != "auto" and asked not in ENGINES:
        raise InputError("unknown engine", key="--engine", value=asked, remedy=f"one of {', '.join(ENGINES)}, auto")
    else:
        engine = asked
    if precision == "bf16" and engine == "onnxruntime":
        raise InputError(
            "ONNX Runtime does not compute in bfloat16 on a CPU",
            key="--engine",
            value=engine,
            remedy="use --engine openvino, or --precision fp32",
        )
    return engine


def probe_frames(bands: int, plan: Plan, metric_set: str) -> tuple[list[Any], list[Any]]:
    """Degraded frames [1, bands, lines, samples] of a simulated scene, and their metrics [1, M]."""
    from calibration.degradations import DEGRADATIONS
    from runtime.metrics import prompt_metrics
    from runtime.sources.simulator import simulate_scene

    wavelengths = plan.wavelengths if len(plan.wavelengths) == bands else None
    scene = simulate_scene(0, bands, plan.lines, plan.samples, wavelengths).truth
    frames, metrics = [], []
    for index, name in enumerate(PROBE_DEGRADATIONS):
        degraded = DEGRADATIONS[name](scene, np.random.default_rng([0, index]))
        frames.append(np.ascontiguousarray(degraded[None]))
        metrics.append(prompt_metrics(degraded, metric_set)[None])
    return frames, metrics


def _exported(net: Any, plan: Plan, work: Path) -> tuple[Any, float]:
    """The graph, from an unfinished build of the same plan where there is one, and the seconds its export took."""
    onnx = ground("export.onnx")
    graph_file, facts_file = work / "graph.onnx", work / "graph.json"
    try:
        facts, data = json.loads(facts_file.read_bytes()), graph_file.read_bytes()
        if hashlib.sha256(data).hexdigest() == facts["sha256"]:
            found = onnx.Graph(data, int(facts["nodes"]), int(facts["opset"]))
            console.say("going on with an unfinished build: its graph is used again")
            return found, float(facts["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        # No unfinished build, or a damaged one: the graph is exported anew.
        facts_file.unlink(missing_ok=True)
    began = time.monotonic()
    with console.progress("exporting the graph"):
        graph = onnx.export_graph(net, plan.lines, plan.samples)
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
