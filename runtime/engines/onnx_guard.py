"""A look at an ONNX file's wire format before any library opens it: no external data, a version that engines accept.

Reads the protobuf by its public field numbers (onnx.proto), skipping weights by their length.
"""

from runtime.errors import BundleError

from .onnx_cost import Cost, check_cost
from .onnx_shapes import RULES
from .onnx_wire import Reader

IR_VERSION = 10
OPSETS = range(18, 21)
DEEPEST = 32
OPERATORS = frozenset(RULES)
"""What a graph may consist of: no loops, no randomness, and nothing whose shape would not be known beforehand."""

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


def check_graph(data: bytes, stated: Cost | None = None, *, file: object = None) -> None:
    """All that is asked of a graph before a library sees it: `check_onnx`, and `check_cost` by what a manifest states.

    Raises:
        BundleError: naming what was found.
    """
    check_onnx(data, file=file)
    check_cost(data, stated, file=file)


def check_onnx(data: bytes, *, file: object = None) -> None:
    """Refuse an ONNX file that is damaged, refers to other files, or is of a version not every engine reads.

    Raises:
        BundleError: naming what was found.
    """
    try:
        view, reader = memoryview(data), Reader()
        ir, opset = 0, 0
        for number, value in reader.fields(view):
            if number == 1 and isinstance(value, int):
                ir = value
            if number == 8 and isinstance(value, memoryview):
                domain, version = b"", 0
                for inner, content in reader.fields(value):
                    if inner == 1 and isinstance(content, memoryview):
                        domain = bytes(content)
                    elif inner == 2 and isinstance(content, int):
                        version = content
                if domain in (b"", b"ai.onnx"):
                    opset = version
        operators: set[tuple[str, str]] = set()
        external = _walk(reader, view, "model", operators)
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


def _walk(reader: Reader, view: memoryview, message: str, operators: set[tuple[str, str]], depth: int = 0) -> bool:
    """Whether a message has external data anywhere; adds (domain, operator) of its nodes to `operators`."""
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    ways, external, name, domain = _PATHS.get(message, {}), False, "", ""
    for number, value in reader.fields(view):
        if message == "tensor":
            external |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
        elif not isinstance(value, memoryview):
            continue
        elif number in ways:
            external |= _walk(reader, value, ways[number], operators, depth + 1)
        elif message == "node" and number == 4:
            name = str(value, "ascii")
        elif message == "node" and number == 7:
            domain = str(value, "ascii")
    if message == "node":
        operators.add((domain, name))
    return external
