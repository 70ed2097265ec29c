"""Channels made alike change nothing in float32 and gain what int8 loses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.equalising import MOST, equalised, peaks_of
from calibration.products import products
from calibration.quantized import quantized, taken
from calibration.ranges import collect, ranges

Float32 = NDArray[np.float32]
CHANNELS, SIDE = 8, 16
LOUD = 64.0
"""A channel that is this much larger than the others."""


def weights(rng: np.random.Generator, *shape: int) -> Float32:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def net(last: str) -> bytes:
    """x -> Conv -> gelu(gate) * value -> `last`, as a gated feed-forward; one channel of `value` is loud."""
    rng = np.random.default_rng(0)
    loud = np.ones((CHANNELS, 1, 1, 1), np.float32)
    loud[3] = LOUD
    constants = {
        "wide": weights(rng, 2 * CHANNELS, 3, 1, 1)[:CHANNELS],
        "gate": weights(rng, CHANNELS, 1, 3, 3),
        "value": weights(rng, CHANNELS, 1, 3, 3) * loud,
        "bias": rng.standard_normal(CHANNELS).astype(np.float32) * loud.ravel(),
        "Conv": weights(rng, 4, CHANNELS, 1, 1) / loud.reshape(1, -1, 1, 1),
        "grouped": weights(rng, 8, CHANNELS // 2, 1, 1),
        "depthwise": weights(rng, CHANNELS, 1, 3, 3),
        "ConvTranspose": weights(rng, CHANNELS, 4, 2, 2) / loud,
        "MatMul": weights(rng, CHANNELS, 4) / loud[:, :, 0, 0],
    }
    depth = {"group": CHANNELS, "pads": [1, 1, 1, 1]}
    ends = {
        "Conv": [helper.make_node("Conv", ["mixed", "Conv"], ["y"], "end/Conv")],
        "shared": [
            helper.make_node("Conv", ["mixed", "Conv"], ["a"], "end/Conv"),
            helper.make_node("Neg", ["mixed"], ["b"], "end/Neg"),
            helper.make_node("ReduceMean", ["b"], ["c"], "end/Mean", keepdims=1),
            helper.make_node("Add", ["a", "c"], ["y"], "end/Add"),
        ],
        "grouped": [helper.make_node("Conv", ["mixed", "grouped"], ["y"], "end/Conv", group=2)],
        "depthwise": [helper.make_node("Conv", ["mixed", "depthwise"], ["y"], "end/Conv", **depth)],
        "ConvTranspose": [
            helper.make_node("ConvTranspose", ["mixed", "ConvTranspose"], ["y"], "end/Conv", strides=[2, 2])
        ],
        "MatMul": [
            helper.make_node("Transpose", ["mixed"], ["rows"], "end/Transpose", perm=[0, 2, 3, 1]),
            helper.make_node("Abs", ["rows"], ["sizes"], "end/Abs"),
            helper.make_node("MatMul", ["sizes", "MatMul"], ["y"], "end/MatMul"),
        ],
    }
    nodes = [
        helper.make_node("Conv", ["x", "wide"], ["h"], "in/Conv"),
        helper.make_node("Conv", ["h", "gate"], ["g"], "gate/Conv", **depth),
        helper.make_node("Gelu", ["g"], ["gelu"], "gate/Gelu"),
        helper.make_node("Conv", ["h", "value", "bias"], ["v"], "value/Conv", **depth),
        helper.make_node("Mul", ["gelu", "v"], ["mixed"], "in/Mul"),
        *ends[last],
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "gated", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, name) for name, v in constants.items() if name in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    data: bytes = model.SerializeToString()
    return data


def frames() -> list[dict[str, Float32]]:
    return [{"x": np.random.default_rng(s).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)} for s in range(3)]


def run(graph: bytes, feeds: Mapping[str, Float32]) -> Float32:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(["y"], dict(feeds))[0]


def names_of(graph: bytes) -> list[str]:
    return [p.name for p in products(onnx.load_model_from_string(graph)) if p.quantisable]


def alike(graph: bytes) -> bytes:
    inputs = taken(onnx.load_model_from_string(graph), names_of(graph))
    return equalised(graph, peaks_of(graph, inputs, frames))


def int8_error(graph: bytes, exact: bytes) -> float:
    """Relative error of a graph whose last product alone runs in int8."""
    last = [name for name in names_of(graph) if name.startswith("end/")]
    histograms = collect(graph, taken(onnx.load_model_from_string(graph), last), frames)
    low = quantized(graph, ranges(histograms, "minmax"), last)
    apart = [np.square(run(low, f) - run(exact, f)).mean() / np.square(run(exact, f)).mean() for f in frames()]
    return float(np.sqrt(np.mean(apart)))


ENDS = ["Conv", "shared", "grouped", "depthwise", "ConvTranspose", "MatMul"]


@pytest.mark.parametrize("last", ENDS)
def test_float32_computes_the_same_bits(last: str) -> None:
    graph = net(last)
    for feeds in frames():
        np.testing.assert_array_equal(run(alike(graph), feeds), run(graph, feeds))


@pytest.mark.parametrize("last", ENDS)
def test_int8_loses_a_fraction_of_what_it_lost(last: str) -> None:
    graph = net(last)
    assert int8_error(alike(graph), graph) < (0.9 if last in ("grouped", "depthwise") else 0.3) * int8_error(
        graph, graph
    )


def test_a_convolution_in_front_takes_the_division_in_and_others_get_a_product() -> None:
    counts = {last: len(onnx.load_model_from_string(alike(net(last))).graph.node) for last in ENDS}
    before = {last: len(onnx.load_model_from_string(net(last)).graph.node) for last in ENDS}
    added = {last: counts[last] - before[last] for last in ENDS}
    assert added == {"Conv": 0, "shared": 1, "grouped": 0, "depthwise": 0, "ConvTranspose": 0, "MatMul": 1}


def test_a_tensor_that_holds_other_values_has_another_name() -> None:
    graph = net("Conv")
    before, after = (onnx.load_model_from_string(g) for g in (graph, alike(graph)))
    names = [{o for n in model.graph.node for o in n.output} for model in (before, after)]
    assert names[0] - names[1] == {"h", "v", "mixed"} - ({"h"} & names[1])


def test_channels_of_nothing_and_of_far_too_much_stay_within_bounds() -> None:
    graph = net("Conv")
    peaks = {"end/Conv": np.array([0.0] * 4 + [1.0] * 3 + [1e30])}
    made = equalised(graph, peaks)
    np.testing.assert_array_equal(run(made, frames()[0]), run(graph, frames()[0]))
    assert equalised(graph, {"end/Conv": np.zeros(CHANNELS)}) == equalised(graph, {}) and MOST == 1024


@pytest.mark.parametrize("channels", [8, 6])
def test_a_product_over_samples_divides_no_channels(channels: int) -> None:
    rng = np.random.default_rng(0)
    values = {"w": weights(rng, channels, channels, 1, 1), "m": weights(rng, 8, 8)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="a/Conv", kernel_shape=[1, 1]),
        helper.make_node("MatMul", ["c", "m"], ["y"], name="b/MatMul"),
    ]
    told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 4, 8]) for name in "xy"]
    held = [numpy_helper.from_array(value, name) for name, value in values.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", told[:1], told[1:], held),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    graph, feeds = made.SerializeToString(), {"x": weights(rng, 1, channels, 4, 8)}
    peaks = peaks_of(graph, taken(made, frozenset(["a/Conv", "b/MatMul"])), lambda: [feeds])
    np.testing.assert_allclose(run(equalised(graph, peaks), feeds), run(graph, feeds), rtol=1e-4, atol=1e-4)
