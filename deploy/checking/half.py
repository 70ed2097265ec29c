"""Graphs rewritten in FP16."""

from collections.abc import Sequence

import onnx

from calibration.rounding import with_corrected_biases
from calibration.typed import half_precision
from export.networks import Network
from export.onnx import Probe

from .. import console


def exact_nodes(data: bytes, net: Network) -> frozenset[str]:
    """Names of the nodes of a graph that its network computes in float32 in every precision."""
    graph = onnx.load_model_from_string(data).graph
    return frozenset(node.name for node in graph.node if net.architecture.exact(node.name))


def in_half(data: bytes, name: str, probes: Sequence[Probe], net: Network) -> bytes:
    """A graph rewritten in FP16 with float32 islands, its biases corrected on these probes; says what was done."""
    exact = exact_nodes(data, net)
    with console.progress("rewriting the graph in FP16"):
        corrected = with_corrected_biases(data, probes, exact)
        typed = half_precision(corrected, exact)
    console.say(
        f"{name:<10} {typed.half} nodes in FP16, {typed.single} in float32 islands, {typed.casts} casts, "
        f"{typed.flushed} weights too small for full digits"
    )
    return typed.data
