"""How a network's frames come from clean cubes: damaged in themselves, or measured by its instrument."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools, Float32
from runtime.errors import CubeError
from runtime.filling import filled
from runtime.prompts import Prompts
from runtime.signature import Signature

from .degradations import DEGRADATIONS, TRAINING, UNSEEN, lost, lost_bands

Measure = Callable[[Mapping[str, Float32], str, Float32, np.random.Generator], Float32]
CLEAN = "clean"
TASKS = (*TRAINING, *reversed(UNSEEN))
"""What a network of damaged cubes is measured by: the tasks it was trained on, then those it was not."""
LOSE_BANDS = ("bandloss", "mixed")


@dataclass(frozen=True)
class Measuring:
    """How a network's frames are made.

    Attributes:
        prompts: of the network; its signature says what goes in and what comes out.
        tasks: what it is judged by.
        measure: (`instrument`, task, clean cube [bands, lines, samples], random numbers) -> what is measured of it;
            None damages the cube by `calibration.degradations`.
        instrument: {name: array} of what measures.

    Raises:
        ValueError: there is no `measure`, and what is restored is unlike what is measured.
    """

    prompts: Prompts
    tasks: tuple[str, ...] = TASKS
    measure: Measure | None = None
    instrument: Mapping[str, Float32] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.measure is None and not self.signature.alike:
            raise ValueError("what is not measured as it is restored needs a `measure` of its instrument")

    @property
    def signature(self) -> Signature:
        """Of the network."""
        return self.prompts.signature

    @property
    def fit(self) -> tuple[str, ...]:
        """Tasks that int8 ranges are chosen from: those that were trained, and the undamaged cube."""
        return (*(task for task in self.tasks if task not in UNSEEN), *([CLEAN] if self.measure is None else []))

    def measured(self, task: str, clean: Float32, rng: np.random.Generator) -> Float32:
        """What is measured of a clean cube. Raises CubeError, InputError as the degradations do."""
        if task == CLEAN:
            return clean
        if self.measure is None:
            return DEGRADATIONS[task](clean, rng)
        return self.measure(self.instrument, task, clean, rng)

    def missing(self, measured: Float32, task: str | None) -> Bools | None:
        """What of it [bands, lines, samples] is known to be missing; None where the network does not care."""
        return lost(task, measured) if task is not None and self.signature.fills else None

    def feeds(self, measured: Float32, task: str | None = None) -> dict[str, Float32]:
        """What the engine is fed with for a measured frame [bands, lines, samples], of a task where it is of one."""
        prompts = self.prompts if task is None else self.prompts.for_task(task)
        holes = self.missing(measured, task)
        frame = measured if holes is None else filled(measured, holes)
        return {self.signature.measured.name: np.ascontiguousarray(frame[None]), **prompts(measured)}


def fitting(signature: Signature, clean: Float32, file: Path | None = None) -> Float32:
    """A clean cube as large as the network can restore: its middle, where frames have one place only.

    Raises:
        CubeError: it is smaller.
    """
    size = signature.restored.size
    if signature.tiling == "free" or clean.shape[1:] == size:
        return clean
    first = [(have - want) // 2 for have, want in zip(clean.shape[1:], size, strict=True)]
    if min(first) < 0:
        raise CubeError(
            "the cube is smaller than the network's one frame",
            file=file,
            key="cube",
            value=f"{clean.shape[1]}x{clean.shape[2]}",
            remedy=f"give {size[0]} lines x {size[1]} samples, or more",
        )
    return clean[:, first[0] : first[0] + size[0], first[1] : first[1] + size[1]]


def bands_measured(task: str, degraded: Float32, truth: Float32) -> NDArray[np.bool_] | None:
    """The bands that a task's quality is taken over, bool [bands]; None is all of them.

    After band loss these are the bands that were lost. One that is dark in the truth too lost nothing, and would count
    as perfectly restored.
    """
    if task not in LOSE_BANDS:
        return None
    lost = lost_bands(degraded) & ~lost_bands(truth)
    return lost if lost.any() else None
