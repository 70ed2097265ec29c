"""What lessons of networks for photographs count by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calibration.quality import psnr
from runtime.arrays import Float32
from training.rgb.draws import Held


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
