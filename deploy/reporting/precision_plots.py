"""Pictures of what precision costs: the search for int8, and how clearly experts were chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibration.sensitivity import Search, pareto

from .plots import COLOURS, drawing, figure_png
from .quicklooks import drawn_label

STYLES = ("-", "--")
"""Of the lines whose colour is used again."""
SHOWN_GROUPS = 12
LEAST_MARGIN = 1e-4
LEAST_DISTANCE = 1e-9


def plain_number(value: float, _: float) -> str:
    """A tick of a logarithmic axis: our style sets no formulas."""
    return f"{value:g}"


def plain_ticks(axis: Any) -> None:
    """Numbers as ticks, between the decades too where the axis has less than one."""
    from matplotlib.ticker import NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_formatter(plain_number)
    if high < 10 * low:
        axis.set_minor_formatter(plain_number)
    else:
        axis.set_minor_formatter(NullFormatter())


def pareto_plot(search: Search) -> bytes:
    """What every tried graph costs over its share of int8, and the dearest groups alone; PNG.

    Raises:
        MachineError: matplotlib is not installed.
    """
    with drawing(2, panel=(4.8, 3.4), columns=2) as (figure, (curve, bars)):
        for holds, label, colour in ((True, "within max_drop", COLOURS[0]), (False, "beyond it", COLOURS[1])):
            points = [p for p in search.points if p.holds == holds]
            curve.plot(
                [100 * p.share for p in points], [p.score.mean_psnr_drop_db for p in points], "o",
                markersize=5, color=colour, label=label,
            )  # fmt: skip
        front = pareto(search.points)
        curve.plot(
            [100 * p.share for p in front], [p.score.mean_psnr_drop_db for p in front],
            color="#9aa1ab", linewidth=1, zorder=0,
        )  # fmt: skip
        if search.chosen is not None:
            at = (100 * search.chosen.share, search.chosen.score.mean_psnr_drop_db)
            curve.plot(*at, "o", markersize=11, fillstyle="none", color="#111418", label="chosen")
        curve.set_xlabel("multiply-adds in int8, percent")
        curve.set_ylabel("loss of PSNR, mean over tasks, dB")
        dear = sorted(search.ranking, key=lambda g: -search.costs[g.name].mean_distortion_db)[:SHOWN_GROUPS][::-1]
        chosen = search.chosen.groups if search.chosen else frozenset()
        bars.barh(
            range(len(dear)),
            [search.costs[g.name].mean_distortion_db for g in dear],
            color=[COLOURS[0] if g.name in chosen else COLOURS[1] for g in dear],
        )
        bars.set_yticks(range(len(dear)), [drawn_label(g.name) for g in dear], fontsize=7)
        bars.set_xlabel("distortion when it alone is int8, dB")
        bars.grid(visible=False, axis="y")
        figure.legend(*curve.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
        return figure_png(figure)


def margins_plot(margins: Mapping[str, ArrayLike], close: float) -> bytes:
    """How far the chosen expert was ahead of the next, as a cumulative share of tiles and layers, by task; PNG.

    Args:
        margins: {task: margins of PyTorch's choices, any shape, 0 to 1}.
        close: below this a choice is counted apart.

    Raises:
        MachineError: matplotlib is not installed.
    """
    with drawing(1, panel=(9.3, 2.8), columns=1) as (figure, (axes,)):
        for place, (task, values) in enumerate(margins.items()):
            ordered = np.sort(np.maximum(np.asarray(values, np.float64).ravel(), LEAST_MARGIN))
            share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
            style = STYLES[place // len(COLOURS) % len(STYLES)]
            colour = COLOURS[place % len(COLOURS)]
            axes.step(ordered, share, style, where="post", color=colour, label=drawn_label(task))
        axes.axvline(close, color="#111418", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_xlim(LEAST_MARGIN, 1.0)
        plain_ticks(axes.xaxis)
        axes.set_ylim(0, 100)
        axes.set_xlabel("lead of the chosen expert over the next, in probability")
        axes.set_ylabel("tiles and layers, percent")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=7, frameon=False)
        return figure_png(figure)


def distance_plot(series: Mapping[str, Mapping[str, float]]) -> bytes:
    """How far each variant is from float32 behind every block, in the order of the network; PNG.

    Args:
        series: {variant: {block: distance as a share of the values' size}}; a variant may lack blocks of another.

    Raises:
        MachineError: matplotlib is not installed.
    """
    blocks = max((list(distances) for distances in series.values()), key=len)
    with drawing(1, panel=(9.3, 3.2), columns=1) as (figure, (axes,)):
        for number, (name, distances) in enumerate(series.items()):
            places = [place for place, block in enumerate(blocks) if block in distances]
            values = [max(distances[blocks[at]], LEAST_DISTANCE) for at in places]
            axes.plot(places, values, ".-", color=COLOURS[number % len(COLOURS)], label=drawn_label(name))
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.set_ylabel("distance, share of the values")
        axes.set_xticks(range(len(blocks)), [drawn_label(b) for b in blocks], rotation=60, ha="right", fontsize=7)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
        return figure_png(figure)


def band_distance_plot(
    cubes: Sequence[tuple[ArrayLike | None, Mapping[str, ArrayLike]]], wavelengths: Sequence[float] | None
) -> bytes:
    """RMS difference of every variant from PyTorch, band by band; PNG.

    Args:
        cubes: PyTorch's cube [bands, lines, samples] and each variant's, one pair per degradation.
        wavelengths: of the bands in nm, or None.

    Raises:
        MachineError: matplotlib is not installed.
    """
    squares: dict[str, list[Any]] = {}
    for own, variants in cubes:
        for name, cube in variants.items():
            apart = np.asarray(cube, np.float64) - np.asarray(own, np.float64)
            squares.setdefault(name, []).append(np.mean(apart**2, axis=(1, 2)))
    with drawing(1, panel=(9.3, 2.8), columns=1) as (figure, (axes,)):
        for place, (name, each) in enumerate(squares.items()):
            values = np.maximum(np.sqrt(np.mean(each, axis=0)), LEAST_DISTANCE)
            told = wavelengths is not None and len(wavelengths) == len(values)
            across = np.asarray(wavelengths) if told else np.arange(len(values))
            axes.plot(across, values, ".-", color=COLOURS[place % len(COLOURS)], label=drawn_label(name))
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.set_xlabel("wavelength in nm" if told else "band")
        axes.set_ylabel("RMS difference, unit range")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
        return figure_png(figure)
