"""What a lower precision costs, block by block."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from calibration.agreement import Score
from calibration.dataset import CalibrationSet
from calibration.half_arithmetic import half_arithmetic
from calibration.products import block_of
from calibration.rounding import with_corrected_biases
from calibration.typed import half_precision

from .. import console
from ..checking.probes import simulated_probes
from ..commands.sensitivity import _show
from ..config import Config
from .calibration_frames import cases
from .int8 import PICTURE, SENSITIVITY, calibrate, max_drop, report_files, score_graph
from .scores import figures_of


def int8_costs(
    net: Any, graph: bytes, frames: CalibrationSet, config: Config
) -> tuple[dict[str, Any], dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as work:
        found = calibrate(net, graph, graph, frames, max_drop(config), Path(work))
    search = found.search
    assert search.chosen is not None
    rows = [(g.name, 100 * g.share, search.costs[g.name], g.name in search.chosen.groups) for g in search.ranking]
    _show(
        [
            (name, f"{share:.1f} %", *score_cells(score), "int8" if inside else "out")
            for name, share, score, inside in sorted(rows, key=lambda row: -row[2].mean_distortion_db)
        ]
    )
    facts = found.facts
    console.say(
        f"int8       {100 * facts['int8_mac_share']:.1f} % of the multiply-adds hold max_drop, ranges by "
        f"{facts['method']}: {search.chosen.score.mean_psnr_drop_db:.4f} dB, "
        f"{100 * search.chosen.score.routing.agreement:.2f} % same experts",
        "bold",
    )
    files = report_files(found)
    table: dict[str, Any] = json.loads(files[SENSITIVITY])
    return {**table, "int8_mac_share": facts["int8_mac_share"], "method": facts["method"]}, {
        name: data for name, data in files.items() if name in (SENSITIVITY, PICTURE)
    }


def fp16_costs(
    net: Any, graph: bytes, frames: CalibrationSet, config: Config
) -> tuple[dict[str, Any], dict[str, bytes]]:
    import onnx

    half, rounded = half_precision, half_arithmetic
    corrected = with_corrected_biases
    probes = simulated_probes(net, frames.size, net.facts.wavelengths)
    names = [node.name for node in onnx.load_model_from_string(graph).graph.node]
    blocks = list(dict.fromkeys(block_of(name) for name in names))
    signature = net.signature(*frames.size)
    judged = list(cases(net, frames, frames.judge, None))
    costs: dict[str, Score] = {}
    with console.progress("measuring what FP16 costs") as moved:
        for number, block in enumerate((*blocks, "all")):
            single = () if block == "all" else [name for name in names if block_of(name) != block]
            typed = half(corrected(graph, probes, single), single)
            costs[block] = score_graph(rounded(typed.data), signature, judged, "onnxruntime", "fp32")
            moved(number + 1, len(blocks) + 1)
    ordered = sorted(costs, key=lambda name: -costs[name].mean_distortion_db)
    _show([(name, "", *score_cells(costs[name]), "") for name in ordered])
    table = {
        "blocks": {name: {**figures_of(costs[name]), "distortion_db": costs[name].mean_distortion_db} for name in costs}
    }
    return table, {SENSITIVITY: (json.dumps(table, indent=1) + "\n").encode()}


def score_cells(score: Score) -> tuple[str, ...]:
    return (
        f"{score.mean_distortion_db:.4f}",
        f"{score.mean_psnr_drop_db:+.4f}",
        f"{score.mean_sam_rise_deg:+.4f}",
        f"{100 * score.routing.agreement:.1f}",
    )
