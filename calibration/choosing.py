"""Which of several models to use, and where none is needed: what rows of `calibration.evaluation` come to, in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.evaluation import Contenders, Row, known_mean, mean_quality, means
from calibration.quality import Quality

AHEAD_DB = 0.1
"""A model that is not so far ahead of a classical method is not worth its network: a tenth of what is just visible."""


@dataclass(frozen=True)
class Standing:
    """How a model, or what stands beside it, did over all tasks and scenes.

    Attributes:
        quality: means over scenes, then over tasks; None where nothing was measured.
        gain: PSNR over the degraded input in dB, None where there is none.
        seconds: CPU time per scene and task, over all cores.
    """

    quality: Quality | None
    gain: float | None
    seconds: float


@dataclass(frozen=True)
class Choice:
    """What to use.

    Attributes:
        tasks: {task: {model: (input, baseline, model), means over scenes}}.
        models: {model: how it did}.
        baseline: how the classical methods did.
        best: {task: the model of the highest PSNR}.
        overall: the model of the highest mean PSNR over tasks.
        classical: {task: classical method} where no model is more than `AHEAD_DB` ahead of it.
    """

    tasks: Mapping[str, Mapping[str, Contenders]]
    models: Mapping[str, Standing]
    baseline: Standing
    best: Mapping[str, str]
    overall: str
    classical: Mapping[str, str]


def choice_of(rows: Sequence[Row], methods: Mapping[str, str]) -> Choice:
    """What rows of one or several models come to.

    Args:
        rows: of the same scenes and tasks for every model.
        methods: {task: the classical method in words}.
    """
    own = {name: [row for row in rows if row.name == name] for name in dict.fromkeys(row.name for row in rows)}
    of_models = {name: means(mine) for name, mine in own.items()}
    first = next(iter(of_models.values()))
    tasks = {task: {name: found[task] for name, found in of_models.items()} for task in first}
    best = {task: max(found, key=lambda name: found[name][2].psnr) for task, found in tasks.items()}
    standings = {
        name: _standing([(a, c) for a, _, c in found.values()], [row.seconds for row in own[name]])
        for name, found in of_models.items()
    }
    beside = [(a, b) for a, b, _ in first.values() if b is not None]
    one = next(iter(own.values()))
    classical = {}
    for task, found in tasks.items():
        beaten = found[best[task]][1]
        if task in methods and beaten is not None and found[best[task]][2].psnr - beaten.psnr <= AHEAD_DB:
            classical[task] = methods[task]
    return Choice(
        tasks,
        standings,
        _standing(beside, [row.baseline_seconds for row in one if row.baseline is not None]),
        best,
        max(of_models, key=lambda name: mean_quality([c for *_, c in of_models[name].values()]).psnr),
        classical,
    )


def _standing(pairs: Sequence[tuple[Quality | None, Quality]], seconds: Sequence[float]) -> Standing:
    gains = [after.psnr - before.psnr for before, after in pairs if before is not None]
    return Standing(
        known_mean([after for _, after in pairs]),
        float(np.mean(gains)) if gains else None,
        float(np.mean(seconds)) if seconds else 0.0,
    )


def classical_text(classical: Mapping[str, str]) -> str:
    """Where a classical method does as well; empty where none does."""
    parts = [f"use {method} for {tasks}" for method, tasks in _grouped(classical)]
    ahead = f"no model is more than {AHEAD_DB} dB ahead"
    return f"A classical method does as well or better ({ahead}): {'; '.join(parts)}." if parts else ""


def best_texts(choice: Choice) -> tuple[str, ...]:
    """Which of several models is the best, per task and in the mean, with its time."""
    standing = choice.models[choice.overall]
    assert standing.quality is not None, "a model is measured on every row"
    figure = f"{standing.quality.psnr:.2f} dB" if standing.gain is None else f"{standing.gain:+.2f} dB"
    mean = f"Best in the mean: {choice.overall}, {figure}, {standing.seconds:.2f} s of CPU per scene"
    if choice.baseline.gain is not None:
        mean += f" (classical methods {choice.baseline.gain:+.2f} dB, {choice.baseline.seconds:.2f} s)"
    each = "; ".join(f"{name} for {tasks}" for name, tasks in _grouped(choice.best))
    return f"{mean}.", f"Best of the models per task: {each}."


def _grouped(of_tasks: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(what, its tasks as a list for people), in the order of the tasks."""
    for what in dict.fromkeys(of_tasks.values()):
        yield what, ", ".join(task for task, own in of_tasks.items() if own == what)
