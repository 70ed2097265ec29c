"""The static form of DAMP: one frame in, the same arithmetic, no noise and no control flow that depends on data.

All experts run side by side as the heads of one attention and are weighted by their gates (zero unless chosen), so one
graph serves every choice. What does not depend on the input is folded into constants: logit scale, position bias,
lambda, the gains of norms before linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import L2_EPS, LAMBDA_INITIAL, NORM_EPS, ChannelNorm, SpatialAttention, WindowAttention
from .blocks import DecoderBlock, EncoderBlock, ExpertMixture, GatedFeedForward, Router, SpatialSpectralAdapter
from .config import WINDOW
from .network import Damp

TOKENS = WINDOW * WINDOW


def to_last(x: Tensor) -> Tensor:
    """[1, C, H, W] -> [1, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def to_first(x: Tensor) -> Tensor:
    """[1, H, W, C] -> [1, C, H, W]."""
    return x.permute(0, 3, 1, 2)


def rolled(x: Tensor, shift: int) -> Tensor:
    """`torch.roll` of lines and samples of [1, H, W, C] as two Gathers; the exporter makes six nodes of it."""
    for axis in (1, 2):
        x = x.index_select(axis, torch.roll(torch.arange(x.shape[axis]), shift))
    return x


def group_norm_last(x: Tensor, groups: int) -> Tensor:
    """LayerNorm without gain of each group of channels of [1, H, W, groups * C]."""
    if groups == 1:
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    return F.layer_norm(grouped, grouped.shape[-1:], eps=NORM_EPS).reshape(x.shape)


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


class StaticWindowAttention(nn.Module):
    """One or several `WindowAttention` side by side on [1, H, W, groups * C], as one attention with all their heads.

    The norm's gain and bias are folded into q, k and v (block-diagonal over the groups), which are products of their
    own: splitting a common one would copy it. Heads are sorted so that the first heads of all pairs come before the
    second ones.
    """

    def __init__(self, modules: Sequence[WindowAttention]) -> None:
        super().__init__()
        self.shift, self.width = modules[0].shift, modules[0].attn.width
        self.groups, self.pairs = len(modules), len(modules) * modules[0].attn.heads // 2
        attns = [m.attn for m in modules]
        with torch.no_grad():
            heads = torch.arange(2 * self.pairs).reshape(-1, 2).T.flatten()
            rows = (heads[:, None] * self.width + torch.arange(self.width)).flatten()
            for name, order in (("q_proj", rows), ("k_proj", rows), ("v_proj", slice(None))):
                linear = [getattr(a, name) for a in attns]
                gained = [lin.weight * m.norm1.weight for lin, m in zip(linear, modules, strict=True)]
                shifted = [lin.bias + lin.weight @ m.norm1.bias for lin, m in zip(linear, modules, strict=True)]
                weight, bias = torch.block_diag(*gained)[order].T.contiguous(), torch.cat(shifted)[order]
                self.register_parameter(f"{name[0]}_weight", nn.Parameter(weight))
                self.register_parameter(f"{name[0]}_bias", nn.Parameter(bias))
            gains = [(a.diff_norm.weight * (1 - LAMBDA_INITIAL)).repeat(a.heads // 2) for a in attns]
            out = [a.out_proj.weight * gain for a, gain in zip(attns, gains, strict=True)]
            self.out_weight = nn.Parameter(torch.block_diag(*out).T.contiguous())
            self.out_bias = nn.Parameter(torch.cat([a.out_proj.bias for a in attns]))
            scale = torch.cat([a.scale() for a in attns])[heads]
            self.register_buffer("inverse_scale", 1 / scale.reshape(-1, 1))
            self.register_buffer("bias", torch.cat([a.position_bias() for a in attns])[heads])
            differences = [a.difference().expand(a.heads // 2) for a in attns]
            self.register_buffer("difference", torch.cat(differences)[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [1, H, W, groups * C] -> the same shape, without the residual."""
        _, h, w, c = x.shape
        x = group_norm_last(x, self.groups)
        if self.shift:
            x = rolled(x, -self.shift)
        x = x.reshape(h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).transpose(1, 2).reshape(-1, TOKENS, c)
        x = self._attend(x)
        x = x.reshape(h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).transpose(1, 2).reshape(1, h, w, c)
        return rolled(x, self.shift) if self.shift else x

    def _attend(self, x: Tensor) -> Tensor:
        c, heads = x.shape[-1], 2 * self.pairs
        q, k = (
            (x @ weight + bias).reshape(-1, TOKENS, heads, self.width)
            for weight, bias in ((self.q_weight, self.q_bias), (self.k_weight, self.k_bias))
        )
        v = (x @ self.v_weight + self.v_bias).reshape(-1, TOKENS, self.pairs, 2 * self.width).transpose(1, 2)
        # clamp survives the exporter's optimiser, an added epsilon of 1e-12 would not.
        q_norm, k_norm = (torch.linalg.vector_norm(t, dim=-1, keepdim=True).clamp(min=L2_EPS) for t in (q, k))
        q = (q / (q_norm * self.inverse_scale)).transpose(1, 2)
        k = (k / k_norm).permute(0, 2, 3, 1)
        p = torch.softmax(q @ k + self.bias, dim=-1)
        first, second = p.split(self.pairs, dim=1)
        out = (first - self.difference * second) @ v
        out = out / torch.sqrt((out * out).mean(dim=-1, keepdim=True) + NORM_EPS)
        return out.transpose(1, 2).reshape(-1, TOKENS, c) @ self.out_weight + self.out_bias


class StaticSpatialAttention(nn.Module):
    """One or several `SpatialAttention` side by side on [1, H, W, groups * C]."""

    def __init__(self, modules: Sequence[SpatialAttention]) -> None:
        super().__init__()
        self.groups = len(modules)
        self.wa = StaticWindowAttention([m.wa for m in modules])
        self.swa = StaticWindowAttention([m.swa for m in modules])
        nets = [m.pn.fn.net for m in modules]
        with torch.no_grad():
            widen = [n[0].weight * m.pn.norm.weight[:, None, None] for n, m in zip(nets, modules, strict=True)]
            shift = [n[0].weight[:, :, 0, 0] @ m.pn.norm.bias for n, m in zip(nets, modules, strict=True)]
            self.widen_weight, self.widen_bias = nn.Parameter(torch.cat(widen)), nn.Parameter(torch.cat(shift))
            self.depthwise = nn.Parameter(torch.cat([n[2].weight for n in nets]))
            self.narrow = nn.Parameter(torch.cat([n[4].weight for n in nets]))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.wa(x)
        x = x + self.swa(x)
        y = to_first(group_norm_last(x, self.groups))
        y = F.gelu(F.conv2d(y, self.widen_weight, self.widen_bias, groups=self.groups))
        y = F.gelu(F.conv2d(y, self.depthwise, padding=1, groups=len(self.depthwise)))
        return x + to_last(F.conv2d(y, self.narrow, groups=self.groups))


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


class StaticAdapter(nn.Module):
    """The shared `SpatialSpectralAdapter` with its balance folded into the weights, on [1, C, H, W]."""

    def __init__(self, module: SpatialSpectralAdapter) -> None:
        super().__init__()
        share = torch.sigmoid(module.alpha.detach())
        self.reduce, self.mix, self.gate = module.proj_spa[0], module.proj_spe, module.body_spe.conv
        self.spatial = StaticSpatialAttention([module.body_spa])
        self.expand_weight = nn.Parameter(module.proj_spa[2].weight.detach() * share)
        self.register_buffer("spectral_share", 1 - share)

    def forward(self, x: Tensor) -> Tensor:
        spatial = F.conv2d(to_first(self.spatial(to_last(self.reduce(x)))), self.expand_weight)
        mixed = self.mix(x)
        weight = torch.sigmoid(self.gate(mixed.mean(dim=(2, 3))[:, None]))[0, 0] * self.spectral_share
        return spatial + weight[:, None, None] * mixed + x


class StaticRouter(nn.Module):
    """`Router` for one frame: gates [1, experts] by TopK and comparison, without scatter."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router
        self.register_buffer("places", torch.arange(router.experts))

    def forward(self, pooled: Tensor, embedding: Tensor) -> Tensor:
        """pooled [1, C] (means of the features), embedding [1, D] -> [1, experts]."""
        p = self.router.probabilities(pooled[:, :, None, None], embedding)
        if self.router.top_k == self.router.experts:
            return p
        chosen = p.topk(self.router.top_k, dim=-1).indices
        return p * (chosen[:, :, None] == self.places).to(p.dtype).sum(dim=1)


class StaticMixture(nn.Module):
    """`ExpertMixture` plus its input, all experts at once, on [1, C, H, W].

    The spatial branches are one attention with all experts' heads; a gate of zero silences an expert exactly. The
    spectral branches, the experts' shortcuts and the output projection are linear once gates and band weights are
    known: they become one C x C matrix, made for each frame.
    """

    def __init__(self, mixture: ExpertMixture) -> None:
        super().__init__()
        experts = [expert for (expert,) in mixture.experts]
        self.router = StaticRouter(mixture.routing)
        self.spatial = StaticSpatialAttention([e.body_spa for e in experts])
        with torch.no_grad():
            shares = torch.sigmoid(torch.stack([e.alpha for e in experts]))
            out = mixture.proj_out.weight[:, :, 0, 0]
            self.reduce = nn.Parameter(torch.cat([e.proj_spa[0].weight for e in experts]))
            expand = [s * e.proj_spa[2].weight[:, :, 0, 0] for s, e in zip(shares, experts, strict=True)]
            self.expand = nn.Parameter((out @ torch.cat(expand, dim=1))[:, :, None, None])
            self.register_buffer("out", out)
            self.register_buffer("identity", torch.eye(len(out), dtype=out.dtype))
            self.register_buffer("mixes", torch.stack([e.proj_spe.weight[:, :, 0, 0] for e in experts]))
            self.register_buffer("spectral_shares", 1 - shares[:, None])
            self.band_kernels = nn.Parameter(torch.cat([e.body_spe.conv.weight for e in experts]))

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        _, c, h, w = x.shape
        experts = len(self.mixes)
        pooled = x.mean(dim=(2, 3))
        gates = self.router(pooled, embedding)
        means = (self.mixes @ pooled[0]).reshape(1, experts, c)
        bands = torch.sigmoid(F.conv1d(means, self.band_kernels, padding=3, groups=experts))[0]
        weights = gates.reshape(experts, 1) * self.spectral_shares * bands
        matrix = (weights[:, :, None] * self.mixes).sum(dim=0) + gates.sum() * self.identity
        spectral = (self.out @ matrix + self.identity) @ x.reshape(c, h * w)
        spatial = to_first(self.spatial(to_last(F.conv2d(x, self.reduce))))
        gated = spatial.reshape(experts, -1) * gates.reshape(experts, 1)
        return F.conv2d(gated.reshape(spatial.shape), self.expand) + spectral.reshape(1, c, h, w), gates


class StaticDecoderBlock(nn.Module):
    """`DecoderBlock` on [1, C, H, W]."""

    def __init__(self, block: DecoderBlock) -> None:
        super().__init__()
        moe = block.DAMoE
        self.norm = StaticNorm(block.norms[0])
        self.proj, self.fuse = moe.proj, moe.mixer.fuse
        self.shared, self.mixture = StaticAdapter(moe.shared), StaticMixture(moe.adapter_spaspe)
        self.ffn = StaticFeedForward(block.norms[1], block.ffn)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        y = to_first(self.norm(to_last(x)))
        mixture, gates = self.mixture(self.proj[1](y), embedding)
        return self.ffn(x + self.fuse(torch.cat([mixture, self.shared(self.proj[0](y))], dim=1))), gates


class StaticDamp(nn.Module):
    """`Damp` for deployment: `forward(frame [1, C, H, W], metrics [1, M]) -> (restored, gates [layers, experts])`."""

    def __init__(self, net: Damp) -> None:
        super().__init__()
        self.prompt, self.patch_embed, self.output = net.dep, net.patch_embed.proj, net.output
        self.encoder = nn.ModuleList(
            nn.ModuleList([nn.Sequential(*map(StaticEncoderBlock, group.layers)), down.body]) for group, down in net.enc
        )
        self.latent = nn.Sequential(*map(StaticEncoderBlock, net.latent.layers))
        self.decoder = nn.ModuleList(
            nn.ModuleList([up.body, merge, nn.ModuleList(map(StaticDecoderBlock, group.layers))])
            for up, merge, group in net.dec
        )
        self.refinement = nn.Sequential(*map(StaticEncoderBlock, net.refinement.layers))

    def forward(self, frame: Tensor, metrics: Tensor) -> tuple[Tensor, Tensor]:
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
        return self.output(self.refinement(x)) + frame, torch.cat(gates)


def deployment_form(net: Damp) -> StaticDamp:
    """The static form of a trained network, in eval mode; shares what it does not fold."""
    return StaticDamp(net).eval()
