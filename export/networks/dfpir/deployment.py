"""The static form of DFPIR: one frame and the prompt's matrices in, the same arithmetic.

No order, no text code and no gather of channels: what a code changes comes in as numbers. Gains and biases of norms are
folded into the 1x1 convolution that follows, which is exact, as the depthwise 3x3 behind it pads zeros either way; the
factor of the masked attention into the 1x1 behind it. Parts are called as the network's are.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import (
    L2_EPS,
    NORM_EPS,
    Attention,
    Block,
    ChannelNorm,
    CrossAttention,
    GatedFeedForward,
    KeptSoftmax,
    PerturbationBlock,
)
from .config import PERTURBED
from .network import Dfpir, run

DROPPED = -1e4
"""In place of minus infinity, which a range search or a rewriter would trip over: the exponential is zero as well."""


class StaticNorm(nn.Module):
    """`ChannelNorm` on [1, C, H, W] without gain and bias: a LayerNormalization between two Transposes.

    Written out over the channels it has four nodes more and the same accuracy in ONNX Runtime.
    """

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.centred = norm.body.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        if self.centred:
            return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=NORM_EPS).permute(0, 3, 1, 2)
        centred = x - x.mean(dim=1, keepdim=True)
        return x / torch.sqrt((centred * centred).mean(dim=1, keepdim=True) + NORM_EPS)


def convolution(weight: Tensor, bias: Tensor | None, like: nn.Conv2d) -> nn.Conv2d:
    """A convolution with these weights, and padding as another has; depthwise where that is."""
    groups = 1 if like.groups == 1 else len(weight)
    with torch.device("meta"):
        made = nn.Conv2d(
            weight.shape[1] * groups, len(weight), like.kernel_size, padding=like.padding, groups=groups,
            bias=bias is not None,
        )  # fmt: skip
    made.weight = nn.Parameter(weight.detach())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach())
    return made


def _half(conv: nn.Conv2d, half: int) -> nn.Conv2d:
    """A convolution that gives the first (0) or second half (1) of the channels."""
    return convolution(conv.weight.chunk(2)[half], None if conv.bias is None else conv.bias.chunk(2)[half], conv)


@torch.no_grad()
def folded(norm: ChannelNorm, conv: nn.Conv2d) -> nn.Conv2d:
    """A 1x1 convolution with the gain and bias of the norm before it; summed in float64."""
    weight, bias, kind = conv.weight.double(), conv.bias, conv.weight.dtype
    if norm.body.bias is not None:
        shift = weight[:, :, 0, 0] @ norm.body.bias.double()
        bias = (shift if bias is None else shift + bias.double()).to(kind)
    return convolution((weight * norm.body.weight.double()[:, None, None]).to(kind), bias, conv)


def unit(x: Tensor) -> Tensor:
    """Rows of length one; divided before the product, in which FP16 would overflow."""
    # clamp survives the exporter's optimiser, an added epsilon of 1e-12 would not.
    return x / torch.sqrt((x * x).sum(dim=-1, keepdim=True)).clamp(min=L2_EPS)


class StaticAttention(nn.Module):
    """Norm and `Attention` on [1, C, H, W]."""

    def __init__(self, norm: ChannelNorm, module: Attention) -> None:
        super().__init__()
        self.qkv, self.qkv_dwconv, self.project_out = folded(norm, module.qkv), module.qkv_dwconv, module.project_out
        self.register_buffer("temperature", module.temperature.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        heads, shape = len(self.temperature), x.shape
        x = self.qkv_dwconv(self.qkv(x)).reshape(3 * heads, shape[1] // heads, shape[2] * shape[3])
        qk, v = x.split([2 * heads, heads])
        q, k = unit(qk).split(heads)
        p = torch.softmax(q @ k.transpose(1, 2) * self.temperature, dim=-1)
        return self.project_out((p @ v).reshape(shape))


class StaticFeedForward(nn.Module):
    """Norm and `GatedFeedForward` on [1, C, H, W].

    Its two halves are convolutions of their own from the start: splitting their common result would copy it.
    """

    def __init__(self, norm: ChannelNorm, module: GatedFeedForward) -> None:
        super().__init__()
        wide, self.project_out = folded(norm, module.project_in), module.project_out
        self.gate, self.value = (
            nn.Sequential(*(_half(conv, half) for conv in (wide, module.dwconv))) for half in (0, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(F.gelu(self.gate(x)) * self.value(x))


class StaticBlock(nn.Module):
    """`Block` on [1, C, H, W]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2 = StaticNorm(block.norm1), StaticNorm(block.norm2)
        self.attn, self.ffn = StaticAttention(block.norm1, block.attn), StaticFeedForward(block.norm2, block.ffn)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class StaticSoftmax(nn.Module):
    """`KeptSoftmax` without scatter: what lies below the border is dropped by a comparison."""

    def __init__(self, module: KeptSoftmax) -> None:
        super().__init__()
        self.least = module.dropped + 1

    def forward(self, scores: Tensor) -> Tensor:
        border = scores.topk(self.least, dim=-1, largest=False).values[..., -1:]
        return torch.where(scores >= border, scores, DROPPED).softmax(dim=-1)


class StaticCrossAttention(nn.Module):
    """Norms and `CrossAttention` on two [1, C, H, W]."""

    def __init__(self, norm_q: ChannelNorm, norm_kv: ChannelNorm, module: CrossAttention) -> None:
        super().__init__()
        self.q, self.q_dwconv = folded(norm_q, module.q), module.q_dwconv
        self.kv, self.kv_dwconv = folded(norm_kv, module.kv), module.kv_dwconv
        out, factor = module.project_out, module.attn4.detach()
        self.project_out = convolution(out.weight * factor, out.bias, out)
        self.softmax = StaticSoftmax(module.softmax)
        self.register_buffer("temperature", module.temperature.detach().clone())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        heads, shape = len(self.temperature), x.shape
        inner = shape[1] // heads, shape[2] * shape[3]
        q = unit(self.q_dwconv(self.q(x)).reshape(heads, *inner))
        k, v = self.kv_dwconv(self.kv(y)).reshape(2 * heads, *inner).split(heads)
        p = self.softmax(q @ unit(k).transpose(1, 2) * self.temperature)
        return self.project_out((p @ v).reshape(shape))


class StaticPerturbation(nn.Module):
    """`PerturbationBlock` on [1, C, H, W] and its prompt (matrix [1, C * C], bias [1, C])."""

    def __init__(self, block: PerturbationBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = map(StaticNorm, (block.norm1, block.norm2, block.norm3))
        self.select_attn = StaticCrossAttention(block.norm1, block.norm2, block.select_attn)
        self.ffn = StaticFeedForward(block.norm3, block.ffn)

    def forward(self, x: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        channels, shape = x.shape[1], x.shape
        matrix, bias = told[0].reshape(channels, channels), told[1].reshape(channels, 1)
        perturbed = (matrix @ x.reshape(channels, shape[2] * shape[3]) + bias).reshape(shape)
        x = self.select_attn(self.norm1(perturbed), self.norm2(x))
        return x + self.ffn(self.norm3(x))


class StaticDfpir(nn.Module):
    """`Dfpir` for deployment: `forward(frame [1, bands, H, W], perturbation [1, n]) -> restored`."""

    def __init__(self, net: Dfpir) -> None:
        super().__init__()
        self.sizes = [size for level in PERTURBED.values() for size in (net.config.width(level) ** 2,
                                                                        net.config.width(level))]  # fmt: skip
        for name, part in net.named_children():
            if name in PERTURBED:
                part = StaticPerturbation(part)
            elif isinstance(part, nn.Sequential):
                part = nn.Sequential(*map(StaticBlock, part))
            self.add_module(name, part)

    def forward(self, frame: Tensor, perturbation: Tensor) -> Tensor:
        parts = perturbation.split(self.sizes, dim=1)
        return run(self, frame, tuple(zip(parts[::2], parts[1::2], strict=True)))


def deployment_form(net: Dfpir) -> StaticDfpir:
    """The static form of a trained network, in eval mode; shares what it does not fold."""
    return StaticDfpir(net).eval()


def module_name(part: str) -> str:
    """The network's own module that a part of the static form stands for, such as `latent.0.ffn.dwconv`."""
    return re.sub(r"\.(?:gate|value)\.([01])$", lambda m: (".project_in", ".dwconv")[int(m.group(1))], part)
