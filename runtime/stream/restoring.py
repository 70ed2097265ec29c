"""One frame of lines through radiometry, metrics and the engine, in memory that is taken once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools, Float32
from runtime.errors import CubeError
from runtime.lines import UNFIT, Flag, Line, LineFormat
from runtime.meaning import words
from runtime.meaning.bands import FULL, bridged
from runtime.meaning.marks import OF_FILL, Mark, marked, seen_marks, standing
from runtime.plausible import Jumps, Range, implausible
from runtime.prompts import Prompts
from runtime.radiometry import Radiometry
from runtime.restore import Infer
from runtime.signature import Signature
from runtime.tiles import frame_plan

from .frames import Frame
from .missing import stand_in
from .pool import Slot
from .report import FrameReport, stamps
from .sampling import at_limit
from .screening import SATURATED_SHARE
from .tables import Tables

ENOUGH = 0.5
"""Where fewer of a frame's lines are fit, the whole frame is passed through: it would be made of neighbours."""


BAD_PIXELS = "name pixels of the detector that are always so in stream.radiometry.bad_pixels"


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
        bad: bands of the source that no network should see, from 0.
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

    @property
    def frame(self) -> tuple[int, int]:
        """Lines and samples of the engine's frame."""
        return self.signature.measured.size


@dataclass(frozen=True, eq=False)
class _Kept:
    """Values of a line that come out as they came in.

    Attributes:
        place: of the line in its frame.
        mask: bool [bands, samples].
        values: float32 [bands, samples] in the unit range; valid where the mask is.
        whole: nothing else is in the line.
    """

    place: int
    mask: Bools
    values: Float32
    whole: bool


class AbandonedError(Exception):
    """Restoration was told to end in the middle of a frame."""


class FrameRestorer:
    """Restores frame after frame; what it returns is valid until the next one.

    Args:
        facts: of the network.
        format: of the lines.
        infer: restores a frame, {tensor: array} as in the signature.
        radiometric: from digital numbers to the unit range; of lines, or of whole frames of an area detector.

    Attributes:
        bands, samples: of the restored lines.
        marks: of missing values that are known.
        mark: what stands for missing values; None until one is known.
        tables: of the radiometry, watched.
        passes_through: what cannot be restored may come out as it came in.
        runs: of the engine, for one frame.
    """

    def __init__(self, facts: RestorerFacts, format: LineFormat, infer: Infer, radiometric: Radiometry) -> None:
        self._facts, self._format, self._infer, self._radiometric = facts, format, infer, radiometric
        measured, restored = facts.signature.measured, facts.signature.restored
        lines, samples = facts.frame[0], format.samples
        taken = format.bands if facts.chosen is None else len(facts.chosen)
        self.passes_through = facts.signature.alike
        self.bands = taken if facts.signature.band_groups else restored.bands
        self.samples = samples if facts.signature.tiling == "free" else restored.samples
        self._chosen = None if facts.chosen is None else np.array(facts.chosen, np.intp)
        ignored = () if format.ignore_value is None else (Mark(format.ignore_value, format.ignore_value, "file"),)
        self.marks = list(ignored if facts.marks is None else facts.marks)
        self.mark = standing(self.marks, format.dtype)
        self._seen = (np.inf, -np.inf)
        self._centres = facts.wavelengths
        if self._chosen is not None and self._centres is not None:
            self._centres = tuple(self._centres[band] for band in self._chosen)
        self._listed = np.isin(np.arange(format.bands) if self._chosen is None else self._chosen, facts.bad)
        self._told: dict[int, str] = {}
        self._jumps = Jumps()
        self.tables = Tables(radiometric.tables())
        self._stand_in = stand_in(format.dtype)
        self._whole = np.zeros(format.shape, np.float32)
        self._mask = np.zeros(format.shape, np.bool_)
        self._image = np.zeros((lines, samples), format.dtype) if facts.signature.is_area else None
        self._unit = np.zeros((taken, lines, samples), np.float32)
        self._missing = np.zeros((taken, lines, samples), np.bool_)
        self._bad = np.zeros(taken, np.bool_)
        self._came = np.zeros((0, lines, samples), np.float32)
        self._joined = np.zeros((self.bands, lines, self.samples), np.float32)
        self._input = np.zeros(measured.shape, np.float32)
        self._part = np.zeros(restored.shape[1:], np.float32)
        self._plan = frame_plan(self._unit.shape, facts.signature, facts.overlap)
        # A frame narrower than the engine's is filled up by reflection, as tiles of a cube are.
        narrow = min(samples, facts.frame[1])
        self._samples = np.pad(np.arange(narrow), (0, facts.frame[1] - narrow), "reflect")
        self.runs = self._plan.runs

    def cut_off(self, frame: Frame) -> bool:
        """Whether the end of the stream left a part of a frame of which nothing can be made."""
        lines = self._facts.frame[0]
        fixed = self._facts.signature.tiling == "fixed" and not self.passes_through
        return frame.last and fixed and len(frame.slots) < lines and not (frame.first - frame.run) % lines

    def restore(
        self, frame: Frame, abandoned: Callable[[], bool] = lambda: False, alive: Callable[[], None] = lambda: None
    ) -> tuple[Float32, FrameReport]:
        """Restore a frame.

        Args:
            frame: its lines.
            abandoned: asked before every run of the engine.
            alive: called before every run of the engine.

        Returns:
            (float32 [bands, lines of the frame, samples] in the unit range, what is known of it). A value that draws on
            one that the line marks as missing is the `missing.stand_in`.

        Raises:
            AbandonedError: `abandoned` said so.
            CubeError: the frame's numbers are none that the network should see.
            MachineError: the engine failed.
        """
        began = time.monotonic()
        count, taken = len(frame.slots), np.array(frame.taken)
        fixed = self._facts.signature.tiling == "fixed"
        if fixed and (frame.first - frame.run) % self._facts.frame[0]:
            raise CubeError(
                "the frame begins where none does, behind lines that are missing", key="lines", value=frame.first,
                remedy="mend the source",
            )  # fmt: skip
        # What bad elements of an area detector give, which radiometry replaces, is judged by the frame.
        faults = UNFIT if self._image is None else UNFIT & ~(Flag.SATURATED | Flag.NOT_FINITE)
        unfit = np.array([slot is not None and bool(slot.flags & faults) for slot in frame.slots])
        if self._image is not None and (unfit.any() or not taken.all() or count < len(self._image)):
            raise self._not_whole(int((taken & ~unfit).sum()))
        kept, doubts = self._fill(frame.slots)
        unfit[[keep.place for keep in kept if keep.whole]] = True
        fit = np.flatnonzero(taken & ~unfit)
        whole = len(fit) >= ENOUGH * count and not (fixed and count < self._facts.frame[0])
        missing = int(np.count_nonzero(self._missing[:, np.flatnonzero(taken)]))
        if not self.passes_through and missing:
            raise self._holed(missing, "missing")
        if not self.passes_through and not whole:
            raise self._not_whole(len(fit))
        if not whole:
            return self.pass_through(frame)
        self._bridge(fit, count)
        self._came = self._unit[self._bad, :count]
        bridged(self._unit[:, :count], np.flatnonzero(self._bad), self._centres)
        peak = float(self._unit[:, :count].max())
        seconds = {"radiometry": time.monotonic() - began}
        metrics, experts, timed = self._run(count, abandoned, alive)
        values = self._joined[:, :count]
        given = self._unit[:, :count]
        suspect = implausible(given, values, alike=self.passes_through, known=self._facts.known)
        suspect = suspect or (self._jumps.look(given, values) if self.passes_through else "")
        if self.passes_through:
            self._keep(frame, np.flatnonzero(unfit), kept, values)
        by = self._facts.prompts.by((self._input.shape[1], count, self._unit.shape[2]))
        return values, self._report(
            frame,
            unfit if self.passes_through else np.zeros_like(unfit),
            {**seconds, **timed, "whole": time.monotonic() - began},
            doubts=doubts,
            metrics=metrics,
            experts=experts,
            peak=peak,
            metrics_by="" if by == "none" else by,
            suspect=suspect,
        )

    def use(self, infer: Infer, prompts: Prompts) -> None:
        """Go on with another engine for the same signature, and what makes its prompts."""
        self._infer, self._facts = infer, replace(self._facts, prompts=prompts)
        self._jumps = Jumps()

    def pass_through(self, frame: Frame) -> tuple[Float32, FrameReport]:
        """A frame as it came, but for radiometry: what no network should see; returns what `restore` does."""
        began = time.monotonic()
        count = len(frame.slots)
        kept, doubts = self._fill(frame.slots)
        taken = np.array(frame.taken)
        self._bridge(np.flatnonzero(taken), count)
        self._came = self._unit[self._bad, :count]
        values = self._joined[:, :count]
        np.copyto(values, self._unit[:, :count])
        self._keep(frame, np.flatnonzero(taken), kept, values)
        return values, self._report(frame, taken, {"whole": time.monotonic() - began}, passed=True, doubts=doubts)

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

    def _report(self, frame: Frame, as_it_came: Bools, seconds: dict[str, float], **known: Any) -> FrameReport:
        sequence, frame_id, utc_ns, flags = stamps(frame)
        flags |= np.where(
            as_it_came, Flag.PASSED, np.where(frame.taken, Flag.RESTORED, Flag.INTERPOLATED)
        ).astype(np.uint32)  # fmt: skip
        if known.get("suspect"):
            flags |= np.where(flags & (Flag.RESTORED | Flag.INTERPOLATED), Flag.SUSPECT, 0).astype(np.uint32)
        if len(flags) < self._facts.frame[0]:
            flags |= np.where(flags & Flag.RESTORED, Flag.PADDED, 0).astype(np.uint32)
        latency = time.monotonic() - frame.completed
        return FrameReport(frame.number, sequence, frame_id, utc_ns, flags, latency_s=latency, seconds=seconds, **known)

    def _line(self, raw: Line, out: Float32) -> None:
        """A line in the unit range: `out` [bands, samples]."""
        if self._chosen is None:
            self._radiometric.apply_line(raw, out)
        else:
            self._radiometric.apply_line(raw, self._whole)
            out[:] = self._whole[self._chosen]

    def _fill(self, slots: Sequence[Slot | None]) -> tuple[list[_Kept], tuple[str, ...]]:
        """Radiometry of all lines; returns what of them is to come out as it came in, and what people should know."""
        came = [(place, slot) for place, slot in enumerate(slots) if slot is not None]
        if self._image is not None:
            self._develop(self._image, came)
            return [], ()
        kept = []
        for place, slot in came:
            out = self._unit[:, place]
            self._line(slot.line, out)
            if slot.flags & Flag.SOME_SATURATED and self._radiometric.saturated(slot.line, self._mask):
                kept.append(_Kept(place, self._selected(self._mask).copy(), out.copy(), False))
            self._find_missing(slot.line, self._missing[:, place])
        doubts = self._judge(came)
        good = ~self._bad
        for place, _ in came:
            out, missing = self._unit[:, place], self._missing[good, place].any(axis=0)
            if missing.any():
                whole = bool(missing.all())
                kept.append(_Kept(place, np.broadcast_to(missing, out.shape), out.copy(), whole))
                if not whole:
                    out[:, missing] = out[:, ~missing].mean(axis=1, keepdims=True)
        return kept, doubts

    def _develop(self, image: Line, came: Sequence[tuple[int, Slot]]) -> None:
        """Radiometry of a frame of an area detector. Raises CubeError where its numbers are none to restore from."""
        for place, slot in came:
            np.copyto(image[place], slot.line[0])
        self._radiometric.apply_line(image, self._unit[0])
        np.copyto(self._missing[0], self._radiometric.drawn(marked(image, self.marks)) if self.marks else False)
        if wild := int(np.count_nonzero(~np.isfinite(self._unit[0]) & ~self._missing[0])):
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

    def _judge(self, came: Sequence[tuple[int, Slot]]) -> tuple[str, ...]:
        """Marks that nobody named and bands that say nothing, in these lines; returns what is new of it, in words."""
        came = [(place, slot) for place, slot in came if not slot.flags & UNFIT]
        if not came or not self.passes_through:
            self._bad = self._listed
            return ()
        places = [place for place, _ in came]
        whole = len(places) == len(self._unit[0])
        lines = self._unit if whole else self._unit[:, places]
        low, high = lines.min(axis=(1, 2)), lines.max(axis=(1, 2))
        told = self._learn(came, lines, places) if self._facts.learns else []
        constant = low == high
        for value in (low, high):
            constant |= (lines == value[:, None, None]).mean(axis=(1, 2)) > FULL
        missing: Bools = np.asarray(self._missing[:, places].all(axis=(1, 2)))
        wild = np.zeros_like(constant)
        for place, slot in came:
            if slot.flags & Flag.DEAD_BANDS:
                wild |= ~np.isfinite(self._unit[:, place]).any(axis=1)
        several = len(places) > 1 and not constant.all()
        self._bad = self._listed | missing | wild | (constant & several & (self._facts.constant_bands != "restore"))
        if self._bad.all():
            self._bad = self._listed & ~self._listed.all()
        why = {
            int(band): "without a single value" if missing[band] or wild[band] else "of one value"
            for band in np.flatnonzero(self._bad & ~self._listed)
        }
        new = {self._number(band): reason for band, reason in why.items() if self._number(band) not in self._told}
        self._told |= new
        notes, doubts = words.of_bad(new, said=self._facts.constant_bands is not None)
        return (*told, *notes, *doubts)

    def _number(self, band: int) -> int:
        return band if self._chosen is None else int(self._chosen[band])

    def _learn(self, came: Sequence[tuple[int, Slot]], lines: Float32, places: Sequence[int]) -> list[str]:
        """Marks that are seen in the lines and were not known; returns what people should know.

        They are looked for where values lie farther out than any before, as a mark that is seen lies farther out than
        all others.
        """
        missing = self._missing[:, places]
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
            self._find_missing(slot.line, self._missing[:, place])
        counts = [int(mark.found(raw).any(axis=0).sum()) for mark in new]
        return words.of_marks(new, counts, raw.dtype)

    def _selected(self, mask: Bools) -> Bools:
        return mask if self._chosen is None else mask[self._chosen]

    def _bridge(self, fit: NDArray[np.intp], count: int) -> None:
        """Lines that no network should see, made from the nearest that it may see."""
        if not len(fit) or len(fit) == count:
            return
        for place in np.setdiff1d(np.arange(count), fit):
            left, right = _beside(fit, int(place))
            share = np.float32(0 if left >= right else (place - left) / (right - left))
            self._unit[:, place] = (1 - share) * self._unit[:, left] + share * self._unit[:, right]

    def _run(
        self, count: int, abandoned: Callable[[], bool], alive: Callable[[], None]
    ) -> tuple[dict[str, float], tuple[float, ...], dict[str, float]]:
        """The network on `_unit`, to `_joined`; mean metrics by name, share of each expert, seconds."""
        signature, prompts = self._facts.signature, self._facts.prompts
        measured, restored = signature.measured, signature.restored
        lines = measured.lines
        if count < lines:
            self._unit[:, count:] = self._unit[:, np.pad(np.arange(count), (0, lines - count), "reflect")[count:]]
        if self.runs > 1:
            self._joined.fill(0)
        every, chosen = [], np.zeros(0)
        measuring = engine = 0.0
        for start, weights in self._plan.groups:
            part = self._unit[start : start + measured.bands]
            began = time.monotonic()
            feeds = prompts(part[:, :count])
            measuring += time.monotonic() - began
            if signature.metrics is not None:
                every.append(feeds[signature.metrics.name][0])
            for tile, share in self._plan.tiles:
                if abandoned():
                    raise AbandonedError
                alive()
                given = self._cut(part, tile.sample, tile.samples)
                began = time.monotonic()
                made = self._infer({measured.name: given, **feeds})
                engine += time.monotonic() - began
                if signature.routing is not None:
                    experts = (made[signature.routing.name] > 0).mean(axis=0)
                    chosen = experts if not chosen.size else chosen + experts
                values = made[restored.name][0, :, :count, : tile.samples]
                area = self._joined[start : start + restored.bands, :count, tile.sample : tile.sample + tile.samples]
                if self.runs == 1:
                    np.copyto(area, values)
                else:
                    piece = self._part[:, :count, : tile.samples]
                    # All lines of a frame have the same share.
                    np.multiply(values, weights * share[:1], out=piece)
                    area += piece
        means = np.mean(every, axis=0).tolist() if every else []
        return (
            dict(zip(prompts.names, means, strict=True)),
            tuple((chosen / self.runs).tolist()),
            {"metrics": measuring, "engine": engine},
        )

    def _cut(self, part: Float32, first: int, samples: int) -> Float32:
        """Frame [1, bands, lines, samples] for the engine, without a copy where the unit frame is one already."""
        if part.shape == self._input.shape[1:] and part.flags.c_contiguous:
            return part[None]
        if samples == self._facts.frame[1]:
            np.copyto(self._input[0], part[:, :, first : first + samples])
        else:
            np.take(part, self._samples, axis=2, out=self._input[0], mode="clip")
        return self._input

    def _keep(
        self,
        frame: Frame,
        passed: NDArray[np.intp],
        kept: Sequence[_Kept],
        values: Float32,
    ) -> None:
        """Put what is passed through, or is missing, in the place of what the network made of it."""
        for place in passed:
            slot = frame.slots[place]
            if slot is not None:
                self._line(slot.line, values[:, place])
        for keep in kept:
            np.copyto(values[:, keep.place], keep.values, where=keep.mask)
        values[self._bad] = self._came
        if self.marks and any(frame.taken):
            taken = np.flatnonzero(frame.taken)
            for place in np.flatnonzero(~np.array(frame.taken)):
                # What lies between two lines is missing where either is.
                left, right = _beside(taken, int(place))
                np.logical_or(self._missing[:, left], self._missing[:, right], out=self._missing[:, place])
            np.copyto(values, self._stand_in, where=self._missing[:, : values.shape[1]])


def _beside(fit: NDArray[np.intp], place: int) -> tuple[int, int]:
    """The nearest of the sorted places `fit` before and after one that is none of them; the same where one is none."""
    after = int(np.searchsorted(fit, place))
    return int(fit[max(after - 1, 0)]), int(fit[min(after, len(fit) - 1)])
