"""The CPU engines on the 36.9 M parameter "options" DAMP at 256x256, in one run.

Eager PyTorch of the reference form; ONNX Runtime on plain dynamo exports of it (every expert for every frame): one as
our reference form is written, and one of opset 18 with its norms written out by hand, as the public reference has them;
ONNX Runtime and OpenVINO on our graph. `python -m benchmarks.engines [LINESxSAMPLES]`, about ten minutes. Bars: ONNX
Runtime 1.8 times and the best float32 engine 2.5 times as fast as PyTorch, ONNX Runtime 1.5 times as fast on our graph
as on a plain one, at most 2,600 nodes, export in at most 60 s.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from types import MethodType
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deploy.checking.probes import measuring
from deploy.commands.options import parse_size
from export.networks import network_of
from export.networks.damp import Damp, DampConfig
from export.networks.damp.attention import NORM_EPS, ChannelNorm
from export.networks.damp.blocks import ExpertMixture
from export.onnx import OPSET, count_nodes, export_graph
from export.torch_engine import TorchEngine
from runtime.engines import EngineOptions, open_engine
from runtime.simulation.simulator import simulate_scene

ROUNDS = 5
BARS = {"ONNX Runtime": 1.8, "OpenVINO": 2.5}
PLAIN_BAR, NODES_BAR, SECONDS_BAR = 1.5, 2600, 60.0
PLAIN: dict[str, dict[str, Any]] = {
    "plain export": {},
    "plain export, opset 18, norms by hand": {"opset": 18, "by_hand": True},
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", metavar="LINESxSAMPLES", nargs="?", default="256x256")
    size = parse_size(parser.parse_args().size)
    assert size is not None
    lines, samples = size["lines"], size["samples"]
    torch.manual_seed(0)
    net = network_of(Damp(DampConfig()))
    way = measuring(net, lines, samples)
    scene = simulate_scene(0, way.signature.measured.bands, lines, samples).truth
    probe = way.feeds(scene + np.random.default_rng(0).normal(0, 0.2, scene.shape).astype(np.float32))
    eager = TorchEngine(net, lines, samples)
    began = time.perf_counter()
    graph = export_graph(net, lines, samples)
    seconds = time.perf_counter() - began
    engines: dict[str, Callable[[], object]] = {"eager PyTorch": lambda: eager.infer(probe)}
    told = []
    for label, given in PLAIN.items():
        torch.manual_seed(0)
        other = Damp(DampConfig()).eval()
        plain, took = plain_export(other, *map(torch.from_numpy, probe.values()), **given)
        told.append(f"{label}: {count_nodes(plain)} nodes, export {took:.0f} s")
        session = onnxruntime.InferenceSession(plain, providers=["CPUExecutionProvider"])
        engines[label] = lambda session=session: session.run(None, probe)
    for label, name, precision in (
        ("ONNX Runtime", "onnxruntime", "fp32"),
        ("OpenVINO", "openvino", "fp32"),
        ("OpenVINO, bf16", "openvino", "bf16"),
    ):
        opened = open_engine(name, graph.data, way.signature, EngineOptions(precision=precision))
        engines[label] = lambda opened=opened: opened.infer(probe)
    taken: dict[str, list[float]] = {label: [] for label in engines}
    for number in range(ROUNDS + 1):
        for label, run in engines.items():
            began = time.perf_counter()
            run()
            if number:
                taken[label].append(time.perf_counter() - began)
    threads = torch.get_num_threads()
    table = Table(title=f'DAMP "options", 36.9 M parameters, {lines}x{samples}, {threads} threads, {ROUNDS} rounds')
    for column in ("engine", "s a frame", "times PyTorch", "bar"):
        table.add_column(column)
    for label, times in taken.items():
        pairs = zip(taken["eager PyTorch"], times, strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        table.add_row(label, f"{statistics.median(times):.2f}", f"{ratio:.2f}", f"{BARS.get(label, '')}")
    Console().print(table)
    for label in PLAIN:
        pairs = zip(taken[label], taken["ONNX Runtime"], strict=True)
        print(f"our graph against {label}: {statistics.median(a / b for a, b in pairs):.2f} times (bar {PLAIN_BAR})")
    print(f"nodes: {graph.nodes} (bar {NODES_BAR:,}); export: {seconds:.1f} s (bar {SECONDS_BAR:g} s)")
    print("\n".join(told))


if __name__ == "__main__":
    main()
