"""Train a DAMP on real cubes: `python -m training.train --recipe training/recipes/damp-tiny.yaml --data DIR --out DIR`.

L1, AdamW, cosine schedule with warm-up, exponential moving average, gating noise as in the paper; bfloat16, compiled,
on a GPU, float32 on a CPU. A run goes on from its last saved state, a minute old at most, whatever ended it: every draw
follows from seed and step, so that on a CPU of the same threads its numbers are those of a run that never stopped. On a
GPU they are but for the order of atomic additions.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.devices import usable
from export.networks import Network, load_checkpoint, network_of, save_checkpoint
from export.networks.damp import Damp
from runtime.errors import ConfigError, InputError
from training.console import console, told
from training.curves import append_row, draw_curves, read_rows
from training.data import Draws, Scenes, held_out, load_scenes
from training.loop import Errors, forget_after, go, locked
from training.recipe import Recipe, architecture_of, load_recipe
from training.rgb.recipe import load_recipe as rgb_recipe
from training.rgb.train import train as train_photographs
from training.run import WAYS, Run, adopt, averaged, begin, damp_of, resume, save, step
from training.snapshot.recipe import KINDS as SNAPSHOTS
from training.snapshot.recipe import load_recipe as snapshot_recipe
from training.snapshot.train import train as train_snapshots
from training.validation import HeldScene, held_scenes, validate

PACE_STEPS = 50
"""Steps that `minutes` are counted by, after as many to warm up."""


def train(
    recipe: Recipe,
    data: Path | Sequence[Path],
    out: Path,
    device: str = "cpu",
    *,
    minutes: float | None = None,
    weights: str | Path | None = None,
    eager: bool = False,
) -> Path:
    """Run the recipe to its end (or go on with it) and return the path of the written checkpoint.

    `out` receives state.pt, training.csv (mean L1, and per task), validation.csv (gains in dB, and their mean over the
    tasks that are trained), curves.png, and at every validation the checkpoint `<name>.safetensors` of the average so
    far; `<name>-best.safetensors` is the one that validated best.

    Args:
        recipe: what to do.
        data: folders of scenes.
        out: where the run is kept; one process at a time.
        device: `cpu` or `cuda`.
        minutes: in place of the recipe's steps, as many as fit into this time, counted at the start of the run.
        weights: a checkpoint of the same network that the run goes on with where it validates better.
        eager: nothing is compiled, which only a GPU would have.

    Raises:
        DeployError: no data, no such device, another recipe's state, a start that does not fit, a full disk, another
            process at the same run, or nothing that compiles.
        KeyboardInterrupt: stopped; the state is saved, the same call goes on.
    """
    began = time.monotonic()
    place = usable(device, "--device")
    recipe = recipe.on_device(place.type)
    given = None if weights is None else _given(weights, recipe)
    used, held = scenes_of(recipe, data)
    draws = Draws(recipe, used, place)
    way = WAYS[place.type]
    run = begin(recipe, draws, replace(way, compiled=way.compiled and not eager))
    with locked(out):
        ends = None if minutes is None else began + 60 * minutes
        return _train(run, recipe, draws, held_scenes(held, recipe), out, ends, given)


def _train(
    run: Run,
    recipe: Recipe,
    draws: Draws,
    held: Sequence[HeldScene],
    out: Path,
    ends: float | None,
    given: Network | None,
) -> Path:
    state = out / "state.pt"
    if state.exists():
        resume(run, recipe, state)
    elif ends is not None:
        run.steps = _steps_until(ends, run, recipe, draws, held)
    draws.steps = run.steps
    forget_after(out, run.step)
    if given is not None and run.adopted != given.facts.sha256:
        _adopt_better(run, recipe, held, given)
        run.adopted = given.facts.sha256
        save(run, recipe, state)
    go(
        run, recipe, out, tuple(recipe.tasks), step=lambda: _step(run, recipe, draws),
        validate=lambda: _validate(run, recipe, held, out), save=lambda: save(run, recipe, state),
    )  # fmt: skip
    return _write(averaged(run, recipe), recipe, run, out / f"{recipe.name}.safetensors")


def _step(run: Run, recipe: Recipe, draws: Draws) -> Errors:
    batch = draws.batch(run.step)
    return step(run, recipe, batch), batch.tasks


def scenes_of(recipe: Recipe, data: Path | Sequence[Path]) -> tuple[Scenes, dict[str, Any]]:
    """(what is trained on, held-out cubes by name). Raises DeployError where they do not fit the recipe."""
    found = load_scenes(data, recipe.data)
    cubes = dict(found.cubes)
    bands, held = recipe.config.bands, held_out(cubes, recipe.data.validation)
    narrow = next((name for name, cube in found.cubes.items() if len(cube) < bands), None)
    if narrow is not None:
        raise ConfigError(
            f"{narrow} has only {len(found.cubes[narrow])} bands",
            key="network.bands",
            value=bands,
            remedy="leave it out",
        )
    largest = max(p.size for p in recipe.patches)
    used = found.as_large_as(largest, cubes)
    if not used.cubes:
        raise ConfigError("no scene is as large as a patch", key="patches", value=largest, remedy="smaller patches")
    if recipe.data.photographs is not None and not used.photographs:
        raise ConfigError(
            "no photograph as large as a patch is among the data", key="data.photographs", remedy="add their folder"
        )
    return used, held


def _steps_until(ends: float, run: Run, recipe: Recipe, draws: Draws, held: Sequence[HeldScene]) -> int:
    """Steps that fit into what is left of the time, validations too, by the pace of a run that is thrown away."""
    trial = begin(recipe, draws, run.way)
    for number in range(2 * PACE_STEPS):
        if number == PACE_STEPS:
            # Waits for what a GPU was given before.
            trial.usage.sum().item()
            first = time.monotonic()
        step(trial, recipe, draws.batch(number))
    trial.usage.sum().item()
    stepped = time.monotonic()
    validate(averaged(trial, recipe), held)
    validating = time.monotonic() - stepped
    pace = (stepped - first) / PACE_STEPS
    steps = max(1, int((ends - time.monotonic() - validating) / (pace + validating / recipe.validate_every)))
    console.print(f"{1 / pace:.1f} steps a second, {validating:.1f} s to validate: {steps} steps")
    return steps


def _given(weights: str | Path, recipe: Recipe) -> Network:
    """Weights to go on with. Raises CheckpointError, ConfigError for those of another network."""
    given = load_checkpoint(weights, recipe.config.top_k)
    if damp_of(given).config != recipe.config:
        raise ConfigError("is another network than the recipe's", file=weights, remedy="give weights of this recipe")
    return given


def _adopt_better(run: Run, recipe: Recipe, held: Sequence[HeldScene], given: Network) -> None:
    module = damp_of(given)
    own, other = (mean_of(validate(net.to(run.device), held), recipe) for net in (averaged(run, recipe), module))
    if other > own:
        adopt(run, module)
    verdict = "taken" if other > own else "left"
    console.print(
        f"{given.facts.file} gains {other:+.3f} dB, the run's own weights {own:+.3f}: {verdict}", markup=False
    )


def mean_of(gains: Mapping[str, float], recipe: Recipe) -> float:
    """Of the tasks that a recipe trains."""
    return float(np.mean([gains[task] for task in recipe.tasks]))


def _validate(run: Run, recipe: Recipe, held: Sequence[HeldScene], out: Path) -> None:
    net = averaged(run, recipe)
    gains = validate(net, held)
    mean = mean_of(gains, recipe)
    console.print(f"step {run.step} gain in dB: " + ", ".join(f"{k} {v:+.2f}" for k, v in gains.items()))
    best = max((m for row in read_rows(out / "validation.csv") if (m := row["mean"]) == m), default=-math.inf)
    _write(net, recipe, run, out / f"{recipe.name}.safetensors")
    if mean > best:
        _write(net, recipe, run, out / f"{recipe.name}-best.safetensors")
    append_row(out / "validation.csv", {"step": run.step, **gains, "mean": mean})
    draw_curves(out)


def _write(net: Damp, recipe: Recipe, run: Run, file: Path) -> Path:
    return save_checkpoint(
        network_of(net.cpu()), file, scale=recipe.data.stored_scale, wavelengths=recipe.centres,
        about=recipe.about(run.step), fills=recipe.fill,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="a YAML file; see training/recipes/")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes and photographs")
    parser.add_argument("--out", type=Path, required=True, help="where the run keeps its state and its result")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda")
    parser.add_argument("--minutes", type=float, help="end in so many minutes in place of the recipe's steps")
    parser.add_argument(
        "--weights", help="go on with these weights, a file or a packaged model, where they validate better"
    )
    parser.add_argument("--eager", action="store_true", help="compile nothing, where compiling fails or takes too long")
    arguments = parser.parse_args()
    with told():
        if arguments.minutes is not None and not 0 < arguments.minutes < math.inf:
            raise InputError("is no time", key="--minutes", value=arguments.minutes, remedy="give minutes, above 0")
        if (named := architecture_of(arguments.recipe)) is not None:
            if arguments.minutes or arguments.weights or arguments.device != "cpu":
                raise InputError("is trained on a CPU, by its recipe alone", file=arguments.recipe, key="architecture",
                    remedy="leave out --minutes and --weights, and say --device cpu")  # fmt: skip
            if named in SNAPSHOTS:
                file = train_snapshots(snapshot_recipe(arguments.recipe), arguments.data, arguments.out)
            else:
                file = train_photographs(rgb_recipe(arguments.recipe), arguments.data, arguments.out)
            console.print(f"wrote {file}", markup=False)
            return
        file = train(
            load_recipe(arguments.recipe), arguments.data, arguments.out, arguments.device,
            minutes=arguments.minutes, weights=arguments.weights, eager=arguments.eager,
        )  # fmt: skip
        console.print(f"wrote {file}", markup=False)


if __name__ == "__main__":
    main()
