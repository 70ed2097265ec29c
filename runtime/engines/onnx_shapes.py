"""Shapes and types that the operators of graphs give, as onnx.ai/onnx/operators has them in opset 18 to 20.

A rule takes a node and what it is given (None for an input that is left out) and returns what it makes. It raises
ValueError where the shape cannot be followed: nothing is guessed. Values are kept of integers that shapes come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from .onnx_graph import BOOL, FLOAT, INT32, INT64, SIZES, UINT8, Node, Tensor, constant_of
from .onnx_wire import MOST_NUMBERS

Shape = tuple[int, ...]
Given = Sequence["Tensor | None"]
Rule = Callable[[Node, Given], "list[Tensor]"]


def _need(given: Given, place: int) -> Tensor:
    found = _may(given, place)
    if found is None:
        raise ValueError(f"input {place} is missing")
    return found


def _may(given: Given, place: int) -> Tensor | None:
    return given[place] if place < len(given) else None


def _values(given: Given, place: int) -> tuple[int, ...]:
    found = _need(given, place).values
    if found is None:
        raise ValueError(f"input {place} is no constant of few integers")
    return found


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis}")
    return axis % rank


def _axes(axes: Sequence[int], rank: int) -> set[int]:
    found = {_axis(axis, rank) for axis in axes}
    if len(found) != len(axes):
        raise ValueError("an axis is named twice")
    return found


def _together(*shapes: Shape) -> Shape:
    """The shape that all are broadcast to."""
    rank = max(map(len, shapes))
    joined = [1] * rank
    for shape in shapes:
        for axis, length in enumerate(shape, rank - len(shape)):
            if joined[axis] == 1:
                joined[axis] = length
            elif length not in (1, joined[axis]):
                raise ValueError(f"{length} and {joined[axis]} do not fit")
    return tuple(joined)


def _same(node: Node, given: Given) -> list[Tensor]:
    return [replace(_need(given, 0), values=None)]


def _identity(node: Node, given: Given) -> list[Tensor]:
    return [_need(given, 0)]


def _constant(node: Node, given: Given) -> list[Tensor]:
    return [constant_of(node)]


def _cast(node: Node, given: Given) -> list[Tensor]:
    found, to = _need(given, 0), node.integer("to")
    # In narrower types numbers become others, of which no shape is made.
    kept = to == INT64 or (to == INT32 and all(abs(value) < 1 << 31 for value in found.values or ()))
    return [replace(found, type=to, values=found.values if kept else None)]


def _typed_as(place: int, otherwise: int, node: Node, given: Given) -> list[Tensor]:
    """The shape of the first input in the type of another one."""
    found = _may(given, place)
    return [Tensor(_need(given, 0).shape, otherwise if found is None else found.type)]


def _joined(of: int, node: Node, given: Given) -> list[Tensor]:
    """Broadcast, in the type of one of the inputs, or in a type of its own."""
    tensors = [_need(given, place) for place in range(len(given))]
    return [Tensor(_together(*(t.shape for t in tensors)), _need(given, of).type if of >= 0 else BOOL)]


def _sloped(node: Node, given: Given) -> list[Tensor]:
    (made,) = _joined(0, node, given)
    if made.shape != _need(given, 0).shape:
        raise ValueError("the slope is larger than what it is for")
    return [made]


def _normalised(node: Node, given: Given) -> list[Tensor]:
    first = _need(given, 0)
    axis = _axis(node.integer("axis", -1), len(first.shape))
    told = Tensor(first.shape[:axis] + (1,) * (len(first.shape) - axis), FLOAT)
    return [replace(first, values=None), told, told]


def _multiplied(node: Node, given: Given) -> list[Tensor]:
    first, second = _need(given, 0), _need(given, 1)
    left, right = first.shape, second.shape
    a, b = (1, *left) if len(left) == 1 else left, (*right, 1) if len(right) == 1 else right
    if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
        raise ValueError(f"{list(left)} and {list(right)} cannot be multiplied")
    shape = _together(a[:-2], b[:-2]) + a[-2:-1] * (len(left) > 1) + b[-1:] * (len(right) > 1)
    return [Tensor(shape, first.type)]


def _gemm(node: Node, given: Given) -> list[Tensor]:
    first, second, third = _need(given, 0), _need(given, 1), _may(given, 2)
    m, k = first.shape[::-1] if node.integer("transA", 0) else first.shape
    j, n = second.shape[::-1] if node.integer("transB", 0) else second.shape
    if k != j or (third is not None and _together((m, n), third.shape) != (m, n)):
        raise ValueError(f"{list(first.shape)} and {list(second.shape)} cannot be multiplied")
    return [Tensor((m, n), first.type)]


def _per_axis(node: Node, name: str, rank: int, default: int) -> Shape:
    found = node.integers(name, (default,) * rank)
    if found is None or len(found) != rank or min(found, default=1) < (name != "output_padding"):
        raise ValueError(f"{name} does not fit")
    return found


def _pads(node: Node, rank: int) -> list[tuple[int, int]] | None:
    """Pads at both ends of each axis, or None where the size of the input says them."""
    auto, pads = node.text("auto_pad", "NOTSET"), node.integers("pads", (0,) * 2 * rank) or ()
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER") or len(pads) != 2 * rank or min(pads, default=0) < 0:
        raise ValueError("pads do not fit")
    if auto == "VALID":
        return [(0, 0)] * rank
    return list(zip(pads[:rank], pads[rank:], strict=True)) if auto == "NOTSET" else None


def _windows(node: Node, spatial: Shape, kernel: Shape, ceil: bool = False) -> Shape:
    """How often a kernel fits, by axis."""
    rank, made = len(spatial), []
    strides, dilations = _per_axis(node, "strides", rank, 1), _per_axis(node, "dilations", rank, 1)
    pads = _pads(node, rank)
    for axis, (length, stride) in enumerate(zip(spatial, strides, strict=True)):
        if pads is None:
            made.append(-(-length // stride))
            continue
        before, after = pads[axis]
        free = length + before + after - dilations[axis] * (kernel[axis] - 1) - 1
        count = (-(-free // stride) if ceil else free // stride) + 1
        if count < 1 or kernel[axis] < 1:
            raise ValueError("the kernel is larger than the frame")
        # A window that would begin behind the frame is none.
        made.append(count - (ceil and (count - 1) * stride >= length + before))
    return tuple(made)


def _filters(node: Node, given: Given, transposed: bool) -> tuple[Tensor, Shape, int]:
    """Frame, taps and channels that come out of a convolution, where its inputs fit."""
    frame, weights, groups = _need(given, 0), _need(given, 1).shape, node.integer("group", 1)
    taps = weights[2:]
    if len(frame.shape) != len(weights) or len(taps) < 1 or node.integers("kernel_shape", taps) != taps:
        raise ValueError("the kernel is of another shape than the weights")
    into, out = (weights[0], weights[1] * groups) if transposed else (weights[1] * groups, weights[0])
    if groups < 1 or frame.shape[1] != into or weights[0] % groups:
        raise ValueError("the channels do not fit")
    return frame, taps, out


def _conv(node: Node, given: Given) -> list[Tensor]:
    frame, taps, channels = _filters(node, given, False)
    return [Tensor((frame.shape[0], channels, *_windows(node, frame.shape[2:], taps)), frame.type)]


def _conv_transpose(node: Node, given: Given) -> list[Tensor]:
    frame, taps, channels = _filters(node, given, True)
    spatial, rank, pads = frame.shape[2:], len(taps), _pads(node, len(taps))
    strides, dilations = _per_axis(node, "strides", rank, 1), _per_axis(node, "dilations", rank, 1)
    more = _per_axis(node, "output_padding", rank, 0)
    if pads is None or "output_shape" in node.attributes:
        raise ValueError("engines differ in a size that is not said by pads")
    made = tuple(
        strides[i] * (spatial[i] - 1) + more[i] + dilations[i] * (taps[i] - 1) + 1 - sum(pads[i]) for i in range(rank)
    )
    if min(made) < 1:
        raise ValueError("nothing is made")
    return [Tensor((frame.shape[0], channels, *made), frame.type)]


def _pooled(node: Node, given: Given) -> list[Tensor]:
    frame, kernel = _need(given, 0), node.integers("kernel_shape")
    if kernel is None or len(kernel) + 2 != len(frame.shape) or _pads(node, len(kernel)) is None:
        raise ValueError("the kernel does not fit, or its pads are not said")
    spatial = _windows(node, frame.shape[2:], kernel, bool(node.integer("ceil_mode", 0)))
    return [Tensor((*frame.shape[:2], *spatial), frame.type)]


def _to_space(node: Node, given: Given) -> list[Tensor]:
    frame, side = _need(given, 0), node.integer("blocksize")
    batch, channels, lines, samples = frame.shape
    if side < 1 or channels % side**2:
        raise ValueError("the channels do not fit")
    return [Tensor((batch, channels // side**2, lines * side, samples * side), frame.type)]


def _concat(node: Node, given: Given) -> list[Tensor]:
    tensors = [_need(given, place) for place in range(len(given))]
    first = tensors[0]
    axis = _axis(node.integer("axis"), len(first.shape))
    around = {(t.shape[:axis], t.shape[axis + 1 :], len(t.shape)) for t in tensors}
    if len(around) != 1:
        raise ValueError("what is joined differs in another axis")
    length = sum(t.shape[axis] for t in tensors)
    values = None
    if len(first.shape) == 1 and length <= MOST_NUMBERS and all(t.values is not None for t in tensors):
        values = tuple(v for t in tensors for v in t.values or ())
    return [Tensor((*first.shape[:axis], length, *first.shape[axis + 1 :]), first.type, values)]


def _gather(node: Node, given: Given) -> list[Tensor]:
    data, places = _need(given, 0), _need(given, 1)
    axis, values = _axis(node.integer("axis", 0), len(data.shape)), None
    if data.values is not None and places.values is not None and len(data.shape) == 1:
        values = tuple(data.values[_axis(place, data.elements)] for place in places.values)
    return [Tensor(data.shape[:axis] + places.shape + data.shape[axis + 1 :], data.type, values)]


def _reshape(node: Node, given: Given) -> list[Tensor]:
    data, told = _need(given, 0), list(_values(given, 1))
    if not node.integer("allowzero", 0):
        told = [data.shape[axis] if length == 0 else length for axis, length in enumerate(told)]
    if told.count(-1) == 1:
        others = math.prod(length for length in told if length != -1)
        if others < 1:
            raise ValueError("an axis of any length beside an empty one")
        told[told.index(-1)] = data.elements // others
    if math.prod(told) != data.elements:
        raise ValueError(f"{data.elements} elements do not make {told}")
    return [replace(data, shape=tuple(told))]


def _squeeze(node: Node, given: Given) -> list[Tensor]:
    data, rank = _need(given, 0), len(_need(given, 0).shape)
    ones = [axis for axis, length in enumerate(data.shape) if length == 1]
    axes = _axes(_values(given, 1) if _may(given, 1) else ones, rank)
    if not axes <= set(ones) or (_may(given, 1) and not axes):
        raise ValueError("an axis has not length 1, or none is named")
    return [replace(data, shape=tuple(n for axis, n in enumerate(data.shape) if axis not in axes))]


def _unsqueeze(node: Node, given: Given) -> list[Tensor]:
    data, told = _need(given, 0), _values(given, 1)
    rank, rest = len(data.shape) + len(told), iter(data.shape)
    axes = _axes(told, rank)
    return [replace(data, shape=tuple(1 if axis in axes else next(rest) for axis in range(rank)))]


def _transpose(node: Node, given: Given) -> list[Tensor]:
    data = _need(given, 0)
    order = node.integers("perm", range(len(data.shape))[::-1]) or ()
    if sorted(order) != list(range(len(data.shape))):
        raise ValueError("perm does not fit")
    return [Tensor(tuple(data.shape[axis] for axis in order), data.type)]


def _slice(node: Node, given: Given) -> list[Tensor]:
    data, starts, ends = _need(given, 0), _values(given, 1), _values(given, 2)
    axes = _values(given, 3) if _may(given, 3) else tuple(range(len(starts)))
    steps = _values(given, 4) if _may(given, 4) else (1,) * len(starts)
    shape = list(data.shape)
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(_axes(axes, len(shape))):
        raise ValueError("starts, ends, axes and steps do not fit")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = data.shape[axis]
        if not step:
            raise ValueError("a step of nothing")
        # Backwards, what begins before the first element begins with it: there Python's slices are empty.
        first = max(start, -length) if step < 0 else start
        shape[axis] = len(range(length)[first:end:step])
    return [Tensor(tuple(shape), data.type)]


def _split(node: Node, given: Given) -> list[Tensor]:
    data, count = _need(given, 0), len(node.outputs)
    axis = _axis(node.integer("axis", 0), len(data.shape))
    length = data.shape[axis]
    if _may(given, 1):
        lengths = _values(given, 1)
    elif node.integer("num_outputs") != count:
        raise ValueError("num_outputs is another number than there are")
    else:
        each = -(-length // count)
        lengths = (*(each,) * (count - 1), length - each * (count - 1))
    if len(lengths) != count or sum(lengths) != length or min(lengths) < 0:
        raise ValueError("the parts do not fit")
    return [Tensor((*data.shape[:axis], n, *data.shape[axis + 1 :]), data.type) for n in lengths]


def _top(node: Node, given: Given) -> list[Tensor]:
    data, (count,) = _need(given, 0), _values(given, 1)
    axis = _axis(node.integer("axis", -1), len(data.shape))
    if not 0 <= count <= data.shape[axis]:
        raise ValueError("fewer are there")
    shape = (*data.shape[:axis], count, *data.shape[axis + 1 :])
    return [Tensor(shape, data.type), Tensor(shape, INT64)]


def _reduced(node: Node, given: Given) -> list[Tensor]:
    data, rank = _need(given, 0), len(_need(given, 0).shape)
    told = _values(given, 1) if _may(given, 1) else ()
    every = () if node.integer("noop_with_empty_axes", 0) else range(rank)
    axes, kept = _axes(told or every, rank), node.integer("keepdims", 1)
    return [
        Tensor(
            tuple(1 if axis in axes else n for axis, n in enumerate(data.shape) if kept or axis not in axes), data.type
        )
    ]


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("Abs", "Clip", "Erf", "Exp", "Gelu", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sign",
         "Softmax", "Softplus", "Sqrt", "Tanh"), _same),
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"), partial(_joined, 0)),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual"), partial(_joined, -1)),
    **dict.fromkeys(("ReduceL2", "ReduceMean", "ReduceSum"), _reduced),
    "AveragePool": _pooled, "Cast": _cast, "Concat": _concat, "Constant": _constant, "Conv": _conv,
    "ConvTranspose": _conv_transpose, "DepthToSpace": _to_space, "DequantizeLinear": partial(_typed_as, 1, FLOAT),
    "Gather": _gather, "Gemm": _gemm, "Identity": _identity, "LayerNormalization": _normalised,
    "MatMul": _multiplied, "PRelu": _sloped, "QuantizeLinear": partial(_typed_as, 2, UINT8), "Reshape": _reshape,
    "Slice": _slice, "Split": _split, "Squeeze": _squeeze, "TopK": _top, "Transpose": _transpose,
    "Unsqueeze": _unsqueeze, "Where": partial(_joined, 1),
}  # fmt: skip
"""Operator -> rule: what a graph may consist of. No loops, no randomness; what is made is weighed before."""


def effort_of(node: Node, given: Given, made: Sequence[Tensor]) -> tuple[int, int]:
    """(multiply-adds, bytes that an engine takes for itself) of a node.

    What multiplies nothing counts one for each element that it makes, or that it sums.
    """
    out = sum(tensor.elements for tensor in made)
    if node.operator in ("Conv", "ConvTranspose"):
        frame, weights = _need(given, 0), _need(given, 1).shape
        each, taps = math.prod(weights[1:]), math.prod(weights[2:])
        if node.operator == "ConvTranspose":
            # ONNX Runtime keeps all products of a frame before it sums them.
            return frame.elements * each, each * math.prod(frame.shape[2:]) * SIZES[FLOAT]
        # Its int8 convolution writes the frame once for each tap, or a pointer; seen in 1.31, as the other.
        return out * each, (taps > 1) * max(each, taps * SIZES[INT64]) * math.prod(made[0].shape[2:])
    if node.operator in ("MatMul", "Gemm"):
        return out * _need(given, 0).shape[0 if node.integer("transA", 0) else -1], 0
    if node.operator == "AveragePool":
        return out * math.prod(node.integers("kernel_shape") or ()), 0
    if node.operator == "TopK":
        return _need(given, 0).elements * made[0].elements.bit_length(), 0
    if node.operator.startswith("Reduce"):
        return _need(given, 0).elements, 0
    return out, 0
