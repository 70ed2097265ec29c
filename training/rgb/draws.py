"""Patches of photographs: cut, flipped and degraded; every draw follows from seed and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.degradations import DEGRADATIONS
from runtime.arrays import Float32
from runtime.errors import InputError
from training.photographs import SUFFIXES, read_pixels
from training.rgb.recipe import PhotographRecipe

Picture: TypeAlias = NDArray[np.uint8]
TALL = ("haze",)
"""Drawn on the whole height, since what lies at the top is far: within a patch it would be far at the patch's top."""
HELD_SIZE = 128


@dataclass(frozen=True)
class Batch:
    """Degraded and clean patches [B, 3, H, W], and their tasks."""

    degraded: Tensor
    clean: Tensor
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """A held-out photograph, degraded by one task: both [3, lines, samples]."""

    task: str
    bad: Float32
    clean: Float32


def load_pictures(folders: Path | Sequence[Path], size: int) -> dict[str, Picture]:
    """{name: uint8 [3, lines, samples]} of photographs of at least `size` lines and samples, by name.

    Raises:
        InputError: a folder has none of them, or a file that is no photograph.
    """
    found: dict[str, Picture] = {}
    for folder in [folders] if isinstance(folders, Path) else folders:
        paths = [path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise InputError("no photographs", file=folder, key="--data", remedy=f"give folders of {SUFFIXES}")
        pictures = {path.stem: read_pixels(path).transpose(2, 0, 1) for path in paths}
        found |= {name: picture for name, picture in pictures.items() if min(picture.shape[1:]) >= size}
    return dict(sorted(found.items()))


def degraded(
    task: str, clean: Float32, rng: np.random.Generator, severity: Mapping[str, Mapping[str, float]]
) -> Float32:
    """A picture degraded as a recipe says."""
    return DEGRADATIONS[task](clean, rng, **severity.get(task, {}))


class Draws:
    """The batches of a recipe."""

    def __init__(self, recipe: PhotographRecipe, pictures: Mapping[str, Picture]) -> None:
        self.recipe, self._pictures = recipe, list(pictures.values())
        self._names = list(recipe.tasks)
        weights = np.array(list(recipe.tasks.values()))
        self._weights = weights / weights.sum()

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng = np.random.default_rng([self.recipe.seed, step])
        tasks = rng.choice(self._names, self.recipe.patches.count, p=self._weights)
        pairs = [self._pair(str(task), rng) for task in tasks]
        bad, clean = (torch.from_numpy(np.stack(each)) for each in zip(*pairs, strict=True))
        return Batch(bad, clean, tuple(map(str, tasks)))

    def _pair(self, task: str, rng: np.random.Generator) -> tuple[Float32, Float32]:
        """(degraded, clean) [3, size, size]."""
        size, picture = self.recipe.patches.size, self._pictures[rng.integers(len(self._pictures))]
        line, sample = (int(rng.integers(n - size + 1)) for n in picture.shape[1:])
        across, along = rng.random(2) < 0.5
        # Before it is degraded: what falls or lies far does so from the top.
        picture = picture[:, ::-1] if across else picture
        picture = picture[:, :, ::-1] if along else picture
        strip = picture[:, :, sample : sample + size]
        rows = slice(line, line + size)
        if task not in TALL:
            strip, rows = strip[:, rows], slice(None)
        clean = np.ascontiguousarray(strip, np.float32) / np.float32(255)
        bad = degraded(task, clean, rng, self.recipe.severity)
        return bad[:, rows], clean[:, rows]


def held_pictures(recipe: PhotographRecipe, pictures: Mapping[str, Picture], size: int = HELD_SIZE) -> tuple[Held, ...]:
    """The middle of every photograph under every task, the same for a seed."""
    held = []
    for index, task in enumerate(recipe.tasks):
        for place, picture in enumerate(pictures.values()):
            whole = picture.astype(np.float32) / np.float32(255)
            bad = degraded(task, whole, np.random.default_rng([recipe.seed, index, place]), recipe.severity)
            held.append(Held(task, middle(bad, size), middle(whole, size)))
    return tuple(held)


def middle(picture: Float32, size: int, multiple: int = 8) -> Float32:
    """The middle of [3, lines, samples], at most `size` on a side, in multiples."""
    sides = [min(size, n) // multiple * multiple for n in picture.shape[1:]]
    first = [(n - side) // 2 for n, side in zip(picture.shape[1:], sides, strict=True)]
    return np.ascontiguousarray(picture[:, first[0] : first[0] + sides[0], first[1] : first[1] + sides[1]])
