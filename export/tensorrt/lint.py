"""A look at an ONNX graph before TensorRT sees it: what its parser or builder would refuse, and what would be wrong.

A build on the target takes minutes and its errors name layers that nobody wrote. The lint needs no TensorRT and no GPU,
knows the oldest version that must work, and says what to change. It is as strict as the parser, and stricter where a
graph would load but not compute what ONNX means, or would not load in the other engines that read the same file.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, numpy_helper

from export.tensorrt.operators import OLDEST
from export.tensorrt.reading import Finding, Scope, Site, damage, name_of, sites, tensors, type_name
from export.tensorrt.rules import LARGEST_HALF, MOST_AXES, Parser, node_findings, operator
from runtime.engines.onnx_guard import IR_VERSION, OPSETS
from runtime.errors import InputError, printable
from runtime.versions import numbers

__all__ = ["Finding", "lint", "raise_for"]

UNREADABLE = frozenset({
    TensorProto.STRING, TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
    TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.UINT4, TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2FNUZ,
})  # fmt: skip
"""Element types that the parser cannot import at all."""
COMPLAINTS = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError)
"""What ONNX raises over a graph; ValueError over text and sizes that are damaged."""
NEEDS = {TensorProto.BFLOAT16: "8.0", TensorProto.FLOAT8E4M3FN: "8.9"}
"""Compute capability that a type needs. Source: TensorRT's support matrix, hardware and precision."""


def lint(data: bytes, *, tensorrt: str, kind: str, sm: str | None = None) -> list[Finding]:
    """What TensorRT would refuse in a graph, or compute otherwise than ONNX means; empty where there is nothing.

    Args:
        data: an ONNX file.
        tensorrt: the lowest version that must work, such as `10.3`; of TensorRT from 10.3 on, of RTX from 1.7.
        kind: `tensorrt` or `tensorrt-rtx`.
        sm: compute capability of the GPU, such as `8.7`; without it nothing is said of what a GPU lacks.

    Raises:
        InputError: a version or a kind that this project does not build for.
    """
    if kind not in OLDEST:
        raise InputError("unknown kind of TensorRT", key="kind", value=kind, remedy=f"known: {', '.join(OLDEST)}")
    if numbers(tensorrt) < numbers(OLDEST[kind]):
        raise InputError("too old a TensorRT", key="tensorrt", value=tensorrt, remedy=f"{OLDEST[kind]} or newer")
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        return [_of_graph("file", "is no ONNX file", "export the graph again")]
    found = list(_file(model))
    if any(finding.rule in ("file", "external", "onnx") for finding in found):
        return found
    try:
        return found + _looked_through(model, kind, tensorrt, sm)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # Rules read nodes as ONNX has them: with as many inputs, and attributes of the right types.
        complaint = _inferred(model)[1] or _checked(model)
        if not complaint:
            raise
        return [*found, _of_graph("onnx", f"is not valid ONNX: {complaint}", "export the graph again")]


def raise_for(findings: list[Finding], file: object = None) -> None:
    """Refuse a graph for its first error; warnings pass.

    Args:
        findings: what `lint` said.
        file: the file that the graph came from.

    Raises:
        InputError: naming node, rule and remedy, and how many more errors there are.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first, more = errors[0], len(errors) - 1
    operator_name = f"{first.operator} " if first.operator else ""
    others = f" (and {more} more error{'s' if more > 1 else ''})" if more else ""
    raise InputError(
        f"TensorRT cannot take this graph, rule {first.rule}: {operator_name}{first.problem}{others}",
        file=file, key=first.node, remedy=first.remedy,
    )  # fmt: skip


def _looked_through(model: ModelProto, kind: str, tensorrt: str, sm: str | None) -> list[Finding]:
    unsaid = {value.name for value in model.graph.output if not value.type.tensor_type.HasField("shape")}
    model, complaint = _inferred(model)
    opset = _opset(model)
    functions = frozenset((f.domain, f.name) for f in model.functions)
    parser = Parser(kind, tensorrt, opset, functions)
    top = Scope(model.graph, opset)
    found: list[Finding] = []
    # Who uses a tensor is known only once all nodes have been seen.
    nodes = list(sites(top, opset))
    scopes = list(dict.fromkeys([top, *(branch for site in nodes for branch in site.branches.values())]))
    found += _functions(model, parser)
    # Causes before effects: what an output lacks comes of a node or of an input.
    found += _ends(model.graph.input, "input", top, set())
    found += [finding for site in nodes for finding in node_findings(site, parser)]
    found += _ends(model.graph.output, "output", top, unsaid)
    found += _initializers(nodes, scopes)
    found += _capability(scopes, sm)
    complaint = complaint or _checked(model)
    if complaint and not any(finding.severity == "error" for finding in found):
        # Last, since what has a rule of its own is said better there.
        found.append(_of_graph("onnx", f"is not valid ONNX: {complaint}", "export the graph again"))
    return found


def _of_graph(rule: str, problem: str, remedy: str, severity: str = "error", name: str = "graph") -> Finding:
    return Finding(name, "", rule, problem, remedy, severity)


def _opset(model: ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _file(model: ModelProto) -> Iterator[Finding]:
    """Versions and external data. TensorRT 10.3 is documented for opsets 9 to 20, later ones for more."""
    opset = _opset(model)
    if opset not in OPSETS:
        said = f"export with opset {OPSETS.start} to {OPSETS.stop - 1}"
        yield _of_graph("opset", f"has opset {opset}, which not every engine reads", said)
    if not 1 <= model.ir_version <= IR_VERSION:
        said = f"export with IR version {IR_VERSION} or lower"
        yield _of_graph("ir", f"has IR version {model.ir_version}, which not every engine reads", said)
    if not model.graph.output:
        yield _of_graph("file", "has no outputs", "export the graph again")
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            yield _of_graph("external", "is kept in another file", "store weights inside the graph", name=tensor.name)
            return
        if problem := damage(tensor):
            yield _of_graph("onnx", problem, "export the graph again", name=tensor.name or "constant")
            return


def _inferred(model: ModelProto) -> tuple[ModelProto, str]:
    """The model with local functions in place and all types known, and what ONNX itself says against it."""
    complaint = ""
    try:
        if model.functions:
            # ONNX puts them in place only where they are of the graph's own opset; the others stay calls.
            model = onnx.inliner.inline_local_functions(model)
    except COMPLAINTS as error:
        complaint = _line(error)
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True), complaint
    except COMPLAINTS as error:
        complaint = complaint or _line(error)
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True), complaint
    except COMPLAINTS:
        return model, complaint


def _checked(model: ModelProto) -> str:
    try:
        onnx.checker.check_model(model)
    except COMPLAINTS as error:
        return _line(error)
    return ""


def _line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return printable(text)[:200].rstrip(". ")


def _functions(model: ModelProto, parser: Parser) -> Iterator[Finding]:
    """Local functions that stay calls: only their operators are looked at."""
    for function in model.functions:
        yield _of_graph(
            "function", "is a local function of another opset; only its operators were checked",
            "export functions with the opset of the graph", "warning", function.name,
        )  # fmt: skip
        for node in function.node:
            for problem, remedy in operator(node.domain, node.op_type, parser):
                yield Finding(name_of(node), node.op_type, "operator", problem, remedy)


def _ends(values: Iterable[onnx.ValueInfoProto], what: str, top: Scope, unsaid: set[str]) -> Iterator[Finding]:
    """Inputs or outputs: fixed shapes of at most 8 axes, types that the parser binds.

    The parser computes the shapes of outputs itself: one that the file leaves out and that is unknown here is no error.
    """
    weights = {tensor.name for tensor in top.graph.initializer} if what == "input" else set()
    for name in (value.name for value in values if value.name not in weights):
        shape, kind = top.shape(name), top.type(name)
        if not top.fixed(name):
            severity = "warning" if name in unsaid else "error"
            yield _of_graph("shape", f"the {what} has no fixed shape", "export it with fixed sizes", severity, name)
        elif shape is not None and len(shape) > MOST_AXES:
            yield _of_graph("shape", f"the {what} has {len(shape)} axes", f"export {MOST_AXES} at most", name=name)
        if kind in UNREADABLE or kind is None:
            problem = f"the {what} is {type_name(kind)}" if kind else f"the {what} is no tensor"
            yield _of_graph("dtype", problem, "export it as float32", name=name)
        elif kind == TensorProto.INT64:
            problem = f"the {what} is int64: its buffer must be int64 too"
            yield _of_graph("dtype", problem, "export it as int32", "warning", name)


def _initializers(nodes: list[Site], scopes: list[Scope]) -> Iterator[Finding]:
    """Types and values of constants, and DOUBLE anywhere, which the parser narrows to float32."""
    held = [tensor for scope in scopes for tensor in scope.graph.initializer]
    held += [a.t for site in nodes if site.node.op_type == "Constant" for a in site.node.attribute if a.name == "value"]
    for tensor in held:
        name = tensor.name or "constant"
        if tensor.data_type in UNREADABLE:
            kind = type_name(tensor.data_type)
            yield _of_graph("dtype", f"the constant is {kind}", "store it as int32, int64 or a float type", name=name)
        elif tensor.data_type == TensorProto.FLOAT16 and not np.all(np.isfinite(numpy_helper.to_array(tensor))):
            # The parser takes it: what is infinite there was too large for FP16 when the graph was converted.
            problem = f"the FP16 constant is infinite or not a number; FP16 ends at {LARGEST_HALF:.0f}"
            yield _of_graph("range", problem, "keep this part of the graph float32", name=name)
    doubles = [name for scope in scopes for name, kind in scope.types.items() if kind == TensorProto.DOUBLE]
    if doubles:
        problem = f"{len(doubles)} double tensor{'s' if len(doubles) > 1 else ''}, which TensorRT narrows to float32"
        yield _of_graph("dtype", problem, "export them as float32", "warning", doubles[0])


def _capability(scopes: list[Scope], sm: str | None) -> Iterator[Finding]:
    """Types that the GPU cannot compute with."""
    for kind, needed in NEEDS.items():
        names = [name for scope in scopes for name, its in scope.types.items() if its == kind]
        if sm is not None and names and numbers(sm) < numbers(needed):
            problem = f"is {type_name(kind)}, which takes compute capability {needed}; the target has {sm}"
            yield _of_graph("capability", problem, "build with --precision fp16", name=names[0])
