"""`deploy build`: a trained network in, a bundle out."""

from pathlib import Path
from typing import Any

import click

from runtime.errors import DeployError, InputError

from .. import console
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
    remote_options,
    with_flags,
)


@click.command(
    epilog=examples(
        "deploy build --target cpu --checkpoint damp-tiny --out build/bundle",
        "deploy build --target cpu --checkpoint model.pth --top-k 1 --size 256x320 --scale 4095",
        "deploy build --target jetson-orin --checkpoint damp-small --size 448x448 --out orin",
        "deploy build --target intel --checkpoint damp-small --precision auto --calibration cubes/",
        "deploy build --config deploy.yaml --replace",
    )
)
@click.option("--target", help="What to build for.  [default: cpu]")
@click.option("--checkpoint", help="A .pth or .safetensors, or the name of a packaged model.")
@click.option("--top-k", type=int, help="Experts that run for a frame; asked for where the checkpoint does not tell.")
@network_option
@click.option("--size", help="Lines x samples of a frame.  [default: 256x256]")
@click.option("--overlap", type=int, help="Lines and samples that neighbouring tiles share.  [default: 32]")
@click.option("--precision", help="fp32, fp16, bf16, int8 or auto.  [default: the target's own]")
@click.option(
    "--calibration", help="Folder of cubes that int8 is calibrated with, or `simulated` for simulated scenes."
)
@reading_options
@click.option("--engine", help="On CPUs onnxruntime, openvino or auto to time them here; on GPUs onnxruntime-cuda.")
@click.option(
    "--metrics",
    type=click.Choice(["host", "graph"]),
    help="What computes the metrics of a frame: NumPy, or a graph in the engine.  [default: the target's own]",
)
@click.option("--serial", type=int, help="Number of the bundle, which only grows.  [default: the clock's seconds, UTC]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle.  [default: build/bundle]")
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@remote_options
@config_option
@json_option
def command(
    target: str | None,
    checkpoint: str | None,
    top_k: int | None,
    options: tuple[str, ...],
    size: str | None,
    overlap: int | None,
    precision: str | None,
    calibration: str | None,
    layout: str | None,
    key: str | None,
    marks: tuple[float, ...] | None,
    engine: str | None,
    metrics: str | None,
    scale: float | None,
    serial: int | None,
    out: Path | None,
    replace: bool,
    remote: str | None,
    remote_command: str,
    ssh_config: Path | None,
    config_file: Path | None,
) -> dict[str, Any]:
    """Build a bundle: export the network, prove the graph against PyTorch, write everything that flies.

    Flags win over --config. A build that was stopped goes on when it is started again with the same recipe.
    """
    from runtime.trust import trust_here

    from ..building.build import build
    from ..finalizing.remote import finalize_remotely, parse_remote

    config = read_config(config_file, checkpoint_given=checkpoint is not None)
    flags = {
        "target": target,
        **network_flags(checkpoint, options, top_k),
        "input.frame": parse_size(size),
        "input.overlap": overlap,
        "precision": precision,
        "calibration.dir": calibration,
        "output.serial": serial,
        **reading_flags(layout, key, scale, marks),
    }
    there = None if remote is None else parse_remote(remote, remote_command, ssh_config)
    if there is not None and (place := trust_here().place):
        problem = "what has just been built is not signed yet, and the keyring here asks for it"
        raise InputError(problem, file=place, key="--remote", remedy="build, `deploy sign`, then `deploy finalize`")
    done = build(
        with_flags(config, flags),
        out,
        replace=replace,
        scale_flag=scale is not None,
        engine=engine,
        metrics=metrics,
    )
    if there is None:
        return done
    if done["deferred"] is None:
        console.warn(f"nothing is left to do on {there.host}: the bundle is complete")
        return done
    try:
        finished = finalize_remotely(Path(done["bundle"]), there)
    except DeployError:
        console.warn(f"the bundle is complete but for its engine; go on with `deploy finalize --remote {there.host}`")
        raise
    return {**done, "engine": finished["engine"], "deferred": None, "remote": finished}
