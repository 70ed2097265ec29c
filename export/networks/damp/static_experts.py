"""The mixture of experts of a DAMP block in its static form: all experts at once, or the chosen ones alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .blocks import DegradationAwareMixture, Router, SpatialSpectralAdapter
from .static_attention import StaticSpatialAttention


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
