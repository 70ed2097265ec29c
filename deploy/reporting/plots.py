"""Pictures of cubes for people: quicklooks, error maps and plots, as uint8 arrays or PNG bytes.

Quicklooks need NumPy and Pillow only. The plots need matplotlib, which is imported when the first one is drawn.
The same input gives the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import CubeError, MachineError

from .quicklooks import Pixel, checked_cube, drawn_label

if TYPE_CHECKING:
    # Not of the flight install: imported where they are used.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SERIES_COLOURS = ("#8a8f98", "#1763c6", "#111418", "#c2410c", "#0f766e", "#7c3aed")
COLOURS = SERIES_COLOURS[1:]
"""The first colour is for what is degraded."""
MOST_POINTS = 2000
BINS = 40


def spectra_plot(
    series: Mapping[str, ArrayLike],
    pixels: Sequence[Pixel],
    wavelengths: Sequence[float] | None = None,
    *,
    scale: str = "value",
) -> bytes:
    """Spectra at `pixels` (line, sample), one panel each, one line per cube of `series`; PNG.

    Args:
        series: cubes [bands, lines, samples] of one shape by label, for example degraded, restored, truth.
        wavelengths: centre of every band in nm; None numbers the bands.
        scale: what the values are, the label of the axis.

    Raises:
        MachineError: matplotlib is not installed.
        CubeError: wavelengths of another number of bands.
    """
    cubes = {label: checked_cube(cube) for label, cube in series.items()}
    shape = next(iter(cubes.values())).shape
    across, along = _band_axis(shape[0], wavelengths)
    with drawing(len(pixels), panel=(3.1, 2.6), columns=3) as (figure, panels):
        for number, (axes, (line, sample)) in enumerate(zip(panels, pixels, strict=True)):
            for place, (label, cube) in enumerate(cubes.items()):
                _line(axes, across, cube[:, line, sample], place, label)
            axes.set_title(f"{number + 1}   line {line}, sample {sample}", loc="left")
            axes.set_xlabel(along)
        panels[0].set_ylabel(drawn_label(scale))
        _legend(figure, panels[0], list(cubes))
        return figure_png(figure)


def band_psnr_plot(
    series: Mapping[str, ArrayLike], wavelengths: Sequence[float] | None = None, *, figure_name: str = "PSNR"
) -> bytes:
    """PSNR of every band, one line per label; PNG.

    Args:
        series: PSNR in dB [bands] by label, for example degraded, restored by PyTorch, restored by the engine.
        wavelengths: centre of every band in nm; None numbers the bands.
        figure_name: what it is, where it is another ratio in dB.

    Raises:
        MachineError: matplotlib is not installed.
        CubeError: wavelengths of another number of bands.
    """
    figures = {label: np.asarray(values, np.float64).reshape(-1) for label, values in series.items()}
    across, along = _band_axis(len(next(iter(figures.values()))), wavelengths)
    with drawing(1, panel=(9.3, 3.0), columns=1) as (figure, panels):
        for place, (label, values) in enumerate(figures.items()):
            _line(panels[0], across, values, place, label)
        panels[0].set_xlabel(along)
        panels[0].set_ylabel(f"{figure_name} in dB, higher is better")
        _legend(figure, panels[0], list(figures))
        return figure_png(figure)


def experts_plot(cases: Mapping[str, ArrayLike]) -> bytes:
    """Which experts restored each case: a heat map of their weights [layers, experts] per case; PNG.

    Args:
        cases: weights by the case's label; an expert's is 0 when it was not chosen.

    Raises:
        MachineError: matplotlib is not installed.
    """
    weights = {label: np.asarray(values, np.float64) for label, values in cases.items()}
    layers = max(len(values) for values in weights.values())
    with drawing(len(weights), panel=(1.85, 0.85 + 0.3 * layers), columns=5) as (figure, panels):
        for place, (axes, (label, values)) in enumerate(zip(panels, weights.items(), strict=True)):
            shown = np.where(np.isfinite(values), values, 0.0)
            axes.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
            for (layer, expert), gate in np.ndenumerate(values):
                if not np.isfinite(gate):
                    axes.text(expert, layer, "?", ha="center", va="center", color="#c2410c")
                elif gate > 0:
                    colour = "white" if gate > 0.55 else "#111418"
                    axes.text(expert, layer, f"{gate:.2f}", ha="center", va="center", color=colour, fontsize=7.5)
            axes.set_title(drawn_label(label), loc="left")
            axes.set_xticks(range(values.shape[1]), [str(expert + 1) for expert in range(values.shape[1])])
            axes.set_yticks(range(values.shape[0]), [str(layer + 1) for layer in range(values.shape[0])])
            axes.tick_params(length=0)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.set_xlabel("expert")
            if place % 5 == 0:
                axes.set_ylabel("layer")
        return figure_png(figure)


def choices_plot(cases: Mapping[str, ArrayLike], balances: ArrayLike | None = None) -> bytes:
    """How often every expert was chosen: one heat map per layer, degradations down, experts across; PNG.

    Args:
        cases: share of cubes [layers, experts], 0 to 1, by the degradation's name.
        balances: share of the spatial branch of every expert [layers, experts], written below its number.

    Raises:
        MachineError: matplotlib is not installed.
    """
    shares = {label: np.asarray(values, np.float64) for label, values in cases.items()}
    shape = next(iter(shares.values())).shape
    spatial = None if balances is None else np.asarray(balances, np.float64)
    with drawing(shape[0], panel=(0.9 + 0.62 * shape[1], 0.9 + 0.26 * len(shares)), columns=3) as (figure, panels):
        for layer, axes in enumerate(panels):
            shown = np.stack([values[layer] for values in shares.values()])
            axes.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
            for (row, expert), share in np.ndenumerate(shown):
                colour = "white" if share > 0.55 else "#111418"
                axes.text(expert, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=7.5)
            below = [""] * shape[1] if spatial is None else [f"\n{value:.2f}" for value in spatial[layer]]
            axes.set_xticks(range(shape[1]), [f"{expert + 1}{text}" for expert, text in enumerate(below)])
            axes.set_yticks(range(len(shares)), [drawn_label(label) for label in shares])
            axes.set_title(f"layer {layer + 1}: cubes in %", loc="left")
            axes.set_xlabel("expert" if spatial is None else "expert, and its spatial share")
            axes.tick_params(length=0)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
        return figure_png(figure)


def gains_plot(cases: Mapping[str, Mapping[str, float]]) -> bytes:
    """PSNR gain in dB over the degraded input, bars of every contender side by side per task; PNG.

    Args:
        cases: {task: {contender: gain in dB}}, the same contenders for every task.

    Raises:
        MachineError: matplotlib is not installed.
    """
    contenders = list(next(iter(cases.values())))
    width = 0.8 / len(contenders)
    with drawing(1, panel=(9.3, 3.0), columns=1) as (figure, (axes,)):
        for place, contender in enumerate(contenders):
            at = np.arange(len(cases)) + (place - (len(contenders) - 1) / 2) * width
            gains = [case[contender] for case in cases.values()]
            bars = axes.bar(
                at, gains, width, color=SERIES_COLOURS[place % len(SERIES_COLOURS)], label=drawn_label(contender)
            )
            axes.bar_label(bars, [f"{gain:+.1f}" for gain in gains], fontsize=7.5, padding=1)
        axes.axhline(0, color="#111418", linewidth=0.8)
        axes.set_xticks(range(len(cases)), [drawn_label(task) for task in cases])
        axes.set_ylabel("PSNR gain in dB")
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
        return figure_png(figure)


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


def _band_axis(bands: int, wavelengths: Sequence[float] | None) -> tuple[NDArray[np.float64], str]:
    if wavelengths is None:
        return np.arange(1.0, bands + 1.0), "band"
    centres = np.asarray(wavelengths, np.float64)
    if centres.shape != (bands,):
        raise CubeError(f"{centres.size} wavelengths for {bands} bands", key="wavelengths")
    return centres, "wavelength in nm"


def _line(axes: Axes, across: NDArray[np.float64], values: NDArray[Any], place: int, label: str) -> None:
    shown = values.astype(np.float64)
    shown[~np.isfinite(shown)] = np.nan
    axes.plot(
        across,
        shown,
        color=SERIES_COLOURS[place % len(SERIES_COLOURS)],
        linestyle=("-", "-", "--", "-.", ":")[place % 5],
        linewidth=(1.0, 1.8, 1.3, 1.3, 1.3)[place % 5],
        marker="." if len(across) == 1 else None,
        label=drawn_label(label),
    )


def _legend(figure: Figure, axes: Axes, labels: Sequence[str]) -> None:
    handles = axes.get_lines()[: len(labels)]
    figure.legend(
        handles, [drawn_label(label) or "?" for label in labels], loc="outside upper left", ncols=4, frameon=False
    )


def require_plots() -> None:
    """Raise MachineError where matplotlib, which draws the plots, is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "matplotlib is not installed, so no plots can be drawn",
            key="matplotlib",
            remedy='pip install "damp-deploy[report]"',
        ) from error


@contextmanager
def drawing(panels: int, *, panel: tuple[float, float], columns: int) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `panels` axes in rows of `columns`, in our style whatever the user's matplotlibrc says."""
    require_plots()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A label in a script that the font lacks is shown as boxes; that is no reason to write to stderr.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        cast(Any, matplotlib.rcParams).update(_STYLE)
        across = min(columns, panels)
        down = -(-panels // columns)
        figure = Figure(figsize=(panel[0] * across, panel[1] * down + 0.3), dpi=144, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(down, across, squeeze=False)
        for spare in grid.reshape(-1)[panels:]:
            spare.set_visible(False)
        yield figure, list(grid.reshape(-1)[:panels])


_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a `$` in a file's name is a `$`
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelcolor": "#4b5563",
    "axes.edgecolor": "#c4c9d0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8eaee",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
}


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
