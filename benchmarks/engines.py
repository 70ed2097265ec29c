"""The CPU engines on every kind of network, each in one run: `python -m benchmarks.engines [NETWORK ...]`.

`damp`, about ten minutes: the 36.9 M parameter "options" DAMP at 256x256. Eager PyTorch of the reference form; ONNX
Runtime on plain dynamo exports of it (every expert for every frame): one as our reference form is written, and one of
opset 18 with its norms written out by hand, as the public reference has them; ONNX Runtime and OpenVINO on our graph.
Bars: ONNX Runtime and OpenVINO 3 times as fast as PyTorch, ONNX Runtime 1.5 times as fast on
our graph as on a plain one, under 2,000 nodes, export in at most 20 s of CPU time.

`experts`, ten minutes: the same network and damp-small, all experts weighted by their gates against the chosen ones
alone, whose weights are gathered; in float32 and in INT8, and what RTX's builder makes of it where it is installed.
Bar: 1.08 times as fast in one of the engines, and no loss in the other.

`dfpir`, a minute: the 31.1 M DFPIR at 256x256; bar: ONNX Runtime 1.5 times as fast as eager PyTorch.
`dpmambair`, a minute: dpmambair-tiny at 128x128, its scan in PyTorch also one pixel after the other; bar: ONNX Runtime
10 times as fast as that.
`mst`, a minute: MST-S at 256x256 through a random mask; bar: ONNX Runtime 1.8 times as fast as eager PyTorch.
`bisrnet`, a minute: the same of BiSRNet, without a bar.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import MethodType
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from rich.table import Table
from torch import Tensor

from benchmarks.int8 import in_int8
from benchmarks.timing import seconds, show
from calibration.typed import half_precision
from deploy.checking.probes import measuring
from export.networks import Network, load_checkpoint, network_of
from export.networks.bisrnet import Bisrnet, BisrnetConfig
from export.networks.cassi import Masked
from export.networks.damp import Damp, DampConfig
from export.networks.damp.attention import NORM_EPS, ChannelNorm
from export.networks.damp.blocks import ExpertMixture
from export.networks.dfpir import Dfpir, DfpirConfig, TextCode
from export.networks.dpmambair import DPMambaIR
from export.networks.mst import Mst, MstConfig
from export.onnx import OPSET, count_nodes, export_graph
from export.tensorrt.build import Request, build_engine
from export.torch_engine import TorchEngine
from runtime.engines import EngineOptions, open_engine
from runtime.engines.tensorrt_libraries import tensorrt_version
from runtime.errors import DeployError
from runtime.simulation.cassi import random_mask
from runtime.simulation.simulator import simulate_scene
from training.rgb.recipe import load_recipe

ROUNDS = 5
EAGER = "eager PyTorch"
PLAIN_BAR, NODES_BAR, SECONDS_BAR = 1.5, 2000, 20.0
PLAIN: dict[str, dict[str, Any]] = {
    "plain export": {},
    "plain export, opset 18, norms by hand": {"opset": 18, "by_hand": True},
}
OURS = (
    ("ONNX Runtime", "onnxruntime", "fp32"),
    ("OpenVINO", "openvino", "fp32"),
    ("OpenVINO, bf16", "openvino", "bf16"),
)
EXPERTS = ("dense", "gathered")
RECIPE = Path(__file__).parent.parent / "training" / "recipes" / "dpmambair-tiny.yaml"

Engines = dict[str, Callable[[], object]]
Taken = Mapping[str, list[float]]


def norm_by_hand(norm: ChannelNorm, x: Tensor) -> Tensor:
    """LayerNorm over channels as a mean, a variance and a quotient: the exporter does not see one operator in it."""
    y = x.permute(0, 2, 3, 1)
    mean, variance = y.mean(dim=-1, keepdim=True), y.var(dim=-1, keepdim=True, unbiased=False)
    return ((y - mean) / torch.sqrt(variance + NORM_EPS) * norm.body.weight + norm.body.bias).permute(0, 3, 1, 2)


def plain_export(
    net: Damp, frame: Tensor, metrics: Tensor, *, opset: int = OPSET, by_hand: bool = False
) -> tuple[bytes, float]:
    """What `torch.onnx.export(dynamo=True)` makes of the reference form, and the seconds it takes."""
    for module in net.modules():
        if isinstance(module, ExpertMixture):
            module.dense = True
        if by_hand and isinstance(module, ChannelNorm):
            module.forward = MethodType(norm_by_hand, module)
    began = time.perf_counter()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {"input_names": ["frame", "metrics"], "output_names": ["restored", "routing"]}
        program = torch.onnx.export(net, (frame, metrics), dynamo=True, opset_version=opset, verbose=False, **names)
    assert program is not None
    return program.model_proto.SerializeToString(), time.perf_counter() - began


def feeds_of(net: Network, lines: int, samples: int) -> dict[str, Any]:
    """What the first of its tasks on a scene makes a network take."""
    way = measuring(net, lines, samples)
    restored = way.signature.restored
    scene = simulate_scene(0, restored.bands, *restored.size).truth
    return dict(way.feeds(way.measured(way.tasks[0], scene, np.random.default_rng(0))))


def race(engines: Engines) -> Taken:
    """Seconds of `ROUNDS` runs of each, in turns, after one that does not count."""
    for run in engines.values():
        run()
    taken: dict[str, list[float]] = {label: [] for label in engines}
    for _ in range(ROUNDS):
        for label, run in engines.items():
            taken[label].append(seconds(run))
    return taken


def times(taken: Taken, label: str, base: str) -> float:
    """How many times as fast as the other."""
    return statistics.median(b / a for a, b in zip(taken[label], taken[base], strict=True))


def table(title: str, taken: Taken, base: str, bars: Mapping[str, float]) -> Table:
    made = Table(title=f"{title}, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    for column in ("engine", "s a frame", f"times {base}", "bar"):
        made.add_column(column)
    for label, spent in taken.items():
        ratio = f"{times(taken, label, base):.2f}"
        made.add_row(label, f"{statistics.median(spent):.3g}", ratio, f"{bars.get(label, '')}")
    return made


def of_network(net: Network, lines: int, samples: int) -> tuple[Engines, dict[str, Any], str]:
    """Eager PyTorch and every engine on our graph; their feeds; a line on the graph."""
    probe, eager = feeds_of(net, lines, samples), TorchEngine(net, lines, samples)
    began, worked = time.perf_counter(), time.process_time()
    graph = export_graph(net, lines, samples, "gathered")
    took, worked = time.perf_counter() - began, time.process_time() - worked
    told = f"nodes: {graph.nodes}; export: {took:.1f} s, {worked:.1f} s of CPU time"
    engines: Engines = {EAGER: lambda: eager.infer(probe)}
    alone = net.architecture.float32_only(net.module)
    for label, name, precision in OURS:
        if alone and precision != "fp32":
            continue
        opened = open_engine(name, graph.data, net.signature(lines, samples), EngineOptions(precision=precision))
        engines[label] = lambda opened=opened: opened.infer(probe)
    return engines, probe, told


def damp() -> None:
    torch.manual_seed(0)
    engines, probe, told = of_network(network_of(Damp(DampConfig())), 256, 256)
    lines = []
    for label, given in PLAIN.items():
        torch.manual_seed(0)
        other = Damp(DampConfig()).eval()
        plain, took = plain_export(other, *map(torch.from_numpy, probe.values()), **given)
        lines.append(f"{label}: {count_nodes(plain)} nodes, export {took:.0f} s")
        session = onnxruntime.InferenceSession(plain, providers=["CPUExecutionProvider"])
        engines[label] = lambda session=session: session.run(None, probe)
    taken = race(engines)
    for label in PLAIN:
        ratio = times(taken, "ONNX Runtime", label)
        lines.append(f"our graph against {label}: {ratio:.2f} times (bar {PLAIN_BAR})")
    title = 'DAMP "options", 36.9 M parameters, 256x256'
    show(
        table(title, taken, EAGER, {"ONNX Runtime": 3, "OpenVINO": 3}),
        f"{told} (bars {NODES_BAR:,}, {SECONDS_BAR:g} s)",
        *lines,
    )


def experts() -> None:
    torch.manual_seed(0)
    experts_of("options, 36.9 M", network_of(Damp(DampConfig())))
    experts_of("damp-small, 4.6 M", load_checkpoint("damp-small"))


def experts_of(title: str, net: Network) -> None:
    """Both forms in every engine and precision, in turns."""
    probe, signature, lines = feeds_of(net, 256, 256), net.signature(256, 256), []
    eager = TorchEngine(net, 256, 256).infer(probe)["restored"]
    engines: Engines = {}
    for form in EXPERTS:
        began = time.process_time()
        graph = export_graph(net, 256, 256, form)
        took = time.process_time() - began
        for precision, data in (("fp32", graph.data), ("int8", in_int8(graph.data, [probe]))):
            for label, name, _ in OURS[:2]:
                opened = open_engine(name, data, signature, EngineOptions(precision=precision))
                engines[f"{label}, {precision}, {form}"] = lambda opened=opened: opened.infer(probe)
                apart = np.abs(opened.infer(probe)["restored"] - eager).max() / np.ptp(eager)
                lines.append(f"{label}, {precision}, {form}: {apart:.1e} of the range from PyTorch")
        lines.append(f"{form}: {graph.nodes} nodes, {took:.0f} s of CPU time to export; {rtx_builds(graph.data)}")
    taken = race(engines)
    made = Table(title=f"{title}, 256x256, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    for column in ("engine", "dense, s", "gathered, s", "times"):
        made.add_column(column)
    for dense in (label for label in taken if label.endswith("dense")):
        gathered = dense.replace("dense", "gathered")
        spent = [f"{statistics.median(taken[label]):.3g}" for label in (dense, gathered)]
        made.add_row(dense.removesuffix(", dense"), *spent, f"{times(taken, gathered, dense):.2f}")
    show(made, *lines)


def rtx_builds(graph: bytes) -> str:
    """What TensorRT for RTX's builder says to the FP16 graph, for `rtx-40`."""
    if tensorrt_version("tensorrt-rtx") is None:
        return "RTX's builder is not installed"
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = build_engine(half_precision(graph).data, Request("tensorrt-rtx", "8.9", 4096), Path(folder))
        except DeployError as error:
            return f"RTX: {error.problem}"
    return f"RTX: an engine of {len(made.data) / 2**20:.0f} MiB in {made.seconds:.0f} s"


def dfpir() -> None:
    torch.manual_seed(0)
    module = Dfpir(DfpirConfig())
    # Any code gives an order of channels, and none costs another time.
    module.prompts = {
        "rain": TextCode(np.random.default_rng(0).standard_normal(module.config.text, np.float32), "Rain")
    }
    engines, _, told = of_network(network_of(module), 256, 256)
    show(table("DFPIR, 31.1 M parameters, 256x256", race(engines), EAGER, {"ONNX Runtime": 1.5}), told)


def dpmambair() -> None:
    torch.manual_seed(0)
    module = DPMambaIR(load_recipe(RECIPE).config)
    engines, _, told = of_network(network_of(module), 128, 128)
    eager = engines[EAGER]

    def sequential() -> None:
        with patch("export.networks.dpmambair.network.scan", one_by_one):
            eager()

    base = f"{EAGER}, scanned one by one"
    taken = race({base: sequential, **engines})
    show(table("dpmambair-tiny, 1.35 M parameters, 128x128", taken, base, {"ONNX Runtime": 10}), told)


def snapshot(title: str, module: Masked, bars: Mapping[str, float]) -> None:
    module.mask = torch.from_numpy(random_mask(0))
    net = network_of(module)
    engines, _, told = of_network(net, *net.frame(1, 1))
    show(table(f"{title}, {net.parameters / 1e6:.2f} M parameters, 256x256", race(engines), EAGER, bars), told)


def mst() -> None:
    torch.manual_seed(0)
    snapshot("MST-S", Mst(MstConfig((2, 2, 2))), {"ONNX Runtime": 1.8})


def bisrnet() -> None:
    torch.manual_seed(0)
    snapshot("BiSRNet", Bisrnet(BisrnetConfig(1, (1, 1, 1))), {})


def one_by_one(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, how: str) -> Tensor:
    """The scan as Mamba's reference has it: all decays and news at once, then a loop over pixels."""
    assert how == "euler"
    decay = torch.exp(delta[..., None] * a[:, None])
    news = (delta * x)[..., None] * b.transpose(1, 2)[:, None]
    state, made = torch.zeros_like(news[:, :, 0]), []
    for t in range(x.shape[-1]):
        state = decay[:, :, t] * state + news[:, :, t]
        made.append(torch.einsum("bdn,bn->bd", state, c[:, :, t]))
    return torch.stack(made, -1)


NETWORKS = {each.__name__: each for each in (damp, experts, dfpir, dpmambair, mst, bisrnet)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", metavar="NETWORK", nargs="*", help=f"of {', '.join(NETWORKS)}; all without")
    chosen = parser.parse_args().networks
    if unknown := set(chosen) - set(NETWORKS):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; give {', '.join(NETWORKS)}")
    for name in chosen or NETWORKS:
        NETWORKS[name]()


if __name__ == "__main__":
    main()
