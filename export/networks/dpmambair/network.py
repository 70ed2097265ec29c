"""DPMambaIR in torch, after the paper (arXiv 2504.17732): there is no public code, so no reference to be equal to."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.errors import CubeError

from .config import LEVELS, SIZE_MULTIPLE, DPMambaConfig
from .extractor import Extractor
from .scan import scan

NORM_EPS = 1e-5
SLOWEST, FASTEST = 1e-3, 0.1
"""Between which Delta starts."""


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, NORM_EPS)
        return x.permute(0, 3, 1, 2)


class HighFrequency(nn.Module):
    """x + a (x - its mean over the frame), a learned."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * (x - x.mean((2, 3), keepdim=True))


class FeedForward(nn.Module):
    """1x1 to two halves, depthwise 3x3, gelu(first) * second, 1x1."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class StateSpace(nn.Module):
    """The selective state space model whose Delta, B and C the embedding multiplies."""

    def __init__(self, channels: int, config: DPMambaConfig) -> None:
        super().__init__()
        inner, rank, states = config.inner(channels), config.rank(channels), config.states
        self.config, self.parts = config, (rank, states, states)
        self.in_proj = nn.Conv2d(channels, 2 * inner, 1, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Conv2d(inner, rank + 2 * states, 1, bias=False)
        self.modulation = nn.Linear(config.embedding, config.modulated(channels))
        self.dt_proj = nn.Conv2d(rank, inner, 1)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.norm = ChannelNorm(inner)
        self.out_proj = nn.Conv2d(inner, channels, 1, bias=False)
        with torch.no_grad():
            self.modulation.weight.zero_()
            self.modulation.bias.fill_(1)
            start = torch.exp(torch.empty(inner).uniform_(math.log(SLOWEST), math.log(FASTEST)))
            # Of which softplus is `start`.
            self.dt_proj.bias.copy_(start + torch.log(-torch.expm1(-start)))

    def forward(self, y: Tensor, embedding: Tensor) -> Tensor:
        """y [B, w, H, W], embedding [B, E] -> [B, w, H, W]."""
        u, gate = self.in_proj(y).chunk(2, dim=1)
        u = F.silu(self.conv(u))
        r, b, c = self.x_proj(u).split(self.parts, dim=1)
        alpha = self.modulation(embedding)[:, :, None, None]
        of_delta, of_b, of_c = alpha.split((alpha.shape[1] - 2 * self.config.states, *self.parts[1:]), dim=1)
        s = self.scanned(u, self.delta(r, of_delta), b * of_b, c * of_c) + self.D[:, None, None] * u
        return self.out_proj(self.norm(s) * F.silu(gate))

    def delta(self, r: Tensor, alpha: Tensor) -> Tensor:
        """Delta [B, D, H, W] of r [B, R, H, W] and alpha_Delta, [B, R, 1, 1] or [B, D, 1, 1]."""
        if self.config.modulation == "rank":
            return F.softplus(self.dt_proj(alpha * r))
        bias = self.dt_proj.bias[:, None, None]
        projected = F.conv2d(r, self.dt_proj.weight)
        if self.config.delta == "inside":
            return F.softplus(alpha * projected + bias)
        return alpha * F.softplus(projected + bias)

    def scanned(self, u: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """The scan of [B, D or N, H, W], along rows or columns."""
        turned = self.config.order == "columns"
        inputs = [t.transpose(2, 3) if turned else t for t in (u, delta, b, c)]
        x, delta, b, c = (t.flatten(2) for t in inputs)
        y = scan(x, delta, -self.A_log.exp(), b, c, self.config.discretisation)
        y = y.unflatten(2, inputs[0].shape[2:])
        return y.transpose(2, 3) if turned else y


class Block(nn.Module):
    """State space model and feed-forward part, each behind a norm and beside a scaled way around."""

    def __init__(self, channels: int, config: DPMambaConfig) -> None:
        super().__init__()
        self.norm1, self.ssm = ChannelNorm(channels), StateSpace(channels, config)
        self.norm2, self.ffn = ChannelNorm(channels), FeedForward(channels, config.hidden(channels))
        self.skip1, self.skip2 = (nn.Parameter(torch.ones(channels)) for _ in range(2))
        self.after_ssm = HighFrequency() if config.high_frequency == "after_ssm" else nn.Identity()
        self.before_ffn = HighFrequency() if config.high_frequency == "before_ffn" else nn.Identity()

    def forward(self, z: Tensor, embedding: Tensor) -> Tensor:
        z = self.skip1[:, None, None] * z + self.after_ssm(self.ssm(self.norm1(z), embedding))
        return self.skip2[:, None, None] * z + self.ffn(self.before_ffn(self.norm2(z)))


class Level(nn.Module):
    """Blocks of one width."""

    def __init__(self, channels: int, count: int, config: DPMambaConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, config) for _ in range(count))

    def forward(self, z: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            z = block(z, embedding)
        return z


class DPMambaIR(nn.Module):
    """The U-Net: `forward(frame [B, bands, H, W], embedding [B, E]) -> restored [B, bands, H, W]`.

    H and W are multiples of 8. The embedding is that of `extractor(frame)`, which the forward pass does not call: it is
    of a whole frame where this is of a tile, and it is trained first, then frozen.

    Args:
        config: its hyper-parameters.
        branched: the extractor has its branches, to be trained.
    """

    def __init__(self, config: DPMambaConfig, branched: bool = False) -> None:
        super().__init__()
        self.config = config
        width, latent = config.width, LEVELS - 1
        self.extractor = Extractor(config, branched)
        self.embed = nn.Conv2d(config.bands, config.dim, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(Level(width(i), config.encoder_blocks[i], config) for i in range(latent))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width(i), width(i) // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))
            for i in range(latent)
        )
        self.latent = Level(width(latent), config.encoder_blocks[latent], config)
        # The first level of the decoder keeps what it concatenates: no product follows, and it is twice as wide.
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, 2 * wide, 3, padding=1, bias=False), nn.PixelShuffle(2))
            for wide in map(width, range(1, LEVELS))
        )
        self.merge = nn.ModuleList(
            nn.Conv2d(2 * width(i), width(i), 1, bias=False) if i else nn.Identity() for i in range(latent)
        )
        self.decoder = nn.ModuleList(Level(width(max(i, 1)), config.decoder_blocks[i], config) for i in range(latent))
        self.refinement = Level(width(1), config.refinement_blocks, config)
        self.output = nn.Conv2d(width(1), config.bands, 3, padding=1, bias=False)

    def forward(self, frame: Tensor, embedding: Tensor) -> Tensor:
        if frame.shape[-2] % SIZE_MULTIPLE or frame.shape[-1] % SIZE_MULTIPLE:
            raise CubeError(
                "the network does not take frames of this size",
                key="frame",
                value=tuple(frame.shape),
                remedy=f"lines and samples are multiples of {SIZE_MULTIPLE}",
            )
        z, skips = self.embed(frame), []
        for level, down in zip(self.encoder, self.down, strict=True):
            skips.append(level(z, embedding))
            z = down(skips[-1])
        z = self.latent(z, embedding)
        for i in reversed(range(LEVELS - 1)):
            z = self.merge[i](torch.cat([self.up[i](z), skips[i]], dim=1))
            z = self.decoder[i](z, embedding)
        return self.output(self.refinement(z, embedding)) + frame
