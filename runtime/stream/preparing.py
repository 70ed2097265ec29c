"""What is made of a frame before the engine sees it: radiometry, missing values, bands that say nothing, prompts.

One frame is prepared while the engine restores the one before, each in memory of its own that is taken once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools, Float32
from runtime.errors import CubeError
from runtime.filling import filled
from runtime.lines import UNFIT, Flag, Line, LineFormat
from runtime.meaning import words
from runtime.meaning.bands import FULL, bridged
from runtime.meaning.marks import OF_FILL, Mark, marked, seen_marks, standing
from runtime.plausible import Range
from runtime.prompts import Prompts
from runtime.radiometry import Radiometry
from runtime.signature import Signature
from runtime.tiles import FramePlan, frame_plan

from .frames import Frame
from .intake import PATIENCE
from .pool import Slot
from .sampling import at_limit
from .screening import SATURATED_SHARE
from .tables import Tables

ENOUGH = 0.5
"""Where fewer of a frame's lines are fit, the whole frame is passed through: it would be made of neighbours."""
SPACES = 2
"""Frames that are prepared or restored at a time."""
EVERY = 8
"""A band in whose every eighth line enough values are apart from one number is not of that number."""
BAD_PIXELS = "name pixels of the detector that are always so in stream.radiometry.bad_pixels"
_UNFIT, _SOME_SATURATED, _DEAD_BANDS = int(UNFIT), int(Flag.SOME_SATURATED), int(Flag.DEAD_BANDS)
_OF_THE_FRAME = int(Flag.SATURATED | Flag.NOT_FINITE)


class AbandonedError(Exception):
    """Restoration was told to end in the middle of a frame."""


@dataclass(frozen=True)
class RestorerFacts:
    """What the network restores, and how its frames lie in the lines.

    Attributes:
        signature: of the network.
        overlap: samples that neighbouring tiles share.
        prompts: what makes the prompts of a frame.
        chosen: places of the bands that are restored, in the source's lines; None for all of them.
        wavelengths: of the source's bands in nm, None where nobody tells them.
        marks: of missing values; None for the ignore value of the lines.
        bad: bands of the source that no network should see, from 0; `lost` are those that are made up for one that is
            given no holes.
        learns: whether marks that nobody named are looked for.
        known: range of values in the unit range that the network is known to give; None where nobody knows.
        constant_bands: what somebody asks for bands of one value: to `leave` them as they are, which is done with a
            doubt where nobody does, or to `restore` them.
    """

    signature: Signature
    overlap: int
    prompts: Prompts
    chosen: tuple[int, ...] | None = None
    wavelengths: tuple[float, ...] | None = None
    marks: tuple[Mark, ...] | None = None
    bad: tuple[int, ...] = ()
    learns: bool = True
    constant_bands: Literal["leave", "restore"] | None = None
    known: Range | None = None
    lost: tuple[int, ...] = ()

    @property
    def frame(self) -> tuple[int, int]:
        """Lines and samples of the engine's frame."""
        return self.signature.measured.size


@dataclass(frozen=True, eq=False)
class Kept:
    """Values of a line that come out as they came in.

    Attributes:
        place: of the line in its frame.
        mask: bool [bands, samples]; None for all of them.
        values: float32 [bands, samples] in the unit range; valid where the mask is.
        whole: nothing else is in the line, so that no network should see it.
    """

    place: int
    mask: Bools | None
    values: Float32
    whole: bool


class Space:
    """Memory of a frame that is prepared.

    Attributes:
        unit: float32 [bands, lines, samples] in the unit range.
        missing: bool likewise: which of them draw on a mark.
        holes: bool likewise: which were made up; None where the network is given holes.
    """

    def __init__(self, bands: int, lines: int, samples: int, *, fills: bool = False) -> None:
        self.unit = np.zeros((bands, lines, samples), np.float32)
        self.missing = np.zeros((bands, lines, samples), np.bool_)
        self.holes = np.zeros((bands, lines, samples), np.bool_) if fills else None
        # Written once, so that the memory is there before the first frame comes.
        self.unit.fill(0)
        self.missing.fill(False)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A frame that the engine may see, or that is to come out as it came.

    Attributes:
        frame, space: its lines, and where it lies.
        taken: bool [lines], which came.
        as_it_came: bool [lines], which come out as they came.
        kept: values that do.
        bad: bool [bands], which the network should not see; `came` is what they held.
        ends: lowest and highest value of each band [bands] that the network is given; None where it is given none.
        feeds: prompts of each band group; none where it is passed through.
        prompts: what made them.
        marks: of missing values that were known; `mark` stands for them, None for none.
        doubts: what was seen for the first time, for people.
        seconds: of radiometry and metrics.
        mended: how often the radiometry's tables had been put back before.
    """

    frame: Frame
    space: Space
    taken: Bools
    as_it_came: Bools
    kept: Sequence[Kept]
    bad: Bools
    came: Float32
    ends: tuple[Float32, Float32] | None
    feeds: Sequence[dict[str, Float32]]
    prompts: Prompts
    marks: bool
    mark: float | None
    doubts: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    mended: int = 0

    @property
    def unit(self) -> Float32:
        """What the network is given: float32 [bands, lines of the frame, samples]."""
        return self.space.unit[:, : len(self.taken)]


class Preparer:
    """Prepares frame after frame.

    Args:
        facts: of the network.
        format: of the lines.
        radiometric: from digital numbers to the unit range; of lines, or of whole frames of an area detector.

    Attributes:
        marks: of missing values that are known.
        tables: of the radiometry, watched.
        plan: how the network restores a frame.
        prompts: what makes prompts; set by who is `alone`.
        mended: how often the tables were put back; likewise.
    """

    def __init__(self, facts: RestorerFacts, format: LineFormat, radiometric: Radiometry) -> None:
        self._facts, self._format, self._radiometric = facts, format, radiometric
        self.prompts, self.mended, self._lock = facts.prompts, 0, Lock()
        lines = facts.frame[0]
        taken = format.bands if facts.chosen is None else len(facts.chosen)
        self._shape = taken, lines, format.samples
        self.passes_through = facts.signature.alike
        self._chosen = None if facts.chosen is None else np.array(facts.chosen, np.intp)
        ignored = () if format.ignore_value is None else (Mark(format.ignore_value, format.ignore_value, "file"),)
        self.marks = list(ignored if facts.marks is None else facts.marks)
        self.mark = standing(self.marks, format.dtype)
        self._seen = (np.inf, -np.inf)
        self._centres = facts.wavelengths
        if self._chosen is not None and self._centres is not None:
            self._centres = tuple(self._centres[band] for band in self._chosen)
        self._listed = np.isin(np.arange(format.bands) if self._chosen is None else self._chosen, facts.bad)
        self._left: Bools = self._listed
        self._told: dict[int, str] = {}
        self.tables = Tables(radiometric.tables())
        self._whole = np.zeros(format.shape, np.float32)
        self._mask = np.zeros(format.shape, np.bool_)
        self._image = np.zeros((lines, format.samples), format.dtype) if facts.signature.is_area else None
        self.plan: FramePlan = frame_plan(self._shape, facts.signature, facts.overlap)

    def space(self) -> Space:
        """Memory for one frame."""
        return Space(*self._shape, fills=self._facts.signature.fills)

    @contextmanager
    def alone(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Radiometry, prompts and what they are made with are the caller's meanwhile.

        Args:
            waiting: called now and then while they are somebody else's.
        """
        while not self._lock.acquire(timeout=PATIENCE):
            waiting()
        try:
            yield
        finally:
            self._lock.release()

    def prepare(
        self,
        frame: Frame,
        space: Space,
        waiting: Callable[[], None] = lambda: None,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> Prepared:
        """Prepare a frame in `space`, from its lines.

        Args:
            waiting: see `alone`.
            abandoned: asked before every band group's prompts.

        Raises:
            AbandonedError: `abandoned` said so.
            CubeError: the frame's numbers are none that the network should see.
            MachineError: the graph of the metrics failed.
        """
        with self.alone(waiting):
            return self._prepare(frame, space, abandoned)

    def pass_through(self, frame: Frame, space: Space, waiting: Callable[[], None] = lambda: None) -> Prepared:
        """A frame as it comes, but for radiometry: what no network should see."""
        with self.alone(waiting):
            return self._pass(frame, space)

    def _prepare(self, frame: Frame, space: Space, abandoned: Callable[[], bool]) -> Prepared:
        began = time.monotonic()
        count, taken = len(frame.slots), np.array(frame.taken)
        fixed = self._facts.signature.tiling == "fixed"
        if fixed and (frame.first - frame.run) % self._facts.frame[0]:
            raise CubeError(
                "the frame begins where none does, behind lines that are missing", key="lines", value=frame.first,
                remedy="mend the source",
            )  # fmt: skip
        # What bad elements of an area detector give, which radiometry replaces, is judged by the frame.
        faults = _UNFIT if self._image is None else _UNFIT & ~_OF_THE_FRAME
        unfit = np.fromiter((slot is not None and slot.flags & faults != 0 for slot in frame.slots), np.bool_, count)
        if self._image is not None and (unfit.any() or not taken.all() or count < len(self._image)):
            raise self._not_whole(int((taken & ~unfit).sum()))
        kept, bad, came, doubts, ends = self._fill(frame.slots, space)
        unfit[[keep.place for keep in kept if keep.whole]] = True
        fit = np.flatnonzero(taken & ~unfit)
        missing = self._missing(space, taken)
        if not self.passes_through and missing:
            raise self._holed(missing, "missing")
        if len(fit) < ENOUGH * count or (fixed and count < self._facts.frame[0]):
            if not self.passes_through:
                raise self._not_whole(len(fit))
            return self._passed(frame, space, kept, bad, came, doubts, began)
        unit, bands = space.unit[:, :count], np.flatnonzero(bad)
        self._bridge(came, np.flatnonzero(taken), count)
        if space.holes is not None:
            left = self._left[bad]
            bad, came = self._make_up(space, bad, fit, count), came[left]
        self._bridge(space.unit, fit, count)
        if space.holes is None:
            bridged(unit, bands, self._centres)
        if ends is None or missing or len(fit) < count or len(bands):
            ends = unit.min(axis=(1, 2)), unit.max(axis=(1, 2))
        if not np.isfinite(ends).all():
            raise CubeError("the input is not finite", key="lines", remedy="replace NaN and infinite values")
        if count < self._facts.frame[0]:
            reflected = np.pad(np.arange(count), (0, self._facts.frame[0] - count), "reflect")[count:]
            space.unit[:, count:] = space.unit[:, reflected]
        then = time.monotonic()
        feeds = []
        for start, _ in self.plan.groups:
            if abandoned():
                raise AbandonedError
            feeds.append(self._feeds(space, start, count))
        return Prepared(
            frame, space, taken, unfit if self.passes_through else np.zeros_like(unfit), kept, bad, came, ends, feeds,
            self.prompts, bool(self.marks), self.mark, doubts,
            {"radiometry": then - began, "metrics": time.monotonic() - then}, self.mended,
        )  # fmt: skip

    def feeds(self, space: Space, start: int, count: int, waiting: Callable[[], None]) -> dict[str, Float32]:
        """Prompts of the band group from `start` of a frame of so many lines, made anew."""
        with self.alone(waiting):
            return self._feeds(space, start, count)

    def _feeds(self, space: Space, start: int, count: int) -> dict[str, Float32]:
        signature = self._facts.signature
        bands = slice(start, start + signature.measured.bands)
        part = space.unit[bands, :count]
        if space.holes is not None and space.holes[bands, :count].any():
            part = np.where(space.holes[bands, :count], np.float32(0), part)
        made = self.prompts(part)
        for prompt in (signature.metrics, signature.embedding):
            # A graph writes the next frame's where it wrote these.
            if prompt is not None:
                made[prompt.name] = made[prompt.name].copy()
        return made

    def _pass(self, frame: Frame, space: Space) -> Prepared:
        began = time.monotonic()
        kept, bad, came, doubts, _ = self._fill(frame.slots, space)
        return self._passed(frame, space, kept, bad, came, doubts, began)

    def _passed(
        self, frame: Frame, space: Space, kept: Sequence[Kept], bad: Bools, came: Float32, doubts: tuple[str, ...],
        began: float,
    ) -> Prepared:  # fmt: skip
        taken = np.array(frame.taken)
        for values in (space.unit, came):
            self._bridge(values, np.flatnonzero(taken), len(taken))
        return Prepared(
            frame, space, taken, taken, kept, bad, came, None, (), self.prompts, bool(self.marks), self.mark, doubts,
            {"radiometry": time.monotonic() - began}, self.mended,
        )  # fmt: skip

    def _missing(self, space: Space, taken: Bools) -> int:
        """How many values of lines that came are missing."""
        return int(np.count_nonzero(space.missing[:, np.flatnonzero(taken)])) if self.marks else 0

    def _holed(self, count: int, what: str) -> CubeError:
        seen = [words.number(mark.value) for mark in self.marks if mark.whence == "data"]
        return CubeError(
            f"values of the frame are {what}, and nothing stands for them in what is restored",
            key="lines",
            value=count,
            remedy=BAD_PIXELS + (f"; if {seen[0]} is measured and no mark, say --ignore-value none" if seen else ""),
        )

    def _not_whole(self, fit: int) -> CubeError:
        return CubeError(
            "the frame is not whole, and nothing of it can be passed through",
            key="lines",
            value=f"{fit} of {self._facts.frame[0]}",
            remedy="mend the source",
        )

    def _line(self, raw: Line, out: Float32) -> None:
        """A line in the unit range: `out` [bands, samples]."""
        if self._chosen is None:
            self._radiometric.apply_line(raw, out)
        else:
            self._radiometric.apply_line(raw, self._whole)
            out[:] = self._whole[self._chosen]

    def _fill(
        self, slots: Sequence[Slot | None], space: Space
    ) -> tuple[list[Kept], Bools, Float32, tuple[str, ...], tuple[Float32, Float32] | None]:
        """Radiometry of all lines.

        Returns:
            (what of them is to come out as it came in, bands that the network should not see, what these held, what
            people should know, lowest and highest value of each band where every line was looked at).
        """
        came = [(place, slot) for place, slot in enumerate(slots) if slot is not None]
        if self._image is not None:
            self._develop(self._image, came, space)
            return [], self._listed, space.unit[self._listed, : len(slots)], (), None
        # The frame before left there what it had.
        space.missing[:, [place for place, slot in enumerate(slots) if slot is None]] = False
        kept = []
        for place, slot in came:
            out, flags = space.unit[:, place], slot.flags
            self._line(slot.line, out)
            if flags & _UNFIT and self.passes_through:
                kept.append(Kept(place, None, out.copy(), True))
            if flags & _SOME_SATURATED and self._radiometric.saturated(slot.line, self._mask):
                kept.append(Kept(place, self._selected(self._mask).copy(), out.copy(), False))
            self._find_missing(slot.line, space.missing[:, place])
        bad, doubts, ends = self._judge(came, space)
        if space.holes is not None:
            # A band that is made up was not measured where it is at the detector's limit either.
            kept = [
                keep if keep.mask is None else replace(keep, mask=keep.mask & (~bad | self._left)[:, None])
                for keep in kept
            ]
        held = space.unit[bad, : len(slots)]
        if self.marks:
            kept += self._without_missing(came, space, ~bad)
        return kept, bad, held, doubts, ends

    def _without_missing(self, came: Sequence[tuple[int, Slot]], space: Space, good: Bools) -> list[Kept]:
        """Put means of each line in the place of its missing pixels; returns what these held.

        A pixel is missing where a value of it is; where the network is given no holes, where all of them are.
        """
        kept, fills = [], space.holes is not None
        for place, _ in came:
            out, marks = space.unit[:, place], space.missing[:, place]
            missing = marks[good].all(axis=0) if fills else marks[good].any(axis=0)
            if missing.any():
                whole = bool(missing.all())
                kept.append(Kept(place, np.broadcast_to(missing, out.shape), out.copy(), whole))
                if not whole and not fills:
                    out[:, missing] = out[:, ~missing].mean(axis=1, keepdims=True)
            if fills:
                out[marks] = 0
        return kept

    def _make_up(self, space: Space, bad: Bools, fit: NDArray[np.intp], count: int) -> Bools:
        """Fill what is missing of the lines that are fit; returns the bands that stay bad, since somebody wants it."""
        assert space.holes is not None, "the network is given no holes"
        unit, missing, holes = space.unit[:, :count], space.missing[:, :count], space.holes[:, :count]
        listed = self._left & bad
        holes.fill(False)
        holes[:, fit] = missing[:, fit]
        holes[bad] = True
        if holes.any():
            lines = slice(None) if len(fit) == count else fit
            unit[:, lines] = filled(unit[:, lines], holes[:, lines], self._centres)
            gone: Bools = np.asarray(missing[~bad].all(axis=0))
            # Lines that are not fit, and bands that stay, come out as they came, with their marks.
            made = np.ix_(~listed, fit)
            missing[made] = np.broadcast_to(gone[fit], missing[made].shape)
            holes &= ~gone
            holes[listed] = False
        return listed

    def _develop(self, image: Line, came: Sequence[tuple[int, Slot]], space: Space) -> None:
        """Radiometry of a frame of an area detector. Raises CubeError where its numbers are none to restore from."""
        unit, missing = space.unit[0], space.missing[0]
        for place, slot in came:
            np.copyto(image[place], slot.line[0])
        self._radiometric.apply_line(image, unit)
        np.copyto(missing, self._radiometric.drawn(marked(image, self.marks)) if self.marks else False)
        if wild := int(np.count_nonzero(~np.isfinite(unit) & ~missing)):
            raise self._holed(wild, "not finite")
        if image.min() == image.max():
            raise CubeError("the frame has one value all over", key="lines", value=image.max(), remedy="let light in")
        saturated = self._radiometric.saturated(image)
        if saturated > SATURATED_SHARE * image.size:
            raise CubeError(
                "the frame is saturated",
                key="lines",
                value=f"{100 * saturated / image.size:.0f} % of its values",
                remedy="expose it for less time",
            )

    def _find_missing(self, line: Line, found: Bools) -> None:
        """Values that draw on a mark, into `found` [bands, samples]."""
        if not self.marks:
            return
        np.copyto(self._mask, marked(line, self.marks))
        if self._mask.any():
            np.copyto(found, self._selected(self._radiometric.drawn(self._mask)))
        else:
            found.fill(False)

    def _judge(
        self, came: Sequence[tuple[int, Slot]], space: Space
    ) -> tuple[Bools, tuple[str, ...], tuple[Float32, Float32] | None]:
        """Marks that nobody named and bands that say nothing, in these lines.

        Returns:
            (bands that say nothing, what is new of all this in words, as `_fill`).
        """
        all_lines = len(came) == space.unit.shape[1]
        came = [(place, slot) for place, slot in came if not slot.flags & _UNFIT]
        if not came or not self.passes_through:
            return self._listed, (), None
        places = [place for place, _ in came]
        whole = len(places) == space.unit.shape[1]
        lines = space.unit if whole else space.unit[:, places]
        ends = low, high = lines.min(axis=(1, 2)), lines.max(axis=(1, 2))
        told = self._learn(came, lines, places, space, ends) if self._facts.learns else []
        constant = (low == high) | _mostly(lines, low) | _mostly(lines, high)
        missing: Bools = np.zeros_like(constant)
        if self.marks:
            missing = np.asarray(space.missing[:, places].all(axis=(1, 2)))
        wild = np.zeros_like(constant)
        for place, slot in came:
            if slot.flags & _DEAD_BANDS:
                wild |= ~np.isfinite(space.unit[:, place]).any(axis=1)
        several = len(places) > 1 and not constant.all()
        bad = self._listed | missing | wild | (constant & several & (self._facts.constant_bands != "restore"))
        if bad.all():
            bad = self._listed & ~self._listed.all()
        self._left = np.asarray(self._listed | (constant & bad & (self._facts.constant_bands == "leave")))
        why = {
            int(band): "without a single value" if missing[band] or wild[band] else "of one value"
            for band in np.flatnonzero(bad & ~self._listed)
        }
        new = {self._number(band): reason for band, reason in why.items() if self._number(band) not in self._told}
        self._told |= new
        notes, doubts = words.of_bad(new, constant=self._facts.constant_bands, fills=self._facts.signature.fills)
        return bad, (*told, *notes, *doubts), ends if whole and all_lines else None

    def _number(self, band: int) -> int:
        return band if self._chosen is None else int(self._chosen[band])

    def _learn(
        self,
        came: Sequence[tuple[int, Slot]],
        lines: Float32,
        places: Sequence[int],
        space: Space,
        ends: tuple[Float32, Float32],
    ) -> list[str]:
        """Marks that are seen in the lines and were not known; returns what people should know.

        They are looked for where values lie farther out than any before, as a mark that is seen lies farther out than
        all others.
        """
        low, high = float(ends[0].min()), float(ends[1].max())
        if self.marks or not np.isfinite((low, high)).all():
            missing = space.missing[:, places]
            there = lines[~missing] if self.marks and missing.any() else lines
            low = float(np.fmin.reduce(there, axis=None, initial=np.inf))
            high = float(np.fmax.reduce(there, axis=None, initial=-np.inf))
        before, margin = self._seen, OF_FILL * max(self._seen[1] - self._seen[0], 0)
        self._seen = min(low, before[0]), max(high, before[1])
        if low >= before[0] - margin and high <= before[1] + margin:
            return []
        raw = np.stack([self._selected(slot.line) for _, slot in came], axis=1)
        limit = self._radiometric.saturation
        new = [mark for mark in seen_marks(raw, self.marks, ~self._listed) if not at_limit(mark, limit)]
        if not new:
            return []
        # What they made of the range says nothing of the values.
        self._seen = before
        self.marks += new
        self.mark = standing(self.marks, raw.dtype) if self.mark is None else self.mark
        for place, slot in came:
            self._find_missing(slot.line, space.missing[:, place])
        counts = [int(mark.found(raw).any(axis=0).sum()) for mark in new]
        return words.of_marks(new, counts, raw.dtype)

    def _selected(self, mask: Bools) -> Bools:
        return mask if self._chosen is None else mask[self._chosen]

    def _bridge(self, unit: Float32, fit: NDArray[np.intp], count: int) -> None:
        """Lines that no network should see, made from the nearest that it may see."""
        if not len(fit) or len(fit) == count:
            return
        for place in np.setdiff1d(np.arange(count), fit):
            left, right = beside(fit, int(place))
            share = np.float32(0 if left >= right else (place - left) / (right - left))
            unit[:, place] = (1 - share) * unit[:, left] + share * unit[:, right]


def _mostly(lines: Float32, value: Float32) -> Bools:
    """Of which bands [bands, lines, samples] more than `FULL` are one value [bands]."""
    few = (1 - FULL) * lines[0].size
    some = lines[:, ::EVERY] != value[:, None, None]
    found = np.array([np.count_nonzero(band) <= few for band in some])
    for band in np.flatnonzero(found):
        found[band] = np.count_nonzero(lines[band] == value[band]) > FULL * lines[band].size
    return found


def beside(fit: NDArray[np.intp], place: int) -> tuple[int, int]:
    """The nearest of the sorted places `fit` before and after one that is none of them; the same where one is none."""
    after = int(np.searchsorted(fit, place))
    return int(fit[max(after - 1, 0)]), int(fit[min(after, len(fit) - 1)])
