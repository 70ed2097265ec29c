"""What wrong metrics cost: networks whose answer to their metrics is known."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.test_training import BANDS, made
from training.validation import HeldScene, held_scenes, prompt_costs

TASKS = ("noise", "blur", "sr")
NEEDED = {"noise": 0.1, "blur": 0.2, "sr": 0.4}
"""What a task took from a scene, and the first metric says."""


class Corrected(nn.Module):
    """Adds a share of its first metric to its frame."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.config = made().config
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, frame: Tensor, metrics: Tensor) -> tuple[Tensor, None]:
        assert not self.training
        return frame + self.share * metrics[:, :1, None, None], None


def held(tasks: tuple[str, ...] = TASKS) -> tuple[HeldScene, ...]:
    """Scenes darkened by what their task takes, twice as much at the second place; metrics give all but 0.01 back."""
    clean = np.random.default_rng(0).uniform(0.1, 0.9, (BANDS, 64, 64)).astype(np.float32)
    scenes = []
    for task, place in product(tasks, (0, 1)):
        taken = np.float32(NEEDED.get(task, 7.7) * (1 + place))
        bad = clean - taken
        metrics = np.array([taken - 0.01, *range(5)], np.float32)
        scenes.append(HeldScene(task, place, bad, clean, metrics, bad))
    return tuple(scenes)


def decibels(error: float) -> float:
    return 20 * math.log10(error)


def test_metrics_that_are_not_looked_at_cost_nothing() -> None:
    nothing = dict.fromkeys(("zeros", "wrong", "worst"), 0.0)
    assert prompt_costs(Corrected(0.0), held(), TASKS) == dict.fromkeys(TASKS, nothing)
    random = {"a": np.random.default_rng(1).uniform(0, 1, (BANDS, 64, 70)).astype(np.float32)}
    assert prompt_costs(Corrected(0.0), held_scenes(random, made()), TASKS) == dict.fromkeys(TASKS, nothing)


def test_costs_are_of_zeros_and_of_the_other_tasks_metrics_at_the_same_place() -> None:
    costs = prompt_costs(Corrected(1.0), held(), TASKS)
    assert list(costs) == list(TASKS)
    for task, needed in NEEDED.items():
        # Errors at both places in 0.01, which is what is left under their own metrics.
        zeros = [100 * needed * twice for twice in (1, 2)]
        wrong = [[abs(100 * (needed - NEEDED[o]) * twice + 1) for o in TASKS if o != task] for twice in (1, 2)]
        expected = {
            "zeros": np.mean([decibels(error) for error in zeros]),
            "wrong": np.mean([decibels(error) for errors in wrong for error in errors]),
            "worst": np.mean([decibels(max(errors)) for errors in wrong]),
        }
        assert costs[task] == pytest.approx(expected, abs=1e-3)


def test_tasks_that_are_not_asked_for_are_neither_measured_nor_shown() -> None:
    every = held((*TASKS, "poisson", "stripes"))
    assert prompt_costs(Corrected(1.0), every, TASKS) == prompt_costs(Corrected(1.0), held(), TASKS)
