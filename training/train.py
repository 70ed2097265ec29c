"""Train a DAMP on real cubes: `python -m training.train --recipe training/recipes/damp-tiny.yaml --data DIR --out DIR`.

L1 loss, AdamW, cosine schedule with warm-up, exponential moving average, gating noise as in the paper. A run that was
stopped goes on from its last saved state with the same numbers: every draw follows from seed and step.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from calibration.degradations import DEGRADATIONS
from calibration.quality import psnr
from export.networks import save_checkpoint
from export.networks.damp import Damp, DampConfig
from runtime.durable import replacing
from runtime.metrics import prompt_metrics
from training.data import Batch, draw_batch, load_scenes

VALIDATION_SIZE = 128
console = Console(stderr=True)


def learning_rate(step: int, options: dict[str, Any]) -> float:
    """Linear warm-up, then a cosine down to the last learning rate."""
    first, last, warmup = options["learning_rate"], options["last_learning_rate"], options["warmup"]
    if step < warmup:
        return float(first * (step + 1) / warmup)
    progress = (step - warmup) / max(1, options["steps"] - warmup)
    return float(last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def validate(net: Damp, scenes: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """PSNR gain in dB over the degraded input per task, mean over scenes (centre crops)."""
    net.eval()
    gains: dict[str, float] = {}
    for index, task in enumerate(DEGRADATIONS):
        rows = []
        for place, scene in enumerate(scenes.values()):
            at = (scene.shape[1] - VALIDATION_SIZE) // 2
            clean = scene[:, at : at + VALIDATION_SIZE, at : at + VALIDATION_SIZE]
            bad = DEGRADATIONS[task](clean, np.random.default_rng([seed, index, place]))
            metrics = torch.from_numpy(prompt_metrics(bad, net.config.metric_set))[None]
            with torch.no_grad():
                restored = net(torch.from_numpy(bad)[None], metrics)[0][0].numpy()
            rows.append(psnr(restored, clean) - psnr(bad, clean))
        gains[task] = float(np.mean(rows))
    return gains


def start_transparent(net: Damp, gain: float = 4.0) -> None:
    """Start with bands running straight through the network and nothing added to the frame.

    The frame is added at the end, so noise must reach the output to be taken away: from a random start the weights
    spend thousands of steps on finding that way (31 bands, dim 32: loss after 60 steps 0.10, with this start 0.05).
    """
    with torch.no_grad():
        net.output.weight.zero_()
        embed = net.patch_embed.proj.weight.mul_(0.1)
        for band in range(min(embed.shape[:2])):
            embed[band, band, 1, 1] += gain
        for _, merge, _ in net.dec:
            channels = len(merge.weight)
            merge.weight[:, channels:].mul_(0.1)
            merge.weight[:, channels:, 0, 0] += torch.eye(channels)


def average(ema: dict[str, torch.Tensor], net: Damp, step: int, decay: float) -> None:
    """Move the averaged weights towards the present ones; short memory at the start."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            ema[key].lerp_(value, rate)


def train(recipe: dict[str, Any], data: Path, out: Path) -> Path:
    """Run the recipe to its end (or go on with it) and return the path of the written checkpoint."""
    options, seed = recipe["optimiser"], recipe["seed"]
    config = DampConfig.from_dict(recipe["network"])
    scenes = load_scenes(data, recipe["data"]["scale"])
    held = {k: v for k, v in scenes.items() if k in recipe["data"]["validation"]}
    used = [v for k, v in scenes.items() if k not in held]
    torch.manual_seed(seed)
    net = Damp(config)
    start_transparent(net)
    optimiser = torch.optim.AdamW(
        [p for p in net.parameters() if p.requires_grad], weight_decay=options["weight_decay"]
    )
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    first, state_file = 0, out / "state.pt"
    out.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        ema, first = state["ema"], state["step"]
        console.print(f"going on at step {first}")

    def batch_of(step: int) -> Batch:
        return draw_batch(
            used,
            recipe["tasks"],
            [tuple(p) for p in recipe["patches"]],
            tuple(recipe["data"]["gain"]),
            config.metric_set,
            seed,
            step,
        )

    log_file = out / "training.csv"
    began = time.monotonic()
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(batch_of, first)
        losses = []
        for step in range(first, options["steps"]):
            batch = waiting.result()
            waiting = ahead.submit(batch_of, step + 1)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, options)
            torch.manual_seed(seed * 1_000_003 + step)
            net.train()
            restored, _ = net(torch.from_numpy(batch.degraded), torch.from_numpy(batch.metrics))
            loss = (restored - torch.from_numpy(batch.clean)).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), options["gradient_norm"])
            optimiser.step()
            average(ema, net, step, options["ema"])
            losses.append(loss.item())
            done = step + 1
            if done % recipe["log_every"] == 0:
                each = (time.monotonic() - began) / (done - first)
                console.print(f"step {done}/{options['steps']} L1 {np.mean(losses):.5f} {each:.2f} s/step")
                _append(log_file, {"step": done, "loss": float(np.mean(losses))})
                losses = []
            if done % recipe["save_every"] == 0 or done == options["steps"]:
                with replacing(state_file) as temporary:
                    torch.save(
                        {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema, "step": done},
                        temporary,
                    )
            if done % recipe["validate_every"] == 0 or done == options["steps"]:
                averaged = Damp(config)
                averaged.load_state_dict(ema)
                gains = validate(averaged, held, seed)
                console.print("gain in dB: " + ", ".join(f"{k} {v:+.2f}" for k, v in gains.items()))
                _append(out / "validation.csv", {"step": done, **gains})
    averaged = Damp(config)
    averaged.load_state_dict(ema)
    spacing = recipe["data"]["wavelengths"]
    return save_checkpoint(
        averaged,
        out / f"{recipe['name']}.safetensors",
        scale=recipe["data"]["scale"],
        wavelengths=tuple(np.linspace(spacing["first"], spacing["last"], spacing["count"])),
        about=f"recipe {recipe['name']}, {options['steps']} steps, seed {seed}; trained on CAVE, data not included",
    )


def _append(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz scenes")
    parser.add_argument("--out", type=Path, required=True, help="where the run keeps its state and its result")
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.recipe.read_text())
    console.print(f"wrote {train(recipe, arguments.data, arguments.out)}")


if __name__ == "__main__":
    main()
