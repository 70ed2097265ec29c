"""MST in torch and as a graph: keys, shapes and numbers of the public reference; masks; other sizes; FP16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from calibration.half_arithmetic import half_arithmetic
from calibration.typed import half_precision, nodes_in_half
from export.networks import Network, load_checkpoint, network_of, save_checkpoint
from export.networks.architecture import Option
from export.networks.mst import Mst, MstConfig
from export.networks.mst.network import shifted
from export.networks.sdp import SdpConfig, wrap
from export.onnx import Graph, export_graph
from export.torch_engine import TorchEngine
from runtime.engines import EngineOptions, open_engine
from runtime.engines.onnx_guard import check_onnx
from runtime.errors import CheckpointError, CubeError, InputError
from runtime.simulation import cassi
from tests.contracts.network import NetworkContract
from tests.export.snapshots import GOLDEN, SIDE, bands_of, golden_case, mask_file, small_mask, snapshot_network

KEYS = json.loads((GOLDEN / "mst-keys.json").read_text())
SMALL, SHALLOW = MstConfig((1, 1, 1)), MstConfig((2, 1))
NODES = {"s": 450, "m": 700, "l": 1150}
FRAME = SIDE, SIDE + cassi.DISPERSED


class TestMst(NetworkContract):
    OPTIONS: ClassVar[dict[str, Option]] = {}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def masked(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.OPTIONS = {"mask": str(mask_file(tmp_path_factory.mktemp("mask")))}

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> Network:
        return network_of(snapshot_network(SMALL, small_mask()))

    @pytest.fixture(scope="class")
    @classmethod
    def other(cls) -> Network:
        return network_of(snapshot_network(SHALLOW, small_mask()))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return export_graph(network_of(snapshot_network(SMALL, small_mask())), *FRAME)


@pytest.mark.parametrize("size", KEYS)
def test_its_state_dict_is_the_reference_s(size: str) -> None:
    with torch.device("meta"):
        net = Mst(MstConfig(tuple(KEYS[size]["num_blocks"])))
    found = {key: [list(value.shape), str(value.dtype)[6:]] for key, value in net.state_dict().items()}
    assert found == KEYS[size]["keys"]
    assert sum(p.numel() for p in net.parameters()) == KEYS[size]["parameters"]


@pytest.mark.parametrize("name", ["s", "odd"])
def test_its_numbers_are_the_reference_s(name: str) -> None:
    case = golden_case("mst-small.npz", name)
    net = snapshot_network(MstConfig(tuple(case.config["num_blocks"])), case.mask)
    with torch.no_grad():
        masks = net.masks(shifted(net.mask))
        groups = [*(layer[0] for layer in net.encoder_layers), net.bottleneck]
        for level, (group, mask) in enumerate(zip(groups, masks, strict=True)):
            guide = group.blocks[0][0].mm(mask, case.config["samples"] >> level)
            assert case.apart(guide, f"guide_{level}", (7, 8, 8)) < 1e-5
        assert case.apart(net(case.measurement), "restored", (4, 2, 2)) < 1e-5


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_guide_is_moved_back_as_the_level_is_shrunk(level: int) -> None:
    """At a size at which the reference has no rule of its own."""
    net = snapshot_network(SMALL, small_mask(36, 60))
    with torch.no_grad():
        mask = net.masks(shifted(net.mask))[level]
        guide = [*(layer[0] for layer in net.encoder_layers), net.bottleneck][level].blocks[0][0].mm
        whole, cut = guide(torch.nn.functional.pad(mask, (0, 64)), mask.shape[-1]), guide(mask, 60 >> level)
        u = guide.conv1(mask)
        u = u + u * torch.sigmoid(guide.depth_conv(guide.conv2(u)))
    assert cut.shape == (1, 28 << level, 36 >> level, 60 >> level) and whole.shape[-1] == mask.shape[-1]
    for channel in range(28 << level):
        first = int(2 / 4**level * channel)
        assert torch.equal(cut[0, channel], u[0, channel, :, first : first + (60 >> level)])


@pytest.mark.parametrize("size", [(16, 16), (36, 60)])
def test_the_static_form_is_the_network_at_other_sizes(size: tuple[int, int]) -> None:
    net = snapshot_network(MstConfig((1, 2, 1)), small_mask(*size))
    engine = TorchEngine(network_of(net), size[0], size[1] + 54, form="deployment")
    given = bands_of(net)
    with torch.no_grad():
        expected = net(given)[0].numpy()
    found = engine.infer({"measurement": given.numpy()})["cube"]
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


def test_onnx_runtime_gives_what_torch_does(graph: Graph) -> None:
    net = snapshot_network(SMALL, small_mask())
    given, made = bands_of(net), network_of(net).signature(*FRAME)
    check_onnx(graph.data)
    with torch.no_grad():
        expected = net(given).numpy()
    with open_engine("onnxruntime", graph.data, made, EngineOptions(1)) as engine:
        found = engine.infer({"measurement": given.numpy()})["cube"]
    assert np.abs(found - expected).max() < 2e-5 * np.ptp(expected)


def test_fp16_leaves_sums_of_squares_and_softmax_in_float32(graph: Graph) -> None:
    half = nodes_in_half(graph.data)
    nodes = onnx.load_model_from_string(graph.data).graph.node
    assert not [
        n.name for n in nodes if n.op_type in ("ReduceSum", "Sqrt", "Clip", "Div", "Softmax") and n.name in half
    ]
    squared = {n.input[0] for n in nodes if n.op_type == "ReduceSum"}
    assert not [n.name for n in nodes if squared.intersection(n.output) and n.name in half]
    net = snapshot_network(SMALL, small_mask())
    given, made = bands_of(net), network_of(net).signature(*FRAME)
    with torch.no_grad():
        expected = net(given).numpy()
    rounded = half_arithmetic(half_precision(graph.data).data)
    with open_engine("onnxruntime", rounded, made, EngineOptions(1)) as engine:
        found = engine.infer({"measurement": given.numpy()})["cube"]
    assert np.abs(found - expected).max() < 5e-3 * np.ptp(expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", KEYS)
def test_its_graph_has_few_nodes(size: str) -> None:
    net = snapshot_network(MstConfig(tuple(KEYS[size]["num_blocks"])), small_mask(256, 256))
    assert export_graph(network_of(net), 256, 310).nodes <= NODES[size]


def test_its_mask_is_kept_told_and_chosen_anew(tmp_path: Path) -> None:
    net = network_of(snapshot_network(SMALL, small_mask()))
    file = save_checkpoint(net, tmp_path / "net.safetensors")
    again = load_checkpoint(file)
    facts = again.configuration["mask"]
    assert torch.equal(again.module.mask, net.module.mask) and again.options == {}
    assert (facts["lines"], facts["samples"]) == (SIDE, SIDE) and len(facts["sha256"]) == 64
    assert facts["mean"] == pytest.approx(float(small_mask().mean()))
    assert again.wavelengths == cassi.WAVELENGTHS
    np.save(tmp_path / "other.npy", small_mask(20, 24, seed=6))
    other = load_checkpoint(file, mask=str(tmp_path / "other.npy"))
    assert other.configuration["mask"]["sha256"] != facts["sha256"]
    assert other.options == {"mask": str(tmp_path / "other.npy")} and other.frame(1, 1) == (20, 24 + 54)
    assert "20x24" in other.architecture.about(other.module)


@pytest.mark.parametrize("prior", [False, True], ids=["alone", "with a prior"])
def test_another_mask_than_the_kept_one_is_a_doubt(prior: bool, tmp_path: Path) -> None:
    net = snapshot_network(SMALL, small_mask())
    file = save_checkpoint(
        network_of(wrap(net, SdpConfig(latent_dims=8)) if prior else net), tmp_path / "net.safetensors"
    )
    for name, mask in (("same", small_mask()), ("other", small_mask(seed=6)), ("larger", small_mask(20, 24))):
        np.save(tmp_path / f"{name}.npy", mask)
    told = {
        name: load_checkpoint(file, mask=str(tmp_path / f"{name}.npy")).facts.doubts
        for name in ("same", "other", "larger")
    }
    assert told["same"] == () and load_checkpoint(file).facts.doubts == ()
    assert all("the one that the checkpoint keeps" in told[name][0] for name in ("other", "larger"))


def test_without_a_mask_it_is_looked_at_alone(tmp_path: Path) -> None:
    torch.save(snapshot_network(SMALL).state_dict(), tmp_path / "bare.pth")
    net = load_checkpoint(tmp_path / "bare.pth")
    assert net.frame(1, 1) == (256, 310) and net.configuration["mask"] is None
    clean = np.zeros((28, 256, 256), np.float32)
    measure = network_of(snapshot_network(SMALL)).architecture.measure
    assert measure is not None and net.instrument == {}
    for use in (
        lambda: export_graph(net, 256, 310),
        lambda: net(torch.zeros(1, 1, 256, 310)),
        lambda: measure(net.instrument, "snapshot", clean, np.random.default_rng(0)),
    ):
        with pytest.raises(CheckpointError) as caught:
            use()
        assert caught.value.key == "mask" and "mask" in str(caught.value.remedy)


def bad_masks() -> dict[str, np.ndarray]:
    good = small_mask()
    return {
        "multiples of 4": small_mask(14, 16),
        "0 to 1": 2 * good,
        "finite": np.where(good > 0.9, np.nan, good),
        "not in others": np.full_like(good, 0.5),
    }


@pytest.mark.parametrize("problem", bad_masks())
def test_what_is_no_mask_is_refused(problem: str, tmp_path: Path) -> None:
    net = network_of(snapshot_network(SMALL, small_mask()))
    file = save_checkpoint(net, tmp_path / "net.safetensors")
    np.save(tmp_path / "mask.npy", bad_masks()[problem])
    with pytest.raises(InputError, match=problem) as caught:
        load_checkpoint(file, mask=str(tmp_path / "mask.npy"))
    assert caught.value.key == "mask"
    net.module.mask = torch.from_numpy(bad_masks()[problem])
    with pytest.raises(CheckpointError, match=problem):
        load_checkpoint(save_checkpoint(net, tmp_path / "bad.safetensors"))


@pytest.mark.parametrize("said", ["", 3, "a\0b"])
def test_a_mask_is_named_by_a_path(said: Option, tmp_path: Path) -> None:
    file = save_checkpoint(network_of(snapshot_network(SMALL, small_mask())), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="is no path"):
        load_checkpoint(file, mask=said)
    with pytest.raises(InputError, match=r"absent\.npy"):
        load_checkpoint(file, mask=str(tmp_path / "absent.npy"))


def test_the_network_for_real_measurements_is_refused_by_name(tmp_path: Path) -> None:
    state = {key: value for key, value in snapshot_network(SMALL).state_dict().items() if ".mm." not in key}
    torch.save({**state, "fution.weight": torch.zeros(28, 28, 3, 3)}, tmp_path / "real.pth")
    with pytest.raises(CheckpointError, match="real measurements") as caught:
        load_checkpoint(tmp_path / "real.pth")
    assert caught.value.key == "fution.weight"


def test_a_network_of_other_bands_is_refused(tmp_path: Path) -> None:
    state = snapshot_network(SMALL).state_dict()
    torch.save({**state, "embedding.weight": torch.zeros(31, 31, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="dim must be 28"):
        load_checkpoint(tmp_path / "other.pth")


def test_a_mask_is_halved_as_often_as_the_frame() -> None:
    net = network_of(snapshot_network(MstConfig((1, 1, 1, 1)), small_mask(16, 20)))
    with pytest.raises(CheckpointError, match=r"16x20.*multiples of 8"):
        export_graph(net, 16, 74)


def test_it_measures_what_its_instrument_does() -> None:
    net = network_of(snapshot_network(SMALL, small_mask()))
    clean = np.random.default_rng(1).random((28, SIDE, SIDE), np.float32)
    measure = network_of(snapshot_network(SMALL)).architecture.measure
    assert measure is not None
    seen, noisy = (measure(net.instrument, task, clean, np.random.default_rng(2)) for task in net.tasks)
    np.testing.assert_array_equal(seen[0], cassi.measure(clean, small_mask()))
    assert seen.shape == noisy.shape == (1, *FRAME) and not np.array_equal(seen, noisy)
    with pytest.raises(CubeError, match="16 lines"):
        measure(net.instrument, "snapshot", clean[:, 1:], np.random.default_rng(0))
    with pytest.raises(CubeError, match="network's mask"):
        net(torch.zeros(1, 1, SIDE, SIDE))


def test_a_stored_mask_has_its_own_key(tmp_path: Path) -> None:
    net = network_of(snapshot_network(SMALL, small_mask()))
    state = load_file(save_checkpoint(net, tmp_path / "net.safetensors"))
    assert {*state} - {*net.state_dict()} == {"mask"}
