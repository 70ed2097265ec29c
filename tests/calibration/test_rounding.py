"""Biases that take back what rounded weights shift."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.half_arithmetic import half_arithmetic
from calibration.ranges import Feeds
from calibration.rounding import with_corrected_biases
from calibration.typed import half_precision

BANDS, SIDE = 4, 12


def model_of(operator: str, weights: NDArray[np.float32], bias: bool = True, **attributes: object) -> bytes:
    """`frame` -> the operator -> `restored`, and `metrics` -> `routing` beside it."""
    groups = attributes.get("group", 1)
    assert isinstance(groups, int)
    out = weights.shape[1] * groups if operator == "ConvTranspose" else weights.shape[0]
    initializers = [numpy_helper.from_array(weights, "w")]
    if bias:
        initializers.append(numpy_helper.from_array(np.full(out, 0.25, np.float32), "b"))
    nodes = [
        helper.make_node(operator, ["frame", "w", "b"] if bias else ["frame", "w"], ["x"], name="m/op", **attributes),
        helper.make_node("Identity", ["x"], ["restored"], name="m/out"),
        helper.make_node("Identity", ["metrics"], ["routing"], name="m/routing"),
    ]
    one = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("frame", one, [1, BANDS, SIDE, SIDE]),
            helper.make_tensor_value_info("metrics", one, [1, 2]),
        ],
        [helper.make_tensor_value_info("restored", one, None), helper.make_tensor_value_info("routing", one, [1, 2])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


def runs(data: bytes, feeds: list[Feeds]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["restored"], dict(feed))[0] for feed in feeds])


def feed_of(frame: NDArray[np.float32]) -> Feeds:
    return {"frame": frame, "metrics": np.zeros((1, 2), np.float32)}


CASES = {
    "plain": ("Conv", (6, 4, 1, 1), {}),
    "groups": ("Conv", (8, 2, 1, 1), {"group": 2}),
    "depthwise": ("Conv", (4, 1, 3, 3), {"group": 4}),
    "without a bias": ("Conv", (6, 4, 3, 3), {"bias": False}),
    "strides": ("Conv", (6, 4, 2, 2), {"strides": [2, 2]}),
    "transposed": ("ConvTranspose", (4, 6, 2, 2), {"strides": [2, 2]}),
    "transposed groups": ("ConvTranspose", (4, 3, 2, 2), {"strides": [2, 2], "group": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_rounded_weights_no_longer_shift_a_channel(name: str) -> None:
    operator, shape, attributes = CASES[name]
    rng = np.random.default_rng(5)
    # Large weights round coarsely; frames around one make the same mean everywhere.
    data = model_of(operator, (rng.normal(size=shape) * 30).astype(np.float32), **attributes)
    feeds = [feed_of(rng.normal(1, 0.1, (1, BANDS, SIDE, SIDE)).astype(np.float32)) for _ in range(3)]

    def shift(graph: bytes) -> float:
        exact, rounded = runs(data, feeds), runs(half_arithmetic(graph), feeds)
        return float(np.abs((rounded - exact).mean(axis=(0, 2, 3))).max())

    before = shift(half_precision(data).data)
    after = shift(half_precision(with_corrected_biases(data, feeds)).data)
    assert after < 0.25 * before, (before, after)


def test_a_graph_whose_weights_are_halves_already_keeps_its_biases() -> None:
    weights = np.arange(24, dtype=np.float32).reshape(6, 4, 1, 1)
    data = model_of("Conv", weights)
    feed = feed_of(np.ones((1, BANDS, SIDE, SIDE), np.float32))
    corrected = onnx.load_model_from_string(with_corrected_biases(data, [feed]))
    biases = [numpy_helper.to_array(i) for i in corrected.graph.initializer if i.name.endswith("bias")]
    np.testing.assert_array_equal(biases, [np.full(6, 0.25, np.float32)])
    assert {i.name for i in corrected.graph.initializer} == {"w", "m/op/bias"}
