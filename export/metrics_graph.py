"""The prompt metrics of a frame as an ONNX graph, and the proof that the graph computes what NumPy does."""

from collections.abc import Sequence

from export.metrics import PromptMetrics
from export.onnx import Graph, as_graph
from runtime.arrays import Float32
from runtime.engines import open_metrics
from runtime.engines.onnx_guard import OPSETS
from runtime.errors import GateError
from runtime.metrics import prompt_metrics
from runtime.prompts import TOLERANCES, beyond, differences
from runtime.signature import Signature


def export_metrics(module: PromptMetrics, signature: Signature) -> Graph:
    """Frame -> metrics of the signature, in float32 whatever the network computes in.

    It needs no operator of newer opsets, for which engines get their kernels later.
    """
    return as_graph(module.eval(), signature.metrics_ports, "metrics", root="metrics", opset=OPSETS.start)


def compare_metrics(graph: Graph, signature: Signature, frames: Sequence[Float32]) -> dict[str, float]:
    """{metric: how far the graph is from NumPy at most}, in ONNX Runtime here; see `runtime.prompts.differences`.

    Args:
        graph: of `export_metrics`.
        signature: of the network.
        frames: float32 [1, bands, lines, samples].

    Raises:
        GateError: a metric is farther off than `TOLERANCES` allows.
    """
    assert signature.metrics is not None
    metric_set = signature.metrics.of
    with open_metrics("onnxruntime", graph.data, signature) as session:
        found = [
            differences(session.compute(frame)[0][0], prompt_metrics(frame[0], metric_set), metric_set)
            for frame in frames
        ]
    worst = {name: max(apart[name] for apart in found) for name in found[0]}
    for name, value in beyond(worst).items():
        raise GateError(
            "the metrics' graph does not compute what NumPy does",
            key=name,
            value=value,
            remedy=f"at most {TOLERANCES[name]:g}; nothing was written; build with --metrics host",
        )
    return worst
