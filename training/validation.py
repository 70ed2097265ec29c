"""What a network gains on scenes that it is not trained on, and what it loses when it is shown wrong metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from calibration.degradations import DEGRADATIONS
from calibration.measuring import bands_measured
from calibration.quality import psnr
from export.networks.damp import SIZE_MULTIPLE
from runtime.arrays import Float32
from runtime.metrics import prompt_metrics
from training.data import made_up
from training.degrading import DAMAGES
from training.recipe import Recipe

VALIDATION_SIZE = 128
COSTS = ("zeros", "wrong", "worst")


@dataclass(frozen=True)
class HeldScene:
    """A scene degraded by one task.

    Attributes:
        bad, clean: [bands, lines, samples].
        metrics: [M] of `bad`.
        given: what the network is given: `bad`, or `bad` filled.
    """

    task: str
    place: int
    bad: Float32
    clean: Float32
    metrics: Float32
    given: Float32

    def gain(self, restored: Float32) -> float:
        """PSNR over the degraded input in dB; over the lost bands after band loss."""
        bands = bands_measured(self.task, self.bad, self.clean)
        return psnr(restored, self.clean, bands) - psnr(self.bad, self.clean, bands)


def held_scenes(scenes: Mapping[str, Float32], recipe: Recipe) -> tuple[HeldScene, ...]:
    """Every scene under every task, the same for a seed: centre crops, and of scenes of more bands the middle ones.

    Scenes smaller than a frame are left out.
    """
    config, held = recipe.config, []
    for index, task in enumerate(DAMAGES):
        for place, scene in enumerate(scenes.values()):
            size = min(VALIDATION_SIZE, min(scene.shape[1:]) // SIZE_MULTIPLE * SIZE_MULTIPLE)
            if size == 0:
                continue
            band, line, sample = ((n - m) // 2 for n, m in zip(scene.shape, (config.bands, size, size), strict=True))
            clean = scene[band : band + config.bands, line : line + size, sample : sample + size]
            bad = DEGRADATIONS[task](clean, np.random.default_rng([recipe.seed, index, place]))
            metrics = prompt_metrics(bad, config.metric_set)
            shown = np.zeros_like(metrics) if recipe.ablate == "prompt" else metrics
            given = made_up(task, bad) if recipe.fill else bad
            held.append(HeldScene(task, place, bad, clean, shown, given))
    return tuple(held)


def validate(net: nn.Module, held: Sequence[HeldScene]) -> dict[str, float]:
    """Gain in dB of every task, mean over its scenes; NaN where there is none."""
    gains: dict[str, list[float]] = {task: [] for task in DAMAGES}
    for scene in held:
        gains[scene.task].append(scene.gain(_restored(net, scene, [scene.metrics])[0]))
    return {task: float(np.mean(rows)) if rows else float("nan") for task, rows in gains.items()}


def prompt_costs(net: nn.Module, held: Sequence[HeldScene], tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """What wrong metrics cost in dB: {task: {kind of COSTS: dB}}, mean over the scenes.

    `wrong` is the mean over the metrics of the same scene under each of the other tasks, `worst` the most of them.
    Nothing is measured where there is but one task.
    """
    if len(tasks) < 2:
        return {}
    costs: dict[str, dict[str, list[float]]] = {}
    for scene in held:
        if scene.task not in tasks:
            continue
        others = [h.metrics for h in held if h.place == scene.place and h.task in tasks and h.task != scene.task]
        prompts = [scene.metrics, np.zeros_like(scene.metrics), *others]
        own, zeros, *wrong = [scene.gain(restored) for restored in _restored(net, scene, prompts)]
        row = costs.setdefault(scene.task, {"zeros": [], "wrong": [], "worst": []})
        row["zeros"].append(own - zeros)
        row["wrong"].append(own - float(np.mean(wrong)))
        row["worst"].append(own - min(wrong))
    return {task: {kind: float(np.mean(values)) for kind, values in row.items()} for task, row in costs.items()}


def _restored(net: nn.Module, scene: HeldScene, prompts: Sequence[Float32]) -> list[Float32]:
    net.eval()
    device = next(net.parameters()).device
    frame = torch.from_numpy(np.ascontiguousarray(scene.given))[None].to(device)
    with torch.no_grad():
        return [net(frame, torch.from_numpy(p)[None].to(device))[0][0].cpu().numpy() for p in prompts]
