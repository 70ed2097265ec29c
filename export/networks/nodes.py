"""Operators of a network's own: one node while PyTorch exports, written as ONNX nodes afterwards.

PyTorch's exporter takes seconds for what a scan unrolls to, and looks at each of its nodes for dozens of patterns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

DOMAIN = "damp_deploy"


class Nodes:
    """Writes nodes: `nodes.Mul(x, 0.5)` gives the name of its output, `nodes.Split(x, outputs=2)` those of its two.

    Inputs are names, or numbers and arrays, which become constants of the graph; lists of whole numbers are int64.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.written: list[onnx.NodeProto] = []
        self._graph, self._count, self._constants = graph, 0, dict[bytes, str]()

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        def write(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            given = [i if isinstance(i, str) else self._constant(i) for i in inputs]
            made = [f"{DOMAIN}.{self._count + i}" for i in range(outputs)]
            self._count += outputs
            self.written.append(helper.make_node(kind, given, made, **attributes))
            return made[0] if outputs == 1 else made

        return write

    def _constant(self, value: Any) -> str:
        array = np.asarray(value, np.int64 if isinstance(value, list) else np.float32)
        key = repr((array.shape, array.dtype)).encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = f"{DOMAIN}.constant.{len(self._constants)}"
            self._graph.initializer.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]


Writer = Callable[..., str]
"""(nodes, names of its inputs, their shapes, attributes by name) -> the name of its output."""


def own_operator(name: str, inputs: Sequence[Tensor], shape: Sequence[int], **attributes: str | int) -> Tensor:
    """A node of an operator of the network's own, for what is exported now; its output is a float32 tensor."""
    made: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", inputs, attributes, dtype=torch.float32, shape=shape, version=1
    )
    return made


def write_operators(model: onnx.ModelProto, writers: Mapping[str, Writer]) -> None:
    """Put what `writers` write in the place of a model's nodes of `DOMAIN`."""
    graph = model.graph
    known = (*graph.value_info, *graph.input, *graph.output)
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in known}
    shapes |= {i.name: tuple(i.dims) for i in graph.initializer}
    nodes = Nodes(graph)
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.written.append(node)
            continue
        start = len(nodes.written)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        told = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
        made = writers[node.op_type](nodes, *node.input, shapes=[shapes[name] for name in node.input], **told)
        last = nodes.written[-1]
        assert [*last.output] == [made], "the last node gives the result"
        last.output[:] = node.output
        for own in nodes.written[start:]:
            own.metadata_props.extend(node.metadata_props)
    del graph.node[:]
    graph.node.extend(nodes.written)
    kept = [o for o in model.opset_import if o.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
