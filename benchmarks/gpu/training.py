"""The step of `benchmarks.gpu` that trains: steps a second of a network in every way that a device could train it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from runtime.simulation.simulator import simulate_scene
from training.data import Draws, Scenes
from training.recipe import Patches, load_recipe
from training.run import Way, begin, step

from .run import ROOT, Found, Setting

WAYS = {
    "as on a CPU: float32, chosen experts": Way(),
    "all experts, bfloat16": Way(dense=True, half=True, fused=True),
    "all experts, bfloat16, channels first": Way(dense=True, half=True, fused=True, channels_last=False),
    "all experts, bfloat16, compiled": Way(dense=True, half=True, fused=True, compiled=True),
}
SCENES, SCENE_SIZE = 4, 256


def training(setting: Setting, found: Found) -> None:
    """The packaged model's recipe on simulated scenes, in patches as large as the device has room for."""
    patches = Patches(count=1, size=64) if setting.cpu else Patches(count=16, size=128)
    recipe = load_recipe(ROOT / "training" / "recipes" / f"{setting.model}.yaml", patches=(patches.model_dump(),))
    bands = recipe.config.bands
    cubes = {str(seed): simulate_scene(seed, bands, SCENE_SIZE, SCENE_SIZE).truth for seed in range(SCENES)}
    draws = Draws(recipe, Scenes(cubes), torch.device(setting.device))
    with found.line("batches alone") as row:
        row["a second"] = pace(draws.batch, draws.device, min(5.0, found.left / 20))
    # To compile takes a CPU minutes.
    for label, way in {k: w for k, w in WAYS.items() if not (setting.cpu and w.compiled)}.items():
        with found.line(label, 0.9 if way.compiled else 0.2) as row:
            run = begin(recipe, draws, way)
            taken = pace(lambda number, run=run: step(run, recipe, draws.batch(number)), draws.device, found.left / 12)
            row |= {"steps a second": taken, "patches": f"{patches.count} of {patches.size}x{patches.size}"}


def pace(work: Callable[[int], object], device: torch.device, seconds: float, warm: int = 3) -> float:
    """Calls of `work(number)` in a second, after some that warm up (and compile)."""
    for number in range(warm):
        work(number)
    _wait(device)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        work(warm + count)
        count += 1
    _wait(device)
    return count / (time.monotonic() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
