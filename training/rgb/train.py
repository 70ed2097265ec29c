"""Train a network for photographs; `python -m training.train` comes here for recipes of their architectures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.errors import ConfigError
from training.lessons import Lesson, teach
from training.rgb.dfpir import DfpirLesson
from training.rgb.dpmambair import ExtractorLesson, RestorationLesson, read_extractor
from training.rgb.draws import Batch, Draws, Held, held_pictures, load_pictures
from training.rgb.recipe import PhotographRecipe


def train(recipe: PhotographRecipe, data: Path | Sequence[Path], out: Path) -> Path:
    """Run the recipe to its end (or go on with it), see `training.lessons.teach`.

    Raises:
        DeployError: no data, another recipe's state, no extractor, a full disk, or another process at the same run.
        KeyboardInterrupt: stopped; the state is saved, the same call goes on.
    """
    pictures = load_pictures(data, recipe.patches.size)
    if len(pictures) <= recipe.data.held:
        raise ConfigError(
            f"only {len(pictures)} photographs are as large as a patch", key="data.held", value=recipe.data.held,
            remedy="give more photographs, or hold fewer",
        )  # fmt: skip
    names = list(pictures)
    held = held_pictures(recipe, {name: pictures.pop(name) for name in names[-recipe.data.held :]})
    return teach(recipe, lesson_of(recipe, held, out), Draws(recipe, pictures), out)


def lesson_of(recipe: PhotographRecipe, held: Sequence[Held], out: Path) -> Lesson[Batch]:
    """What a recipe's architecture learns. Raises CheckpointError where an extractor is missing."""
    if recipe.architecture == "dfpir":
        return DfpirLesson(recipe, held)
    if recipe.extractor is None:
        return ExtractorLesson(recipe, held)
    own = Path(recipe.extractor) / f"{recipe.extractor}.safetensors"
    # Beside the run, or beside the study that it is part of.
    places = [place for folder in (out.parent, out.parent.parent) if (place := folder / own).exists()]
    file = next(iter(places), Path(recipe.extractor))
    return RestorationLesson(recipe, held, read_extractor(file, recipe.config))
