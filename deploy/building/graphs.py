"""The graphs of a bundle: exported once, rewritten in the precision that runs, each held against PyTorch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from calibration.half_arithmetic import half_arithmetic
from export import onnx as exporting
from export.metrics import PromptMetrics
from export.metrics_graph import compare_metrics, export_metrics
from export.networks import Network
from export.onnx import Agreement, Graph, Probe
from export.torch_engine import TorchEngine
from runtime.arrays import Float32
from runtime.durable import write_bytes
from runtime.engines import PORTABLE, open_extractor
from runtime.errors import GateError, MachineError
from runtime.precisions import PRECISIONS, computes_half
from runtime.prompts import TOLERANCES
from runtime.signature import Signature

from .. import console
from ..checking.comparison import CLOSE_GAP
from ..checking.half import in_half
from ..checking.probes import simulated_probes, simulated_truth
from .plan import Plan

EMBEDDING_LIMIT = 1e-4


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
        return self.variants[PRECISIONS[precision].graph]

    def paths(self) -> dict[str, str]:
        """Variant -> path inside the bundle."""
        return {name: f"graphs/{name}.onnx" for name in self.variants}

    def having(self, name: str, data: bytes) -> Graphs:
        """These graphs and one more variant."""
        first = self.variants["fp32"]
        graph = dataclasses.replace(first, data=data, nodes=exporting.count_nodes(data))
        return dataclasses.replace(self, variants={**self.variants, name: graph})

    def only(self, names: Collection[str]) -> Graphs:
        """The float32 graph and those of these names."""
        kept = {name: graph for name, graph in self.variants.items() if name == "fp32" or name in names}
        return dataclasses.replace(self, variants=kept)


def make_graphs(net: Network, plan: Plan, work: Path) -> Graphs:
    """Export the float32 graph, or take it from an unfinished build; with its FP16 variant where the plan needs it."""
    size, experts = (plan.lines, plan.samples), plan.target.experts
    graph, seconds = exported(lambda: exporting.export_graph(net, *size, experts), work, "graph")
    graphs = Graphs({"fp32": graph}, seconds)
    if plan.precision == "fp16" or (plan.precision == "auto" and "fp16" in plan.target.precisions):
        try:
            graphs = graphs.having("fp16", in_half(graph.data, "fp16", probe_frames(net, plan), net))
        except MachineError as error:
            if plan.precision == "fp16":
                raise
            console.warn(f"fp16 is left out: {error.problem}")
    return graphs


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
    found: dict[str, Agreement] = {}
    with console.progress("comparing the graphs with PyTorch") as moved:
        probes, truth = exporting.diverse_probes(net, probe_frames(net, plan)), probe_truth(net, plan)
        if net.architecture.gap is not None:
            # The golden frame is proved with every prompt, so it is measured with every one.
            probes = [*clearest(net, probes, TorchEngine(net, plan.lines, plan.samples)), *probes]
        size = (plan.lines, plan.samples)
        found["fp32"] = exporting.compare(net, graphs.variants["fp32"], probes, size, moved, truth=truth)
        for name in (*graphs.variants, plan.precision):
            graph = graphs.chosen(name)
            if computes_half(name, plan.half):
                found[name] = _compare_half(net, graph, probes, size, moved, name)
            elif name != "fp32" or (plan.precision == "fp32" and engine != PORTABLE):
                # What is chosen is compared in its engine, what else is in the bundle in the portable one.
                runs_in = engine if name in (plan.precision, "int8") else PORTABLE
                found[name] = exporting.compare(
                    net, graph, probes, size, moved, engine_name=runs_in, precision=name, truth=truth
                )
    return found, probes


def clearest(net: Network, probes: Sequence[Probe], reference: TorchEngine) -> list[Probe]:
    """The probe whose closest choice between scores is clearest with every prompt, with each of them."""
    told = [condition.constants for condition in net.conditions.values()] or [net.constants]
    found, best = probes[0], -1.0
    for probe in probes:
        least = min(reference.gap({**probe, **constants}) or 0.0 for constants in told)
        if least > best:
            found, best = probe, least
        if best >= CLOSE_GAP:
            break
    return [{**found, **constants} for constants in told]


def _compare_half(
    net: Network, graph: Graph, probes: list[Probe], size: tuple[int, int], moved: Any, precision: str
) -> Agreement:
    """An FP16 graph against PyTorch with every FP16 tensor rounded as FP16: no CPU engine does that by itself."""
    rounded = dataclasses.replace(graph, data=half_arithmetic(graph.data))
    try:
        return exporting.compare(net, rounded, probes, size, moved, precision=precision)
    except MachineError as error:
        raise GateError(
            f"the {precision} graph leaves the range of FP16 between its nodes",
            key=precision,
            value=error.value,
            remedy="build with --precision fp32; nothing was written",
        ) from error


def metrics_graph(
    module: PromptMetrics, signature: Signature, probes: Sequence[Probe], work: Path
) -> tuple[bytes, dict[str, float]]:
    """The graph of a frame's metrics, and how far it is from NumPy on these frames. Raises GateError."""
    graph, _ = exported(lambda: export_metrics(module, signature), work, "metrics")
    frames = [probe[signature.measured.name] for probe in probes]
    with console.progress("comparing the metrics' graph with NumPy"):
        apart = compare_metrics(graph, signature, frames)
    name = max(apart, key=lambda metric: apart[metric] / TOLERANCES[metric])
    console.say(
        f"metrics    a graph of {graph.nodes} nodes, opset {graph.opset}; nearest to its limit is {name}, "
        f"{apart[name]:.1e} from NumPy's (limit {TOLERANCES[name]:.0e})"
    )
    return graph.data, apart


def extractor_graph(net: Network, signature: Signature, probes: Sequence[Probe], work: Path) -> bytes:
    """The graph of a frame's embedding, held against PyTorch on these probes. Raises GateError."""
    graph, _ = exported(lambda: exporting.export_extractor(net, signature), work, "extractor")
    embedding = signature.embedding
    assert embedding is not None, "the network takes one"
    apart, reference = 0.0, net.extractor
    assert reference is not None, "it makes the embedding"
    shares = [np.ones((1, 1, *signature.measured.size), np.float32) for _ in range(2)]
    # Of a padded or overlapping frame not every pixel counts.
    shares[1][..., : signature.measured.samples // 2] = 0
    with open_extractor(PORTABLE, graph.data, signature) as session:
        for probe, share in product(probes, shares):
            given = probe[signature.measured.name], share
            expected, found = reference.compute(*given)[0], session.compute(*given)[0]
            apart = max(apart, float(np.abs(found - expected).max()) / (float(np.abs(expected).max()) or 1.0))
    if not apart <= EMBEDDING_LIMIT:
        raise GateError(
            "the extractor's graph does not compute what PyTorch does",
            key=embedding.name,
            value=apart,
            remedy=f"at most {EMBEDDING_LIMIT:g} of its largest number; nothing was written; report this",
        )
    console.say(
        f"extractor  a graph of {graph.nodes} nodes, opset {graph.opset}; its {embedding.shape[1]} numbers differ from "
        f"PyTorch's by at most {apart:.1e} of the largest (limit {EMBEDDING_LIMIT:.0e})"
    )
    return graph.data


def probe_truth(net: Network, plan: Plan) -> Float32 | None:
    """[1, bands, lines, samples] that all probes are of, where quality alone is held against PyTorch."""
    if net.parity == "elements":
        return None
    return simulated_truth(net, (plan.lines, plan.samples), plan.wavelengths)[None]


def probe_frames(net: Network, plan: Plan) -> list[Probe]:
    """What a network is fed with for a simulated scene, damaged or measured in several ways."""
    return simulated_probes(net, (plan.lines, plan.samples), plan.wavelengths)


def exported(export: Callable[[], Graph], work: Path, name: str) -> tuple[Graph, float]:
    """The graph, exported or from an unfinished build of the same plan, and the seconds that its export took."""
    graph_file, facts_file = work / f"{name}.onnx", work / f"{name}.json"
    try:
        facts, data = json.loads(facts_file.read_bytes()), graph_file.read_bytes()
        if hashlib.sha256(data).hexdigest() == facts["sha256"]:
            found = exporting.Graph(data, int(facts["nodes"]), int(facts["opset"]))
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
