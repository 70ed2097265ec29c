"""The log of a run: rows in CSV files, and their curves as a picture."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runtime.durable import write_bytes
from runtime.errors import InputError

SMOOTHED = 10
"""Rows of training.csv that are averaged into one point of a task's curve."""


def append_row(file: Path, row: Mapping[str, float]) -> None:
    """Append a row to the columns that the file has, or to its own where it is new. Raises InputError: a full disk."""
    try:
        with file.open("a+", newline="") as stream:
            stream.seek(0)
            columns = next(csv.reader(stream), None)
            writer = csv.DictWriter(stream, columns or list(row), restval=math.nan, extrasaction="ignore")
            if columns is None:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", file=file, remedy="check the folder and its free space"
        ) from error


def read_rows(file: Path) -> list[dict[str, float]]:
    """The rows of a log; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


def drop_rows_after(file: Path, step: int) -> None:
    """Leave out what a run that was stopped logged after its last saved step (it logs that again), and a torn row."""
    if not file.exists():
        return
    header, *rows = file.read_bytes().splitlines(keepends=True) or [b""]
    whole = [row for row in rows if row.endswith(b"\n") and row.count(b",") == header.count(b",")]
    kept = [row for row in whole if float(row.split(b",")[0]) <= step]
    if not kept:
        file.unlink()
    elif len(kept) < len(rows):
        write_bytes(file, header + b"".join(kept))


def draw_curves(run: Path) -> None:
    """Write curves.png: L1 of every task over the steps, and gains or PSNR in dB of the held-out scenes."""
    losses, gains = read_rows(run / "training.csv"), read_rows(run / "validation.csv")
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, rows, title in (
        (left, losses, "L1 of the training patches"),
        (right, gains, "held-out scenes, dB"),
    ):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for key in [k for k in (rows[0] if rows else ()) if k != "step"]:
            values, steps = np.array([r[key] for r in rows]), np.array([r["step"] for r in rows])
            width = min(SMOOTHED, max(1, len(rows) // 5)) if rows is losses else 1
            parts = [slice(i, i + width) for i in range(0, len(rows), width)]
            points = [np.nanmean(values[p]) if np.isfinite(values[p]).any() else np.nan for p in parts]
            style = {"color": "black", "linewidth": 2} if key == "loss" else {"linewidth": 1.2}
            axes.plot([steps[p].mean() for p in parts], points, label="all" if key == "loss" else key, **style)
        if rows:
            axes.legend(fontsize=7, ncols=2, frameon=False)
    left.set_yscale("log")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    write_bytes(run / "curves.png", stream.getvalue())
