"""Judge a network for snapshots: `python -m training.snapshot.judge --recipe FILE --run RUN --data CAVE`.

On the tiles of the held-out scenes: PSNR of what is clipped to [0, 1], the published PSNR and SSIM beside it; the same
of GAP-TV. Of a prior: PSNR with the prior of the truth at the end of the first stage, the most that an estimate may
hope for, and what other starts of its chain change. The table goes to standard output, figures to judged.json beside
the run. `--beside FILE` judges another checkpoint for snapshots, which knows another mask, through the recipe's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.quality import psnr, published_snapshot_psnr, published_snapshot_ssim
from calibration.snapshot_baselines import gap_tv
from export.networks import load_checkpoint
from export.networks.cassi import Masked
from export.networks.sdp import Sdp, noise
from runtime.arrays import Float32
from runtime.errors import InputError
from training.console import told
from training.curves import read_rows
from training.judged import keep
from training.snapshot.draws import Batch, Held, load_cubes, mask_of
from training.snapshot.lesson import clipped
from training.snapshot.recipe import SnapshotRecipe, load_recipe

Measure = Callable[[Float32, Float32], float]
MEASURES: Mapping[str, Measure] = {
    "psnr": psnr, "published psnr": published_snapshot_psnr, "published ssim": published_snapshot_ssim,
}  # fmt: skip
GAP_TV = "GAP-TV"
STARTS = 8
"""Starts of the reverse chain that are compared."""


def measured(
    held: Sequence[Held], restored: Callable[[Batch], Tensor], measures: Mapping[str, Measure] = MEASURES
) -> dict[str, float]:
    """{measure: mean over the tiles of all scenes}."""
    pairs = [pair for each in held for pair in clipped(each, restored)]
    return {name: float(np.mean([measure(*pair) for pair in pairs])) for name, measure in measures.items()}


@torch.no_grad()
def judged(recipe: SnapshotRecipe, run: Path, data: Path | Sequence[Path]) -> dict[str, Any]:
    """{"restored", "GAP-TV": {measure: mean}, "course": {step: PSNR}, and of a prior "true prior", "starts"}.

    Starts is by how much the mean PSNR of other starts of its chain differs, in dB.

    Raises:
        DeployError: no data, or no weights.
    """
    _, held = load_cubes(recipe, data)
    net = load_checkpoint(run / f"{recipe.name}.safetensors").module
    found: dict[str, Any] = {"tiles": sum(len(each.batch.clean) for each in held)}
    found["restored"] = measured(held, lambda batch: net(batch.measured))
    found[GAP_TV] = measured(held, partial(_classical, mask_of(recipe)))
    rows = read_rows(run / "validation.csv")
    found["course"] = {f"{row['step']:g}": row["mean"] for row in rows}
    if isinstance(net, Sdp):
        # Later it learns to do with an estimate, and the prior of the truth becomes strange to it.
        first = [row for row in rows if row["step"] <= recipe.first_stage]
        found["true prior"] = {"step": f"{first[-1]['step']:g}", "psnr": first[-1]["true prior"]} if first else {}
        starts = [torch.from_numpy(noise(seed, net.prior)) for seed in range(STARTS)]
        means = [measured(held, partial(_from, net, start), {"psnr": psnr})["psnr"] for start in starts]
        found["starts"] = float(np.ptp(means))
    return found


def _classical(mask: Float32, batch: Batch) -> Tensor:
    return torch.from_numpy(np.stack([gap_tv(measurement[0], mask) for measurement in batch.measured.numpy()]))


def _from(net: Sdp, start: Tensor, batch: Batch) -> Tensor:
    restored: Tensor = net(batch.measured, start)
    return restored


@torch.no_grad()
def beside(recipe: SnapshotRecipe, file: Path, data: Path | Sequence[Path]) -> dict[str, Any]:
    """{"restored": {measure: mean}} of another checkpoint, given the recipe's mask. Raises DeployError."""
    net = load_checkpoint(file).module
    if not isinstance(net, Masked):
        raise InputError("is no network for snapshots", file=file, key="--beside", remedy="leave it out")
    net.mask = torch.from_numpy(mask_of(recipe))
    return {"restored": measured(load_cubes(recipe, data)[1], lambda batch: net(batch.measured))}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """{name: what was judged} as Markdown."""
    lines = [f"| | {' | '.join(MEASURES)} | psnr, true prior | other starts |", "|---" * (len(MEASURES) + 3) + "|"]
    for name, row in found.items():
        cells = [f"{row['restored'][measure]:.3f}" for measure in MEASURES]
        true = row.get("true prior")
        prior = [f"{true['psnr']:.3f} at step {true['step']}" if true else "", f"{row['starts']:.4f}" if true else ""]
        lines.append(f"| {name} | {' | '.join([*cells, *prior])} |")
    classical = next((row[GAP_TV] for row in found.values() if GAP_TV in row), None)
    if classical is not None:
        lines.append(f"| {GAP_TV} | {' | '.join([*(f'{classical[measure]:.3f}' for measure in MEASURES), '', ''])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.snapshot.judge", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="its folder")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="other checkpoints")
    arguments = parser.parse_args()
    with told():
        recipe = load_recipe(arguments.recipe)
        found = judged(recipe, arguments.run, arguments.data)
        keep(arguments.run / f"{recipe.name}.safetensors", found)
        others = {file.stem: beside(recipe, file, arguments.data) for file in arguments.beside}
        print(table({recipe.name: found, **others}))


if __name__ == "__main__":
    main()
