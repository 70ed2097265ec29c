"""`deploy bench`: how long a frame takes on this machine, where the time goes, and what the board says of itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.errors import InputError, MachineError

from .. import console
from .options import engine_option, examples, json_option, prompt_option, trust_option

if TYPE_CHECKING:
    from runtime.board import Reading
    from runtime.board_watch import Spread, Watched
    from runtime.manifest import Manifest

    from ..checking.latency import Measured

DEFAULT_FRAMES, DEFAULT_SECONDS, DEFAULT_WARMUP = 200, 20.0, 3
MOST_FRAMES = 1_000_000
GPU_UNITS = {"clock_mhz": "MHz", "power_w": "W", "temperature_c": "°C", "memory_mib": "MiB in use"}
"""Figure of a GPU -> what the table calls it."""


@click.command(
    epilog=examples(
        "deploy bench build/bundle",
        "deploy bench build/bundle --checkpoint damp-tiny --frames 50 --threads 1",
        "deploy bench build/bundle --checkpoint damp-tiny --torch-device cuda --torch-form graph",
        "deploy bench build/bundle --seconds 600 --out build/bench --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--frames",
    type=click.IntRange(1, MOST_FRAMES),
    help=f"Frames to time.  [default: {DEFAULT_FRAMES}, or what --seconds allow]",
)
@click.option(
    "--seconds", type=float, help=f"Start no frame after this time.  [default: {DEFAULT_SECONDS:g} without --frames]"
)
@click.option(
    "--warmup",
    type=click.IntRange(1, 1000),
    default=DEFAULT_WARMUP,
    show_default=True,
    help="Frames that run first and are not counted.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the engine, and of PyTorch.")
@engine_option
@prompt_option
@click.option("--checkpoint", help="Compare with PyTorch: the checkpoint that the bundle was built from.")
@click.option("--torch-device", help="Where PyTorch runs, for example cuda.  [default: cpu]")
@click.option(
    "--torch-form",
    type=click.Choice(["reference", "deployment", "compiled", "graph"]),
    help="The network as trained, or as exported: eager, by torch.compile, or in a CUDA graph.  [default: reference]",
)
@click.option(
    "--torch-precision", type=click.Choice(["fp32", "fp16", "bf16"]), help="PyTorch's, by autocast.  [default: fp32]"
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for a picture and the figures.")
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@trust_option
@json_option
def command(
    bundle: Path,
    frames: int | None,
    seconds: float | None,
    warmup: int,
    threads: int | None,
    engine: str | None,
    prompt: str | None,
    checkpoint: str | None,
    torch_device: str | None,
    torch_form: str | None,
    torch_precision: str | None,
    out: Path | None,
    replace: bool,
) -> dict[str, Any]:
    """Time a bundle's engine on this machine, frame by frame, as `deploy run` uses it.

    The frames are of the bundle's size: the golden one and simulated scenes. With --checkpoint, PyTorch restores the
    same frames in turn with the engine.
    """
    from runtime.board import forget_peak_memory, read_board
    from runtime.bundle import load_bundle

    from ..checking.latency import Reference, bench_frames, measure
    from ..folders import refuse_folder, write_folder

    if seconds is not None and not 0 < seconds <= 86400:
        raise InputError("out of range", key="--seconds", value=seconds, remedy="more than 0, at most 86400")
    asked = {"device": torch_device, "form": torch_form, "precision": torch_precision}
    ways = {name: value for name, value in asked.items() if value is not None}
    if ways and checkpoint is None:
        name, value = next(iter(ways.items()))
        raise InputError("PyTorch is not asked for", key=f"--torch-{name}", value=value, remedy="give --checkpoint too")
    reference = None if checkpoint is None else Reference(checkpoint, **ways)
    if out is not None:
        refuse_folder(out, replace)
    limit = (frames or (DEFAULT_FRAMES if seconds is None else MOST_FRAMES), _seconds(frames, seconds))
    with console.progress("reading the board"):
        before = read_board()
    cubes = bench_frames(bundle)
    # What made the frames does not fly.
    counted = forget_peak_memory()
    with load_bundle(bundle, threads=threads, engine=engine, prompt=prompt) as loaded:
        loaded.prompts.check_chosen()
        manifest = loaded.manifest
        measured = measure(loaded, cubes, limit, warmup, reference, threads or manifest.target.threads)
    if not counted:
        measured = replace_fields(measured, peak_mib=None)
    result = {"bundle": str(bundle), **as_json(measured, before)}
    show(manifest, measured, before)
    if out is not None:
        files = {"bench.json": (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), **_picture(measured)}
        write_folder(out, files, replace=replace)
        console.say(f"wrote      {out}: {', '.join(sorted(files))}", "bold green")
    return result


def as_json(measured: Measured, before: Reading) -> dict[str, Any]:
    """What `--json` tells of a benchmark; times in ms, memory in MiB."""
    from runtime.board import board_model

    from ..checking.latency import latency_ms, split_ms

    pytorch = measured.pytorch
    latency = latency_ms(measured.times)
    return {
        "precision": measured.description["computes in"],
        "latency_ms": latency,
        "frames_per_second": 1000 / latency["mean"],
        "split_ms": split_ms(measured.times),
        "metrics_by": measured.metrics_by,
        "peak_memory_mib": measured.peak_mib,
        "engine": measured.description,
        "board": {"model": board_model(), "before": before.as_json(), "during": measured.board.as_json()},
        "pytorch": None
        if pytorch is None
        else {
            "latency_ms": latency_ms(pytorch.times),
            "split_ms": split_ms(pytorch.times),
            "ratio": pytorch.ratio,
            "engine_ratio": pytorch.engine_ratio,
            "engine": pytorch.description,
        },
    }


def show(manifest: Manifest, measured: Measured, before: Reading) -> None:
    """The tables for people."""
    from runtime.signature import plane_text

    from ..checking.latency import latency_ms, split_ms

    size = plane_text(manifest.signature.measured)
    told = measured.description
    console.say(f"engine     {told['engine']} {told['version']}, {told['device']}")
    by = "" if measured.metrics_by == "none" else f"; metrics by the {measured.metrics_by}"
    console.say(f"precision  {told['computes in']}{by}")
    console.say(f"frames     {len(measured.times)} of {size}")
    contenders = [("engine", measured.times)]
    if measured.pytorch is not None:
        contenders.append(("PyTorch", measured.pytorch.times))
    rows = []
    for name, times in contenders:
        latency = latency_ms(times)
        figures = [_ms(latency[key]) for key in ("p50", "p90", "p99", "mean")]
        rows.append((name, *figures, f"{1000 / latency['mean']:.3g}"))
    console.table("latency of a frame", ("", "p50 ms", "p90 ms", "p99 ms", "mean ms", "frames/s"), rows)
    rows = [(name, *[_ms(value) for value in split_ms(times).values()]) for name, times in contenders]
    console.table("where the time goes, medians", ("", "metrics ms", "pre ms", "engine ms", "post ms"), rows)
    if measured.pytorch is not None:
        p = measured.pytorch
        console.say(
            f"ratio      a frame {p.ratio:.2f} times as fast as in PyTorch, the network alone {p.engine_ratio:.2f}"
        )
        version, device, form, precision = (p.description[key] for key in ("version", "device", "form", "computes in"))
        console.say(f"PyTorch    {version}, {device}, {form} form, {precision}")
    if measured.peak_mib is not None:
        aside = ", without PyTorch" if measured.pytorch else ""
        console.say(f"memory     {measured.peak_mib:.0f} MiB of this process on the host at most{aside}")
    _show_board(before, measured.board)


def _show_board(before: Reading, during: Watched) -> None:
    then, now = _told(before), _spreads(during)
    labels = list(dict.fromkeys([*then, *now]))
    if not labels:
        console.say("board      tells nothing of clocks, power or temperature")
        return
    rows = [(label, then.get(label, "-"), *now.get(label, ("-",) * 3)) for label in labels]
    columns = ("", "before", "least", "median", "most")
    console.table("the board before, and while frames were timed", columns, rows)
    if before.clocks_locked is False:
        console.say("clocks     they move; run `sudo jetson_clocks` for times that can be compared")


def _told(reading: Reading) -> dict[str, str]:
    """What a person wants to know of a reading, by label; nothing that the board does not tell."""
    told: dict[str, str] = {}
    if reading.power_mode:
        told["power mode"] = reading.power_mode
    if reading.governor:
        told["governor"] = reading.governor
    if reading.cpu_mhz:
        told["CPU MHz"] = f"{min(reading.cpu_mhz):.0f} to {max(reading.cpu_mhz):.0f}"
    for gpu in reading.gpus:
        name = "GPU" if len(reading.gpus) == 1 else f"GPU {gpu.index}"
        values = [(getattr(gpu, key), unit) for key, unit in GPU_UNITS.items()]
        told |= {f"{name} {unit}": f"{value:.0f}" for value, unit in values if value is not None}
    if reading.temperatures_c:
        sensor, hottest = max(reading.temperatures_c.items(), key=lambda item: item[1])
        told["hottest °C"] = f"{hottest:.0f} ({sensor})"
    return told | {f"{rail} W": f"{watts:.2f}" for rail, watts in reading.power_w.items()}


def _spreads(during: Watched) -> dict[str, tuple[str, ...]]:
    """(least, median, most) of what was watched, by the labels of `_told`."""
    told: dict[str, tuple[str, ...]] = {}
    if during.cpu_mhz:
        told["CPU MHz"] = _three(during.cpu_mhz)
    for index, figures in during.gpus.items():
        name = "GPU" if len(during.gpus) == 1 else f"GPU {index}"
        told |= {f"{name} {unit}": _three(figures[key]) for key, unit in GPU_UNITS.items() if key in figures}
    if during.temperatures_c:
        sensor, hottest = max(during.temperatures_c.items(), key=lambda item: item[1].most)
        *cooler, most = _three(hottest)
        told["hottest °C"] = (*cooler, f"{most} ({sensor})")
    return told | {f"{rail} W": _three(watts, 2) for rail, watts in during.power_w.items()}


def _three(spread: Spread, digits: int = 0) -> tuple[str, ...]:
    return tuple(f"{value:.{digits}f}" for value in (spread.least, spread.median, spread.most))


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _seconds(frames: int | None, seconds: float | None) -> float:
    return seconds if seconds is not None else DEFAULT_SECONDS if frames is None else math.inf


def _picture(measured: Measured) -> dict[str, bytes]:
    """{file: PNG}, or nothing, said aloud, where matplotlib is not installed."""
    from ..reporting.plots import latency_plot

    series = {"engine": [1000 * t.total for t in measured.times]}
    if measured.pytorch is not None:
        series["PyTorch"] = [1000 * t.total for t in measured.pytorch.times]
    try:
        return {"bench.png": latency_plot(series)}
    except MachineError as error:
        console.warn(f"no picture is drawn: {error.one_line()}")
        return {}
