"""The lint says of a graph what TensorRT's own parser and builder say of it; where it says more, it says why.

The oracle is TensorRT for RTX, whose parser and builder run without a GPU. Cases where the lint is stricter than it
carry the reason, with its source.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from calibration.typed import half_precision
from export.tensorrt.lint import Finding, lint, raise_for
from export.tensorrt.operators import OLDEST, operators
from runtime.bundle_files import read_manifest
from runtime.engines.tensorrt_libraries import load_tensorrt
from runtime.errors import InputError, MachineError

T = TensorProto
F, H, BF, D, B = T.FLOAT, T.FLOAT16, T.BFLOAT16, T.DOUBLE, T.BOOL
S = [1, 4, 8, 8]
RTX: dict[str, str] = {"tensorrt": "1.7", "kind": "tensorrt-rtx", "sm": "8.9"}
ORIN: dict[str, str] = {"tensorrt": "10.3", "kind": "tensorrt", "sm": "8.7"}
node = helper.make_node
single = np.float32

HOUSE = "every engine reads the same file, and ONNX Runtime 1.23 reads opset 20 and IR 10 at most"
ONNX = "not valid ONNX: ONNX Runtime refuses it"
UINT8 = "the parser says that it takes uint8 for int8, so values above 127 saturate"
INFINITE = "the parser takes infinite weights; the engine returns infinity or not a number"
DIVIDES = "the parser looks at scales that it is given, not at those it computes"
FIXED = "a build fixes all shapes"


@dataclass(frozen=True)
class Case:
    """A graph and what is expected of it.

    Attributes:
        rules: rules of the errors for TensorRT for RTX; empty where there are none.
        stricter: why the lint refuses what the oracle takes.
        older: rules of the errors for TensorRT 10.3 on Orin, where they differ, and their source.
        warned: rules of the warnings for TensorRT for RTX.
    """

    data: bytes
    rules: frozenset[str] = frozenset()
    stricter: str = ""
    older: tuple[frozenset[str], str] | None = None
    warned: frozenset[str] = frozenset()


Values = list[tuple[str, int, Any]]
CASES: dict[str, Case] = {}


def model(
    nodes: list[NodeProto], ins: Values, outs: Values, constants: dict[str, Any], opset: int = 20, ir: int = 10,
    functions: tuple[FunctionProto, ...] = (),
) -> bytes:  # fmt: skip
    tensors = [v if isinstance(v, T) else numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "case", *([helper.make_tensor_value_info(*v) for v in vs] for vs in (ins, outs)))
    graph.initializer.extend(tensors)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=ir)
    made.functions.extend(functions)
    data: bytes = made.SerializeToString()
    return data


def case(
    name: str, nodes: list[NodeProto], *rules: str, x: Any = F, y: Any = F, c: dict[str, Any] | None = None,
    more: Values | None = None, stricter: str = "", older: tuple[tuple[str, ...], str] | None = None,
    warned: tuple[str, ...] = (), **others: Any,
) -> None:  # fmt: skip
    """`x` and `y` are types of a tensor [1, 4, 8, 8], or (type, shape)."""
    ends = [(n, *(v if isinstance(v, tuple) else (v, S))) for n, v in (("x", x), ("y", y))]
    data = model(nodes, [ends[0], *(more or [])], [ends[1]], c or {}, **others)
    assert name not in CASES
    old = None if older is None else (frozenset(older[0]), older[1])
    CASES[name] = Case(data, frozenset(rules), stricter, old, frozenset(warned))


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


ANY = (F, None)
RELU = [node("Relu", ["x"], ["y"])]

# Files
case("plain", RELU)
case("input is output", [node("Identity", ["x"], ["y"])])
for opset in (17, 21, 24):
    case(f"opset {opset}", RELU, "opset", opset=opset, stricter=HOUSE)
for opset in (18, 19):
    case(f"opset {opset}", RELU, opset=opset)
case("IR 11", RELU, "ir", ir=11, stricter=HOUSE)
case("IR 8", RELU, ir=8)
elsewhere = T(name="w", data_type=F, dims=[1], data_location=T.EXTERNAL)
elsewhere.external_data.add(key="location", value="nowhere.bin")
case("external data", [node("Mul", ["x", "w"], ["y"])], "external", c={"w": elsewhere})
case("undefined input", [node("Add", ["x", "nowhere"], ["y"])], "onnx")
case("made twice", [*RELU, node("Neg", ["x"], ["y"])], "onnx")
case("another type declared", [node("Cast", ["x"], ["y"], to=H)], "onnx", stricter=ONNX)

# Operators
UNKNOWN = (
    ("Det", (F, [2, 3, 3]), (F, [2])),
    ("Bernoulli", F, F),
    ("MatMulInteger", (T.INT8, [4, 4]), (T.INT32, [4, 4])),
)
for op, before, after in UNKNOWN:
    inputs = ["x", "x"] if op == "MatMulInteger" else ["x"]
    case(op, [node(op, inputs, ["y"])], "operator", x=before, y=after)
case("DFT", [node("DFT", ["x", "", ""], ["y"])], "operator", x=(F, [1, 8, 8, 1]), y=(F, [1, 8, 8, 2]))
case("unused unknown", [*RELU, node("Det", ["s"], ["z"])], "operator", c={"s": np.eye(3, dtype=single)})
nonzero = [node("NonZero", ["x"], ["n"]), node("Cast", ["n"], ["y"], to=F)]
case("NonZero", nonzero, "operator", "shape", y=(F, [4, "n"]))
case("other domain", [node("Foo", ["x"], ["y"], domain="my")], "operator")
gelu = [node("Gelu", ["x"], ["y"], domain="com.microsoft")]
case("known name in other domain", gelu, "operator", stricter="ONNX Runtime's own, which no other engine has")
case("Gelu", [node("Gelu", ["x"], ["y"])])
case("Gelu of opset 20 in 19", [node("Gelu", ["x"], ["y"])], "operator", opset=19, stricter=ONNX)
norm20 = [node("RMSNormalization", ["x", "w"], ["y"])]
case("operator of opset 23", norm20, "operator", c={"w": np.ones(8, single)}, stricter=ONNX)
signal = [node("STFT", ["x", "s", "w"], ["y"])]
case(
    "STFT", signal, x=(F, [1, 64, 1]), y=ANY, c={"s": np.int64(8), "w": np.ones(16, single)},
    older=(("operator",), "changelog of onnx-tensorrt: since 10.5"), opset=18,
)  # fmt: skip
deformed = [node("DeformConv", ["x", "w", "o"], ["y"], kernel_shape=[1, 1])]
case(
    "DeformConv", deformed, "operator", y=(F, [1, 2, 8, 8]), more=[("o", F, [1, 2, 8, 8])],
    c={"w": np.ones((2, 4, 1, 1), single)}, older=((), "a plug-in that TensorRT brings and RTX does not"),
)  # fmt: skip


def function(op: str, opset: int = 20) -> FunctionProto:
    return helper.make_function("my", "Foo", ["a"], ["b"], [node(op, ["a"], ["b"])], [helper.make_opsetid("", opset)])


call = [node("Foo", ["x"], ["y"], domain="my")]
case("function", call, functions=(function("Relu"),))
case("function of another opset", call, functions=(function("Relu", 19),), warned=("function",))
case("unknown in function", call, "operator", x=(F, [2, 3, 3]), y=(F, [2]), functions=(function("Det"),))
case(
    "unknown in function of another opset", call, "operator", x=(F, [2, 3, 3]), y=(F, [2]),
    functions=(function("Det", 19),), warned=("function",),
)  # fmt: skip
case("unused function", RELU, functions=(function("Det"),))
for op in ("RandomNormalLike", "RandomUniformLike"):
    case(op, [node(op, ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], warned=("random",))

# Shapes
case("free height", RELU, "shape", x=(F, [1, 4, "h", 8]), y=(F, [1, 4, "h", 8]))
case("empty frame", RELU, "shape", x=(F, [1, 0, 8, 8]), y=(F, [1, 0, 8, 8]), stricter="a frame has elements")
case("rank unknown", RELU, "shape", x=(F, None), y=ANY, stricter=FIXED, warned=("shape",))
case("nine axes", RELU, "shape", x=(F, [1] * 9), y=(F, [1] * 9))
case("nine axes inside", [
    node("Reshape", ["x", "to"], ["n"]), node("Relu", ["n"], ["r"]), node("Reshape", ["r", "from"], ["y"]),
], "shape", c={"to": ints(1, 1, 1, 1, 1, *S), "from": ints(*S)})  # fmt: skip
axes = [("a", T.INT64, [1])]
case("axes given", [node("ReduceMean", ["x", "a"], ["y"])], y=ANY, c={"a": ints(-1)})
case("axes an input", [node("ReduceMean", ["x", "a"], ["y"])], "shape", y=ANY, more=axes, warned=("dtype", "shape"))
case("shape an input", [node("Reshape", ["x", "a"], ["y"])], "shape", y=(F, [256]), more=axes, warned=("dtype",))
case("shape of a tensor", [node("Shape", ["x"], ["s"]), node("Reshape", ["x", "s"], ["y"])])
grown = [node("Shape", ["x"], ["s"]), node("Add", ["s", "s"], ["d"]), node("ConstantOfShape", ["d"], ["y"])]
case("shape computed", grown, y=ANY)
case("four axes convolved", [node("Conv", ["x", "w"], ["y"])], "shape", x=(F, [1, 1, 2, 2, 2, 2]), y=ANY,
     c={"w": np.ones([1] * 6, single)})  # fmt: skip

for op, axes_slid in (("MaxPool", 3), ("AveragePool", 1), ("LpPool", 3)):
    pool = [node(op, ["x"], ["y"], kernel_shape=[2] * axes_slid)]
    case(f"{op} along {axes_slid}", pool, x=(F, [1, 4, *[8] * axes_slid]), y=ANY)
for op, axes_slid in (("MaxPool", 4), ("AveragePool", 4), ("LpPool", 1)):
    pool = [node(op, ["x"], ["y"], kernel_shape=[2] * axes_slid)]
    case(f"{op} along {axes_slid}", pool, "shape", x=(F, [1, 4, *[8] * axes_slid]), y=ANY)
case("fewer elements", [node("Reshape", ["x", "s"], ["y"])], "shape", y=ANY, c={"s": ints(1, 3)})

# TopK
topk = node("TopK", ["x", "k"], ["y", "i"])
case("K", [topk], y=ANY, c={"k": ints(2)})
case("K computed", [node("ReduceSum", ["n"], ["k"]), topk], y=ANY, warned=("shape",), c={"n": ints(1, 1)})
case(
    "K cast", [node("Cast", ["n"], ["k"], to=T.INT64), topk], y=ANY, warned=("shape",), c={"n": np.array([2], np.int32)}
)
case("K a node", [node("Constant", [], ["k"], value=numpy_helper.from_array(ints(2))), topk], y=ANY)
case("K an input", [topk], "topk", "shape", y=(F, [1, 4, 8, "n"]), more=[("k", T.INT64, [1])], warned=("dtype",))
case("K from data", [
    node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["n"], to=T.INT64),
    node("Unsqueeze", ["n", "z"], ["k"]), topk,
], "topk", "shape", y=(F, [1, 4, 8, "n"]), c={"z": ints(0)})  # fmt: skip
drawn = [
    node("RandomUniform", [], ["r"], shape=[1], low=2.0, high=3.0), node("Cast", ["r"], ["k"], to=T.INT64), topk,
]  # fmt: skip
case("K drawn", drawn, "topk", "shape", y=(F, [1, 4, 8, "n"]), warned=("random",), stricter=FIXED)
case("K 3840", [topk], x=(F, [1, 5000]), y=(F, [1, 3840]), c={"k": ints(3840)})
case("K 3841", [topk], "topk", x=(F, [1, 5000]), y=(F, [1, 3841]), c={"k": ints(3841)})
computed = [node("Add", ["n", "n"], ["k"]), topk]
case("K 3842 computed", computed, "topk", x=(F, [1, 5000]), y=(F, [1, 3842]), c={"n": ints(1921)})
unsorted = [node("TopK", ["x", "k"], ["y", "i"], sorted=0)]
case("unsorted", unsorted, y=ANY, c={"k": ints(2)}, older=(("topk",), "operators.md of 10.6: sorted must be 1"))

# Scatter
scattered = {"i": ints(1, 1)[None], "u": np.ones((1, 2), single)}
by_index = {"i": ints(1, 2)[:, None], "u": np.ones(2, single)}
for reduction in ("none", "add", "max"):
    rules = () if reduction == "none" else ("scatter",)
    elements = node("ScatterElements", ["x", "i", "u"], ["y"], axis=1, reduction=reduction)
    case(f"ScatterElements {reduction}", [elements], *rules, x=(F, [1, 5]), y=(F, [1, 5]), c=scattered)
    rows = node("ScatterND", ["x", "i", "u"], ["y"], reduction=reduction)
    case(f"ScatterND {reduction}", [rows], *rules, x=(F, [5]), y=(F, [5]), c=by_index)

# If
decide = [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Greater", ["m", "z"], ["c"])]


def branch(op: str, out: str, kind: int = F, shape: Any = S, **attributes: Any) -> GraphProto:
    value = helper.make_tensor_value_info(out, kind, shape)
    return helper.make_graph([node(op, ["x"], [out], **attributes)], op, [], [value])


def branched(first: GraphProto, second: GraphProto) -> list[NodeProto]:
    return [*decide, node("If", ["c"], ["y"], then_branch=first, else_branch=second)]


both = branched(branch("Relu", "a"), branch("Neg", "b"))
flat = branch("Flatten", "b", shape=[1, 256])
case("If", both, c={"z": single(0)})
case("If of one element", both, c={"z": np.zeros(1, single)})
case("If of two elements", both, "if", c={"z": np.zeros(2, single)})
case("If with other rank", branched(branch("Relu", "a"), flat), "if", c={"z": single(0)}, y=ANY, warned=("shape",))
case("If decided, other rank", branched(branch("Relu", "a"), flat)[2:], c={"c": np.bool_(True)})
case("If with other type", branched(branch("Relu", "a"), branch("Cast", "b", H, to=H)), "typing", c={"z": single(0)})
stacked = helper.make_graph(
    [node("Concat", ["x", "x"], ["b"], axis=1)], "more", [], [helper.make_tensor_value_info("b", F, [1, 8, 8, 8])]
)
case("If with other shape", branched(branch("Relu", "a"), stacked), "shape", y=(F, [1, "n", 8, 8]),
     c={"z": single(0)}, stricter=FIXED)  # fmt: skip
counted = [
    helper.make_graph(
        [node("ArgMax", ["x"], [f"m{name}"], axis=0, keepdims=0), node("Reshape", [f"m{name}", "one"], [f"f{name}"]),
         node("Slice", [f"f{name}", "nil", "unit"], [name])],
        "counted", [], [helper.make_tensor_value_info(name, T.INT64, [1])],
    )
    for name in "ab"
]  # fmt: skip
chosen = [node("If", ["c"], ["k"], then_branch=counted[0], else_branch=counted[1]), topk]
case("K from a branch", chosen, "topk", "shape", y=(F, [1, 4, 8, "n"]),
     c={"c": np.bool_(True), "one": ints(-1), "nil": ints(0), "unit": ints(1)}, stricter=FIXED)  # fmt: skip
deep = helper.make_graph(
    [node("Det", ["x"], ["d"]), node("Relu", ["x"], ["b"])], "deep", [], [helper.make_tensor_value_info("b", F, S)]
)
case("unknown in a branch", branched(branch("Relu", "a"), deep), "operator", c={"z": single(0)})
mixing = helper.make_graph(
    [node("Add", ["x", "h"], ["b"])], "mixing", [], [helper.make_tensor_value_info("b", F, S)]
)  # fmt: skip
case("mixed in a branch", branched(branch("Relu", "a"), mixing), "typing", c={"z": single(0), "h": np.float16(1)})
body = helper.make_graph(
    [node("Identity", ["go"], ["on"]), node("Relu", ["v"], ["w"])], "body",
    [helper.make_tensor_value_info(*v) for v in (("n", T.INT64, []), ("go", B, []), ("v", F, S))],
    [helper.make_tensor_value_info(*v) for v in (("on", B, []), ("w", F, S))],
)  # fmt: skip
case("Loop", [node("Loop", ["n", "go0", "x"], ["y"], body=body)], c={"n": np.int64(3), "go0": np.bool_(True)})
case("Loop without condition", [node("Loop", ["n", "", "x"], ["y"], body=body)], "attribute", c={"n": np.int64(3)})

# Types
half8, single8 = np.ones(8, np.float16), np.ones(8, single)
for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "MatMul", "PRelu", "Sum", "Concat", "Equal", "Greater"):
    kind = B if op in ("Equal", "Greater") else F
    attributes = {"axis": 1} if op == "Concat" else {}
    mixed = [node(op, ["x", "w"], ["y"], **attributes)]
    case(f"mixed {op}", mixed, "typing", y=(kind, None), c={"w": np.ones(S, np.float16)})
    case(f"plain {op}", mixed, y=(kind, None), c={"w": np.ones(S, single)})
weights, halved = np.ones((8, 4, 1, 1), single), np.ones((8, 4, 1, 1), np.float16)
case("Conv", [node("Conv", ["x", "w", "b"], ["y"])], y=ANY, c={"w": weights, "b": single8})
case("mixed Conv", [node("Conv", ["x", "w"], ["y"])], "typing", y=ANY, c={"w": halved})
case("mixed bias", [node("Conv", ["x", "w", "b"], ["y"])], "typing", y=ANY, c={"w": weights, "b": half8})
case(
    "mixed Gemm",
    [node("Gemm", ["x", "w"], ["y"])],
    "typing",
    x=(F, [2, 8]),
    y=ANY,
    c={"w": np.ones((8, 2), np.float16)},
)
norm = [node("LayerNormalization", ["x", "w"], ["y"])]
case("mixed normalisation", norm, "typing", x=H, y=H, c={"w": single8})
case("FP16 normalisation", norm, x=H, y=H, c={"w": half8})
where = [node("Where", ["c", "x", "w"], ["y"])]
case("mixed Where", where, "typing", c={"c": np.ones(S, bool), "w": np.float16(0)})
case("mixed Einsum", [node("Einsum", ["x", "w"], ["y"], equation="abcd,abcd->abc")], "typing", y=ANY,
     c={"w": np.ones(S, np.float16)})  # fmt: skip
case("mixed ScatterND", [node("ScatterND", ["x", "i", "u"], ["y"])], "typing", x=(F, [5]), y=(F, [5]),
     c={"i": by_index["i"], "u": np.ones(2, np.float16)})  # fmt: skip
case("mixed integers", [node("Add", ["x", "w"], ["y"])], "typing", x=T.INT32, y=T.INT32, c={"w": np.int64(1)})
case("float and integer", [node("Mul", ["x", "w"], ["y"])], "typing", c={"w": np.int64(1)})
case(
    "float and double",
    [node("Mul", ["x", "w"], ["y"])],
    "typing",
    c={"w": np.float64(1)},
    stricter=ONNX,
    warned=("dtype",),
)
case("mixed exponent", [node("Pow", ["x", "w"], ["y"])], c={"w": np.int64(2)})
clip = [node("Clip", ["x", "w"], ["y"])]
case("mixed Clip", clip, "typing", x=H, y=H, c={"w": single(0)}, stricter=ONNX)
case("mixed after Cast", [node("Cast", ["x"], ["h"], to=H), node("Add", ["h", "x"], ["y"])], "typing")
case("cast back", [
    node("Cast", ["x"], ["h"], to=H), node("Relu", ["h"], ["r"]), node("Cast", ["r"], ["s"], to=F),
    node("Add", ["x", "s"], ["y"]),
])  # fmt: skip

# Element types
CASTS = {
    "FLOAT16": (), "BFLOAT16": (), "INT32": (), "INT64": (), "BOOL": (), "UINT8": ("cast",), "INT16": ("cast",),
    "UINT16": ("cast",), "UINT32": ("cast",), "UINT64": ("cast",), "FLOAT8E4M3FN": ("cast",),
}  # fmt: skip
for name, rules in CASTS.items():
    older = (("cast", "capability"), "Orin has no FP8") if name == "FLOAT8E4M3FN" else None
    there_and_back = [node("Cast", ["x"], ["n"], to=getattr(T, name)), node("Cast", ["n"], ["y"], to=F)]
    case(f"Cast to {name}", there_and_back, *rules, older=older)
case("Cast to DOUBLE", [node("Cast", ["x"], ["y"], to=D)], y=D, warned=("dtype",))
case("Cast to INT8", [node("Cast", ["x"], ["y"], to=T.INT8)], y=T.INT8,
     older=(("cast",), "operators.md of 10.6 names no int8 for Cast"))  # fmt: skip
case("uint8 output", [node("Cast", ["x"], ["y"], to=T.UINT8)], y=T.UINT8)
bytes_of = [branch("Cast", name, T.UINT8, to=T.UINT8) for name in "ab"]
case("uint8 of branches", branched(*bytes_of), "cast", "dtype", y=T.UINT8, c={"z": single(0)})
case("uint8 input", [node("Cast", ["x"], ["y"], to=F)], x=T.UINT8)
case("uint8 inside", [node("Transpose", ["x"], ["y"])], "dtype", x=(T.UINT8, [8, 8]), y=(T.UINT8, [8, 8]))
for name in ("INT16", "UINT16", "UINT32", "UINT64", "STRING", "COMPLEX64"):
    kind = getattr(T, name)
    case(f"{name} input", [node("Identity", ["x"], ["y"])], "dtype", x=kind, y=kind)
for dtype in (np.int16, np.uint16, np.uint32, np.uint64):
    cast = [node("Cast", ["w"], ["s"], to=F), node("Mul", ["x", "s"], ["y"])]
    case(f"{dtype.__name__} constant", cast, "dtype", c={"w": dtype(3)})
case("double", RELU, x=D, y=D, warned=("dtype",))
case("int64 data", [node("Mul", ["x", "x"], ["y"])], x=T.INT64, y=T.INT64, warned=("dtype",))
case("int64 MatMul", [node("MatMul", ["x", "x"], ["y"])], "dtype", x=T.INT64, y=T.INT64, warned=("dtype",))
case("int32 Gemm", [node("Gemm", ["x", "x"], ["y"])], "dtype", x=(T.INT32, [4, 4]), y=(T.INT32, [4, 4]))
case("int32 Sqrt", [node("Sqrt", ["x"], ["y"])], "typing", x=T.INT32, y=T.INT32)
case("added booleans", [node("Add", ["x", "x"], ["y"])], "typing", x=B, y=B)
case("remainder of floats", [node("Mod", ["x", "x"], ["y"])], "dtype")
case("fmod", [node("Mod", ["x", "x"], ["y"], fmod=1)])
case("bfloat16", [node("Add", ["x", "x"], ["y"])], x=BF, y=BF)
int64_data: dict[str, Any] = {"x": T.INT64, "y": (T.INT64, None), "warned": ("dtype",)}
int32_data: dict[str, Any] = {"x": T.INT32, "y": (T.INT32, None)}
bool_data: dict[str, Any] = {"x": B, "y": (B, None)}
case("int32 Relu", RELU, "dtype", **int32_data)
case("int64 Relu", RELU, **int64_data)
for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
    reduce = [node(f"Reduce{name}", ["x", "a"], ["y"])]
    rules = ("dtype",) if name in ("L2", "LogSum", "LogSumExp") else ()
    case(f"int32 Reduce{name}", reduce, *rules, c={"a": ints(1)}, **int32_data)
    case(f"int64 Reduce{name}", reduce, *rules, c={"a": ints(1)}, **int64_data)
for name in ("Max", "Min"):
    case(f"bool Reduce{name}", [node(f"Reduce{name}", ["x", "a"], ["y"])], "dtype", c={"a": ints(1)}, **bool_data)
for op in ("DepthToSpace", "SpaceToDepth"):
    case(f"bool {op}", [node(op, ["x"], ["y"], blocksize=2)], "dtype", **bool_data)
    case(f"int32 {op}", [node(op, ["x"], ["y"], blocksize=2)], **int32_data)
for op, others in (("PRelu", {}), ("Einsum", {"equation": "abcd,abcd->abc"})):
    case(f"int32 {op}", [node(op, ["x", "x"], ["y"], **others)], "dtype", **int32_data)
for op, kind in (("ArgMax", T.INT64), ("Greater", B), ("LessOrEqual", B)):
    inputs = ["x"] if op == "ArgMax" else ["x", "x"]
    case(f"uint8 {op}", [node(op, inputs, ["y"])], "dtype", x=T.UINT8, y=(kind, None),
         warned=("dtype",) if kind == T.INT64 else ())  # fmt: skip
case("uint8 Equal", [node("Equal", ["x", "x"], ["y"])], x=T.UINT8, y=B)
twice = {"s": np.array([1, 1, 2, 2], single)}
case("int32 Resize", [node("Resize", ["x", "", "s"], ["y"])], "dtype", c=twice, **int32_data)
case("bool Resize", [node("Resize", ["x", "", "s"], ["y"])], "dtype", c=twice, **bool_data)

# Attributes
case("second output", [node("LayerNormalization", ["x", "w"], ["y", "m"])], "attribute", c={"w": single8})
case("indices of MaxPool", [node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])], "attribute", y=ANY)
case("MaxPool", [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], y=ANY)
case("dilated MaxPool", [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])], "attribute", y=ANY)
for p in (1, 2, 3):
    case(f"LpPool {p}", [node("LpPool", ["x"], ["y"], kernel_shape=[2, 2], p=p)], *(("attribute",) if p == 3 else ()),
         y=ANY)  # fmt: skip
case("GlobalLpPool 3", [node("GlobalLpPool", ["x"], ["y"], p=3)], y=ANY)
for left_out in (["y", ""], ["", "y"]):
    split = [node("Split", ["x", "s"], left_out, axis=1)]
    case(f"Split, {left_out.index('')} left out", split, "attribute", y=ANY, c={"s": ints(1, 3)})
case("Split", [node("Split", ["x", "s"], ["y", "z"], axis=1)], y=ANY, c={"s": ints(1, 3)})
case("Dropout without its mask", [node("Dropout", ["x"], ["y", ""])], "attribute")
case("LSTM without its states", [node("LSTM", ["x", "w", "r"], ["y", "", ""], hidden_size=2)], x=(F, [3, 1, 4]), y=ANY,
     c={"w": np.ones((1, 8, 4), single), "r": np.ones((1, 8, 2), single)})  # fmt: skip
drop = [node("Dropout", ["x", "r", "t"], ["y"])]
case("Dropout in training", drop, "attribute", c={"r": single(0.5), "t": np.bool_(True)})
case("Dropout", drop, c={"r": single(0.5), "t": np.bool_(False)})
four = dict.fromkeys("sbmv", np.ones(4, single))
batch = ["x", *"sbmv"]
case("BatchNormalization", [node("BatchNormalization", batch, ["y"])], c=four)
training = [node("BatchNormalization", batch, ["y", "a", "b2"], training_mode=1)]
case("BatchNormalization in training", training, "attribute", c=four)
case("capital letters", [node("Einsum", ["x"], ["y"], equation="ABCD->ABC")], "attribute", y=ANY)
case("text", [node("Constant", [], ["t"], value_string="a"), *RELU], "attribute")
cubic = [node("Resize", ["x", "", "s"], ["y"], mode="cubic")]
case("cubic", cubic, y=ANY, c={"s": np.array([1, 1, 2, 2], single)},
     older=(("attribute",), "operators.md of 10.6: nearest and linear"))  # fmt: skip
region = np.array([0, 0, 0, 0, 1, 1, 1, 1], single)
for name, rules in {
    "half_pixel": (), "pytorch_half_pixel": (), "tf_half_pixel_for_nn": (), "asymmetric": (), "align_corners": (),
    "half_pixel_symmetric": ("attribute",), "tf_crop_and_resize": ("attribute",),
}.items():  # fmt: skip
    resize = [node("Resize", ["x", "r", "s"], ["y"], coordinate_transformation_mode=name)]
    case(f"Resize by {name}", resize, *rules, y=ANY, c={"r": region, **twice})
for name in ("stretch", "not_larger", "not_smaller"):
    resize = [node("Resize", ["x", "", "", "z"], ["y"], keep_aspect_ratio_policy=name)]
    rules = () if name == "stretch" else ("attribute",)
    case(f"Resize, {name}", resize, *rules, y=ANY, c={"z": ints(1, 4, 16, 16)})
smooth = [node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1)]
case("antialiasing", smooth, "attribute", y=ANY, c=twice)

# FP16
product = [node("Mul", ["x", "w"], ["y"])]
case("FP16 constant", product, x=H, y=H, c={"w": np.float16(65504)})
case("infinite FP16", product, "range", x=H, y=H, c={"w": np.float16(np.inf)}, stricter=INFINITE)
case("infinite float32", product, c={"w": single(np.inf)})
cast = [node("Cast", ["w"], ["h"], to=H), node("Mul", ["x", "h"], ["y"])]
case("beyond FP16", cast, "range", x=H, y=H, c={"w": single(1e6)}, stricter=INFINITE)
case("within FP16", cast, x=H, y=H, c={"w": single(-6e4)})
for stash in (F, H):
    stashed = [node("LayerNormalization", ["x", "w"], ["y"], stash_type=stash)]
    case(f"stash {stash}", stashed, x=H, y=H, c={"w": half8}, warned=() if stash == F else ("stash",))
SQUARES = {
    "Mul": [node("Mul", ["x", "x"], ["q"])],
    "Pow": [node("Pow", ["x", "two"], ["q"])],
}
for name, square in SQUARES.items():
    for kind in (H, F):
        mean = [
            *square,
            node("ReduceMean", ["q", "a"], ["m"]),
            node("Sqrt", ["m"], ["r"]),
            node("Div", ["x", "r"], ["y"]),
        ]
        two = np.array(2, np.float16 if kind == H else single)
        warned = ("square",) if kind == H else ()
        title = f"RMS norm by {name} in {T.DataType.Name(kind)}"
        case(title, mean, x=kind, y=kind, c={"a": ints(-1), "two": two}, warned=warned)
case("FP16 L2", [node("ReduceL2", ["x", "a"], ["y"])], x=H, y=(H, None), c={"a": ints(-1)}, warned=("square",))
case("FP16 mean", [node("ReduceMean", ["x", "a"], ["y"])], x=H, y=(H, None), c={"a": ints(-1)})

# Q/DQ
tenth, zero = single(0.1), np.int8(0)
roundtrip = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]


def quantized(name: str, *rules: str, s: Any = tenth, z: Any = zero, axis: int | None = None, **others: Any) -> None:
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    case(f"Q/DQ {name}", nodes, *rules, c={"s": s, "z": z}, **others)


Q = "quantization"
PER_TENSOR = ((Q,), "TensorRT's guide to quantised types: activations per tensor")
four_scales, four_zeros = np.full(4, 0.1, single), np.zeros(4, np.int8)
quantized("int8")
quantized("one scale in a vector", s=np.full(1, 0.1, single), z=np.zeros(1, np.int8))
quantized("uint8", Q, z=np.uint8(0), stricter=UINT8)
quantized("uint8 with zero point", Q, z=np.uint8(128))
quantized("int8 with zero point", Q, z=np.int8(1))
quantized("one zero point of four", Q, s=four_scales, z=np.array([0, 0, 1, 0], np.int8), axis=1)
for bad in (0, -1, np.nan):
    quantized(f"scale {bad}", Q, s=single(bad))
quantized("infinite scale", Q, s=single(np.inf), stricter=INFINITE)
quantized("FP16", s=np.float16(0.1), x=H, y=H)
quantized("FP16 scale of float32", "typing", s=np.float16(0.1), stricter=ONNX)
quantized("per channel", s=four_scales, z=four_zeros, axis=1, older=PER_TENSOR, warned=(Q,))
quantized("wrong axis", Q, s=four_scales, z=four_zeros, axis=0)
quantized("no such axis", Q, s=four_scales, z=four_zeros, axis=9)
quantized("fewer zero points", Q, s=four_scales, z=zero, axis=1)
quantized("int16", "dtype", Q, "typing", z=np.int16(0))
quantized(
    "float8e4m3fn", z=helper.make_tensor("z", T.FLOAT8E4M3FN, [], [0]), older=(("capability",), "Orin has no FP8")
)
quantized("float8e5m2", "dtype", Q, z=helper.make_tensor("z", T.FLOAT8E5M2, [], [0]))
unsaid = [node("QuantizeLinear", ["x", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["y"])]
case("Q/DQ without zero point", unsaid, Q, c={"s": tenth}, stricter=UINT8)
case(
    "Q without zero point",
    [node("QuantizeLinear", ["x", "s"], ["y"])],
    Q,
    y=(T.UINT8, S),
    c={"s": tenth},
    stricter=UINT8,
)
case("Q/DQ with one zero point", [roundtrip[0], unsaid[1]], c={"s": tenth, "z": zero})
case("zero point an input", roundtrip, Q, c={"s": tenth}, more=[("z", T.INT8, [])])
case("scale computed", [node("Mul", ["t", "t"], ["s"]), *roundtrip], c={"t": single(0.3), "z": zero})
case(
    "scale computed to zero",
    [node("Sub", ["t", "t"], ["s"]), *roundtrip],
    Q,
    c={"t": single(0.3), "z": zero},
    stricter=DIVIDES,
)
case("scale from data", [node("ReduceMax", ["x"], ["s"], keepdims=0), *roundtrip], c={"z": zero})
case("int8 between", [roundtrip[0], node("Relu", ["q"], ["r"]), node("DequantizeLinear", ["r", "s", "z"], ["y"])],
     c={"s": tenth, "z": zero}, warned=(Q,))  # fmt: skip
turned = [
    node("Transpose", ["w"], ["t"]),
    node("DequantizeLinear", ["t", "s", "z"], ["d"]),
    node("MatMul", ["x", "d"], ["y"]),
]
case("int8 constant transposed", turned, Q, c={"w": np.ones((8, 8), np.int8), "s": tenth, "z": zero})
case("int8 constant cast", [node("Cast", ["w"], ["f"], to=F), node("Mul", ["x", "f"], ["y"])], Q, c={"w": np.int8(3)})
stored = [node("DequantizeLinear", ["w", "s", "z"], ["f"]), node("Mul", ["x", "f"], ["y"])]
case("uint8 constant dequantised", stored, Q, c={"w": np.full((4, 1, 1), 3, np.uint8), "s": tenth, "z": np.uint8(0)})


def convolved(name: str, op: str, axis: int, *rules: str, bias: str = "", **others: Any) -> None:
    """An operator with quantised activations and weights that are scaled along `axis`."""
    shapes = {"Conv": (8, 4, 1, 1), "ConvTranspose": (4, 8, 1, 1), "MatMul": (8, 6), "Gemm": (6, 8)}
    shape = shapes[op]
    count = shape[axis]
    constants: dict[str, Any] = {
        "s": tenth, "z": zero, "w": np.ones(shape, np.int8), "ws": np.full(count, 0.1, single),
        "wz": np.zeros(count, np.int8),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
    ]
    inputs = ["xd", "wd"]
    if bias == "float32":
        constants["b"] = np.ones(8, single)
        inputs.append("b")
    if bias == "int32":
        constants.update(b32=np.ones(8, np.int32), bs=np.full(8, 0.01, single))
        nodes.append(node("DequantizeLinear", ["b32", "bs"], ["b"], axis=0))
        inputs.append("b")
    attributes = {"transB": 1} if op == "Gemm" else {}
    nodes.append(node(op, inputs, ["y"], **attributes))
    x = (F, [2, 8]) if op == "Gemm" else F
    case(f"quantised {name}", nodes, *rules, x=x, y=ANY, c=constants, **others)


PER_OUTPUT = ((Q,), "TensorRT's guide to quantised types: weights per output channel")
OUTPUTS = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0}
for op, axis in OUTPUTS.items():
    convolved(op, op, axis)
    convolved(f"{op} along the other axis", op, 1 - axis, older=PER_OUTPUT, warned=(Q,))
convolved("Conv, float bias", "Conv", 0, bias="float32")
convolved("Conv, int32 bias", "Conv", 0, Q, bias="int32")


# The oracle


@pytest.fixture(scope="module")
def accepted() -> Callable[[bytes], bool]:
    """Whether TensorRT for RTX parses a graph and builds an engine of it."""
    try:
        trt: ModuleType = load_tensorrt("tensorrt-rtx")
    except MachineError as error:
        pytest.skip(str(error))

    class Quiet(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            pass

    logger = Quiet()
    builder = trt.Builder(logger)

    def accepts(data: bytes) -> bool:
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        if not trt.OnnxParser(network, logger).parse(data):
            return False
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        return builder.build_serialized_network(network, config) is not None

    return accepts


def errors(data: bytes, **target: Any) -> list[Finding]:
    return [finding for finding in lint(data, **target) if finding.severity == "error"]


@pytest.mark.parametrize("name", CASES)
def test_the_lint_is_right_about(name: str) -> None:
    case = CASES[name]
    assert {f.rule for f in errors(case.data, **RTX)} == case.rules
    assert {f.rule for f in lint(case.data, **RTX) if f.severity == "warning"} == case.warned
    expected, source = case.older or (case.rules, "the same")
    assert {f.rule for f in errors(case.data, **ORIN)} == expected, source


@pytest.mark.parametrize("name", CASES)
def test_the_parser_agrees_about(name: str, accepted: Callable[[bytes], bool]) -> None:
    case = CASES[name]
    if case.stricter:
        assert case.rules and accepted(case.data), "the parser refuses it too: no reason is needed"
    else:
        assert accepted(case.data) == (not case.rules)


def test_findings_are_one_line_and_say_what_to_do() -> None:
    for case in CASES.values():
        for finding in lint(case.data, **ORIN):
            assert finding.node and finding.problem and finding.remedy and finding.severity in ("error", "warning")
            assert "\n" not in finding.problem + finding.remedy and not finding.problem.endswith(".")


def test_mixed_types_name_both_tensors() -> None:
    (found,) = errors(CASES["mixed Conv"].data, **ORIN)
    assert found.operator == "Conv" and found.node == "y"
    assert "'x' is float, 'w' is float16" in found.problem and "'w' as float" in found.remedy


def test_biases_that_were_quantised_say_how_not_to() -> None:
    (found,) = errors(CASES["quantised Conv, int32 bias"].data, **ORIN)
    assert "'b32'" in found.problem and "QuantizeBias=False" in found.remedy


def test_damage_is_a_finding() -> None:
    for data in (b"not onnx", b"\xff" * 40):
        assert [f.rule for f in lint(data, **ORIN)] == ["file"]
    assert "file" in {f.rule for f in lint(b"", **ORIN)}


FOUR = {"data_type": F, "dims": [4]}
TORN = {
    "torn value": T(name="w", raw_data=b"abc", **FOUR),
    "fewer values": T(name="w", raw_data=b"abcd", **FOUR),
    "no values": T(name="w", **FOUR),
    "negative dimension": T(name="w", data_type=F, dims=[-4], raw_data=bytes(16)),
    "vast dimension": T(name="w", data_type=H, dims=[10**9], raw_data=b"abcd"),
    "no such type": T(name="w", data_type=99, dims=[1], raw_data=b"abcd"),
    "no type": T(name="w", dims=[1], raw_data=b"abcd"),
}
BENT = {
    "Cast without output": [node("Cast", ["x"], [], to=F)],
    "Constant without output": [node("Constant", [], [], value_float=1.0)],
    "Mul without inputs": [node("Mul", [], ["q"]), node("ReduceMean", ["q"], ["y"])],
    "Mul of one": [node("Mul", ["x"], ["q"]), node("ReduceMean", ["q"], ["y"])],
    "Pow of one": [node("Pow", ["x"], ["q"]), node("ReduceMean", ["q"], ["y"])],
    "Shape of nothing": [node("Shape", [], ["y"])],
    "DequantizeLinear without output": [node("DequantizeLinear", ["x", "x"], [])],
    "axis a text": [node("TopK", ["x", "x"], ["y", "i"], sorted="no")],
    "reduction a number": [node("ScatterND", ["x", "x", "x"], ["y"], reduction=1)],
    "dilations a number": [node("MaxPool", ["x"], ["y"], kernel_shape=[2], dilations=1)],
}


@pytest.mark.parametrize("name", TORN)
def test_torn_tensors_are_a_finding(name: str) -> None:
    ends: Values = [("x", F, [4]), ("y", F, [4])]
    held = model([node("Add", ["x", "w"], ["y"])], ends[:1], ends[1:], {"w": TORN[name]})
    inside = model([node("Constant", [], ["w"], value=TORN[name]), *RELU], ends[:1], ends[1:], {})
    for data in (held, inside):
        (found,) = lint(data, **ORIN)
        assert found.rule == "onnx" and found.node == "w" and "\n" not in found.problem


@pytest.mark.parametrize("name", BENT)
def test_bent_nodes_are_findings(name: str) -> None:
    data = model(BENT[name], [("x", F, [4])], [("y", F, [4])], {})
    assert errors(data, **ORIN)


def test_names_that_are_no_text_are_a_finding() -> None:
    data = CASES["plain"].data.replace(b"Relu", b"Re\xff\xfe")
    assert errors(data, **ORIN)


def test_external_data_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere.bin").write_bytes(bytes(4))
    assert [f.rule for f in lint(CASES["external data"].data, **ORIN)] == ["external"]
    hidden = onnx.load_model_from_string(CASES["plain"].data)
    hidden.graph.node.append(node("Constant", [], ["k"], value=elsewhere))
    assert [f.rule for f in lint(hidden.SerializeToString(), **ORIN)] == ["external"]
    deeper = onnx.load_model_from_string(CASES["If"].data)
    deeper.graph.node[-1].attribute[0].g.initializer.append(elsewhere)
    assert [f.rule for f in lint(deeper.SerializeToString(), **ORIN)] == ["external"]


def test_functions_that_call_themselves_end() -> None:
    endless = helper.make_function("my", "Foo", ["a"], ["b"], [node("Foo", ["a"], ["b"], domain="my")], [
        helper.make_opsetid("", 20), helper.make_opsetid("my", 1),
    ])  # fmt: skip
    data = model(call, [("x", F, S)], [("y", F, S)], {}, functions=(endless,))
    assert {f.rule for f in errors(data, **ORIN)} == {"onnx"}


def test_attention_inside_if() -> None:
    """TensorRT 10.16 fails on it, and so does RTX 1.7.1's builder, which crashes on one outside."""
    attention = helper.make_graph(
        [node("Attention", ["x", "x", "x"], ["a"])], "a", [], [helper.make_tensor_value_info("a", F, S)]
    )
    nodes = branched(attention, branch("Neg", "b"))
    data = model(nodes, [("x", F, S)], [("y", F, S)], {"z": single(0)}, opset=23)
    assert {f.rule for f in errors(data, tensorrt="10.16", kind="tensorrt")} == {"if", "opset"}


@pytest.mark.parametrize(
    ("name", "sm", "refused"),
    [
        ("bfloat16", "7.5", True),
        ("bfloat16", "8.0", False),
        ("bfloat16", None, False),
        ("Q/DQ float8e4m3fn", "8.7", True),
        ("Q/DQ float8e4m3fn", "11.0", False),
    ],
)
def test_what_the_gpu_lacks(name: str, sm: str | None, refused: bool) -> None:
    found = errors(CASES[name].data, tensorrt="10.3", kind="tensorrt", sm=sm)
    assert [f.rule for f in found] == ["capability"] * refused


def test_operators_grow_with_versions() -> None:
    signal = CASES["STFT"].data
    verdicts = [
        bool(errors(signal, tensorrt=v, kind="tensorrt")) for v in ("10.3", "10.4.9", "10.5", "10.13.3", "11.4")
    ]
    assert verdicts == [True, True, False, False, False]
    assert operators("10.3", "tensorrt") < operators("10.13.3", "tensorrt") < operators("10.16.2", "tensorrt")
    assert "NonZero" in operators("10.3", "tensorrt") and "NonZero" not in operators("1.7", "tensorrt-rtx")
    assert "Attention" not in operators("10.3", "tensorrt") and "Attention" in operators("11.4.1", "tensorrt")


def test_the_table_is_what_the_parser_lists(accepted: Callable[[bytes], bool]) -> None:
    """Every operator that the table has for RTX is known there, and what it lacks is not."""
    trt = load_tensorrt("tensorrt-rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    listed = {name for name in standard if parser.supports_operator(name)}
    assert operators("1.7", "tensorrt-rtx") & standard == listed - {"NonZero"}


@pytest.mark.parametrize("target", [{"tensorrt": "10.2", "kind": "tensorrt"}, {"tensorrt": "8.5", "kind": "tensorrt"}])
def test_older_versions_are_refused(target: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"tensorrt: too old .*10\.3 or newer"):
        lint(CASES["plain"].data, **target)
    with pytest.raises(InputError, match=r"kind: unknown .*tensorrt-rtx"):
        lint(CASES["plain"].data, tensorrt="10.3", kind="trt")


def test_the_first_error_is_raised_and_the_others_are_counted() -> None:
    bad, worse = (
        Finding("n1", "Add", "typing", "mixes types", "put a Cast"),
        Finding("n2", "", "shape", "free", "fix it"),
    )
    mild = Finding("n0", "Mul", "square", "overflows", "keep float32", "warning")
    raise_for([], "graph.onnx")
    raise_for([mild], "graph.onnx")
    with pytest.raises(InputError) as caught:
        raise_for([mild, bad], "graph.onnx")
    assert caught.value.exit_code == 2 and caught.value.key == "n1"
    assert (
        str(caught.value) == "graph.onnx, n1: TensorRT cannot take this graph, rule typing: Add mixes types; put a Cast"
    )
    with pytest.raises(InputError, match=r"mixes types \(and 1 more error\)"):
        raise_for([bad, worse])
    with pytest.raises(InputError, match=r"free \(and 2 more errors\)"):
        raise_for([worse, bad, bad])


# The project's own graphs


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_our_graphs_have_nothing_to_find(tiny_bundle: Path, precision: str) -> None:
    data = (tiny_bundle / read_manifest(tiny_bundle).graphs["fp32"]).read_bytes()
    data = half_precision(data).data if precision == "fp16" else data
    for version in ("10.3", "10.13.3", "11.4"):
        assert lint(data, tensorrt=version, kind="tensorrt", sm="8.7") == []
    assert lint(data, **RTX) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["additive, reference15, top-2", "bias free", "no latent block", "one band"])
def test_graphs_of_other_configurations_have_nothing_to_find(name: str) -> None:
    from export.networks import network_of
    from export.onnx import export_graph
    from tests.export.checkpoints import network
    from tests.export.test_onnx import CONFIGURATIONS

    for experts in ("dense", "gathered"):
        data = export_graph(network_of(network(CONFIGURATIONS[name])), 64, 64, experts).data
        for graph in (data, half_precision(data).data):
            assert lint(graph, **ORIN) == [] == lint(graph, **RTX)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, export.tensorrt.lint; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "onnx" in loaded and not {"torch", "tensorrt", "tensorrt_rtx", "polygraphy"}.intersection(loaded)


def test_the_oldest_versions_are_those_of_the_targets() -> None:
    from export.targets import BUILT_IN

    lowest = {
        t.engine: t.tensorrt.split(",")[0][2:] for t in BUILT_IN.values() if t.tensorrt and "10.13" not in t.tensorrt
    }
    assert lowest == OLDEST
