"""What a prior is worth: `python -m training.snapshot.study --study training/studies/sdp.yaml --data CAVE --out DIR`.

Every variant replaces top-level keys of one recipe, is trained once for each seed on the same draws and from the same
backbone, and is judged (`training.snapshot.judge`). Runs that were stopped go on, finished ones are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.durable import write_bytes
from training.console import told
from training.judged import keep, kept
from training.snapshot.judge import judged, table
from training.snapshot.recipe import load_recipe
from training.snapshot.train import train
from training.study import recipes_of

Found = Mapping[str, Sequence[Mapping[str, Any]]]
"""{variant: what was judged of each seed's run}."""


def run(file: Path, data: Sequence[Path], out: Path) -> Found:
    """Train and judge. Raises DeployError."""
    found = dict[str, list[dict[str, Any]]]()
    for variant, recipe in recipes_of(file, load_recipe):
        place = out / recipe.name
        weights = train(recipe, data, place)
        if kept(weights) is None:
            keep(weights, judged(recipe, place, data))
        found.setdefault(variant, []).append({"name": recipe.name, **(kept(weights) or {})})
    return found


def report(found: Found) -> str:
    """The table of all runs, and what every variant gains over the first one, seed by seed."""
    first, *others = found
    lines = []
    for variant in others:
        pairs = list(zip(found[variant], found[first], strict=True))
        gains = [own["restored"]["psnr"] - base["restored"]["psnr"] for own, base in pairs]
        lines.append(f"- {variant}, {_over(first, gains)}")
        told = [(own["true prior"], base["course"]) for own, base in pairs if own.get("true prior")]
        if told:
            gains = [true["psnr"] - course[true["step"]] for true, course in told]
            lines.append(
                f"- {variant} told the prior of the truth, at step {told[0][0]['step']}, {_over(first, gains)}"
            )
    return "\n".join([table({row["name"]: row for rows in found.values() for row in rows}), "", *lines])


def _over(first: str, gains: Sequence[float]) -> str:
    each = ", ".join(f"{gain:+.3f}" for gain in gains)
    return f"over {first} with as many steps: {np.mean(gains):+.3f} dB (seeds: {each})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.snapshot.study", description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="see training/studies/")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes")
    parser.add_argument("--out", type=Path, required=True, help="where the runs and the table go")
    arguments = parser.parse_args()
    with told():
        text = report(run(arguments.study, arguments.data, arguments.out))
        write_bytes(arguments.out / "study.md", f"{text}\n".encode())
        print(text)


if __name__ == "__main__":
    main()
