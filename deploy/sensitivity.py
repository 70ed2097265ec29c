"""`deploy sensitivity`: what int8 and FP16 cost in every part of a network, before anything is built."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.durable import write_bytes
from runtime.errors import InputError

from . import console
from .config import Config, with_overrides
from .graphs import simulated_probes
from .options import (
    config_option,
    examples,
    ground,
    json_option,
    network_option,
    network_options,
    parse_size,
    read_config,
)
from .quantize import (
    PICTURE,
    SEARCHED_SIDE,
    SENSITIVITY,
    calibrate,
    cases,
    figures_of,
    max_drop,
    open_calibration,
    report_files,
    score_graph,
)

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show this command's help.
    from calibration.agreement import Score
    from calibration.dataset import CalibrationSet

SHOWN = 12


@click.command(
    epilog=examples(
        "deploy sensitivity --checkpoint damp-small --calibration cubes/",
        "deploy sensitivity --checkpoint damp-small --calibration cubes/ --precision fp16 --out sensitivity",
    )
)
@click.option("--checkpoint", help="A .pth or .safetensors, or the name of a packaged model.")
@click.option("--top-k", type=int, help="Experts that run for a frame; asked for where the checkpoint does not tell.")
@network_option
@click.option("--calibration", help="Folder of cubes, or `simulated` for simulated scenes.")
@click.option("--size", help=f"Lines x samples of a frame.  [default: {SEARCHED_SIDE}x{SEARCHED_SIDE}]")
@click.option("--scale", type=float, help="Digital number that stands for 1.0 in cubes of integers.")
@click.option(
    "--precision", type=click.Choice(["int8", "fp16"]), default="int8", show_default=True, help="What to measure."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the table (JSON) and the picture.")
@config_option
@json_option
def command(
    checkpoint: str | None,
    top_k: int | None,
    options: tuple[str, ...],
    calibration: str | None,
    size: str | None,
    scale: float | None,
    precision: str,
    out: Path | None,
    config_file: Path | None,
) -> dict[str, Any]:
    """Measure what a lower precision costs, block by block and layer class by layer class.

    int8 is measured in every group of layers alone, then the groups that may run in it within calibration.max_drop are
    searched for, as `deploy build` does. FP16 is measured in every block alone.
    """
    config = read_config(config_file, checkpoint_given=checkpoint is not None)
    told = network_options(options, top_k)
    flags = {
        "model.checkpoint": checkpoint,
        "model.top_k": told.get("top_k"),
        "model.options": told,
        "calibration.dir": calibration,
        "input.frame": parse_size(size or f"{SEARCHED_SIDE}x{SEARCHED_SIDE}"),
        "input.overlap": 0,
        "input.scale": scale,
    }
    config = with_overrides(config, flags)
    if config.model.checkpoint is None:
        raise InputError("no checkpoint is given", key="--checkpoint", remedy="give one, or a deploy.yaml that does")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError("is a file", file=out, key="--out", remedy="give a folder")
    net = ground("export.networks").load_checkpoint(config.model.checkpoint, **config.model.said)
    scaled = config.input.scale if config.input.scale is not None else net.facts.scale
    frames = open_calibration(config, net, scaled, whole=True)
    if frames is None:
        raise InputError(
            "nothing to measure on", key="--calibration", remedy="give a folder of clean cubes, or `simulated`"
        )
    with console.progress("exporting the graph"):
        graph = ground("export.onnx").export_graph(net, *frames.size).data
    measured = _int8 if precision == "int8" else _fp16
    result, files = measured(net, graph, frames, config)
    for name, data in files.items():
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_bytes(out / Path(name).name, data)
    if out is not None:
        console.say(f"wrote      {out}/{', '.join(Path(name).name for name in files)}", "bold green")
    return {"precision": precision, **result}


def _int8(net: Any, graph: bytes, frames: CalibrationSet, config: Config) -> tuple[dict[str, Any], dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as work:
        found = calibrate(net, graph, graph, frames, max_drop(config), Path(work))
    search = found.search
    assert search.chosen is not None
    rows = [(g.name, 100 * g.share, search.costs[g.name], g.name in search.chosen.groups) for g in search.ranking]
    _show(
        [
            (name, f"{share:.1f} %", *_cells(score), "int8" if inside else "out")
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


def _fp16(net: Any, graph: bytes, frames: CalibrationSet, config: Config) -> tuple[dict[str, Any], dict[str, bytes]]:
    import onnx

    half, rounded = ground("calibration.typed").half_precision, ground("calibration.half_arithmetic").half_arithmetic
    corrected = ground("calibration.rounding").with_corrected_biases
    probes = simulated_probes(net, frames.size, net.facts.wavelengths)
    block_of = ground("calibration.products").block_of
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
    _show([(name, "", *_cells(costs[name]), "") for name in ordered])
    table = {
        "blocks": {name: {**figures_of(costs[name]), "distortion_db": costs[name].mean_distortion_db} for name in costs}
    }
    return table, {SENSITIVITY: (json.dumps(table, indent=1) + "\n").encode()}


def _cells(score: Score) -> tuple[str, ...]:
    return (
        f"{score.mean_distortion_db:.4f}",
        f"{score.mean_psnr_drop_db:+.4f}",
        f"{score.mean_sam_rise_deg:+.4f}",
        f"{100 * score.routing.agreement:.1f}",
    )


def _show(rows: list[tuple[str, ...]]) -> None:
    console.table(
        f"alone in the lower precision, the {min(SHOWN, len(rows))} dearest of {len(rows)}",
        ("group", "share", "distorts dB", "loses dB", "SAM deg", "same", "then"),
        rows[:SHOWN],
    )
