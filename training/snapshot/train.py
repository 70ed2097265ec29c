"""Train a network for snapshots; `python -m training.train` comes here for recipes of its architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.arrays import Float32
from training.lessons import Lesson, teach
from training.snapshot.draws import Batch, Draws, Held, load_cubes
from training.snapshot.lesson import MstLesson, SdpLesson
from training.snapshot.recipe import SnapshotRecipe


def train(recipe: SnapshotRecipe, data: Path | Sequence[Path], out: Path) -> Path:
    """Run the recipe to its end (or go on with it), see `training.lessons.teach`.

    Raises:
        DeployError: no data, another recipe's state, a full disk, or another process at the same run.
        KeyboardInterrupt: stopped; the state is saved, the same call goes on.
    """
    cubes, held = load_cubes(recipe, data)
    return teach(recipe, lesson_of(recipe, held, cubes), Draws(recipe, cubes), out)


def lesson_of(recipe: SnapshotRecipe, held: Sequence[Held], cubes: Mapping[str, Float32]) -> Lesson[Batch]:
    """What a recipe's architecture learns."""
    return MstLesson(recipe, held) if recipe.prior is None else SdpLesson(recipe, held, [*cubes.values()])
