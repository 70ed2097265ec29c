"""Steps of `benchmarks.gpu` that open engines: what is there, whether it computes what it should, and how fast."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from calibration.half_arithmetic import half_arithmetic
from calibration.products import int8_share
from calibration.typed import half_precision
from deploy.checking.probes import simulated_probes
from export.networks import load_checkpoint
from export.onnx import Probe
from export.torch_engine import FORMS, TorchEngine
from runtime.board import read_board
from runtime.bundle import load_bundle
from runtime.bundle_files import verified_bundle
from runtime.engines import Engine, EngineOptions, available_engines, open_engine
from runtime.engines.cuda import open_cuda
from runtime.errors import GateError
from runtime.machine import available_cores
from runtime.precisions import PRECISIONS

from ..int8 import in_int8
from .commands import TARGETS
from .run import Found, Setting

Float32 = NDArray[np.float32]
Work = Callable[[int], object]
"""Restores the frame of a number, and waits for it."""


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# What is there


def environment(setting: Setting, found: Found) -> None:
    """Versions, the card, and its ceilings: what no engine can be faster than."""
    with found.line("machine") as row:
        row |= {"python": platform.python_version(), "cores": available_cores(), "system": platform.platform()}
        row |= {"torch": torch.__version__, "its CUDA": str(torch.version.cuda)}
    with found.line("engines") as row:
        row |= {name: version or "not installed" for name, version in available_engines().items()}
    if not setting.cpu:
        with found.line("CUDA") as row:
            cuda = open_cuda()
            card = cuda.device()
            row |= {"card": card.model, "compute capability": card.sm, "driver for": cuda.driver_version}
            row |= {"runtime": cuda.version, "library": cuda.library}
        with found.line("card") as row:
            row |= read_board().as_json()["gpus"][0]
    with found.line("ceilings") as row:
        size, floats = (512, 1 << 22) if setting.cpu else (8192, 1 << 29)
        a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
        row["bf16 product TFLOP/s"] = 2 * size**3 / each(lambda: a @ b) / 1e12
        big, copied = (torch.zeros(floats, device=setting.device) for _ in range(2))
        row["copy TB/s"] = 2 * big.nbytes / each(lambda: copied.copy_(big)) / 1e12


def each(work: Callable[[], object], runs: int = 10) -> float:
    """Seconds of one of several runs that the device is given at once; the median of five times."""
    taken = []
    for _ in range(6):
        synchronise()
        began = time.perf_counter()
        for _ in range(runs):
            work()
        synchronise()
        taken.append((time.perf_counter() - began) / runs)
    return statistics.median(taken[1:])


# Whether it computes what it should


class Truth:
    """The packaged network, the probes of a build, and what PyTorch in float32 on the CPU makes of them."""

    def __init__(self, setting: Setting) -> None:
        self.net = load_checkpoint(setting.model)
        self.size, self.device = (setting.size, setting.size), setting.device
        self.signature = self.net.signature(*self.size)
        self.probes: list[Probe] = simulated_probes(self.net, self.size, ())
        reference = TorchEngine(self.net, *self.size)
        self.results = [reference.infer(probe) for probe in self.probes]

    def pytorch(self, form: str, precision: str) -> TorchEngine:
        """PyTorch on the device that is looked at."""
        return TorchEngine(self.net, *self.size, self.device, form, precision)

    def from_host(self, engine: Engine) -> Work:
        """An engine with arrays of the host, in and out."""
        return lambda index: engine.infer(self.probes[index % len(self.probes)])

    def compare(self, engine: Engine, precision: str, row: dict[str, Any]) -> None:
        """How far an engine is off. Raises GateError beyond a build's limit, or for other experts except in int8."""
        pairs = [(engine.infer(probe), other) for probe, other in zip(self.probes, self.results, strict=True)]
        restored, side = self.signature.restored.name, self.signature.side
        row["largest difference"] = max(difference(one[restored], other[restored]) for one, other in pairs)
        same = (np.array_equal(one[s.name] > 0, other[s.name] > 0) for one, other in pairs for s in side)
        row["same experts"] = all(same)
        if row["largest difference"] > PRECISIONS[precision].limit or not (row["same experts"] or precision == "int8"):
            raise GateError("it does not compute what PyTorch does", key=precision, value=row["largest difference"])


def difference(one: Float32, other: Float32) -> float:
    """Largest, as a share of the second's range."""
    return float(np.abs(one - other).max() / np.ptp(other))


def parity(setting: Setting, found: Found) -> None:
    """PyTorch on the device, eager, against itself in float32 on the CPU."""
    truth = Truth(setting)
    ways = [("reference", "fp32"), *(("deployment", p) for p in dict.fromkeys(("fp32", setting.half, "bf16")))]
    for form, precision in ways:
        with found.line(f"{form} form, {precision}") as row:
            truth.compare(truth.pytorch(form, precision), precision, row)


def engines(setting: Setting, found: Found) -> None:
    """Bundles in the toolkit's engine: golden frame, probes, memory, and a cube in tiles as the CPU restores it."""
    truth = Truth(setting)
    frame = truth.probes[0][truth.signature.measured.name][0]
    cube = np.ascontiguousarray(np.tile(frame, (1, 2, 2))[:, : 3 * setting.size // 2, : 3 * setting.size // 2])
    for precision in TARGETS:
        with found.line(precision) as row:
            before = 0 if setting.cpu else used_mib()
            with load_bundle(setting.bundle(precision), engine=setting.engine) as bundle:
                row |= bundle.engine.describe()
                row["golden frame off by"] = bundle.self_test()
                row["of at most"] = bundle.choice.tolerance
                truth.compare(bundle.engine, precision, row)
                if not setting.cpu:
                    row["GPU MiB"] = used_mib() - before
                tiled = bundle.restore(cube).cube
            with load_bundle(setting.bundle(precision), engine="onnxruntime") as bundle:
                row["tiled cube off by"] = difference(tiled, bundle.restore(cube).cube)
            if row["tiled cube off by"] > PRECISIONS[precision].limit:
                raise GateError("a cube in tiles is not what the CPU restores", key=precision)


def used_mib() -> int:
    """Memory in use on the GPU, by everybody."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) >> 20


def int8(setting: Setting, found: Found) -> None:
    """Every product that may be in INT8, ranges from the probes, what is left in float32 or FP16; in turn with FP32."""
    truth = Truth(setting)
    single = verified_bundle(setting.bundle("fp32")).files["graphs/fp32.onnx"]
    ways: dict[str, dict[str, Work]] = {}
    with ExitStack() as stack:

        def add(name: str, graph: bytes, precision: str, row: dict[str, Any]) -> None:
            opened = open_engine(setting.engine, graph, truth.signature, EngineOptions(precision=precision))
            engine = stack.enter_context(opened)
            truth.compare(engine, precision, row)
            ways[name] = {"host": truth.from_host(engine)}

        with found.line("fp32") as row:
            add("fp32", single, "fp32", row)
        low = b""
        with found.line("int8, the rest fp32") as row:
            low = in_int8(single, truth.probes)
            row["multiply-adds in int8"] = int8_share(onnx.load_model_from_string(low))
            add("int8, the rest fp32", low, "int8", row)
        with found.line("int8, the rest fp16") as row:
            half = half_precision(low).data
            # A CPU has no FP16 kernels and would compute in float32.
            add("int8, the rest fp16", half_arithmetic(half) if setting.cpu else half, "int8", row)
        in_turns(found, ways, setting.turns)


# How fast


def latency(setting: Setting, found: Found) -> None:
    """PyTorch in its forms and the toolkit's engine, in turns: arrays of the host, and what lies on the device."""
    truth = Truth(setting)
    ways: dict[str, dict[str, Work]] = {}
    # What takes long comes last. A CPU has no graphs, and compiling once is enough there.
    forms = sorted(FORMS, key="compiled".__eq__)
    pairs = [(form, p) for form in forms for p in ("fp32", setting.half)]
    if setting.cpu:
        pairs = [pair for pair in pairs if pair[0] != "graph" and pair != ("compiled", setting.half)]
    with ExitStack() as stack:
        for precision in TARGETS:
            name = f"{setting.engine}, {precision}"
            with found.line(name) as row:
                bundle = stack.enter_context(load_bundle(setting.bundle(precision), engine=setting.engine))
                truth.compare(bundle.engine, precision, row)
                ways[name] = {"host": truth.from_host(bundle.engine), "device": bound(bundle.engine)}
        for form, precision in pairs:
            name = f"PyTorch, {form}, {precision}"
            with found.line(name, 0.7) as row:
                engine = truth.pytorch(form, precision)
                truth.compare(engine, precision, row)
                ways[name] = {"host": truth.from_host(engine), "device": tensors(engine, truth)}
        in_turns(found, ways, setting.turns)


def bound(engine: Any) -> Work:
    """ONNX Runtime's session alone: its inputs lie in its memory already, and nothing is fetched."""
    held = engine.session
    return lambda _: (held._session.run_with_iobinding(held._binding), held._memory.wait())


def tensors(engine: TorchEngine, truth: Truth) -> Work:
    """PyTorch with tensors that lie on the device."""
    given = [[torch.from_numpy(array).to(truth.device) for array in probe.values()] for probe in truth.probes]
    return lambda index: (engine.on_device(*given[index % len(given)]), synchronise())


def in_turns(found: Found, ways: dict[str, dict[str, Work]], most: int) -> None:
    """Time {line: {place: way}} frame by frame, which goes first changing; figures go to the lines."""
    taken = {(line, place): list[float]() for line, places in ways.items() for place in places}
    order = list(taken)
    with found.line("turns", 0.9) as row:
        ends = time.monotonic() + found.left / 2
        for turn in range(most):
            first = turn % len(order)
            for line, place in order[first:] + order[:first]:
                began = time.perf_counter()
                ways[line][place](turn)
                taken[line, place].append(time.perf_counter() - began)
            if time.monotonic() > ends:
                break
        row["turns"] = turn + 1
        for (line, place), seconds in taken.items():
            median, p99 = np.percentile(1e3 * np.array(seconds), (50, 99))
            found.lines[line][f"{place} ms"] = {"median": float(median), "p99": float(p99)}
