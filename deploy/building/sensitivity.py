"""What a lower precision costs, block by block."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from calibration.agreement import Score
from calibration.dataset import CalibrationSet
from calibration.half_arithmetic import half_arithmetic
from calibration.products import block_of
from calibration.rounding import with_corrected_biases
from calibration.typed import half_precision
from export.networks import Network

from .. import console
from ..checking.half import exact_nodes
from ..checking.probes import simulated_probes
from ..config import Config
from .calibration_frames import cases
from .int8 import calibrate, score_graph
from .int8_told import PICTURE, SENSITIVITY, report_files
from .scores import figures_of


@dataclass(frozen=True)
class Costs:
    """What a lower precision costs, part by part.

    Attributes:
        rows: of a table for people: group, share, figures, what becomes of it; the dearest first.
        told: the outcome in one line, or nothing.
        table: for `--json`.
        files: inner path -> content.
    """

    rows: list[tuple[str, ...]]
    told: str
    table: dict[str, Any]
    files: dict[str, bytes]


def int8_costs(net: Network, graph: bytes, frames: CalibrationSet, config: Config) -> Costs:
    """What int8 costs in every group of layers alone, and which groups may run in it."""
    with tempfile.TemporaryDirectory() as work:
        found = calibrate(net, graph, graph, frames, frames, config, Path(work))
    search = found.search
    assert search.chosen is not None
    groups = sorted(search.ranking, key=lambda g: -search.costs[g.name].mean_distortion_db)
    rows = [
        (
            g.name,
            f"{100 * g.share:.1f} %",
            *_cells(search.costs[g.name]),
            "int8" if g.name in search.chosen.groups else "out",
        )
        for g in groups
    ]
    facts = found.facts
    told = (
        f"{100 * facts['int8_mac_share']:.1f} % of the multiply-adds hold max_drop, ranges by "
        f"{facts['method']}: {search.chosen.score.mean_psnr_drop_db:.4f} dB"
    )
    if routing := search.chosen.score.routing:
        told += f", {100 * routing.agreement:.2f} % same experts"
    files = {name: data for name, data in report_files(search).items() if name in (SENSITIVITY, PICTURE)}
    table: dict[str, Any] = json.loads(files[SENSITIVITY])
    return Costs(rows, told, {**table, "int8_mac_share": facts["int8_mac_share"], "method": facts["method"]}, files)


def fp16_costs(net: Network, graph: bytes, frames: CalibrationSet, config: Config) -> Costs:
    """What FP16 costs in every block alone, and in all of them."""
    probes = simulated_probes(net, frames.size, net.wavelengths)
    names = [node.name for node in onnx.load_model_from_string(graph).graph.node]
    exact = exact_nodes(graph, net)
    blocks = list(dict.fromkeys(block_of(name) for name in names))
    signature = net.signature(*frames.size)
    judged = list(cases(net, frames, frames.judge, None))
    costs: dict[str, Score] = {}
    with console.progress("measuring what FP16 costs") as moved:
        for number, block in enumerate((*blocks, "all")):
            single = exact if block == "all" else exact | {name for name in names if block_of(name) != block}
            typed = half_precision(with_corrected_biases(graph, probes, single), single)
            costs[block] = score_graph(half_arithmetic(typed.data), signature, judged, "onnxruntime", "fp32")
            moved(number + 1, len(blocks) + 1)
    ordered = sorted(costs, key=lambda name: -costs[name].mean_distortion_db)
    table = {
        "blocks": {name: {**figures_of(costs[name]), "distortion_db": costs[name].mean_distortion_db} for name in costs}
    }
    rows = [(name, "", *_cells(costs[name]), "") for name in ordered]
    return Costs(rows, "", table, {SENSITIVITY: (json.dumps(table, indent=1) + "\n").encode()})


def _cells(score: Score) -> tuple[str, ...]:
    return (
        f"{score.mean_distortion_db:.4f}",
        f"{score.mean_psnr_drop_db:+.4f}",
        f"{score.mean_sam_rise_deg:+.4f}",
        f"{100 * score.routing.agreement:.1f}" if score.routing else "-",
    )
