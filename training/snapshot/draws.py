"""Patches of cubes in the instrument's bands, what it measures of them, and tiles of what is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.arrays import Float32
from runtime.errors import ConfigError
from runtime.simulation import cassi
from training.data import draw_patch, held_out, load_scenes
from training.snapshot.recipe import SnapshotRecipe


@dataclass(frozen=True)
class Batch:
    """Measurements [B, 1, H, W + 54] and their cubes [B, 28, H, W]."""

    measured: Tensor
    clean: Tensor


@dataclass(frozen=True)
class Held:
    """All tiles of a held-out scene."""

    scene: str
    batch: Batch


def load_cubes(recipe: SnapshotRecipe, folders: Path | Sequence[Path]) -> tuple[dict[str, Float32], tuple[Held, ...]]:
    """({scene: cube [28, lines, samples]} to train on, tiles of those that are held out).

    Raises:
        DeployError: no data, a scene that is missing, without the instrument's bands, or none as large as a patch.
    """
    spacing, size = recipe.data.wavelengths, recipe.patches.size
    assert spacing is not None, "the recipe says it"
    own = np.linspace(spacing.first, spacing.last, spacing.count).tolist()
    cubes = {name: cassi.resampled(cube, own) for name, cube in load_scenes(folders, recipe.data).cubes.items()}
    held = held_out(cubes, recipe.data.validation)
    used = {name: cube for name, cube in cubes.items() if min(cube.shape[1:]) >= size}
    if not used or any(min(cube.shape[1:]) < size for cube in held.values()):
        raise ConfigError(
            "a held-out scene, or every other one, is smaller than a patch", key="patches.size", value=size,
            remedy="smaller patches",
        )  # fmt: skip
    return used, tuple(Held(name, tiles(cube, mask_of(recipe))) for name, cube in held.items())


def mask_of(recipe: SnapshotRecipe) -> Float32:
    """The aperture, float32 [size, size]."""
    return cassi.random_mask(recipe.mask.seed, recipe.patches.size, recipe.patches.size)


def tiles(cube: Float32, mask: Float32) -> Batch:
    """As many parts of a cube [28, lines, samples] as lie beside each other in it, each as large as the mask."""
    high, wide = mask.shape
    places = [
        (line, sample)
        for line in range(0, cube.shape[1] - high + 1, high)
        for sample in range(0, cube.shape[2] - wide + 1, wide)
    ]
    return measured(np.stack([cube[:, i : i + high, j : j + wide] for i, j in places]), mask)


def measured(cubes: Float32, mask: Float32) -> Batch:
    """What is measured of cubes [B, 28, lines, samples], without noise."""
    seen = np.stack([cassi.measure(cube, mask)[None] for cube in cubes])
    return Batch(torch.from_numpy(seen), torch.from_numpy(cubes))


class Draws:
    """The batches of a recipe; every draw follows from seed and step."""

    def __init__(self, recipe: SnapshotRecipe, cubes: Mapping[str, Float32]) -> None:
        self.recipe, self._mask = recipe, mask_of(recipe)
        self._cubes = [torch.from_numpy(cube) for cube in cubes.values()]

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng, patches = np.random.default_rng([self.recipe.seed, step]), self.recipe.patches
        chosen = [self._cubes[rng.integers(len(self._cubes))] for _ in range(patches.count)]
        return measured(
            np.stack([draw_patch(cube, cassi.BANDS, patches.size, rng).numpy() for cube in chosen]), self._mask
        )
