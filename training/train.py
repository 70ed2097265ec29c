"""Train a DAMP on real cubes: `python -m training.train --recipe training/recipes/damp-tiny.yaml --data DIR --out DIR`.

L1, AdamW, cosine schedule with warm-up, exponential moving average, gating noise as in the paper; bfloat16 on a GPU,
float32 on a CPU. A run that was stopped, by Ctrl-C or by a power cut, goes on from its last saved state with the same
numbers: every draw follows from seed and step.
"""

from __future__ import annotations

import argparse
import io
import math
import pickle
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from calibration.degradations import DEGRADATIONS
from calibration.evaluation import bands_measured
from calibration.quality import psnr
from export.networks import load_checkpoint, save_checkpoint
from export.networks.damp import Damp
from export.networks.damp.config import SIZE_MULTIPLE
from runtime.durable import write_bytes
from runtime.errors import ConfigError, DeployError, InputError, MachineError
from runtime.metrics import prompt_metrics
from training.curves import append_row, draw_curves, drop_rows_after
from training.data import Batch, draw_batch, load_scenes
from training.growth import grow
from training.recipe import Loss, Optimiser, Recipe, load_recipe

VALIDATION_SIZE = 128
CONSTANT_SHARE = 1 / 12
SPATIAL_ALPHA = 30.0
"""Its sigmoid is 1 in float32: nothing of a spectral branch is left."""
console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Run:
    """What a training changes as it goes."""

    net: Damp
    optimiser: torch.optim.AdamW
    ema: dict[str, Tensor]
    step: int = 0


def learning_rate(step: int, options: Optimiser) -> float:
    """Linear warm-up, then a cosine down to the last learning rate."""
    first, last, warmup = options.learning_rate, options.last_learning_rate, options.warmup
    if step < warmup:
        return first * (step + 1) / warmup
    progress = (step - warmup) / max(1, options.steps - warmup)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def softened(errors: Tensor, loss: Loss, progress: float) -> Tensor:
    """The loss of a batch from the L1 error [B] of its patches, `progress` 0 to 1 through the run; see `Loss`."""
    if loss.first_floor is None or loss.last_floor is None:
        return errors.mean()
    floor = loss.first_floor * (loss.last_floor / loss.first_floor) ** (progress * progress)
    return floor * torch.log1p(errors / floor).mean()


def start_transparent(net: Damp, gain: float = 4.0, constant: float = 2.0) -> None:
    """Start with bands running straight through the network and nothing added to the frame.

    The frame is added at the end, so noise must reach the output to be taken away: from a random start the weights
    spend thousands of steps on finding that way (31 bands, dim 32: loss after 60 steps 0.10, with this start 0.05).

    A twelfth of the channels on the way up starts as the number `constant`. LayerNorm takes the scale of a pixel's
    channels away; beside a constant it can be read again, and a correction be as large as what it corrects (dim 48,
    after 500 steps: noise +10.8 dB with constants, +6.8 without).
    """
    with torch.no_grad():
        net.output.weight.zero_()
        embed = net.patch_embed.proj.weight.mul_(0.1)
        for band in range(min(embed.shape[:2])):
            embed[band, band, 1, 1] += gain
        for up, merge, _ in net.dec:
            channels = len(merge.weight)
            merge.weight[:, channels:].mul_(0.1)
            merge.weight[:, channels:, 0, 0] += torch.eye(channels)
            # At the first level the bands' own way stays free.
            spare = channels - net.config.bands if channels == net.config.dim else channels
            for channel in range(channels - min(max(0, spare), max(1, round(CONSTANT_SHARE * channels))), channels):
                up.body.weight[:, channel].zero_()
                up.body.bias[channel] = constant
                merge.weight[channel].zero_()
                merge.weight[channel, channel] = 1


def average(ema: dict[str, Tensor], net: Damp, step: int, decay: float) -> None:
    """Move the averaged weights towards the present ones; short memory at the start."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    present = net.state_dict()
    moving = [key for key, value in present.items() if value.is_floating_point()]
    torch._foreach_lerp_([ema[key] for key in moving], [present[key] for key in moving], rate)


def prompt_of(cube: NDArray[np.float32], net: Damp, recipe: Recipe) -> NDArray[np.float32]:
    """The metrics [M] that the gates are shown: the cube's, or zeros where the prompt is ablated."""
    metrics = prompt_metrics(cube, net.config.metric_set)
    return np.zeros_like(metrics) if recipe.ablate == "prompt" else metrics


def validate(net: Damp, scenes: dict[str, NDArray[np.float32]], recipe: Recipe) -> dict[str, float]:
    """PSNR gain in dB over the degraded input per task (over the lost bands after band loss), mean over scenes.

    Centre crops; scenes smaller than a frame are left out, scenes of more bands give their middle ones.
    """
    net.eval()
    device = next(net.parameters()).device
    gains: dict[str, float] = {}
    for index, task in enumerate(DEGRADATIONS):
        rows = []
        for place, scene in enumerate(scenes.values()):
            size = min(VALIDATION_SIZE, min(scene.shape[1:]) // SIZE_MULTIPLE * SIZE_MULTIPLE)
            if size == 0:
                continue
            band, line, sample = (
                (n - m) // 2 for n, m in zip(scene.shape, (net.config.bands, size, size), strict=True)
            )
            clean = scene[band : band + net.config.bands, line : line + size, sample : sample + size]
            bad = DEGRADATIONS[task](clean, np.random.default_rng([recipe.seed, index, place]))
            metrics = torch.from_numpy(prompt_of(bad, net, recipe))[None]
            with torch.no_grad():
                restored = net(torch.from_numpy(bad)[None].to(device), metrics.to(device))[0][0].cpu().numpy()
            bands = bands_measured(task, bad, clean)
            rows.append(psnr(restored, clean, bands) - psnr(bad, clean, bands))
        gains[task] = float(np.mean(rows)) if rows else math.nan
    return gains


def begin(recipe: Recipe, device: torch.device) -> Run:
    """The run before its first step. Raises CheckpointError, ConfigError."""
    torch.manual_seed(recipe.seed)
    net = Damp(recipe.config)
    if recipe.start is None:
        start_transparent(net)
    else:
        grow(net, load_checkpoint(recipe.start, recipe.config.top_k))
    if recipe.ablate == "spectral":
        for name, module in net.named_modules():
            if hasattr(module, "alpha"):
                assert name.startswith("dec")
                module.alpha.requires_grad_(False).fill_(SPATIAL_ALPHA)
    net.to(device, memory_format=torch.channels_last)
    learned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, weight_decay=recipe.optimiser.weight_decay)
    return Run(net, optimiser, {k: v.clone() for k, v in net.state_dict().items()})


def save(run: Run, recipe: Recipe, file: Path) -> None:
    """Write the state from which `resume` goes on."""
    state = {"net": run.net.state_dict(), "optimiser": run.optimiser.state_dict(), "ema": run.ema, "step": run.step}
    # PyTorch says RuntimeError, without a cause, where a disk is full.
    stream = io.BytesIO()
    torch.save({**state, "recipe": recipe.digest()}, stream)
    write_bytes(file, stream.getvalue())


def resume(run: Run, recipe: Recipe, file: Path) -> None:
    """Bring `run` to where `file` says. Raises ConfigError where another recipe wrote it, InputError for no state."""
    try:
        state = torch.load(file, weights_only=True, map_location=next(run.net.parameters()).device)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError("is no state of a run", file=file, remedy="remove it to begin anew") from error
    if not isinstance(state, dict) or not {"net", "optimiser", "ema", "step", "recipe"} <= set(state):
        raise InputError("is no state of a run", file=file, remedy="remove it to begin anew")
    if state["recipe"] != recipe.digest():
        raise ConfigError(
            "another recipe wrote this run's state", file=file, key="recipe", value=state["recipe"],
            remedy="give another --out, or the recipe that the run began with",
        )  # fmt: skip
    run.net.load_state_dict(state["net"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.ema, run.step = state["ema"], state["step"]


def step(run: Run, recipe: Recipe, batch: Batch) -> NDArray[np.float64]:
    """One step; the L1 errors [B] of the batch's patches before it."""
    device = next(run.net.parameters()).device
    options = recipe.optimiser
    for group in run.optimiser.param_groups:
        group["lr"] = learning_rate(run.step, options)
    torch.manual_seed(recipe.seed * 1_000_003 + run.step)
    run.net.train()
    degraded = torch.from_numpy(batch.degraded).to(device, memory_format=torch.channels_last)
    metrics = torch.from_numpy(batch.metrics).to(device)
    if recipe.ablate == "prompt":
        metrics = torch.zeros_like(metrics)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        restored, _ = run.net(degraded, metrics)
    errors = (restored.float() - torch.from_numpy(batch.clean).to(device)).abs().mean((1, 2, 3))
    loss = softened(errors, recipe.loss, run.step / options.steps)
    run.optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), options.gradient_norm)
    run.optimiser.step()
    average(run.ema, run.net, run.step, options.ema)
    run.step += 1
    return errors.detach().double().cpu().numpy()


def averaged(run: Run, recipe: Recipe) -> Damp:
    """The network of the averaged weights, on the run's device."""
    net = Damp(recipe.config)
    net.load_state_dict(run.ema)
    return net.to(next(run.net.parameters()).device)


def usable(device: str) -> torch.device:
    """The device of a name, tried. Raises InputError for another kind, MachineError where this machine has none."""
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError("no such device", key="--device", value=device, remedy="choose cpu or cuda")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError("no such device", key="--device", value=device, remedy="choose cpu or cuda") from error
    try:
        torch.ones(1, device=found).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise MachineError(
            "this machine cannot use the device", key="--device", value=device, remedy="choose cpu, or mend its driver"
        ) from error
    return found


def train(recipe: Recipe, data: Path | Sequence[Path], out: Path, device: str = "cpu") -> Path:
    """Run the recipe to its end (or go on with it) and return the path of the written checkpoint.

    `out` receives state.pt, training.csv (mean L1, and per task), validation.csv (gains in dB), curves.png and the
    checkpoint `<name>.safetensors`.

    Raises:
        DeployError: no data, no such device, another recipe's state, a start that does not fit, a full disk.
        KeyboardInterrupt: stopped; the state is saved, the same call goes on.
    """
    place = usable(device)
    scenes = load_scenes(data, recipe.data)
    missing = sorted(set(recipe.data.validation) - set(scenes))
    if missing:
        raise ConfigError("no such scene", key="data.validation", value=missing[0], remedy="name scenes of --data")
    bands = recipe.config.bands
    narrow = next((name for name, scene in scenes.items() if len(scene) < bands), None)
    if narrow is not None:
        raise ConfigError(
            f"{narrow} has only {len(scenes[narrow])} bands", key="network.bands", value=bands, remedy="leave it out"
        )
    held = {name: scenes.pop(name) for name in dict.fromkeys(recipe.data.validation)}
    largest = max(p.size for p in recipe.patches)
    used = [s for s in scenes.values() if min(s.shape[1:]) >= largest]
    if not used:
        raise ConfigError("no scene is as large as a patch", key="patches", value=largest, remedy="smaller patches")
    run = begin(recipe, place)
    state = out / "state.pt"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made: {error.strerror}", file=out, remedy="give another --out") from error
    if state.exists():
        resume(run, recipe, state)
        console.print(f"going on at step {run.step}")
    for log in ("training.csv", "validation.csv"):
        drop_rows_after(out / log, run.step)
    with _stopping() as stopped, _progress(recipe, run.step) as moved:
        for errors, tasks in _steps(run, recipe, used):
            due = {k for k in ("log", "validate", "save") if run.step % getattr(recipe, f"{k}_every") == 0}
            last = run.step == recipe.optimiser.steps
            moved(run.step, errors, tasks, "log" in due or last, out / "training.csv")
            if "validate" in due or last:
                gains = validate(averaged(run, recipe), held, recipe)
                console.print(f"step {run.step} gain in dB: " + ", ".join(f"{k} {v:+.2f}" for k, v in gains.items()))
                append_row(out / "validation.csv", {"step": run.step, **gains})
                draw_curves(out)
            if "save" in due or last or stopped:
                save(run, recipe, state)
            if stopped:
                raise KeyboardInterrupt
    spacing = recipe.data.wavelengths
    centres = tuple(np.linspace(spacing.first, spacing.last, spacing.count)) if spacing else ()
    file = out / f"{recipe.name}.safetensors"
    net = averaged(run, recipe).cpu()
    return save_checkpoint(net, file, scale=recipe.data.stored_scale, wavelengths=centres, about=recipe.about())


def _steps(
    run: Run, recipe: Recipe, scenes: list[NDArray[np.float32]]
) -> Iterator[tuple[NDArray[np.float64], tuple[str, ...]]]:
    config = recipe.config

    def batch_of(number: int) -> Batch:
        return draw_batch(
            scenes, recipe.tasks, recipe.patches, recipe.data.gain, config.bands, config.metric_set, recipe.seed, number
        )

    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(batch_of, run.step)
        while run.step < recipe.optimiser.steps:
            batch = waiting.result()
            waiting = ahead.submit(batch_of, run.step + 1)
            yield step(run, recipe, batch), batch.tasks


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """A list that is filled by the first SIGINT or SIGTERM; the second ends the process as usual."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        received.append(number)
        for each, before in previous.items():
            signal.signal(each, before)
        console.print("stopping after this step")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, before in previous.items():
            signal.signal(each, before)


@contextmanager
def _progress(recipe: Recipe, first: int) -> Iterator[Any]:
    """A bar for people at a terminal, lines in a log, and rows in training.csv."""
    columns = (TextColumn(recipe.name), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    began, seen = time.monotonic(), defaultdict[str, list[float]](list)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(recipe.name, total=recipe.optimiser.steps, completed=first)

        def moved(at: int, errors: NDArray[np.float64], tasks: tuple[str, ...], log: bool, file: Path) -> None:
            bar.update(task, completed=at)
            for name, error in zip(tasks, errors, strict=True):
                seen[name].append(float(error))
            if not log:
                return
            mean = float(np.mean([e for each in seen.values() for e in each]))
            pace = (time.monotonic() - began) / (at - first)
            console.print(f"step {at}/{recipe.optimiser.steps} L1 {mean:.5f} {pace:.2f} s/step")
            each = {name: float(np.mean(seen[name])) if seen[name] else math.nan for name in recipe.tasks}
            append_row(file, {"step": at, "loss": mean, **each})
            seen.clear()

        yield moved


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="a YAML file; see training/recipes/")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes")
    parser.add_argument("--out", type=Path, required=True, help="where the run keeps its state and its result")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda")
    arguments = parser.parse_args()
    try:
        file = train(load_recipe(arguments.recipe), arguments.data, arguments.out, arguments.device)
        console.print(f"wrote {file}", markup=False)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on")
        sys.exit(130)
    except DeployError as error:
        console.print(f"error: {error.one_line()}", markup=False)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
