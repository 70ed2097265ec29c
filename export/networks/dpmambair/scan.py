"""The selective scan without a loop over pixels: chunks that run side by side, and a carry by doubling.

    h_t = exp(Delta_t A) h_(t-1) + b_t,  y_t = sum over states of C_t h_t,  b_t = Delta_t B_t x_t, or with zero-order
    hold (exp(Delta_t A) - 1) / A B_t x_t.

Every factor is exp(Delta A) or a product of such, within [0, 1] where Delta >= 0 and A < 0: nothing overflows for any
Delta, and what underflows is zero in truth. Three tensors of [D, N, L] live at once, four with zero-order hold.
"""

from collections.abc import Sequence

import onnxscript
import torch
from onnxscript import opset20 as op
from torch import Tensor
from torch.nn import functional as F

from .config import Discretisation

LONG, SHORT, MANY = 16, 8, 1024
"""Pixels of a chunk, where there are more than `MANY` and where not."""


def chunk(length: int) -> int:
    """Pixels T of a chunk in a scan of so many: a step costs four nodes, twice as many chunks cost eight."""
    return length if length <= LONG else LONG if length > MANY else SHORT


def scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, how: Discretisation, size: int = 0) -> Tensor:
    """y [B, D, L] of a scan along the last axis.

    Args:
        x, delta: [B, D, L].
        a: [D, N], negative.
        b, c: [B, N, L].
        how: the discretisation of B.
        size: pixels of a chunk; 0 takes `chunk`.
    """
    batch, channels, length = x.shape
    size = size or chunk(length)
    fill, a = -length % size, a[:, :, None]

    def chunked(t: Tensor, axis: int) -> Tensor:
        """[B, F, L] -> [T, B, F, 1, K] or [T, B, 1, F, K]."""
        return F.pad(t, (0, fill)).unflatten(-1, (-1, size)).permute(3, 0, 1, 2).unsqueeze(axis)

    x, delta, b, c = chunked(x, 3), chunked(delta, 3), chunked(b, 2), chunked(c, 2)
    exponent = delta * a
    decays = exponent.exp()
    if how == "euler":
        news = delta * x * b
    else:
        # (exp(u) - 1) / A without the cancellation of small u.
        news = torch.tanh(exponent / 2) * (decays + 1) * (1 / a) * x * b
    decay, new = decays.unbind(), news.unbind()
    entering = _entering(decay, new, (delta.sum(0) * a).exp()) if x.shape[-1] > 1 else None
    states = []
    for t in range(size):
        before = states[-1] if states else entering
        states.append(new[t] if before is None else before * decay[t] + new[t])
    y = (torch.stack(states) * c).sum(3)
    return y.permute(1, 2, 3, 0).reshape(batch, channels, -1)[..., :length]


def _entering(decay: Sequence[Tensor], new: Sequence[Tensor], through: Tensor) -> Tensor:
    """What enters each chunk, of its steps and of what it lets through, all [..., K]."""
    end = new[0]
    for t in range(1, len(new)):
        end = end * decay[t] + new[t]
    end, through = end[..., :-1], through[..., 1:-1]
    count, step = end.shape[-1], 1
    while step < count:
        end = torch.cat([end[..., :step], end[..., step:] + through * end[..., :-step]], -1)
        through = through[..., step:] * through[..., :-step]
        step *= 2
    return F.pad(end, (1, 0))


@torch.library.custom_op("damp_deploy::scan", mutates_args=())
def scan_op(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, how: str) -> Tensor:
    """`scan` as one node of a traced program, which `scan_nodes` writes into a graph; without gradients."""
    return scan(x, delta, a, b, c, how).contiguous()  # type: ignore[arg-type]


@scan_op.register_fake
def _(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, how: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def scan_nodes(x, delta, a, b, c, how: str):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The nodes of `scan` for one frame: x, delta [1, D, L], a [D, N], b, c [1, N, L] -> y [1, D, L]."""
    _, channels, length = x.shape
    states, size = a.shape[1], chunk(length)
    fill = -length % size
    count = (length + fill) // size

    def chunked(t, features: int, shape: list[int]):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if fill:
            zeros = op.Constant(value=onnxscript.ir.tensor(torch.zeros(1, features, fill).numpy()))
            t = op.Concat(t, zeros, axis=2)
        t = op.Transpose(op.Reshape(t, [features, count, size]), perm=[2, 0, 1])
        return op.Reshape(t, shape)

    row, column = [size, channels, 1, count], [size, 1, states, count]
    x, delta = chunked(x, channels, row), chunked(delta, channels, row)
    b, c = chunked(b, states, column), chunked(c, states, column)
    a = op.Reshape(a, [1, channels, states, 1])
    exponent = op.Mul(delta, a)
    decays = op.Exp(exponent)
    if how == "euler":
        news = op.Mul(op.Mul(delta, x), b)
    else:
        gain = op.Mul(op.Tanh(op.Mul(exponent, 0.5)), op.Add(decays, 1.0))
        news = op.Mul(op.Mul(op.Mul(gain, op.Reciprocal(a)), x), b)
    decay, new = ([t] if size == 1 else op.Split(t, axis=0, num_outputs=size) for t in (decays, news))
    before = None
    if count > 1:
        end = new[0]
        for t in range(1, size):
            end = op.Add(op.Mul(end, decay[t]), new[t])
        through = op.Exp(op.Mul(op.ReduceSum(delta, [0], keepdims=1), a))
        end, through = op.Slice(end, [0], [-1], [3]), op.Slice(through, [1], [-1], [3])
        step = 1
        while step < count - 1:
            head = op.Slice(end, [0], [step], [3])
            tail = op.Add(op.Slice(end, [step], [count], [3]), op.Mul(through, op.Slice(end, [0], [-step], [3])))
            end = op.Concat(head, tail, axis=3)
            if 2 * step < count - 1:
                through = op.Mul(op.Slice(through, [step], [count], [3]), op.Slice(through, [0], [-step], [3]))
            step *= 2
        nothing = op.Constant(value=onnxscript.ir.tensor(torch.zeros(1, channels, states, 1).numpy()))
        before = op.Concat(nothing, end, axis=3)
    along = []
    for t in range(size):
        before = new[t] if before is None else op.Add(op.Mul(before, decay[t]), new[t])
        along.append(before)
    y = op.Concat(*along, axis=0) if size > 1 else along[0]
    y = op.ReduceSum(op.Mul(y, c), [2], keepdims=0)
    y = op.Reshape(op.Transpose(y, perm=[1, 2, 0]), [1, channels, count * size])
    return op.Slice(y, [0], [length], [2]) if fill else y
