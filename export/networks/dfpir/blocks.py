"""Attention over channels, gated feed-forward and the perturbation block, with the reference's state-dict names."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import DfpirConfig, kept

NORM_EPS = 1e-5
L2_EPS = 1e-12


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [B, C, H, W]; BiasFree divides by the centred deviation without centring.

    Mean and variance are written out: PyTorch's `layer_norm` on a CPU was seen to be five times as far from float64.
    """

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(channels))
        self.body.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        deviation = torch.sqrt((centred * centred).mean(dim=1, keepdim=True) + NORM_EPS)
        weight, bias = self.body.weight[:, None, None], self.body.bias
        return x / deviation * weight if bias is None else centred / deviation * weight + bias[:, None, None]


def pointwise(channels: int, out: int, bias: bool) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(channels, out, 1, bias=bias)


def depthwise(channels: int, bias: bool) -> nn.Conv2d:
    """A 3x3 convolution of every channel by itself."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)


def attended(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, softmax: Callable[[Tensor], Tensor]
) -> Tensor:  # fmt: skip
    """Cosine attention among the channels of each head, a channel's pixels being its vector.

    Args:
        q, k, v: [B, C, H, W]; heads are contiguous groups of channels.
        temperature: [heads, 1, 1].
        softmax: of scores [B, heads, C / heads, C / heads] over the last axis.
    """
    heads, shape = len(temperature), q.shape
    q, k, v = (x.reshape(len(x), heads, shape[1] // heads, -1) for x in (q, k, v))
    q, k = F.normalize(q, dim=-1, eps=L2_EPS), F.normalize(k, dim=-1, eps=L2_EPS)
    return (softmax(q @ k.transpose(-1, -2) * temperature) @ v).reshape(shape)


class Attention(nn.Module):
    """Channels of [B, C, H, W] attend to each other."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = pointwise(channels, 3 * channels, bias)
        self.qkv_dwconv = depthwise(3 * channels, bias)
        self.project_out = pointwise(channels, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        return self.project_out(attended(q, k, v, self.temperature, lambda scores: scores.softmax(dim=-1)))


class GatedFeedForward(nn.Module):
    """1x1 to two halves, depthwise 3x3, gelu(first) * second, 1x1."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.project_in = pointwise(channels, 2 * hidden, bias)
        self.dwconv = depthwise(2 * hidden, bias)
        self.project_out = pointwise(hidden, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Block(nn.Module):
    """Attention and gated feed-forward, each on normed input with a residual.

    Args:
        level: whose width it has.
        heads: of its attention, which need not be those of the level.
    """

    def __init__(self, config: DfpirConfig, level: int, heads: int) -> None:
        super().__init__()
        channels, centred = config.width(level), config.norm == "WithBias"
        self.norm1, self.norm2 = ChannelNorm(channels, centred), ChannelNorm(channels, centred)
        self.attn = Attention(channels, heads, config.conv_bias)
        self.ffn = GatedFeedForward(channels, config.hidden[level], config.conv_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class KeptSoftmax(nn.Module):
    """Softmax of the largest scores of every row; the others are zero. Scores equal to the last one kept are kept.

    Args:
        scores: of a row.
    """

    def __init__(self, scores: int) -> None:
        super().__init__()
        self.dropped = scores - kept(scores)

    def border(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The last score that is kept and the first that is dropped, [..., 1] each."""
        least = scores.detach().topk(self.dropped + 1, dim=-1, largest=False).values
        return least[..., -1:], least[..., -2:-1]

    def forward(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(scores < self.border(scores)[0], -torch.inf).softmax(dim=-1)


class CrossAttention(nn.Module):
    """Channels of `x` attend to those of `y`, both [B, C, H, W]; nine tenths of the scores of a row count."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.attn4 = nn.Parameter(torch.tensor([0.2]))
        self.kv = pointwise(channels, 2 * channels, False)
        self.kv_dwconv = depthwise(2 * channels, False)
        self.q = pointwise(channels, channels, False)
        self.q_dwconv = depthwise(channels, False)
        self.project_out = pointwise(channels, channels, False)
        self.softmax = KeptSoftmax(channels // heads)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        k, v = self.kv_dwconv(self.kv(y)).chunk(2, dim=1)
        q = self.q_dwconv(self.q(x))
        return self.project_out(attended(q, k, v, self.temperature, self.softmax) * self.attn4)


class PerturbationBlock(nn.Module):
    """Channels reordered as a text code says attend to the plain ones.

    The reference widens with `conv1x1`, reorders the channels and narrows with `conv_out`. Nothing lies between, so an
    order makes one 1x1 convolution of the three: all that a code changes.
    """

    def __init__(self, config: DfpirConfig, level: int) -> None:
        super().__init__()
        channels, centred = config.width(level), config.norm == "WithBias"
        self.linear_layer1 = nn.Linear(config.text, config.text)
        self.linear_layer3 = nn.Linear(config.text, 2 * channels)
        self.conv1x1 = pointwise(channels, 2 * channels, True)
        self.conv_out = pointwise(2 * channels, channels, True)
        self.norm1, self.norm2, self.norm3 = (ChannelNorm(channels, centred) for _ in range(3))
        self.select_attn = CrossAttention(channels, config.heads[level])
        self.ffn = GatedFeedForward(channels, config.hidden[level], config.conv_bias)

    @torch.no_grad()
    def ranked(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """What the channels of text codes [B, text] are ordered by, float64 [B, 2C] from large to small, and the order.

        Place -> channel, of equal ones the lower first. In float64, since neighbours of the order lie 1e-6 apart.
        """
        one, three = self.linear_layer1, self.linear_layer3
        p = F.linear(code.double(), one.weight.double(), one.bias.double())
        p = F.linear(p, three.weight.double(), three.bias.double())
        values, order = p.sort(dim=-1, descending=True, stable=True)
        return values, order

    def folded(self, code: Tensor) -> Tensor:
        """Matrix [C, C] and bias [C] of text codes [B, text], flat: [B, C * C + C]."""
        order = self.ranked(code)[1]
        narrow, wide = (conv.weight[:, :, 0, 0].double() for conv in (self.conv_out, self.conv1x1))
        matrix = narrow @ wide[order]
        bias = self.conv1x1.bias.double()[order] @ narrow.T + self.conv_out.bias.double()
        return torch.cat([matrix.flatten(1), bias], dim=1).to(self.conv_out.weight.dtype)

    def forward(self, x: Tensor, folded: Tensor) -> Tensor:
        """x [B, C, H, W], folded [1 or B, C * C + C] -> the shape of x."""
        channels = x.shape[1]
        matrix, bias = folded[:, : channels**2].unflatten(1, (channels, channels)), folded[:, channels**2 :, None]
        perturbed = (matrix @ x.flatten(2) + bias).reshape(x.shape)
        x = self.select_attn(self.norm1(perturbed), self.norm2(x))
        return x + self.ffn(self.norm3(x))
