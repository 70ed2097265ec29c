"""The static form of DAMP: one frame in, the same arithmetic, no noise and no control flow that depends on data.

All experts run side by side as the heads of one attention and are weighted by their gates (zero unless chosen), so one
graph serves every choice. What does not depend on the input is folded into constants: logit scale, position bias,
lambda, the gains of norms before linear layers.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .attention import L2_EPS, LAMBDA_INITIAL, NORM_EPS, ChannelNorm, SpatialAttention, WindowAttention
from .blocks import (
    DecoderBlock,
    DegradationAwareMixture,
    EncoderBlock,
    GatedFeedForward,
    Router,
    SpatialSpectralAdapter,
)
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
        x = x.index_select(axis, torch.roll(torch.arange(x.shape[axis], device=x.device), shift))
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


class StaticRouter(nn.Module):
    """`Router` for one frame: gates [1, experts] by TopK and comparison, without scatter."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router
        self.register_buffer("places", torch.arange(router.experts))

    def forward(self, pooled: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pooled [1, C] (means of the features), embedding [1, D] -> gates [1, experts], and where they are not zero.

        The latter are the gates and the numbers of the chosen experts, [1, top-k] each; all in order where all run.
        """
        p = self.router.probabilities(pooled[:, :, None, None], embedding)
        if self.router.top_k == self.router.experts:
            return p, p, self.places[None]
        values, chosen = p.topk(self.router.top_k, dim=-1)
        return p * (chosen[:, :, None] == self.places).to(p.dtype).sum(dim=1), values, chosen


class SpectralMatrix(nn.Module):
    """What the spectral branches and shortcuts of adapters do to a pixel, as one matrix made for each frame.

    An adapter adds diag(w) M x + x to its spatial branch, where w are its band weights of this frame and M its 1x1
    convolution: linear once w and the gates are known.
    """

    def __init__(self, modules: Sequence[SpatialSpectralAdapter]) -> None:
        super().__init__()
        shares = torch.sigmoid(torch.stack([m.alpha.detach() for m in modules]))
        mixes = torch.stack([m.proj_spe.weight.detach()[:, :, 0, 0] for m in modules])
        self.register_buffer("mixes", mixes)
        self.register_buffer("stacked", mixes.reshape(-1, mixes.shape[-1]).T.contiguous())
        self.register_buffer("identity", torch.eye(mixes.shape[1], dtype=mixes.dtype))
        self.register_buffer("shares", 1 - shares[:, None])
        self.kernels = nn.Parameter(torch.cat([m.body_spe.conv.weight.detach() for m in modules]))

    def forward(self, pooled: Tensor, gates: Tensor | None) -> Tensor:
        """pooled [1, C], the means of x; gates [1, modules], or None for a single adapter without one -> [C, C]."""
        count, c, _ = self.mixes.shape
        means = (pooled @ self.stacked).reshape(1, count, c)
        weights = torch.sigmoid(F.conv1d(means, self.kernels, padding=3, groups=count)) * self.shares
        if gates is None:
            return weights.reshape(c, 1) * self.mixes[0] + self.identity
        weights = gates.reshape(count, 1, 1) * weights.reshape(count, c, 1)
        return (weights * self.mixes).sum(dim=0) + gates.sum() * self.identity


class DenseExperts(nn.Module):
    """All experts of a mixture on [1, H, W, C] at once: their spatial branches are one attention with all their heads.

    A gate of zero silences an expert exactly.
    """

    def __init__(self, experts: Sequence[SpatialSpectralAdapter], before: Tensor, shift: Tensor, after: Tensor) -> None:
        super().__init__()
        self.attention = StaticSpatialAttention([e.body_spa for e in experts])
        self.matrix = SpectralMatrix(experts)
        ends = [_ends(e, before, shift, after) for e in experts]
        enter, bias, leave = (torch.stack(each) for each in zip(*ends, strict=True))
        self.enter, self.enter_bias = nn.Parameter(torch.cat(tuple(enter), dim=1)), nn.Parameter(bias.flatten())
        # [experts, rank, C], so that a gate scales the rows of its expert.
        self.leave = nn.Parameter(leave)

    def forward(
        self, y: Tensor, pooled: Tensor, gates: Tensor, values: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """y and the means of what experts see of it, what the router gives -> [H * W, C] and the spectral [C, C]."""
        c = y.shape[-1]
        a = self.attention(y @ self.enter + self.enter_bias)
        leave = (self.leave * gates.reshape(-1, 1, 1)).reshape(-1, c)
        return a.reshape(y.shape[1] * y.shape[2], -1) @ leave, self.matrix(pooled, gates)


class StaticExpert(nn.Module):
    """One expert of a mixture on [1, H, W, C], between the projections around it."""

    def __init__(self, expert: SpatialSpectralAdapter, before: Tensor, shift: Tensor, after: Tensor) -> None:
        super().__init__()
        self.attention = StaticSpatialAttention([expert.body_spa])
        self.enter, self.enter_bias, self.leave = map(nn.Parameter, _ends(expert, before, shift, after))
        share = 1 - torch.sigmoid(expert.alpha.detach())
        self.register_buffer("share", share.reshape(1))
        self.register_buffer("mix", expert.proj_spe.weight.detach()[:, :, 0, 0].clone())
        self.kernel = nn.Parameter(expert.body_spe.conv.weight.detach())

    def forward(self, y: Tensor, pooled: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseExperts.forward`; the matrix is without the shortcut."""
        c = y.shape[-1]
        means = (self.mix @ pooled.reshape(c, 1)).reshape(1, 1, c)
        weights = torch.sigmoid(F.conv1d(means, self.kernel, padding=3)) * (self.share * gate)
        a = self.attention(y @ self.enter + self.enter_bias).reshape(y.shape[1] * y.shape[2], -1)
        return a @ (self.leave * gate), weights.reshape(c, 1) * self.mix


class GatheredExperts(nn.Module):
    """The chosen experts of a mixture on [1, H, W, C] alone: their weights are gathered by their numbers.

    Static shapes and no control flow; what is computed does not grow with the number of experts.
    """

    def __init__(self, experts: Sequence[SpatialSpectralAdapter], before: Tensor, shift: Tensor, after: Tensor) -> None:
        super().__init__()
        every = [StaticExpert(e, before, shift, after).state_dict() for e in experts]
        self.one = StaticExpert(experts[0], before, shift, after)
        self.names = list(every[0])
        self.weights = nn.ParameterList(nn.Parameter(torch.stack([e[name] for e in every])) for name in self.names)
        self.register_buffer("identity", torch.eye(len(before), dtype=before.dtype))

    def forward(
        self, y: Tensor, pooled: Tensor, gates: Tensor, values: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `DenseExperts.forward`."""
        matrix = values.sum() * self.identity
        features = torch.zeros(())
        for place in range(chosen.shape[1]):
            number = chosen[0, place]
            own = {name: each[number] for name, each in zip(self.names, self.weights, strict=True)}
            a, m = functional_call(self.one, own, (y, pooled, values[0, place]))
            features, matrix = (features + a if place else a), matrix + m
        return features, matrix


def _ends(expert: SpatialSpectralAdapter, before: Tensor, shift: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    """What stands before the spatial branch of an expert, [C, rank] and [rank], and behind it, [rank, C].

    The projections in front of all experts are `before` x + `shift`, those behind them are `after`.
    """
    with torch.no_grad():
        narrow, wide = (expert.proj_spa[i].weight[:, :, 0, 0] for i in (0, 2))
        leave = after @ (torch.sigmoid(expert.alpha) * wide)
        return (narrow @ before).T.contiguous(), narrow @ shift, leave.T.contiguous()


class StaticMixer(nn.Module):
    """`DegradationAwareMixture` on [1, H, W, C]: the experts, the shared adapter, and all that is linear around them.

    Every 1x1 projection is folded into its neighbours: in front of the two spatial branches one product each, behind
    them one product each, and one C x C matrix made for each frame, which holds the spectral branches, the shortcuts
    and the projections around them. The features between are never made; the router gets their means.
    """

    def __init__(self, module: DegradationAwareMixture, gathered: bool) -> None:
        super().__init__()
        mixture, shared = module.adapter_spaspe, module.shared
        self.router, self.shared = StaticRouter(mixture.routing), StaticSpatialAttention([shared.body_spa])
        self.shared_matrix = SpectralMatrix([shared])
        with torch.no_grad():
            channels = mixture.proj_out.weight.shape[0]
            before = [p.weight[:, :, 0, 0] for p in (module.proj[1], module.proj[0])]
            shift = [p.bias for p in (module.proj[1], module.proj[0])]
            after = module.mixer.fuse.weight[:, :, 0, 0].split(channels, dim=1)
            out = after[0] @ mixture.proj_out.weight[:, :, 0, 0]
            enter, self.enter_shared_bias, leave = map(nn.Parameter, _ends(shared, before[1], shift[1], after[1]))
            self.enter_shared, self.leave_shared = enter, leave
            self.register_buffer("out", out)
            self.register_buffer("fuse_experts", after[0].clone())
            self.register_buffer("fuse_shared", after[1].clone())
            self.register_buffer("before_experts", before[0].clone())
            self.register_buffer("before_shared", before[1].clone())
            # Copies: OpenVINO 2026.4 transposes a weight for both its users where one is a Gemm with transB.
            self.pooled_experts, self.pooled_shared = (_product(b) for b in before)
            self.register_buffer("shift_experts", shift[0].clone())
            self.register_buffer("shift_shared", shift[1].clone())
        few = self.router.router.top_k < self.router.router.experts
        kind = GatheredExperts if gathered and few else DenseExperts
        self.experts = kind([e for (e,) in mixture.experts], before[0], shift[0], out)

    def forward(self, y: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """y [1, H, W, C], normed; embedding [1, D] -> ([1, H, W, C], gates [1, experts])."""
        _, h, w, c = y.shape
        pooled = y.mean(dim=(1, 2))
        of_experts = pooled @ self.pooled_experts + self.shift_experts
        of_shared = pooled @ self.pooled_shared + self.shift_shared
        gates, values, chosen = self.router(of_experts, embedding)
        a, spectral = self.experts(y, of_experts, gates, values, chosen)
        through_experts = self.out @ spectral + self.fuse_experts
        through_shared = self.fuse_shared @ self.shared_matrix(of_shared, None)
        matrix = through_experts @ self.before_experts + through_shared @ self.before_shared
        constant = through_experts @ self.shift_experts + through_shared @ self.shift_shared
        s = self.shared(y @ self.enter_shared + self.enter_shared_bias).reshape(h * w, c)
        mixed = a + (s @ self.leave_shared + F.linear(y.reshape(h * w, c), matrix, constant))
        return mixed.reshape(1, h, w, c), gates


def _product(weight: Tensor) -> nn.Parameter:
    """A [out, in] weight as the right side of `x @ weight`."""
    return nn.Parameter(weight.T.contiguous())


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
