"""The picture of `deploy bench`: latency from frame to frame, and how often each latency came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .plots import SERIES_COLOURS, drawing, figure_png
from .quicklooks import drawn_label

COLOURS = SERIES_COLOURS[1:]
"""The first colour is for what is degraded."""
MOST_POINTS = 2000
BINS = 40


def latency_plot(series: Mapping[str, Sequence[float]]) -> bytes:
    """Latency over the frames, and its histogram; PNG.

    Args:
        series: latencies in ms, in the order in which the frames ran, by label; at least one frame each.

    Raises:
        MachineError: matplotlib is not installed.
    """
    values = {label: np.asarray(latencies, np.float64) for label, latencies in series.items()}
    largest = max(float(v.max()) for v in values.values())
    least = min(float(v.min()) for v in values.values())
    edges = np.linspace(least, largest if largest > least else least + 1.0, BINS + 1)
    with drawing(2, panel=(4.8, 3.0), columns=2) as (figure, (over_time, histogram)):
        for place, (label, latencies) in enumerate(values.items()):
            colour = COLOURS[place % len(COLOURS)]
            frames, shown = thinned(latencies)
            over_time.plot(frames, shown, ".", markersize=3, color=colour, label=drawn_label(label))
            histogram.hist(latencies, list(edges), color=colour, alpha=0.75)
        over_time.set_ylim(0.0, 1.05 * (largest or 1.0))
        over_time.set_xlabel("frame")
        over_time.set_ylabel("latency in ms, lower is better")
        histogram.set_axisbelow(True)
        histogram.locator_params(axis="y", integer=True)
        histogram.set_xlabel("latency in ms")
        histogram.set_ylabel("frames")
        figure.legend(*over_time.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
        return figure_png(figure)


def thinned(latencies: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(frame numbers from 1, latencies) of at most 2000 frames: the slowest of every stretch, which no one may miss."""
    step = -(-len(latencies) // MOST_POINTS)
    starts = range(0, len(latencies), step)
    slowest = np.array([start + int(np.argmax(latencies[start : start + step])) for start in starts], np.int64)
    return slowest + 1, latencies[slowest]
