"""What a graph asks for is told before a library sees it, and what asks for too much is refused."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import runtime.engines
from runtime.bundle import load_bundle
from runtime.engines import EngineOptions, open_engine, open_metrics
from runtime.engines.onnx_cost import LEAST, MOST, Cost, cost_of, followed
from runtime.engines.onnx_guard import check_graph
from runtime.errors import BundleError
from tests.contracts.bundles import known_bundle, reseal, swap
from tests.contracts.graphs import SMALL, known_graph, known_metrics

F4 = np.float32
NANO = Cost(20 << 20, 441_000_000)
"""About what the manifest of a damp-nano for 64x64 says."""
node = helper.make_node


def graph(nodes: Sequence[NodeProto], held: dict[str, Any], shape: Sequence[int] = (1, 31, 64, 64)) -> onnx.ModelProto:
    """A graph that makes of `frame` what its last node makes."""
    ends = [helper.make_tensor_value_info("frame", TensorProto.FLOAT, shape)]
    made = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    whole = helper.make_graph(nodes, "small", ends, made, stored)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def cost(nodes: Sequence[NodeProto], held: dict[str, Any], shape: Sequence[int] = (1, 31, 64, 64)) -> Cost:
    return cost_of(graph(nodes, held, shape).SerializeToString())


# What is counted


def test_tensors_are_held_from_where_they_are_made_to_their_last_use() -> None:
    nodes = [node("Relu", ["frame"], ["a"]), node("Concat", ["a", "frame"], ["b"], axis=1), node("Neg", ["b"], ["c"])]
    # The frame, b and c, twice as large each: a is gone; or the frame, a and b.
    assert cost(nodes, {}, (1, 1, 10, 10)).peak_bytes == 400 * (1 + 2 + 2)
    nodes[2] = node("Slice", ["b", "from", "to"], ["c"])
    held = {"from": np.array([0]), "to": np.array([1])}
    assert cost(nodes, held, (1, 1, 10, 10)).peak_bytes == 400 * (1 + 2 + 2) + 16
    nodes[2] = node("ReduceSum", ["b"], ["c"], keepdims=0)
    assert cost(nodes, {}, (1, 1, 10, 10)).peak_bytes == 400 * (1 + 1 + 2)


@pytest.mark.parametrize(
    ("made", "held", "work"),
    [
        (node("Conv", ["frame", "w"], ["y"], group=2, pads=[1] * 4), {"w": np.ones((6, 2, 3, 3), F4)}, 6 * 48 * 18),
        (node("ConvTranspose", ["frame", "w"], ["y"], strides=[2, 2]), {"w": np.ones((4, 5, 2, 2), F4)}, 4 * 48 * 20),
        (node("MatMul", ["frame", "w"], ["y"]), {"w": np.ones((8, 7), F4)}, 4 * 6 * 7 * 8),
        (node("ReduceMean", ["frame"], ["y"]), {}, 4 * 48),
        (node("Softmax", ["frame"], ["y"]), {}, 4 * 48),
        (node("AveragePool", ["frame"], ["y"], kernel_shape=[3, 3], strides=[3, 3]), {}, 4 * 2 * 2 * 9),
        (node("Gather", ["frame", "w"], ["y"], axis=3), {"w": np.array([0, 1, 1])}, 4 * 6 * 3),
    ],
    ids=lambda value: value.op_type if isinstance(value, NodeProto) else "",
)
def test_multiply_adds_are_exact_and_the_rest_counts_its_elements(
    made: NodeProto, held: dict[str, Any], work: int
) -> None:
    assert cost([made], held, (1, 4, 6, 8)).multiply_adds == work


@pytest.mark.parametrize(("trans", "first"), [(0, (5, 3)), (1, (3, 5))])
def test_multiply_adds_of_a_gemm(trans: int, first: tuple[int, int]) -> None:
    held = {"a": np.ones(first, F4), "b": np.ones((3, 7), F4)}
    assert cost([node("Gemm", ["a", "b"], ["y"], transA=trans)], held).multiply_adds == 5 * 3 * 7


def test_shapes_that_the_graph_computes_are_followed() -> None:
    nodes = [
        node("Constant", [], ["eight"], value_int=8),
        node("Gather", ["lengths", "last"], ["four"]),
        node("Unsqueeze", ["eight", "zero"], ["list"]),
        node("Cast", ["list"], ["cast"], to=TensorProto.INT64),
        node("Concat", ["four", "cast", "rest"], ["told"], axis=0),
        node("Reshape", ["frame", "told"], ["y"]),
    ]
    held = {"lengths": np.array([7, 4]), "last": np.array([-1]), "zero": np.array([0]), "rest": np.array([-1])}
    found = followed(graph(nodes, held).SerializeToString()).tensors
    assert (found["told"].values, found["y"].shape) == ((4, 8, -1), (4, 8, 31 * 64 * 2))
    nodes[3] = node("Add", ["list", "list"], ["cast"])
    with pytest.raises(BundleError, match=r"y: a shape of the graph cannot be followed \(found 'Reshape: input 1"):
        followed(graph(nodes, held).SerializeToString())


def test_what_follows_from_the_file_alone_is_never_given_back() -> None:
    # ONNX Runtime computes all of it when it opens the graph: 128 MiB were measured, not the 8 that live at once.
    nodes = [node("MatMul", ["column", "row"], ["large0"])]
    for i in range(30):
        nodes += [node("MatMul", ["column", "row"], [f"a{i}"]), node("Mul", ["frame", f"a{i}"], [f"b{i}"])]
        nodes += [node("ReduceSum", [f"b{i}"], [f"c{i}"])]
    nodes.append(node("Max", [f"c{i}" for i in range(30)], ["y"]))
    held = {"column": np.ones((1024, 1), F4), "row": np.ones((1, 1024), F4)}
    assert cost(nodes, held, (1, 1, 1024, 1024)).peak_bytes > 32 * (4 << 20)


def test_nodes_count_in_the_order_in_which_onnx_runtime_runs_them() -> None:
    # In the file's order one large tensor lives at a time, in ONNX Runtime's, as was measured, all 30.
    nodes = []
    for i in range(30):
        nodes += [node("Mul", ["frame", "two"], [f"a{i}"]), node("ReduceSum", [f"a{i}"], [f"r{i}"])]
        nodes += [node("ReduceL2", [f"a{i}"], [f"q{i}"])]
    names = [*(f"r{i}" for i in range(30)), *(f"q{i}" for i in range(30))]
    for number, name in enumerate(names[1:]):
        nodes.append(node("Add", [f"s{number - 1}" if number else names[0], name], [f"s{number}"]))
    assert cost(nodes, {"two": F4(2)}, (1, 1, 1024, 1024)).peak_bytes > 30 * (4 << 20)


def test_what_engines_take_for_themselves_is_counted() -> None:
    # 264 and 349 MiB were measured with ONNX Runtime 1.31.
    up = node("ConvTranspose", ["frame", "w"], ["y"], pads=[93] * 4)
    assert 256 << 20 < cost([up], {"w": np.ones((1, 1, 128, 128), F4)}, (1, 1, 64, 64)).peak_bytes < 300 << 20
    wide = node("Conv", ["frame", "w"], ["y"], pads=[4] * 4)
    assert 324 << 20 < cost([wide], {"w": np.ones((1, 64, 9, 9), F4)}, (1, 64, 256, 256)).peak_bytes < 400 << 20


# What is refused


def doubling() -> onnx.ModelProto:
    nodes = [node("Concat", [f"c{i - 1}" if i else "frame"] * 2, [f"c{i}"], axis=1) for i in range(16)]
    held = {"from": np.array([0]), "to": np.array([31]), "axis": np.array([1])}
    return graph([*nodes, node("Slice", ["c15", "from", "to", "axis"], ["y"])], held)


def broadcast(operator: str) -> Callable[[], onnx.ModelProto]:
    def made() -> onnx.ModelProto:
        held = {"column": np.ones((1 << 14, 1), F4), "row": np.ones((1, 1 << 14), F4)}
        inputs = ["column", "row"] if operator != "Where" else ["yes", "column", "row"]
        nodes = [node("Greater", ["column", "column"], ["yes"]), node(operator, inputs, ["large"])]
        return graph([*nodes, node("ReduceSum", ["large"], ["y"])], held)

    return made


def gathered() -> onnx.ModelProto:
    held = {"places": np.zeros(100_000, np.int64)}
    return graph([node("Gather", ["frame", "places"], ["large"], axis=1), node("ReduceSum", ["large"], ["y"])], held)


def transposed(strides: int, kernel: int) -> Callable[[], onnx.ModelProto]:
    told = {"strides": [strides] * 2, "pads": [0] * 4}
    weights = {"w": np.zeros((31, 1, kernel, kernel), F4)}
    return lambda: graph([node("ConvTranspose", ["frame", "w"], ["y"], **told)], weights)


def expanded() -> onnx.ModelProto:
    held = {"first": np.array([1, 126976, 1]), "second": np.array([1, 1, 126976])}
    nodes = [node("Reshape", ["frame", "first"], ["a"]), node("Reshape", ["frame", "second"], ["b"])]
    return graph([*nodes, node("Add", ["a", "b"], ["c"]), node("ReduceMean", ["c"], ["y"])], held)


def unsqueezed() -> onnx.ModelProto:
    held = {"flat": np.array([-1]), "last": np.array([1])}
    nodes = [node("Reshape", ["frame", "flat"], ["a"]), node("Unsqueeze", ["a", "last"], ["b"])]
    return graph([*nodes, node("Pow", ["a", "b"], ["c"]), node("ReduceMean", ["c"], ["y"])], held)


def quantised() -> onnx.ModelProto:
    held = {"scale": F4(1), "zero": np.int8(0), "column": np.zeros((1 << 14, 1), np.int8)}
    nodes = [node("DequantizeLinear", ["column", "scale", "zero"], ["a"]), node("Transpose", ["a"], ["b"])]
    nodes += [node("Mul", ["a", "b"], ["c"]), node("QuantizeLinear", ["c", "scale", "zero"], ["d"])]
    return graph([*nodes, node("DequantizeLinear", ["d", "scale", "zero"], ["y"])], held)


def doubles() -> onnx.ModelProto:
    nodes = [node("Concat", ["frame"] * 300, ["a"], axis=0), node("Cast", ["a"], ["b"], to=TensorProto.DOUBLE)]
    return graph([*nodes, node("ReduceSum", ["b"], ["y"])], {})


def largest() -> onnx.ModelProto:
    nodes = [node("Concat", ["frame"] * 200, ["a"], axis=0), node("TopK", ["a", "k"], ["b", "c"], axis=0)]
    return graph([*nodes, node("Identity", ["b"], ["y"])], {"k": np.array([200])})


def convolutions() -> onnx.ModelProto:
    nodes = [node("Conv", [f"c{i - 1}" if i else "frame", "w"], [f"c{i}"], pads=[8] * 4) for i in range(50)]
    return graph(nodes, {"w": np.zeros((31, 31, 17, 17), F4)})


def products() -> onnx.ModelProto:
    nodes = [node("MatMul", [f"c{i - 1}" if i else "frame", "w"], [f"c{i}"]) for i in range(5000)]
    return graph(nodes, {"w": np.zeros((64, 64), F4)})


def pooled() -> onnx.ModelProto:
    told = {"kernel_shape": [63, 63], "pads": [31] * 4}
    return graph([node("AveragePool", [f"c{i - 1}" if i else "frame"], [f"c{i}"], **told) for i in range(5)], {})


MEMORY = {
    "concat": doubling, **{name: broadcast(name) for name in ("MatMul", "Add", "Max", "Pow", "Where", "Equal")},
    "gather": gathered, "strides": transposed(1000, 1), "kernel": transposed(1, 300), "reshape": expanded,
    "unsqueeze": unsqueezed, "quantised": quantised, "doubles": doubles, "top": largest,
}  # fmt: skip
WORK = {"convolutions": convolutions, "products": products, "pools": pooled}


@pytest.mark.parametrize("kind", MEMORY)
def test_memory_that_a_manifest_does_not_say_is_refused(kind: str) -> None:
    refused(
        MEMORY[kind](), r"g\.onnx, memory: the graph asks for too much memory \(found '[0-9.]+ GiB'\); at most 0\.25"
    )


@pytest.mark.parametrize("kind", WORK)
def test_work_that_a_manifest_does_not_say_is_refused(kind: str) -> None:
    refused(WORK[kind](), r"g\.onnx, work: .*too much work \(found '[0-9.]+ billion multiply-adds'\); at most 1\.76")


def refused(model: onnx.ModelProto, match: str, stated: Cost | None = NANO) -> None:
    data = model.SerializeToString()
    began = time.process_time()
    with pytest.raises(BundleError, match=match) as caught:
        check_graph(data, stated, file="g.onnx")
    assert time.process_time() - began < 60, "seconds of work are minutes, where it is quadratic"
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_a_manifest_that_says_much_does_not_lift_the_last_bounds() -> None:
    says = Cost(1 << 62, 1 << 62)
    refused(doubling(), "too much memory.* at most 8.00", says)
    refused(doubling(), "too much memory.* at most 8.00", None)
    nodes = [node("MatMul", [f"c{i - 1}" if i else "frame", "w"], [f"c{i}"]) for i in range(600)]
    large = graph(nodes, {"w": np.zeros((2048, 2048), F4)}, (1, 1, 2048, 2048))
    refused(large, "too much work.* at most 4398.05", says)
    refused(large, "too much work.* at most 4398.05", None)


def test_four_times_what_the_manifest_says_passes_and_more_does_not() -> None:
    large = graph([node("Concat", ["frame"] * 100, ["y"], axis=0)], {}, (1, 64, 256, 256)).SerializeToString()
    asked = cost_of(large)
    assert asked.peak_bytes > LEAST[0] and asked.multiply_adds > LEAST[1]
    check_graph(large, Cost(-(-asked.peak_bytes // 4), -(-asked.multiply_adds // 4)))
    for less in (Cost(asked.peak_bytes // 4 - 1, MOST[1]), Cost(MOST[0], asked.multiply_adds // 4 - 1)):
        with pytest.raises(BundleError, match="too much"):
            check_graph(large, less)
    check_graph(known_graph(), Cost(0, 0))


def test_no_engine_s_library_is_asked_before_the_graph_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(name: str) -> None:
        raise AssertionError("too early")

    monkeypatch.setattr(runtime.engines, "_backend", never)
    data = doubling().SerializeToString()
    for name in set(runtime.engines.ENGINES) - set(runtime.engines.ENGINE_FILES):
        with pytest.raises(BundleError, match="too much memory"):
            open_engine(name, data, SMALL, EngineOptions(cost=NANO))
    with pytest.raises(BundleError, match="too much memory"):
        open_metrics("onnxruntime", data, SMALL, EngineOptions(cost=NANO))


def test_a_bundle_s_graphs_are_judged_by_its_manifest(tmp_path: Path) -> None:
    bundle = known_bundle(tmp_path / "b", metrics_graph=known_metrics())
    reseal(bundle, lambda content: content.update(cost={"peak_bytes": 1000, "multiply_adds": 1000}))
    load_bundle(bundle).close()
    large = graph([node("Concat", ["frame"] * 60, ["y"], axis=0)], {}, (1, 64, 256, 256)).SerializeToString()
    for name in ("graphs/metrics.onnx", "graphs/fp32.onnx"):
        swap(bundle, name, large)
        with pytest.raises(BundleError, match=r"too much memory \(found '0.95 GiB'\); at most 0.25") as caught:
            load_bundle(bundle)
        assert caught.value.file == str(bundle / name)
    reseal(bundle, lambda content: content["cost"].update(peak_bytes=-1))
    with pytest.raises(BundleError, match="cost"):
        load_bundle(bundle)


# What is damaged


def sound() -> onnx.ModelProto:
    return graph([node("Add", ["frame", "one"], ["a"]), node("Relu", ["a"], ["y"])], {"one": np.ones(3, F4)}, (2, 3))


def repeated_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def shadowing_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("one", TensorProto.FLOAT, [3]))


def made_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Relu", ["frame"], ["a"]))


def made_twice_by_one(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Split", ["frame"], ["b", "b"], num_outputs=2))


def over_a_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Relu", ["frame"], ["one"]))


def in_disorder(model: onnx.ModelProto) -> None:
    model.graph.node.append(model.graph.node[0])
    del model.graph.node[0]


def never_made(model: onnx.ModelProto) -> None:
    model.graph.output.add(name="other")


def given_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add(dims=[1 << 30]).values.CopyFrom(numpy_helper.from_array(np.ones(1, F4), "s"))


def with_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="Relu")


def trained(model: onnx.ModelProto) -> None:
    model.training_info.add()


def with_subgraph(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="g", type=onnx.AttributeProto.GRAPH).g.name = "inner"


def referring(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="g", type=onnx.AttributeProto.INT, ref_attr_name="h")


def attribute_twice(model: onnx.ModelProto) -> None:
    for _ in range(2):
        model.graph.node[1].attribute.append(helper.make_attribute("axis", 0))


def larger_than_its_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 30


def data_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].float_data.extend([1, 1, 1])


def of_texts(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"a"]))


def of_any_length(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "lines"


def of_negative_length(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -2


def of_many_axes(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1] * 9))


def of_a_sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


DAMAGES = (
    repeated_initializer, shadowing_input, made_twice, made_twice_by_one, over_a_constant, in_disorder, never_made,
    given_twice, sparse, with_function, trained, with_subgraph, referring, attribute_twice, larger_than_its_data,
    data_twice, of_texts, of_any_length, of_negative_length, of_many_axes, of_a_sequence,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_graph_that_can_be_read_in_two_ways_is_damaged(damage: Callable[[onnx.ModelProto], None]) -> None:
    model = sound()
    check_graph(model.SerializeToString())
    damage(model)
    refused(model, "the graph is damaged")


def test_fields_that_come_twice_are_not_joined() -> None:
    data = sound().SerializeToString()
    with pytest.raises(BundleError, match=r"the graph is damaged .*a field comes twice"):
        check_graph(data + data)


@pytest.mark.parametrize(
    "wrong",
    [
        node("Reshape", ["frame", "frame"], ["y"]),
        node("Reshape", ["frame", "numbers"], ["y"]),
        node("Concat", ["frame", "one"], ["y"], axis=0),
        node("Concat", ["frame"], ["y"]),
        node("Concat", ["frame"], ["y"], axis=1.0),
        node("Transpose", ["frame"], ["y"], perm=[0, 0]),
        node("Add", ["frame"], []),
        node("Add", ["frame", ""], ["y"]),
        node("MatMul", ["frame", "frame"], ["y"]),
        node("PRelu", ["one", "frame"], ["y"]),
        node("Relu", ["frame"], ["y", "z"]),
        node("Cast", ["frame"], ["y"], to=TensorProto.STRING),
        node("Conv", ["frame", "frame"], ["y"]),
        node("Squeeze", ["frame", "numbers"], ["y"]),
        node("Gather", ["frame", "numbers"], ["y"], axis=2),
        node("TopK", ["frame", "numbers"], ["y", "z"]),
        node("Split", ["frame"], ["y", "z"]),
        node("Constant", [], ["y"], value_string="text"),
        node("Constant", [], ["y"], value_ints=[1], value_int=1),
    ],
    ids=lambda made: made.op_type,
)
def test_a_shape_that_cannot_be_followed_is_refused(wrong: NodeProto) -> None:
    model = sound()
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 5]), "numbers"))
    model.graph.node.insert(0, wrong)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "last"
    refused(model, "cannot be followed")


# How long it takes


def chain(length: int) -> bytes:
    """A graph of so many nodes, each as short as one can be."""
    model, nodes = graph([node("Abs", ["frame"], ["0"])], {}), []
    model.graph.output[0].name = f"{length - 1:x}"
    for i in range(1, length):
        given, made = b"%x" % (i - 1), b"%x" % i
        one = b"\x0a%c%b\x12%c%b\x22\x03Abs" % (len(given), given, len(made), made)
        nodes.append(b"\x0a%c%b" % (len(one), one))
    whole = model.graph.SerializeToString() + b"".join(nodes)
    model.ClearField("graph")
    return model.SerializeToString() + b"\x3a" + varint(len(whole)) + whole


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def many_inputs(operator: str, **told: int) -> bytes:
    made = node(operator, ["frame"], ["y"], **told)
    made.input.extend(["frame"] * 60_000)
    return graph([made], {}, (1,) * 8).SerializeToString()


def many_attributes() -> bytes:
    made = node("Abs", ["frame"], ["y"])
    for i in range(40_000):
        made.attribute.add(name=f"{i:x}", type=onnx.AttributeProto.INT)
    return graph([made], {}).SerializeToString()


def many_numbers() -> bytes:
    return graph([node("Constant", [], ["y"], value_ints=np.arange(150_000).tolist())], {}).SerializeToString()


@pytest.mark.parametrize(
    ("made", "passes"),
    [
        (lambda: chain(25_000), True),
        (lambda: many_inputs("Concat", axis=1), True),
        (lambda: many_inputs("Max"), True),
        (many_numbers, True),
        (many_attributes, True),
        (lambda: chain(100_000), False),
        (lambda: chain(1_000_000), False),
    ],
    ids=["chain", "concat", "max", "numbers", "attributes", "longer chain", "a million"],
)
def test_large_files_are_judged_soon(made: Callable[[], bytes], passes: bool) -> None:
    data = made()
    gc.collect()
    began = time.process_time()
    with nullcontext() if passes else pytest.raises(BundleError, match="damaged"):
        check_graph(data)
    # A second at most where nothing else runs; a machine that others share takes longer.
    assert time.process_time() - began < 60
