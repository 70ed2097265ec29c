"""Restore a cube of any size with anything that restores a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import CubeError
from .prompts import MetricsBy, Prompts
from .tiles import Tiling, band_groups

Float32 = NDArray[np.float32]
Infer = Callable[[Float32, Float32], tuple[Float32, Float32]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Restored:
    """What a restoration gives.

    Attributes:
        cube: [bands, lines, samples], of the input's type.
        metrics: float32 [M]; [groups, M] where the cube has more bands than the network.
        gates: float32 [layers, experts] where there is one band group and one tile, else [groups, tiles, layers,
            experts]. Zero where an expert was not chosen.
        metrics_by: what computed the metrics: NumPy on the host, the bundle's graph; or they were given.
        scale: digital number that stood for 1.0, None for floats.
        saturated: values that the input's integer type cannot hold and that were set to its limit.
        missing: pixels that hold the ignore value in some band and stay as they are.
        moved: restored values that happened to equal the ignore value and were set to the number next to it.
    """

    cube: NDArray[np.generic]
    metrics: Float32
    gates: Float32
    metrics_by: MetricsBy
    scale: float | None = None
    saturated: int = 0
    missing: int = 0
    moved: int = 0


def restore_cube(
    cube: Float32,
    infer: Infer,
    *,
    bands: int,
    frame: tuple[int, int],
    overlap: int,
    prompts: Prompts,
    metrics: ArrayLike | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Restore a float cube: metrics once per band group, frames with overlap, smooth blending.

    Args:
        cube: float32 [bands, lines, samples], finite.
        infer: frame [1, bands, *frame] and metrics [1, M] -> restored frame and gates.
        bands: bands of the network; the cube may have more, never fewer.
        frame: lines and samples of the engine's frame; smaller cubes are reflected up to it.
        overlap: lines and samples that neighbouring frames share.
        prompts: what makes the metrics of a band group.
        metrics: [M], [1, M] or [groups, M] to use in place of the cube's own.
        progress: called with (frames done, frames in all).

    Raises:
        CubeError: the cube or the metrics cannot be used.
    """
    if cube.shape[0] < bands:
        raise CubeError(
            "the cube has fewer bands than the network",
            key="bands",
            value=cube.shape[0],
            remedy=f"the network restores {bands} bands; give a cube with at least as many",
        )
    if not np.isfinite(cube).all():
        bad = ~np.isfinite(cube)
        raise CubeError(
            f"{int(bad.sum())} values are not finite, the first in band {int(np.argmax(bad.any(axis=(1, 2))))}",
            key="cube",
            remedy="replace NaN and infinite values, or leave those bands out",
        )
    groups = list(band_groups(cube.shape[0], bands))
    tiling = Tiling((cube.shape[1], cube.shape[2]), frame, overlap)
    tiles = tiling.tiles()
    given = None if metrics is None else _checked_metrics(metrics, len(prompts.names), len(groups))
    total, done = len(groups) * len(tiles), 0
    out = np.zeros_like(cube)
    band_weight = np.zeros(cube.shape[0], np.float32)
    used, gates = [], []
    for index, group in enumerate(groups):
        part = cube[group.start : group.start + bands]
        prompt = prompts(part) if given is None else given[index]
        joined = np.zeros_like(part)
        weight = np.zeros(part.shape[1:], np.float32)
        for tile in tiles:
            restored, chosen = infer(tiling.cut(part, tile), prompt[None])
            area = (slice(tile.line, tile.line + tile.lines), slice(tile.sample, tile.sample + tile.samples))
            share = tiling.weights(tile)
            joined[:, area[0], area[1]] += restored[0, :, : tile.lines, : tile.samples] * share
            weight[area] += share
            gates.append(chosen)
            done += 1
            if progress is not None:
                progress(done, total)
        joined /= weight
        out[group.start : group.start + bands] += joined * group.weights[:, None, None]
        band_weight[group.start : group.start + bands] += group.weights
        used.append(prompt)
    out /= band_weight[:, None, None]
    all_gates = gates[0] if total == 1 else np.stack(gates).reshape(len(groups), len(tiles), *gates[0].shape)
    by = "given" if given is not None else prompts.by((bands, *cube.shape[1:]))
    return Restored(out, used[0] if len(groups) == 1 else np.stack(used), all_gates, by)


def _checked_metrics(metrics: ArrayLike, count: int, groups: int) -> Float32:
    try:
        values = np.asarray(metrics)
    except ValueError as error:
        raise CubeError("the metrics are not an array of numbers", key="metrics", remedy=f"[{count}]") from error
    rows = values[None] if values.ndim == 1 else values
    if rows.ndim != 2 or rows.shape[1] != count or rows.shape[0] not in (1, groups) or values.dtype.kind not in "fiu":
        expected = f"[{count}] or [1, {count}]" + (f" or [{groups}, {count}]" if groups > 1 else "")
        raise CubeError("the metrics do not fit the network", key="metrics", value=values.shape, remedy=expected)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(np.broadcast_to(rows, (groups, count)), np.float32)
    if not np.isfinite(rows).all():
        raise CubeError("the metrics are not finite", key="metrics", remedy="give finite metrics")
    return rows
