"""What radiometry costs per line, and as a share of a line's time at 330 lines/s: `python -m benchmarks.radiometry`.

Each line is written into a frame of 128 lines, as the stream does it. The least that can be done is one
division by the scale. There is no bar: at that rate a line may take 3 ms.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from runtime.lines import LineFormat
from runtime.radiometry import load_radiometry

from .timing import extra_memory, seconds, show

SHAPES = ((31, 256), (224, 640), (224, 1024))
LINES = 128
RATE = 330
RUNS = 15


def settings_of(bands: int, samples: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What is compared, with the files for it."""
    rng = np.random.default_rng(0)
    shape = (bands, samples)
    np.save(folder / "dark.npy", rng.uniform(80, 120, shape))
    np.save(folder / "gain.npy", rng.uniform(0.8, 1.2, shape))
    np.save(folder / "bad.npy", rng.random(shape) < 0.0024)
    column = rng.random(shape) < 0.0024
    column[:, samples // 2] = True
    np.save(folder / "column.npy", column)
    dark_gain = {"dark": "dark.npy", "gain": "gain.npy"}
    smile = {"smile": np.linspace(-0.6, 0.6, samples).tolist()}
    keystone = {"keystone": np.linspace(-0.4, 0.4, bands).tolist()}
    bad = {"bad_pixels": "bad.npy"}
    return {
        "nothing": {},
        "dark": {"dark": "dark.npy"},
        "dark, gain": dark_gain,
        "+ 0.24 % bad": dark_gain | bad,
        "+ a bad sample": dark_gain | {"bad_pixels": "column.npy"},
        "+ bad, smile": dark_gain | bad | smile,
        "+ all of it": dark_gain | bad | smile | keystone,
    }


def timed(bands: int, samples: int, chosen: Mapping[str, Any], folder: Path) -> tuple[float, float, float, int]:
    """Median seconds per line of the radiometry, of counting the saturated, of the baseline; bytes allocated."""
    format = LineFormat(bands, samples, np.dtype(np.uint16), scale=4095.0, saturation=4095.0)
    made = load_radiometry(chosen, format, folder)
    lines = np.random.default_rng(1).integers(100, 4000, (LINES, bands, samples), np.uint16)
    frame = np.zeros((bands, LINES, samples), np.float32)

    def whole() -> None:
        for number, line in enumerate(lines):
            made.apply_line(line, frame[:, number])

    def baseline() -> None:
        for number, line in enumerate(lines):
            np.divide(line, np.float32(4095), out=frame[:, number], dtype=np.float32, casting="same_kind")

    def saturation() -> None:
        for line in lines:
            made.saturated(line)

    runs = [(seconds(whole), seconds(saturation), seconds(baseline)) for _ in range(RUNS)]
    median = [statistics.median(run) / LINES for run in zip(*runs, strict=True)]
    return median[0], median[1], median[2], extra_memory(whole)


def main() -> None:
    """Measure and print."""
    for bands, samples in SHAPES:
        made = Table(title=f"radiometry of uint16 lines of {bands} x {samples}, one thread")
        made.add_column("what")
        for heading in ("us per line", "times least", f"share at {RATE}/s", "saturated, us", "extra kB"):
            made.add_column(heading, justify="right")
        with tempfile.TemporaryDirectory() as folder:
            for name, chosen in settings_of(bands, samples, Path(folder)).items():
                own, saturated, least, extra = timed(bands, samples, chosen, Path(folder))
                made.add_row(
                    name,
                    f"{1e6 * own:.0f}",
                    f"{own / least:.1f}",
                    f"{100 * own * RATE:.1f} %",
                    f"{1e6 * saturated:.0f}",
                    f"{extra / 1e3:.0f}",
                )
        show(made)


if __name__ == "__main__":
    main()
