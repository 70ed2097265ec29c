"""`deploy sensitivity`: what int8 and FP16 cost in every part of a network, before anything is built."""

from pathlib import Path
from typing import Any

import click

from runtime.errors import InputError

from .. import console
from ..config import SEARCHED_SIDE
from .options import (
    config_option,
    examples,
    json_option,
    network_flags,
    network_option,
    parse_size,
    read_config,
    reading_flags,
    reading_options,
    with_flags,
)

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
@reading_options
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
    layout: str | None,
    key: str | None,
    marks: tuple[float, ...] | None,
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
    from export import networks
    from export import onnx as exporting
    from export.targets import find_target
    from runtime.durable import write_bytes

    from ..building.calibration_frames import open_calibration
    from ..building.sensitivity import fp16_costs, int8_costs
    from ..finalizing.targets import known_targets

    config = read_config(config_file, checkpoint_given=checkpoint is not None)
    flags = {
        **network_flags(checkpoint, options, top_k),
        "calibration.dir": calibration,
        "input.frame": parse_size(size or f"{SEARCHED_SIDE}x{SEARCHED_SIDE}"),
        "input.overlap": 0,
        **reading_flags(layout, key, scale, marks),
    }
    config = with_flags(config, flags)
    if config.model.checkpoint is None:
        raise InputError("no checkpoint is given", key="--checkpoint", remedy="give one, or a deploy.yaml that does")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError("is a file", file=out, key="--out", remedy="give a folder")
    net = networks.load_checkpoint(config.model.checkpoint, **config.model.said)
    scaled = config.input.scale if config.input.scale is not None else net.facts.scale
    for doubt in net.facts.doubts:
        console.warn(doubt)
    exporting.check_size(net, config.input.frame.lines, config.input.frame.samples)
    frames = open_calibration(config, net, scaled, whole=True)
    if frames is None:
        raise InputError(
            "nothing to measure on", key="--calibration", remedy="give a folder of clean cubes, or `simulated`"
        )
    with console.progress("exporting the graph"):
        graph = exporting.export_graph(
            net, *frames.size, find_target(config.target, known_targets(config)).experts
        ).data
    measure = int8_costs if precision == "int8" else fp16_costs
    found = measure(net, graph, frames, config)
    _show(found.rows)
    if found.told:
        console.say(f"int8       {found.told}", "bold")
    for name, data in found.files.items():
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_bytes(out / Path(name).name, data)
    if out is not None:
        console.say(f"wrote      {out}/{', '.join(Path(name).name for name in found.files)}", "bold green")
    return {"precision": precision, **found.table}


def _show(rows: list[tuple[str, ...]]) -> None:
    console.table(
        f"alone in the lower precision, the {min(SHOWN, len(rows))} dearest of {len(rows)}",
        ("group", "share", "distorts dB", "loses dB", "SAM deg", "same", "then"),
        rows[:SHOWN],
    )
