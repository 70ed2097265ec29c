"""BiSRNet in torch and as a graph: keys, shapes and numbers of the public reference; its one unit; signs; float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from export.networks import Network, load_checkpoint, network_of
from export.networks.architecture import Option
from export.networks.bisrnet import ARCHITECTURE, Bisrnet, BisrnetConfig, deployment_form
from export.networks.bisrnet.deployment import StaticDoubled
from export.networks.bisrnet.network import Doubled, Unit
from export.onnx import export_graph
from runtime.engines import EngineOptions, open_engine
from runtime.engines.onnx_guard import check_onnx
from runtime.errors import CheckpointError
from runtime.simulation import cassi
from tests.contracts.network import NetworkContract
from tests.export.snapshots import GOLDEN, SIDE, Case, golden_case, mask_file, small_mask, snapshot_network

KEYS = json.loads((GOLDEN / "bisrnet-keys.json").read_text())
USUAL = BisrnetConfig()
BARE = BisrnetConfig(2, (0, 0, 0))
"""Bodies without blocks."""
NODES = 650
CASES = ("tiny", "pad", "plain")


class TestBisrnet(NetworkContract):
    OPTIONS: ClassVar[dict[str, Option]] = {}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def masked(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.OPTIONS = {"mask": str(mask_file(tmp_path_factory.mktemp("mask")))}

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> Network:
        return network_of(snapshot_network(BARE, small_mask()))

    @pytest.fixture(scope="class")
    @classmethod
    def other(cls) -> Network:
        return network_of(snapshot_network(BisrnetConfig(1, (1, 0, 2)), small_mask()))


def test_its_state_dict_is_the_reference_s() -> None:
    with torch.device("meta"):
        net = Bisrnet(BisrnetConfig(KEYS["stage"], tuple(KEYS["num_blocks"])))
    found = {key: [list(value.shape), str(value.dtype)[6:]] for key, value in net.state_dict().items()}
    assert found == KEYS["keys"]
    assert sum(p.numel() for p in net.parameters()) == KEYS["parameters"]


def given(name: str) -> tuple[Case, Bisrnet]:
    case = golden_case("bisrnet-small.npz", name)
    return case, snapshot_network(USUAL, case.mask)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_its_numbers_are_the_reference_s(name: str, kind: torch.dtype) -> None:
    case, net = given(name)
    seen = {}
    net.conv_in.register_forward_hook(lambda module, given, made: seen.update(stem=made))
    net.body[0].embedding.register_forward_hook(lambda module, given, made: seen.update(embedding=made))
    with torch.no_grad():
        restored = net.to(kind)(case.measurement.to(kind))
    for part, made in seen.items():
        assert case.apart(made, part, (4, 2, 2)) < 1e-5
    assert case.apart(restored, "restored", (case.config["band_step"], 1, 1)) < 1e-5


@pytest.mark.parametrize("name", ["tiny", "plain"])
def test_the_static_form_has_the_reference_s_numbers(name: str) -> None:
    case, net = given(name)
    with torch.no_grad():
        restored = deployment_form(net)(case.measurement)
    assert case.apart(restored, "restored", (case.config["band_step"], 1, 1)) < 2e-5


@pytest.mark.slow
def test_onnx_runtime_has_the_reference_s_numbers() -> None:
    case, net = given("tiny")
    made = network_of(net)
    frame = made.frame(1, 1)
    graph = export_graph(made, *frame)
    check_onnx(graph.data)
    assert graph.nodes <= NODES
    with open_engine("onnxruntime", graph.data, made.signature(*frame), EngineOptions(1)) as engine:
        restored = engine.infer({"measurement": case.measurement.numpy()})["cube"]
    assert case.apart(torch.from_numpy(restored[None]), "restored", (1, 1, 1)) < 2e-5


@pytest.mark.slow
def test_its_graph_has_few_nodes() -> None:
    net = snapshot_network(USUAL, small_mask(256, 256))
    assert export_graph(network_of(net), 256, 310).nodes <= NODES


@pytest.mark.parametrize("groups", [1, 4])
def test_a_unit_is_a_convolution_of_signs(groups: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unit, x = Unit(8, 3, groups), torch.randn(1, 8, 5, 6)
        for p in unit.parameters():
            torch.nn.init.normal_(p)
    x[0, 0, 0, 0] = -unit.move0.b[0, 0, 0, 0] / unit.move0.k[0, 0, 0, 0]
    w = unit.binary_conv.weight.detach().double().numpy()
    w = np.abs(w).mean((1, 2, 3), keepdims=True) * np.sign(w)
    one = {name: p.detach().double().numpy().reshape(-1) for name, p in unit.named_parameters()}
    with torch.no_grad():
        signs = np.sign(unit.move0(x).numpy()[0])
        found = unit(x).numpy()[0]
    padded, inner = np.pad(signs, ((0, 0), (1, 1), (1, 1))), 8 // groups
    for channel in range(8):
        first = channel // inner * inner
        for r in range(5):
            for c in range(6):
                y = (w[channel] * padded[first : first + inner, r : r + 3, c : c + 3]).sum()
                y += one["relu.pr_bias0.bias"][channel]
                y = y if y > 0 else y * one["relu.pr_prelu.weight"][channel]
                y += one["relu.pr_bias1.bias"][channel] + x[0, channel, r, c].item()
                assert found[channel, r, c] == pytest.approx(y, abs=1e-5)


def test_a_mask_at_which_frames_are_padded_is_not_deployed() -> None:
    net = network_of(snapshot_network(BARE, small_mask(16, 20)))
    assert net(torch.zeros(1, 1, 16, 74)).shape == (1, 28, 16, 20)
    with pytest.raises(CheckpointError, match=r"16x20.*multiples of 8"):
        export_graph(net, 16, 74)


def test_without_a_mask_it_is_looked_at_alone(tmp_path: Path) -> None:
    torch.save(snapshot_network(BARE).state_dict(), tmp_path / "bare.pth")
    net = load_checkpoint(tmp_path / "bare.pth")
    assert net.configuration == {"stages": 2, "blocks": (0, 0, 0), "mask": None}
    with pytest.raises(CheckpointError, match="mask"):
        export_graph(net, *net.frame(1, 1))


def test_it_is_of_float32_and_held_by_quality() -> None:
    net = network_of(snapshot_network(BARE, small_mask()))
    assert "sign" in ARCHITECTURE.float32_only(net.module) and ARCHITECTURE.parity(net.module) == "quality"
    assert net.wavelengths == cassi.WAVELENGTHS and net.frame(1, 1) == (SIDE, SIDE + 54)


def test_doubling_is_a_convolution() -> None:
    x = torch.from_numpy(np.random.default_rng(0).random((1, 3, 5, 7), np.float32))
    made = StaticDoubled(3)(x)
    torch.testing.assert_close(made, Doubled()(x), rtol=0, atol=1e-6)


@pytest.mark.data
def test_the_public_weights_load_and_restore(data_dir: Path, tmp_path: Path) -> None:
    net = load_checkpoint(data_dir / "cassi" / "bisrnet.pth", mask=str(mask_file(tmp_path)))
    assert net.parameters == KEYS["parameters"] and net.configuration["blocks"] == (1, 1, 1)
    clean = np.full((28, SIDE, SIDE), 0.5, np.float32)
    measure = ARCHITECTURE.measure
    assert measure is not None
    seen = torch.from_numpy(measure(net.instrument, "snapshot", clean, np.random.default_rng(0)))[None]
    with torch.no_grad():
        restored = net(seen).numpy()
        static = deployment_form(net.module)(seen).numpy()
    assert restored.shape == (1, 28, SIDE, SIDE) and np.isfinite(restored).all()
    assert np.sqrt(np.mean(np.square(restored - 0.5))) < 0.3
    assert np.sqrt(np.mean(np.square(restored - static))) < 0.01 * np.ptp(restored)
