"""DFPIR in torch and as a graph: keys, shapes and numbers of the public reference; odd configurations; gaps."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch

from calibration.typed import half_precision
from export.networks import Network, load_checkpoint, network_of
from export.networks.architecture import Option
from export.networks.dfpir import ARCHITECTURE, Dfpir, DfpirConfig, gaps, smallest_gap
from export.networks.dfpir.blocks import KeptSoftmax
from export.networks.dfpir.config import kept
from export.onnx import export_graph
from export.tensorrt.lint import lint
from export.torch_engine import TorchEngine
from runtime.engines import EngineOptions, open_engine
from runtime.engines.onnx_guard import check_onnx
from runtime.errors import CheckpointError, CubeError
from tests.contracts.network import NetworkContract
from tests.export.dfpir import PROMPTS, SMALL, code, network, restated
from tests.export.test_tensorrt_lint import ORIN, RTX
from tests.golden.dfpir_state import golden_state, text_code
from tests.golden.scene import KINDS, degraded, scene

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
FRAMES = [
    *((p, kind) for p in ("p0", "p1", "p2") for kind in ("noise", "inpaint", "blur")), ("p1", "noise_40x72"),
]  # fmt: skip
ORDERS = {
    "latent_shuffle_channel": "latent", "encoder_shuffle_channel3": "3", "encoder_shuffle_channel2": "2",
    "encoder_shuffle_channel1": "1",
}  # fmt: skip
WIDER = dataclasses.replace(
    SMALL, bands=4, dim=12, heads=(1, 2, 2, 4), blocks=(0, 1, 1, 0), hidden=(5, 7, 9, 11), norm="BiasFree",
    conv_bias=True,
)  # fmt: skip
ODD = {
    "four bands, BiasFree, conv bias, factor 2": DfpirConfig(
        4, 24, (1, 2, 4, 8), (1, 2, 1, 1), 1, (48, 96, 192, 384), "BiasFree", True, 40
    ),
    "heads 1,2,2,4": DfpirConfig(3, 32, (1, 2, 2, 4), (1, 1, 2, 1), 2, (85, 170, 340, 680), "WithBias", False, 512),
    "levels without blocks": DfpirConfig(5, 16, (2, 2, 2, 2), (0, 1, 0, 0), 0, (20, 30, 40, 50), "WithBias", True, 8),
    "one head of two channels": DfpirConfig(1, 2, (1, 1, 1, 1), (1, 1, 1, 1), 1, (1, 2, 3, 4), "BiasFree", False, 1),
}


class TestDfpir(NetworkContract):
    OPTIONS: ClassVar[dict[str, Option]] = {}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def codes(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("codes")
        for name in PROMPTS:
            np.save(folder / f"{name}.npy", code(name))
        cls.OPTIONS = {"prompt": ",".join(PROMPTS), "text_code": str(folder)}

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> Network:
        return network_of(network(SMALL, PROMPTS))

    @pytest.fixture(scope="class")
    @classmethod
    def other(cls) -> Network:
        return network_of(network(WIDER, PROMPTS))

    @staticmethod
    def sizes(network: Network) -> list[tuple[int, int]]:
        """Not the smallest: where the latent level is one pixel, all scores are plus or minus one."""
        return [(16, 16), (16, 24)]


# The reference


def golden_input(p: str, kind: str) -> np.ndarray:
    size = (40, 72) if kind == "noise_40x72" else (64, 64)
    plain = kind.partition("_")[0]
    seed = int(golden()[f"{p}/{kind}/scene_seed"])
    return degraded(plain, scene(seed, 3, *size), 100 + KINDS.index(plain))


def golden() -> Mapping[str, np.ndarray]:
    with np.load(GOLDEN / "dfpir-small.npz") as file:
        return {key: file[key] for key in file.files if key.endswith(("seed", "config")) or key[3:8] == "order"}


def arrays(prefix: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "dfpir-small.npz") as file:
        return {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}


@pytest.fixture(scope="module")
def published() -> Dfpir:
    """The full-size network with golden weights."""
    net = Dfpir(DfpirConfig()).eval()
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(value) for key, value in golden_state(shapes).items()})
    return net


@pytest.fixture(scope="module")
def perturbations(published: Dfpir) -> dict[str, torch.Tensor]:
    """{prompt: what it makes of the full-size network}, after a look at its orders."""
    made = {}
    for p in ("p0", "p1", "p2"):
        text = torch.from_numpy(text_code(int(golden()[f"{p}/text_seed"])))[None]
        for name, block in published.perturbing().items():
            values, order = block.ranked(text)
            assert order[0].tolist() == golden()[f"{p}/order_{ORDERS[name]}"].tolist()
            assert -values.diff().max() > 8e-6
        made[p] = published.perturbation(text).detach()
    return made


def assert_near(found: np.ndarray, expected: np.ndarray, largest: float = 1e-4, rms: float = 2e-5) -> None:
    difference = (found.astype(np.float64) - expected) / np.ptp(expected)
    assert np.abs(difference).max() < largest
    assert np.sqrt((difference**2).mean()) < rms


def test_the_published_network_has_the_references_keys_shapes_types_and_parameters() -> None:
    expected = json.loads((GOLDEN / "dfpir-keys.json").read_text())
    with torch.device("meta"):
        net = Dfpir(DfpirConfig())
    found = {key: [list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in net.state_dict().items()}
    assert found == expected["state_dict"] and len(found) == 590
    assert sum(p.numel() for p in net.parameters()) == expected["parameters"] == 31_104_761


@pytest.mark.parametrize(("p", "kind"), FRAMES)
def test_numbers_are_the_references(
    published: Dfpir, perturbations: dict[str, torch.Tensor], p: str, kind: str
) -> None:  # fmt: skip
    frame, expected = torch.from_numpy(golden_input(p, kind))[None], arrays(f"{p}/{kind}/")
    with torch.no_grad(), gaps(published) as seen:
        restored = published(frame, perturbations[p])[0].numpy()
    assert len(seen) == 4 and min(seen) > 5e-5
    assert_near(restored, expected["restored"])
    stats = restored.mean(), restored.std(), np.abs(restored).max()
    assert stats == pytest.approx(expected["restored_stats"], abs=1e-4 * float(np.ptp(expected["restored"])))


def test_what_goes_through_the_network_is_the_references(
    published: Dfpir, perturbations: dict[str, torch.Tensor]
) -> None:  # fmt: skip
    exact = copy.deepcopy(published).double()
    names = {block: f"dgpb_{level}" for block, level in ORDERS.items()}
    names |= {"encoder_level1": "e1", "latent": "latent"} | {f"decoder_level{n}": f"d{n}" for n in (1, 2, 3)}
    seen: dict[str, np.ndarray] = {}
    for part, name in names.items():
        exact.get_submodule(part).register_forward_hook(
            lambda _, __, made, name=name: seen.__setitem__(name, made[0].numpy())
        )
    expected = arrays("p0/noise/")
    with torch.no_grad():
        frame = torch.from_numpy(golden_input("p0", "noise"))[None].double()
        restored = exact(frame, perturbations["p0"].double())[0].numpy()
    assert_near(restored, expected["restored"], 2e-5, 4e-6)
    for name, made in seen.items():
        assert_near(made[::8, ::2, ::2], expected[name], 1e-4, 1e-5)
        span = float(np.ptp(expected[name]))
        stats = made.mean(), made.std(), np.abs(made).max()
        assert stats == pytest.approx(expected[f"{name}_stats"], abs=1e-4 * span), name


@pytest.mark.slow
def test_one_graph_gives_the_references_numbers_for_every_prompt(
    published: Dfpir, perturbations: dict[str, torch.Tensor]
) -> None:  # fmt: skip
    net = network_of(published)
    graph = export_graph(net, 64, 64)
    assert graph.nodes <= 1700
    with open_engine("onnxruntime", graph.data, net.signature(64, 64), EngineOptions(threads=1)) as engine:
        for p, kind in FRAMES[:-1]:
            made = engine.infer({"frame": golden_input(p, kind)[None], "perturbation": perturbations[p].numpy()})
            assert_near(made["restored"][0], arrays(f"{p}/{kind}/")["restored"])


# Without folding


@pytest.mark.parametrize("name", ODD)
def test_any_configuration_is_what_it_computes_without_folding(name: str) -> None:
    config = ODD[name]
    net = network(config).double()
    rng = np.random.default_rng(3)
    frame = torch.from_numpy(rng.random((2, config.bands, 16, 24)))
    text = torch.from_numpy(rng.standard_normal((2, config.text)))
    with torch.no_grad():
        perturbation = net.perturbation(text)
        expected = restated(net.state_dict(), config, frame, text)
        found = net(frame, perturbation)
        assert perturbation.shape == (2, sum(config.perturbation))
        # Two channels that nearly agree lose digits in the norm, on some processors more than on others.
        assert (found - expected).abs().max() < 1e-10 * (expected.max() - expected.min())
        # One prompt for the whole batch.
        one = net(frame, perturbation[:1])
        torch.testing.assert_close(one[:1], found[:1], rtol=0, atol=1e-10)
        static = ARCHITECTURE.static(net).double()
        made = static(frame[:1], perturbation[:1])
        assert (made - expected[:1]).abs().max() < 1e-10 * (expected.max() - expected.min())


def test_of_equal_numbers_the_lower_channel_comes_first() -> None:
    block = network(SMALL).latent_shuffle_channel
    with torch.no_grad():
        block.linear_layer3.weight.zero_()
        block.linear_layer3.bias.zero_()
        block.linear_layer3.bias[5] = 1
    order = block.ranked(torch.zeros(1, SMALL.text))[1][0].tolist()
    assert order == [5, *(n for n in range(len(order)) if n != 5)]


def test_training_reaches_what_a_code_folds_and_not_what_orders_channels() -> None:
    net = network(SMALL).train()
    text = torch.from_numpy(np.stack([code(name) for name in PROMPTS]))
    net(torch.rand(2, 3, 16, 16), net.perturbation(text)).square().mean().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == {f"{b}.{n}.{k}" for b in net.perturbing() for n in ("linear_layer1", "linear_layer3")
                       for k in ("weight", "bias")}  # fmt: skip


def test_a_prompt_alone_changes_the_restoration() -> None:
    net = network(SMALL)
    frame = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (net(frame, net.perturbation(torch.from_numpy(code(name))[None])) for name in PROMPTS)
    assert (one - other).abs().max() > 1e-2


# Masks


@pytest.mark.parametrize(("scores", "keeps"), [(2, 1), (10, 9), (21, 18), (24, 21), (32, 28), (48, 43), (64, 57)])
def test_nine_tenths_of_a_row_are_kept(scores: int, keeps: int) -> None:
    assert kept(scores) == keeps == int(scores * 9 / 10)
    softmax = KeptSoftmax(scores)
    given = torch.randn(3, 2, scores, scores, generator=torch.Generator().manual_seed(1))
    assert (softmax(given) > 0).sum(-1).unique().tolist() == [keeps]
    ranked = given.sort(dim=-1, descending=True).values
    last, first = softmax.border(given)
    assert torch.equal(last[..., 0], ranked[..., keeps - 1]) and torch.equal(first[..., 0], ranked[..., keeps])
    # Of equals none is dropped.
    assert torch.equal(softmax(torch.ones(1, scores)), torch.full((1, scores), 1 / scores))


def test_the_smallest_gap_is_that_of_the_nearest_two_scores() -> None:
    net = network(SMALL)
    frame, perturbation = torch.rand(1, 3, 16, 16), net.perturbation(torch.from_numpy(code("noise"))[None]).detach()
    scores: list[float] = []

    def look(_: torch.nn.Module, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
        kept_ones = made > 0
        lowest = torch.where(kept_ones, given[0], torch.inf).amin(-1)
        highest = torch.where(kept_ones, -torch.inf, given[0]).amax(-1)
        scores.append(float((lowest - highest).min()))

    for block in net.perturbing().values():
        block.select_attn.softmax.register_forward_hook(look)
    net.requires_grad_(False)
    assert smallest_gap(net, frame, perturbation) == pytest.approx(min(scores), rel=1e-6)
    assert min(scores) > 0
    with gaps(net) as seen:
        pass
    net(frame, perturbation)
    assert seen == []


# Graph


def test_one_graph_serves_every_prompt_and_neither_sorts_nor_gathers_channels() -> None:
    config = dataclasses.replace(WIDER, blocks=(0, 0, 0, 1), refinement_blocks=0)
    net = network_of(network(config, PROMPTS))
    graph, module, signature = export_graph(net, 16, 16), net.module, net.signature(16, 16)
    check_onnx(graph.data)
    for data in (graph.data, half_precision(graph.data).data):
        assert lint(data, **ORIN) == [] == lint(data, **RTX)
    model = onnx.load_model_from_string(graph.data)
    found = Counter(node.op_type for node in model.graph.node)
    assert not {"Gather", "GatherElements", "GatherND", "ScatterElements", "Equal", "Cast", "Expand"} & set(found)
    assert found["TopK"] == found["Where"] == found["GreaterOrEqual"] == 4
    # One clamp for the rows of q and k together, two in each masked attention.
    assert found["Clip"] == 1 + 2 * 4
    frame = np.random.default_rng(0).random((1, 4, 16, 16), np.float32)
    reference = TorchEngine(net, 16, 16)
    with open_engine("onnxruntime", graph.data, signature, EngineOptions(threads=1)) as engine:
        for told in module.prompts.values():
            perturbation = module.perturbation(told.tensor).detach().numpy()
            assert smallest_gap(module, torch.from_numpy(frame), torch.from_numpy(perturbation)) > 5e-5
            given = {"frame": frame, "perturbation": perturbation}
            assert_near(engine.infer(given)["restored"], reference.infer(given)["restored"])


# Shapes and configurations


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (24, 16)])
def test_frames_need_not_be_square(size: tuple[int, int]) -> None:
    net = network(SMALL)
    with torch.no_grad():
        made = net(torch.rand(2, 3, *size), net.perturbation(torch.from_numpy(code("noise"))[None]))
    assert made.shape == (2, 3, *size) and made.isfinite().all()


@pytest.mark.parametrize("size", [(4, 8), (12, 16), (16, 20), (9, 9)])
def test_a_frame_that_is_no_multiple_of_8_is_never_restored(size: tuple[int, int]) -> None:
    net = network(SMALL)
    with pytest.raises(CubeError, match="multiples of 8"):
        net(torch.rand(1, 3, *size), torch.zeros(1, sum(SMALL.perturbation)))


def test_three_bands_are_a_photograph_and_others_a_cube() -> None:
    photo, cube = (network_of(network(c)).signature(16, 24) for c in (SMALL, WIDER))
    assert (photo.measured.kind, photo.restored.kind, photo.band_groups) == ("rgb", "rgb", False)
    assert (cube.measured.kind, cube.restored.kind, cube.band_groups) == ("cube", "cube", True)
    assert photo.ports.inputs == {"frame": (1, 3, 16, 24), "perturbation": (1, sum(SMALL.perturbation))}
    assert photo.ports.outputs == {"restored": (1, 3, 16, 24)}
    assert sum(DfpirConfig().perturbation) == 195_840 + 720


@pytest.mark.parametrize(
    "change",
    [
        {"heads": (1, 2, 4)},
        {"heads": (0, 2, 4, 8)},
        {"heads": (8, 2, 4, 8)},
        {"heads": (3, 1, 1, 1)},
        {"blocks": (1, 1, 1, -1)},
        {"hidden": (16, 32, 64, 0)},
        {"dim": 7},
        {"dim": 0},
        {"dim": 112},
        {"bands": 0},
        {"text": 0},
        {"refinement_blocks": -1},
        {"norm": "LayerNorm"},
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(SMALL, **change)


# Checkpoints


@pytest.mark.parametrize("name", ODD)
def test_any_configuration_is_read_off_its_shapes(tmp_path: Path, name: str) -> None:
    net = network(ODD[name])
    torch.save(
        {"epoch": 3, "state_dict": net.state_dict(), "optimizer": {"state": {}}, "scheduler": {}},
        tmp_path / "net.pth.tar",
    )
    again = load_checkpoint(tmp_path / "net.pth.tar")
    assert again.module.config == ODD[name] and again.facts.weights == "state_dict"
    assert again.options == {} and again.configuration["prompts"] == []


def altered(tmp_path: Path, change: dict[str, object]) -> CheckpointError:
    state = {**network(SMALL).state_dict(), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "net.pth")
    return caught.value


LEVEL2, LATENT = "encoder_shuffle_channel2", "latent_shuffle_channel"


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"patch_embed.proj.weight": None}, "patch_embed.proj.weight", "missing"),
        ({f"{LEVEL2}.select_attn.temperature": None}, f"{LEVEL2}.select_attn.temperature", "missing"),
        ({f"{LEVEL2}.select_attn.attn4": None}, f"{LEVEL2}.select_attn.attn4", "missing key"),
        ({f"{LATENT}.linear_layer1.weight": torch.zeros(16)}, f"{LATENT}.linear_layer1.weight", "2 axes expected"),
        ({"output.weight": torch.zeros(4, 16, 3, 3)}, "output.weight", "[3, 16, 3, 3] expected"),
        ({"latent.0.attn.temperature": torch.ones(4, 1, 1)}, "latent.0.attn.temperature", "[2, 1, 1] expected"),
        ({"latent.1.norm1.body.weight": torch.ones(64)}, "latent.1.norm1.body.bias", "missing key and"),
        ({"output.weight": torch.zeros(3, 16, 3, 3, dtype=torch.int8)}, "output.weight", "wrong type"),
        ({"output.bias": torch.zeros(3)}, "encoder_level1.0.attn.qkv.bias", "missing key and"),
        ({"up2_1.body.0.bias": torch.zeros(16)}, "up2_1.body.0.bias", "extra key"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, change: dict[str, object], key: str, words: str
) -> None:  # fmt: skip
    error = altered(tmp_path, change)
    assert error.key == key and error.exit_code == 2 and words in error.problem


def test_a_training_that_did_not_improve_left_a_file_without_weights(tmp_path: Path) -> None:
    for content, key in (({}, None), ({"epoch": 1, "state_dict": {}, "optimizer": {"state": {}}}, "state_dict")):
        torch.save(content, tmp_path / "net.pth.tar")
        with pytest.raises(CheckpointError, match="no state dict: it is empty") as caught:
            load_checkpoint(tmp_path / "net.pth.tar")
        assert caught.value.key == key and "another checkpoint" in caught.value.remedy


def test_an_option_beside_the_weights_must_not_contradict_them(tmp_path: Path) -> None:
    torch.save(network(SMALL).state_dict(), tmp_path / "net.pth")
    (tmp_path / "config.json").write_text(json.dumps({"dim": 48, "prompts": 7}))
    with pytest.raises(CheckpointError, match="the options say 48, the weights say 8") as caught:
        load_checkpoint(tmp_path / "net.pth")
    assert caught.value.key == "dim"
    (tmp_path / "config.json").write_text(json.dumps({"heads": [1, 1, 2, 2], "prompts": 7}))
    assert load_checkpoint(tmp_path / "net.pth").module.config == SMALL
