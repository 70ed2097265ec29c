"""Train a network for photographs; `python -m training.train` comes here for recipes that name an architecture.

AdamW, cosine with warm-up, exponential moving average, float32. A run goes on from its last saved state, a minute old
at most, and its numbers are those of a run that never stopped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from runtime.errors import ConfigError
from training.console import console
from training.curves import append_row, draw_curves, read_rows
from training.loop import Errors, average, forget_after, go, learning_rate, locked, read_state, write_state
from training.rgb.dfpir import DfpirLesson
from training.rgb.dpmambair import ExtractorLesson, RestorationLesson, read_extractor
from training.rgb.draws import Draws, Held, held_pictures, load_pictures
from training.rgb.lesson import Lesson
from training.rgb.recipe import PhotographRecipe

STATE = frozenset({"net", "optimiser", "ema", "step", "recipe", "seen"})


@dataclass
class Run:
    """What a training changes as it goes.

    Attributes:
        net: the network.
        optimiser: of what is learned of it.
        ema: {key: averaged tensor}.
        steps: in all.
        step: those done.
        seen: errors since the last line of the log.
    """

    net: nn.Module
    optimiser: torch.optim.AdamW
    ema: dict[str, Tensor]
    steps: int
    step: int = 0
    seen: list[Errors] = field(default_factory=list)

    def averaged(self) -> nn.Module:
        """The network of the averaged weights."""
        net = copy.deepcopy(self.net)
        net.load_state_dict(self.ema)
        return net.eval()


def train(recipe: PhotographRecipe, data: Path | Sequence[Path], out: Path) -> Path:
    """Run the recipe to its end (or go on with it) and return the path of the written checkpoint.

    `out` receives state.pt, training.csv (mean L1, and per task), validation.csv, curves.png, and at every validation
    `<name>.safetensors` of the average so far; `<name>-best.safetensors` is the one that validated best.

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
    lesson = lesson_of(recipe, held, out)
    run, draws, state = begin(recipe, lesson), Draws(recipe, pictures), out / "state.pt"
    with locked(out):
        if state.exists():
            resume(run, recipe, state)
        forget_after(out, run.step)
        go(
            run, recipe, out, lesson.columns, step=partial(step, run, recipe, lesson, draws),
            validate=partial(_validate, run, recipe, lesson, out), save=partial(save, run, recipe, state),
        )  # fmt: skip
        return lesson.write(run.averaged(), out / f"{recipe.name}.safetensors", recipe.about(run.step))


def lesson_of(recipe: PhotographRecipe, held: Sequence[Held], out: Path) -> Lesson:
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


def begin(recipe: PhotographRecipe, lesson: Lesson) -> Run:
    """The run before its first step."""
    torch.manual_seed(recipe.seed)
    net = lesson.begin()
    learned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, weight_decay=recipe.optimiser.weight_decay)
    return Run(net, optimiser, {k: v.clone() for k, v in net.state_dict().items()}, recipe.optimiser.steps)


def save(run: Run, recipe: PhotographRecipe, file: Path) -> None:
    """Write the state from which `resume` goes on."""
    state = {
        "net": run.net.state_dict(), "optimiser": run.optimiser.state_dict(), "ema": run.ema, "step": run.step,
        "recipe": recipe.digest(), "seen": run.seen,
    }  # fmt: skip
    write_state(file, state)


def resume(run: Run, recipe: PhotographRecipe, file: Path) -> None:
    """Bring `run` to where `file` says. Raises ConfigError where another recipe wrote it, InputError for no state."""
    state = read_state(file, STATE, recipe.digest(), torch.device("cpu"))
    run.net.load_state_dict(state["net"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.ema, run.step, run.seen = state["ema"], state["step"], state["seen"]


def step(run: Run, recipe: PhotographRecipe, lesson: Lesson, draws: Draws) -> Errors:
    """One step; the errors of its patches before it."""
    options = recipe.optimiser
    for group in run.optimiser.param_groups:
        group["lr"] = learning_rate(run.step, run.steps, options)
    run.net.train()
    loss, errors, columns = lesson.learn(run.net, draws.batch(run.step), run.step)
    run.optimiser.zero_grad()
    loss.backward()
    learned = [p for group in run.optimiser.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(learned, options.gradient_norm)
    run.optimiser.step()
    present = run.net.state_dict()
    average([run.ema[key] for key in present], list(present.values()), run.step, options.ema)
    run.step += 1
    return errors, columns


def _validate(run: Run, recipe: PhotographRecipe, lesson: Lesson, out: Path) -> None:
    net = run.averaged()
    figures = lesson.figures(net)
    console.print(f"step {run.step} " + ", ".join(f"{name} {value:+.2f}" for name, value in figures.items()))
    best = max((row["mean"] for row in read_rows(out / "validation.csv")), default=-math.inf)
    for name in (recipe.name, *([f"{recipe.name}-best"] if figures["mean"] > best else [])):
        lesson.write(net, out / f"{name}.safetensors", recipe.about(run.step))
    append_row(out / "validation.csv", {"step": run.step, **figures})
    draw_curves(out)
