"""Training patches: real scenes, cropped, turned, brightened and degraded; every draw follows from seed and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.degradations import DEGRADATIONS
from runtime.errors import InputError
from runtime.metrics import prompt_metrics

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Degraded and clean patches [B, bands, H, W] and the prompt metrics [B, M] of the degraded ones."""

    degraded: Float32
    clean: Float32
    metrics: Float32


def load_scenes(folder: Path, scale: float) -> dict[str, Float32]:
    """Scenes of a folder of .npz files (key `cube`, [lines, samples, bands]) as {name: [bands, lines, samples]}.

    Raises:
        InputError: no .npz file there.
    """
    scenes = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            cube = archive["cube"]
        scenes[path.stem] = np.ascontiguousarray(cube.transpose(2, 0, 1), np.float32) / np.float32(scale)
    if not scenes:
        raise InputError("no training scenes", file=folder, remedy="point --data at a folder of .npz cubes")
    return scenes


def draw_patch(scene: Float32, size: int, gain: tuple[float, float], rng: np.random.Generator) -> Float32:
    """One clean patch [bands, size, size]: random place, turn, mirror and brightness."""
    line = rng.integers(scene.shape[1] - size + 1)
    sample = rng.integers(scene.shape[2] - size + 1)
    patch = scene[:, line : line + size, sample : sample + size]
    patch = np.rot90(patch, rng.integers(4), (1, 2))
    if rng.random() < 0.5:
        patch = patch[:, :, ::-1]
    bright = float(np.quantile(patch, 0.999))
    factor = min(np.exp(rng.uniform(*np.log(gain))), 1 / max(bright, 1e-3))
    return np.ascontiguousarray(patch * np.float32(factor))


def draw_batch(
    scenes: Sequence[Float32],
    tasks: Mapping[str, float],
    patches: Sequence[tuple[int, int, float]],
    gain: tuple[float, float],
    metric_set: str,
    seed: int,
    step: int,
) -> Batch:
    """The batch of one step; the same seed and step give the same batch."""
    rng = np.random.default_rng([seed, step])
    shares = np.array([share for _, _, share in patches], float)
    count, size, _ = patches[rng.choice(len(patches), p=shares / shares.sum())]
    names, weights = list(tasks), np.array(list(tasks.values()), float)
    clean, degraded, metrics = [], [], []
    for _ in range(count):
        patch = draw_patch(scenes[rng.integers(len(scenes))], size, gain, rng)
        bad = DEGRADATIONS[names[rng.choice(len(names), p=weights / weights.sum())]](patch, rng)
        clean.append(patch)
        degraded.append(bad)
        metrics.append(prompt_metrics(bad, metric_set))
    return Batch(np.stack(degraded), np.stack(clean), np.stack(metrics))
