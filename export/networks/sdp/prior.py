"""The parts of a spectral diffusion prior: what estimates it, and what it does to a network's features."""

from collections.abc import Iterator
from itertools import accumulate
from operator import mul

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.arrays import Float32
from runtime.simulation.cassi import BANDS

from ..cassi import Site
from .config import SdpConfig

SHRUNK = 4
"""Lines and samples that the extractor puts into channels."""


def schedule(config: SdpConfig) -> tuple[tuple[float, float], ...]:
    """(p, q) of every step of the reverse chain, from t = T down to 1, in float64.

    `z <- p D(z, c, t) + q z` is the mean of z at t - 1, given z at t and the denoiser's estimate (Ho et al., "Denoising
    Diffusion Probabilistic Models", NeurIPS 2020, eq. 7).
    """
    left = remaining(config)
    steps = [*zip(_betas(config), left[:-1], left[1:], strict=True)]
    return tuple(
        (beta * before**0.5 / (1 - now), (1 - before) * (1 - beta) ** 0.5 / (1 - now))
        for beta, before, now in reversed(steps)
    )


def remaining(config: SdpConfig) -> list[float]:
    """A of t = 0 .. T: the share of the prior's variance that is left in z at t."""
    return [*accumulate((1 - beta for beta in _betas(config)), mul, initial=1.0)]


def _betas(config: SdpConfig) -> list[float]:
    return [float(beta) for beta in np.linspace(config.first_beta, config.last_beta, config.diffusion_steps)]


def noise(seed: int, config: SdpConfig) -> Float32:
    """What the reverse chain starts from, [1, 1, d]."""
    return np.random.default_rng(seed).standard_normal((1, 1, config.latent_dims)).astype(np.float32)


class Extractor(nn.Module):
    """What is to be known of a picture: [B, C, H, W] -> [B, d]; lines and samples are multiples of 4."""

    def __init__(self, config: SdpConfig, channels: int = BANDS) -> None:
        super().__init__()
        width, dims = config.hfe_width, config.latent_dims
        self.first = convolution(SHRUNK**2 * channels, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(width, width), nn.GELU(), convolution(width, width))
            for _ in range(config.hfe_blocks)
        )
        self.last = convolution(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, dims), nn.GELU(), nn.Linear(dims, dims))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(F.pixel_unshuffle(x, SHRUNK)))
        for block in self.blocks:
            x = x + block(x)
        made: Tensor = self.mlp(self.last(x).mean(dim=(2, 3)))
        return made


def convolution(channels: int, width: int) -> nn.Conv2d:
    """A 3x3 convolution at the same size."""
    return nn.Conv2d(channels, width, 3, padding=1)


class Denoiser(nn.Module):
    """The prior [B, d] that noisy numbers [B, d] are of, under a condition [B, d] and at a time in (0, 1]."""

    def __init__(self, config: SdpConfig) -> None:
        super().__init__()
        dims, self.slope = config.latent_dims, config.denoiser_slope
        self.first = nn.Linear(2 * dims + 1, dims)
        self.rest = nn.ModuleList(nn.Linear(dims, dims) for _ in range(config.denoiser_layers))

    def forward(self, z: Tensor, condition: Tensor, time: float) -> Tensor:
        told = torch.full_like(condition[:, :1], time)
        z = self.first(torch.cat([condition, told, z], dim=1))
        for linear in self.rest:
            # None after the last: a prior may be negative.
            z = linear(F.leaky_relu(z, self.slope))
        return z


class Diffusion(nn.Module):
    """The reverse chain, without noise of its own: what it starts from and a condition, both [B, d], to a prior."""

    def __init__(self, config: SdpConfig) -> None:
        super().__init__()
        self.net, self.steps = Denoiser(config), schedule(config)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        for left, (p, q) in zip(range(len(self.steps), 0, -1), self.steps, strict=True):
            estimate = self.net(z, condition, left / len(self.steps))
            # The last step is the estimate itself.
            z = p * estimate + q * z if left > 1 else estimate
        return z


class Injector(nn.Module):
    """A prior [B, d] as what features of some channels are multiplied by and what is added, [B, C, 1, 1] each."""

    def __init__(self, config: SdpConfig, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Linear(config.latent_dims, channels) for _ in range(2))
        for linear in (self.scale, self.shift):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        return (1 + self.scale(prior))[:, :, None, None], self.shift(prior)[:, :, None, None]


def injected(injectors: nn.ModuleList, prior: Tensor, places: str) -> Site:
    """What a prior does to the features at the places of a network, one after the other."""
    vectors: Iterator[tuple[Tensor, Tensor]] = iter([injector(prior) for injector in injectors])

    def site(x: Tensor, place: str) -> Tensor:
        if place != places:
            return x
        scale, shift = next(vectors)
        return x * scale + shift

    return site
