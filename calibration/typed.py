"""A float32 graph rewritten as a strongly typed FP16 one, with islands that stay float32.

Precision lives in the graph: every tensor has one type and every change of it is a Cast, so each engine that reads the
file computes in the same types. What stays float32 follows from what a node does, not from its name:

- numbers per channel and per frame: the prompt, the means over the picture, the router, the gates, matrices made from
  them. They cost nothing, and a gate that is rounded can choose another expert;
- sums of squares, means of squares and what is divided by their roots: L2 norms and RMS norms. A square leaves the
  range of FP16 at 256;
- softmax, and differences of softmaxes, which cancel;
- the frame added to the correction at the end, so that what needs no restoring comes out as it went in.

`LayerNormalization` keeps FP16 at its ends and float32 inside (its `stash_type`, ONNX operator specification).
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.errors import MachineError

LARGEST_HALF = 65504.0
STATISTICS = frozenset({"ReduceMean", "ReduceL2", "ReduceSum", "ReduceSumSquare", "Sqrt", "Pow", "Exp", "Log"})
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Clip", "Max", "Min", "Neg", "Reciprocal", "Abs"})
SHAPES = frozenset({"Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Identity", "Concat", "Gather"})
"""Operators whose values are those that came in."""
PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Typed:
    """A typed graph and what was done to it.

    Attributes:
        data: the ONNX file.
        half: nodes that compute in FP16.
        single: nodes that stay float32 islands (of those that handle floats).
        casts: Cast nodes put in.
        flushed: weights that FP16 rounds to fewer than 11 bits, or to zero.
    """

    data: bytes
    half: int
    single: int
    casts: int
    flushed: int


def half_precision(data: bytes, single: Collection[str] = ()) -> Typed:
    """Rewrite a float32 graph as strongly typed FP16 with float32 islands; inputs and outputs stay float32.

    In a graph with int8 pairs, what is quantised keeps the type that it has, and what comes out of int8 has the type
    of the node that takes it.

    Args:
        data: an ONNX file whose floats are all float32, with fixed shapes.
        single: names of nodes that stay float32 besides the islands.

    Raises:
        MachineError: a weight lies outside the range of FP16.
    """
    model, floats, islands = _parted(data, single)
    writer = _Writer(model.graph, floats, islands)
    nodes = [written for place, node in enumerate(model.graph.node) for written in writer.rewrite(place, node)]
    counts = len([n for n in nodes if any(o in floats for o in n.output)]) - writer.casts
    data = rewritten(model, nodes, writer.weights.values())
    return Typed(data, counts - writer.singles, writer.singles, writer.casts, writer.flushed)


def rewritten(model: onnx.ModelProto, nodes: Iterable[NodeProto], constants: Iterable[TensorProto]) -> bytes:
    """The checked file of a model with these nodes, and these constants behind those of its own that are still used."""
    graph, nodes = model.graph, list(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [*(i for i in graph.initializer if i.name in used), *constants]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def inferred(data: bytes) -> onnx.ModelProto:
    """The graph of an ONNX file, with the types and shapes of all its tensors."""
    return onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), strict_mode=True, data_prop=True)


def nodes_in_half(data: bytes, single: Collection[str] = ()) -> frozenset[str]:
    """Names of the nodes that `half_precision` makes compute in FP16."""
    model, _, islands = _parted(data, single)
    return frozenset(node.name for place, node in enumerate(model.graph.node) if place not in islands)


def _parted(data: bytes, single: Collection[str]) -> tuple[onnx.ModelProto, set[str], set[int]]:
    """The graph, its float tensors, and the places of the nodes that stay float32."""
    model = inferred(data)
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {i.name for i in graph.initializer if i.data_type == TensorProto.FLOAT}
    islands = _islands(graph, floats) | {p for p, n in enumerate(graph.node) if n.name in single}
    return model, floats, _with_pairs(graph, islands)


def constants_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The constants of a graph by name."""
    return {i.name: i for i in graph.initializer}


def _islands(graph: onnx.GraphProto, floats: set[str]) -> set[int]:
    """Places of the nodes that compute in float32."""
    constants = constants_of(graph)
    nodes = list(graph.node)
    maker = {name: place for place, node in enumerate(nodes) for name in node.output}
    picture = pictures(graph, constants)
    outputs = {o.name for o in graph.output}

    def makers(node: NodeProto) -> list[int]:
        return [maker[name] for name in node.input if name in maker]

    single = {p for p, n in enumerate(nodes) if not picture.intersection(n.output) or outputs.intersection(n.output)}
    single |= {p for p, n in enumerate(nodes) if n.op_type in STATISTICS or n.op_type == "Softmax"}
    # Forward: what a statistic or a softmax goes through until a product or the normalised value itself ends it.
    for place, node in enumerate(nodes):
        if place in single or node.op_type not in ELEMENTWISE | SHAPES or node.op_type == "Concat":
            continue
        froms = [p for p in makers(node) if p in single and picture.intersection(nodes[p].output)]
        ended = [p for p in froms if nodes[p].op_type == "Div"]
        if froms and len(ended) < len(froms):
            single.add(place)
    # Backward: what is squared, or has its mean taken away, enters the statistic unrounded.
    for place in reversed(range(len(nodes))):
        if nodes[place].op_type not in STATISTICS:
            continue
        for before in makers(nodes[place]):
            if nodes[before].op_type in {"Mul", "Sub", "Pow", "Abs"}:
                single.add(before)
    single -= {p for p, n in enumerate(nodes) if n.op_type in PAIR}
    return {p for p in single if floats.intersection(nodes[p].output) or floats.intersection(nodes[p].input)}


def _with_pairs(graph: onnx.GraphProto, islands: set[int]) -> set[int]:
    """The islands, and every DequantizeLinear in front of one."""
    users: dict[str, list[int]] = {}
    for place, node in enumerate(graph.node):
        for name in node.input:
            users.setdefault(name, []).append(place)
    behind = {
        place
        for place, node in enumerate(graph.node)
        if node.op_type == "DequantizeLinear" and islands.intersection(users.get(node.output[0], ()))
    }
    return islands | behind


def pictures(graph: onnx.GraphProto, constants: dict[str, TensorProto]) -> set[str]:
    """Names of the tensors that have a value per pixel: of the frame, and until a mean over the picture ends it."""
    found = {i.name for i in graph.input if len(i.type.tensor_type.shape.dim) == 4}
    for node in graph.node:
        if not found.intersection(node.input):
            continue
        if node.op_type.startswith("Reduce") and len(_axes(node, constants)) > 1:
            continue
        found.update(node.output)
    return found


def _axes(node: NodeProto, constants: dict[str, TensorProto]) -> list[int]:
    if len(node.input) < 2 or node.input[1] not in constants:
        return []
    return [int(axis) for axis in np.atleast_1d(numpy_helper.to_array(constants[node.input[1]]))]


class _Writer:
    """Rewrites nodes one by one, and remembers the casts and the FP16 weights that they share."""

    def __init__(self, graph: onnx.GraphProto, floats: set[str], single: set[int]) -> None:
        self.constants = constants_of(graph)
        self.floats, self.single = floats, single
        self.half: set[str] = set()
        """Tensors that are FP16 now."""
        self.weights: dict[str, TensorProto] = {}
        self.cast: dict[tuple[str, int], str] = {}
        self.casts = self.singles = self.flushed = 0

    def rewrite(self, place: int, node: NodeProto) -> Iterator[NodeProto]:
        """The node in its new type, after the casts that it needs."""
        handles = self.floats.intersection(node.output) or self.floats.intersection(node.input)
        if not handles:
            yield node
            return
        wanted = TensorProto.FLOAT if place in self.single else TensorProto.FLOAT16
        if node.op_type == "QuantizeLinear":
            # Rounded once, to int8, and not to FP16 before.
            wanted = TensorProto.FLOAT16 if node.input[0] in self.half else TensorProto.FLOAT
        written = NodeProto()
        written.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name not in self.floats:
                continue
            present = TensorProto.FLOAT16 if name in self.half else TensorProto.FLOAT
            if present == wanted:
                continue
            if name in self.constants:
                written.input[index] = self._weight(name)
                continue
            if (name, wanted) not in self.cast:
                made = f"{name}/{'half' if wanted == TensorProto.FLOAT16 else 'single'}"
                self.cast[name, wanted] = made
                self.casts += 1
                yield onnx.helper.make_node("Cast", [name], [made], name=f"cast/{made}", to=wanted)
            written.input[index] = self.cast[name, wanted]
        if wanted == TensorProto.FLOAT16:
            self.half.update(self.floats.intersection(node.output))
            if node.op_type == "Cast":
                next(a for a in written.attribute if a.name == "to").i = wanted
        elif self.floats.intersection(node.output):
            self.singles += 1
        yield written

    def _weight(self, name: str) -> str:
        made = f"{name}/half"
        if made not in self.weights:
            values = numpy_helper.to_array(self.constants[name])
            largest = float(np.abs(values).max(initial=0))
            if not largest <= LARGEST_HALF:
                raise MachineError(
                    "a weight does not fit into FP16", key=name, value=largest, remedy="build with --precision fp32"
                )
            halves = values.astype(np.float16)
            self.flushed += int(((np.abs(values) < 2.0**-14) & (values != halves)).sum())
            self.weights[made] = numpy_helper.from_array(halves, made)
        return made
