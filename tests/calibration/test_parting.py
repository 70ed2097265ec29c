"""Where two variants of a graph part: nowhere for a graph and itself, else in the block that was changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.half_arithmetic import half_arithmetic
from calibration.parting import parting
from calibration.products import block_of
from calibration.quantized import quantized
from calibration.typed import half_precision
from runtime.errors import BundleError

Float32 = NDArray[np.float32]
FRAME = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
FEEDS = {"frame": FRAME, "metrics": np.random.default_rng(2).standard_normal((1, 6)).astype(np.float32)}
BLOCKS = ("enc.0", "enc.1.layers.0", "enc.1.layers.1", "dec.0.body", "output")
"""In the order of the graph; the router has no pixels."""


def node(name: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(name.split("/")[1], inputs.split(), [output], name=name, **attributes)


def small_graph() -> bytes:
    """Five blocks one after the other, of which the second and the third hold several nodes."""
    nodes = [
        node("enc.0/Conv", "frame w.in", "first"),
        node("enc.1.layers.0.a/Conv", "first w.a", "a"),
        node("enc.1.layers.0.a/Relu", "a", "positive"),
        node("enc.1.layers.0.b/Conv", "positive w.b", "b"),
        node("enc.1.layers.0/Add", "b first", "second"),
        node("enc.1.layers.1.c/Conv", "second w.c", "c"),
        node("enc.1.layers.1.d/Conv", "c w.d", "d"),
        node("enc.1.layers.1/Add", "d second", "third"),
        node("router/MatMul", "metrics w.router", "logits"),
        node("router/Softmax", "logits", "routing", axis=-1),
        node("dec.0.body.0/Conv", "third w.body", "body"),
        node("output/Conv", "body w.out", "correction"),
        node("output/Add", "correction frame", "restored"),
    ]
    rng = np.random.default_rng(0)
    shapes = {"w.in": (8, 4, 1, 1), **{f"w.{k}": (8, 8, 1, 1) for k in ("a", "b", "c", "d", "body")}}
    shapes |= {"w.out": (4, 8, 1, 1), "w.router": (6, 4)}
    weights = {name: (rng.standard_normal(s) / 3).astype(np.float32) for name, s in shapes.items()}
    ends = {"frame": [1, 4, 8, 8], "metrics": [1, 6], "restored": [1, 4, 8, 8], "routing": [1, 4]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends.items()]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", values[:2], values[2:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


GRAPH = small_graph()


def scaled(weight: str, factor: float) -> bytes:
    """The graph with a weight multiplied."""
    model = onnx.load_model_from_string(GRAPH)
    tensor = next(i for i in model.graph.initializer if i.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), weight))
    data: bytes = model.SerializeToString()
    return data


def test_a_graph_does_not_part_from_itself() -> None:
    found = parting(GRAPH, GRAPH, FEEDS, 0.0)
    assert found.first is None and found.tolerance == 0
    assert [(step.name, step.distance) for step in found.blocks] == [(name, 0.0) for name in BLOCKS]


@pytest.mark.parametrize(
    ("weight", "first", "block"),
    [
        ("w.in", "enc.0/Conv", "enc.0"),
        ("w.a", "enc.1.layers.0.a/Conv", "enc.1.layers.0"),
        ("w.b", "enc.1.layers.0.b/Conv", "enc.1.layers.0"),
        ("w.c", "enc.1.layers.1.c/Conv", "enc.1.layers.1"),
        ("w.d", "enc.1.layers.1.d/Conv", "enc.1.layers.1"),
        ("w.body", "dec.0.body.0/Conv", "dec.0.body"),
        ("w.out", "output/Conv", "output"),
    ],
)
def test_the_first_node_is_the_one_whose_weight_was_changed(weight: str, first: str, block: str) -> None:
    found = parting(GRAPH, scaled(weight, 1.5), FEEDS, 1e-3)
    assert found.first is not None and found.first.name == first and block_of(first) == block
    assert found.first.distance == pytest.approx(0.5, rel=1e-5)
    distances = {step.name: step.distance for step in found.blocks}
    place = BLOCKS.index(block)
    assert all(distances[name] == 0 for name in BLOCKS[:place])
    assert all(distances[name] > 1e-3 for name in BLOCKS[place:])


def test_a_distance_is_relative_to_the_values() -> None:
    found = parting(GRAPH, scaled("w.in", 1.25), FEEDS, 0.1)
    assert found.blocks[0].distance == pytest.approx(0.25, rel=1e-5)
    # Larger frames are off by the same share.
    larger = parting(GRAPH, scaled("w.in", 1.25), {**FEEDS, "frame": FRAME * np.float32(64)}, 0.1)
    assert [s.distance for s in larger.blocks] == pytest.approx([s.distance for s in found.blocks], rel=1e-4)


def test_what_is_within_the_tolerance_is_the_same() -> None:
    other = scaled("w.in", 1.25)
    distances = [s.distance for s in parting(GRAPH, other, FEEDS, 0.0).blocks]
    assert parting(GRAPH, other, FEEDS, 1.01 * max(distances)).first is None
    found = parting(GRAPH, other, FEEDS, 0.99 * max(distances)).first
    assert found is not None and found.distance > 0.99 * max(distances)


def test_a_change_that_a_block_undoes_is_not_reported() -> None:
    model = onnx.load_model_from_string(GRAPH)
    for name, factor in (("w.c", 2.0), ("w.d", 0.5)):
        tensor = next(i for i in model.graph.initializer if i.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    assert parting(GRAPH, model.SerializeToString(), FEEDS, 1e-6).first is None


def test_silent_blocks_are_no_division_by_zero() -> None:
    found = parting(scaled("w.body", 0), scaled("w.body", 1e-3), FEEDS, 0.0)
    assert found.first is not None and found.first.name == "dec.0.body.0/Conv"
    assert 0 < found.first.distance < 0.1


def test_an_fp16_graph_parts_by_rounding_alone() -> None:
    half = half_arithmetic(half_precision(GRAPH).data)
    for other in (half_precision(GRAPH).data, half):
        found = parting(GRAPH, other, FEEDS, 0.01)
        assert found.first is None and [s.name for s in found.blocks] == list(BLOCKS)
        assert 0 < max(s.distance for s in found.blocks) < 2e-3


def test_an_int8_graph_parts_where_its_first_product_is() -> None:
    ranges = {"enc.1.layers.1.c/Conv": 8.0}
    data = quantized(GRAPH, ranges, set(ranges))
    for other in (data, half_precision(data).data):
        found = parting(GRAPH, other, FEEDS, 2e-3)
        assert found.first is not None and found.first.name == "enc.1.layers.1.c/Conv"
        assert {s.name: s.distance for s in found.blocks}["enc.1.layers.0"] < 2e-3 < found.first.distance < 0.1


def test_a_router_that_differs_is_not_looked_at() -> None:
    assert parting(GRAPH, scaled("w.router", 3), FEEDS, 0.0).first is None


def test_tensors_that_one_graph_lacks_are_left_out() -> None:
    model = onnx.load_model_from_string(scaled("w.b", 1.5))
    for changed in model.graph.node:
        changed.input[:] = ["renamed" if n == "b" else n for n in changed.input]
        changed.output[:] = ["renamed" if n == "b" else n for n in changed.output]
    found = parting(GRAPH, model.SerializeToString(), FEEDS, 1e-3)
    assert found.first is not None and found.first.name == "enc.1.layers.0/Add"


# NaN is not more than the tolerance (parting.py, `step.distance > tolerance`, twice): an overflow within a block, after
# which infinities cancel, passes as the same.
@pytest.mark.parametrize("factor", [np.inf, np.nan])
def test_values_that_are_not_finite_are_apart(factor: float) -> None:
    found = parting(GRAPH, scaled("w.c", factor), FEEDS, 1e-3)
    assert found.first is not None and found.first.name == "enc.1.layers.1.c/Conv"


def test_a_graph_with_an_unknown_operator_is_not_run() -> None:
    model = onnx.load_model_from_string(GRAPH)
    model.graph.node[2].op_type = "Sin"
    with pytest.raises(BundleError, match="Sin"):
        parting(GRAPH, model.SerializeToString(), FEEDS, 0.0)
