"""The graph of an ONNX file as data: nodes, shapes and types of what it holds and takes, small integers by value.

Field numbers are those of onnx.proto. What is no graph of ours raises ValueError or IndexError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .onnx_wire import MOST_NUMBERS, Message, Reader

FLOAT, UINT8, INT32, INT64, BOOL = 1, 2, 6, 7, 9
# A CPU computes half floats in float32, so they count as much.
SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 4, 11: 8, 12: 4, 13: 8, 16: 4, 17: 1, 18: 1, 19: 1, 20: 1}
"""Type of elements -> bytes of one; a tensor of any other type is refused."""
MOST_NODES = 1 << 16
"""Of a graph; 35,000 has the largest that is ever measured here, a DPMambaIR with casts around every node."""
MOST_AXES = 8
LARGEST_AXIS = (1 << 31) - 1
_STORED = {10: 2, 16: 2}
_DATA = (4, 5, 6, 7, 9, 10, 11)
_RAW, _INT64_DATA = 9, 7
_FLOAT, _INT, _STRING, _TENSOR, _FLOATS, _INTS = 1, 2, 3, 4, 6, 7


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor.

    Attributes:
        shape: of it.
        type: of its elements, as ONNX numbers them.
        values: of its elements, where it is a constant of few integers.
        constant: whether it follows from the file alone: an engine may compute it once and keep it.
    """

    shape: tuple[int, ...]
    type: int
    values: tuple[int, ...] | None = None
    constant: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) > MOST_AXES or not all(0 <= n <= LARGEST_AXIS for n in self.shape):
            raise ValueError(f"no tensor has the shape {list(self.shape[: MOST_AXES + 1])}")
        if self.type not in SIZES:
            raise ValueError(f"tensors of type {self.type} are not known")

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self.elements * SIZES[self.type]


@dataclass(frozen=True)
class Node:
    """A node: its operator, names of tensors (empty where one is left out), attributes by name."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Message]

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer."""
        found = self._found(name, _INT)
        if found is None and default is None:
            raise ValueError(f"{name} is missing")
        return found.number(3) if found is not None else default or 0

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
        """Integers."""
        found = self._found(name, _INTS)
        return found.numbers(8) if found is not None else None if default is None else tuple(default)

    def text(self, name: str, default: str) -> str:
        """A string."""
        found = self._found(name, _STRING)
        return default if found is None else found.text(4)

    def _found(self, name: str, kind: int) -> Message | None:
        found = self.attributes.get(name)
        if found is not None and found.number(20) != kind:
            raise ValueError(f"{name} is of another type")
        return found


@dataclass(frozen=True)
class Graph:
    """A graph: nodes in order, what it holds and takes by name, and the names of what it gives."""

    nodes: Sequence[Node]
    held: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]


def read_graph(data: bytes) -> Graph:
    """The graph of an ONNX file. Raises ValueError or IndexError."""
    reader = Reader()
    model = reader.message(memoryview(data))
    if model.keys() & {20, 25}:
        raise ValueError("functions and training are not for engines")
    graph = reader.message(model.part(7))
    if 15 in graph:
        raise ValueError("sparse tensors are not read")
    if len(graph.get(1, ())) > MOST_NODES:
        raise ValueError(f"more than {MOST_NODES} nodes")
    held: dict[str, Tensor] = {}
    for part in graph.parts(5):
        message = reader.message(part)
        if held.setdefault(message.text(8), tensor := _stored(message)) is not tensor:
            raise ValueError("two tensors have one name")
    inputs = dict(_port(reader, part) for part in graph.parts(11))
    outputs = [reader.message(part).text(1) for part in graph.parts(12)]
    if len(inputs) != len(graph.parts(11)) or inputs.keys() & held.keys() or len(set(outputs)) != len(outputs):
        raise ValueError("two ends of the graph have one name")
    return Graph([_node(reader, part) for part in graph.parts(1)], held, inputs, outputs)


def constant_of(node: Node) -> Tensor:
    """What a node `Constant` holds."""
    (name,) = node.attributes
    found, kind = node.attributes[name], node.attributes[name].number(20)
    if (name, kind) == ("value", _TENSOR):
        return _stored(Reader().message(found.part(5)))
    if (name, kind) == ("value_int", _INT):
        return Tensor((), INT64, (found.number(3),))
    if (name, kind) == ("value_ints", _INTS):
        count = found.count(8)
        return Tensor((count,), INT64, found.numbers(8) if count <= MOST_NUMBERS else None)
    if (name, kind) == ("value_float", _FLOAT):
        return Tensor((), FLOAT)
    if (name, kind) == ("value_floats", _FLOATS):
        return Tensor((sum(len(v) for v in found.get(7, ()) if not isinstance(v, int)) // 4,), FLOAT)
    raise ValueError("what it holds is not read")


def _node(reader: Reader, view: memoryview) -> Node:
    message = reader.message(view)
    parts = [reader.message(part) for part in message.parts(5)]
    attributes = {part.text(1): part for part in parts}
    if len(attributes) != len(parts):
        raise ValueError("two attributes have one name")
    if any(part.keys() & {6, 11, 21, 22, 23} for part in parts):
        raise ValueError("a node has a graph, a sparse tensor or a reference")
    return Node(message.text(4), message.texts(1), message.texts(2), attributes)


def _port(reader: Reader, view: memoryview) -> tuple[str, Tensor]:
    """Name and tensor of an input whose shape is said in numbers."""
    port = reader.message(view)
    tensor = reader.message(reader.message(port.part(2)).part(1))
    axes = [reader.message(part) for part in reader.message(tensor.part(2)).parts(1)]
    if not all(axis.keys() == {1} for axis in axes):
        raise ValueError("an input has no fixed shape")
    return port.text(1), Tensor(tuple(axis.number(1) for axis in axes), tensor.number(1))


def _stored(message: Message) -> Tensor:
    """A tensor of the file; its shape is believed as far as there are data."""
    found = Tensor(message.numbers(1), message.number(2), constant=True)
    data = [number for number in _DATA if number in message]
    size = sum(1 if isinstance(v, int) else len(v) for n in data for v in message[n])
    raw = data == [_RAW]
    if len(data) > 1 or found.elements * (_STORED.get(found.type, SIZES[found.type]) if raw else 1) > size:
        raise ValueError("a tensor has other data than its shape says")
    if found.type not in (INT32, INT64) or found.elements > MOST_NUMBERS:
        return found
    if raw:
        kind = "<i8" if found.type == INT64 else "<i4"
        values = np.frombuffer(message.part(_RAW), kind, found.elements).tolist()
    else:
        values = [n for number in data for n in message.numbers(number)]
    if len(values) != found.elements:
        raise ValueError("a tensor has other data than its shape says")
    return Tensor(found.shape, found.type, tuple(values), True)
