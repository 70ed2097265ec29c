"""`deploy bench`: how long a frame takes on this machine, where the time goes, and what the board says of itself."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from runtime.board import (
    BoardWatch,
    Reading,
    Spread,
    Watched,
    board_model,
    forget_peak_memory,
    peak_memory_mib,
    read_board,
)
from runtime.bundle import Bundle, load_bundle, verified_bundle
from runtime.engines import Engine
from runtime.errors import BundleError, InputError, MachineError
from runtime.machine import available_cores
from runtime.manifest import Manifest
from runtime.signature import plane_text
from runtime.sources.materials import WAVELENGTH_RANGE
from runtime.sources.simulator import simulate_scene

from . import console
from .folders import refuse_folder, write_folder
from .options import engine_option, examples, ground, json_option

Float32 = NDArray[np.float32]

DEFAULT_FRAMES, DEFAULT_SECONDS, DEFAULT_WARMUP = 200, 20.0, 3
MOST_FRAMES = 1_000_000
SCENES = 3
NOISE = 0.02
"""Standard deviation of what is added to simulated scenes, in the unit range: a sensor's frames are not smooth."""
PERCENTILES = (50, 90, 99)
GPU_UNITS = {"clock_mhz": "MHz", "power_w": "W", "temperature_c": "°C", "memory_mib": "MiB in use"}
"""Figure of a GPU -> what the table calls it."""


@dataclass(frozen=True)
class Times:
    """Seconds of one frame; they add up to the frame's latency.

    Attributes:
        metrics: prompt metrics of the frame.
        pre: checks, padding and copies before the engine.
        engine: the engine alone, with its own copies to and from a device.
        post: checks, blending and copies after it.
    """

    metrics: float
    pre: float
    engine: float
    post: float

    @property
    def total(self) -> float:
        """Latency of the frame."""
        return self.metrics + self.pre + self.engine + self.post


STEPS = ("metrics", "pre", "engine", "post")


@dataclass(frozen=True)
class Reference:
    """PyTorch to compare with: the bundle's checkpoint, and where and how it runs, see `export.torch_engine`."""

    checkpoint: str
    device: str = "cpu"
    form: str = "reference"
    precision: str = "fp32"


@dataclass(frozen=True)
class Comparison:
    """PyTorch on the same frames, in turn with the engine: frame by frame, so that a busy machine slows both."""

    times: tuple[Times, ...]
    ratio: float
    engine_ratio: float
    description: dict[str, str]


@dataclass(frozen=True)
class Measured:
    """What a benchmark found.

    Attributes:
        times: of every frame, in the order in which they ran.
        description: what the engine says of itself.
        peak_mib: most memory of this process on the host from before the bundle was opened, PyTorch aside; None where
            the system does not tell.
        board: what the board told while the frames were timed.
        metrics_by: what computed the metrics, for PyTorch too: `host` or `graph`.
        pytorch: None unless it was asked for.
    """

    times: tuple[Times, ...]
    description: dict[str, str]
    peak_mib: float | None
    board: Watched
    metrics_by: str
    pytorch: Comparison | None = None


class _Timed(Engine):
    """An engine that notes when its work began and ended."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.signature)
        self._inner = inner
        self.began = self.ended = 0.0

    def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
        # PyTorch warns of arrays that cannot be written to.
        inputs = tuple(array if array.flags.writeable else array.copy() for array in inputs)
        self.began = time.perf_counter()
        results = self._inner.infer_impl(*inputs)
        self.ended = time.perf_counter()
        return results

    def describe(self) -> dict[str, str]:
        return self._inner.describe()


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
@json_option
def command(
    bundle: Path,
    frames: int | None,
    seconds: float | None,
    warmup: int,
    threads: int | None,
    engine: str | None,
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
    with load_bundle(bundle, threads=threads, engine=engine) as loaded:
        manifest = loaded.manifest
        measured = measure(loaded, cubes, limit, warmup, reference, threads or manifest.target.threads)
    if not counted:
        measured = replace_fields(measured, peak_mib=None)
    result = {"bundle": str(bundle), **as_json(manifest, measured, before)}
    show(manifest, measured, before)
    if out is not None:
        files = {"bench.json": (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(), **_picture(measured)}
        write_folder(out, files, replace=replace)
        console.say(f"wrote      {out}: {', '.join(sorted(files))}", "bold green")
    return result


def bench_frames(bundle: Path) -> list[Float32]:
    """Frames of a bundle's size, float32 [bands, lines, samples] in the unit range: the golden one and simulated ones.

    Raises:
        BundleError: the bundle is not whole.
    """
    manifest, contents = verified_bundle(bundle)
    measured = manifest.signature.measured
    file = manifest.golden.arrays[measured.name]
    golden, size = _golden(contents[file], bundle / file), measured.shape[1:]
    low, high = WAVELENGTH_RANGE
    told = manifest.wavelengths
    fits = told and len(told) == measured.bands and all(low <= nanometres <= high for nanometres in told)
    known = told if fits else None
    cubes = [np.asarray(golden[0], np.float32)] if golden.shape == measured.shape else []
    for seed in range(SCENES):
        truth = simulate_scene(seed, *size, known).truth
        noise = np.random.default_rng(seed).standard_normal(truth.shape, np.float32)
        cubes.append(np.ascontiguousarray(truth + np.float32(NOISE) * noise))
    return cubes


def _golden(data: bytes, file: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    # A header that is not what it should be makes NumPy raise almost anything.
    except Exception as error:
        raise BundleError(
            "the golden array is damaged", file=file, value=error, remedy="copy or build the bundle again"
        ) from error


def measure(
    bundle: Bundle,
    cubes: Sequence[Float32],
    limit: tuple[int, float],
    warmup: int = DEFAULT_WARMUP,
    reference: Reference | None = None,
    threads: int | None = None,
) -> Measured:
    """Time an open bundle, and PyTorch in turn with it where it is asked for.

    Args:
        bundle: open; it is left open.
        cubes: frames of the bundle's size; they are used one after the other, again and again.
        limit: most frames, and seconds after which none is started. At least one frame is timed.
        warmup: frames that are not counted.
        reference: what PyTorch runs, and how; None for no comparison.
        threads: of PyTorch; None for all cores.

    Raises:
        InputError: the checkpoint is of another network.
        MachineError: the engine failed, or PyTorch is asked for and is not installed or cannot do it here.
    """
    with BoardWatch() as watch:
        return _measured(bundle, cubes, limit, warmup, reference, threads, watch)


def _measured(
    bundle: Bundle,
    cubes: Sequence[Float32],
    limit: tuple[int, float],
    warmup: int,
    reference: Reference | None,
    threads: int | None,
    watch: BoardWatch,
) -> Measured:
    engine, metrics_by = _frame_timer(bundle, bundle.engine), bundle.prompts.by(cubes[0].shape)
    with console.progress("warming up") as moved:
        for index in range(warmup):
            moved(index, warmup)
            engine(cubes[index % len(cubes)])
    if reference is None:
        (times,), board = _timed((engine,), cubes, limit, watch)
        return Measured(times, bundle.engine.describe(), peak_memory_mib(), board, metrics_by)
    # PyTorch alone takes more than a flight computer may have: what counts is the engine's own.
    peak = peak_memory_mib()
    with _pytorch(bundle, reference, threads) as opened:
        pytorch = _frame_timer(bundle, opened)
        with console.progress("warming up PyTorch") as moved:
            for index in range(warmup):
                moved(index, warmup)
                pytorch(cubes[index % len(cubes)])
        (ours, theirs), board = _timed((engine, pytorch), cubes, limit, watch)
        described = opened.describe()
    pairs = list(zip(ours, theirs, strict=True))
    comparison = Comparison(
        theirs,
        float(np.median([b.total / a.total for a, b in pairs])),
        float(np.median([b.engine / a.engine for a, b in pairs])),
        described,
    )
    return Measured(ours, bundle.engine.describe(), peak, board, metrics_by, comparison)


def as_json(manifest: Manifest, measured: Measured, before: Reading) -> dict[str, Any]:
    """What `--json` tells of a benchmark; times in ms, memory in MiB."""
    pytorch = measured.pytorch
    latency = latency_ms(measured.times)
    return {
        "precision": _precision(manifest, measured),
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


def latency_ms(times: Sequence[Times]) -> dict[str, float]:
    """Percentiles (linear between frames) and mean of the frames' latencies in ms, and how many there were."""
    totals = np.array([t.total for t in times]) * 1000
    figures = {f"p{p}": float(v) for p, v in zip(PERCENTILES, np.percentile(totals, PERCENTILES), strict=True)}
    return {**figures, "mean": float(totals.mean()), "frames": len(times)}


def split_ms(times: Sequence[Times]) -> dict[str, float]:
    """Median of every step in ms."""
    return {step: float(np.median([getattr(t, step) for t in times])) * 1000 for step in STEPS}


def _precision(manifest: Manifest, measured: Measured) -> str:
    """Types that were computed in: another engine than the target's may use others than the manifest says."""
    return measured.description.get("computes in", manifest.precision.chosen)


def show(manifest: Manifest, measured: Measured, before: Reading) -> None:
    """The tables for people."""
    size = plane_text(manifest.signature.measured)
    told = measured.description
    console.say(f"engine     {told['engine']} {told['version']}, {told['device']}")
    console.say(f"precision  {_precision(manifest, measured)}; metrics by the {measured.metrics_by}")
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


def _frame_timer(bundle: Bundle, engine: Engine) -> Callable[[Float32], Times]:
    """Restores a frame as `Bundle.restore` does, in any engine, and says where the time went."""
    timed = _Timed(engine)
    restorer = Bundle(bundle.path, bundle.manifest, timed, {}, bundle.prompts)

    def restore(cube: Float32) -> Times:
        began = time.perf_counter()
        prompts = bundle.prompts(cube)
        known = time.perf_counter()
        restorer.restore(cube, prompts)
        ended = time.perf_counter()
        return Times(known - began, timed.began - known, timed.ended - timed.began, ended - timed.ended)

    return restore


def _timed(
    ways: Sequence[Callable[[Float32], Times]], cubes: Sequence[Float32], limit: tuple[int, float], watch: BoardWatch
) -> tuple[list[tuple[Times, ...]], Watched]:
    """Times of every way, on the same frames in turn, and what the board told all the while.

    Which of the ways goes first changes from frame to frame.
    """
    frames, seconds = limit
    found: list[list[Times]] = [[] for _ in ways]
    watch.restart()
    began = time.monotonic()
    with console.progress("timing") as moved:
        for index in range(frames):
            if index and time.monotonic() - began >= seconds:
                break
            moved(index, frames)
            order = range(len(ways)) if index % 2 == 0 else reversed(range(len(ways)))
            for way in order:
                found[way].append(ways[way](cubes[index % len(cubes)]))
        # At once: a board that rests for a moment has other clocks.
        board = watch.watched()
    return [tuple(times) for times in found], board


@contextmanager
def _pytorch(bundle: Bundle, asked: Reference, threads: int | None) -> Iterator[Engine]:
    """The network in PyTorch, with the engine's number of threads."""
    torch, networks = ground("torch"), ground("export.networks")
    with console.progress("loading the checkpoint"):
        net = networks.load_checkpoint(asked.checkpoint, **bundle.manifest.network.options)
    # As `deploy check` does: another network's times say nothing of this bundle.
    from .check import refuse_other_network

    refuse_other_network(bundle, net)
    size, usual = bundle.manifest.signature.measured.size, torch.get_num_threads()
    torch.set_num_threads(threads or available_cores())
    try:
        kind = ground("export.torch_engine").TorchEngine
        with console.progress("preparing PyTorch"):
            engine = kind(net, *size, asked.device, asked.form, asked.precision)
        with engine:
            yield engine
    finally:
        torch.set_num_threads(usual)


def _picture(measured: Measured) -> dict[str, bytes]:
    """{file: PNG}, or nothing, said aloud, where matplotlib is not installed."""
    from .bench_picture import latency_plot

    series = {"engine": [1000 * t.total for t in measured.times]}
    if measured.pytorch is not None:
        series["PyTorch"] = [1000 * t.total for t in measured.pytorch.times]
    try:
        return {"bench.png": latency_plot(series)}
    except MachineError as error:
        console.warn(f"no picture is drawn: {error.one_line()}")
        return {}
