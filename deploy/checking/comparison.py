"""What `deploy check` measures: every variant of a bundle and PyTorch on the same degraded cubes."""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from calibration import agreement
from calibration.agreement import Cost, Routing
from calibration.degradations import lost
from calibration.evaluation import known_mean, mean_quality
from calibration.half_arithmetic import half_arithmetic
from calibration.measuring import bands_measured, fitting
from calibration.parting import Parting, parting
from calibration.products import int8_share
from calibration.quality import Quality, quality
from export.networks import Network
from export.onnx import Probe
from export.torch_engine import TorchEngine
from runtime.arrays import Float32
from runtime.bundle import Bundle
from runtime.bundle_files import verified_bundle
from runtime.engines import CPU_ENGINES, GPU_ENGINES, PORTABLE, EngineOptions, open_engine
from runtime.errors import GateError, MachineError
from runtime.metrics import prompt_metrics
from runtime.parity import Parity
from runtime.precisions import PRECISIONS, VARIANTS, computes_half
from runtime.prompts import Prompts, differences
from runtime.restore import Infer, Restored, restore_cube
from runtime.signature import Signature
from runtime.tiles import Tile, Tiling
from runtime.trust import Trust

from .. import console
from .half import in_half
from .probes import measuring, simulated_probes

WORST_TILES = 5


@dataclass(frozen=True)
class TaskResult:
    """One degradation, restored by a variant and by PyTorch through the same tiles, blending and metrics.

    Attributes:
        input, engine, pytorch: quality against the truth, means over cubes; over the lost bands where bands were lost.
            Of the input None where it is no such cube.
        untiled: quality of PyTorch on the whole cube at once.
        max_difference: largest difference of engine and PyTorch, as a share of PyTorch's range.
        routing: how often both chose the same experts.
    """

    input: Quality | None
    engine: Quality
    pytorch: Quality
    untiled: Quality
    max_difference: float
    routing: Routing

    @property
    def psnr_drop_db(self) -> float:
        """What the engine loses of PyTorch's PSNR, in dB."""
        return self.pytorch.psnr - self.engine.psnr

    @property
    def sam_rise_deg(self) -> float:
        """What the engine adds to PyTorch's spectral angle, in degrees."""
        return self.engine.sam - self.pytorch.sam

    @property
    def tiled(self) -> bool:
        """Whether PyTorch restored a cube in tiles, and as a whole beside."""
        return self.untiled != self.pytorch

    @property
    def tiling_drop_db(self) -> float:
        """What cutting into tiles costs PyTorch itself, in dB."""
        return self.untiled.psnr - self.pytorch.psnr


@dataclass(frozen=True)
class Case:
    """The cubes of one degradation, for pictures.

    Attributes:
        degraded: None where what is measured is no such cube.
        routing: experts' weights, empty without experts.
        others: those of the variants that were not chosen.
    """

    task: str
    degraded: Float32 | None
    restored: Float32
    truth: Float32
    routing: Float32
    pytorch: Float32 | None = None
    others: Mapping[str, Float32] = field(default_factory=dict)


@dataclass(frozen=True)
class WorstTile:
    """A tile that a variant restores least like PyTorch: RMS of the difference as a share of PyTorch's range."""

    cube: str
    task: str
    line: int
    sample: int
    distance: float


@dataclass(frozen=True)
class Variant(Cost):
    """A variant and what it costs.

    Attributes:
        precision: of the graph.
        runs_in: what computed it here.
        tasks: task -> result.
        routing: over all tasks.
        max_difference: of all tasks.
        worst: tiles, the worst first.
        parting: where it parts from the float32 graph; None for that one, and where no graph is at hand.
        int8_mac_share: share of the multiply-adds in int8.
    """

    precision: str
    runs_in: str
    tasks: Mapping[str, TaskResult]
    routing: Routing
    max_difference: float
    worst: tuple[WorstTile, ...]
    parting: Parting | None
    int8_mac_share: float


CLOSE_GAP = 5e-5
"""Between scores of a mask: closer ones may swap in float32."""


@dataclass(frozen=True)
class Comparison:
    """All that was measured.

    Attributes:
        chosen: the precision that flies.
        variants: by precision.
        cases: the first cube's, one per task.
        margins: task -> by how much PyTorch's last chosen expert was ahead, [tiles * layers].
        cubes: names.
        metrics_apart: metric -> how far what flies is from NumPy, on a frame of every degraded cube, at most (see
            `runtime.prompts.differences`); empty where NumPy flies.
        gaps: task -> how near the closest of PyTorch's choices between scores was to another one, where the network
            makes such: below `CLOSE_GAP` a difference may be a choice that rounding swapped, and no error.
        doubts: about the cubes' numbers.
        parity: what of the network's graph is held against PyTorch.
    """

    chosen: str
    variants: Mapping[str, Variant]
    cases: tuple[Case, ...]
    margins: Mapping[str, Float32]
    cubes: tuple[str, ...]
    metrics_apart: Mapping[str, float] = field(default_factory=dict)
    gaps: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    parity: Parity = "elements"


@dataclass(frozen=True)
class _Way:
    """How a cube goes through: what restores a frame, of what signature, the overlap, what computes it, and prompts."""

    infer: Infer
    signature: Signature
    overlap: int
    runs_in: str
    prompts: Prompts


@dataclass
class _Tally:
    """What a variant did so far, for one task."""

    before: list[Quality | None] = field(default_factory=list)
    rows: list[tuple[Quality, Quality, Quality]] = field(default_factory=list)
    difference: float = 0.0
    routing: list[Routing] = field(default_factory=list)


def compare(
    bundle: Bundle,
    net: Network,
    cubes: Iterator[tuple[str, Float32]],
    total: int,
    tasks: tuple[str, ...],
    wanted: tuple[str, ...],
    seed: int,
    *,
    of_files: bool = False,
    pictured: bool = True,
    trust: Trust | None = None,
) -> Comparison:
    """Degrade every cube, restore it by PyTorch and by every variant, and measure.

    Args:
        bundle: opened; its engine runs the variant that flies.
        net: the network that it was built from.
        cubes: name and clean cube [bands, lines, samples] in the unit range, one after the other.
        total: how many.
        tasks: degradations.
        wanted: variants besides the one that flies, where the bundle has them; fp16 is derived where it has not.
        seed: of the degradations.
        of_files: the cubes have names of their own, which go into the seed.
        pictured: keep the first cube's results.
        trust: whose signature the bundle needs, as it did when it was opened.

    Raises:
        GateError: the engine that flies failed on a cube.
    """
    signature = bundle.manifest.signature
    way = measuring(net, *signature.measured.size)
    chosen = bundle.choice.precision
    graphs = _graphs(bundle.path, net, wanted, trust)
    tallies: dict[str, dict[str, _Tally]] = {}
    tiles: dict[str, list[WorstTile]] = {}
    margins: dict[str, list[Float32]] = {task: [] for task in tasks}
    kept: list[Case] = []
    names: list[str] = []
    probes: dict[str, tuple[float, Probe]] = {}
    metrics_apart: dict[str, float] = {}
    gaps: dict[str, float] = {}
    with ExitStack() as stack:
        ways = _ways(bundle, graphs, wanted, stack)
        with console.progress("checking") as moved:
            for number, (name, clean) in enumerate(cubes):
                truth = fitting(signature, clean)
                names.append(name)
                for place, task in enumerate(tasks):
                    moved(number * len(tasks) + place, total * len(tasks))
                    # A cube is degraded alike, whichever others are checked with it.
                    seeds = (seed, place, *([zlib.crc32(name.encode())] if of_files else []))
                    degraded = way.measured(task, truth, np.random.default_rng(seeds))
                    bands = bands_measured(task, degraded, truth)
                    own = _by_pytorch(bundle, net, degraded, task)
                    margins[task].append(own.margins.ravel())
                    if own.gap is not None:
                        gaps[task] = min(own.gap, gaps.get(task, own.gap))
                    before = quality(degraded, truth, bands) if way.measure is None else None
                    after, untiled = (quality(cube, truth, bands) for cube in (own.cube, own.untiled))
                    for metric, value in _metrics_apart(bundle, degraded).items():
                        metrics_apart[metric] = max(value, metrics_apart.get(metric, 0.0))
                    span = float(np.ptp(own.cube)) or 1.0
                    restored = _by_all(bundle, ways, degraded, task)
                    for precision, done in restored.items():
                        cube = np.asarray(done.cube, np.float32)
                        tally = tallies.setdefault(precision, {}).setdefault(task, _Tally())
                        tally.before.append(before)
                        tally.rows.append((quality(cube, truth, bands), after, untiled))
                        apart = np.abs(cube - own.cube)
                        tally.difference = max(tally.difference, float(apart.max()) / span)
                        tally.routing.append(agreement.routing(_routing(done), own.routing, own.margins))
                        tiles.setdefault(precision, []).extend(_distances(bundle, apart, span, name, task))
                        worst = max(tiles[precision][-1].distance, probes.get(precision, (0.0,))[0])
                        if precision not in probes or worst > probes[precision][0]:
                            probes[precision] = (worst, _probe(bundle, degraded, tiles[precision][-1], task))
                    if number == 0 and pictured:
                        shown = degraded if way.measure is None else None
                        kept.append(_case(task, shown, truth, restored, chosen, own.cube))
    return Comparison(
        chosen,
        {
            precision: _variant(
                precision, ways[precision].runs_in, of_task, tiles[precision], graphs, probes[precision][1]
            )
            for precision, of_task in tallies.items()
            if precision in ways
        },
        tuple(kept),
        {task: np.concatenate(values) for task, values in margins.items()},
        tuple(names),
        metrics_apart,
        gaps,
        parity=net.parity,
    )


def _graphs(path: Path, net: Network, wanted: tuple[str, ...], trust: Trust | None) -> dict[str, bytes]:
    """Variant -> its graph; fp16 rewritten from the float32 graph where it is wanted and not there."""
    bundle = verified_bundle(path, trust)
    manifest = bundle.manifest
    graphs = {name: bundle.files[inner] for name, inner in manifest.graphs.items()}
    halves = "fp16" in wanted and not net.architecture.float32_only(net.module)
    if halves and "fp16" not in graphs and "fp32" in graphs:
        try:
            probes = simulated_probes(net, manifest.signature.measured.size, manifest.wavelengths or ())
            graphs["fp16"] = in_half(graphs["fp32"], "fp16", probes, net)
        except MachineError as error:
            console.warn(f"fp16 is left out: {error.problem}")
    return graphs


def _ways(bundle: Bundle, graphs: Mapping[str, bytes], wanted: tuple[str, ...], stack: ExitStack) -> dict[str, _Way]:
    m = bundle.manifest
    chosen, signature, overlap = bundle.choice.precision, m.signature, m.overlap
    loaded = bundle.engine.describe()
    ways: dict[str, _Way] = {}
    for name in dict.fromkeys((*VARIANTS, chosen)):
        on_cpu = loaded["engine"] in CPU_ENGINES
        half = computes_half(name, m.target.engine in GPU_ENGINES)
        if name == chosen and not (half and on_cpu):
            computes = f"{loaded['engine']}, {loaded['computes in']}"
            ways[name] = _Way(bundle.engine.infer, signature, overlap, computes, bundle.prompts)
        elif name in graphs and (name in wanted or name == chosen):
            data, runs_in, precision = graphs[name], loaded["engine"] if on_cpu else PORTABLE, name
            if half:
                # No CPU engine rounds like FP16 by itself.
                data = half_arithmetic(data)
                runs_in, precision = PORTABLE, "fp32"
            options = EngineOptions(m.target.threads, precision, cost=m.cost)
            try:
                engine = stack.enter_context(open_engine(runs_in, data, signature, options))
            except MachineError as error:
                if name == chosen:
                    raise
                console.warn(f"{name}, which does not fly, is left out: {error.problem}")
                continue
            computes = "FP16's arithmetic in float32" if half else engine.describe()["computes in"]
            prompts = bundle.prompts if name == chosen else bundle.prompts.on_host()
            ways[name] = _Way(engine.infer, signature, overlap, f"{runs_in}, {computes}", prompts)
    return ways


@dataclass(frozen=True, eq=False)
class _Own:
    """What PyTorch makes of a cube, in tiles and whole."""

    cube: Float32
    routing: Float32
    margins: Float32
    untiled: Float32
    gap: float | None


def _by_pytorch(bundle: Bundle, net: Network, degraded: Float32, task: str) -> _Own:
    signature, prompts = bundle.manifest.signature, bundle.prompts.on_host()
    frame = signature.measured.size
    engine = TorchEngine(net, *frame)
    margins: list[Float32] = []
    gaps: list[float] = []

    def infer(feeds: Probe) -> Probe:
        made: Probe
        made, leads = engine.infer_with_margins(feeds)
        margins.append(leads)
        if (gap := engine.gap(feeds)) is not None:
            gaps.append(gap)
        return made

    done = _restored(degraded, _Way(infer, signature, bundle.manifest.overlap, "pytorch", prompts), task)
    cube, routing = np.asarray(done.cube, np.float32), _routing(done)
    leads = np.stack(margins).reshape(routing.shape[:-1]) if routing.size else np.zeros(0, np.float32)
    alone = signature.tiling == "fixed" or net.architecture.size(net.module) is not None
    if alone or (degraded.shape[1] <= frame[0] and degraded.shape[2] <= frame[1]):
        return _Own(cube, routing, leads, cube, min(gaps, default=None))
    whole = TorchEngine(net, *net.frame(*degraded.shape[1:]))
    untiled = _restored(degraded, _Way(whole.infer, whole.signature, 0, "pytorch", prompts), task)
    return _Own(cube, routing, leads, np.asarray(untiled.cube, np.float32), min(gaps, default=None))


def _routing(done: Restored) -> Float32:
    """The experts' weights of every tile; empty without experts."""
    return next(iter(done.side.values()), np.zeros((0, 0), np.float32))


def _by_all(bundle: Bundle, ways: dict[str, _Way], degraded: Float32, task: str) -> dict[str, Restored]:
    """What every variant restores; one that does not fly and fails is left out from here on."""
    done: dict[str, Restored] = {}
    for precision, way in list(ways.items()):
        try:
            done[precision] = _restored(degraded, way, task)
        except MachineError as error:  # noqa: PERF203
            if precision == bundle.choice.precision:
                raise GateError(
                    f"the engine failed on {task}: {error.problem}",
                    file=bundle.path,
                    key=error.key,
                    value=error.value,
                    remedy="do not fly this bundle on this machine",
                ) from error
            console.warn(f"{precision}, which does not fly, is left out: it failed on {task}: {error.problem}")
            del ways[precision]
    return done


def _restored(cube: Float32, way: _Way, task: str) -> Restored:
    prompts = way.prompts.for_task(task)
    holes = lost(task, cube) if way.signature.fills else None
    return restore_cube(cube, way.infer, way.signature, overlap=way.overlap, prompts=prompts, missing=holes)


def _metrics_apart(bundle: Bundle, degraded: Float32) -> dict[str, float]:
    """How far the metrics' graph is from NumPy, on the first frame of the first bands; nothing without a graph."""
    signature = bundle.manifest.signature
    metrics = signature.metrics
    if metrics is None or bundle.prompts.by(signature.measured.shape[1:]) == "host":
        return {}
    part = degraded[: signature.measured.bands]
    tiling = _tiling(bundle, part)
    frame = tiling.cut(part, tiling.tiles()[0])[0]
    return differences(bundle.prompts.metrics(frame), prompt_metrics(frame, metrics.of), metrics.of)


def _tiling(bundle: Bundle, cube: Float32) -> Tiling:
    """Of a measured cube, or of a restored one."""
    return Tiling((cube.shape[1], cube.shape[2]), bundle.manifest.signature.measured.size, bundle.manifest.overlap)


def _distances(bundle: Bundle, apart: Float32, span: float, name: str, task: str) -> list[WorstTile]:
    """The tiles of a cube, the least like PyTorch last."""
    free = bundle.manifest.signature.tiling == "free"
    tiles = _tiling(bundle, apart).tiles() if free else (Tile(0, 0, *apart.shape[1:]),)
    found = []
    for tile in tiles:
        part = apart[:, tile.line : tile.line + tile.lines, tile.sample : tile.sample + tile.samples]
        distance = float(np.sqrt(np.mean(np.square(part, dtype=np.float64)))) / span
        found.append(WorstTile(name, task, tile.line, tile.sample, distance))
    return sorted(found, key=lambda t: t.distance)


def _probe(bundle: Bundle, degraded: Float32, worst: WorstTile, task: str) -> Probe:
    """The frame of a tile, of the first bands where there are more than the network's, and the cube's prompts."""
    measured = bundle.manifest.signature.measured
    part = degraded[: measured.bands]
    tiling = _tiling(bundle, part)
    tile = next(t for t in tiling.tiles() if (t.line, t.sample) == (worst.line, worst.sample))
    return {measured.name: tiling.cut(part, tile), **bundle.prompts.on_host().for_task(task)(part)}


def _case(
    task: str, degraded: Float32 | None, truth: Float32, restored: Mapping[str, Restored], chosen: str, pytorch: Float32
) -> Case:
    cubes = {name: np.asarray(done.cube, np.float32) for name, done in restored.items()}
    others = {name: cube for name, cube in cubes.items() if name != chosen}
    return Case(task, degraded, cubes[chosen], truth, _routing(restored[chosen]), pytorch, others)


def _variant(
    precision: str,
    runs_in: str,
    tallies: Mapping[str, _Tally],
    tiles: list[WorstTile],
    graphs: Mapping[str, bytes],
    probe: Probe,
) -> Variant:
    tasks = {}
    for task, tally in tallies.items():
        engine, pytorch, untiled = (mean_quality(list(column)) for column in zip(*tally.rows, strict=True))
        of_task = sum(tally.routing, Routing())
        tasks[task] = TaskResult(known_mean(tally.before), engine, pytorch, untiled, tally.difference, of_task)
    routing = sum((result.routing for result in tasks.values()), Routing())
    largest = max(result.max_difference for result in tasks.values())
    parted, share = None, 0.0
    if precision in graphs and PRECISIONS[precision].graph != "fp32":
        # FP16 is computed as such.
        comparable = half_arithmetic(graphs[precision])
        parted = parting(graphs["fp32"], comparable, probe, PRECISIONS[precision].own)
        share = int8_share(onnx.load_model_from_string(graphs[precision]))
    worst = tuple(sorted(tiles, key=lambda t: -t.distance)[:WORST_TILES])
    return Variant(precision, runs_in, tasks, routing, largest, worst, parted, share)
