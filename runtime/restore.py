"""Restore a cube of any size with anything that restores a frame."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import Bools, Float32
from .errors import CubeError
from .filling import frame_of
from .meaning import Meaning
from .plausible import Range, implausible
from .prompts import Given, MetricsBy, Prompts, given_prompts
from .signature import Signature
from .tiles import frame_plan

Infer = Callable[[Mapping[str, Float32]], Mapping[str, Float32]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Restored:
    """What a restoration gives.

    Attributes:
        cube: [bands, lines, samples], of the input's type.
        prompts: {name: what the network took beside the frame}, as in its signature but for the first axis; with band
            groups [groups, ...].
        side: {name: what it gave beside it}, as in its signature; with band groups or tiles [groups, tiles, ...].
        metrics_by: what computed the metrics: NumPy on the `host`, the bundle's `graph`; or they were `given`.
        frames: runs of the engine, one for each band group and tile.
        scale: number that stood for 1.0, None for floats that were taken as they are.
        saturated: values that the input's integer type cannot hold and that were set to its limit.
        unit: the cube is float32 in the unit range, whatever the input was.
        missing: pixels that are marked as missing in some band and stay as they are.
        made_up: elements that were missing, and are restored of what a network that `fills` was given in their place.
        moved: restored values that happened to equal a mark and were set to the number next to it.
        meaning: of the input's numbers; None where it was in the unit range already.
        suspect: what is odd about frames that came out, in words, see `runtime.plausible`; the first of each kind.
    """

    cube: NDArray[np.generic]
    prompts: Mapping[str, Float32]
    side: Mapping[str, Float32]
    metrics_by: MetricsBy
    frames: int = 1
    scale: float | None = None
    saturated: int = 0
    unit: bool = False
    missing: int = 0
    made_up: int = 0
    moved: int = 0
    meaning: Meaning | None = None
    suspect: tuple[str, ...] = ()

    @property
    def metrics(self) -> Float32:
        """The prompt `metrics`: float32 [M], with band groups [groups, M]; KeyError where the network takes none."""
        return self.prompts["metrics"]

    @property
    def gates(self) -> Float32:
        """The side output `routing`: weights of the experts [layers, experts], zero where one was not chosen."""
        return self.side["routing"]


def restore_cube(
    cube: Float32,
    infer: Infer,
    signature: Signature,
    *,
    overlap: int,
    prompts: Prompts,
    given: Given | None = None,
    progress: Progress | None = None,
    known: Range | None = None,
    missing: Bools | None = None,
    wavelengths: Sequence[float] | None = None,
) -> Restored:
    """Restore a float cube: prompts once per band group, frames with overlap, smooth blending.

    Args:
        cube: float32 [bands, lines, samples], finite.
        infer: restores a frame: {tensor: array} as in the signature.
        signature: of the network; the cube may have more bands where it allows groups, never fewer, and any size where
            tiling is free. Smaller cubes are reflected up to the frame.
        overlap: lines and samples that neighbouring frames share.
        prompts: what makes the prompts of a band group.
        given: prompts to use in place of those, see `given_prompts`.
        progress: called with (frames done, frames in all).
        known: range of values that the network is known to give.
        missing: bool [bands, lines, samples], what is made up of each frame before a network that `fills` sees it;
            metrics are of the cube as it is, zero there.
        wavelengths: of the bands in nm, by which bands are made up.

    Raises:
        CubeError: the cube or the prompts cannot be used.
    """
    check_fits(cube.shape, signature)
    if not signature.fills:
        missing = None
    if not all(np.isfinite(band).all() for band in cube):
        bad = ~np.isfinite(cube)
        raise CubeError(
            f"{int(bad.sum())} values are not finite, the first in band {int(np.argmax(bad.any(axis=(1, 2))))}",
            key="cube",
            remedy="replace NaN and infinite values, or leave those bands out",
        )
    measured, restored = signature.measured, signature.restored
    plan = frame_plan(cube.shape, signature, overlap)
    replaced = [{}] * len(plan.groups) if given is None else given_prompts(given, signature, len(plan.groups))
    done = 0
    size = cube.shape[1:] if signature.tiling == "free" else restored.size
    out = np.zeros((len(cube) if signature.band_groups else restored.bands, *size), np.float32)
    used: list[dict[str, Float32]] = []
    side: dict[str, list[Float32]] = {s.name: [] for s in signature.side}
    suspect = dict[str, int]()
    for (start, weights), own in zip(plan.groups, replaced, strict=True):
        part = cube[start : start + measured.bands]
        whole = all(p.name in own for p in signature.prompts)
        feeds = own if whole else {**prompts(part), **own}
        joined = out[start : start + restored.bands]
        for tile, share in plan.tiles:
            frame = frame_of(cube, slice(start, start + measured.bands), tile, plan.tiling, missing, wavelengths)
            made = infer({measured.name: frame, **feeds})
            odd = implausible(frame[0], made[restored.name][0], alike=signature.alike, known=known)
            suspect[odd] = suspect.get(odd, 0) + 1
            lines, samples = share.shape
            area = joined[:, tile.line : tile.line + lines, tile.sample : tile.sample + samples]
            area += made[restored.name][0, :, :lines, :samples] * share * weights
            for name, values in side.items():
                values.append(made[name])
            done += 1
            if progress is not None:
                progress(done, plan.runs)
        used.append(feeds)
    metrics = signature.metrics
    by = prompts.by((measured.bands, *cube.shape[1:]))
    return Restored(
        out,
        {p.name: _of_groups([feeds[p.name] for feeds in used]) for p in signature.prompts},
        {
            name: each[0] if plan.runs == 1 else np.stack(each).reshape(len(used), -1, *each[0].shape)
            for name, each in side.items()
        },
        "given" if metrics is not None and metrics.name in replaced[0] else by,
        plan.runs,
        suspect=tuple(f"{count} of {plan.runs} frames: {odd}" for odd, count in suspect.items() if odd),
    )


def _of_groups(prompts: list[Float32]) -> Float32:
    rows = [prompt[0] if prompt.shape[0] == 1 else prompt for prompt in prompts]
    return rows[0] if len(rows) == 1 else np.stack(rows)


def check_fits(shape: tuple[int, ...], signature: Signature) -> None:
    """Refuse a cube [bands, lines, samples] that the network cannot take. Raises CubeError."""
    bands, size = signature.measured.bands, signature.measured.size
    if shape[0] < bands:
        raise CubeError(
            "the cube has fewer bands than the network",
            key="bands",
            value=shape[0],
            remedy=f"the network restores {bands} bands; give a cube with at least as many",
        )
    if shape[0] > bands and not signature.band_groups:
        raise CubeError(
            "the cube has more bands than the network, which does not restore them in groups",
            key="bands",
            value=shape[0],
            remedy="give a measurement of one band"
            if signature.is_area
            else f"give the {bands} bands that it takes: --bands names them by their places from 0, as 24,17,10",
        )
    if signature.tiling == "fixed" and shape[1:] != size:
        raise CubeError(
            "the network takes frames of one size, which have one place only",
            key="cube",
            value=f"{shape[1]}x{shape[2]}",
            remedy=f"give {size[0]} lines x {size[1]} samples",
        )
