"""TensorRT for RTX's real builder takes every graph that we write: each network configuration, float32 and FP16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.typed import half_precision
from export.networks import network_of
from export.networks.damp import DampConfig
from export.onnx import export_graph
from export.tensorrt.build import Request, build_engine
from export.tensorrt.lint import lint
from runtime.engines.tensorrt_libraries import tensorrt_version
from tests.export.checkpoints import network
from tests.export.test_onnx import CONFIGURATIONS

pytestmark = pytest.mark.skipif(tensorrt_version("tensorrt-rtx") is None, reason="the extra `rtx` is not installed")


# The tests of `deploy build` build engines in every run.
@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("experts", ["dense", "gathered"])
def test_every_configuration_builds(config: DampConfig, experts: str, tmp_path: Path) -> None:
    if experts == "gathered" and config.top_k == config.experts:
        pytest.skip("all experts run: the same graph")
    graph = export_graph(network_of(network(config)), 64, 64, experts).data
    for name, data in (("fp32", graph), ("fp16", half_precision(graph).data)):
        assert [f for f in lint(data, tensorrt="10.3", kind="tensorrt", sm="8.7") if f.severity == "error"] == []
        made = build_engine(data, Request("tensorrt-rtx", "8.9", 64), tmp_path / name)
        assert len(made.data) > 10_000 and made.version == tensorrt_version("tensorrt-rtx")
        types = {t["type"] for layer in json.loads(made.layers)["layers"] for t in layer["outputs"]}
        assert ("HALF" in types) == (name == "fp16")
