"""The static form of DAMP: one frame in, the same arithmetic, no noise and no control flow that depends on data.

One graph serves every choice of experts: all run side by side as the heads of one attention, weighted by their gates
(zero unless chosen), or the weights of the chosen ones are gathered, and they alone run. What does not depend on the
input is folded into constants: logit scale, position bias, lambda, the gains of norms before linear layers.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import NORM_EPS, ChannelNorm
from .blocks import DecoderBlock, EncoderBlock, GatedFeedForward
from .network import Damp
from .static_attention import StaticSpatialAttention, to_first, to_last
from .static_experts import StaticMixer


class StaticNorm(nn.Module):
    """`ChannelNorm` on [1, H, W, C]."""

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.body.weight.detach())
        self.bias = nn.Parameter(norm.body.bias.detach()) if norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, NORM_EPS)
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = (centred * centred).mean(dim=-1, keepdim=True)
        return x / torch.sqrt(variance + NORM_EPS) * self.weight


class StaticFeedForward(nn.Module):
    """Norm and `GatedFeedForward` with its residual, on [1, C, H, W].

    Its two halves are convolutions of their own from the start: splitting their common result would copy it.
    """

    def __init__(self, norm: ChannelNorm, module: GatedFeedForward) -> None:
        super().__init__()
        self.norm, self.narrow = StaticNorm(norm), module.project_out
        self.gate, self.value = (_half(module, side) for side in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = to_first(self.norm(to_last(x)))
        return x + self.narrow(F.gelu(self.gate(y)) * self.value(y))


def _half(module: GatedFeedForward, side: int) -> nn.Sequential:
    """The 1x1 and the depthwise convolution of the gate (side 0) or of the value (side 1)."""
    wide, deep = module.project_in, module.dwconv
    rows = slice(side * len(wide.weight) // 2, (side + 1) * len(wide.weight) // 2)
    made = []
    for conv, channels, groups in ((wide, wide.in_channels, 1), (deep, len(wide.weight) // 2, len(wide.weight) // 2)):
        half = nn.Conv2d(
            channels, len(wide.weight) // 2, conv.kernel_size, padding=conv.padding, groups=groups,
            bias=conv.bias is not None, dtype=conv.weight.dtype,
        )  # fmt: skip
        half.weight = nn.Parameter(conv.weight[rows].detach())
        if conv.bias is not None:
            half.bias = nn.Parameter(conv.bias[rows].detach())
        made.append(half)
    return nn.Sequential(*made)


class StaticEncoderBlock(nn.Module):
    """`EncoderBlock` on [1, C, H, W]."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        self.norm, self.mixer = StaticNorm(block.norms[0]), StaticSpatialAttention([block.mixer])
        self.ffn = StaticFeedForward(block.norms[1], block.ffn)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(x + to_first(self.mixer(self.norm(to_last(x)))))


class StaticDecoderBlock(nn.Module):
    """`DecoderBlock` on [1, C, H, W]."""

    def __init__(self, block: DecoderBlock, gathered: bool) -> None:
        super().__init__()
        self.norm, self.mixer = StaticNorm(block.norms[0]), StaticMixer(block.DAMoE, gathered)
        self.ffn = StaticFeedForward(block.norms[1], block.ffn)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        mixed, gates = self.mixer(self.norm(to_last(x)), embedding)
        return self.ffn(x + to_first(mixed)), gates


class StaticDamp(nn.Module):
    """`Damp` for deployment: `forward(frame [1, C, H, W], metrics [1, M]) -> (restored, gates [layers, experts])`.

    Without mixtures there are no gates.
    """

    def __init__(self, net: Damp, gathered: bool) -> None:
        super().__init__()
        self.prompt, self.patch_embed, self.output = net.dep, net.patch_embed.proj, net.output
        self.encoder = nn.ModuleList(
            nn.ModuleList([nn.Sequential(*map(StaticEncoderBlock, group.layers)), down.body]) for group, down in net.enc
        )
        self.latent = nn.Sequential(*map(StaticEncoderBlock, net.latent.layers))
        self.decoder = nn.ModuleList(
            nn.ModuleList([up.body, merge, nn.ModuleList(StaticDecoderBlock(b, gathered) for b in group.layers)])
            for up, merge, group in net.dec
        )
        self.refinement = nn.Sequential(*map(StaticEncoderBlock, net.refinement.layers))

    def forward(self, frame: Tensor, metrics: Tensor) -> tuple[Tensor, ...]:
        embedding = self.prompt(metrics)
        x = self.patch_embed(frame)
        skips = []
        for blocks, down in self.encoder:
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.latent(x)
        gates = []
        for up, merge, blocks in self.decoder:
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
            for block in blocks:
                x, chosen = block(x, embedding)
                gates.append(chosen)
        restored = self.output(self.refinement(x)) + frame
        return (restored, torch.cat(gates)) if gates else (restored,)


def deployment_form(net: Damp, gathered: bool = False) -> StaticDamp:
    """The static form of a trained network, in eval mode; shares what it does not fold.

    Of the experts all run and are weighted by their gates, or the weights of the chosen ones are gathered.
    """
    return StaticDamp(net, gathered).eval()


_NAMES = (
    (r"^prompt\b", "dep"),
    (r"^patch_embed$", "patch_embed.proj"),
    (r"^encoder\.(\d+)\.0\.(\d+)", r"enc.\1.0.layers.\2"),
    (r"^encoder\.(\d+)\.1", r"enc.\1.1.body"),
    (r"^(latent|refinement)\.(\d+)", r"\1.layers.\2"),
    (r"^decoder\.(\d+)\.0", r"dec.\1.0.body"),
    (r"^decoder\.(\d+)\.1", r"dec.\1.1"),
    (r"^decoder\.(\d+)\.2\.(\d+)", r"dec.\1.2.layers.\2"),
    (r"^(dec.*?)\.mixer\.experts\.matrix", r"\1.DAMoE.adapter_spaspe"),
    (r"^(dec.*?)\.mixer\.experts(\.one)?(\.attention)?", r"\1.DAMoE.adapter_spaspe.experts"),
    (r"^(dec.*?)\.mixer\.router(\.router)?", r"\1.DAMoE.adapter_spaspe.routing"),
    (r"^(dec.*?)\.mixer\.shared(_matrix)?", r"\1.DAMoE.shared"),
    (r"^(dec.*?)\.mixer\b", r"\1.DAMoE"),
    (r"\.norm$", ".norms.0"),
    (r"\.ffn\.norm(s\.0)?$", ".norms.1"),
)
"""Where a part of the static form comes from: pattern of its name, and the module of the network."""


def module_name(part: str) -> str:
    """The network's own module that a part of the static form stands for, such as `dec.1.2.layers.0.DAMoE`."""
    for pattern, name in _NAMES:
        part = re.sub(pattern, name, part)
    return part
