"""Export of the 36.9 M parameter "options" DAMP at 256x256: seconds, nodes, agreement, and speed of the graph.

`python -m benchmarks.export [LINESxSAMPLES]`; bar: 90 s.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import benchmarks.timing as timing
from deploy.options import parse_size
from export.networks.damp import Damp, DampConfig
from export.onnx import compare, export_graph
from export.torch_engine import TorchEngine, spec_of
from runtime.engines import open_engine
from runtime.metrics import prompt_metrics
from runtime.sources.simulator import simulate_scene

BAR_SECONDS = 90.0


def main() -> None:
    size = parse_size(sys.argv[1] if len(sys.argv) > 1 else "256x256") or {}
    lines, samples = size["lines"], size["samples"]
    torch.manual_seed(0)
    net = Damp(DampConfig()).eval()
    began = time.perf_counter()
    graph = export_graph(net, lines, samples)
    seconds = time.perf_counter() - began
    scene = simulate_scene(0, net.config.bands, lines, samples).truth
    frame = scene + np.random.default_rng(0).normal(0, 0.2, scene.shape).astype(np.float32)
    metrics = prompt_metrics(frame, net.config.metric_set)
    agreement = compare(net, graph, [(frame[None], metrics[None])])
    with open_engine("onnxruntime", graph.data, spec_of(net, lines, samples)) as engine:
        eager = TorchEngine(net, lines, samples)
        frames = timing.compare(
            "a frame",
            lambda: eager.infer(frame[None], metrics[None]),
            lambda: engine.infer(frame[None], metrics[None]),
            runs=3,
            warm_up=1,
        )
    torch_s, ort_s = statistics.median(frames.baseline), statistics.median(frames.candidate)
    table = Table(title=f'DAMP "options", 36.9 M parameters, {lines}x{samples}, {torch.get_num_threads()} threads')
    for column in ("measure", "value", "bar"):
        table.add_column(column)
    table.add_row("export", f"{seconds:.1f} s", f"{BAR_SECONDS:g} s")
    table.add_row("nodes", str(graph.nodes), "")
    table.add_row("largest difference from PyTorch, share of range", f"{agreement.difference:.1e}", "2e-4")
    table.add_row("eager PyTorch, a frame", f"{torch_s:.2f} s", "")
    table.add_row("ONNX Runtime, a frame", f"{ort_s:.2f} s ({frames.ratio:.2f} times as fast)", "")
    Console().print(table)


if __name__ == "__main__":
    main()
