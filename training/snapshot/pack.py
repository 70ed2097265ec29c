"""Package a judged run with its card: `python -m training.snapshot.pack --recipe FILE --run RUN --took "1 hour"`.

`NAME.safetensors.xz` and `NAME.md` go to export/models. Only a run that reached its last step is taken, and only with
the figures of the very file (`training.snapshot.judge`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.networks import PACKAGED, Network
from training.console import told
from training.judged import publish
from training.snapshot.judge import STARTS, table
from training.snapshot.recipe import SnapshotRecipe, load_recipe


def card(net: Network, recipe: SnapshotRecipe, judged: Mapping[str, Any], took: str, size: int) -> str:
    """The card as Markdown."""
    options, side = recipe.optimiser, recipe.patches.size
    parts = [
        f"# {recipe.name}",
        f"An {recipe.architecture} for snapshots of {side}x{side}, far smaller than the published ones: "
        f"{net.parameters / 1e6:.2f} M parameters, {size / 2**20:.1f} MiB. {net.architecture.about(net.module)}.",
        "## Data and recipe",
        f"Trained on {recipe.data.name}, data not included; never on {', '.join(recipe.data.validation)}. Cubes were "
        "resampled to the 28 bands and measured without noise through one mask, "
        f"`cassi.random_mask({recipe.mask.seed}, {side}, {side})`, which is stored with the weights. "
        f"{options.steps:,} steps of {recipe.patches.count} patches (Adam, cosine from {options.learning_rate:g}, "
        f"EMA {options.ema:g}, seed {recipe.seed}); {took}.",
    ]
    if recipe.prior:
        parts.append(
            "**The prior is after a description alone** (arXiv 2507.13769): there is no public code, and what the "
            f"description leaves open is ours (docs/sdp.md). Its target is {recipe.prior.target}, the first "
            f"{recipe.prior.first_stage:.0%} of the steps are stage 1."
        )
    parts += [
        f"```\nmake train-background RECIPE={recipe.name}\npython -m training.snapshot.judge --recipe "
        f"training/recipes/{recipe.name}.yaml --run RUN --data CAVE\n```",
        "## Figures",
        f"Means over {judged['tiles']} tiles of {side}x{side} of {', '.join(recipe.data.validation)}; CAVE, own split, "
        "not comparable with tables of other scenes. `psnr` in dB is -10 log10(MSE), clipped; `other starts` is the "
        f"range of its mean over {STARTS} starts of the prior's chain.",
        table({recipe.name: judged}),
        "## What it is not good for",
        "Other masks, and frames of another size: its attention takes statistics over the whole frame, and was "
        f"trained at {side}x{side}. Noise was not trained for.",
    ]
    return "\n\n".join(parts) + "\n"


def pack(recipe: SnapshotRecipe, run: Path, took: str, models: Path = PACKAGED) -> Path:
    """Write the model and its card. Raises InputError where the run is unfinished, not judged, or too large."""
    return publish(
        recipe, run, lambda net, judged, size: card(net, recipe, judged, took, size), "training.snapshot.judge", models
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.snapshot.pack", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="its folder")
    parser.add_argument("--took", required=True, help="how long the training took, and on what")
    arguments = parser.parse_args()
    with told():
        print(f"wrote {pack(load_recipe(arguments.recipe), arguments.run, arguments.took)}")


if __name__ == "__main__":
    main()
