"""A model's card: `python -m training.card --checkpoint NAME --recipe FILE --evaluation FILE --took "60 minutes"`.

Markdown on standard output, from the checkpoint, its recipe and what `deploy evaluate --json` printed for scenes that
were not trained on. It says where a goal was missed and by how much, and where a classical method does better.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from calibration.baselines import BASELINES
from calibration.degradations import UNSEEN
from export.networks import Network, load_checkpoint
from runtime.errors import InputError
from training.console import told
from training.recipe import Recipe, load_recipe
from training.run import damp_of

GOALS: Mapping[str, float] = MappingProxyType(
    {"noise": 14.0, "blur": 4.0, "sr": 3.0, "inpaint": 15.0, "bandloss": 15.0, "poisson": 6.0, "motionblur": 0.5}
)
"""Gain in PSNR over the degraded input, in dB, that the largest model is to reach."""

UNSEEN_WORDS: Mapping[str, str] = MappingProxyType({"motionblur": "motion blur", "poisson": "Poisson noise"})

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]


def card(net: Network, recipe: Recipe, tasks: Figures, scenes: list[str], took: str, size: int) -> str:
    """The card as Markdown.

    Args:
        net: the loaded checkpoint.
        recipe: what trained it.
        tasks: {task: {input, baseline, model: {psnr, ssim, sam}}}, means over the scenes.
        scenes: names of the scenes that were measured.
        took: how long it was trained, and on what.
        size: bytes of the file.

    Raises:
        InputError: the checkpoint was trained by another recipe, or a scene may have been trained on.
    """
    seen = [name for name in scenes if name not in recipe.data.validation]
    if seen:
        raise InputError(
            "the recipe does not hold this scene out",
            key="scenes",
            value=seen[0],
            remedy=f"evaluate with --scenes {','.join(recipe.data.validation)}",
        )
    if recipe.digest()[:12] not in net.facts.about:
        raise InputError("was trained by another recipe", file=net.facts.file, value=net.facts.about)
    config, options = damp_of(net).config, recipe.optimiser
    parameters = net.parameters / 1e6
    spectrum = recipe.data.wavelengths
    spectrum_text = (
        f"{config.bands} bands, {spectrum.first:g} to {spectrum.last:g} nm"
        if spectrum
        else f"any bands, {config.bands} neighbouring ones at a time"
    )
    scale = recipe.data.stored_scale
    file = f"training/recipes/{recipe.name}.yaml"
    judged = [f"deploy evaluate {recipe.name} --data DIR --scenes {','.join(scenes)}"]
    if scale is None:
        # No one number stands for 1.0 in its scenes.
        judged = [f"python -m training.held --recipe {file} --data DIR --out HELD"]
        judged += [
            f"deploy evaluate {recipe.name} --data HELD --layout lines,samples,bands --scenes {','.join(scenes)}"
        ]
    softened = "" if recipe.loss.first_floor is None else " softened as the recipe says"
    unseen = [UNSEEN_WORDS[task] for task in UNSEEN if task not in recipe.tasks]
    untrained = f"; never trained on: {', '.join(unseen)}" if unseen else ""
    parts = [
        f"# {recipe.name}",
        f"A DAMP for {spectrum_text}: {parameters:.2f} M parameters, {size / 2**20:.1f} MiB, {_gate(config)}. "
        + (f"{scale:g} stands for 1.0 in cubes of integers." if scale else "It tells no scale."),
        "## Data and recipe",
        f"Trained on {recipe.data.name}; data not included. Never trained on: {', '.join(recipe.data.validation)}. "
        f"{options.steps:,} steps of {_patches(recipe)} (AdamW, L1{softened}, cosine from "
        f"{options.learning_rate:g}, EMA {options.ema:g}, gating noise, seed {recipe.seed})"
        + _grown(recipe)
        + f"; {took}. Tasks: {', '.join(recipe.tasks)}{untrained}.",
        "\n".join(["```", f"python -m training.train --recipe {file} --data DIR --out RUN", *judged, "```"]),
        "## Figures",
        f"Means over {', '.join(scenes)}, whole. PSNR in dB from the mean squared error over all elements, SAM in "
        "degrees; bandloss over the lost bands only.",
        _table(tasks),
        "## What it is not good for",
        *_limits(tasks),
    ]
    return "\n\n".join(parts) + "\n"


def _gate(config: Any) -> str:
    named = {"paper6": "six metrics", "log6": "the logarithms of six metrics", "reference15": "fifteen metrics"}
    metrics = named[config.metric_set]
    gate = {"concat": "concatenating gate", "additive": "additive gate"}[config.gate]
    mixtures = "one mixture" if config.layers == 1 else f"{config.layers} mixtures"
    return f"{metrics}, {gate}, top-{config.top_k} of {config.experts} experts in {mixtures}"


def _grown(recipe: Recipe) -> str:
    earlier = ", its earlier edition" if recipe.start == recipe.name else ""
    start = f", grown from `{recipe.start}`{earlier}" if recipe.start else ""
    return start + (f", taught by `{recipe.teacher.checkpoint}`" if recipe.teacher else "")


def _patches(recipe: Recipe) -> str:
    return " or ".join(f"{p.count} patches of {p.size}x{p.size}" for p in recipe.patches)


def _table(tasks: Figures) -> str:
    head = "| task | PSNR in | baseline | model | gain | goal | SSIM in | SSIM | SAM in | SAM | baseline is |"
    lines = [head, "|---" * 11 + "|"]
    for task, figures in tasks.items():
        given, classical, model = (figures[who] for who in ("input", "baseline", "model"))
        gain = model["psnr"] - given["psnr"]
        lines.append(
            f"| {task} | {given['psnr']:.2f} | {classical['psnr']:.2f} | {model['psnr']:.2f} | {gain:+.2f} | "
            f"{GOALS[task]:+g} | {given['ssim']:.3f} | {model['ssim']:.3f} | {given['sam']:.2f} | {model['sam']:.2f} | "
            f"{BASELINES[task].name} |"
        )
    return "\n".join(lines)


def _limits(tasks: Figures) -> list[str]:
    gains = {task: f["model"]["psnr"] - f["input"]["psnr"] for task, f in tasks.items()}
    missed = [f"{task} by {GOALS[task] - gain:.2f} dB" for task, gain in gains.items() if gain < GOALS[task]]
    behind = {task: f["baseline"]["psnr"] - f["model"]["psnr"] for task, f in tasks.items()}
    worse = [f"{task} by {gap:.2f} dB" for task, gap in behind.items() if gap > 0]
    bent = [task for task, f in tasks.items() if f["model"]["sam"] > f["input"]["sam"]]
    limits = [f"It misses the project's goals for gain: {', '.join(missed)}." if missed else "It reaches every goal."]
    if worse:
        limits.append(
            f"A classical method restores better: {', '.join(worse)}. Use that where only that damage is met."
        )
    if bent:
        limits.append(f"It bends spectra more than the damage itself did (SAM rises): {', '.join(bent)}.")
    limits.append("Other sensors, band centres and scalings than those of its data are outside what it has seen.")
    return limits


def read_evaluation(file: Path, checkpoint: Path) -> tuple[Figures, list[str]]:
    """Tasks' figures and the scenes' names of what `deploy evaluate --json` printed for this checkpoint.

    Raises:
        InputError: it cannot be read, is something else, or of another model.
    """
    try:
        evaluation = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
        tasks, scenes = evaluation["tasks"], list(next(iter(evaluation["scenes"].values())))
        model = str(evaluation["model"])
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file, key="--evaluation") from error
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(
            "is not what `deploy evaluate --json` printed", file=file, key="--evaluation", remedy="evaluate again"
        ) from error
    if Path(model).stem != checkpoint.stem:
        raise InputError(
            f"is not of {checkpoint.stem}", file=file, key="model", value=model, remedy="evaluate this checkpoint"
        )
    return tasks, scenes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a file, or the name of a packaged model")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True, help="what `deploy evaluate --json` printed")
    parser.add_argument("--took", required=True, help="how long the training took, and on what")
    arguments = parser.parse_args()
    with told():
        net = load_checkpoint(arguments.checkpoint)
        tasks, scenes = read_evaluation(arguments.evaluation, Path(net.facts.name))
        size = Path(net.facts.file).stat().st_size
        print(card(net, load_recipe(arguments.recipe), tasks, scenes, arguments.took, size), end="")


if __name__ == "__main__":
    main()
