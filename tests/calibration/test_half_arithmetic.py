"""FP16 arithmetic in float32: value for value what NumPy's FP16 has, overflow and subnormal numbers included."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.half_arithmetic import half_arithmetic

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, NDArray[np.generic]], shape: list[int]) -> bytes:
    """x float32 -> `a` FP16 -> nodes -> `b` FP16 -> y float32."""
    into, out = (helper.make_node("Cast", [a], [b], to=t) for a, b, t in (("x", "a", HALF), ("b", "y", SINGLE)))
    graph = helper.make_graph(
        [into, *nodes, out],
        "half",
        [helper.make_tensor_value_info("x", SINGLE, shape)],
        [helper.make_tensor_value_info("y", SINGLE, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def run(data: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def test_every_magnitude_is_rounded_as_numpy_rounds() -> None:
    data = graph_of([helper.make_node("Identity", ["a"], ["b"])], {}, [200_000])
    rng = np.random.default_rng(0)
    x = (rng.choice([-1, 1], 200_000) * np.exp2(rng.uniform(-30, 17, 200_000))).astype(np.float32)
    x[:6] = 0, 65504, 65519.9, 65520, -65536, 2.0**-24
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    found = run(half_arithmetic(data), x)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    kept = np.isfinite(expected)
    normal = kept & (np.abs(expected) > 2.0**-14)
    # A tie may go the other way, and a subnormal number is rounded twice.
    assert np.mean(found[normal] != expected[normal]) < 1e-3
    assert np.max(np.abs(found[normal] / expected[normal] - 1)) <= 2.0**-10
    small = kept & ~normal
    assert np.max(np.abs(found[small] - expected[small])) <= 2.0**-24
    np.testing.assert_array_equal(found[kept], found[kept].astype(np.float16))


def test_each_node_of_a_chain_is_rounded() -> None:
    weights = {"w": np.float16([[3.7]]), "v": np.float16(0.11)}
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["p"]),
        helper.make_node("Mul", ["p", "v"], ["q"]),
        helper.make_node("Sub", ["q", "a"], ["b"]),
    ]
    x = np.random.default_rng(1).normal(0, 1, (500, 1)).astype(np.float32)
    half = x.astype(np.float16)
    expected = (half @ weights["w"] * weights["v"] - half).astype(np.float32)
    found = run(half_arithmetic(graph_of(nodes, weights, [500, 1])), x)
    assert np.mean(found != expected) < 0.01


@pytest.mark.parametrize("first", ["MatMul", "Mul"])
def test_an_overflow_between_nodes_is_seen(first: str) -> None:
    weights = {"w": np.full((1, 1), 1000, np.float16), "v": np.full((1, 1), 1e-3, np.float16)}
    nodes = [helper.make_node(first, ["a", "w"], ["p"]), helper.make_node("Mul", ["p", "v"], ["b"])]
    data, x = graph_of(nodes, weights, [2, 1]), np.float32([[1], [100]])
    assert np.isfinite(run(data, x)).all(), "the CPU computes in FP16 now: the rewriting is not needed"
    np.testing.assert_array_equal(np.isfinite(run(half_arithmetic(data), x))[:, 0], [True, False])


def test_no_half_tensor_is_left() -> None:
    weights = {"w": np.float16([[2]])}
    model = onnx.load_model_from_string(
        half_arithmetic(graph_of([helper.make_node("MatMul", ["a", "w"], ["b"])], weights, [4, 1]))
    )
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.type.tensor_type.elem_type for v in inferred.value_info} | {i.data_type for i in inferred.initializer}
    assert types == {SINGLE}
