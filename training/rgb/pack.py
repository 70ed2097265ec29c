"""Package a judged run with its card: `python -m training.rgb.pack --recipe FILE --run RUN --took "3 hours"`.

`NAME.safetensors.xz` and `NAME.md` go to export/models. Only a run that reached its last step is taken, and only with
the figures of the very file (`training.rgb.judge`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.networks import PACKAGED, Network
from training.console import told
from training.judged import publish
from training.rgb.judge import INPUT, owned, restoration_table
from training.rgb.recipe import PhotographRecipe, load_recipe

LEAST, WRONG = 0.1, 1.0
"""Decibels that are gained where something is restored, and that a wrong prompt is to cost."""


def card(net: Network, recipe: PhotographRecipe, judged: Mapping[str, Any], took: str, size: int) -> str:
    """The card as Markdown."""
    options, figures, own = recipe.optimiser, judged["figures"], owned(recipe, judged["figures"])
    parts = [
        f"# {recipe.name}",
        f"A {recipe.architecture} for photographs, far smaller than the published one: {net.parameters / 1e6:.2f} M "
        f"parameters, {size / 2**20:.1f} MiB. {net.architecture.about(net.module)}.",
        "## Data and recipe",
        f"Trained on {recipe.data.name}, data not included, {recipe.data.held} of them held out. "
        f"{options.steps:,} steps of {recipe.patches.count} patches of {recipe.patches.size}x{recipe.patches.size} "
        f"(AdamW, cosine from {options.learning_rate:g}, EMA {options.ema:g}, seed {recipe.seed}); {took}. "
        f"Degradations are those of `calibration.photographs`: {', '.join(recipe.tasks)}.",
    ]
    if recipe.prompts:
        parts.append(
            f"**The codes of its prompts are not CLIP's**: random numbers (seed {recipe.prompts.seed}), stored with "
            "the weights. Codes that a CLIP makes of the same sentences say nothing to it. A share of "
            f"{recipe.prompts.mismatched:g} of the patches had the prompt of another task and was to stay as it is: a "
            "prompt does its own job and no other."
        )
    parts += [
        f"```\nmake train-background RECIPE={recipe.name}\npython -m training.rgb.judge --recipe "
        f"training/recipes/{recipe.name}.yaml --run RUN --data BSDS-TEST\n```",
        "## Figures",
        f"PSNR in dB over the middle {judged['size']}x{judged['size']} of {judged['pictures']} photographs that were "
        "never trained on; bold with the right prompt.",
        restoration_table(figures, own),
        "## What it is not good for",
        *_limits(figures, own),
    ]
    return "\n\n".join(parts) + "\n"


def _limits(figures: Mapping[str, Mapping[str, Mapping[str, float]]], own: Mapping[str, str]) -> list[str]:
    limits = ["Weather and darkness of its training were made by formulas; real ones differ."]
    worse = [task for task, row in figures.items() if row[own[task]]["psnr"] - row[INPUT]["psnr"] < LEAST]
    if worse:
        limits.append(f"It restores nothing: {', '.join(worse)}.")
    cheap = [
        task
        for task, row in figures.items()
        if row[own[task]]["psnr"] - max(f["psnr"] for name, f in row.items() if name not in (INPUT, own[task])) < WRONG
    ]
    if cheap:
        limits.append(f"A wrong prompt costs less than {WRONG:g} dB: {', '.join(cheap)}.")
    return limits


def pack(recipe: PhotographRecipe, run: Path, took: str, models: Path = PACKAGED) -> Path:
    """Write the model and its card. Raises InputError where the run is unfinished, not judged, or too large."""
    return publish(
        recipe, run, lambda net, judged, size: card(net, recipe, judged, took, size), "training.rgb.judge", models
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.rgb.pack", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="its folder")
    parser.add_argument("--took", required=True, help="how long the training took, and on what")
    arguments = parser.parse_args()
    with told():
        print(f"wrote {pack(load_recipe(arguments.recipe), arguments.run, arguments.took)}")


if __name__ == "__main__":
    main()
