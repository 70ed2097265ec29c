"""How well something restores: every task on every scene, beside the degraded input and a classical baseline.

Whatever restores a cube is measured alike: a network in PyTorch, a bundle's engine. Degradations follow from the seed,
the task and the scene's name, so that a scene's row does not depend on which other scenes were measured.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from calibration.baselines import baseline_of
from calibration.measuring import Measuring, bands_measured, fitting
from calibration.quality import Quality, quality
from runtime.arrays import Float32
from runtime.errors import CubeError
from runtime.prompts import Prompts

Contenders = tuple[Quality | None, Quality | None, Quality]
"""Of the input, the classical method and the model."""
Restore = Callable[[Float32, Prompts], tuple[Float32, Float32]]
"""Cube [bands, lines, samples] -> restored cube and experts' weights [layers, experts], averaged over tiles."""


@dataclass(frozen=True)
class Row:
    """One scene and task; quality is over the lost bands where bands were lost.

    Attributes:
        task, scene: which.
        input, baseline, model: quality of the degraded cube and of both restored ones against the scene; None where
            what is measured is no such cube, or no classical method is known.
        routing: float32 [layers, experts], mean over tiles; zero where an expert was not chosen.
    """

    task: str
    scene: str
    input: Quality | None
    baseline: Quality | None
    model: Quality
    routing: Float32


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
    for name, scene in scenes:
        truth = fitting(measuring.signature, scene)
        for task in measuring.tasks if tasks is None else tasks:
            rng = np.random.default_rng([seed, measuring.tasks.index(task), zlib.crc32(name.encode())])
            degraded = measuring.measured(task, truth, rng)
            bands = bands_measured(task, degraded, truth)
            baseline = baseline_of(measuring, task)
            classical = None if baseline is None else baseline.restore(degraded)
            restored, routing = restore(degraded, measuring.prompts.for_task(task))
            if not np.isfinite(restored).all():
                raise CubeError(
                    f"the model's output after {task} is not finite", file=name, remedy="check the model's weights"
                )
            before = quality(degraded, truth, bands) if measuring.measure is None else None
            beside = None if classical is None else quality(classical, truth, bands)
            row = Row(task, name, before, beside, quality(restored, truth, bands), routing)
            yield row, Cubes(degraded, classical, restored, truth)


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
