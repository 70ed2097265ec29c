"""Networks that are not ours, for comparison: trained as a recipe trains a DAMP, on its draws, for its steps, as large.

`unet` is the plain one (Ronneberger et al. 2015), `channel-attention` has the blocks of Restormer (Zamir et al. 2022)
in a U-Net that is no wider behind them than before, one block a level. Neither is told metrics nor has experts; both
restore a difference to the frame. A study names them as variants, see `training.study`; they are trained on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from export.networks.damp import Damp
from runtime.durable import write_bytes
from runtime.errors import ConfigError
from training.data import Batch, Draws
from training.lessons import teach
from training.recipe import LessonRecipe, Recipe
from training.run import softened
from training.train import mean_of, scenes_of
from training.validation import HeldScene, held_scenes, validate

LEVELS = 3
"""A fourth level, as their papers have, would leave fewer channels than bands at so few parameters."""


def widths(width: int) -> list[int]:
    """Channels of each level."""
    return [width << level for level in range(LEVELS)]


class UNet(nn.Module):
    """Two 3x3 convolutions a level, down by maxima, up by transposed convolutions."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        wide = widths(width)
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([bands, *wide], wide, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in wide[-2::-1])
        self.merge = nn.ModuleList(_twice(2 * w, w) for w in wide[-2::-1])
        self.output = nn.Conv2d(width, bands, 3, padding=1, bias=False)

    def forward(self, frame: Tensor) -> Tensor:
        x, skips = frame, list[Tensor]()
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], 1))
        return frame + self.output(x)


def _twice(given: int, made: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.Conv2d(made, made, 3, padding=1), nn.ReLU()
    )


class ChannelAttention(nn.Module):
    """A U-Net with one block of Restormer's attention and feed-forward a level, and one to refine."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        wide = widths(width)
        self.embed = nn.Conv2d(bands, width, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(_Block(w, 1 << level) for level, w in enumerate(wide))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, w // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)) for w in wide[:-1]
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, 2 * w, 3, padding=1, bias=False), nn.PixelShuffle(2)) for w in wide[:0:-1]
        )
        self.merge = nn.ModuleList(nn.Conv2d(2 * w, w, 1, bias=False) for w in wide[-2::-1])
        self.decoder = nn.ModuleList(_Block(w, 1 << level) for level, w in reversed(list(enumerate(wide[:-1]))))
        self.refinement = _Block(width, 1)
        self.output = nn.Conv2d(width, bands, 3, padding=1, bias=False)

    def forward(self, frame: Tensor) -> Tensor:
        x, skips = self.embed(frame), list[Tensor]()
        for block, down in zip(self.encoder, self.down, strict=False):
            skips.append(block(x))
            x = down(skips[-1])
        x = self.encoder[-1](x)
        for up, merge, block in zip(self.up, self.merge, self.decoder, strict=True):
            x = block(merge(torch.cat([up(x), skips.pop()], 1)))
        return frame + self.output(self.refinement(x))


class _Block(nn.Module):
    """Attention across channels and a gated feed-forward, each on normed input with a residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        hidden = int(channels * 2.66)
        self.heads = heads
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        self.norms = nn.ParameterList([torch.ones(channels, 1, 1), torch.ones(channels, 1, 1)])
        self.qkv = _projected(channels, 3 * channels)
        self.attended = nn.Conv2d(channels, channels, 1, bias=False)
        self.gated = _projected(channels, 2 * hidden)
        self.fed = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(_normed(x, self.norms[0])).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        share = (self.scale * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
        x = x + self.attended((share @ v).reshape(b, c, h, w))
        gate, value = self.gated(_normed(x, self.norms[1])).chunk(2, 1)
        return x + self.fed(F.gelu(gate) * value)


def _projected(given: int, made: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(given, made, 1, bias=False), nn.Conv2d(made, made, 3, padding=1, groups=made, bias=False)
    )


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5) * weight


Kind = Literal["unet", "channel-attention"]
RIVALS: Mapping[Kind, Callable[[int, int], nn.Module]] = MappingProxyType(
    {"unet": UNet, "channel-attention": ChannelAttention}
)


class Rival(nn.Module):
    """A rival of a recipe's DAMP, as nearly of its parameters as a width makes it.

    `forward(frame [B, bands, H, W], metrics) -> (restored [B, bands, H, W],)`, whatever the metrics.
    """

    def __init__(self, kind: Kind, recipe: Recipe) -> None:
        super().__init__()
        bands, wanted = recipe.config.bands, parameters(Damp(recipe.config))
        width = next(w for w in range(8, 1 << 16, 2) if parameters(RIVALS[kind](bands, w)) >= wanted)
        self.body = min(
            (RIVALS[kind](bands, w) for w in (width - 2, width)), key=lambda net: abs(parameters(net) - wanted)
        )
        nn.init.zeros_(self.body.output.weight)

    def forward(self, frame: Tensor, metrics: Tensor) -> tuple[Tensor]:
        return (self.body(frame),)


def parameters(net: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


class RivalRecipe(LessonRecipe):
    """A rival's run: which one, and the recipe that it is trained by in place of a DAMP."""

    architecture: Kind
    given: Recipe

    def digest(self) -> str:
        # Its cadence is no part of the recipe's own digest.
        return sha256(f"{self.architecture} {self.given.digest()}".encode()).hexdigest()


class RivalLesson:
    """Restoration by the recipe's loss. Its checkpoints are tensors for no tool but this one."""

    def __init__(self, recipe: RivalRecipe, held: Sequence[HeldScene]) -> None:
        self.recipe, self.held = recipe, held
        self.columns = tuple(recipe.given.tasks)

    def begin(self) -> nn.Module:
        return Rival(self.recipe.architecture, self.recipe.given)

    def learn(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        (restored,) = net(batch.degraded, batch.metrics)
        errors = (restored - batch.clean).abs().mean((1, 2, 3))
        loss = softened(errors, self.recipe.given.loss, step / self.recipe.optimiser.steps)
        return loss, errors.detach(), batch.tasks

    def figures(self, net: nn.Module) -> Mapping[str, float]:
        gains = validate(net, self.held)
        return {**gains, "mean": mean_of(gains, self.recipe.given)}

    def write(self, net: nn.Module, file: Path, about: str) -> Path:
        # PyTorch and safetensors name no error of a full disk.
        write_bytes(file, save(net.state_dict(), {"about": about}))
        return file


def rival_recipe(kind: Kind, recipe: Recipe) -> RivalRecipe:
    """The run of a rival. Raises ConfigError where the DAMP begins with, or is taught by, what a rival cannot have."""
    for key in ("start", "ablate", "teacher"):
        if getattr(recipe, key) is not None:
            raise ConfigError("a rival has no such thing", key=key, remedy="compare DAMPs without it")
    told = recipe.model_dump(include={"name", "seed", "optimiser", "log_every", "validate_every", "save_seconds"})
    return RivalRecipe(architecture=kind, given=recipe, **told)


def train_rival(kind: Kind, recipe: Recipe, data: Path | Sequence[Path], out: Path) -> Path:
    """Train a rival as `training.train.train` does a DAMP, on a CPU; see `training.lessons.teach`."""
    used, held = scenes_of(recipe, data)
    lesson = RivalLesson(rival_recipe(kind, recipe), held_scenes(held, recipe))
    return teach(lesson.recipe, lesson, Draws(recipe, used, torch.device("cpu")), out)


def trained_by(file: Path) -> str:
    """What a rival's checkpoint tells of its recipe."""
    with safe_open(file, "pt") as opened:
        return str(opened.metadata()["about"])
