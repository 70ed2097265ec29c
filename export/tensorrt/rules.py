"""Rules about single nodes: operators, shapes, types, branches, ranges of FP16.

Where nothing else is said the source is what the parser and the builder of TensorRT for RTX 1.7.1 do with such a node;
for TensorRT itself, docs/operators.md of onnx-tensorrt 10.6.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from export.tensorrt.operators import operators
from export.tensorrt.quantized import QUANTIZED, quantization, quantized_constant
from export.tensorrt.reading import RANDOM, Finding, Site, size, type_name

LARGEST_K = 3840
"""ITopKLayer, `K exceeds the maximum value allowed`."""
MOST_AXES = 8
"""Dims::MAX_DIMS of NvInfer.h."""
LARGEST_HALF = 65504.0
HALF, INTEGERS = TensorProto.FLOAT16, (TensorProto.INT32, TensorProto.INT64)
REDUCTIONS = tuple(f"Reduce{name}" for name in (
    "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare",
))  # fmt: skip
BUILD_TIME: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(REDUCTIONS, (1,)), "Squeeze": (1,), "Unsqueeze": (1,), "OneHot": (1,), "CumSum": (1,),
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Pad": (1, 3), "Slice": (1, 2, 3, 4),
    "Resize": (2, 3), "Split": (1,), "Range": (0, 1, 2), "Trilu": (1,),
}  # fmt: skip
"""Inputs that decide on shapes: known before the engine is built, since a build fixes all shapes."""
DATA_SHAPES = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress"})
ONE_OUTPUT = frozenset({"LayerNormalization", "MaxPool"})
POOLS = frozenset({"AveragePool", "MaxPool", "LpPool"})
ALL_OUTPUTS = frozenset({"Split", "Dropout"})
REFUSED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("MatMul", "Gemm", "Erf", "PRelu", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"), INTEGERS),
    "Einsum": (TensorProto.INT8, *INTEGERS), "Resize": (TensorProto.BOOL, *INTEGERS), "Relu": (TensorProto.INT32,),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "DepthToSpace", "SpaceToDepth"), (TensorProto.BOOL,)),
    **dict.fromkeys(("ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), (TensorProto.UINT8,)),
}  # fmt: skip
"""Types of the first input that ONNX allows and the parser does not take."""
RESIZES = frozenset({"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"})
CAST_TO = frozenset({
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT32,
    TensorProto.INT64, TensorProto.BOOL,
})  # fmt: skip
KEEP_LAYOUT = frozenset({"Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Slice"})


@dataclass(frozen=True)
class Parser:
    """What the graph is checked against."""

    kind: str
    version: str
    opset: int
    functions: frozenset[tuple[str, str]] = frozenset()
    """(domain, name) of local functions that could not be put in place of their calls."""

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{'TensorRT' if self.kind == 'tensorrt' else 'TensorRT for RTX'} {self.version}"


def node_findings(site: Site, parser: Parser) -> Iterator[Finding]:
    """Everything that is wrong with one node."""
    unknown = list(operator(site.node.domain, site.node.op_type, parser))
    yield from (site.finding("operator", *found) for found in unknown)
    if unknown:
        return
    yield from _constants(site)
    yield from _windows(site)
    yield from _topk(site, parser)
    yield from _scatter_and_random(site)
    yield from _attributes(site, parser)
    yield from _branches(site)
    yield from _mixed_types(site, parser)
    yield from _numbers(site, parser)
    yield from quantization(site, parser.kind)
    yield from _ranges(site)


def operator(domain: str, name: str, parser: Parser) -> Iterator[tuple[str, str]]:
    """(problem, remedy) where the parser, or the graph's own opset, does not know the operator."""
    if (domain, name) in parser.functions:
        return
    if domain not in ("", "ai.onnx"):
        yield f"is of the domain {domain!r}", "export it in operators of ONNX itself"
    elif name in DATA_SHAPES:
        yield "makes a tensor whose shape depends on data", "write it with fixed shapes, such as TopK and Where"
    elif name not in operators(parser.version, parser.kind):
        yield f"{parser.title} does not know this operator", "export it in operators that it knows"
    elif not onnx.defs.has(name) or onnx.defs.get_schema(name).since_version > parser.opset:
        try:
            onnx.defs.get_schema(name, parser.opset)
        except onnx.defs.SchemaError:
            yield f"is not an operator of opset {parser.opset}", "export it in operators of that opset"


def _constants(site: Site) -> Iterator[Finding]:
    for place in BUILD_TIME.get(site.node.op_type, ()):
        name = site.input(place)
        if name and not site.scope.constant(name):
            yield site.finding(
                "shape", f"{name!r} decides on shapes but is no constant", "make it an initializer: shapes are fixed"
            )
    for name in site.node.output:
        shape = site.scope.shape(name) if name else None
        if shape is not None and len(shape) > MOST_AXES:
            yield site.finding("shape", f"{name!r} has {len(shape)} axes", f"TensorRT takes {MOST_AXES} at most")


def _windows(site: Site) -> Iterator[Finding]:
    """Axes that a window slides along, and elements that a Reshape keeps."""
    op, scope = site.node.op_type, site.scope
    slid, verb = (1, "convolve") if op in ("Conv", "ConvTranspose") else (0, "pool")
    shape = scope.shape(site.input(slid)) if slid or op in POOLS else None
    if shape is not None and len(shape) > 5:
        yield site.finding("shape", f"{verb}s {len(shape) - 2} axes", f"{verb} 3 at most")
    if op == "LpPool" and shape is not None and len(shape) < 4:
        yield site.finding("shape", "pools one axis", "pool 2 or 3, with Unsqueeze before it and Squeeze after it")
    if op == "Reshape" and scope.fixed(site.input(0)) and scope.fixed(site.output(0)):
        before, after = (size(scope.shape(name) or ()) for name in (site.input(0), site.output(0)))
        if before != after:
            yield site.finding("shape", f"makes {after} elements of {before}", "reshape to as many elements")


def _topk(site: Site, parser: Parser) -> Iterator[Finding]:
    if site.node.op_type != "TopK":
        return
    name = site.input(1)
    if not site.scope.constant(name):
        yield site.finding("topk", f"K, {name!r}, is no constant", "make K an initializer")
    value = site.scope.value(name)
    if value is not None and value.size and int(value.max()) > LARGEST_K:
        yield site.finding("topk", f"K is {int(value.max())}", f"take {LARGEST_K} elements at most")
    if parser.kind == "tensorrt" and not site.attribute("sorted", 1):
        yield site.finding("topk", "leaves its elements unsorted", "set sorted to 1")


def _scatter_and_random(site: Site) -> Iterator[Finding]:
    op, reduction = site.node.op_type, site.text("reduction", "none")
    if op in ("ScatterElements", "ScatterND") and reduction != "none":
        # TensorRT 10 takes ScatterElements with a reduction through a plug-in, RTX not at all, 8.5 ignores it.
        yield site.finding(
            "scatter", f"scatters with the reduction {reduction!r}", "write it as a product with one-hot rows"
        )
    if op in RANDOM:
        yield site.finding(
            "random", "draws numbers, and TensorRT ignores the seed", "pass the numbers in as an input", "warning"
        )


def _attributes(site: Site, parser: Parser) -> Iterator[Finding]:
    op = site.node.op_type
    if op in ONE_OUTPUT and any(site.node.output[1:]):
        yield site.finding("attribute", "has a second output", "use its first output only")
    if op in ALL_OUTPUTS and not all(site.node.output):
        yield site.finding("attribute", "leaves an output out", "give all of them names, also those that nobody uses")
    if op in POOLS and any(step != 1 for step in site.attribute("dilations", [])):
        yield site.finding("attribute", "pools with dilations", "pool without them")
    if op == "LpPool" and (p := site.attribute("p", 2)) not in (1, 2):
        yield site.finding("attribute", f"pools with the norm {p}", "pool with the norm 1 or 2")
    dropout = op == "Dropout" and (value := site.scope.value(site.input(2))) is not None and bool(np.any(value))
    if dropout or (op == "BatchNormalization" and site.attribute("training_mode", 0)):
        yield site.finding("attribute", "is in training mode", "export the network in eval mode")
    if op == "Einsum" and any(c.isupper() for c in site.text("equation", "")):
        yield site.finding("attribute", "has capital letters in its equation", "write the equation in small letters")
    if op == "Constant" and {a.name for a in site.node.attribute} & {"sparse_value", "value_string", "value_strings"}:
        yield site.finding("attribute", "is a sparse constant or a text", "make it a dense tensor of numbers")
    if op == "Loop" and not site.input(1):
        yield site.finding("attribute", "loops without a condition", "pass a constant true as its condition")
    if op == "Resize":
        yield from _resize(site, parser)


def _resize(site: Site, parser: Parser) -> Iterator[Finding]:
    if site.attribute("antialias", 0):
        yield site.finding("attribute", "resizes with antialiasing", "resize without it")
    if parser.kind == "tensorrt" and site.text("mode", "nearest") == "cubic":
        yield site.finding("attribute", "resizes cubic", "resize nearest or linear")
    if (mode := site.text("coordinate_transformation_mode", "half_pixel")) not in RESIZES:
        yield site.finding("attribute", f"resizes by the coordinates {mode!r}", "resize by half_pixel")
    if site.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        yield site.finding("attribute", "keeps the aspect ratio by a policy", "give the sizes that come of it")


def _branches(site: Site) -> Iterator[Finding]:
    if site.node.op_type == "Attention" and "If" in site.inside:
        # TensorRT 10.16 fails on it too.
        yield site.finding("if", "is Attention inside a branch of If", "compute it outside, or write it as MatMul")
    if site.node.op_type != "If":
        return
    scope = site.scope
    shape = scope.shape(site.input(0))
    if shape is not None and (None in shape or size(shape) != 1):
        yield site.finding("if", f"the condition {site.input(0)!r} is no scalar", "decide with one boolean")
    branches = [site.branches.get(name) for name in ("then_branch", "else_branch")]
    if branches[0] is None or branches[1] is None:
        return
    outputs = [[value.name for value in branch.graph.output] for branch in branches if branch]
    if len(outputs[0]) != len(outputs[1]):
        yield site.finding("if", "the branches have different numbers of outputs", "give both the same outputs")
        return
    for ours, theirs in zip(*outputs, strict=True):
        ranks = [len(s) for s in (branches[0].shape(ours), branches[1].shape(theirs)) if s is not None]
        kinds = [branches[0].type(ours), branches[1].type(theirs)]
        pair = f"{ours!r} and {theirs!r}"
        if len(set(ranks)) > 1 and not scope.constant(site.input(0)):
            yield site.finding("if", f"{pair} have {ranks[0]} and {ranks[1]} axes", "give both branches one shape")
        if None not in kinds and kinds[0] != kinds[1]:
            names = f"{type_name(kinds[0])} and {type_name(kinds[1])}"
            yield site.finding("typing", f"{pair} are {names}", "put a Cast into one of the branches")


def _mixed_types(site: Site, parser: Parser) -> Iterator[Finding]:
    """Strong typing: inputs that ONNX wants of one type are of one type, and of a type that the operator takes.

    Source: the type constraints of ONNX's operator schemas, which the parser of a strongly typed network keeps too.
    """
    try:
        schema = onnx.defs.get_schema(site.node.op_type, parser.opset)
    except onnx.defs.SchemaError:
        return
    first: dict[str, tuple[str, int]] = {}
    for place, name in enumerate(site.node.input):
        kind = site.scope.type(name) if name and schema.inputs else None
        if kind is None:
            continue
        formal = schema.inputs[min(place, len(schema.inputs) - 1)]
        if formal.types and f"tensor({type_name(kind)})" not in formal.types:
            yield site.finding(
                "typing", f"takes no {type_name(kind)}, which {name!r} is", "put a Cast before it, to a type it takes"
            )
            return
        if "(" in formal.type_str or not formal.is_homogeneous:
            continue
        other, its = first.setdefault(formal.type_str, (name, kind))
        if kind != its:
            yield site.finding(
                "typing",
                f"mixes types: {other!r} is {type_name(its)}, {name!r} is {type_name(kind)}",
                f"put a Cast before it, or store {name!r} as {type_name(its)}",
            )
            return


def _numbers(site: Site, parser: Parser) -> Iterator[Finding]:
    """What operators do not take although ONNX allows it."""
    op, scope = site.node.op_type, site.scope
    kinds = [scope.type(name) for name in site.node.input if name]
    if (kind := scope.type(site.input(0))) in REFUSED.get(op, ()):
        yield site.finding("dtype", f"computes with {type_name(kind)}", "put a Cast to float before it")
    if op == "Mod" and not site.attribute("fmod", 0) and any(k not in INTEGERS for k in kinds if k is not None):
        yield site.finding("dtype", "takes the remainder of floats without fmod", "set fmod to 1")
    if op == "Cast":
        to, is_output = site.attribute("to"), site.output(0) in {o.name for o in scope.graph.output}
        rtx_only = to == TensorProto.INT8 and parser.kind == "tensorrt-rtx"
        if to not in CAST_TO and not rtx_only and not (to == TensorProto.UINT8 and is_output and not site.inside):
            yield site.finding("cast", f"casts to {type_name(to)}", "cast to a float type, int32, int64 or bool")
    elif op != "QuantizeLinear" and any(scope.type(name) == TensorProto.UINT8 for name in site.node.output):
        yield site.finding("dtype", "makes a uint8 tensor", "compute in int32; uint8 is for inputs and outputs only")
    for name in dict.fromkeys(site.node.input):
        if found := quantized_constant(site.node, name, scope):
            yield site.finding("quantization", *found)
        elif scope.type(name) in QUANTIZED and op not in KEEP_LAYOUT | {"QuantizeLinear", "DequantizeLinear", "Cast"}:
            yield site.finding(
                "quantization", f"computes with the {type_name(scope.type(name))} tensor {name!r}",
                "dequantise before it: quantised types are storage", "warning",
            )  # fmt: skip


def _ranges(site: Site) -> Iterator[Finding]:
    """What FP16 cannot hold: 65504 is its largest number, reached by the square of 256."""
    op, scope, name = site.node.op_type, site.scope, site.input(0)
    if op == "LayerNormalization" and site.attribute("stash_type", 1) != TensorProto.FLOAT and _half(site, name):
        yield site.finding(
            "stash", "normalises in FP16 instead of float32", "set stash_type to 1 (float32)", "warning"
        )  # fmt: skip
    if op == "Cast" and site.attribute("to") == HALF and (value := scope.value(name)) is not None:
        numbers = value.astype(np.float64)
        if np.any(np.abs(numbers) > LARGEST_HALF):
            yield site.finding(
                "range", f"the constant {name!r} holds {np.abs(numbers).max():g}, which is infinite in FP16",
                "keep this part of the graph float32",
            )  # fmt: skip
    maker = scope.maker(name)
    square = op in ("ReduceL2", "ReduceSumSquare")
    if op in ("ReduceMean", "ReduceSum") and maker is not None:
        exponent = scope.value(maker.input[-1]) if maker.op_type == "Pow" and maker.input else None
        two = exponent is not None and bool(np.all(exponent == 2))
        square = two or (maker.op_type == "Mul" and len(set(maker.input)) == 1)
    if square and _half(site, name):
        yield site.finding(
            "square", "sums squares in FP16, which overflow from 256 on", "keep the normalisation float32", "warning"
        )


def _half(site: Site, name: str) -> bool:
    return site.scope.type(name) == HALF
