"""Training batches: real scenes, cropped, turned, brightened and degraded; every draw follows from seed and step.

All of it is made on the device that trains. On one device the same seed and step give the same batch; a GPU's generator
draws other fields of noise than a CPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.degradations import LOSE, lost
from export.metrics import PromptMetrics
from runtime.arrays import Float32
from runtime.errors import ConfigError, CubeError, CubeFileError, InputError
from runtime.files import read_cube
from runtime.filling import filled
from runtime.metrics import prompt_metrics
from training.degrading import DAMAGES, sent
from training.pack import CODED, read_coded
from training.photographs import SUFFIXES, linear, read_photograph, spectra
from training.recipe import Cubes, Data, Recipe

EVERY = 8
"""The brightest 0.1 % of a patch are looked for among every so many of its values."""


@dataclass(frozen=True)
class Scenes:
    """What a run has at hand.

    Attributes:
        cubes: {name: float32 [bands, lines, samples]}, 1.0 divided out.
        photographs: {name: uint8 [3, lines, samples]}, see `training.photographs`.
    """

    cubes: Mapping[str, Float32]
    photographs: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    def as_large_as(self, size: int, cubes: Mapping[str, Float32]) -> Scenes:
        """Those of `cubes` and of the photographs that have `size` lines and samples."""
        large = ({k: v for k, v in each.items() if min(v.shape[1:]) >= size} for each in (cubes, self.photographs))
        return Scenes(*large)


@dataclass(frozen=True)
class Batch:
    """Patches [B, bands, H, W] as the network is given them and clean, the prompt metrics [B, M], their tasks.

    Metrics are of the degraded patch; what the network is given is that patch, or that patch filled.
    """

    degraded: Tensor
    clean: Tensor
    metrics: Tensor
    tasks: tuple[str, ...]


def load_scenes(folders: Path | Sequence[Path], data: Cubes) -> Scenes:
    """Scenes of folders: .npz (key `cube`, [lines, samples, bands]), coded ones, photographs if the recipe wants them.

    What stands for 1.0 is divided out of cubes; values below zero, which reflectance products have, become zero.

    Raises:
        InputError: nothing usable in a folder, two files of one name, or a file that is no photograph.
        CubeFileError: a file that is no scene.
        CubeError: a scene is not finite, or dark throughout.
    """
    cubes: dict[str, Float32] = {}
    photographs: dict[str, NDArray[np.uint8]] = {}
    lifts = isinstance(data, Data) and data.photographs is not None
    kinds = (".npz", CODED, *SUFFIXES) if lifts else (".npz", CODED)
    for folder in [folders] if isinstance(folders, Path) else folders:
        paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in kinds)
        if not paths:
            pictures = any(path.suffix.lower() in SUFFIXES for path in folder.glob("*"))
            raise InputError(
                "holds photographs alone, and the recipe takes none" if pictures else "no training scenes", file=folder,
                remedy=f"point --data at folders of {', '.join(kinds)}"
            )  # fmt: skip
        for path in paths:
            if path.stem in cubes or path.stem in photographs:
                raise InputError("two scenes of one name", file=path, remedy="rename one")
            if path.suffix.lower() not in SUFFIXES:
                cubes[path.stem] = _cube(path, data)
            else:
                photographs[path.stem] = read_photograph(path)
    return Scenes(cubes, photographs)


def _cube(path: Path, data: Cubes) -> Float32:
    try:
        cube = read_coded(path) if path.suffix == CODED else read_cube(path).cube.astype(np.float32)
    except CubeFileError as error:
        raise CubeFileError(
            f"is no scene: {error.problem}", file=path, key=error.key, value=error.value, remedy=error.remedy
        ) from error
    key = max((k for k in data.scales if path.stem.startswith(k)), key=len, default=None)
    wanted = data.scale if key is None else data.scales[key]
    scale = float(cube.max()) if wanted == "max" else wanted
    if not np.isfinite(cube).all() or scale <= 0:
        raise CubeError("the scene is not finite, or dark throughout", file=path, remedy="leave it out")
    return np.maximum(cube / np.float32(scale), 0)


def held_out(cubes: dict[str, Float32], names: Sequence[str]) -> dict[str, Float32]:
    """Take the scenes of these names out of the others. Raises ConfigError where there is none of a name."""
    missing = sorted(set(names) - set(cubes))
    if missing:
        raise ConfigError("no such scene", key="data.validation", value=missing[0], remedy="name scenes of --data")
    return {name: cubes.pop(name) for name in dict.fromkeys(names)}


class Draws:
    """The batches of a recipe: scenes on the device, and what metrics are computed with.

    `steps` is the length of the run, which a curriculum goes by.
    """

    def __init__(self, recipe: Recipe, scenes: Scenes, device: torch.device) -> None:
        self.recipe, self.device, self.steps = recipe, device, recipe.optimiser.steps
        self._cubes = [torch.from_numpy(cube).to(device) for cube in scenes.cubes.values()]
        self._photographs: list[Tensor] = []
        self._spectra = torch.empty(0)
        config, photographs, spacing = recipe.config, recipe.data.photographs, recipe.data.wavelengths
        if photographs is not None and spacing is not None:
            self._photographs = [torch.from_numpy(linear(p)).to(device) for p in scenes.photographs.values()]
            centres = np.linspace(spacing.first, spacing.last, spacing.count)
            self._spectra = torch.from_numpy(spectra(tuple(centres))).to(device)
        sizes = {patches.size for patches in recipe.patches}
        self._metrics = {s: _measuring(config.metric_set, config.bands, s, device) for s in sizes}

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, step])
        fields = torch.Generator(self.device).manual_seed(int(rng.integers(1 << 62)))
        shares = np.array([p.share for p in recipe.patches])
        chosen = recipe.patches[rng.choice(len(shares), p=shares / shares.sum())]
        clean = torch.stack([self._patch(chosen.size, rng) for _ in range(chosen.count)])
        names, weights = list(recipe.tasks), np.array(list(recipe.tasks.values()))
        drawn = rng.choice(len(names), chosen.count, p=weights / weights.sum())
        strength = 1.0 if recipe.ease is None else recipe.ease.strength(step / self.steps, rng)
        degraded = torch.empty_like(clean)
        for index in sorted(set(drawn)):
            rows = sent(np.flatnonzero(drawn == index), self.device)
            degraded[rows] = DAMAGES[names[index]](clean[rows], rng, fields, strength)
        metrics = self._metrics[chosen.size](degraded)
        tasks = tuple(names[index] for index in drawn)
        if recipe.fill:
            for row, task in enumerate(tasks):
                if task in LOSE:
                    degraded[row] = sent(made_up(task, degraded[row].cpu().numpy()), self.device)
        return Batch(degraded, clean, metrics, tasks)

    def _patch(self, size: int, rng: np.random.Generator) -> Tensor:
        options = self.recipe.data.photographs
        if self._photographs and options is not None and rng.random() < options.share:
            patch = draw_patch(self._photographs[rng.integers(len(self._photographs))], 3, size, rng)
            patch = lifted(patch, self._spectra, options.tint, rng)
        else:
            patch = draw_patch(self._cubes[rng.integers(len(self._cubes))], self.recipe.config.bands, size, rng)
        return brightened(patch, self.recipe.data.gain, rng)


def made_up(task: str, degraded: Float32) -> Float32:
    """A degraded patch [bands, H, W] without holes."""
    missing = lost(task, degraded)
    return degraded if missing is None else filled(degraded, missing)


def _measuring(metric_set: str, bands: int, size: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What computes the metrics [B, M] of patches [B, bands, size, size]; NumPy those of sets that torch has not."""
    try:
        return PromptMetrics(metric_set, bands, size, size).to(device)
    except InputError:
        return lambda cubes: sent(np.stack([prompt_metrics(c, metric_set) for c in cubes.cpu().numpy()]), device)


def draw_patch(scene: Tensor, bands: int, size: int, rng: np.random.Generator) -> Tensor:
    """One patch [bands, size, size] of a scene [bands or more, lines, samples]: any neighbouring bands, place, turn."""
    first, line, sample = (int(rng.integers(n - m + 1)) for n, m in zip(scene.shape, (bands, size, size), strict=True))
    patch = scene[first : first + bands, line : line + size, sample : sample + size]
    patch = torch.rot90(patch, int(rng.integers(4)), (1, 2))
    return patch.flip(2) if rng.random() < 0.5 else patch


def lifted(photograph: Tensor, basis: Tensor, tint: float, rng: np.random.Generator) -> Tensor:
    """A photograph [3, H, W] as a cube [bands, H, W] under a light of its own.

    The light is the exponential of three cosines over the bands with weights of deviation `tint`, halved by the order:
    smooth, positive, and such that a photograph does not always have the same three spectra.
    """
    at = np.linspace(0, 1, len(basis))
    weights = rng.standard_normal(3) * tint / 2.0 ** np.arange(3)
    light = np.exp(sum(w * np.cos(np.pi * order * at) for order, w in enumerate(weights, start=1)))
    gains = sent((light / light.max()).astype(np.float32), photograph.device)
    return torch.einsum("bc,chw->bhw", basis * gains[:, None], photograph)


def brightened(patch: Tensor, gain: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """A patch times a log-uniform factor, limited so that its brightest 0.1 % stay below 1."""
    factor = float(np.exp(rng.uniform(*np.log(gain))))
    bright = torch.quantile(patch.reshape(-1)[::EVERY], 0.999)
    return patch * torch.minimum(torch.full_like(bright, factor), 1 / bright.clamp(min=1e-3))
