"""Encoder and decoder blocks: gated feed-forward, spatial-spectral experts and the mixture that the prompt gates."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import ChannelNorm, SpatialAttention
from .config import EXPERT_EXPANSION, EXPERT_HEADS, EXPERT_RANK_DIVISOR, DampConfig

EXPERT_ALPHAS = (4.0, 1.0, -1.0, -4.0)
"""Start of the experts' balance: sigmoid(alpha) is the spatial share, so experts range from spatial to spectral."""
SHARED_ALPHA = 0.9


class GatedFeedForward(nn.Module):
    """1x1 to two halves, depthwise 3x3, gelu(first) * second, 1x1."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class BandGate(nn.Module):
    """Sigmoid weight per channel from a 7-wide convolution along the channel means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> weights [B, C, 1, 1]."""
        means = x.mean(dim=(2, 3))
        return torch.sigmoid(self.conv(means[:, None])[:, 0])[:, :, None, None]


class SpatialSpectralAdapter(nn.Module):
    """Spatial attention at `rank` channels and a band-gated 1x1, balanced by sigmoid(alpha), plus the input."""

    def __init__(self, channels: int, rank: int, heads: int, hidden: int, alpha: float, learned: bool) -> None:
        super().__init__()
        if learned:
            self.alpha = nn.Parameter(torch.tensor(alpha))
        else:
            self.register_buffer("alpha", torch.tensor(alpha))
        # Entry 1 is in the reference's state dict and never runs.
        self.proj_spa = nn.ModuleList(
            [
                nn.Conv2d(channels, rank, 1, bias=False),
                nn.Conv2d(channels, rank, 1, bias=False),
                nn.Conv2d(rank, channels, 1, bias=False),
            ]
        )
        self.proj_spe = nn.Conv2d(channels, channels, 1, bias=False)
        self.body_spa = SpatialAttention(rank, heads, hidden)
        self.body_spe = BandGate()

    def forward(self, x: Tensor) -> Tensor:
        spatial = self.proj_spa[2](self.body_spa(self.proj_spa[0](x)))
        mixed = self.proj_spe(x)
        spectral = self.body_spe(mixed) * mixed
        share = torch.sigmoid(self.alpha)
        return share * spatial + (1 - share) * spectral + x


class Router(nn.Module):
    """Probabilities of the experts from pooled features and the prompt embedding, and the top-k gates.

    The gates are not renormalised: those of the chosen experts sum to less than one unless all are chosen.
    While training, N(0, noise^2) is added to the logits, 1 / experts at first as in the reference, and the features of
    a share `blind` of the cubes are hidden, so that their gates follow the prompt alone; a deployment does neither.
    """

    # Tensors that a training sets, so that a schedule does not compile a network anew; none is in the state dict.
    noise: Tensor | None = None
    blind: Tensor | None = None

    def __init__(self, channels: int, config: DampConfig) -> None:
        super().__init__()
        self.experts, self.top_k = config.experts, config.top_k
        self.gate = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Linear(channels, config.experts, bias=False)])
        if config.gate == "additive":
            self.freq_gate = nn.Linear(config.embedding, config.experts, bias=False)
        else:
            self.mix = nn.Linear(channels + config.embedding, channels)
        self.concat = config.gate == "concat"
        self.register_buffer("complexity", torch.ones(config.experts))

    def probabilities(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, C, H, W], embedding [B, D] -> [B, experts], summing to one."""
        pooled = x.mean(dim=(2, 3))
        if self.training and self.blind is not None:
            pooled = pooled * (torch.rand_like(pooled[:, :1]) >= self.blind)
        if self.concat:
            logits = self.gate[2](F.gelu(self.mix(torch.cat([pooled, embedding], dim=1))))
        else:
            logits = self.gate[2](pooled) + self.freq_gate(embedding)
        if self.training:
            logits = logits + torch.randn_like(logits) * (1 / self.experts if self.noise is None else self.noise)
        return torch.softmax(logits, dim=-1)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Gates [B, experts], zero where an expert was not chosen, and the probabilities they come from."""
        p = self.probabilities(x, embedding)
        values, chosen = p.topk(self.top_k, dim=-1)
        return torch.zeros_like(p).scatter(1, chosen, values), p


class ExpertMixture(nn.Module):
    """Each cube of the batch runs through its own top-k experts.

    `dense` runs every expert for every cube, weighted by its gate: the same numbers and gradients without asking which
    were chosen, for which a GPU would have to be waited for.
    """

    dense = False

    def __init__(self, channels: int, config: DampConfig) -> None:
        super().__init__()
        rank = channels // EXPERT_RANK_DIVISOR
        self.experts = nn.ModuleList(
            nn.ModuleList(
                [SpatialSpectralAdapter(channels, rank, EXPERT_HEADS, rank * EXPERT_EXPANSION, alpha, learned=True)]
            )
            for alpha in EXPERT_ALPHAS[: config.experts]
        )
        self.proj_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.routing = Router(channels, config)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, C, H, W] -> (mixture of the same shape, gates [B, experts], probabilities [B, experts])."""
        gates, p = self.routing(x, embedding)
        # Under autocast softmax is float32 and the features are not.
        weights = gates.to(x.dtype)[..., None, None, None]
        total = torch.zeros_like(x)
        for e, (expert,) in enumerate(self.experts):
            if self.dense:
                total = total + weights[:, e] * expert(x).to(x.dtype)
                continue
            rows = gates[:, e].nonzero()[:, 0]
            if len(rows):
                total = total.index_add(0, rows, weights[rows, e] * expert(x[rows]).to(x.dtype))
        return self.proj_out(total), gates, p


class EncoderBlock(nn.Module):
    """Spatial attention and gated feed-forward, each on normed input with a residual."""

    def __init__(self, channels: int, heads: int, config: DampConfig) -> None:
        super().__init__()
        bias = config.norm == "WithBias"
        self.norms = nn.ModuleList([ChannelNorm(channels, bias), ChannelNorm(channels, bias)])
        self.mixer = SpatialAttention(channels, heads, config.hidden(channels))
        self.ffn = GatedFeedForward(channels, config.hidden(channels), bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norms[0](x))
        return x + self.ffn(self.norms[1](x))


class DegradationAwareMixture(nn.Module):
    """The prompted mixture beside a shared expert, fused by a 1x1.

    While training the shared expert is left out for a share `alone` of the cubes, as dropout leaves out channels.
    """

    alone: Tensor | None = None

    def __init__(self, channels: int, heads: int, config: DampConfig) -> None:
        super().__init__()
        self.proj = nn.ModuleList([nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)])
        self.adapter_spaspe = ExpertMixture(channels, config)
        self.shared = SpatialSpectralAdapter(
            channels, channels, heads, config.hidden(channels), SHARED_ALPHA, learned=False
        )
        self.mixer = nn.Module()
        self.mixer.fuse = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.shared(self.proj[0](x))
        if self.training and self.alone is not None:
            shared = shared * ((torch.rand_like(x[:, :1, :1, :1]) >= self.alone) / (1 - self.alone))
        adapted = self.proj[1](x)
        mixture, gates, p = self.adapter_spaspe(adapted, embedding)
        return self.mixer.fuse(torch.cat([mixture + adapted, shared], dim=1)), gates, p


class DecoderBlock(nn.Module):
    """Prompted mixture and gated feed-forward, each on normed input with a residual."""

    def __init__(self, channels: int, heads: int, config: DampConfig) -> None:
        super().__init__()
        bias = config.norm == "WithBias"
        self.norms = nn.ModuleList([ChannelNorm(channels, bias), ChannelNorm(channels, bias)])
        self.DAMoE = DegradationAwareMixture(channels, heads, config)
        self.ffn = GatedFeedForward(channels, config.hidden(channels), bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, C, H, W] -> (the same shape, gates [B, experts], probabilities [B, experts])."""
        mixed, gates, p = self.DAMoE(self.norms[0](x), embedding)
        x = x + mixed
        return x + self.ffn(self.norms[1](x)), gates, p
