"""What DAMPs gain on the scenes that a recipe holds out, and what wrong metrics cost them:
`python -m training.judge damp-base damp-small --recipe training/recipes/damp-base.yaml --data CAVE`.

On centre crops, as a training validates, for every damage that there is. `filled` is what making up the missing values
gains alone, where a model is given that; `zeros`, `wrong` and `worst` are dB that are lost to metrics of another
damage, see `training.validation.prompt_costs`, for the damages that the recipe trains.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from export.networks import load_checkpoint
from runtime.arrays import Float32
from training.console import told
from training.data import held_out, load_scenes
from training.degrading import DAMAGES
from training.recipe import Recipe, load_recipe
from training.run import damp_of
from training.validation import COSTS, held_scenes, prompt_costs, validate

Row = tuple[str, str, Mapping[str, float]]
"""A model, what is told of it, and dB by task."""


def judged(name: str, recipe: Recipe, scenes: Mapping[str, Float32]) -> Iterator[Row]:
    """The rows of one model, a file or a packaged one. Raises CheckpointError, ConfigError for no DAMP's."""
    given = load_checkpoint(name)
    net = damp_of(given)
    network = {**recipe.network, "bands": net.config.bands, "metric_set": net.config.metric_set}
    held = held_scenes(scenes, recipe.model_copy(update={"fill": given.facts.fills, "network": network}))
    if given.facts.fills:
        filled = {task: [scene.gain(scene.given) for scene in held if scene.task == task] for task in DAMAGES}
        yield name, "filled", {task: float(np.mean(gains)) for task, gains in filled.items() if any(gains)}
    yield name, "gain", validate(net, held)
    costs = prompt_costs(net, held, tuple(recipe.tasks))
    for kind in COSTS if costs else ():
        yield name, kind, {task: row[kind] for task, row in costs.items()}


def line(row: Row, recipe: Recipe) -> str:
    """A row of the table; its mean is over the damages that the recipe trains, where all of them are told."""
    name, kind, values = row
    cells = [f"{values[task]:+.2f}" if task in values else "" for task in DAMAGES]
    known = [values[task] for task in recipe.tasks if task in values]
    mean = f"{np.mean(known):+.2f}" if len(known) == len(recipe.tasks) else ""
    return f"| {' | '.join((name, kind, *cells, mean))} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.judge", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a file, or the name of a packaged model")
    parser.add_argument("--recipe", type=Path, required=True, help="whose scenes are held out, and which tasks count")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes")
    given = parser.parse_args()
    with told():
        recipe = load_recipe(given.recipe)
        cubes = load_scenes(given.data, recipe.data.model_copy(update={"photographs": None})).cubes
        scenes = held_out(dict(cubes), recipe.data.validation)
        print(f"| model | dB | {' | '.join(DAMAGES)} | mean |\n{'|---' * (len(DAMAGES) + 3)}|")
        for model in given.models:
            for row in judged(model, recipe, scenes):
                print(line(row, recipe), flush=True)


if __name__ == "__main__":
    main()
