"""A DFPIR learns to do what its prompt says: L1, patch and code; a prompt of another task leaves a picture as it is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.networks import network_of, save_checkpoint
from export.networks.dfpir import Dfpir, TextCode
from export.networks.dfpir.prompts import SENTENCES
from training.rgb.draws import Batch, Held
from training.rgb.lesson import gain, mean_by_task, one
from training.rgb.recipe import PhotographRecipe, Prompts

KEPT = "kept"
"""Column of patches that are to stay as they are."""


def codes(prompts: Prompts, numbers: int) -> dict[str, TextCode]:
    """Random numbers for every prompt, its own whatever others there are."""
    made = {}
    for name in prompts.tasks:
        rng = np.random.default_rng([prompts.seed, zlib.crc32(name.encode())])
        made[name] = TextCode(rng.standard_normal(numbers).astype(np.float32), SENTENCES[name])
    return made


class DfpirLesson:
    """See `training.lessons.Lesson`."""

    def __init__(self, recipe: PhotographRecipe, held: Sequence[Held]) -> None:
        assert recipe.prompts is not None
        self.recipe, self.held = recipe, held
        self.tasks = list(recipe.prompts.tasks.values())
        self.mismatched = recipe.prompts.mismatched
        self.columns = (*recipe.tasks, *([KEPT] if self.mismatched else []))
        self.codes = codes(recipe.prompts, recipe.config.text)
        self.stacked = torch.cat([code.tensor for code in self.codes.values()])

    def begin(self) -> Dfpir:
        """Begins with nothing to add to the picture."""
        net = Dfpir(self.recipe.config)
        net.prompts = self.codes
        with torch.no_grad():
            net.output.weight.zero_()
        for block in net.perturbing().values():
            # A sort has no gradient: what orders channels stays as it is drawn.
            block.linear_layer1.requires_grad_(False)
            block.linear_layer3.requires_grad_(False)
        return net

    def said(self, tasks: Sequence[str], step: int) -> np.ndarray:
        """The prompt of every patch [B]: that of its task, or for some patches one of the others."""
        rng = np.random.default_rng([self.recipe.seed, step, len(tasks)])
        own = np.array([self.tasks.index(task) for task in tasks])
        others = (own + rng.integers(1, len(self.tasks), len(own))) % len(self.tasks)
        return np.where(rng.random(len(own)) < self.mismatched, others, own)

    def learn(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        said = self.said(batch.tasks, step)
        right = [self.tasks[prompt] == task for prompt, task in zip(said, batch.tasks, strict=True)]
        wanted = torch.where(torch.tensor(right)[:, None, None, None], batch.clean, batch.degraded)
        kinds, places = np.unique(said, return_inverse=True)
        prompts = net.perturbation(self.stacked[kinds])[places]
        errors = (net(batch.degraded, prompts) - wanted).abs().mean((1, 2, 3))
        columns = tuple(task if fits else KEPT for task, fits in zip(batch.tasks, right, strict=True))
        return errors.mean(), errors.detach(), columns

    @torch.no_grad()
    def figures(self, net: nn.Module) -> Mapping[str, float]:
        """Gain of every task in dB, and what a wrong prompt costs, the mean over all of them."""
        prompts = net.perturbation(self.stacked)
        own, costs = [], []
        for each in self.held:
            frame = one(each.bad).expand(len(prompts), -1, -1, -1)
            gains = [gain(each, restored) for restored in net(frame, prompts).numpy()]
            own.append(gains.pop(self.tasks.index(each.task)))
            costs.append(own[-1] - float(np.mean(gains)))
        gained = mean_by_task(self.held, own)
        wrong = {f"{task} wrong prompt": value for task, value in mean_by_task(self.held, costs).items()}
        return {**gained, **wrong, "mean": float(np.mean(list(gained.values())))}

    def write(self, net: nn.Module, file: Path, about: str) -> Path:
        return save_checkpoint(network_of(net), file, about=about, half=True)
