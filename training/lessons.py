"""Training by a lesson: what a network learns of its batches, for networks that a recipe names by their architecture.

AdamW, cosine with warm-up, exponential moving average, float32, on a CPU. A run goes on from its last saved state, a
minute old at most, and its numbers are those of a run that never stopped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from training.console import console
from training.curves import append_row, draw_curves, read_rows
from training.loop import Errors, average, forget_after, go, learning_rate, locked, read_state, write_state
from training.recipe import LessonRecipe

STATE = frozenset({"net", "optimiser", "ema", "step", "recipe", "seen"})
Batch = TypeVar("Batch")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)


class Lesson(Protocol[Taken]):
    """How one network learns.

    Attributes:
        columns: of the log: tasks, and what else patches are counted by.
    """

    columns: tuple[str, ...]

    def begin(self) -> nn.Module:
        """The network before its first step; what is frozen asks for no gradient."""

    def learn(self, net: nn.Module, batch: Taken, step: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """The loss of a batch, the L1 errors [B] of its patches, and the column that each belongs to."""

    def figures(self, net: nn.Module) -> Mapping[str, float]:
        """How well it goes on what is held out; `mean` is what the best of a run is chosen by."""

    def write(self, net: nn.Module, file: Path, about: str) -> Path:
        """Write the checkpoint."""


class Batches(Protocol[Given]):
    """What is drawn."""

    def batch(self, step: int) -> Given:
        """The batch of one step, which follows from the recipe's seed and the step."""


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


def teach(recipe: LessonRecipe, lesson: Lesson[Batch], draws: Batches[Batch], out: Path) -> Path:
    """Run the recipe to its end (or go on with it) and return the path of the written checkpoint.

    `out` receives state.pt, training.csv (mean L1, and per column), validation.csv, curves.png, and at every validation
    `<name>.safetensors` of the average so far; `<name>-best.safetensors` is the one that validated best.

    Raises:
        DeployError: another recipe's state, a full disk, or another process at the same run.
        KeyboardInterrupt: stopped; the state is saved, the same call goes on.
    """
    run, state = begin(recipe, lesson), out / "state.pt"
    with locked(out):
        if state.exists():
            resume(run, recipe, state)
        forget_after(out, run.step)
        go(
            run, recipe, out, lesson.columns, step=partial(step, run, recipe, lesson, draws),
            validate=partial(_validate, run, recipe, lesson, out), save=partial(save, run, recipe, state),
        )  # fmt: skip
        return lesson.write(run.averaged(), out / f"{recipe.name}.safetensors", recipe.about(run.step))


def begin(recipe: LessonRecipe, lesson: Lesson[Any]) -> Run:
    """The run before its first step."""
    torch.manual_seed(recipe.seed)
    net = lesson.begin()
    learned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, weight_decay=recipe.optimiser.weight_decay)
    return Run(net, optimiser, {k: v.clone() for k, v in net.state_dict().items()}, recipe.optimiser.steps)


def save(run: Run, recipe: LessonRecipe, file: Path) -> None:
    """Write the state from which `resume` goes on."""
    state = {
        "net": run.net.state_dict(), "optimiser": run.optimiser.state_dict(), "ema": run.ema, "step": run.step,
        "recipe": recipe.digest(), "seen": run.seen,
    }  # fmt: skip
    write_state(file, state)


def resume(run: Run, recipe: LessonRecipe, file: Path) -> None:
    """Bring `run` to where `file` says. Raises ConfigError where another recipe wrote it, InputError for no state."""
    state = read_state(file, STATE, recipe.digest(), torch.device("cpu"))
    run.net.load_state_dict(state["net"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.ema, run.step, run.seen = state["ema"], state["step"], state["seen"]


def step(run: Run, recipe: LessonRecipe, lesson: Lesson[Batch], draws: Batches[Batch]) -> Errors:
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


def _validate(run: Run, recipe: LessonRecipe, lesson: Lesson[Any], out: Path) -> None:
    net = run.averaged()
    figures = lesson.figures(net)
    console.print(f"step {run.step} " + ", ".join(f"{name} {value:+.2f}" for name, value in figures.items()))
    best = max((row["mean"] for row in read_rows(out / "validation.csv")), default=-math.inf)
    for name in (recipe.name, *([f"{recipe.name}-best"] if figures["mean"] > best else [])):
        lesson.write(net, out / f"{name}.safetensors", recipe.about(run.step))
    append_row(out / "validation.csv", {"step": run.step, **figures})
    draw_curves(out)
