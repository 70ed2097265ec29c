"""DFPIR in torch, equal to the public reference key for key and number for number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from runtime.errors import CubeError

from ..architecture import Option
from .blocks import Block, KeptSoftmax, PerturbationBlock
from .config import PERTURBED, SIZE_MULTIPLE, DfpirConfig
from .prompts import TextCode


class Down(nn.Module):
    """[B, C, H, W] -> [B, 2C, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Up(nn.Module):
    """[B, C, H, W] -> [B, C/2, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels * 2, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Dfpir(nn.Module):
    """A U-Net of channel attention whose latent features and skips are perturbed as a text code says.

    `forward(frame [B, bands, H, W], perturbation [1 or B, n]) -> restored [B, bands, H, W]`; H and W are multiples of
    8. `perturbation(code)` makes the latter: matrix and bias of every perturbation block, in the order of PERTURBED.

    Attributes:
        config: its hyper-parameters.
        prompts: text codes by name, the first of which is the one it is built with; empty where none was given.
        said: options that it was loaded with.
    """

    def __init__(self, config: DfpirConfig) -> None:
        super().__init__()
        self.config = config
        self.prompts: Mapping[str, TextCode] = {}
        self.said: Mapping[str, Option] = {}
        width, heads, bias = config.width, config.heads, config.conv_bias

        def group(level: int, count: int, heads: int) -> nn.Sequential:
            return nn.Sequential(*(Block(config, level, heads) for _ in range(count)))

        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(config.bands, config.dim, 3, padding=1, bias=False)
        self.encoder_level1, self.encoder_level2, self.encoder_level3, self.latent = (
            group(level, count, heads[level]) for level, count in enumerate(config.blocks)
        )
        self.down1_2, self.down2_3, self.down3_4 = (Down(width(level)) for level in range(3))
        for name, level in PERTURBED.items():
            setattr(self, name, PerturbationBlock(config, level))
        self.up4_3, self.up3_2, self.up2_1 = (Up(width(level)) for level in (3, 2, 1))
        self.reduce_chan_level3 = nn.Conv2d(width(3), width(2), 1, bias=bias)
        self.reduce_chan_level2 = nn.Conv2d(width(2), width(1), 1, bias=bias)
        self.decoder_level3 = group(2, config.blocks[2], heads[2])
        self.decoder_level2 = group(1, config.blocks[1], heads[1])
        # The last stage keeps both halves of what it was given.
        self.decoder_level1 = group(1, config.blocks[0], heads[0])
        self.refinement = group(1, config.refinement_blocks, heads[0])
        self.output = nn.Conv2d(width(1), config.bands, 3, padding=1, bias=bias)

    def perturbing(self) -> dict[str, PerturbationBlock]:
        """The perturbation blocks by name, in the order of the prompt."""
        return {name: self.get_submodule(name) for name in PERTURBED}

    def perturbation(self, code: Tensor) -> Tensor:
        """The prompt [B, n] of text codes [B, text]. Gradients reach the convolutions, not what orders channels."""
        return torch.cat([block.folded(code) for block in self.perturbing().values()], dim=1)

    def forward(self, frame: Tensor, perturbation: Tensor) -> Tensor:
        if frame.shape[-2] % SIZE_MULTIPLE or frame.shape[-1] % SIZE_MULTIPLE:
            raise CubeError(
                "the network does not take frames of this size",
                key="frame",
                value=tuple(frame.shape),
                remedy=f"lines and samples are multiples of {SIZE_MULTIPLE}",
            )
        return run(self, frame, perturbation.split(self.config.perturbation, dim=1))


def run(net: nn.Module, frame: Tensor, parts: tuple[object, ...]) -> Tensor:
    """The way of a frame through a network, or its static form, whose parts have these names.

    `parts` are what the perturbation blocks take beside their features.
    """
    latent, third, second, first = parts
    e1 = net.encoder_level1(net.patch_embed.proj(frame))
    e2 = net.encoder_level2(net.down1_2(e1))
    e3 = net.encoder_level3(net.down2_3(e2))
    x = net.latent(net.down3_4(e3))
    x = net.up4_3(net.latent_shuffle_channel(x, latent))
    x = net.reduce_chan_level3(torch.cat([x, net.encoder_shuffle_channel3(e3, third)], dim=1))
    x = net.up3_2(net.decoder_level3(x))
    x = net.reduce_chan_level2(torch.cat([x, net.encoder_shuffle_channel2(e2, second)], dim=1))
    x = net.up2_1(net.decoder_level2(x))
    x = net.decoder_level1(torch.cat([x, net.encoder_shuffle_channel1(e1, first)], dim=1))
    return net.output(net.refinement(x)) + frame


@contextmanager
def gaps(net: nn.Module) -> Iterator[list[float]]:
    """A list that fills, while the network runs, with the smallest gap of each of its masks.

    A gap is what lies between the last score of a row that is kept and the first that is dropped: two of about the
    size of rounding may change places from one engine to another.
    """
    seen: list[float] = []

    def keep(softmax: KeptSoftmax, given: tuple[Tensor], _: Tensor) -> None:
        last, first = softmax.border(given[0])
        seen.append(float((last - first).min()))

    hooks = [m.register_forward_hook(keep) for m in net.modules() if isinstance(m, KeptSoftmax)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def smallest_gap(net: nn.Module, frame: Tensor, perturbation: Tensor) -> float:
    """The smallest gap of all masks for these frames [B, bands, H, W]; see `gaps`."""
    with gaps(net) as seen, torch.inference_mode():
        net(frame, perturbation)
    return min(seen)
