"""ONNX graphs with an engine's signature whose results are known: restored = gain * frame + offset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.engines import EngineSpec

SMALL = EngineSpec(bands=3, lines=8, samples=16, metrics=6, layers=2, experts=4)


def known_model(spec: EngineSpec = SMALL, gain: float = 1.0, offset: float = 0.0) -> onnx.ModelProto:
    """Gates are a softmax over the experts of seeded multiples of the metrics."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((spec.metrics, spec.layers * spec.experts)).astype(np.float32)
    constants = {
        "gain": np.float32(gain),
        "offset": np.float32(offset),
        "weights": weights,
        "shape": np.array(spec.gates_shape, np.int64),
    }
    nodes = [
        helper.make_node("Mul", ["frame", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["restored"]),
        helper.make_node("MatMul", ["metrics", "weights"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["gates"], axis=-1),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("frame", spec.frame_shape),
            ("metrics", spec.metrics_shape),
            ("restored", spec.frame_shape),
            ("gates", spec.gates_shape),
        )
    }
    graph = helper.make_graph(
        nodes,
        "known",
        [values["frame"], values["metrics"]],
        [values["restored"], values["gates"]],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def known_metrics(spec: EngineSpec = SMALL, values: Sequence[float] = (0.0,) * SMALL.metrics) -> bytes:
    """A graph `frame` -> `metrics` that gives the mean of the frame and adds these values to it."""
    nodes = [
        helper.make_node("ReduceMean", ["frame", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Add", ["column", "values"], ["metrics"]),
    ]
    constants = {"axes": np.array([1, 2, 3]), "last": np.array([1]), "values": np.array(values, np.float32)}
    graph = helper.make_graph(
        nodes,
        "known metrics",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, spec.frame_shape)],
        [helper.make_tensor_value_info("metrics", TensorProto.FLOAT, spec.metrics_shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def known_graph(spec: EngineSpec = SMALL, gain: float = 1.0, offset: float = 0.0) -> bytes:
    """`known_model` as the bytes of a file."""
    data: bytes = known_model(spec, gain, offset).SerializeToString()
    return data
