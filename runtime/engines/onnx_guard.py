"""A look at an ONNX file's wire format before any library opens it: no external data, a version that engines accept.

Reads the protobuf by its public field numbers (onnx.proto), skipping weights by their length.
"""

from collections.abc import Iterator

from runtime.errors import BundleError

IR_VERSION = 10
OPSETS = range(18, 21)
DEEPEST = 32
# fmt: off
OPERATORS = frozenset((
    "Abs", "Add", "AveragePool", "Cast", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "DepthToSpace",
    "DequantizeLinear", "Div", "Equal", "Erf", "Exp", "Gather", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "Identity",
    "LayerNormalization", "LeakyRelu", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear",
    "Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Sign", "Slice", "Softmax",
    "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where",
))
# fmt: on
"""What a graph may consist of: no loops, no randomness, nothing that makes large tensors out of nothing."""

# message -> {field number: message of that field}; only the ways that lead to tensors.
_PATHS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check_onnx(data: bytes, *, file: object = None) -> None:
    """Refuse an ONNX file that is damaged, refers to other files, or is of a version not every engine reads.

    Raises:
        BundleError: naming what was found.
    """
    try:
        view = memoryview(data)
        ir, opset = 0, 0
        for number, value in _fields(view):
            if number == 1 and isinstance(value, int):
                ir = value
            if number == 8 and isinstance(value, memoryview):
                domain, version = b"", 0
                for inner, content in _fields(value):
                    if inner == 1 and isinstance(content, memoryview):
                        domain = bytes(content)
                    elif inner == 2 and isinstance(content, int):
                        version = content
                if domain in (b"", b"ai.onnx"):
                    opset = version
        external = _has_external(view, "model", 0)
        operators = _operators(view)
    except (IndexError, ValueError, RecursionError) as error:
        raise BundleError("the graph is damaged", file=file, remedy="build the bundle again") from error
    if external:
        raise BundleError(
            "the graph refers to data outside itself", file=file, remedy="build the bundle again; weights belong inside"
        )
    strange = sorted(name for domain, name in operators if domain not in ("", "ai.onnx") or name not in OPERATORS)
    if strange:
        raise BundleError(
            "the graph has an operator that no export of ours writes",
            file=file,
            value=strange[0],
            remedy="build the bundle again with this version",
        )
    if ir > IR_VERSION or ir < 1 or opset not in OPSETS:
        raise BundleError(
            "the graph has a version that not every engine reads",
            file=file,
            value=f"IR {ir}, opset {opset}",
            remedy=f"IR up to {IR_VERSION} and opset {OPSETS.start} to {OPSETS.stop - 1}",
        )


def _operators(view: memoryview, message: str = "model") -> set[tuple[str, str]]:
    """(domain, operator) of all nodes."""
    found = set()
    if message == "node":
        texts = {n: bytes(v).decode("ascii") for n, v in _fields(view) if n in (4, 7) and isinstance(v, memoryview)}
        found.add((texts.get(7, ""), texts.get(4, "")))
    ways = {k: v for k, v in _PATHS.get(message, {}).items() if v not in ("tensor", "sparse")}
    for number, value in _fields(view):
        if number in ways and isinstance(value, memoryview):
            found |= _operators(value, ways[number])
    return found


def _has_external(view: memoryview, message: str, depth: int) -> bool:
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    ways = _PATHS.get(message, {})
    for number, value in _fields(view):
        if message == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                return True
        elif number in ways and isinstance(value, memoryview) and _has_external(value, ways[number], depth + 1):
            return True
    return False


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(view):
        tag, at = _varint(view, at)
        # Other parsers keep 32 bits of a tag: a longer one would be another field to them than to us.
        if not 8 <= tag < 1 << 32:
            raise ValueError("not a field")
        kind = tag & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(view, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("unknown wire type")
        if at + length > len(view):
            raise ValueError("truncated")
        yield tag >> 3, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                raise ValueError("a number longer than it need be")
            return value, at
    raise ValueError("varint too long")
