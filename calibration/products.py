"""The products of a graph: where its multiply-adds are, whose block they belong to, and which may run in int8.

A product may be quantised when it multiplies what has a value per pixel with constant weights. Products of two
activations (attention) and those of numbers per frame (prompt, router, gates, matrices made from them) never are: the
first gain nothing in int8, the second choose the experts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import NodeProto

from .typed import constants_of, pictures

WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


@dataclass(frozen=True)
class Product:
    """A node that multiplies.

    Attributes:
        name: of the node, `module/operator`.
        block: the block of the network that it belongs to.
        kind: `linear`, `pointwise`, `grouped`, `depthwise`, `convolution`, `transposed`, or `activations` where both
            operands are computed.
        multiply_adds: for one frame.
        quantisable: it may run in int8.
    """

    name: str
    block: str
    kind: str
    multiply_adds: int
    quantisable: bool


def products(model: onnx.ModelProto) -> tuple[Product, ...]:
    """The products of a graph with fixed shapes, in its order; node names must be unique."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = inferred.graph
    constants = constants_of(graph)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input, *graph.output)
    } | {name: list(tensor.dims) for name, tensor in constants.items()}
    of_pixels = pictures(graph, constants)
    weights = set(constants) | {
        o for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants for o in n.output
    }
    found = []
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        weighted = node.input[1] in weights
        kind = _kind(node, shapes[node.input[1]]) if weighted else "activations"
        found.append(
            Product(
                node.name, block_of(node.name), kind, _multiply_adds(node, shapes),
                weighted and node.input[0] in of_pixels and node.op_type != "Gemm",
            )
        )  # fmt: skip
    return tuple(found)


def block_of(name: str) -> str:
    """The block of a node's name: up to the number behind `layers`, or what the module's last number stands in.

    `dec.1.2.layers.0.DAMoE.shared.wa/MatMul` -> `dec.1.2.layers.0`, `enc.0.1.body.0/Conv` -> `enc.0.1.body`.
    """
    module = name.split("/")[0]
    inside = re.match(r"(.*?\.layers\.\d+)(\.|$)", module)
    return inside[1] if inside else re.sub(r"\.\d+$", "", module) if module.count(".") > 1 else module


def int8_share(model: onnx.ModelProto) -> float:
    """Share of the multiply-adds whose both operands come out of DequantizeLinear, 0 to 1."""
    moved: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type in MOVING and node.input[0] in moved):
            moved.update(node.output)
    quantised = {n.name for n in model.graph.node if n.op_type in WEIGHTED and set(n.input[:2]) <= moved}
    counted = products(model)
    return sum(p.multiply_adds for p in counted if p.name in quantised) / sum(p.multiply_adds for p in counted)


MOVING = frozenset({"Reshape", "Transpose", "Gather", "Squeeze", "Unsqueeze"})
"""Operators that move values and compute none."""


def _kind(node: NodeProto, weight: Sequence[int]) -> str:
    if node.op_type in ("MatMul", "Gemm"):
        return "linear"
    if node.op_type == "ConvTranspose":
        return "transposed"
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if groups > 1:
        return "depthwise" if weight[1] == 1 else "grouped"
    return "pointwise" if prod(weight[2:]) == 1 else "convolution"


def _multiply_adds(node: NodeProto, shapes: Mapping[str, Sequence[int]]) -> int:
    left, right, made = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return prod(made) * prod(right[1:])
    if node.op_type == "ConvTranspose":
        return prod(left) * prod(right[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(made) * left[-2 if transposed else -1]
