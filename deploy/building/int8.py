"""The int8 graph of a build: frames, ranges, the way to choose them, what each group costs, and what may run in int8.

Everything slow is kept in the build's workplace: frames, ranges, and every score by what was scored, so that a build
that was stopped goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration import agreement, modelopt, sensitivity
from calibration import ranges as ranging
from calibration.agreement import Case, Score
from calibration.dataset import CalibrationSet
from calibration.products import int8_share, products
from calibration.quantized import quantized, taken
from calibration.sensitivity import Group, MaxDrop, Point, Search
from export.networks import Network
from export.onnx import Probe
from runtime.durable import write_bytes
from runtime.engines import EngineOptions, open_engine
from runtime.errors import GateError, MachineError
from runtime.signature import Signature

from .. import console
from ..config import Config
from ..reporting.precision_plots import pareto_plot
from .calibration_frames import cases
from .scores import ScoreBook, figures_of

DEAR_DB = 0.02
"""Groups that distort by more than this are tried with every way to choose ranges."""
CLEARLY_BETTER = 0.9
SCORES, RANGES = "scores.jsonl", "ranges.json"
SENSITIVITY, PICTURE = "report/sensitivity.json", "report/pareto.png"


@dataclass(frozen=True)
class Calibrated:
    """An int8 graph with what led to it.

    Attributes:
        graph: float32 with int8 pairs, for the frame of the build.
        facts: for the manifest.
        search: every set of groups that was tried.
    """

    graph: bytes
    facts: dict[str, Any]
    search: Search


def score_graph(
    graph: bytes, signature: Signature, judged: Iterator[Case] | Sequence[Case], engine: str, precision: str
) -> Score:
    """What a graph costs in an engine."""
    with open_engine(engine, graph, signature, EngineOptions(precision=precision)) as opened:
        return agreement.score(opened.infer, signature, judged)


def max_drop(config: Config) -> MaxDrop:
    """What the configuration lets int8 cost."""
    told = config.calibration.max_drop
    return MaxDrop(told.psnr_db, told.worst_psnr_db, told.sam_deg, told.routing_percent / 100)


def calibrate(
    net: Network, graph: bytes, searched: bytes, frames: CalibrationSet, allowed: MaxDrop, work: Path
) -> Calibrated:
    """Choose ranges and products, and write the int8 graph.

    Args:
        net: the network.
        graph: its float32 graph for the frame of the build.
        searched: the same for the frame of the search; its nodes have the same names.
        frames: the calibration set at the size of the search.
        allowed: what int8 may cost on the judged frames.
        work: the build's workplace.

    Raises:
        GateError: nothing can run in int8 within what is allowed.
    """
    model = onnx.load_model_from_string(searched)
    listed = products(model)
    every = frozenset(p.name for p in listed if p.quantisable)
    groups = sensitivity.groups_of(listed)
    console.say(
        f"calibrates {len(frames.fit)} frames choose ranges, {len(frames.judge)} frames of "
        f"{len({o.cube for o in frames.judge})} other cubes judge; {len(groups)} groups of layers may run in int8"
    )
    by_method, coverage = _ranges(net, model, searched, every, frames, work)
    signature = net.signature(*frames.size)
    with console.progress("asking PyTorch") as moved:
        judged = []
        for case in cases(net, frames, frames.judge, work / "frames"):
            judged.append(case)
            moved(len(judged), len(frames.judge))
    book = ScoreBook(work / SCORES)

    first = [case for case in judged if case.sample.origin.cube == judged[0].sample.origin.cube]

    def scored(ranges: Mapping[str, float], chosen: frozenset[str], by: Sequence[Case] = judged) -> Score:
        told = sorted((name, ranges[name]) for name in chosen)
        key = hashlib.sha256(json.dumps([frames.digest(), len(by), told]).encode()).hexdigest()[:24]
        return book.get(
            key, lambda: score_graph(quantized(searched, ranges, chosen), signature, by, "onnxruntime", "int8")
        )

    def ranked(ranges: Mapping[str, float], chosen: frozenset[str]) -> Score:
        # One cube tells which group is dear; what is chosen is judged by all of them.
        return scored(ranges, chosen, first)

    with console.progress("comparing ways to choose ranges") as moved:
        methods = {}
        for number, method in enumerate(by_method):
            methods[method] = scored(by_method[method], every)
            moved(number + 1, len(by_method))
        method = min(methods, key=lambda name: methods[name].mean_distortion_db)
        ranges, own = _by_group(groups, by_method, method, ranked, moved)
    with console.progress("measuring what int8 costs") as moved:
        costs = {g.name: ranked(ranges, frozenset(g.products)) for g in groups}
        found = sensitivity.search(
            groups, costs, lambda names: scored(ranges, sensitivity.names_of(groups, names)), allowed, moved
        )
    if found.chosen is None:
        best = min(found.points, key=lambda p: len(allowed.missed_by(p.score)))
        missed = "; ".join(allowed.missed_by(best.score))
        raise GateError(
            f"nothing of this network can run in int8 within calibration.max_drop: the best of {len(found.points)} "
            f"tries, with {100 * best.share:.1f} % of the multiply-adds, has {missed}",
            key="int8",
            remedy="allow more in calibration.max_drop, or build with another --precision",
        )
    chosen = sensitivity.names_of(groups, found.chosen.groups)
    made = quantized(graph, ranges, chosen)
    facts = {
        "calibration": _set_facts(frames, work, coverage),
        "method": method,
        "methods": {name: figures_of(score) for name, score in methods.items()},
        "method_of_group": own,
        "max_drop": asdict(allowed),
        "int8_mac_share": int8_share(onnx.load_model_from_string(made)),
        "kept_in_higher_precision": [g.name for g in found.ranking if g.name not in found.chosen.groups],
        "on_judged_frames": figures_of(found.chosen.score),
        "evaluations": len(found.costs) + len(found.points) + len(methods),
    }
    return Calibrated(made, facts, found)


def _by_group(
    groups: Sequence[Group],
    by_method: Mapping[str, Mapping[str, float]],
    method: str,
    ranked: Callable[[Mapping[str, float], frozenset[str]], Score],
    moved: Callable[[int, int], None],
) -> tuple[dict[str, float], dict[str, str]]:
    """Ranges by the method that is best for the whole, but by another where a dear group alone is better off with it.

    Returns:
        {product: range}, and {group: method} of those that have another one.
    """
    ranges, own = dict(by_method[method]), {}
    alone = {}
    for number, group in enumerate(groups):
        alone[group.name] = ranked(ranges, frozenset(group.products)).mean_distortion_db
        moved(number + 1, len(groups))
    dear = [g for g in groups if alone[g.name] > DEAR_DB]
    for number, group in enumerate(dear):
        names = frozenset(group.products)
        costs = {m: ranked(by_method[m], names).mean_distortion_db for m in by_method}
        best = min(costs, key=lambda name: costs[name])
        if best != method and costs[best] < CLEARLY_BETTER * costs[method]:
            own[group.name] = best
            ranges |= {name: by_method[best][name] for name in names}
        moved(number + 1, len(dear))
    return ranges, own


def _ranges(
    net: Network, model: Any, searched: bytes, every: frozenset[str], frames: CalibrationSet, work: Path
) -> tuple[dict[str, dict[str, float]], list[list[int]]]:
    """{method: {product: range}}, and how many frames chose each expert [layers][experts]."""
    file = work / RANGES
    try:
        held = json.loads(file.read_bytes())
        if held["digest"] == frames.digest() and set(held["methods"]["minmax"]) == set(every):
            return held["methods"], held["coverage"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Not there yet, or damaged: made anew.
    signature = net.signature(*frames.size)
    routing = signature.routing
    coverage = np.zeros((0, 0) if routing is None else routing.shape, np.int64)

    def given() -> Iterator[Probe]:
        for sample in frames.samples(frames.fit, work / "frames"):
            yield sample.feeds

    with console.progress("watching the network's values") as moved:
        histograms = ranging.collect(searched, taken(model, every), given, moved)
    if routing is not None:
        with open_engine("onnxruntime", searched, signature) as engine:
            for feeds in given():
                coverage += engine.infer(feeds)[routing.name] > 0
    by_method = {method: ranging.ranges(histograms, method) for method in ranging.METHODS}
    by_method |= _by_modelopt(searched, taken(model, every), given, by_method["minmax"])
    content = {"digest": frames.digest(), "methods": by_method, "coverage": coverage.tolist()}
    write_bytes(file, json.dumps(content).encode())
    return by_method, coverage.tolist()


def _by_modelopt(
    searched: bytes,
    inputs: Mapping[str, str],
    given: Callable[[], Iterator[Probe]],
    instead: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Ranges by NVIDIA's Model Optimizer where it is installed, ours where it leaves a product alone."""
    found: dict[str, dict[str, float]] = {}
    if not modelopt.available():
        return found
    for way in modelopt.WAYS:
        try:
            found[f"modelopt-{way}"] = {**instead, **modelopt.modelopt_ranges(searched, inputs, given(), way)}
        # Its exceptions share no base class but Exception.
        except Exception as error:  # noqa: PERF203
            console.warn(f"Model Optimizer's {way} is left out: {error}")
    return found


def _set_facts(frames: CalibrationSet, work: Path, coverage: list[list[int]]) -> dict[str, Any]:
    every = (*frames.fit, *frames.judge)
    hashes = {sample.origin: sample.sha256 for sample in frames.samples(every, work / "frames")}
    idle = sum(count == 0 for layer in coverage for count in layer)
    total = sum(map(len, coverage))
    if total:
        console.say(f"experts    {total - idle} of {total} were chosen by some calibration frame")
    return {
        "source": Path(frames.asked.source).name,
        "cubes": {name: asdict(record) for name, record in frames.cubes.items()},
        "skipped": dict(frames.skipped),
        "seed": frames.asked.seed,
        "fit": [{**asdict(o), "sha256": hashes[o]} for o in frames.fit],
        "judged": [{**asdict(o), "sha256": hashes[o]} for o in frames.judge],
        "expert_coverage": coverage,
        "experts_reached": [total - idle, total],
    }


def report_files(found: Calibrated) -> dict[str, bytes]:
    """The search as a table (JSON) and, where drawings can be made, as a picture."""
    search = found.search
    table = {
        "groups": [
            {"group": g.name, "products": list(g.products), "share": g.share, **figures_of(search.costs[g.name]),
             "distortion_db": search.costs[g.name].mean_distortion_db}
            for g in search.ranking
        ],
        "points": [_point(p, search) for p in search.points],
        "chosen": None if search.chosen is None else _point(search.chosen, search),
    }  # fmt: skip
    files = {SENSITIVITY: (json.dumps(table, indent=1) + "\n").encode()}
    try:
        files[PICTURE] = pareto_plot(search)
    except MachineError:
        console.say("picture    of the search left out: it needs the extra `report`")
    return files


def _point(point: Point, search: Search) -> dict[str, Any]:
    left = [g.name for g in search.ranking if g.name not in point.groups]
    return {"share": point.share, "holds": point.holds, "left_out": left, **figures_of(point.score)}
