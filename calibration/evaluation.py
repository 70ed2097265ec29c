"""How well something restores: every task on every scene, beside the degraded input and a classical baseline.

Whatever restores a cube is measured alike: a network in PyTorch, a bundle's engine. Degradations follow from the seed,
the task and the scene's name, so that a scene's row does not depend on which other scenes were measured.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from calibration.baselines import BASELINES
from calibration.degradations import DEGRADATIONS, TRAINING, UNSEEN, lost_bands
from calibration.quality import Quality, quality
from runtime.errors import CubeError

Float32 = NDArray[np.float32]
Restore = Callable[[Float32], tuple[Float32, Float32]]
"""Cube [bands, lines, samples] -> restored cube and gates [layers, experts], averaged over tiles."""

TASKS = (*TRAINING, "poisson", "motionblur")
"""What a model is measured by: the tasks it was trained on, then those it was not."""
assert set(TASKS) == {*TRAINING, *UNSEEN}
LOSE_BANDS = ("bandloss", "mixed")


@dataclass(frozen=True)
class Row:
    """One scene and task; quality is over the lost bands where bands were lost.

    Attributes:
        task, scene: which.
        input, baseline, model: quality of the degraded cube and of both restored ones against the scene.
        gates: float32 [layers, experts], mean over tiles; zero where an expert was not chosen.
    """

    task: str
    scene: str
    input: Quality
    baseline: Quality
    model: Quality
    gates: Float32


@dataclass(frozen=True)
class Cubes:
    """The cubes of a row [bands, lines, samples], for pictures."""

    degraded: Float32
    baseline: Float32
    restored: Float32
    truth: Float32


def evaluate(
    scenes: Iterable[tuple[str, Float32]], restore: Restore, *, tasks: Sequence[str] = TASKS, seed: int = 0
) -> Iterator[tuple[Row, Cubes]]:
    """Degrade, restore and measure; one row after the other, tasks within scenes.

    Args:
        scenes: name and clean cube [bands, lines, samples] in [0, 1].
        restore: what is measured.
        tasks: of `TASKS`.
        seed: of the degradations.

    Raises:
        CubeError: a scene cannot be degraded or restored.
        MachineError: the baselines' library is not installed.
    """
    for name, truth in scenes:
        for task in tasks:
            rng = np.random.default_rng([seed, TASKS.index(task), zlib.crc32(name.encode())])
            degraded = DEGRADATIONS[task](truth, rng)
            bands = bands_measured(task, degraded, truth)
            classical = BASELINES[task].restore(degraded)
            restored, gates = restore(degraded)
            if not np.isfinite(restored).all():
                raise CubeError(
                    f"the model's output after {task} is not finite", file=name, remedy="check the model's weights"
                )
            row = Row(
                task,
                name,
                quality(degraded, truth, bands),
                quality(classical, truth, bands),
                quality(restored, truth, bands),
                gates,
            )
            yield row, Cubes(degraded, classical, restored, truth)


def bands_measured(task: str, degraded: Float32, truth: Float32) -> NDArray[np.bool_] | None:
    """The bands that a task's quality is taken over, bool [bands]; None is all of them.

    After band loss these are the bands that were lost. One that is dark in the truth too lost nothing, and would count
    as perfectly restored.
    """
    if task not in LOSE_BANDS:
        return None
    lost = lost_bands(degraded) & ~lost_bands(truth)
    return lost if lost.any() else None


def mean_quality(figures: Sequence[Quality]) -> Quality:
    """The mean of every figure."""
    return Quality(**{f.name: float(np.mean([getattr(q, f.name) for q in figures])) for f in fields(Quality)})


def means(rows: Sequence[Row]) -> Mapping[str, tuple[Quality, Quality, Quality]]:
    """{task: (input, baseline, model)}, means over scenes, in the order of the rows."""
    found: dict[str, tuple[Quality, Quality, Quality]] = {}
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        found[task] = (
            mean_quality([r.input for r in of_task]),
            mean_quality([r.baseline for r in of_task]),
            mean_quality([r.model for r in of_task]),
        )
    return found


def choices(rows: Sequence[Row]) -> Mapping[str, NDArray[np.float64]]:
    """{task: share of scenes in which every expert was chosen, float64 [layers, experts]}.

    Rows sum to top-k where a scene is one frame; in a larger one, tiles and band groups choose for themselves, and an
    expert counts that any of them chose.
    """
    tasks = dict.fromkeys(row.task for row in rows)
    return {task: np.mean([row.gates > 0 for row in rows if row.task == task], axis=0) for task in tasks}
