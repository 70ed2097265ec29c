"""What a search for int8 says: a line for each step, why nothing holds, facts for the manifest, a report."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.dataset import CalibrationSet
from calibration.sensitivity import Group, Point, Search
from runtime.errors import GateError, MachineError

from .. import console
from ..reporting.precision_plots import pareto_plot
from .int8_ranges import Experts
from .scores import figures_of

SENSITIVITY, PICTURE = "report/sensitivity.json", "report/pareto.png"


def nothing_holds(last: Point, tries: int) -> GateError:
    """Even the set with the fewest multiply-adds goes too far: it is named, with what it misses."""
    error = GateError(
        f"nothing of this network can run in int8: after {tries} tries {_named(sorted(last.groups))} alone, "
        f"{100 * last.share:.1f} % of the multiply-adds, cannot be spared: {'; '.join(last.missed)}",
        key="int8",
        remedy="allow more in calibration.max_drop or gates, give more cubes, or build with another --precision",
    )
    error.result = {"int8": {"groups": sorted(last.groups), "missed": list(last.missed), **figures_of(last.score)}}
    return error


def _named(names: Sequence[str]) -> str:
    return f"`{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


class Steps:
    """Says in a line what became of each set that was tried, and keeps the lines for the manifest.

    Attributes:
        groups: that sets are chosen from.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.lines: list[str] = []

    def __call__(self, point: Point) -> None:
        out = [g.name for g in self.groups if g.name not in point.groups]
        costs = (
            f"{100 * point.share:.1f} % in int8 loses {point.score.mean_psnr_drop_db:.3f} dB, "
            f"worst {point.score.worst_psnr_drop_db:.3f}, {point.score.mean_sam_rise_deg:+.2f} degrees"
        )
        without = f" ({_named(out)} in float)" if out else ""
        end = f"misses {'; '.join(point.missed)}" if point.missed else "holds"
        self.lines.append(f"{costs}{without}: {end}")
        console.say(f"step {len(self.lines):<5} {self.lines[-1]}")


def set_facts(frames: CalibrationSet, whole: CalibrationSet, work: Path, experts: Experts) -> dict[str, Any]:
    """The calibration set as a manifest tells it."""
    kept = work / "frames"
    used = {"fit": frames.samples(frames.fit, kept), "judged": whole.samples(whole.judge, kept)}
    counts = [count for layer in experts.coverage for count in layer]
    return {
        "source": Path(frames.asked.source).name,
        "cubes": {name: asdict(record) for name, record in frames.cubes.items()},
        "skipped": dict(frames.skipped),
        "seed": frames.asked.seed,
        **{part: [{**asdict(s.origin), "sha256": s.sha256} for s in samples] for part, samples in used.items()},
        "expert_coverage": experts.coverage,
        "experts_reached": [sum(count > 0 for count in counts), len(counts)],
        "frames_steered": experts.steered,
    }


def report_files(search: Search) -> dict[str, bytes]:
    """The search as a table (JSON) and, where drawings can be made, as a picture."""
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
    return {
        "share": point.share,
        "holds": point.holds,
        "missed": list(point.missed),
        "left_out": left,
        **figures_of(point.score),
    }
