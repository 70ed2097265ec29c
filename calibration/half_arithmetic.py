"""An FP16 graph as a float32 one that rounds like FP16, for machines that cannot compute in FP16.

ONNX Runtime on an x86 CPU has no FP16 kernels: it computes chains of FP16 nodes in float32 and drops the casts
between, so that neither rounding nor overflow of FP16 is ever seen. Here every FP16 tensor is rounded where it is made,
in float32 arithmetic that no optimiser removes:

- to 11 significant bits: c = 8193 x, then c - (c - x) (Dekker 1971, "A floating-point technique for extending the
  available precision", section 5.7, after Veltkamp);
- to infinity from 65,520 on: times 2^112 and back, since 65,504 is the last value that stays within float32;
- to multiples of 2^-24: plus 0.75 and back, where float32 has that spacing.

Sums inside a product or a convolution stay float32, as tensor cores have them; an engine that fuses nodes rounds less.
"""

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .typed import SHAPES, inferred, rewritten

SPLITTER, UP, DOWN, SPACING = 2.0**13 + 1, 2.0**112, 2.0**-112, 0.75


def half_arithmetic(data: bytes) -> bytes:
    """Rewrite an FP16 graph so that float32 kernels give its FP16 values.

    Args:
        data: an ONNX file with float32 inputs and outputs and FP16 tensors between them.

    Returns:
        an ONNX file whose floats are all float32; values that FP16 cannot hold become infinite or NaN in it.
    """
    model = inferred(data)
    half = {v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            weight.CopyFrom(_single(weight))
    constants = {"splitter": SPLITTER, "up": UP, "down": DOWN, "spacing": SPACING}
    added = [numpy_helper.from_array(np.array(v, np.float32), f"half/{k}") for k, v in constants.items()]
    return rewritten(model, [written for node in model.graph.node for written in _rewrite(node, half)], added)


def _single(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _rewrite(node: NodeProto, half: set[str]) -> Iterator[NodeProto]:
    """The node in float32, and what rounds its outputs."""
    written = NodeProto()
    written.CopyFrom(node)
    for attribute in written.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        if attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(_single(attribute.t))
    rounded = [] if node.op_type in SHAPES else [name for name in node.output if name in half]
    written.output[:] = [f"{name}/exact" if name in rounded else name for name in node.output]
    yield written
    for name in rounded:
        yield from _rounding(f"{name}/exact", name)


def _rounding(exact: str, name: str) -> Iterator[NodeProto]:
    steps = (
        ("Mul", exact, "half/splitter", "scaled"),
        ("Sub", f"{name}/scaled", exact, "rest"),
        ("Sub", f"{name}/scaled", f"{name}/rest", "short"),
        ("Mul", f"{name}/short", "half/up", "lifted"),
        ("Mul", f"{name}/lifted", "half/down", "bounded"),
        ("Add", f"{name}/bounded", "half/spacing", "spaced"),
    )
    for operator, first, second, made in steps:
        yield helper.make_node(operator, [first, second], [f"{name}/{made}"], name=f"{name}/{made}")
    yield helper.make_node("Sub", [f"{name}/spaced", "half/spacing"], [name], name=f"{name}/half")
