"""DAMP in torch, equal to the public reference key for key and number for number (routing noise off)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import CubeError

from .attention import relative_position_index
from .blocks import DecoderBlock, EncoderBlock, Router
from .config import LEVELS, PROMPT_HIDDEN, SIZE_MULTIPLE, DampConfig

SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
DEGRADATION_CLASSES = 5


def sobel_kernels() -> dict[str, Tensor]:
    """The frozen kernels of the reference's gradient branch, [1, 1, 3, 3] each."""
    x = torch.tensor(SOBEL_X)
    return {"sobel_x": x.reshape(1, 1, 3, 3), "sobel_y": x.T.reshape(1, 1, 3, 3).contiguous()}


class Group(nn.Module):
    """Blocks of one level, under `layers`."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x)
        return x


class PromptEncoder(nn.Module):
    """Raw metrics [B, M] to the prompt embedding [B, D].

    With the reference's fifteen metrics it also holds the reference's frozen Sobel kernels and its classifier head;
    neither takes part in a restoration.
    """

    def __init__(self, config: DampConfig) -> None:
        super().__init__()
        hidden = PROMPT_HIDDEN
        self.feature_encoder = nn.Module()
        self.feature_encoder.encoder = nn.Sequential(
            nn.Linear(config.metrics, hidden),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(hidden, config.embedding),
            nn.LayerNorm(config.embedding),
        )
        if config.metric_set == "reference15":
            self.grad_branch = nn.Module()
            for name, kernel in sobel_kernels().items():
                conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
                conv.weight = nn.Parameter(kernel, requires_grad=False)
                setattr(self.grad_branch, name, conv)
            self.cls = nn.Module()
            self.cls.classifier = nn.Sequential(
                nn.Linear(config.embedding, 32),
                nn.ReLU(),
                nn.Linear(32, 16),
                nn.ReLU(),
                nn.Linear(16, DEGRADATION_CLASSES),
            )

    def forward(self, metrics: Tensor) -> Tensor:
        return self.feature_encoder.encoder(metrics)


class Damp(nn.Module):
    """The U-Net: three encoder levels, a latent level, three decoder stages whose mixtures the prompt gates.

    `forward(frame [B, bands, H, W], metrics [B, M]) -> (restored [B, bands, H, W], gates [B, layers, experts])`;
    H and W are multiples of 64. Gates are in execution order and zero where an expert was not chosen.
    """

    def __init__(self, config: DampConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(config.bands, config.dim, 3, padding=1, bias=False)
        self.enc = nn.ModuleList()
        for level in range(LEVELS - 1):
            blocks = [EncoderBlock(width(level), heads[level], config) for _ in range(config.encoder_blocks[level])]
            down = nn.Module()
            down.body = nn.Sequential(
                nn.Conv2d(width(level), width(level) // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)
            )
            self.enc.append(nn.ModuleList([Group(blocks), down]))
        latent = LEVELS - 1
        self.latent = Group(
            [EncoderBlock(width(latent), heads[latent], config) for _ in range(config.encoder_blocks[latent])]
        )
        self.dep = PromptEncoder(config)
        self.dec = nn.ModuleList()
        for level in reversed(range(LEVELS - 1)):
            up = nn.Module()
            up.body = nn.ConvTranspose2d(width(level + 1), width(level), 2, stride=2)
            merge = nn.Conv2d(2 * width(level), width(level), 1, bias=False)
            blocks = [DecoderBlock(width(level), heads[level], config) for _ in range(config.decoder_blocks[level])]
            self.dec.append(nn.ModuleList([up, merge, Group(blocks)]))
        self.refinement = Group([EncoderBlock(config.dim, heads[0], config) for _ in range(config.refinement_blocks)])
        self.output = nn.Conv2d(config.dim, config.bands, 3, padding=1, bias=False)

    def forward(self, frame: Tensor, metrics: Tensor) -> tuple[Tensor, Tensor]:
        return self.routed(frame, metrics)[:2]

    def routed(self, frame: Tensor, metrics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward`, and the probabilities [B, layers, experts] that the gates come from."""
        if frame.shape[-2] % SIZE_MULTIPLE or frame.shape[-1] % SIZE_MULTIPLE:
            raise CubeError(
                "the network does not take frames of this size",
                key="frame",
                value=tuple(frame.shape),
                remedy=f"lines and samples are multiples of {SIZE_MULTIPLE}",
            )
        embedding = self.dep(metrics)
        x = self.patch_embed.proj(frame)
        skips = []
        for blocks, down in self.enc:
            x = blocks(x)
            skips.append(x)
            x = down.body(x)
        x = self.latent(x)
        gates, probabilities = [], []
        for up, merge, blocks in self.dec:
            x = merge(torch.cat([up.body(x), skips.pop()], dim=1))
            for block in blocks.layers:
                x, chosen, p = block(x, embedding)
                gates.append(chosen)
                probabilities.append(p)
        x = self.refinement(x)
        empty = frame.new_zeros((len(frame), 0, self.config.experts))
        both = (torch.stack(each, 1) if each else empty for each in (gates, probabilities))
        return self.output(x) + frame, *both


def frozen_tables(keys: Iterable[str]) -> dict[str, Tensor]:
    """{key: tensor} of what no training changes among a state dict's keys: position indices and Sobel kernels."""
    kernels = {f"dep.grad_branch.{name}.weight": kernel for name, kernel in sobel_kernels().items()}
    indices = {k: relative_position_index() for k in keys if k.endswith("relative_position_index")}
    return indices | kernels


def balances(net: Damp) -> NDArray[np.float64] | None:
    """Share of the spatial branch of every expert, float64 [layers, experts]; None without mixtures."""
    layers = [block.DAMoE.adapter_spaspe for _, _, blocks in net.dec for block in blocks.layers]
    shares = [[torch.sigmoid(expert.alpha).item() for (expert,) in layer.experts] for layer in layers]
    return np.array(shares) if shares else None


@contextmanager
def routers(net: Damp) -> Iterator[list[Callable[[Tensor], Tensor]]]:
    """A list that fills, while the network runs on one frame, with what each of its routers makes of that frame.

    Each is metrics [B, M] -> probabilities [B, experts]; what mixtures before it make of other metrics is not in them.
    """
    seen: list[Callable[[Tensor], Tensor]] = []

    def keep(router: Router, given: tuple[Tensor, Tensor], _: Tensor) -> None:
        pooled = given[0].mean(dim=(2, 3), keepdim=True)
        seen.append(lambda metrics: router.probabilities(pooled.expand(len(metrics), -1, -1, -1), net.dep(metrics)))

    hooks = [m.register_forward_hook(keep) for m in net.modules() if isinstance(m, Router)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
