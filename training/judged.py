"""What a judge found out about a run's weights, and the packaging of what was judged as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from export.networks import PACKAGED, SUFFIX, Network, load_checkpoint
from export.networks.reading import packed
from runtime.durable import write_bytes
from runtime.errors import InputError
from training.recipe import LessonRecipe

JUDGED = "judged.json"
LARGEST = 10 << 20


def keep(weights: Path, found: Mapping[str, Any]) -> None:
    """Write figures beside the weights that they are of."""
    told = {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), **found}
    write_bytes(weights.parent / JUDGED, json.dumps(told, indent=1).encode())


def kept(weights: Path) -> dict[str, Any] | None:
    """What `keep` wrote of the very file; None where there is nothing."""
    file = weights.parent / JUDGED
    told = json.loads(file.read_bytes()) if file.exists() else {}
    return told if told.get("sha256") == hashlib.sha256(weights.read_bytes()).hexdigest() else None


def publish(
    recipe: LessonRecipe, run: Path, card: Callable[[Network, Mapping[str, Any], int], str], judge: str,
    models: Path = PACKAGED,
) -> Path:  # fmt: skip
    """Write `NAME.safetensors.xz` and `NAME.md` of a run.

    Args:
        recipe: of the run.
        run: its folder.
        card: (network, figures, bytes of the file) -> the card as Markdown.
        judge: the module that judges.
        models: where to.

    Raises:
        InputError: the run is unfinished, not judged, or too large.
    """
    file = run / f"{recipe.name}.safetensors"
    net = load_checkpoint(file)
    if net.facts.about != recipe.about(recipe.optimiser.steps):
        raise InputError("is of an unfinished run, or of another recipe", file=file, remedy="train it to its end")
    judged = kept(file)
    if judged is None:
        raise InputError("the weights were not judged", file=run / JUDGED, remedy=f"python -m {judge}")
    content = packed(file.read_bytes())
    if len(content) > LARGEST:
        raise InputError("is too large to be packaged", file=file, value=len(content), remedy="a smaller network")
    write_bytes(models / f"{recipe.name}.md", card(net, judged, len(content)).encode())
    write_bytes(made := models / f"{recipe.name}{SUFFIX}", content)
    return made
