"""Training patches: real scenes, cropped, turned, brightened and degraded; every draw follows from seed and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.degradations import DEGRADATIONS
from runtime.errors import CubeError, CubeFileError, InputError
from runtime.files import read_cube
from runtime.metrics import prompt_metrics
from training.recipe import Data, Patches

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Degraded and clean patches [B, bands, H, W], the prompt metrics [B, M] of the degraded ones, their tasks."""

    degraded: Float32
    clean: Float32
    metrics: Float32
    tasks: tuple[str, ...]


def load_scenes(folders: Path | Sequence[Path], data: Data) -> dict[str, Float32]:
    """Scenes of folders of .npz files (key `cube`, [lines, samples, bands]) as {name: [bands, lines, samples]}.

    What stands for 1.0 is divided out; values below zero, which reflectance products have, become zero.

    Raises:
        InputError: no .npz file in a folder, or two of one name.
        CubeFileError: a file that is no scene.
        CubeError: a scene is not finite, or dark throughout.
    """
    scenes: dict[str, Float32] = {}
    for folder in [folders] if isinstance(folders, Path) else folders:
        paths = sorted(folder.glob("*.npz"))
        if not paths:
            raise InputError("no training scenes", file=folder, remedy="point --data at folders of .npz cubes")
        for path in paths:
            if path.stem in scenes:
                raise InputError("two scenes of one name", file=path, remedy="rename one")
            try:
                cube = read_cube(path).cube.astype(np.float32)
            except CubeFileError as error:
                raise CubeFileError(
                    f"is no scene: {error.problem}", file=path, key=error.key, value=error.value, remedy=error.remedy
                ) from error
            key = max((k for k in data.scales if path.stem.startswith(k)), key=len, default=None)
            wanted = data.scale if key is None else data.scales[key]
            scale = float(cube.max()) if wanted == "max" else wanted
            if not np.isfinite(cube).all() or scale <= 0:
                raise CubeError("the scene is not finite, or dark throughout", file=path, remedy="leave it out")
            scenes[path.stem] = np.maximum(cube / np.float32(scale), 0)
    return scenes


def draw_patch(scene: Float32, bands: int, size: int, gain: tuple[float, float], rng: np.random.Generator) -> Float32:
    """One clean patch [bands, size, size]: random neighbouring bands, place, turn, mirror and brightness."""
    line = rng.integers(scene.shape[1] - size + 1)
    sample = rng.integers(scene.shape[2] - size + 1)
    first = rng.integers(scene.shape[0] - bands + 1)
    patch = scene[first : first + bands, line : line + size, sample : sample + size]
    patch = np.rot90(patch, rng.integers(4), (1, 2))
    if rng.random() < 0.5:
        patch = patch[:, :, ::-1]
    bright = float(np.quantile(patch, 0.999))
    factor = min(np.exp(rng.uniform(*np.log(gain))), 1 / max(bright, 1e-3))
    return np.ascontiguousarray(patch * np.float32(factor))


def draw_batch(
    scenes: Sequence[Float32],
    tasks: Mapping[str, float],
    patches: Sequence[Patches],
    gain: tuple[float, float],
    bands: int,
    metric_set: str,
    seed: int,
    step: int,
) -> Batch:
    """The batch of one step; the same seed and step give the same batch."""
    rng = np.random.default_rng([seed, step])
    shares = np.array([p.share for p in patches], float)
    chosen = patches[rng.choice(len(patches), p=shares / shares.sum())]
    names, weights = list(tasks), np.array(list(tasks.values()), float)
    clean, degraded, metrics, drawn = [], [], [], []
    for _ in range(chosen.count):
        patch = draw_patch(scenes[rng.integers(len(scenes))], bands, chosen.size, gain, rng)
        task = names[rng.choice(len(names), p=weights / weights.sum())]
        bad = DEGRADATIONS[task](patch, rng)
        clean.append(patch)
        degraded.append(bad)
        metrics.append(prompt_metrics(bad, metric_set))
        drawn.append(task)
    return Batch(np.stack(degraded), np.stack(clean), np.stack(metrics), tuple(drawn))
