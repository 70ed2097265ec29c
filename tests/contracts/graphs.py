"""ONNX graphs with an engine's signature whose results are known: restored = gain * frame + offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.metrics import METRIC_SETS
from runtime.signature import Plane, Ports, Prompt, Side, Signature


def damp_like(
    bands: int, lines: int, samples: int, metrics: str = "paper6", layers: int = 2, experts: int = 4
) -> Signature:
    """The signature of a DAMP."""
    return Signature(
        Plane("frame", bands, lines, samples),
        Plane("restored", bands, lines, samples),
        (Prompt("metrics", (1, len(METRIC_SETS[metrics])), "metrics", metrics),),
        (Side("routing", (layers, experts)),),
    )


SMALL = damp_like(3, 8, 16)


def known_model(signature: Signature = SMALL, gain: float = 1.0, offset: float = 0.0) -> onnx.ModelProto:
    """The experts' weights are a softmax over the experts of seeded multiples of the metrics."""
    ports = signature.ports
    rng = np.random.default_rng(0)
    count, shape = ports.inputs["metrics"][1], ports.outputs["routing"]
    constants = {
        "gain": np.float32(gain),
        "offset": np.float32(offset),
        "weights": rng.standard_normal((count, shape[0] * shape[1])).astype(np.float32),
        "shape": np.array(shape, np.int64),
    }
    nodes = [
        helper.make_node("Mul", ["frame", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["restored"]),
        helper.make_node("MatMul", ["metrics", "weights"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["routing"], axis=-1),
    ]
    return _model(nodes, "known", ports, constants, 20)


def known_metrics(signature: Signature = SMALL, values: Sequence[float] = (0.0,) * 6) -> bytes:
    """A graph `frame` -> `metrics` that gives the mean of the frame and adds these values to it."""
    nodes = [
        helper.make_node("ReduceMean", ["frame", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Add", ["column", "values"], ["metrics"]),
    ]
    constants = {"axes": np.array([1, 2, 3]), "last": np.array([1]), "values": np.array(values, np.float32)}
    data: bytes = _model(nodes, "known metrics", signature.metrics_ports, constants, 18).SerializeToString()
    return data


def _model(
    nodes: list[onnx.NodeProto], name: str, ports: Ports, constants: Mapping[str, object], opset: int
) -> onnx.ModelProto:
    given, made = (
        [helper.make_tensor_value_info(port, TensorProto.FLOAT, shape) for port, shape in shapes.items()]
        for shapes in (ports.inputs, ports.outputs)
    )
    held = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, given, made, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def known_graph(signature: Signature = SMALL, gain: float = 1.0, offset: float = 0.0) -> bytes:
    """`known_model` as the bytes of a file."""
    data: bytes = known_model(signature, gain, offset).SerializeToString()
    return data
