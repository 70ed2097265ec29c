"""The time of a frame, in a bundle's engine and in PyTorch, in turn."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.arrays import Float32
from runtime.board import peak_memory_mib
from runtime.board_watch import BoardWatch, Watched
from runtime.bundle import Bundle
from runtime.bundle_files import stored_array, verified_bundle
from runtime.engines import Engine
from runtime.machine import available_cores
from runtime.simulation.materials import WAVELENGTH_RANGE
from runtime.simulation.simulator import simulate_scene

from .. import console

SCENES = 3
NOISE = 0.02
"""Standard deviation of what is added to simulated scenes, in the unit range: a sensor's frames are not smooth."""
PERCENTILES = (50, 90, 99)


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


def bench_frames(bundle: Path) -> list[Float32]:
    """Frames of a bundle's size, float32 [bands, lines, samples] in the unit range: the golden one and simulated ones.

    Raises:
        BundleError: the bundle is not whole.
    """
    contents = verified_bundle(bundle)
    manifest = contents.manifest
    measured = manifest.signature.measured
    file = manifest.golden.arrays[measured.name]
    golden, size = stored_array(contents.files[file], bundle / file, measured.shape), measured.shape[1:]
    low, high = WAVELENGTH_RANGE
    told = manifest.wavelengths
    fits = told and len(told) == measured.bands and all(low <= nanometres <= high for nanometres in told)
    known = told if fits else None
    cubes = [golden[0]]
    for seed in range(SCENES):
        truth = simulate_scene(seed, *size, known).truth
        noise = np.random.default_rng(seed).standard_normal(truth.shape, np.float32)
        cubes.append(np.ascontiguousarray(truth + np.float32(NOISE) * noise))
    return cubes


def measure(
    bundle: Bundle,
    cubes: Sequence[Float32],
    limit: tuple[int, float],
    warmup: int = 3,
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
    engine, metrics_by = _frame_timer(bundle, bundle.engine), bundle.prompts.by(cubes[0].shape)
    with BoardWatch() as watch:
        _warm_up("warming up", engine, cubes, warmup)
        if reference is None:
            (times,), board = _timed((engine,), cubes, limit, watch)
            return Measured(times, bundle.engine.describe(), peak_memory_mib(), board, metrics_by)
        # PyTorch alone takes more than a flight computer may have: what counts is the engine's own.
        peak = peak_memory_mib()
        with _pytorch(bundle, reference, threads) as opened:
            pytorch = _frame_timer(bundle, opened)
            _warm_up("warming up PyTorch", pytorch, cubes, warmup)
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


def _warm_up(label: str, way: Callable[[Float32], Times], cubes: Sequence[Float32], frames: int) -> None:
    with console.progress(label) as moved:
        for index in range(frames):
            moved(index, frames)
            way(cubes[index % len(cubes)])


def latency_ms(times: Sequence[Times]) -> dict[str, float]:
    """Percentiles (linear between frames) and mean of the frames' latencies in ms, and how many there were."""
    totals = np.array([t.total for t in times]) * 1000
    figures = {f"p{p}": float(v) for p, v in zip(PERCENTILES, np.percentile(totals, PERCENTILES), strict=True)}
    return {**figures, "mean": float(totals.mean()), "frames": len(times)}


def split_ms(times: Sequence[Times]) -> dict[str, float]:
    """Median of every step in ms."""
    return {step: float(np.median([getattr(t, step) for t in times])) * 1000 for step in STEPS}


def _frame_timer(bundle: Bundle, engine: Engine) -> Callable[[Float32], Times]:
    """Restores a frame as `Bundle.restore` does, in any engine, and says where the time went."""
    timed = _Timed(engine)
    restorer = Bundle(bundle.path, bundle.contents, timed, bundle.prompts, bundle.again)

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
    # Not of the flight install: here it is asked for by --checkpoint.
    import torch

    from export.networks import load_checkpoint
    from export.torch_engine import TorchEngine

    with console.progress("loading the checkpoint"):
        net = load_checkpoint(asked.checkpoint, **bundle.options)
    # As `deploy check` does: another network's times say nothing of this bundle.
    from .check import refuse_other_network

    refuse_other_network(bundle, net)
    size, usual = bundle.manifest.signature.measured.size, torch.get_num_threads()
    torch.set_num_threads(threads or available_cores())
    try:
        with console.progress("preparing PyTorch"):
            engine = TorchEngine(net, *size, asked.device, asked.form, asked.precision)
        with engine:
            yield engine
    finally:
        torch.set_num_threads(usual)
