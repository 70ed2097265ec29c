"""The int8 graph: the numbers of onnxruntime's own quantiser, pairs where they belong, and FP16 around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from calibration.half_arithmetic import half_arithmetic
from calibration.products import int8_share, products
from calibration.quantized import LEVELS, SMALLEST_SCALE, quantized, scale_of, taken
from calibration.typed import half_precision
from export.tensorrt.lint import lint
from runtime.engines.onnx_guard import check_onnx

Float32 = NDArray[np.float32]
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
THREE = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
TWO = {"kernel_shape": [2, 2], "strides": [2, 2]}
WEIGHTS = {
    "w.in": (8, 4, 3, 3), "w.depth": (8, 1, 3, 3), "w.skip": (8, 8, 1, 1), "w.down": (8, 4, 2, 2),
    "w.up": (8, 6, 2, 2), "w.fuse": (8, 14, 1, 1), "w.query": (8, 8), "w.value": (8, 8), "w.out": (4, 8, 1, 1),
}  # fmt: skip
RANGES = {
    "enc.0/Conv": 2.0, "enc.1.body.0/Conv": 8.0, "enc.1.skip/Conv": 8.0, "enc.2/Conv": 16.0,
    "dec.0.up/ConvTranspose": 16.0, "dec.0.fuse/Conv": 16.0, "dec.1.layers.0.query/MatMul": 16.0,
    "dec.1.layers.0.value/MatMul": 16.0, "output/Conv": 32.0,
}  # fmt: skip
"""Powers of two, and 127 / 128 of them is what int8 holds with a scale of a power of two."""
EXACT = {name: LEVELS / 128 * r for name, r in RANGES.items()}
MATMULS = {"dec.1.layers.0.query/MatMul", "dec.1.layers.0.value/MatMul"}


def node(name: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(name.split("/")[1], inputs.split(), [output], name=name, **attributes)


def exact_weights(shape: tuple[int, ...], axis: int, rng: np.random.Generator) -> Float32:
    """Normal numbers whose largest magnitude in every output channel is 127 times a power of two."""
    values = rng.standard_normal(shape) / np.sqrt(np.prod(shape) / shape[axis])
    others = tuple(a for a in range(len(shape)) if a != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    wanted = LEVELS * 2.0 ** np.round(np.log2(largest / LEVELS))
    return (values * (wanted / largest)).astype(np.float32)


def small_graph() -> bytes:
    """Every kind of product, a residual, a Concat, and pixels that are moved into rows and back."""
    nodes = [
        node("enc.0/Conv", "frame w.in bias", "first", **THREE),
        node("enc.1.body.0/Conv", "first w.depth", "depth", group=8, **THREE),
        node("enc.1.skip/Conv", "first w.skip", "skip"),
        node("enc.1/Add", "depth skip", "both"),
        node("enc.1.body/Add", "both first", "residual"),
        node("enc.2/Conv", "residual w.down", "down", group=2, **TWO),
        node("dec.0.up/ConvTranspose", "down w.up", "up", **TWO),
        node("dec.0/Concat", "up residual", "joined", axis=1),
        node("dec.0.fuse/Conv", "joined w.fuse", "fused"),
        node("dec.1/Reshape", "fused rows", "flat"),
        node("dec.1/Transpose", "flat", "pixels", perm=[0, 2, 1]),
        node("dec.1.layers.0.query/MatMul", "pixels w.query", "query"),
        node("dec.1.layers.0.value/MatMul", "pixels w.value", "value"),
        node("dec.1.layers.0/Mul", "query value", "product"),
        node("dec.2/Transpose", "product", "turned", perm=[0, 2, 1]),
        node("dec.2/Reshape", "turned picture", "back"),
        node("output/Conv", "back w.out", "correction"),
        node("output/Add", "correction frame", "restored"),
        node("router/MatMul", "metrics w.router", "logits"),
        node("router/Softmax", "logits", "routing", axis=-1),
    ]
    rng = np.random.default_rng(0)
    weights = {name: exact_weights(shape, axis_of(name, shape), rng) for name, shape in WEIGHTS.items()}
    weights |= {
        "bias": rng.standard_normal(8).astype(np.float32) / 8,
        "w.router": rng.standard_normal((6, 4)).astype(np.float32),
    }
    numbers = {"rows": [1, 8, 64], "picture": [1, 8, 8, 8]}
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    stored += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    shapes = {"frame": [1, 4, 8, 8], "metrics": [1, 6], "restored": [1, 4, 8, 8], "routing": [1, 4]}
    ends = [helper.make_tensor_value_info(name, SINGLE, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "small", ends[:2], ends[2:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def axis_of(name: str, shape: tuple[int, ...]) -> int:
    """The axis of the output channels."""
    return 1 if len(shape) == 2 or name == "w.up" else 0


GRAPH = small_graph()
FRAME = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
METRICS = np.random.default_rng(2).standard_normal((1, 6)).astype(np.float32)


def run(data: bytes, *names: str) -> list[Float32]:
    """Values of the named tensors, without any optimisation."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    present = {o.name for o in model.graph.output}
    model.graph.output.extend(v for v in model.graph.value_info if v.name in names and v.name not in present)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(list(names), {"frame": FRAME, "metrics": METRICS})]


def by_onnxruntime(names: set[str]) -> bytes:
    """The graph that onnxruntime's own quantiser makes of the same products.

    Each product takes a copy of its own, since that quantiser changes a tensor for all who take it where only one of
    them is a product.
    """
    model = onnx.load_model_from_string(GRAPH)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for each in nodes:
        if each.name in names:
            copy = f"{each.name}/copy"
            model.graph.node.append(helper.make_node("Identity", [each.input[0]], [copy], name=copy))
            each.input[0] = copy
        model.graph.node.append(each)
    model = onnx.shape_inference.infer_shapes(model)
    limits = {tensor: np.float32(EXACT[name]) for name, tensor in taken(model, names).items()}
    others = {v.name: np.float32(1) for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    found = {name: TensorData(lowest=-v, highest=v) for name, v in (others | limits).items()}
    kinds = ["Conv", "ConvTranspose", "MatMul", "Gemm"]
    quantizer = QDQQuantizer(
        model, True, False, QuantType.QInt8, QuantType.QInt8, TensorsData(CalibrationMethod.MinMax, found),
        sorted(names), [], kinds,
        {
            "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True,
            "DedicatedQDQPair": True, "OpTypesToExcludeOutputQuantization": kinds,
        },
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    data: bytes = quantizer.model.model.SerializeToString()
    return data


def nodes_of(data: bytes) -> dict[str, NodeProto]:
    return {n.name: n for n in onnx.load_model_from_string(data).graph.node}


def stored_of(data: bytes) -> dict[str, NDArray[np.generic]]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load_model_from_string(data).graph.initializer}


@pytest.fixture(scope="module")
def whole() -> bytes:
    """All products in int8."""
    return quantized(GRAPH, EXACT, set(EXACT))


def test_the_chosen_are_what_the_products_call_quantisable() -> None:
    assert {p.name for p in products(onnx.load_model_from_string(GRAPH)) if p.quantisable} == set(RANGES)


@pytest.mark.parametrize("names", [set(EXACT), *({name} for name in EXACT), MATMULS], ids=lambda n: min(n))
def test_the_numbers_are_those_of_onnxruntimes_quantiser(names: set[str]) -> None:
    ours = quantized(GRAPH, EXACT, names)
    (found, gates), (expected, same) = (run(data, "restored", "routing") for data in (ours, by_onnxruntime(names)))
    (exact,) = run(GRAPH, "restored")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(exact).max())
    np.testing.assert_array_equal(gates, same)
    # Both are off by int8, and by little.
    assert 1e-4 * exact.std() < np.abs(found - exact).max() < 0.2 * np.abs(exact).max()


def test_nothing_chosen_changes_nothing() -> None:
    data = quantized(GRAPH, EXACT, ())
    assert onnx.load_model_from_string(data) == onnx.load_model_from_string(GRAPH)


def test_the_same_choice_gives_the_same_bytes(whole: bytes) -> None:
    assert quantized(GRAPH, dict(reversed(EXACT.items())), list(reversed(EXACT))) == whole


def test_only_the_chosen_products_change() -> None:
    before, after = nodes_of(GRAPH), nodes_of(quantized(GRAPH, EXACT, {"enc.1.skip/Conv"}))
    changed = {name for name, n in before.items() if after[name] != n}
    assert changed == {"enc.1.skip/Conv"}
    assert [n.op_type for name, n in after.items() if name not in before] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear",
    ]  # fmt: skip
    share = next(p for p in products(onnx.load_model_from_string(GRAPH)) if p.name == "enc.1.skip/Conv")
    total = sum(p.multiply_adds for p in products(onnx.load_model_from_string(GRAPH)))
    data = quantized(GRAPH, EXACT, {"enc.1.skip/Conv"})
    assert int8_share(onnx.load_model_from_string(data)) == pytest.approx(share.multiply_adds / total)


def test_weights_are_int8_with_one_scale_per_output_channel(whole: bytes) -> None:
    stored, nodes, floats = stored_of(whole), nodes_of(whole), stored_of(GRAPH)
    for name, before in nodes_of(GRAPH).items():
        if name not in EXACT:
            continue
        values = np.asarray(floats[before.input[1]], np.float64)
        axis = axis_of(before.input[1], values.shape)
        weight, scale = stored[f"{name}/weight"], stored[f"{name}/weight/scale"]
        assert weight.dtype == np.int8 and weight.shape == values.shape and np.abs(weight.astype(int)).max() == LEVELS
        assert scale.shape == (values.shape[axis],) and scale.dtype == np.float32
        assert not np.any(stored[f"{name}/weight/zero"])
        dequantise = nodes[f"{name}/weight/DequantizeLinear"]
        assert {a.name: a.i for a in dequantise.attribute} == {"axis": axis}
        wide = scale.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        assert np.all(np.abs(weight * wide - values) <= wide / 2 * (1 + 1e-6))
        assert before.input[1] not in stored, "the float weights are kept too"
    assert "bias" in stored and stored["bias"].dtype == np.float32


def test_a_transposed_convolution_in_groups_has_one_scale() -> None:
    model = onnx.load_model_from_string(GRAPH)
    up = next(n for n in model.graph.node if n.op_type == "ConvTranspose")
    up.attribute.append(helper.make_attribute("group", 2))
    weight = next(i for i in model.graph.initializer if i.name == "w.up")
    values = np.random.default_rng(3).standard_normal((8, 3, 2, 2)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(values, "w.up"))
    data = quantized(model.SerializeToString(), EXACT, {up.name})
    stored = stored_of(data)
    scale = stored[f"{up.name}/weight/scale"]
    assert scale.shape == () and scale >= np.abs(values).max() / LEVELS
    np.testing.assert_allclose(stored[f"{up.name}/weight"] * scale, values, atol=0.51 * float(scale))
    exact, found = (run(d, "restored")[0] for d in (model.SerializeToString(), data))
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    assert not lint(data, tensorrt="10.3", kind="tensorrt", sm="8.7")


def test_scales_are_numbers_of_fp16() -> None:
    rng = np.random.default_rng(4)
    odd = {name: float(rng.uniform(0.01, 50)) for name in EXACT}
    model = onnx.load_model_from_string(GRAPH)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w."):
            values = numpy_helper.to_array(tensor) * np.float32(rng.uniform(0.3, 3))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    scales = {k: v for k, v in stored_of(quantized(model.SerializeToString(), odd, set(odd))).items() if "scale" in k}
    assert len(scales) == 9 + 7
    for name, scale in scales.items():
        assert scale.dtype == np.float32 and np.all(scale > 0), name
        np.testing.assert_array_equal(scale, scale.astype(np.float16))


def test_a_scale_is_rounded_up_by_little() -> None:
    for magnitude in np.geomspace(1e-2, 1e4, 500):
        scale = scale_of(float(magnitude))
        assert float(np.float16(scale)) == scale
        assert magnitude / LEVELS <= scale <= magnitude / LEVELS * (1 + 2.0**-9)
    assert scale_of(127 * 2.0**-5) == 2.0**-5
    assert scale_of(0.0) == scale_of(1e-9) == SMALLEST_SCALE == float(np.float16(SMALLEST_SCALE))


def test_a_channel_without_weights_stays_zero() -> None:
    model = onnx.load_model_from_string(GRAPH)
    weight = next(i for i in model.graph.initializer if i.name == "w.skip")
    values = numpy_helper.to_array(weight).copy()
    values[3] = 0
    weight.CopyFrom(numpy_helper.from_array(values, "w.skip"))
    data = quantized(model.SerializeToString(), EXACT, {"enc.1.skip/Conv"})
    (skip,) = run(data, "skip")
    assert not skip[0, 3].any() and skip[0, 2].any()


def test_products_of_one_tensor_share_a_pair_with_the_larger_range() -> None:
    names = {"enc.1.body.0/Conv", "enc.1.skip/Conv"}
    unlike = EXACT | {"enc.1.body.0/Conv": 127.0, "enc.1.skip/Conv": 63.5}
    for first in (unlike, {**unlike, "enc.1.body.0/Conv": 63.5, "enc.1.skip/Conv": 127.0}):
        data = quantized(GRAPH, first, names)
        nodes = nodes_of(data)
        assert sum(n.op_type == "QuantizeLinear" for n in nodes.values()) == 1
        assert {nodes[name].input[0] for name in names} == {"first/dequantised"}
        assert stored_of(data)["first/scale"] == 1.0


def test_residuals_take_what_was_not_quantised(whole: bytes) -> None:
    nodes = nodes_of(whole)
    assert list(nodes["enc.1.body/Add"].input) == ["both", "first"]
    assert list(nodes["output/Add"].input) == ["correction", "frame"]
    assert list(nodes["dec.0/Concat"].input) == ["up", "residual"]
    assert nodes["enc.2/Conv"].input[0] == "residual/dequantised"
    assert nodes["enc.0/Conv"].input[0] == "frame/dequantised" and nodes["enc.0/Conv"].input[2] == "bias"


def test_what_is_moved_for_matrices_is_quantised_before(whole: bytes) -> None:
    nodes = nodes_of(whole)
    assert nodes["dec.1/Reshape"].input[0] == "fused/dequantised"
    assert list(nodes["dec.1/Transpose"].input) == ["flat"]
    assert all(nodes[name].input[0] == "pixels" for name in MATMULS)


def test_what_is_moved_for_a_convolution_is_quantised_behind(whole: bytes) -> None:
    nodes = nodes_of(whole)
    assert nodes["output/Conv"].input[0] == "back/dequantised"
    assert list(nodes["dec.2/Transpose"].input) == ["product"] and nodes["dec.2/Reshape"].input[0] == "turned"


def test_what_another_node_takes_too_is_not_quantised_before_it_is_moved() -> None:
    # One of the two products stays as it is: it must not get int8 values.
    nodes = nodes_of(quantized(GRAPH, EXACT, {"dec.1.layers.0.query/MatMul"}))
    assert nodes["dec.1/Reshape"].input[0] == "fused"
    assert nodes["dec.1.layers.0.query/MatMul"].input[0] == "pixels/dequantised"
    assert nodes["dec.1.layers.0.value/MatMul"].input[0] == "pixels"


# A moved tensor that nothing takes counts as taken by products alone (quantized.py, `all` of nothing in `_quantises`),
# and one that is itself an output of the graph is not looked for.
@pytest.mark.parametrize("output", ["pixels", "pixels.turned"])
def test_outputs_of_the_graph_are_not_quantised(output: str) -> None:
    model = onnx.load_model_from_string(GRAPH)
    if output != "pixels":
        place = next(i for i, n in enumerate(model.graph.node) if n.name == "dec.1/Transpose")
        turned = node("dec.3/Transpose", "pixels", output, perm=[0, 2, 1])
        model.graph.node.insert(place + 1, turned)
    shape = [1, 64, 8] if output == "pixels" else [1, 8, 64]
    model.graph.output.append(helper.make_tensor_value_info(output, SINGLE, shape))
    data = model.SerializeToString()
    np.testing.assert_array_equal(run(quantized(data, EXACT, MATMULS), output)[0], run(data, output)[0])


def gathered(chosen: set[str]) -> dict[str, NodeProto]:
    """The nodes of a graph whose rows are gathered before each of its two products, after quantisation."""
    model = onnx.load_model_from_string(GRAPH)
    for changed in model.graph.node:
        if changed.name in MATMULS:
            changed.input[0] = f"{changed.input[1]}.rows"
    places = [i for i, n in enumerate(model.graph.node) if n.name in MATMULS]
    rows = np.random.default_rng(5).permutation(64)
    model.graph.initializer.append(numpy_helper.from_array(rows, "order"))
    for place, which in zip(places, ("query", "value"), strict=True):
        gather = node(f"dec.1.{which}/Gather", "pixels order", f"w.{which}.rows", axis=1)
        model.graph.node.insert(places[0] + (place - places[0]), gather)
    data = quantized(model.SerializeToString(), EXACT, chosen)
    run(data, "restored")
    return nodes_of(data)


def test_rows_that_are_gathered_are_quantised_before() -> None:
    nodes = gathered(MATMULS)
    assert [n.input[0] for n in nodes.values() if n.op_type == "QuantizeLinear"] == ["fused"]
    assert nodes["dec.1.query/Gather"].input[0] == "pixels"


def test_rows_of_one_product_are_quantised_where_the_ways_part() -> None:
    nodes = gathered({"dec.1.layers.0.query/MatMul"})
    assert [n.input[0] for n in nodes.values() if n.op_type == "QuantizeLinear"] == ["pixels"]
    assert nodes["dec.1.query/Gather"].input[0] == "pixels/dequantised"
    assert nodes["dec.1.value/Gather"].input[0] == "pixels"


def test_joined_tensors_are_limited_first(whole: bytes) -> None:
    clips = {name: n for name, n in nodes_of(whole).items() if n.op_type == "Clip"}
    assert {n.input[0] for n in clips.values()} == {"joined"}
    (clip,) = clips.values()
    stored = stored_of(whole)
    scale = float(stored["joined/scale"])
    assert [float(stored[name]) for name in clip.input[1:]] == [-LEVELS * scale, LEVELS * scale]
    quantise = next(n for n in nodes_of(whole).values() if n.op_type == "QuantizeLinear" and n.input[0] in clip.output)
    assert nodes_of(whole)["dec.0.fuse/Conv"].input[0] == quantise.output[0].replace("int8", "dequantised")


def test_joined_tensors_keep_their_limits_where_the_range_grows() -> None:
    # A second product of the same tensor widens the range after the pair was made.
    model = onnx.load_model_from_string(GRAPH)
    place = next(i for i, n in enumerate(model.graph.node) if n.name == "dec.0.fuse/Conv")
    model.graph.node.insert(place + 1, node("dec.0.more/Conv", "joined w.fuse", "more"))
    model.graph.node.insert(place + 2, node("dec.0/Add", "fused more", "two"))
    next(n for n in model.graph.node if n.name == "dec.1/Reshape").input[0] = "two"
    wide = {"dec.0.fuse/Conv": 63.5, "dec.0.more/Conv": 127.0}
    stored = stored_of(quantized(model.SerializeToString(), wide, set(wide)))
    assert (stored["joined/lowest"], stored["joined/highest"]) == (-127, 127)
    assert stored["joined/scale"] == 1


@pytest.mark.parametrize("names", [set(EXACT), *({name} for name in EXACT), MATMULS], ids=lambda n: min(n))
def test_tensorrt_takes_it_in_float32_and_in_fp16(names: set[str]) -> None:
    data = quantized(GRAPH, EXACT, names)
    for graph in (data, half_precision(data).data):
        assert lint(graph, tensorrt="10.3", kind="tensorrt", sm="8.7") == []
        assert lint(graph, tensorrt="1.7", kind="tensorrt-rtx", sm="8.7") == []
        check_onnx(graph)


def test_in_fp16_pairs_take_the_type_that_their_tensor_has(whole: bytes) -> None:
    data = half_precision(whole).data
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {i.name: i.data_type for i in graph.initializer}
    pairs = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    assert {n.input[0]: types[n.input[0]] for n in pairs}["frame"] == SINGLE
    assert {types[n.input[0]] for n in pairs} == {SINGLE, HALF}
    assert all(types[n.input[0]] == types[n.input[1]] for n in pairs)
    # No value is rounded to FP16 for int8 alone.
    casts = {o for n in graph.node if n.op_type == "Cast" for o in n.output}
    assert not casts.intersection(n.input[0] for n in pairs)
    assert all(types[n.output[0]] == HALF for n in graph.node if n.op_type in ("Conv", "ConvTranspose"))
    assert types["restored"] == types["routing"] == SINGLE
    stored = {i.name: i.data_type for i in graph.initializer}
    assert all(stored[f"{name}/weight"] == TensorProto.INT8 for name in EXACT)


def test_in_fp16_the_frames_are_close(whole: bytes) -> None:
    half = half_arithmetic(half_precision(whole).data)
    (single, gates), (rounded, same) = (run(data, "restored", "routing") for data in (whole, half))
    (exact,) = run(GRAPH, "restored")
    off = np.sqrt(np.mean((single - exact) ** 2))
    # A value that FP16 moves over the edge of a step of int8 lands a whole step away, but no farther from the truth.
    assert 0 < np.sqrt(np.mean((rounded - single) ** 2)) < 0.7 * off
    assert np.sqrt(np.mean((rounded - exact) ** 2)) < 1.2 * off
    np.testing.assert_allclose(same, gates, atol=1e-6)


def test_taken_names_the_tensor_of_each_product() -> None:
    model = onnx.load_model_from_string(GRAPH)
    assert taken(model, {"enc.0/Conv", "dec.1.layers.0.query/MatMul", "no/Conv"}) == {
        "enc.0/Conv": "frame",
        "dec.1.layers.0.query/MatMul": "pixels",
    }
