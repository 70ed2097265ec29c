"""A graph as the lint reads it: scopes with types, shapes, constants, makers and users, and the nodes in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

SMALL = 4096
"""Constants of up to this many elements are computed; of larger ones it is only known that they are constant."""
# fmt: off
FOLDED = frozenset((
    "Add", "Cast", "Concat", "Div", "Gather", "Identity", "Max", "Min", "Mul", "Neg", "ReduceMax", "ReduceMin",
    "ReduceProd", "ReduceSum", "Reshape", "Shape", "Size", "Slice", "Sqrt", "Squeeze", "Sub", "Unsqueeze",
))
# fmt: on
RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
Shape = tuple["int | None", ...]


@dataclass(frozen=True)
class Finding:
    """Something in a graph that TensorRT refuses, or computes otherwise than it should.

    Attributes:
        node: the node's name, or its first output; the tensor or the graph where no node is at fault.
        operator: the node's operator; empty where no node is at fault.
        rule: a short id, such as `typing`.
        problem: what is wrong, one clause.
        remedy: what to do about it, one clause.
        severity: `error` where no right engine can come of it, `warning` where one can.
    """

    node: str
    operator: str
    rule: str
    problem: str
    remedy: str
    severity: str = "error"


class Scope:
    """One graph or branch: what is known of its tensors. Names that it does not hold are looked up in its parent."""

    def __init__(self, graph: GraphProto, opset: int, parent: Scope | None = None) -> None:
        self.graph, self.parent = graph, parent
        self.types: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, np.ndarray[Any, Any]] = {}
        self.constants: set[str] = set()
        self.makers: dict[str, NodeProto] = {}
        self.users: dict[str, list[NodeProto]] = defaultdict(list)
        for value in (*graph.value_info, *graph.output, *graph.input):
            tensor = value.type.tensor_type
            if tensor.elem_type:
                self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                dims = tensor.shape.dim
                self.shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
        for tensor in graph.initializer:
            self._constant(tensor.name, tensor)
        for node in graph.node:
            self.makers.update((name, node) for name in node.output if name)
            self._fold(node, opset)

    def owner(self, name: str) -> Scope | None:
        """The scope that holds this tensor."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.types or name in scope.makers or name in scope.constants:
                return scope
            scope = scope.parent
        return None

    def type(self, name: str) -> int | None:
        """Element type as in TensorProto, None where it is unknown."""
        owner = self.owner(name)
        return owner.types.get(name) if owner else None

    def shape(self, name: str) -> Shape | None:
        """Shape, None where the rank is unknown; an element is None where it is not fixed."""
        owner = self.owner(name)
        return owner.shapes.get(name) if owner else None

    def constant(self, name: str) -> bool:
        """Whether the tensor is known before the engine is built."""
        owner = self.owner(name)
        return owner is not None and name in owner.constants

    def value(self, name: str) -> np.ndarray[Any, Any] | None:
        """The constant's value, None where it is large or not constant."""
        owner = self.owner(name)
        return owner.values.get(name) if owner else None

    def maker(self, name: str) -> NodeProto | None:
        """The node that makes the tensor."""
        owner = self.owner(name)
        return owner.makers.get(name) if owner else None

    def users_of(self, name: str) -> list[NodeProto]:
        """Nodes that take the tensor, those in branches among them."""
        owner = self.owner(name)
        return owner.users[name] if owner else []

    def fixed(self, name: str) -> bool:
        """Whether all dimensions are known and positive."""
        shape = self.shape(name)
        return shape is not None and all(size is not None and size > 0 for size in shape)

    def _constant(self, name: str, tensor: TensorProto) -> None:
        self.constants.add(name)
        self.types[name] = tensor.data_type
        self.shapes[name] = tuple(tensor.dims)
        if int(np.prod(tensor.dims, dtype=object)) <= SMALL and tensor.data_type not in (0, TensorProto.STRING):
            self.values[name] = numpy_helper.to_array(tensor)

    def _fold(self, node: NodeProto, opset: int) -> None:
        if not node.output:
            return
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    self._constant(node.output[0], attribute.t)
                elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                    kind = np.float32 if "float" in attribute.name else np.int64
                    self.constants.add(node.output[0])
                    self.values[node.output[0]] = np.array(onnx.helper.get_attribute_value(attribute), kind)
            return
        names = [name for name in node.input if name]
        by_shape = node.op_type in ("Shape", "Size") and len(names) == 1 and self.fixed(names[0])
        draws = node.op_type in RANDOM or any(a.type == AttributeProto.GRAPH for a in node.attribute)
        if not (by_shape or all(self.constant(name) for name in names)) or draws:
            return
        self.constants.update(name for name in node.output if name)
        if by_shape:
            shape = np.array(self.shape(names[0]), np.int64)
            if node.op_type == "Size":
                self.values[node.output[0]] = np.array(np.prod(shape))
            elif not node.attribute:
                self.values[node.output[0]] = shape
            return
        values = [self.value(name) for name in names]
        if node.op_type not in FOLDED or any(value is None for value in values) or len(names) < len(node.input):
            return
        result = _evaluate(node, {n: v for n, v in zip(names, values, strict=True) if v is not None}, opset)
        if result is not None and result.size <= SMALL:
            self.values[node.output[0]] = result


def _evaluate(node: NodeProto, inputs: dict[str, np.ndarray[Any, Any]], opset: int) -> np.ndarray[Any, Any] | None:
    """What a node makes of constants, None where it cannot be computed."""
    from onnx.reference import ReferenceEvaluator

    try:
        given = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in inputs.items()
        ]
        made = [onnx.helper.make_empty_tensor_value_info(node.output[0])]
        graph = onnx.helper.make_graph([node], "fold", given, made)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        with np.errstate(all="ignore"):
            results: list[Any] = list(ReferenceEvaluator(model).run(None, inputs))
        return np.asarray(results[0])
    except Exception:  # whatever a wrong node does to the evaluator: its own rule names it
        return None


@dataclass(frozen=True)
class Site:
    """A node, where it stands, and the scopes of its own branches by attribute."""

    node: NodeProto
    scope: Scope
    inside: tuple[str, ...] = ()
    """Operators of the nodes around it, outermost first."""
    branches: dict[str, Scope] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The node's name, or its first output."""
        return name_of(self.node)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute."""
        found = next((a for a in self.node.attribute if a.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    def text(self, name: str, default: str) -> str:
        """Value of an attribute that is a text."""
        value: bytes = self.attribute(name, default.encode())
        return value.decode("utf-8", "replace")

    def input(self, place: int) -> str:
        """Name of an input, empty where it is left out."""
        return self.node.input[place] if place < len(self.node.input) else ""

    def output(self, place: int) -> str:
        """Name of an output, empty where it is left out."""
        return self.node.output[place] if place < len(self.node.output) else ""

    def finding(self, rule: str, problem: str, remedy: str, severity: str = "error") -> Finding:
        """A finding about this node."""
        return Finding(self.name, self.node.op_type, rule, problem, remedy, severity)


def sites(scope: Scope, opset: int, inside: tuple[str, ...] = ()) -> Iterator[Site]:
    """Every node of a scope and of the branches inside it; notes who uses which tensor on the way."""
    for node in scope.graph.node:
        for name in node.input:
            if owner := scope.owner(name):
                owner.users[name].append(node)
        graphs = {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}
        branches = {name: Scope(graph, opset, scope) for name, graph in graphs.items()}
        yield Site(node, scope, inside, branches)
        for branch in branches.values():
            yield from sites(branch, opset, (*inside, node.op_type))


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor in the file, wherever it hides."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield from attribute.tensors
    if attribute.HasField("t"):
        yield attribute.t
    single = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for sparse in (*single, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _graph_tensors(graph)


def size(shape: Shape) -> int:
    """How many elements there are, 0 where a dimension is not fixed."""
    return prod(length or 0 for length in shape)


def name_of(node: NodeProto) -> str:
    """A node's name, or its first output."""
    return node.name or next((name for name in node.output if name), node.op_type)


def damage(tensor: TensorProto) -> str:
    """What is wrong with a tensor's data, empty where they are whole."""
    if tensor.data_type not in TensorProto.DataType.values()[1:]:
        return f"is of no known type ({tensor.data_type})"
    try:
        if any(length < 0 for length in tensor.dims):
            raise ValueError
        numpy_helper.to_array(tensor)
    except (ValueError, TypeError):
        return f"has no data for its dimensions {list(tensor.dims)}"
    return ""


def type_name(kind: int | None) -> str:
    """An element type as ONNX's operator specification writes it: `float`, `float16`, `int64`."""
    return TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else str(kind)
