"""One prepared frame through the engine, in memory that is taken once."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.arrays import Float32
from runtime.lines import Flag, LineFormat
from runtime.plausible import Jumps, implausible
from runtime.prompts import Prompts
from runtime.radiometry import Radiometry
from runtime.restore import Infer

from .frames import Frame
from .missing import stand_in
from .preparing import SPACES, AbandonedError, Prepared, Preparer, RestorerFacts, Space, beside
from .report import FrameReport, stamps

MENDED = "the radiometry's tables changed in memory"


class FrameRestorer:
    """Restores frame after frame; what it returns is valid until the next one.

    One thread may prepare frames, in turn in one of the spaces, while another has the engine restore them.

    Args:
        facts: of the network.
        format: of the lines.
        infer: restores a frame, {tensor: array} as in the signature.
        radiometric: from digital numbers to the unit range; of lines, or of whole frames of an area detector.

    Attributes:
        bands, samples: of the restored lines.
        preparer: what makes of lines what the engine takes.
        spaces: memory for the frames that it makes.
        mark: what stands for missing values; None until one is known.
        passes_through: what cannot be restored may come out as it came in.
        runs: of the engine, for one frame.
    """

    def __init__(self, facts: RestorerFacts, format: LineFormat, infer: Infer, radiometric: Radiometry) -> None:
        self._facts, self._infer, self._prompts = facts, infer, facts.prompts
        measured, restored = facts.signature.measured, facts.signature.restored
        lines, samples = facts.frame[0], format.samples
        taken = format.bands if facts.chosen is None else len(facts.chosen)
        self.passes_through = facts.signature.alike
        self.bands = taken if facts.signature.band_groups else restored.bands
        self.samples = samples if facts.signature.tiling == "free" else restored.samples
        self.preparer = Preparer(facts, format, radiometric)
        self.spaces = [self.preparer.space() for _ in range(SPACES)]
        self.mark = self.preparer.mark
        self._plan = self.preparer.plan
        self.runs = self._plan.runs
        self._jumps = Jumps()
        self._stand_in = stand_in(format.dtype)
        self._joined = np.zeros((self.bands, lines, self.samples), np.float32)
        self._input = np.zeros(measured.shape, np.float32)
        self._part = np.zeros(restored.shape[1:], np.float32)
        # A frame narrower than the engine's is filled up by reflection, as tiles of a cube are.
        narrow = min(samples, facts.frame[1])
        self._samples = np.pad(np.arange(narrow), (0, facts.frame[1] - narrow), "reflect")

    def cut_off(self, frame: Frame) -> bool:
        """Whether the end of the stream left a part of a frame of which nothing can be made."""
        lines = self._facts.frame[0]
        fixed = self._facts.signature.tiling == "fixed" and not self.passes_through
        return frame.last and fixed and len(frame.slots) < lines and not (frame.first - frame.run) % lines

    def restore(
        self, frame: Frame, abandoned: Callable[[], bool] = lambda: False, alive: Callable[[], None] = lambda: None
    ) -> tuple[Float32, FrameReport]:
        """Prepare a frame and restore it; see `run`. Raises what `Preparer.prepare` does, too."""
        return self.run(self.preparer.prepare(frame, self.spaces[0], alive, abandoned), abandoned, alive)

    def pass_through(
        self, frame: Frame, space: Space | None = None, alive: Callable[[], None] = lambda: None
    ) -> tuple[Float32, FrameReport]:
        """A frame as it came, but for radiometry: what no network should see; returns what `run` does."""
        return self.run(self.preparer.pass_through(frame, space or self.spaces[0], alive))

    def run(
        self,
        prepared: Prepared,
        abandoned: Callable[[], bool] = lambda: False,
        alive: Callable[[], None] = lambda: None,
    ) -> tuple[Float32, FrameReport]:
        """Restore a frame that is prepared, or pass it through.

        Args:
            prepared: the frame.
            abandoned: asked before every run of the engine.
            alive: called before every run of the engine.

        Returns:
            (float32 [bands, lines of the frame, samples] in the unit range, what is known of it). A value that draws on
            one that the line marks as missing is the `missing.stand_in`.

        Raises:
            AbandonedError: `abandoned` said so.
            CubeError: the engine does not take the frame.
            MachineError: the engine failed.
        """
        began, given = time.monotonic(), prepared.unit
        values, self.mark = self._joined[:, : given.shape[1]], prepared.mark
        if prepared.ends is None:
            np.copyto(values, given)
            self._keep(prepared, values)
            seconds = prepared.seconds["radiometry"] + time.monotonic() - began
            return values, self._report(prepared, {"whole": seconds}, passed=True)
        metrics, experts, engine = self._run(prepared, abandoned, alive)
        suspect = MENDED if prepared.mended != self.preparer.mended else ""
        suspect = suspect or implausible(
            given, values, alike=self.passes_through, known=self._facts.known, ends=prepared.ends
        )
        suspect = suspect or (self._jumps.look(given, values) if self.passes_through else "")
        if self.passes_through:
            self._keep(prepared, values)
        by = self._prompts.by((self._input.shape[1], *given.shape[1:]))
        whole = sum(prepared.seconds.values()) + time.monotonic() - began
        return values, self._report(
            prepared,
            {**prepared.seconds, "engine": engine, "whole": whole},
            metrics=metrics,
            experts=experts,
            peak=float(prepared.ends[1].max()),
            metrics_by="" if by == "none" else by,
            suspect=suspect,
        )

    def use(self, infer: Infer, prompts: Prompts) -> None:
        """Go on with another engine for the same signature, and what makes its prompts; the caller is `alone`."""
        self._infer, self._prompts = infer, prompts
        self.preparer.prompts = prompts
        self._jumps = Jumps()

    def _report(self, prepared: Prepared, seconds: dict[str, float], **known: Any) -> FrameReport:
        frame = prepared.frame
        sequence, frame_id, utc_ns, flags = stamps(frame)
        flags |= np.where(
            prepared.as_it_came, Flag.PASSED, np.where(prepared.taken, Flag.RESTORED, Flag.INTERPOLATED)
        ).astype(np.uint32)  # fmt: skip
        if known.get("suspect"):
            flags |= np.where(flags & (Flag.RESTORED | Flag.INTERPOLATED), Flag.SUSPECT, 0).astype(np.uint32)
        if len(flags) < self._facts.frame[0]:
            flags |= np.where(flags & Flag.RESTORED, Flag.PADDED, 0).astype(np.uint32)
        latency, doubts = time.monotonic() - frame.completed, prepared.doubts
        return FrameReport(
            frame.number, sequence, frame_id, utc_ns, flags, latency_s=latency, seconds=seconds, doubts=doubts, **known
        )

    def _run(
        self, prepared: Prepared, abandoned: Callable[[], bool], alive: Callable[[], None]
    ) -> tuple[dict[str, float], tuple[float, ...], float]:
        """The network on a frame, to `_joined`; mean metrics by name, share of each expert, seconds of the engine."""
        signature, count = self._facts.signature, len(prepared.taken)
        measured, restored = signature.measured, signature.restored
        if self.runs > 1:
            self._joined.fill(0)
        every, chosen = [], np.zeros(0)
        engine = 0.0
        for (start, weights), feeds in zip(self._plan.groups, prepared.feeds, strict=True):
            part = prepared.space.unit[start : start + measured.bands]
            if prepared.prompts is not self._prompts:
                # What made them was found to be wrong since, or is closed.
                feeds = self.preparer.feeds(prepared.space, start, count, alive)
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
        return dict(zip(self._prompts.names, means, strict=True)), tuple((chosen / self.runs).tolist()), engine

    def _cut(self, part: Float32, first: int, samples: int) -> Float32:
        """Frame [1, bands, lines, samples] for the engine, without a copy where the unit frame is one already."""
        if part.shape == self._input.shape[1:] and part.flags.c_contiguous:
            return part[None]
        if samples == self._facts.frame[1]:
            np.copyto(self._input[0], part[:, :, first : first + samples])
        else:
            np.take(part, self._samples, axis=2, out=self._input[0], mode="clip")
        return self._input

    def _keep(self, prepared: Prepared, values: Float32) -> None:
        """Put what is passed through, or is missing, in the place of what the network made of it."""
        for keep in prepared.kept:
            np.copyto(values[:, keep.place], keep.values, where=True if keep.mask is None else keep.mask)
        if prepared.bad.any():
            values[prepared.bad] = prepared.came
        if prepared.marks and prepared.taken.any():
            taken, missing = np.flatnonzero(prepared.taken), prepared.space.missing
            for place in np.flatnonzero(~prepared.taken):
                # What lies between two lines is missing where either is.
                left, right = beside(taken, int(place))
                np.logical_or(missing[:, left], missing[:, right], out=missing[:, place])
            np.copyto(values, self._stand_in, where=missing[:, : values.shape[1]])
