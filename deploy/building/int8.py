"""The int8 graph of a build: frames, ranges, the way to choose them, what each group costs, and what may run in int8.

Everything slow is kept in the build's workplace: frames, what PyTorch makes of them, ranges, and every score by what
was scored, so that a build that was stopped goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from calibration import agreement, sensitivity
from calibration.agreement import Case, Score
from calibration.dataset import CalibrationSet
from calibration.figures import figures
from calibration.products import int8_share, products
from calibration.quantized import quantized
from calibration.sensitivity import Group, MaxDrop, Point, Search
from export.networks import Network
from runtime.engines import PORTABLE, EngineOptions, open_engine
from runtime.signature import Signature

from .. import console
from ..checking.gates import failed, judge, told
from ..config import Config
from ..config.sections import GatesSection
from . import int8_spots
from .calibration_frames import cases
from .int8_ranges import evened, ranges_of
from .int8_told import Steps, nothing_holds, set_facts
from .scores import ScoreBook, figures_of

DEAR_DB = 0.02
"""Groups that distort by more than this are tried with every way to choose ranges, the dearest ones."""
MOST_DEAR = 6
CLEARLY_BETTER = 0.9
SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Calibrated:
    """An int8 graph with what led to it.

    Attributes:
        graph: as it flies, with int8 pairs, for the frame of the build.
        engine: in which it was scored.
        score: on the judged frames, at the size of the build's frame.
        facts: for the manifest.
        search: every set of groups that was tried.
    """

    graph: bytes
    engine: str
    score: Score
    facts: dict[str, Any]
    search: Search


@dataclass(frozen=True)
class Allowed:
    """What int8 may cost while it is searched for: the gates, and what `max_drop` leaves of them as a margin."""

    margin: MaxDrop
    gates: GatesSection

    def missed_by(self, score: Score) -> list[str]:
        """What the score goes beyond, in words."""
        return [*self.margin.missed_by(score), *Gated(self.gates).missed_by(score)]


@dataclass(frozen=True)
class Gated:
    """What int8 may cost as it flies: the gates."""

    gates: GatesSection

    def missed_by(self, score: Score) -> list[str]:
        """The gates that fail, in words."""
        return [told(gate) for gate in failed(judge(figures(score), self.gates, "int8"))]


def _same(graph: bytes) -> bytes:
    return graph


@dataclass(frozen=True)
class Flight:
    """How an int8 graph flies.

    Attributes:
        engine: graph with everything in int8 -> the engine that such a graph is scored in.
        made: float32 graph with int8 pairs -> the graph that flies.
        runs: what flies -> a graph that this machine's engine computes like it.
        precision: of the engine.
    """

    engine: Callable[[bytes], str] = lambda _: PORTABLE
    made: Callable[[bytes], bytes] = _same
    runs: Callable[[bytes], bytes] = _same
    precision: str = "int8"


def score_graph(graph: bytes, signature: Signature, judged: Iterable[Case], engine: str, precision: str) -> Score:
    """What a graph costs in an engine."""
    with open_engine(engine, graph, signature, EngineOptions(precision=precision)) as opened:
        return agreement.score(opened.infer, signature, judged)


def max_drop(config: Config) -> MaxDrop:
    """What the configuration lets int8 cost."""
    told = config.calibration.max_drop
    return MaxDrop(told.psnr_db, told.worst_psnr_db, told.sam_deg, told.routing_percent / 100)


def calibrate(
    net: Network,
    graph: bytes,
    ranked: bytes,
    frames: CalibrationSet,
    whole: CalibrationSet,
    config: Config,
    work: Path,
    flight: Flight = Flight(),
) -> Calibrated:
    """Choose ranges and products, and write the int8 graph.

    Ranges come from small frames, and groups are ranked on such in the portable engine. Every set that may be chosen is
    scored on frames of the build's size, in the engine that flies, and held against the gates.

    Args:
        net: the network.
        graph: its float32 graph for the frame of the build.
        ranked: the same for the frame that groups are ranked on; its nodes have the same names.
        frames: the calibration set at that size.
        whole: the calibration set at the size of the build's frame.
        config: with its gates and what int8 may cost.
        work: the build's workplace.
        flight: how the graph flies.

    Raises:
        GateError: nothing can run in int8 within what is allowed.
        MachineError: the engine that flies cannot run it here.
    """
    allowed = Allowed(max_drop(config), config.gates)
    listed = products(onnx.load_model_from_string(graph))
    every = frozenset(p.name for p in listed if p.quantisable)
    groups = sensitivity.groups_of(listed)
    console.say(
        f"calibrates {len(frames.fit)} frames choose ranges, {len(whole.judge)} frames of "
        f"{len({o.cube for o in whole.judge})} other cubes judge; {len(groups)} groups of layers may run in int8"
    )
    graph, ranked = evened(net, graph, ranked, every, frames, work)
    by_method, experts = ranges_of(net, ranked, every, frames, work)
    kept = work / "frames"
    with console.progress("asking PyTorch") as moved:
        # Each task on one of two cubes tells which group is dear; what is chosen is judged by all of them.
        small = list(cases(net, frames, frames.judge[: 2 * len({o.task for o in frames.judge})][::2], kept))
        for number, _ in enumerate(cases(net, whole, whole.judge, kept)):
            moved(number + 1, len(whole.judge))
    book = ScoreBook(work / SCORES)

    def alone(ranges: Mapping[str, float], names: Collection[str], by: Sequence[Case] = small) -> Score:
        made = quantized(ranked, ranges, names)
        key = _key(made, frames, PORTABLE, [case.sample.origin.task for case in by])
        return book.get(key, lambda: score_graph(made, net.signature(*frames.size), by, PORTABLE, "int8"))

    with console.progress("comparing ways to choose ranges") as moved:
        methods = {}
        for number, method in enumerate(by_method):
            methods[method] = alone(by_method[method], every)
            moved(number + 1, len(by_method))
        method = min(methods, key=lambda name: methods[name].mean_distortion_db)
    with console.progress("measuring what int8 costs") as moved:
        ranges, own, costs = _by_group(groups, by_method, method, alone, moved)

    engine = flight.engine(quantized(graph, ranges, every))

    spots: dict[frozenset[str], Path] = {}

    def tried(chosen: frozenset[str]) -> Score:
        written = quantized(graph, ranges, sensitivity.names_of(groups, chosen))
        key = _key(written, whole, engine, [])
        spots[chosen] = work / "spots" / f"{key}.json"

        def made() -> Score:
            score, spot = int8_spots.scored(
                written, net.signature(*whole.size), cases(net, whole, whole.judge, kept), engine, "int8",
                frames.size, allowed.margin,
            )  # fmt: skip
            int8_spots.keep(spots[chosen], spot)
            return score

        return book.get(key, made)

    def flown(chosen: frozenset[str]) -> Score:
        if flight.made is _same:
            return tried(chosen)
        written = flight.made(quantized(graph, ranges, sensitivity.names_of(groups, chosen)))
        signature, judged = net.signature(*whole.size), cases(net, whole, whole.judge, kept)
        return book.get(
            _key(written, whole, engine, [flight.precision]),
            lambda: score_graph(flight.runs(written), signature, judged, engine, flight.precision),
        )

    def revised(point: Point, known: Mapping[str, Score]) -> Mapping[str, Score]:
        if frames.size == whole.size and net.signature(*whole.size).tiling == "fixed":
            return known
        spot = int8_spots.kept(spots[point.groups])
        case = int8_spots.spot_case(net, ranked, frames, whole, spot, kept)
        now = dict(known)
        with console.progress("measuring where it lost most") as moved:
            for number, group in enumerate(groups):
                now[group.name] = agreement.joined([known[group.name], alone(ranges, group.products, [case])])
                moved(number + 1, len(groups))
        return now

    steps = Steps(groups)
    found = sensitivity.search(groups, costs, tried, allowed, steps, first=allowed.margin.psnr_db, revise=revised)
    if found.chosen is None:
        raise nothing_holds(min(found.points, key=lambda p: p.share), len(found.points))
    steps.groups = groups = sensitivity.taken_apart(groups, found.chosen.groups, listed)
    apart = [g for g in groups if g.name not in found.chosen.groups]
    with console.progress("measuring products of what is left") as moved:
        costs = {}
        for number, group in enumerate(apart):
            costs[group.name] = alone(ranges, group.products)
            moved(number + 1, len(apart))
    room = max(0.0, allowed.margin.psnr_db - found.chosen.score.mean_psnr_drop_db)
    found = sensitivity.search(groups, costs, tried, allowed, steps, first=room, beside=found)
    assert found.chosen is not None, "what was chosen before still holds"
    settled = sensitivity.settled(
        found,
        found.chosen,
        flown,
        Gated(config.gates),
        steps if flight.made is not _same else None,
    )
    last = settled[-1]
    if not last.holds:
        raise nothing_holds(last, len(found.points) + len(settled))
    found = replace(found, chosen=last)
    made = flight.made(quantized(graph, ranges, sensitivity.names_of(groups, last.groups)))
    facts = {
        "calibration": set_facts(frames, whole, work, experts),
        "method": method,
        "methods": {name: figures_of(score) for name, score in methods.items()},
        "method_of_group": own,
        "max_drop": asdict(allowed.margin),
        "gates": {g.figure.key: g.limit for g in judge(figures(last.score), config.gates, "int8")},
        "int8_mac_share": int8_share(onnx.load_model_from_string(made)),
        "kept_in_higher_precision": [g.name for g in found.ranking if g.name not in last.groups],
        "on_judged_frames": figures_of(last.score),
        "judged_in": engine,
        "steps": steps.lines,
        "evaluations": len(found.costs) + len(found.points) + len(settled) + len(methods),
    }
    return Calibrated(made, engine, last.score, facts, found)


def _key(graph: bytes, frames: CalibrationSet, engine: str, how: Sequence[str]) -> str:
    content = [hashlib.sha256(graph).hexdigest(), frames.digest(), engine, how]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _by_group(
    groups: Sequence[Group],
    by_method: Mapping[str, Mapping[str, float]],
    method: str,
    alone: Callable[[Mapping[str, float], Collection[str]], Score],
    moved: Callable[[int, int], None],
) -> tuple[dict[str, float], dict[str, str], dict[str, Score]]:
    """Ranges by the method that is best for the whole, but by another where a dear group alone is better off with it.

    Returns:
        {product: range}, {group: method} of those that have another one, and what each group costs alone.
    """
    ranges, own = dict(by_method[method]), {}
    costs = {}
    for number, group in enumerate(groups):
        costs[group.name] = alone(ranges, group.products)
        moved(number + 1, len(groups) + MOST_DEAR)
    dear = sorted(
        (g for g in groups if costs[g.name].mean_distortion_db > DEAR_DB), key=lambda g: -_distortion(costs, g)
    )
    for number, group in enumerate(dear[:MOST_DEAR]):
        tried = {m: alone(by_method[m], group.products) for m in by_method}
        best = min(tried, key=lambda name: tried[name].mean_distortion_db)
        if best != method and tried[best].mean_distortion_db < CLEARLY_BETTER * costs[group.name].mean_distortion_db:
            own[group.name], costs[group.name] = best, tried[best]
            ranges |= {name: by_method[best][name] for name in group.products}
        moved(len(groups) + number + 1, len(groups) + MOST_DEAR)
    return ranges, own, costs


def _distortion(costs: Mapping[str, Score], group: Group) -> float:
    return costs[group.name].mean_distortion_db
