"""DPMambaIR in two stages (arXiv 2504.17732): its extractor learns to tell degradations without labels, then is frozen.

Stage 1: a reconstructor has to give the degraded picture again of the clean one and of the embedding of the degraded
one. Only what the clean picture does not tell has to pass through the embedding: kind and strength of the damage. Of
damage that falls at random (noise, rain, snow) L1 asks nothing, its best guess is none: the paper has a perceptual loss
there, whose weights are not at hand. In its place the embedding has to tell the `statistics` of the damage.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.quality import psnr
from export.networks import network_of, save_checkpoint
from export.networks.dpmambair import DPMambaConfig, DPMambaIR
from export.networks.dpmambair.extractor import Extractor, merged
from export.networks.dpmambair.scan import compile_learning
from export.networks.reading import read_checkpoint, write_safetensors
from runtime.errors import CheckpointError
from training.console import console
from training.rgb.draws import Batch, Held
from training.rgb.lesson import gain, mean_by_task, one
from training.rgb.recipe import PhotographRecipe, Reconstructor

SQUARES, FREQUENCIES = 0.5, 0.001
"""What squared errors and those of the spectrum weigh beside L1."""
RINGS, DIRECTIONS, SMALLEST = 5, 4, 1e-3
STATISTICS = RINGS * DIRECTIONS + RINGS + 4 + 3
LONG = 1000
"""Steps of a training that is worth compiling."""
TOLD = 0.1
"""What a statistic that is told wrongly weighs beside L1."""
EXTRACTOR = "dpmambair-extractor"
OF_EXTRACTOR = ("bands", "embedding", "extractor_widths", "cdc_kernels", "plain_kernel", "theta")
"""Keys of the configuration that make an extractor."""


class Residual(nn.Module):
    """Two convolutions beside a way around; scaled and shifted by an embedding where there is one."""

    def __init__(self, width: int, embedding: int = 0) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.told = nn.Linear(embedding, 2 * width) if embedding else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        y = self.first(x)
        if self.told is not None and embedding is not None:
            scale, shift = self.told(embedding)[:, :, None, None].chunk(2, dim=1)
            y = y * (1 + scale) + shift
        return x + self.second(F.gelu(y))


class Learning(nn.Module):
    """An extractor and what it learns by: `forward(degraded, clean) -> degraded again, the damage's statistics`."""

    def __init__(self, config: DPMambaConfig, options: Reconstructor) -> None:
        super().__init__()
        self.extractor = Extractor(config, branched=True)
        self.enter = nn.Conv2d(config.bands, options.width, 3, padding=1)
        self.content = nn.ModuleList(Residual(options.width) for _ in range(2))
        self.blocks = nn.ModuleList(Residual(options.width, config.embedding) for _ in range(options.blocks))
        self.output = nn.Conv2d(options.width, config.bands, 3, padding=1)
        self.told = nn.Linear(config.embedding, STATISTICS)

    def forward(self, degraded: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        embedding, x = self.extractor(degraded), self.enter(clean)
        for block in self.content:
            x = block(x)
        for block in self.blocks:
            x = block(x, embedding)
        return clean + self.output(x), self.told(embedding)


def statistics(damage: Tensor) -> Tensor:
    """What damage [B, 3, H, W] is like wherever it falls, [B, STATISTICS].

    Logarithms of mean amplitudes over RINGS octaves from the finest down, of brightness in DIRECTIONS of each and of
    colour in all; the mean of every colour, of what is added and of what is taken away, and how sparse it is.
    """
    brightness = damage.mean(1)
    spectra = torch.fft.rfft2(torch.cat([brightness[:, None], damage - brightness[:, None]], 1), norm="ortho").abs()
    wedges, rings = _bins(*damage.shape[2:])
    bright = torch.einsum("bhw,khw->bk", spectra[:, 0], wedges)
    colour = torch.einsum("bhw,khw->bk", spectra[:, 1:].mean(1), rings)
    added, taken, size = damage.relu().mean((1, 2, 3)), (-damage).relu().mean((1, 2, 3)), damage.abs().mean((1, 2, 3))
    spread = torch.stack([added, taken, damage.square().mean((1, 2, 3)).sqrt(), size], 1)
    logs = torch.log(torch.cat([bright, colour, spread], 1) + SMALLEST)
    return torch.cat([logs, 10 * damage.mean((2, 3))], 1)


@cache
def _bins(lines: int, samples: int) -> tuple[Tensor, Tensor]:
    """Weights of frequencies [bins, lines, samples // 2 + 1] whose products are means over wedges, and over rings."""
    along, across = torch.fft.fftfreq(lines)[:, None], torch.fft.rfftfreq(samples)[None]
    octave = (-torch.log2(2 * torch.hypot(along, across).clamp(1 / 4096))).floor().clamp(0, RINGS - 1)
    # Angles are those of lines: 0 and pi are one direction, so the first wedge reaches to both sides of it.
    wedge = torch.floor(torch.remainder(torch.atan2(along, across) / torch.pi * DIRECTIONS + 0.5, DIRECTIONS))
    rings = torch.stack([octave == ring for ring in range(RINGS)]).float()
    wedges = torch.stack([(octave == r) & (wedge == w) for r in range(RINGS) for w in range(DIRECTIONS)]).float()
    wedges, rings = (each / each.sum((1, 2), keepdim=True).clamp(1) for each in (wedges, rings))
    return wedges, rings


class ExtractorLesson:
    """Stage 1; see `training.lessons.Lesson`."""

    def __init__(self, recipe: PhotographRecipe, held: Sequence[Held]) -> None:
        self.recipe, self.held, self.columns = recipe, held, tuple(recipe.tasks)

    def begin(self) -> Learning:
        net = Learning(self.recipe.config, self.recipe.reconstructor)
        for module in net.extractor.modules():
            if isinstance(module, nn.Conv2d):
                # Without norms in it, PyTorch's own start fades from layer to layer, and learns three times as slowly.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        with torch.no_grad():
            net.output.weight.zero_()
            net.output.bias.zero_()
        return net

    def learn(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        again, told = net(batch.degraded, batch.clean)
        errors = (again - batch.degraded).abs().mean((1, 2, 3))
        missed = (told - statistics(batch.degraded - batch.clean)).abs().mean()
        return errors.mean() + TOLD * missed, errors.detach(), batch.tasks

    @torch.no_grad()
    def figures(self, net: nn.Module) -> Mapping[str, float]:
        """PSNR over that of the clean picture in dB, by which the best is chosen, and how well kinds are told apart."""
        gains, embeddings = [], []
        for each in self.held:
            again = net(one(each.bad), one(each.clean))[0][0].numpy()
            gains.append(psnr(again, each.bad) - psnr(each.clean, each.bad))
            embeddings.append(net.extractor(one(each.bad))[0].numpy())
        made = mean_by_task(self.held, gains)
        told = told_apart(np.stack(embeddings), [each.task for each in self.held])
        return {**made, "told apart": told, "mean": float(np.mean(list(made.values())))}

    def write(self, net: nn.Module, file: Path, about: str) -> Path:
        """Of the extractor alone: what it was trained by is thrown away."""
        assert isinstance(net, Learning)
        state = {f"extractor.{key}": value for key, value in net.extractor.state_dict().items()}
        metadata = {"architecture": EXTRACTOR, "configuration": self.recipe.config.as_dict(), "about": about}
        return write_safetensors(file, state, metadata)


def told_apart(embeddings: np.ndarray, tasks: Sequence[str]) -> float:
    """Share of embeddings [N, E] that lie nearest to the mean of their own kind, each left out of its mean."""
    kinds = {kind: np.array([task == kind for task in tasks]) for kind in dict.fromkeys(tasks)}
    right = 0
    for index, task in enumerate(tasks):
        left = np.arange(len(tasks)) != index
        others = {kind: embeddings[own & left] for kind, own in kinds.items()}
        away = {kind: np.linalg.norm(embeddings[index] - of.mean(0)) for kind, of in others.items() if len(of)}
        right += min(away, key=lambda kind: away[kind]) == task
    return right / len(tasks)


def read_extractor(file: Path, config: DPMambaConfig | None = None) -> Extractor:
    """The extractor of a run of stage 1, merged and frozen, in eval mode.

    Raises:
        CheckpointError: it is none, or not that of the configuration.
    """
    content = read_checkpoint(file)
    if content.architecture != EXTRACTOR:
        raise CheckpointError(
            "is no extractor", file=file, key="architecture", value=content.architecture, remedy="train stage 1 first"
        )
    theirs = DPMambaConfig.from_dict(content.given)
    for key in OF_EXTRACTOR if config else ():
        own, told = getattr(config, key), getattr(theirs, key)
        if own != told:
            raise CheckpointError(
                "is another extractor than the recipe's", file=file, key=key, value=told, remedy=f"it says {own}"
            )
    extractor = Extractor(theirs, branched=True)
    extractor.load_state_dict({key.removeprefix("extractor."): value for key, value in content.tensors.items()})
    return merged(extractor, theirs).eval().requires_grad_(False)


class RestorationLesson:
    """Stage 2; see `training.lessons.Lesson`."""

    def __init__(self, recipe: PhotographRecipe, held: Sequence[Held], extractor: Extractor) -> None:
        self.recipe, self.held, self.extractor, self.columns = recipe, held, extractor, tuple(recipe.tasks)

    def begin(self) -> DPMambaIR:
        """Begins with nothing to add to the picture; the extractor is frozen."""
        if self.recipe.optimiser.steps >= LONG and shutil.which("g++"):
            compile_learning()
            console.print("compiling scans that learn: the first step takes minutes")
        net = DPMambaIR(self.recipe.config)
        net.extractor.load_state_dict(self.extractor.state_dict())
        net.extractor.requires_grad_(False)
        with torch.no_grad():
            net.output.weight.zero_()
        return net

    def restored(self, net: nn.Module, frame: Tensor) -> Tensor:
        """As the embedding says, or without one where the recipe tries what it is worth."""
        with torch.no_grad():
            embedding = net.extractor(frame)
        return net(frame, embedding if self.recipe.modulated else torch.zeros_like(embedding))

    def learn(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        restored = self.restored(net, batch.degraded)
        errors = (restored - batch.clean).abs().mean((1, 2, 3))
        return loss(restored, batch.clean), errors.detach(), batch.tasks

    @torch.no_grad()
    def figures(self, net: nn.Module) -> Mapping[str, float]:
        """Gain of every task in dB."""
        gains = [gain(each, self.restored(net, one(each.bad))[0].numpy()) for each in self.held]
        made = mean_by_task(self.held, gains)
        return {**made, "mean": float(np.mean(list(made.values())))}

    def write(self, net: nn.Module, file: Path, about: str) -> Path:
        return save_checkpoint(network_of(net), file, about=about, half=True)


def loss(restored: Tensor, clean: Tensor) -> Tensor:
    """L1 + 0.5 L2 + 0.001 of the mean absolute difference of spectra, real and imaginary parts."""
    difference = restored - clean
    spectrum: Any = torch.view_as_real(torch.fft.fft2(difference))
    return difference.abs().mean() + SQUARES * (difference**2).mean() + FREQUENCIES * spectrum.abs().mean()
