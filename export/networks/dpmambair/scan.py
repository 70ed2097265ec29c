"""The selective scan without a loop over pixels: chunks that run side by side, and a carry by doubling.

    h_t = exp(Delta_t A) h_(t-1) + b_t,  y_t = sum over states of C_t h_t,  b_t = Delta_t B_t x_t, or with zero-order
    hold (exp(Delta_t A) - 1) / A B_t x_t.

Every factor is exp(Delta A) or a product of such, within [0, 1] where Delta >= 0 and A < 0: nothing overflows for any
Delta, and what underflows is zero in truth. Three tensors of [D, N, L] live at once, four with zero-order hold.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..nodes import Nodes
from .config import Discretisation

LONG, SHORT, MANY = 16, 8, 1024
"""Pixels of a chunk, where there are more than `MANY` and where not."""
CACHED = 1 << 19
"""Numbers of a tensor [B, D, N, L] that PyTorch works on at once."""


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
    size = size or chunk(x.shape[-1])
    # Channels do not know each other: so many at once as a processor's cache holds.
    group = max(1, CACHED // (b.shape[0] * b.shape[1] * b.shape[2]))
    groups = zip(x.split(group, 1), delta.split(group, 1), a.split(group), strict=True)
    # What a scan keeps for its gradient is many times what it takes: it is made again.
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in (x, delta, a, b, c))
    run = _learned if learning else _chunked
    return torch.cat([run(*given, b, c, how, size) for given in groups], 1)


_learned: Callable[..., Tensor]


def compile_learning() -> None:
    """Let PyTorch compile scans that learn: after two minutes a step takes 0.55 of its time, for long trainings."""
    global _learned
    _learned = torch.compile(_chunked, dynamic=False)


def _chunked(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, how: Discretisation, size: int) -> Tensor:
    batch, channels, length = x.shape
    fill, a = -length % size, a[:, :, None]

    def chunked(t: Tensor, axis: int) -> Tensor:
        """[B, F, L] -> [T, B, F, 1, K] or [T, B, 1, F, K]."""
        return F.pad(t, (0, fill)).unflatten(-1, (-1, size)).permute(3, 0, 1, 2).unsqueeze(axis)

    x, delta, b, c = chunked(x, 3), chunked(delta, 3), chunked(b, 2), chunked(c, 2)
    exponent = delta * a
    decays = exponent.exp()
    # With zero-order hold (exp(u) - 1) / A, without the cancellation of small u.
    gain = delta if how == "euler" else torch.tanh(exponent / 2) * (decays + 1) * (1 / a)
    news = gain * x * b
    decay, new = decays.unbind(), news.unbind()
    entering = _entering(decay, new, (delta.sum(0) * a).exp()) if x.shape[-1] > 1 else None
    states = []
    for t in range(size):
        before = states[-1] if states else entering
        states.append(new[t] if before is None else before * decay[t] + new[t])
    y = (torch.stack(states) * c).sum(3)
    return y.permute(1, 2, 3, 0).reshape(batch, channels, -1)[..., :length]


_learned = partial(checkpoint, _chunked, use_reentrant=False)


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


def scan_nodes(op: Nodes, x: str, delta: str, a: str, b: str, c: str, shapes: Sequence[Sequence[int]], how: str) -> str:
    """Write the nodes of `scan` for one frame: x, delta [1, D, H, W], a [D, N], b, c [1, N, H, W] -> y [1, D, H, W]."""
    (_, channels, height, width), states = shapes[0], shapes[2][1]
    length = height * width
    size = chunk(length)
    fill = -length % size
    count = (length + fill) // size

    def part(t: str, start: int, end: int) -> str:
        return op.Slice(t, [start], [end], [3])

    def steps(t: str) -> list[str]:
        return [t] if size == 1 else op.Split(t, outputs=size, axis=0, num_outputs=size)

    # Chunked as one: ONNX Runtime moves a transposition that one node uses behind what follows, where it costs more.
    wide = (channels, channels, states, states)
    chunked = op.Reshape(op.Concat(x, delta, b, c, axis=1), [sum(wide), length])
    if fill:
        chunked = op.Concat(chunked, np.zeros((sum(wide), fill)), axis=1)
    chunked = op.Transpose(op.Reshape(chunked, [sum(wide), count, size]), perm=[2, 0, 1])
    x, delta, b, c = op.Split(chunked, [*wide], outputs=4, axis=1)
    x, delta = (op.Reshape(t, [size, channels, 1, count]) for t in (x, delta))
    b, c = (op.Reshape(t, [size, 1, states, count]) for t in (b, c))
    a = op.Reshape(a, [1, channels, states, 1])
    exponent = op.Mul(delta, a)
    decays = op.Exp(exponent)
    if how == "euler":
        gain = delta
    else:
        gain = op.Mul(op.Mul(op.Tanh(op.Mul(exponent, 0.5)), op.Add(decays, 1.0)), op.Reciprocal(a))
    news = op.Mul(op.Mul(gain, x), b)
    decay, new = steps(decays), steps(news)
    before = ""
    if count > 1:
        end = new[0]
        for t in range(1, size):
            end = op.Add(op.Mul(end, decay[t]), new[t])
        through = op.Exp(op.Mul(op.ReduceSum(delta, [0], keepdims=1), a))
        end, through, step = part(end, 0, -1), part(through, 1, -1), 1
        while step < count - 1:
            later = op.Add(part(end, step, count), op.Mul(through, part(end, 0, -step)))
            end = op.Concat(part(end, 0, step), later, axis=3)
            if 2 * step < count - 1:
                through = op.Mul(part(through, step, count), part(through, 0, -step))
            step *= 2
        before = op.Concat(np.zeros((1, channels, states, 1)), end, axis=3)
    along = []
    for t in range(size):
        before = op.Add(op.Mul(before, decay[t]), new[t]) if before else new[t]
        along.append(before)
    y = op.Concat(*along, axis=0) if size > 1 else before
    y = op.Transpose(op.ReduceSum(op.Mul(y, c), [2], keepdims=0), perm=[1, 2, 0])
    if fill:
        y = op.Slice(op.Reshape(y, [channels, count * size]), [0], [length], [1])
    return op.Reshape(y, [1, channels, height, width])
