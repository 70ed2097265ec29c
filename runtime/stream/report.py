"""What is known of a restored frame beside its values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime.lines import Flag

from .frames import Frame


@dataclass(frozen=True, eq=False)
class FrameReport:
    """A frame's lines one by one, and what the network was told and chose.

    Attributes:
        number: of the frame.
        sequence, frame_id, utc_ns: uint64 [lines]; of interpolated lines estimated from their neighbours.
        flags: uint32 [lines], see `runtime.lines.Flag`.
        metrics: name -> mean over band groups; empty where the network takes none, or nothing was restored.
        experts: share of layers, tiles and band groups in which each expert was chosen.
        latency_s: from the taking of its last line to its restoration.
        seconds: of its stages: `radiometry`, `metrics`, `engine`, and `whole`.
        peak: largest value that the network was given, in the unit range; None where it was given none.
        metrics_by: what computed the metrics: `host`, `graph`, or nothing.
        passed: the whole frame was passed through.
        doubts: what was seen in its numbers for the first time, for people.
        suspect: what is odd about what came out, see `runtime.plausible`; empty where nothing is.
    """

    number: int
    sequence: NDArray[np.uint64]
    frame_id: NDArray[np.uint64]
    utc_ns: NDArray[np.uint64]
    flags: NDArray[np.uint32]
    metrics: Mapping[str, float] = field(default_factory=dict)
    experts: tuple[float, ...] = ()
    latency_s: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak: float | None = None
    metrics_by: str = ""
    passed: bool = False
    doubts: tuple[str, ...] = ()
    suspect: str = ""


def stamps(frame: Frame) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]:
    """Sequence, frame id, time and flags of a frame's lines; those that never came stand between their neighbours."""
    count = len(frame.slots)
    came = np.flatnonzero(frame.taken)
    sequence = np.arange(frame.first, frame.first + count, dtype=np.uint64)
    slots = [frame.slots[i] for i in came]
    flags = np.full(count, Flag.INTERPOLATED, np.uint32)
    frame_id, utc_ns = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    for place, slot in zip(came, slots, strict=True):
        assert slot is not None
        frame_id[place], utc_ns[place], flags[place] = slot.frame_id, slot.utc_ns, slot.flags
    missing = np.flatnonzero(flags == Flag.INTERPOLATED)
    # Beyond the first and the last that came, a source's numbers go on by one; of time nothing is known.
    beyond = np.minimum(missing - came[0], 0) + np.maximum(missing - came[-1], 0)
    for values, step in ((frame_id, 1), (utc_ns, 0)):
        # Whole numbers of 64 bits do not fit into floats: only differences are interpolated.
        start = int(values[came[0]])
        apart = np.interp(missing, came, [int(values[i]) - start for i in came])
        values[missing] = np.array([max(0, start + int(a)) for a in apart + step * beyond], np.uint64)
    return sequence, frame_id, utc_ns, flags
