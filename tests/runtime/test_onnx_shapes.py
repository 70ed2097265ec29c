"""Every operator's rule gives the shapes and types that ONNX says and that ONNX Runtime makes, or refuses to guess."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from runtime.engines.onnx_cost import followed
from runtime.engines.onnx_guard import OPERATORS, OPSETS
from runtime.errors import BundleError

Array = np.ndarray[Any, Any]
Made = tuple[list[Array | None], dict[str, Any]]
"""Inputs (those of whole numbers are constants of the graph) and attributes of a node."""
TRIES = 40
LIKE = ("Abs", "Erf", "Exp", "Gelu", "Identity", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sign",
        "Softplus", "Sqrt", "Tanh")  # fmt: skip
PAIRS = ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Mul", "Pow", "Sub")


def model_of(
    nodes: Sequence[NodeProto],
    given: Mapping[str, Array],
    held: Mapping[str, Array],
    outputs: Sequence[str],
    opset: int,
) -> onnx.ModelProto:
    """A graph that takes `given` and holds `held`."""
    ends = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in given.items()
    ]
    made = [onnx.ValueInfoProto(name=name) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "small", ends, made, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def ours(model: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], int]] | None:
    """{tensor: (shape, type)} by the rules, or None where they refuse."""
    try:
        return {name: (t.shape, t.type) for name, t in followed(model.SerializeToString()).tensors.items()}
    except BundleError:
        return None


def by_onnx(model: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], int]]:
    """The same by ONNX's shape inference, of outputs whose shape it finds."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    found = {}
    for value in (*inferred.graph.output, *inferred.graph.value_info):
        told = value.type.tensor_type
        if told.HasField("shape") and all(d.HasField("dim_value") for d in told.shape.dim):
            found[value.name] = (tuple(d.dim_value for d in told.shape.dim), told.elem_type)
    return found


def by_engine(model: onnx.ModelProto, given: Mapping[str, Array]) -> dict[str, tuple[tuple[int, ...], int]] | None:
    """The same by running it, or None where ONNX Runtime refuses."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 4, 1
    inferred = onnx.shape_inference.infer_shapes(model)
    try:
        session = onnxruntime.InferenceSession(
            inferred.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        made = session.run(None, dict(given))
    except Exception:  # Its exceptions share no base class.
        return None
    names = [output.name for output in session.get_outputs()]
    return {
        name: (value.shape, helper.np_dtype_to_tensor_dtype(value.dtype))
        for name, value in zip(names, made, strict=True)
    }


def shape(rng: random.Random, rank: int | None = None, longest: int = 5) -> tuple[int, ...]:
    return tuple(rng.randint(1, longest) for _ in range(rng.randint(1, 4) if rank is None else rank))


def floats(*lengths: int) -> Array:
    return np.ones(lengths, np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def loosened(rng: random.Random, told: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts with another one, mostly."""
    kept = [1 if rng.random() < 0.4 else n for n in told][rng.randint(0, len(told)) :]
    return (*shape(rng, rng.choice((0, 0, 1))), *kept)


def axis_of(rng: random.Random, rank: int) -> int:
    return rng.randint(-rank, rank - 1)


def like(rng: random.Random) -> Made:
    return [floats(*shape(rng, rng.randint(0, 4)))], {}


def pair(rng: random.Random) -> Made:
    first = shape(rng)
    both = [floats(*first), floats(*loosened(rng, first))]
    return both[:: rng.choice((1, -1))], {}


def several(rng: random.Random) -> Made:
    first = shape(rng)
    return [floats(*first), *(floats(*loosened(rng, first)) for _ in range(rng.randint(0, 3)))], {}


def where(rng: random.Random) -> Made:
    first = shape(rng)
    return [np.ones(loosened(rng, first), bool), floats(*first), floats(*loosened(rng, first))], {}


def prelu(rng: random.Random) -> Made:
    first = shape(rng)
    return [floats(*first), floats(*(rng.choice((1, n)) for n in first[rng.randint(0, len(first)) :]))], {}


def clip(rng: random.Random) -> Made:
    return [floats(*shape(rng)), *rng.choice(([], [floats()], [None, floats()], [floats(), floats()]))], {}


def softmax(rng: random.Random) -> Made:
    first = shape(rng)
    return [floats(*first)], rng.choice(({}, {"axis": axis_of(rng, len(first))}))


def layer_norm(rng: random.Random) -> Made:
    first = shape(rng)
    axis = rng.randrange(len(first))
    return [floats(*first), floats(*first[axis:])], {"axis": axis - rng.choice((0, len(first)))}


def cast(rng: random.Random) -> Made:
    kinds = (TensorProto.DOUBLE, TensorProto.INT8, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL)
    return [floats(*shape(rng))], {"to": rng.choice(kinds)}


def quantize(rng: random.Random) -> Made:
    point = rng.choice(([], [np.array(0, np.int8)], [np.array(0, np.uint8)]))
    return [floats(*shape(rng)), floats(), *point], {}


def dequantize(rng: random.Random) -> Made:
    return [np.zeros(shape(rng), rng.choice((np.int8, np.uint8))), floats()], {}


def constant(rng: random.Random) -> Made:
    tensor = numpy_helper.from_array(np.zeros(shape(rng), rng.choice((np.float32, np.int64, np.int8))))
    forms = {"value": tensor, "value_int": 7, "value_ints": [1, 300, 3], "value_float": 1.5, "value_floats": [1.0, 2.0]}
    name = rng.choice(list(forms))
    return [], {name: forms[name]}


EXACT = ("NOTSET", "NOTSET", "VALID")
SIZES = (*EXACT, "SAME_UPPER", "SAME_LOWER")


def window(rng: random.Random, rank: int, kernel: Sequence[int], sizes: Sequence[str] = SIZES) -> dict[str, Any]:
    """Attributes of a convolution."""
    told: dict[str, Any] = {}
    if rng.random() < 0.6:
        told["strides"] = list(shape(rng, rank, 3))
    if rng.random() < 0.5:
        told["dilations"] = list(shape(rng, rank, 2))
    auto = rng.choice(sizes)
    if auto != "NOTSET":
        told["auto_pad"] = auto
    elif rng.random() < 0.7:
        told["pads"] = [rng.randint(0, kernel[axis % rank] - 1) for axis in range(2 * rank)]
    return told


def conv(rng: random.Random) -> Made:
    rank, groups = rng.randint(1, 2), rng.randint(1, 3)
    each, out, kernel = rng.randint(1, 3), groups * rng.randint(1, 3), shape(rng, rank, 4)
    told = window(rng, rank, kernel) | {"group": groups}
    if rng.random() < 0.5:
        told["kernel_shape"] = list(kernel)
    frame = floats(rng.randint(1, 2), each * groups, *(rng.randint(7, 12) for _ in range(rank)))
    return [frame, floats(out, each, *kernel), *rng.choice(([], [floats(out)]))], told


def conv_transpose(rng: random.Random) -> Made:
    rank, groups = rng.randint(1, 2), rng.randint(1, 3)
    into, each, kernel = groups * rng.randint(1, 2), rng.randint(1, 3), shape(rng, rank, 4)
    told = window(rng, rank, kernel, EXACT) | {"group": groups}
    strides = told.get("strides", [1] * rank)
    if rng.random() < 0.5:
        told["output_padding"] = [rng.randint(0, max(0, stride - 1)) for stride in strides]
    frame = floats(1, into, *(rng.randint(2, 6) for _ in range(rank)))
    return [frame, floats(into, each, *kernel)], told


def pool(rng: random.Random) -> Made:
    rank = rng.randint(1, 2)
    kernel = shape(rng, rank, 4)
    told = window(rng, rank, kernel, EXACT) | {"kernel_shape": list(kernel), "ceil_mode": rng.randint(0, 1)}
    return [floats(1, 2, *(rng.randint(7, 12) for _ in range(rank)))], told


def to_space(rng: random.Random) -> Made:
    side = rng.randint(1, 3)
    mode = rng.choice(({}, {"mode": "CRD"}, {"mode": "DCR"}))
    return [floats(*shape(rng, 1), side**2 * rng.randint(1, 3), *shape(rng, 2))], {"blocksize": side, **mode}


def concat(rng: random.Random) -> Made:
    first = shape(rng)
    axis = axis_of(rng, len(first))
    each = [list(first) for _ in range(rng.randint(1, 4))]
    for one in each:
        one[axis] = rng.randint(1, 4)
    return [floats(*one) for one in each], {"axis": axis}


def gather(rng: random.Random) -> Made:
    first = shape(rng)
    axis = axis_of(rng, len(first))
    places = np.full(shape(rng, rng.randint(0, 2)), rng.randint(-first[axis], first[axis] - 1), np.int64)
    return [floats(*first), places], rng.choice(({"axis": axis}, {"axis": axis}, {}))


def gemm(rng: random.Random) -> Made:
    m, k, n = shape(rng, 3)
    a, b = rng.randint(0, 1), rng.randint(0, 1)
    first, second = (k, m) if a else (m, k), (n, k) if b else (k, n)
    bias = rng.choice(([], [floats(n)], [floats(m, 1)], [floats()], [floats(m, n)]))
    return [floats(*first), floats(*second), *bias], {"transA": a, "transB": b, "alpha": 0.5}


def matmul(rng: random.Random) -> Made:
    m, k, n = shape(rng, 3)
    outer = shape(rng, rng.randint(0, 2))
    first, second = (*outer, m, k), (*loosened(rng, outer), k, n)
    return [floats(*rng.choice((first, first, (k,)))), floats(*rng.choice((second, second, (k,))))], {}


def reduce(rng: random.Random) -> Made:
    first = shape(rng)
    axes = [axis - rng.choice((0, len(first))) for axis in rng.sample(range(len(first)), rng.randint(0, len(first)))]
    told = rng.choice(({}, {"keepdims": 0}, {"keepdims": 1, "noop_with_empty_axes": 1}))
    return [floats(*first), *rng.choice(([], [ints(*axes)]))], told


def reshape(rng: random.Random) -> Made:
    first = shape(rng)
    told = list(rng.sample(first, len(first)))
    forms = ([-1], [*told], [*told, 1], [0, -1], [-1, 1, 1], [*first[:-1], -1])
    return [floats(*first), ints(*rng.choice(forms))], rng.choice(({}, {}, {"allowzero": 1}))


def slices(rng: random.Random) -> Made:
    first = shape(rng)
    axes = rng.sample(range(len(first)), rng.randint(1, len(first)))
    numbers = [[rng.choice((rng.randint(-9, 9), 1 << 40, -1 << 40)) for _ in axes] for _ in range(2)]
    steps = [rng.choice((-2, -1, 1, 1, 2, 3)) for _ in axes]
    signed = [axis - rng.choice((0, len(first))) for axis in axes]
    if rng.random() < 0.2:
        return [floats(*first), *(ints(*n) for n in numbers)], {}
    return [floats(*first), *(ints(*n) for n in numbers), ints(*signed), *rng.choice(([], [ints(*steps)]))], {}


def split(rng: random.Random) -> Made:
    first = list(shape(rng, longest=9))
    axis, parts = axis_of(rng, len(first)), list(shape(rng))
    if rng.random() < 0.5:
        return [floats(*first)], {"axis": axis, "num_outputs": rng.randint(1, 4)}
    first[axis] = sum(parts)
    return [floats(*first), ints(*parts)], {"axis": axis}


def squeeze(rng: random.Random) -> Made:
    first = [rng.choice((1, n)) for n in shape(rng)]
    ones = [axis - rng.choice((0, len(first))) for axis, n in enumerate(first) if n == 1]
    told = rng.sample(ones, rng.randint(0, len(ones)))
    return [floats(*first), *rng.choice(([], [ints(*told)] if told else []))], {}


def unsqueeze(rng: random.Random) -> Made:
    first, more = shape(rng), rng.randint(1, 3)
    rank = len(first) + more
    return [floats(*first), ints(*(a - rng.choice((0, rank)) for a in rng.sample(range(rank), more)))], {}


def top(rng: random.Random) -> Made:
    first = shape(rng)
    axis = axis_of(rng, len(first))
    return [floats(*first), ints(rng.randint(1, first[axis]))], {"axis": axis}


def transpose(rng: random.Random) -> Made:
    first = shape(rng)
    return [floats(*first)], rng.choice(({}, {"perm": rng.sample(range(len(first)), len(first))}))


MAKERS: dict[str, Callable[[random.Random], Made]] = {
    **dict.fromkeys(LIKE, like), **dict.fromkeys(PAIRS, pair), "Max": several, "Min": several, "Where": where,
    "PRelu": prelu, "Clip": clip, "Softmax": softmax, "LayerNormalization": layer_norm, "Cast": cast,
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize, "Constant": constant, "Conv": conv,
    "ConvTranspose": conv_transpose, "AveragePool": pool, "DepthToSpace": to_space, "Concat": concat, "Gather": gather,
    "Gemm": gemm, "MatMul": matmul, "ReduceL2": reduce, "ReduceMean": reduce, "ReduceSum": reduce, "Reshape": reshape,
    "Slice": slices, "Split": split, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "TopK": top, "Transpose": transpose,
}  # fmt: skip


def count_of(operator: str, inputs: Sequence[Array | None], told: Mapping[str, Any]) -> int:
    """Outputs of a node."""
    if operator == "Split":
        return int(told.get("num_outputs") or len(inputs[1]))  # type: ignore[arg-type]
    return 2 if operator == "TopK" else 1


def test_every_operator_has_a_rule_and_a_maker_of_cases() -> None:
    assert set(MAKERS) == OPERATORS


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_a_rule_gives_what_onnx_says_and_onnx_runtime_makes(operator: str) -> None:
    rng, right = random.Random(operator), 0
    for _ in range(TRIES):
        inputs, told = MAKERS[operator](rng)
        names = ["" if value is None else f"i{place}" for place, value in enumerate(inputs)]
        present = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
        held = {name: value for name, value in present.items() if value.dtype == np.int64}
        given = {name: value for name, value in present.items() if name not in held}
        outputs = [f"o{place}" for place in range(count_of(operator, inputs, told))]
        newer = operator == "Gelu" or (operator == "AveragePool" and "dilations" in told)
        opset = rng.choice(OPSETS[-1:] if newer else OPSETS)
        model = model_of([helper.make_node(operator, names, outputs, **told)], given, held, outputs, opset)
        found, said, made = ours(model), by_onnx(model), by_engine(model, given)
        case = (operator, opset, [None if v is None else v.shape for v in inputs], told, [*held.values()])
        if made is not None:
            right += 1
            assert found is not None and {name: found[name] for name in outputs} == made, case
        elif found is not None:
            assert all(found[name] == said[name] for name in said), case
    assert right > TRIES / 4
