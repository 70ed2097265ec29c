"""Where a graph's multiply-adds are, counted by hand, and which of them may run in int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calibration.products import Product, block_of, int8_share, products
from calibration.quantized import quantized

WEIGHTS = {
    "w.first": (8, 4, 1, 1), "w.depth": (8, 1, 3, 3), "w.group": (8, 4, 3, 3), "w.down": (8, 8, 2, 2),
    "w.up": (8, 4, 2, 2), "w.query": (4, 6), "w.key": (4, 6), "w.gate": (4, 3), "w.prompt": (6, 16),
}  # fmt: skip
NUMBERS = {"rows": [1, 4, 64], "pooled": [2, 3], "column": [4, 1], "matrix": [1, 4, 4]}


def node(name: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(name.split("/")[1], inputs.split(), [output], name=name, **attributes)


def small_graph() -> onnx.ModelProto:
    """One product of every kind; the frame has 4 bands and 8 x 8 pixels."""
    three, two = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        node("enc.0/Conv", "frame w.first", "first"),
        node("enc.1.layers.0.depth/Conv", "first w.depth", "depth", group=8, **three),
        node("enc.1.layers.0.group/Conv", "depth w.group", "group", group=2, **three),
        node("down.0/Conv", "group w.down", "down", **two),
        node("dec.0.up/ConvTranspose", "down w.up", "up", **two),
        node("dec.1/Reshape", "up rows", "flat"),
        node("dec.1/Transpose", "flat", "pixels", perm=[0, 2, 1]),
        node("dec.1.layers.0.query/MatMul", "pixels w.query", "query"),
        node("dec.1.layers.0.key/MatMul", "pixels w.key", "key"),
        node("dec.1.layers.0.key/Transpose", "key", "turned", perm=[0, 2, 1]),
        node("dec.1.layers.0/MatMul", "query turned", "scores"),
        node("router/ReduceMean", "up pooled", "means", keepdims=0),
        node("router/Reshape", "means column", "standing"),
        node("router/Gemm", "standing w.gate", "routing", transA=1),
        node("prompt/MatMul", "metrics w.prompt", "numbers"),
        node("prompt/Reshape", "numbers matrix", "made"),
        node("dec.2/MatMul", "pixels made", "last"),
        node("dec.2/Transpose", "last", "lines", perm=[0, 2, 1]),
        node("dec.2/Reshape", "lines shape", "restored"),
    ]
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.random(s, np.float32), name) for name, s in WEIGHTS.items()]
    weights += [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in NUMBERS.items()]
    weights.append(numpy_helper.from_array(np.array([1, 4, 8, 8], np.int64), "shape"))

    def values(**shapes: list[int]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    ends = values(frame=[1, 4, 8, 8], metrics=[1, 6]), values(restored=[1, 4, 8, 8], routing=[1, 3], scores=[1, 64, 64])
    graph = helper.make_graph(nodes, "small", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def found() -> dict[str, Product]:
    return {p.name: p for p in products(small_graph())}


@pytest.mark.parametrize(
    ("name", "kind", "multiply_adds", "quantisable"),
    [
        ("enc.0/Conv", "pointwise", 64 * 8 * 4, True),
        ("enc.1.layers.0.depth/Conv", "depthwise", 64 * 8 * 9, True),
        ("enc.1.layers.0.group/Conv", "grouped", 64 * 8 * 4 * 9, True),
        ("down.0/Conv", "convolution", 16 * 8 * 8 * 4, True),
        # Each of the 16 pixels that come in meets all weights.
        ("dec.0.up/ConvTranspose", "transposed", 16 * 8 * 4 * 4, True),
        ("dec.1.layers.0.query/MatMul", "linear", 64 * 4 * 6, True),
        ("dec.1.layers.0.key/MatMul", "linear", 64 * 4 * 6, True),
        ("dec.1.layers.0/MatMul", "activations", 64 * 64 * 6, False),
        ("router/Gemm", "linear", 4 * 3, False),
        ("prompt/MatMul", "linear", 6 * 16, False),
        ("dec.2/MatMul", "activations", 64 * 4 * 4, False),
    ],
)
def test_every_kind_is_counted(
    found: dict[str, Product], name: str, kind: str, multiply_adds: int, quantisable: bool
) -> None:
    product = found[name]
    assert (product.kind, product.multiply_adds, product.quantisable) == (kind, multiply_adds, quantisable)
    assert product.block == block_of(name)


def test_products_come_in_the_order_of_the_graph_and_nothing_else_does(found: dict[str, Product]) -> None:
    kinds = ("Conv", "ConvTranspose", "MatMul", "Gemm")
    assert list(found) == [n.name for n in small_graph().graph.node if n.op_type in kinds]


@pytest.mark.parametrize("factor", [1, 2])
def test_a_convolution_in_groups_counts_only_its_own_channels(factor: int) -> None:
    model = small_graph()
    whole = np.zeros((8, 8 // factor, 3, 3), np.float32)
    weight = next(i for i in model.graph.initializer if i.name == "w.group")
    weight.CopyFrom(numpy_helper.from_array(whole, "w.group"))
    conv = next(n for n in model.graph.node if n.name == "enc.1.layers.0.group/Conv")
    next(a for a in conv.attribute if a.name == "group").i = factor
    product = next(p for p in products(model) if p.name == conv.name)
    assert product.multiply_adds == 64 * 8 * 72 // factor
    assert product.kind == ("convolution" if factor == 1 else "grouped")


def test_a_gemm_over_pixels_is_not_quantisable() -> None:
    model = small_graph()
    for changed in model.graph.node:
        if changed.name == "router/Gemm":
            changed.input[0] = "standing.pixels"
    pixels = numpy_helper.from_array(np.array([4, 64], np.int64), "flat.shape")
    model.graph.initializer.append(pixels)
    place = next(i for i, n in enumerate(model.graph.node) if n.name == "router/Gemm")
    model.graph.node.insert(place, node("router.pixels/Reshape", "up flat.shape", "standing.pixels"))
    model.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 64
    gemm = next(p for p in products(model) if p.name == "router/Gemm")
    assert (gemm.multiply_adds, gemm.quantisable) == (64 * 4 * 3, False)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("dec.1.2.layers.0.DAMoE.shared.wa/MatMul", "dec.1.2.layers.0"),
        ("dec.1.2.layers.11/Add", "dec.1.2.layers.11"),
        ("dec.1.2.layers.0.inner.layers.3.w/Conv", "dec.1.2.layers.0"),
        ("enc.0.1.body.0/Conv", "enc.0.1.body"),
        ("enc.0.1.body/Conv", "enc.0.1.body"),
        ("dec.0.2/Conv", "dec.0"),
        ("enc.0/Conv", "enc.0"),
        ("output/Conv", "output"),
        ("output/MatMul/MatMul", "output"),
    ],
)
def test_a_block_is_read_from_the_name(name: str, block: str) -> None:
    assert block_of(name) == block


def test_the_share_of_int8_is_that_of_the_chosen_products(found: dict[str, Product]) -> None:
    model = small_graph()
    assert int8_share(model) == 0
    total = sum(p.multiply_adds for p in found.values())
    # A convolution, a transposed one, and a product whose values are quantised before they are moved.
    chosen = {"enc.1.layers.0.group/Conv", "dec.0.up/ConvTranspose", "dec.1.layers.0.query/MatMul"}
    for names in ({min(chosen)}, chosen, {n for n, p in found.items() if p.quantisable}):
        data = quantized(model.SerializeToString(), dict.fromkeys(names, 1.0), names)
        expected = sum(found[name].multiply_adds for name in names) / total
        assert int8_share(onnx.load_model_from_string(data)) == pytest.approx(expected)


def test_values_that_were_moved_after_int8_still_count(found: dict[str, Product]) -> None:
    names = {"dec.1.layers.0.query/MatMul", "dec.1.layers.0.key/MatMul"}
    model = small_graph()
    others = [n for n in model.graph.node if n.name != "dec.2/MatMul"]
    for changed in others:
        if changed.name == "dec.2/Transpose":
            changed.input[0] = "query"
        if changed.name == "dec.2/Reshape":
            changed.op_type = "Identity"
            del changed.input[1:]
    del model.graph.node[:]
    model.graph.node.extend(others)
    model.graph.output[0].type.tensor_type.shape.CopyFrom(
        helper.make_tensor_value_info("", TensorProto.FLOAT, [1, 6, 64]).type.tensor_type.shape
    )
    quantised = onnx.load_model_from_string(quantized(model.SerializeToString(), dict.fromkeys(names, 1.0), names))
    pair = next(n for n in quantised.graph.node if n.op_type == "QuantizeLinear")
    assert pair.input[0] == "up", "nothing was moved after int8: the graph no longer tests it"
    total = sum(p.multiply_adds for p in products(model))
    assert int8_share(quantised) == pytest.approx(sum(found[name].multiply_adds for name in names) / total)


def test_a_quantised_graph_has_the_same_products(found: dict[str, Product]) -> None:
    model = small_graph()
    names = {n for n, p in found.items() if p.quantisable}
    data = quantized(model.SerializeToString(), dict.fromkeys(names, 1.0), names)
    assert products(onnx.load_model_from_string(data)) == products(model)
