"""What a part of a recipe for photographs is worth: `python -m training.rgb.study --study FILE --data DIR --out DIR`.

Every variant replaces top-level keys of one recipe and is trained once for each seed, on the same draws. Runs that were
stopped go on, finished ones are not run again. An extractor's run lies beside `--out`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from runtime.durable import write_bytes
from training.console import told
from training.curves import read_rows
from training.rgb.recipe import load_recipe
from training.rgb.train import train
from training.study import recipes_of


def run(file: Path, data: Sequence[Path], out: Path) -> dict[str, list[dict[str, float]]]:
    """{variant: last row of the validation for each seed}. Raises DeployError."""
    found = dict[str, list[dict[str, float]]]()
    for variant, recipe in recipes_of(file, load_recipe):
        train(recipe, data, out / recipe.name)
        found.setdefault(variant, []).append(read_rows(out / recipe.name / "validation.csv")[-1])
    return found


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Gains in dB, means over seeds; `seeds` is half the range of the mean between them."""
    columns = [key for key in next(iter(found.values()))[0] if key != "step"]
    lines = [f"| variant | {' | '.join(columns)} | seeds |", "|---" * (len(columns) + 2) + "|"]
    for name, rows in found.items():
        cells = [f"{np.mean([row[column] for row in rows]):+.2f}" for column in columns]
        spread = np.ptp([row["mean"] for row in rows]) / 2
        lines.append(f"| {name} | {' | '.join(cells)} | {spread:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.rgb.study", description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="see training/studies/")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of photographs")
    parser.add_argument("--out", type=Path, required=True, help="where the runs and the table go")
    arguments = parser.parse_args()
    with told():
        text = table(run(arguments.study, arguments.data, arguments.out))
        write_bytes(arguments.out / "study.md", f"{text}\n".encode())
        print(text)


if __name__ == "__main__":
    main()
