"""The shapes by which graphs are judged on a flight computer are ONNX's own, in every graph that is written here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from calibration.half_arithmetic import half_arithmetic
from calibration.products import products
from calibration.quantized import quantized
from calibration.typed import half_precision
from export.metrics import PromptMetrics
from export.metrics_graph import export_metrics
from export.networks import Network, load_checkpoint, network_of
from export.networks.bisrnet import BisrnetConfig
from export.onnx import export_extractor, export_graph
from runtime.bundle_files import read_manifest
from runtime.engines.onnx_cost import MOST, cost_of, followed
from runtime.engines.onnx_guard import check_graph
from tests.export.snapshots import small_mask, snapshot_network

PACKAGED = ("damp-nano", "damp-tiny", "dfpir-tiny", "dpmambair-tiny", "mst-tiny", "mst-tiny-sdp")


def assert_right(data: bytes) -> None:
    """Every tensor has the shape and the type that ONNX infers."""
    check_graph(data)
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), strict_mode=True, data_prop=True).graph
    known = {v.name: v.type.tensor_type for v in (*model.input, *model.value_info, *model.output)}
    expected = {n: (tuple(d.dim_value for d in t.shape.dim), t.elem_type) for n, t in known.items()}
    expected |= {t.name: (tuple(t.dims), t.data_type) for t in model.initializer}
    assert {name: (t.shape, t.type) for name, t in followed(data).tensors.items()} == expected


def variants(data: bytes) -> Iterator[bytes]:
    """A float32 graph, and what calibration makes of it: FP16, int8, and both, as they fly and as they are measured."""
    every = {p.name for p in products(onnx.load_model_from_string(data)) if p.quantisable}
    of_int8 = quantized(data, dict.fromkeys(every, 4.0), every)
    half = half_precision(data).data
    yield from (data, half, half_arithmetic(half), of_int8, half_precision(of_int8).data)


def test_every_shape_of_a_small_network(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    for data in variants((tiny_bundle / manifest.graphs["fp32"]).read_bytes()):
        assert_right(data)


def test_a_build_says_what_its_largest_graph_asks_for(metrics_bundle: Path) -> None:
    manifest = read_manifest(metrics_bundle)
    assert manifest.metrics_graph is not None and manifest.cost is not None
    costs = []
    for name in (*manifest.graphs.values(), manifest.metrics_graph):
        assert_right((metrics_bundle / name).read_bytes())
        costs.append(cost_of((metrics_bundle / name).read_bytes()))
    assert manifest.cost.peak_bytes == max(c.peak_bytes for c in costs) < MOST[0]
    assert manifest.cost.multiply_adds == max(c.multiply_adds for c in costs) < MOST[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PACKAGED, "bisrnet"])
def test_every_shape_of_a_packaged_model(name: str) -> None:
    net = _network(name)
    size = net.architecture.size(net.module) or net.frame(64, 64)
    signature = net.signature(*size)
    for data in variants(export_graph(net, *size).data):
        assert_right(data)
    if signature.metrics is not None:
        assert_right(export_metrics(PromptMetrics(signature.metrics.of, *signature.measured.shape[1:]), signature).data)
    if signature.embedding is not None:
        assert_right(export_extractor(net, signature).data)


def _network(name: str) -> Network:
    if name == "bisrnet":
        return network_of(snapshot_network(BisrnetConfig(), small_mask(64, 64)))
    return load_checkpoint(name)
