"""INT8 against float32 in the same engine, on two networks: what of the multiply-adds is quantised and what it gains.

Ranges come from simulated scenes and every group that may run in INT8 does, since only speed is measured here: which
groups a trained network can spare is what `deploy build` finds. `python -m benchmarks.int8 [LINESxSAMPLES]`, about ten
minutes. Bar: the best CPU engine 1.5 times as fast in INT8 as in float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table

from calibration.products import int8_share, products
from calibration.quantized import quantized, taken
from calibration.ranges import collect, ranges
from deploy.checking.probes import measuring
from deploy.commands.options import parse_size
from export.networks import Network, load_checkpoint, network_of
from export.networks.damp import Damp, DampConfig
from export.onnx import Probe, export_graph
from runtime.engines import EngineOptions, open_engine
from runtime.simulation.simulator import simulate_scene

ROUNDS = 5
BAR = 1.5
ENGINES = ("onnxruntime", "openvino")


def networks() -> dict[str, Network]:
    """A trained one, and the public reference's larger configuration with seeded weights."""
    torch.manual_seed(0)
    return {"damp-small, 4.6 M": load_checkpoint("damp-small"), "options, 36.9 M": network_of(Damp(DampConfig()))}


def in_int8(graph: bytes, probes: Sequence[Probe]) -> bytes:
    """A float32 graph with every product in INT8 that may be, ranges from the largest values on the probes."""
    model = onnx.load_model_from_string(graph)
    names = [p.name for p in products(model) if p.quantisable]
    return quantized(graph, ranges(collect(graph, taken(model, names), lambda: probes), "minmax"), names)


def measured(net: Network, lines: int, samples: int) -> tuple[float, dict[tuple[str, str], float]]:
    """(share of multiply-adds in INT8, {(engine, precision): median seconds of a frame})."""
    graph = export_graph(net, lines, samples, "gathered").data
    way = measuring(net, lines, samples)
    probe = way.feeds(simulate_scene(0, way.signature.measured.bands, lines, samples).truth)
    int8 = in_int8(graph, [probe])
    programs = {"fp32": graph, "int8": int8}
    opened = {
        (engine, precision): open_engine(engine, program, way.signature, EngineOptions(precision=precision))
        for engine in ENGINES
        for precision, program in programs.items()
    }
    taken_: dict[tuple[str, str], list[float]] = {key: [] for key in opened}
    for number in range(ROUNDS + 1):
        for key, engine in opened.items():
            began = time.perf_counter()
            engine.infer(probe)
            if number:
                taken_[key].append(time.perf_counter() - began)
    for engine in opened.values():
        engine.close()
    return int8_share(onnx.load_model_from_string(int8)), {k: statistics.median(v) for k, v in taken_.items()}


def main() -> int:
    """Print the table; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", metavar="LINESxSAMPLES", nargs="?", default="256x256")
    size = parse_size(parser.parse_args().size)
    assert size is not None
    table = Table(title=f"{size['lines']}x{size['samples']}, medians of {ROUNDS} rounds in turns")
    for column in ("network", "engine", "fp32 s", "int8 s", "times", "int8 multiply-adds"):
        table.add_column(column)
    best = []
    for name, net in networks().items():
        share, seconds = measured(net, size["lines"], size["samples"])
        for engine in ENGINES:
            single, low = seconds[engine, "fp32"], seconds[engine, "int8"]
            table.add_row(name, engine, f"{single:.3f}", f"{low:.3f}", f"{single / low:.2f}", f"{100 * share:.1f} %")
        best.append(max(seconds[e, "fp32"] / seconds[e, "int8"] for e in ENGINES))
    Console().print(table)
    return 0 if np.min(best) >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
