"""What each part of the network is worth: `python -m training.ablations --recipe FILE --data DIR --out DIR`.

Every variant leaves one thing out of the recipe and is trained for as many steps on the same draws. Runs that were
stopped go on; finished ones are not run again. Figures are the last row of each run's validation.csv: PSNR gain in dB
over the degraded input on the centres of the held-out scenes.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from calibration.degradations import TRAINING, UNSEEN
from export.networks import load_checkpoint
from runtime.durable import write_bytes
from runtime.errors import ConfigError, DeployError, InputError
from training.curves import read_rows
from training.recipe import Recipe, load_recipe
from training.train import console, train

TASKS = (*TRAINING, *UNSEEN)
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "full": ("six metrics, concatenating gate, top-1 of four experts", {}),
        "full-again": ("the same with another seed: what chance alone changes", {"seed": 2}),
        "no-prompt": ("every gate sees the same prompt, and chooses from features only", {"ablate": "prompt"}),
        "no-concat": (
            "prompt and features add their logits (gate `additive`)",
            {"network": {"gate": "additive"}},
        ),
        "one-expert": ("a single expert, so nothing to choose", {"network": {"experts": 1}}),
        "no-spectral": ("every expert, and the shared one, is its spatial branch alone", {"ablate": "spectral"}),
    }
)
"""Variant -> what it is, and what it changes in the recipe."""


def variant(recipe: Path, name: str) -> Recipe:
    """The recipe of a variant. Raises ConfigError."""
    base = load_recipe(recipe)
    changes = dict(VARIANTS[name][1])
    if "network" in changes:
        changes["network"] = {**base.network, **changes["network"]}
    return load_recipe(recipe, name=f"{base.name}-{name}", **changes)


def ablate(recipe: Path, data: Sequence[Path], out: Path, device: str) -> dict[str, dict[str, float]]:
    """Train every variant; {variant: {task: gain in dB, "mean": over the tasks}}. Raises DeployError."""
    gains = {}
    for name in VARIANTS:
        made = variant(recipe, name)
        console.print(f"{name}: {VARIANTS[name][0]}")
        file = out / name / f"{made.name}.safetensors"
        if not file.exists():
            train(made, data, out / name, device)
        elif load_checkpoint(file).facts.about != made.about(made.optimiser.steps):
            raise ConfigError(
                "was trained by another recipe", file=file, remedy="give another --out, or the recipe it began with"
            )
        rows = read_rows(out / name / "validation.csv")
        last = rows[-1] if rows else {}
        if last.get("step") != made.optimiser.steps:
            raise InputError("does not tell the last step", file=out / name / "validation.csv", remedy="remove the run")
        found = {task: last[task] for task in TASKS}
        gains[name] = {**found, "mean": sum(found.values()) / len(found)}
    return gains


def markdown(gains: Mapping[str, Mapping[str, float]]) -> str:
    """A table of gains, and what the variants are."""
    columns = (*TASKS, "mean")
    lines = [f"| variant | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[c]:+.2f}' for c in columns)} |" for name, row in gains.items()]
    return "\n".join([*lines, "", *(f"- {name}: {VARIANTS[name][0]}" for name in gains), ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.ablations", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="see training/recipes/ablation.yaml")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes")
    parser.add_argument("--out", type=Path, required=True, help="where the runs and the table go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda")
    arguments = parser.parse_args()
    try:
        gains = ablate(arguments.recipe, arguments.data, arguments.out, arguments.device)
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["variant", *TASKS, "mean"])
        writer.writerows([name, *row.values()] for name, row in gains.items())
        write_bytes(arguments.out / "ablations.csv", stream.getvalue().encode())
        write_bytes(arguments.out / "ablations.md", markdown(gains).encode())
        print(markdown(gains))
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on")
        sys.exit(130)
    except DeployError as error:
        console.print(f"error: {error.one_line()}", markup=False)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
