"""The engines agree on an int8 graph: OpenVINO moves pairs about, and was seen to round to whole numbers by it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.degradations import noise
from calibration.products import products
from calibration.quantized import quantized, taken
from calibration.ranges import collect, ranges
from export.networks import load_checkpoint
from export.onnx import export_graph
from runtime.engines import EngineOptions, available_engines, open_engine
from runtime.prompts import Prompts
from runtime.simulation.simulator import simulate_scene


@pytest.mark.slow
@pytest.mark.skipif(available_engines()["openvino"] is None, reason="the extra `openvino` is not installed")
def test_openvino_computes_what_onnx_runtime_does() -> None:
    net = load_checkpoint("damp-nano")
    signature = net.signature(64, 64)
    graph = export_graph(net, 64, 64).data
    model = onnx.load_model_from_string(graph)
    # The first convolution rounds the frame itself, which hides what the others do.
    names = [p.name for p in products(model) if p.quantisable and not p.name.startswith("patch_embed")]
    frame = noise(simulate_scene(0, 31, 64, 64).truth, np.random.default_rng(0))
    probe = {"frame": frame[None], **Prompts(signature)(frame)}
    int8 = quantized(graph, ranges(collect(graph, taken(model, names), lambda: [probe]), "mse"), names)
    options = EngineOptions(precision="int8")
    restored = {}
    for name in ("onnxruntime", "openvino"):
        with open_engine(name, int8, signature, options) as engine:
            restored[name] = engine.infer(probe)["restored"]
    with open_engine("onnxruntime", graph, signature) as engine:
        exact = engine.infer(probe)["restored"]

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(a - b, dtype=np.float64))))

    # A value near the edge of two steps may fall on either side, which is less than what rounding itself costs.
    assert apart(restored["openvino"], restored["onnxruntime"]) < apart(restored["onnxruntime"], exact) < 0.02
