"""What the trainer asks of a network for photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from calibration.quality import psnr
from runtime.arrays import Float32
from training.rgb.draws import Batch, Held


class Lesson(Protocol):
    """How one network learns.

    Attributes:
        columns: of the log: tasks, and what else patches are counted by.
    """

    columns: tuple[str, ...]

    def begin(self) -> nn.Module:
        """The network before its first step; what is frozen asks for no gradient."""

    def learn(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """The loss of a batch, the L1 errors [B] of its patches, and the column that each belongs to."""

    def figures(self, net: nn.Module) -> Mapping[str, float]:
        """How well it goes on the held photographs; `mean` is what the best of a run is chosen by."""

    def write(self, net: nn.Module, file: Path, about: str) -> Path:
        """Write the checkpoint."""


def gain(held: Held, restored: Float32) -> float:
    """PSNR over the degraded picture, in dB."""
    return psnr(restored, held.clean) - psnr(held.bad, held.clean)


def mean_by_task(held: Sequence[Held], values: Sequence[float]) -> dict[str, float]:
    """The mean of one value for each held picture, by task."""
    tasks = dict.fromkeys(each.task for each in held)
    return {t: float(np.mean([v for each, v in zip(held, values, strict=True) if each.task == t])) for t in tasks}


def one(picture: Float32) -> Tensor:
    """A picture as a batch of one."""
    return torch.from_numpy(picture)[None]
