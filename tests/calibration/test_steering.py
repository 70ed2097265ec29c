"""Ranges behind experts that no frame chose."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from calibration.products import products
from calibration.quantized import taken
from calibration.ranges import collect
from calibration.steering import detours, steered, towards, unsteered
from deploy.checking.probes import measuring
from export.networks import Network, network_of
from export.networks.damp import Damp, DampConfig
from export.onnx import Probe, export_graph
from runtime.simulation.simulator import simulate_scene


@pytest.fixture(scope="module", params=[1, 2], ids=["top1", "top2"])
def net(request: pytest.FixtureRequest) -> Network:
    """Two layers of four experts whose gates are wide apart."""
    config = DampConfig(
        dim=8, heads=(2, 2, 2, 2), encoder_blocks=(0, 0, 0, 0), decoder_blocks=(1, 1, 0), refinement_blocks=0,
        expansion=1, embedding=16, gate="concat", metric_set="paper6", top_k=request.param,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Damp(config).eval()
        for name, parameter in made.named_parameters():
            if "routing.gate" in name:
                torch.nn.init.normal_(parameter, 0, 3.0)
    return network_of(made)


@pytest.fixture(scope="module", params=["dense", "gathered"])
def graph(net: Network, request: pytest.FixtureRequest) -> bytes:
    return export_graph(net, 64, 64, experts=request.param).data


@pytest.fixture(scope="module")
def probe(net: Network) -> Probe:
    return measuring(net, 64, 64).feeds(simulate_scene(0, 31, 64, 64).truth)


def weights_of(graph: bytes, feeds: object) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(["routing"], dict(feeds))[0]  # type: ignore[call-overload]


def test_an_unsteered_graph_chooses_as_ever_and_a_steered_one_what_it_is_told(
    net: Network, graph: bytes, probe: Probe
) -> None:
    routing = net.signature(64, 64).routing
    assert routing is not None
    turned = steered(graph, routing.name)
    assert turned is not None
    own = weights_of(graph, probe)
    told = weights_of(turned, {**probe, **unsteered(routing.shape)})
    np.testing.assert_allclose(told, own, atol=1e-6)
    for layer in range(routing.shape[0]):
        for expert in np.flatnonzero(own[layer] == 0):
            led = weights_of(turned, {**probe, **towards(own, layer, int(expert))})
            np.testing.assert_allclose(led[:layer], own[:layer], atol=1e-6)
            weakest = np.where(own[layer] > 0, own[layer], np.inf).argmin()
            wanted = own[layer].copy()
            wanted[[expert, weakest]] = wanted[[weakest, expert]]
            np.testing.assert_allclose(led[layer], wanted, atol=1e-6)


def test_every_expert_is_seen_though_no_frame_chooses_it(net: Network, graph: bytes, probe: Probe) -> None:
    routing = net.signature(64, 64).routing
    assert routing is not None
    turned = steered(graph, routing.name)
    assert turned is not None
    model = onnx.load_model_from_string(graph)
    inputs = taken(model, [p.name for p in products(model) if p.quantisable])
    own: list[np.ndarray] = []
    before = collect(graph, inputs, lambda: [probe], beside=(routing.name, own.append))
    idle = int((own[0] == 0).sum())
    ways = list(detours(own, 3))
    # There is but one frame to steer.
    assert len(ways) == idle > 0 and {place for place, _ in ways} == {0}
    seen = {tuple(np.flatnonzero(order != np.arange(4))) for _, feeds in ways for order in feeds.values()}
    assert len(seen) > 1
    after = collect(turned, inputs, lambda: ({**probe, **order} for _, order in ways), onto=before)
    grown = {name for name in inputs if after[name].largest > before[name].largest}
    assert grown and all(after[name].largest >= before[name].largest for name in inputs)
    assert all(after[n].counts.sum() == (1 + idle) * before[n].counts.sum() for n in inputs)  # type: ignore[union-attr]
    # What comes before the first mixture is the same whatever is chosen.
    assert not any(name.startswith(("patch_embed", "enc")) for name in grown)


def test_the_frames_that_chose_least_surely_are_steered_and_none_where_all_experts_were_seen() -> None:
    weights = [np.float32([[w, 0, 0]]) for w in (0.9, 0.4, 0.6)]
    assert [place for place, _ in detours(weights, 2)] == [1, 2, 1, 2]
    assert list(detours([np.float32([[0.9, 0]]), np.float32([[0, 0.6]])], 2)) == []


def test_a_graph_that_does_not_choose_by_a_topk_for_each_layer_is_not_steered(graph: bytes) -> None:
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        node.op_type = "Hardmax" if node.op_type == "TopK" else node.op_type
    assert steered(model.SerializeToString(), "routing") is None
