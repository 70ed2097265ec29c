"""Where a graph lost most on the judged frames: a small frame that tells which of its groups it was.

Frames that rank groups are few and small. A group that clips one bright spot of one frame costs nothing on them, and a
dB where the spot is. So the window around the worst place is cut out, and what each group costs there is measured.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from calibration import agreement
from calibration.agreement import Case, Score
from calibration.dataset import CalibrationSet, Sample
from calibration.sensitivity import MaxDrop
from export.networks import Network
from runtime.arrays import Float32
from runtime.durable import write_bytes
from runtime.engines import PORTABLE, EngineOptions, open_engine
from runtime.signature import Signature

from .calibration_frames import cases

STEP = 64
"""Lines and samples between windows: no network asks for frames in finer steps than this at its places."""
LEAST = 1e-9


@dataclass(frozen=True)
class Spot:
    """A window of a judged frame: which frame, and its first line and sample there."""

    frame: int
    line: int
    sample: int


def scored(
    graph: bytes, signature: Signature, judged: Iterable[Case], engine: str, precision: str, size: tuple[int, int],
    margin: MaxDrop,
) -> tuple[Score, Spot]:  # fmt: skip
    """What a graph costs in an engine, and the window of this size [lines, samples] where it is farthest off."""
    scores, worst, spot = [], -np.inf, Spot(0, 0, 0)
    made: dict[str, Float32] = {}
    with open_engine(engine, graph, signature, EngineOptions(precision=precision)) as opened:

        def infer(feeds: Mapping[str, Float32]) -> Mapping[str, Float32]:
            made.update(opened.infer(feeds))
            return made

        for number, case in enumerate(judged):
            one = agreement.score(infer, signature, [case])
            scores.append(one)
            lost = max(
                one.worst_psnr_drop_db / max(margin.worst_psnr_db, LEAST),
                one.worst_sam_rise_deg / max(margin.sam_deg, LEAST),
            )
            if lost > worst:
                apart = np.square(made[signature.restored.name][0] - case.restored).sum(axis=0)
                worst, spot = lost, Spot(number, *_window(apart, size))
    return agreement.joined(scores), spot


def _window(apart: Float32, size: tuple[int, int]) -> tuple[int, int]:
    """First line and sample of the window with the largest sum."""
    room = [max(0, have - want) for have, want in zip(apart.shape, size, strict=True)]
    places = [(line, sample) for line in range(0, room[0] + 1, STEP) for sample in range(0, room[1] + 1, STEP)]
    return max(places, key=lambda at: float(apart[at[0] : at[0] + size[0], at[1] : at[1] + size[1]].sum()))


def keep(file: Path, spot: Spot) -> None:
    """Write a spot down for a build that goes on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, json.dumps(asdict(spot)).encode())


def kept(file: Path) -> Spot:
    """A spot that was written down."""
    return Spot(**json.loads(file.read_bytes()))


def spot_case(
    net: Network, graph: bytes, frames: CalibrationSet, whole: CalibrationSet, spot: Spot, folder: Path
) -> Case:
    """The window as a case of its own, in which the float32 graph is the network, with the prompts of the whole frame.

    Args:
        net: the network.
        graph: its float32 graph for the window.
        frames: the calibration set at the size of the window.
        whole: the one that the spot is of.
        spot: the window.
        folder: in which frames are kept.
    """
    (case,) = cases(net, whole, [whole.judge[spot.frame]], folder)
    signature = net.signature(*frames.size)
    lines, samples = (slice(at, at + n) for at, n in zip((spot.line, spot.sample), frames.size, strict=True))
    measured, truth = signature.measured.name, case.sample.truth
    assert truth is not None
    feeds = {**case.sample.feeds}
    feeds[measured] = np.ascontiguousarray(feeds[measured][..., lines, samples])
    origin = case.sample.origin
    cut = Sample(origin, feeds, np.ascontiguousarray(truth[:, lines, samples]), case.sample.sha256)
    with open_engine(PORTABLE, graph, signature) as engine:
        made = engine.infer(feeds)
    # Which choices are close is not known here: what another one costs is seen in the values.
    found = agreement.case_of(cut, made, np.zeros_like(case.margins), signature)
    named = replace(origin, task=f"{origin.task} at {origin.cube} {spot.line}, {spot.sample}")
    return replace(found, sample=replace(cut, origin=named))
