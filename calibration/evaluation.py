"""How well something restores: every task on every scene, beside the degraded input and a classical baseline.

Whatever restores a cube is measured alike: a network in PyTorch, a bundle's engine. Degradations follow from the seed,
the task and the scene's name, so that a scene's row does not depend on which other scenes were measured.
"""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from calibration.baselines import baseline_of
from calibration.degradations import lost
from calibration.measuring import Measuring, bands_measured, fitting
from calibration.quality import Quality, quality
from runtime.arrays import Bools, Float32
from runtime.errors import CubeError
from runtime.prompts import Prompts

Contenders = tuple[Quality | None, Quality | None, Quality]
"""Of the input, the classical method and the model."""
Restore = Callable[[Float32, Prompts, Bools | None], tuple[Float32, Float32]]
"""Cube [bands, lines, samples], prompts, and which of its elements are known to be missing, None where none can be ->
restored cube and experts' weights [layers, experts], averaged over tiles."""


@dataclass(frozen=True)
class Restorer:
    """What is measured.

    Attributes:
        name: of the model; empty where it is the only one.
        restore: what restores.
        measuring: how its frames come from the scenes.
    """

    name: str
    restore: Restore
    measuring: Measuring


@dataclass(frozen=True)
class Row:
    """One scene and task; quality is over the lost bands where bands were lost.

    Attributes:
        task, scene: which.
        input, baseline, model: quality of the degraded cube and of both restored ones against the scene; None where
            what is measured is no such cube, or no classical method is known.
        routing: float32 [layers, experts], mean over tiles; zero where an expert was not chosen.
        name: of the model.
        seconds, baseline_seconds: of all cores together, that model and classical method took.
    """

    task: str
    scene: str
    input: Quality | None
    baseline: Quality | None
    model: Quality
    routing: Float32
    name: str = ""
    seconds: float = 0.0
    baseline_seconds: float = 0.0


@dataclass(frozen=True)
class Cubes:
    """The cubes of a row [bands, lines, samples], for pictures."""

    degraded: Float32
    baseline: Float32 | None
    restored: Float32
    truth: Float32


def evaluate(
    scenes: Iterable[tuple[str, Float32]],
    restore: Restore,
    measuring: Measuring,
    *,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[tuple[Row, Cubes]]:
    """Degrade, restore and measure; one row after the other, tasks within scenes.

    Args:
        scenes: name and clean cube [bands, lines, samples] in [0, 1].
        restore: what is measured.
        measuring: how its frames come from the scenes.
        tasks: of `measuring.tasks`; None for all.
        seed: of the degradations.

    Raises:
        CubeError: a scene cannot be degraded or restored.
        MachineError: the baselines' library is not installed.
    """
    for (row,), (cubes,) in compared(scenes, (Restorer("", restore, measuring),), tasks=tasks, seed=seed):
        yield row, cubes


def compared(
    scenes: Iterable[tuple[str, Float32]],
    restorers: Sequence[Restorer],
    *,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[tuple[list[Row], list[Cubes]]]:
    """The same of several that take the same scenes and tasks: the rows and cubes of a task and scene, one for each.

    They are given the same degraded cube, which is degraded as the first has it alone, and are beside the same
    restoration by the classical method.
    """
    first = restorers[0].measuring
    for name, scene in scenes:
        truth = fitting(first.signature, scene)
        for task in first.tasks if tasks is None else tasks:
            rng = np.random.default_rng([seed, first.tasks.index(task), zlib.crc32(name.encode())])
            degraded = first.measured(task, truth, rng)
            bands = bands_measured(task, degraded, truth)
            missing = lost(task, degraded) if first.measure is None else None
            baseline = baseline_of(first, task)
            begun = time.process_time()
            classical = None if baseline is None else baseline.restore(degraded)
            taken = time.process_time() - begun
            before = quality(degraded, truth, bands) if first.measure is None else None
            beside = None if classical is None else quality(classical, truth, bands)
            rows, cubes = [], []
            for each in restorers:
                prompts = each.measuring.prompts.for_task(task)
                begun = time.process_time()
                restored, routing = each.restore(degraded, prompts, missing)
                seconds = time.process_time() - begun
                if not np.isfinite(restored).all():
                    raise CubeError(
                        f"the model's output after {task} is not finite", file=name, remedy="check the model's weights"
                    )
                made = quality(restored, truth, bands)
                rows.append(Row(task, name, before, beside, made, routing, each.name, seconds, taken))
                cubes.append(Cubes(degraded, classical, restored, truth))
            yield rows, cubes


def mean_quality(figures: Sequence[Quality]) -> Quality:
    """The mean of every figure."""
    return Quality(**{f.name: float(np.mean([getattr(q, f.name) for q in figures])) for f in fields(Quality)})


def known_mean(figures: Iterable[Quality | None]) -> Quality | None:
    """The mean of every figure; None where nothing was measured."""
    known = [q for q in figures if q is not None]
    return mean_quality(known) if known else None


def means(rows: Sequence[Row]) -> Mapping[str, Contenders]:
    """{task: (input, baseline, model)}, means over scenes, in the order of the rows."""
    found: dict[str, Contenders] = {}
    for task in dict.fromkeys(row.task for row in rows):
        given, classical, made = zip(*((r.input, r.baseline, r.model) for r in rows if r.task == task), strict=True)
        found[task] = known_mean(given), known_mean(classical), mean_quality(made)
    return found


def choices(rows: Sequence[Row]) -> Mapping[str, NDArray[np.float64]]:
    """{task: share of scenes in which every expert was chosen, float64 [layers, experts]}.

    Rows sum to top-k where a scene is one frame; in a larger one, tiles and band groups choose for themselves, and an
    expert counts that any of them chose.
    """
    tasks = dict.fromkeys(row.task for row in rows)
    return {task: np.mean([row.routing > 0 for row in rows if row.task == task], axis=0) for task in tasks}
