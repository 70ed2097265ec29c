"""A cube of any length restored by rows of frames on one grid: no split of the work changes a value.

A row of frames is the engine's lines by all samples of the cube. The network's metrics are of a row, as they are of a
frame of the stream, or of the whole cube where somebody gives these.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools, Float32
from runtime.bundle import Bundle
from runtime.by_lines.survey import Survey
from runtime.errors import CubeError
from runtime.filling import frame_of
from runtime.plausible import implausible
from runtime.products.contract import CubeReader, Quality, Seen
from runtime.tiles import FramePlan, Tile, frame_plan, shares

Given = tuple[Mapping[str, Float32], ...]
"""What the network takes beside its frames, one for each band group."""


class Row(NamedTuple):
    """What became of a row of frames.

    Attributes:
        line: its first line.
        frames: in it that were run: band groups times tiles.
        metrics: [M], the mean over its band groups; empty where the network takes none, or the row was not restored.
        experts: {expert, from 1: tiles in which it weighs most}.
        odd: {what is odd about frames that came out: how many}.
        passed: why it was not restored; empty where it was.
    """

    line: int
    frames: int
    metrics: tuple[float, ...]
    experts: Mapping[int, int]
    odd: Mapping[str, int]
    passed: str = ""


class Block(NamedTuple):
    """Lines that are finished.

    Attributes:
        start: the first.
        cube: [bands, n, samples], of the source's type and numbers, or of the unit range.
        quality: of them.
        missing, saturated, moved: pixels without a value; values set to a limit of the type, or off a mark.
    """

    start: int
    cube: NDArray[Any]
    quality: Quality
    missing: int
    saturated: int
    moved: int


class _Window:
    """The lines of a row, and what came of rows before it: taken once, and moved on from row to row.

    Attributes:
        start: the first line.
        numbers, masked, full: of the source, as it gives them; saturated pixels. None where it does not say.
        made: float32 [bands, n, samples], what frames add up to. share: the largest of a tile's shares in a pixel.
        expert, restored, odd: of pixels.
    """

    def __init__(self, reader: CubeReader, height: int) -> None:
        described = reader.description
        shape = (described.shape[0], height, described.shape[2])
        self._reader, self.start = reader, -height
        self.numbers: NDArray[Any] = np.empty(shape, described.dtype)
        self.masked: Bools | None = None
        self.full: Bools | None = None
        self.made = np.zeros(shape, np.float32)
        self.share = np.zeros(shape[1:], np.float32)
        self.expert = np.zeros(shape[1:], np.uint8)
        self.restored, self.odd = np.zeros(shape[1:], np.bool_), np.zeros(shape[1:], np.bool_)

    def move_to(self, start: int) -> None:
        """Go on to the lines from `start`; those that were there before keep what was added up in them."""
        height = self.numbers.shape[1]
        kept = max(0, self.start + height - start)
        for array in (self.made, self.share, self.expert, self.restored, self.odd):
            array[..., :kept, :] = array[..., height - kept :, :]
            array[..., kept:, :] = 0
        self.numbers[:, :kept] = self.numbers[:, height - kept :]
        self.start, stop = start, start + height
        self.numbers[:, kept:] = self._reader.read_lines(start + kept, stop)
        # Masks are of one bit a pixel: they are asked for anew.
        self.masked, self.full = self._reader.missing(start, stop), self._reader.saturated(start, stop)


def restore_lines(
    bundle: Bundle,
    reader: CubeReader,
    survey: Survey,
    start: int = 0,
    stop: int | None = None,
    *,
    given: Given | None = None,
    clip: bool = False,
    unit: bool = False,
) -> Iterator[Block | Row]:
    """Restore lines `start` to `stop` of a product: every row of frames as it is done, every block as it is finished.

    Args:
        bundle: its network gives what it takes, band for band, and is tiled freely.
        reader, survey: the product, and what was made of its numbers.
        given: what the network takes beside frames, in place of what each row's own lines say.
        clip: clip to [0, 1] in the unit range.
        unit: give float32 in the unit range.

    Raises:
        CubeFileError: lines cannot be read.
        MachineError: the engine failed.
    """
    shape, signature = reader.description.shape, bundle.manifest.signature
    lines, height = shape[1], signature.measured.size[0]
    stop = lines if stop is None else stop
    plan = frame_plan((shape[0], min(height, lines), shape[2]), signature, bundle.manifest.overlap)
    rows = shares(lines, height, bundle.manifest.overlap)
    window = _Window(reader, min(height, lines))
    for place, (first, share) in enumerate(rows):
        end = rows[place + 1][0] if place + 1 < len(rows) else lines
        if first + len(share) <= start:
            continue
        if first >= stop:
            break
        window.move_to(first)
        yield _restore_row(bundle, survey, plan, window, share, given)
        low, high = max(start, first), min(stop, end)
        if low < high:
            yield _finished(survey, window, low, high, clip=clip, unit=unit)


def _restore_row(
    bundle: Bundle, survey: Survey, plan: FramePlan, window: _Window, share: Float32, given: Given | None
) -> Row:
    """Add the frames of a row to the window."""
    signature = bundle.manifest.signature
    meaning, holes = survey.of_lines(window.numbers, window.masked)
    cube = meaning.unit(window.numbers, holes)
    holes = None if holes is None else meaning.ordered(holes)
    tiles = [(tile, _across(part) * share[:, None]) for tile, part in plan.tiles]
    try:
        if meaning.missing.all():
            raise CubeError("every pixel is missing")
        if all((band == cube[0, 0, 0]).all() for band in cube):
            # Of no light, no detector or no data, as the stream passes such lines.
            raise CubeError("all values are equal")
        feeds = given or [bundle.prompts(cube[at : at + signature.measured.bands]) for at, _ in plan.groups]
    except CubeError as error:
        for tile, part in tiles:
            _area(window.made, tile)[...] += _area(cube, tile) * part
        return Row(window.start, 0, (), {}, {}, error.problem)
    frames, experts, odd = 0, dict[int, int](), dict[str, int]()
    weights = np.zeros((len(tiles), 0))
    for (at, of_group), own in zip(plan.groups, feeds, strict=True):
        bands = slice(at, at + signature.measured.bands)
        part = cube[bands]
        joined = window.made[at : at + signature.restored.bands]
        for number, (tile, of_tile) in enumerate(tiles):
            if _area(meaning.missing, tile).all():
                _area(joined, tile)[...] += _area(part, tile) * of_tile * of_group
                continue
            frame = frame_of(cube, bands, tile, plan.tiling, holes, meaning.centres)
            made = bundle.engine.infer({signature.measured.name: frame, **own})
            out, frames = made[signature.restored.name][0], frames + 1
            why = implausible(frame[0], out, alike=True, known=bundle.restored_range)
            if why:
                odd[why] = odd.get(why, 0) + 1
                _area(window.odd, tile)[...] = True
            _area(joined, tile)[...] += out[:, : tile.lines, : tile.samples] * of_tile * of_group
            if signature.routing is not None:
                routed = made[signature.routing.name].sum(axis=0, dtype=np.float64)
                weights = weights if weights.size else np.zeros((len(tiles), len(routed)))
                weights[number] += routed
    for number, (tile, of_tile) in enumerate(tiles):
        if _area(meaning.missing, tile).all():
            continue
        _area(window.restored, tile)[...] = True
        if weights.size:
            expert = int(weights[number].argmax()) + 1
            experts[expert] = experts.get(expert, 0) + 1
            shares_, names = _area(window.share, tile), _area(window.expert, tile)
            more = of_tile > shares_
            shares_[more], names[more] = of_tile[more], expert
    metrics: tuple[float, ...] = ()
    if signature.metrics is not None:
        rows = np.stack([own[signature.metrics.name][0] for own in feeds])
        metrics = tuple(rows.mean(axis=0, dtype=np.float64).tolist())
    return Row(window.start, frames, metrics, experts, odd)


def _across(share: Float32) -> Float32:
    """Shares [samples] of a tile among those beside it, of its shares [lines, samples] in a plan of one row."""
    return share[:1]


def _area(plane: NDArray[Any], tile: Tile) -> NDArray[Any]:
    return plane[..., : tile.lines, tile.sample : tile.sample + tile.samples]


def _finished(survey: Survey, window: _Window, low: int, high: int, *, clip: bool, unit: bool) -> Block:
    """Lines that no later row adds to."""
    inner = slice(low - window.start, high - window.start)
    numbers = window.numbers[:, inner]
    meaning, _ = survey.of_lines(numbers, None if window.masked is None else window.masked[inner])
    out, saturated, moved = meaning.given_back(window.made[:, inner], numbers, clip=clip, unit=unit)
    restored = window.restored[inner]
    passed = ~restored
    if passed.any():
        for number, band in enumerate(out):
            band[passed] = meaning.as_it_was(number, numbers[number][passed], unit=unit)
    full = np.zeros(restored.shape, np.bool_) if window.full is None else window.full[inner].copy()
    if out.dtype.kind in "iu":
        limits = np.iinfo(out.dtype)
        for number, band in enumerate(out):
            if number not in meaning.bad:
                full |= (
                    (band == limits.max) | ((band == limits.min) & (limits.min < 0)) | (numbers[number] == limits.max)
                )
    seen = np.where(restored, Seen.RESTORED, Seen.PASSED).astype(np.uint8)
    seen[full] |= np.uint8(Seen.SATURATED)
    seen[window.odd[inner]] |= np.uint8(Seen.SUSPECT)
    seen[meaning.missing] = Seen.MISSING
    expert = np.where(meaning.missing, 0, window.expert[inner]).astype(np.uint8)
    return Block(low, out, Quality(seen, expert), int(meaning.missing.sum()), saturated, moved)
