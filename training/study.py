"""What parts of a recipe are worth:
`python -m training.study --study training/studies/parts.yaml --data DIR --out DIR`.

Every variant changes a few keys of one recipe and is trained for as many steps, on the same draws, once for each seed.
Runs that were stopped go on; finished ones are not run again; `--variants` takes some of them, so that two commands can
share the work. Gains are PSNR in dB over the degraded input on the centres of the held-out scenes (the last row of a
run's validation.csv); costs are what a run loses when it is shown wrong metrics (`training.validation.prompt_costs`).
"""

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import Field

from calibration.degradations import TRAINING, UNSEEN
from export.networks import load_checkpoint
from runtime.durable import write_bytes
from runtime.errors import ConfigError, InputError
from training.console import console, told
from training.curves import read_rows
from training.data import load_scenes
from training.recipe import LessonRecipe, Part, Recipe, load_recipe, read_yaml
from training.rivals import Kind, rival_recipe, train_rival, trained_by
from training.run import damp_of
from training.train import train
from training.validation import COSTS, held_scenes, prompt_costs

TASKS = (*TRAINING, *UNSEEN)
Lessons = TypeVar("Lessons", bound=LessonRecipe)


class Variant(Part):
    """What a variant is, and the keys that it changes: {"network.top_k": 2}; `rival` trains that in place of a DAMP."""

    about: str
    rival: Kind | None = None
    changes: dict[str, Any] = Field(default_factory=dict)


class Study(Part):
    """Variants of a recipe, a file beside the study's own, each trained with every seed."""

    recipe: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    variants: Annotated[dict[str, Variant], Field(min_length=1)]


def load_study(file: Path) -> Study:
    """Read a study. Raises ConfigError."""
    return read_yaml(file, Study, "training/studies/")


def recipes_of(file: Path, load: Callable[..., Lessons]) -> Iterator[tuple[str, Lessons]]:
    """(variant, recipe) for every seed, of a study whose variants replace top-level keys. Raises ConfigError."""
    study = load_study(file)
    for variant, what in study.variants.items():
        for seed in study.seeds:
            if what.rival is not None:
                raise ConfigError(
                    "only a DAMP has rivals", file=file, key=f"variants.{variant}.rival", value=what.rival,
                    remedy="leave it out",
                )  # fmt: skip
            changes = {**what.changes, "seed": seed, "name": f"{variant}-{seed}"}
            recipe = load(file.parent / study.recipe, **changes)
            console.print(f"{recipe.name}: {what.about}")
            yield variant, recipe


def recipe_of(file: Path, study: Study, name: str, seed: int) -> Recipe:
    """The recipe of a variant and a seed. Raises ConfigError."""
    base = load_recipe(file.parent / study.recipe)
    content = base.model_dump(mode="json")
    for path, value in study.variants[name].changes.items():
        *parents, key = path.split(".")
        inner: Any = content
        try:
            for parent in parents:
                inner = inner[parent]
            inner[key] = value
        except (KeyError, TypeError) as error:
            raise ConfigError(
                "no such key in the recipe", file=file, key=f"variants.{name}.changes", value=path,
                remedy="give the whole part where the recipe has none of it",
            ) from error  # fmt: skip
    return load_recipe(file.parent / study.recipe, **{**content, "seed": seed, "name": f"{base.name}-{name}-{seed}"})


def figures(
    recipe: Recipe, data: Sequence[Path], out: Path, device: str, rival: Kind | None = None
) -> dict[str, float]:
    """Train, or read what was trained: gain of every task, their mean over the trained ones, and the costs.

    Raises:
        DeployError: as `train`; another recipe's run.
    """
    file, kept, steps = out / f"{recipe.name}.safetensors", out / "costs.json", recipe.optimiser.steps
    if rival is not None and device != "cpu":
        raise InputError("rivals are trained on a CPU", key="--device", remedy="say --device cpu, for all of the study")
    if not _finished(recipe, out):
        if rival is None:
            train(recipe, data, out, device)
        else:
            train_rival(rival, recipe, data, out)
    by = load_checkpoint(file).facts.about if rival is None else trained_by(file)
    if by != (recipe if rival is None else rival_recipe(rival, recipe)).about(steps):
        raise ConfigError(
            "was trained by another recipe", file=file, remedy="give another --out, or the recipe it began with"
        )
    (*_, last) = read_rows(out / "validation.csv") or [{}]
    if last.get("step") != steps:
        raise InputError("does not tell the last step", file=out / "validation.csv", remedy="remove the run")
    # A network without a prompt was never shown one: there is nothing wrong to show it.
    if rival is None and recipe.ablate != "prompt" and not kept.exists():
        cubes = load_scenes(data, recipe.data).cubes
        held = held_scenes({name: cubes[name] for name in recipe.data.validation}, recipe)
        costs = prompt_costs(damp_of(load_checkpoint(file)), held, tuple(recipe.tasks))
        means = {kind: float(np.mean([row[kind] for row in costs.values()])) for kind in COSTS if costs}
        write_bytes(kept, json.dumps(means).encode())
    return {
        **{task: last[task] for task in TASKS},
        "mean": last["mean"],
        **(json.loads(kept.read_bytes()) if kept.exists() else {}),
    }


def _finished(recipe: Recipe, out: Path) -> bool:
    rows = read_rows(out / "validation.csv")
    return (out / f"{recipe.name}.safetensors").exists() and bool(rows) and rows[-1]["step"] >= recipe.optimiser.steps


def markdown(study: Study, found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A table of means over seeds, and what the variants are; `seeds` is half the range of the mean between them."""
    columns = (*TASKS, "mean", "seeds", *COSTS)
    lines = [f"| variant | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, rows in found.items():
        lines.append(f"| {name} | {' | '.join(_cell(c, rows) for c in columns)} |")
    return "\n".join([*lines, "", *(f"- {name}: {study.variants[name].about}" for name in found), ""])


def _cell(column: str, rows: Sequence[Mapping[str, float]]) -> str:
    if column == "seeds":
        return f"{np.ptp([row['mean'] for row in rows]) / 2:.2f}"
    if column not in rows[0]:
        return ""
    value = float(np.mean([row[column] for row in rows]))
    return f"{value:.2f}" if column in COSTS else f"{value:+.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.study", description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="see training/studies/")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes")
    parser.add_argument("--out", type=Path, required=True, help="where the runs and the table go")
    parser.add_argument("--variants", help="some of the study's, by commas")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda")
    arguments = parser.parse_args()
    with told():
        study = load_study(arguments.study)
        names = arguments.variants.split(",") if arguments.variants else list(study.variants)
        unknown = sorted(set(names) - set(study.variants))
        if unknown:
            known = ", ".join(study.variants)
            raise InputError("no such variant", key="--variants", value=unknown[0], remedy=f"one of {known}")
        found: dict[str, list[dict[str, float]]] = {}
        for name in names:
            for seed in study.seeds:
                recipe = recipe_of(arguments.study, study, name, seed)
                console.print(f"{recipe.name}: {study.variants[name].about}")
                place = arguments.out / f"{name}-{seed}"
                rival = study.variants[name].rival
                found.setdefault(name, []).append(figures(recipe, arguments.data, place, arguments.device, rival))
        stream = io.StringIO()
        rows = [
            {"variant": name, "seed": seed, **row}
            for name, of_seeds in found.items()
            for seed, row in zip(study.seeds, of_seeds, strict=True)
        ]
        columns = ["variant", "seed", *TASKS, "mean", *COSTS]
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(arguments.out / "study.csv", stream.getvalue().encode())
        write_bytes(arguments.out / "study.md", markdown(study, found).encode())
        print(markdown(study, found))


if __name__ == "__main__":
    main()
