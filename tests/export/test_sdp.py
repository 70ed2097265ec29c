"""A spectral diffusion prior inside MST and BiSRNet: its start, its chain, its keys, its graph, and its latent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch

from calibration.typed import nodes_in_half
from export.networks import Network, load_checkpoint, network_of, save_checkpoint
from export.networks.architecture import Option
from export.networks.bisrnet import Bisrnet, BisrnetConfig
from export.networks.mst import Mst, MstConfig
from export.networks.sdp import ARCHITECTURE, FULL, SMALL, Sdp, SdpConfig, blank, noise, wrap
from export.networks.sdp.prior import Diffusion, remaining, schedule
from export.onnx import Graph, export_graph
from export.torch_engine import TorchEngine
from runtime.engines import EngineOptions, open_engine
from runtime.engines.onnx_guard import check_onnx
from runtime.errors import CheckpointError, CubeError
from runtime.simulation.cassi import DISPERSED
from tests.contracts.network import NetworkContract
from tests.export.snapshots import SIDE, bands_of, mask_file, seeded, small_mask, snapshot_network

TINY = SdpConfig(latent_dims=8, hfe_width=4, hfe_blocks=1, denoiser_layers=2)
SHALLOW, BARE = MstConfig((1, 1)), BisrnetConfig(1, (0, 1, 0))
FRAME = SIDE, SIDE + DISPERSED


def informed(config: MstConfig | BisrnetConfig = SHALLOW, prior: SdpConfig = TINY, seed: int | None = 0) -> Any:
    """A network whose prior is not neutral; weights follow from their keys."""
    net = seeded(wrap(snapshot_network(config, small_mask()), prior))
    net.seed = seed
    return net


class TestSdp(NetworkContract):
    OPTIONS: ClassVar[dict[str, Option]] = {}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def masked(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.OPTIONS = {"mask": str(mask_file(tmp_path_factory.mktemp("mask")))}

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> Network:
        return network_of(informed())

    @pytest.fixture(scope="class")
    @classmethod
    def other(cls) -> Network:
        return network_of(informed(BARE, replace(TINY, latent_dims=5, spim_sites="block")))


@pytest.mark.parametrize("prior", [TINY, replace(TINY, spim_sites="block")], ids=["group", "block"])
@pytest.mark.parametrize("config", [SHALLOW, BARE], ids=["mst", "bisrnet"])
def test_a_prior_changes_nothing_at_its_start_and_something_later(config: Any, prior: SdpConfig) -> None:
    backbone = snapshot_network(config, small_mask())
    net, told = wrap(backbone, prior), informed(config, prior)
    given = bands_of(backbone)
    with torch.no_grad():
        assert torch.equal(net(given), backbone(given)) and torch.equal(net(given, torch.ones(1, 1, 8)), net(given))
        assert not torch.equal(told(given), backbone(given))
        static = [ARCHITECTURE.static(net)(given), network_of(backbone).architecture.static(backbone)(given)]
    assert torch.equal(*static)


@pytest.mark.parametrize(("prior", "parameters"), [(FULL, 1_277_360), (SMALL, 383_856)], ids=["full", "small"])
@pytest.mark.parametrize("config", [MstConfig(), BisrnetConfig()], ids=["mst", "bisrnet"])
def test_its_parts_are_as_large_and_called_as_they_should_be(config: Any, prior: SdpConfig, parameters: int) -> None:
    with torch.device("meta"):
        net = blank(config, prior)
        backbone = (Mst if isinstance(config, MstConfig) else Bisrnet)(config)
    state, own = net.state_dict(), backbone.state_dict()
    added = [key for key in state if key not in own]
    assert sum(state[key].numel() for key in added) == parameters and own.keys() < state.keys()
    ends = "weight", "bias"
    assert set(added) == {
        f"{part}.{end}"
        for end in ends
        for part in (
            "hfe.first", "hfe.last", "hfe.mlp.0", "hfe.mlp.2",
            *(f"hfe.blocks.{i}.{j}" for i in range(prior.hfe_blocks) for j in (0, 2)),
            "diffusion.net.first", *(f"diffusion.net.rest.{i}" for i in range(5)),
            *(f"spim.{k}.{name}" for k in range(5) for name in ("scale", "shift")),
        )
    }  # fmt: skip
    assert [len(part.shift.bias) for part in net.spim] == [28, 56, 112, 56, 28]


def test_every_part_of_a_block_is_a_place_of_its_own() -> None:
    with torch.device("meta"):
        mst = blank(MstConfig((2, 1, 3)), replace(TINY, spim_sites="block"))
        binary = blank(BisrnetConfig(2, (1, 0, 2)), replace(TINY, spim_sites="block"))
    assert [len(part.shift.bias) for part in mst.spim] == [28] * 4 + [56] * 2 + [112] * 6 + [56] * 2 + [28] * 4
    assert [len(part.shift.bias) for part in binary.spim] == [28, 112, 112, 28] * 2


def test_the_schedule_is_the_one_that_is_meant() -> None:
    np.testing.assert_allclose(remaining(FULL), [1, 0.9, 0.543, 0.16652, 0.0016652], rtol=1e-12)
    *_, (p, q) = schedule(FULL)
    assert (p, q) == (pytest.approx(1, abs=1e-12), pytest.approx(0, abs=1e-12))
    # A prior that is known exactly is kept, and what is left of the noise is that of the posterior mean.
    for (p, q), now, before in zip(schedule(FULL), remaining(FULL)[::-1], remaining(FULL)[-2::-1], strict=False):
        assert p + q * now**0.5 == pytest.approx(before**0.5)


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_the_chain_is_that_of_float64(steps: int) -> None:
    config = replace(TINY, diffusion_steps=steps)
    diffusion, rng = seeded(Diffusion(config)), np.random.default_rng(0)
    start, told = rng.standard_normal((2, 3, 8))
    with torch.no_grad():
        found = diffusion(*(torch.from_numpy(each.astype(np.float32)) for each in (start, told))).numpy()
    weights = {key: value.double().numpy() for key, value in diffusion.state_dict().items()}
    betas = np.linspace(0.1, 0.99, steps)
    left = np.cumprod(1 - betas)
    for t in range(steps, 0, -1):
        before, now, beta = left[t - 2] if t > 1 else 1.0, left[t - 1], betas[t - 1]
        made = np.concatenate([told, np.full((3, 1), t / steps), start], axis=1)
        for index, name in enumerate(("first", "rest.0", "rest.1")):
            made = made @ weights[f"net.{name}.weight"].T + weights[f"net.{name}.bias"]
            made = np.where((made < 0) & (index < 2), 0.1 * made, made)
        start = (beta * before**0.5 * made + (1 - before) * (1 - beta) ** 0.5 * start) / (1 - now)
    np.testing.assert_allclose(found, start, atol=1e-5 * np.ptp(start))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return export_graph(network_of(informed(seed=None)), *FRAME)


def answers(net: Sdp, graph: Graph) -> list[tuple[np.ndarray, np.ndarray]]:
    """(PyTorch's, ONNX Runtime's) of two measurements, and of two latents where the graph takes one."""
    signature, found = network_of(net).signature(*FRAME), []
    check_onnx(graph.data)
    with open_engine("onnxruntime", graph.data, signature, EngineOptions(1)) as engine, torch.no_grad():
        for scene in (3, 4):
            for latent in (1, 2) if net.seed is None else (None,):
                given = {"measurement": bands_of(net, scene).numpy()}
                if latent is not None:
                    given["latent"] = noise(latent, net.prior)
                expected = net(*map(torch.from_numpy, given.values())).numpy()
                found.append((expected, engine.infer(given)["cube"]))
    return found


def assert_answers(found: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for expected, made in found:
        assert np.abs(made - expected).max() < 2e-5 * np.ptp(expected)
    # All differ: what does not see the measurement's prior or its latent looks right with one of them.
    for index, (expected, _) in enumerate(found):
        assert all(np.abs(expected - other).max() > 1e-3 * np.ptp(expected) for other, _ in found[:index])


def test_onnx_runtime_gives_what_torch_does_for_two_measurements_and_two_latents(graph: Graph) -> None:
    found = answers(informed(seed=None), graph)
    assert len(found) == 4
    assert_answers(found)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 8])
def test_onnx_runtime_gives_it_in_so_many_steps_at_every_place(steps: int) -> None:
    net = informed(MstConfig((1, 1, 1)), replace(TINY, diffusion_steps=steps, spim_sites="block"), seed=7)
    assert_answers(answers(net, export_graph(network_of(net), *FRAME)))


def test_what_is_told_is_float32_in_every_precision(graph: Graph) -> None:
    names = [node.name for node in onnx.load_model_from_string(graph.data).graph.node]
    exact = {name for name in names if ARCHITECTURE.exact(name)}
    assert any(name.startswith("hfe/ReduceMean") for name in exact)
    assert {name.partition(".")[0] for name in exact} >= {"diffusion", "spim"}
    half = nodes_in_half(graph.data, exact)
    assert not exact & half and "hfe.first/Conv" in half


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "prior", "nodes"),
    [(MstConfig(), FULL, 600), (MstConfig(), SMALL, 592), (BisrnetConfig(), SMALL, 770)],
    ids=["mst-full", "mst-small", "bisrnet-small"],
)
def test_its_graph_has_few_nodes(config: Any, prior: SdpConfig, nodes: int) -> None:
    net = seeded(wrap(snapshot_network(config, small_mask(256, 256)), prior))
    assert export_graph(network_of(net), 256, 310).nodes <= nodes


def test_its_latent_is_of_a_seed_or_an_input(tmp_path: Path, graph: Graph) -> None:
    file = save_checkpoint(network_of(informed(seed=3)), tmp_path / "net.safetensors")
    kept, asked = load_checkpoint(file), load_checkpoint(file, latent="input")
    assert kept.options == {"latent": 3} and kept.configuration["latent"] == 3 and not kept.constants
    given = bands_of(kept.module)
    with torch.no_grad():
        wanted = kept(given, torch.from_numpy(noise(3, TINY)))
        assert torch.equal(kept(given), wanted) and not torch.equal(load_checkpoint(file, latent=4)(given), wanted)
    np.testing.assert_array_equal(noise(3, TINY), np.random.default_rng(3).standard_normal((1, 1, 8)).astype("f4"))
    (prompt,) = asked.smallest.prompts
    assert (prompt.name, prompt.shape, prompt.kind, prompt.of) == (
        "latent",
        (1, 1, 8),
        "constant",
        "prompts/latent.npy",
    )
    np.testing.assert_array_equal(asked.constants["latent"], noise(0, TINY))
    given = {"measurement": given.numpy(), "latent": noise(3, TINY)}
    found = TorchEngine(asked, *FRAME, form="deployment").infer(given)["cube"]
    assert np.abs(found - wanted.numpy()).max() < 1e-5 * np.ptp(found)
    inputs = [i.name for i in onnx.load_model_from_string(graph.data).graph.input]
    assert inputs == ["measurement", "latent"]


@pytest.mark.parametrize("said", [-1, 1.5, True, "noise", "3"])
def test_what_is_no_latent_is_refused(said: Option, tmp_path: Path) -> None:
    file = save_checkpoint(network_of(informed()), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="is no latent") as caught:
        load_checkpoint(file, latent=said)
    assert caught.value.key == "latent" and "input" in str(caught.value.remedy)


def test_a_latent_of_another_shape_is_refused() -> None:
    net = informed(seed=None)
    for shape in ((1, 8), (1, 1, 7), (2, 1, 8)):
        with pytest.raises(CubeError, match="latent"):
            net(bands_of(net), torch.zeros(shape))


def test_a_backbone_of_a_public_checkpoint_takes_a_prior(tmp_path: Path) -> None:
    torch.save({"state_dict": snapshot_network(SHALLOW).state_dict()}, tmp_path / "public.pth")
    backbone = load_checkpoint(tmp_path / "public.pth", mask=str(mask_file(tmp_path)))
    assert backbone.architecture.id == "mst"
    again = load_checkpoint(save_checkpoint(network_of(wrap(backbone.module, TINY)), tmp_path / "sdp.safetensors"))
    assert again.architecture.id == "sdp" and again.configuration["backbone"] == "mst"
    assert again.configuration["blocks"] == (1, 1) and "mst of 1, 1 blocks" in again.architecture.about(again.module)
    given = bands_of(again.module)
    with torch.no_grad():
        assert torch.equal(again(given), backbone(given))


def test_a_binary_backbone_is_of_float32_and_held_by_quality() -> None:
    for config, reason, parity in ((SHALLOW, "", "elements"), (BARE, "sign", "quality")):
        net = network_of(informed(config))
        told = ARCHITECTURE.float32_only(net.module)
        assert reason in told and bool(told) == bool(reason) and ARCHITECTURE.parity(net.module) == parity
        assert len(net.wavelengths) == 28


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"latent_tokens": 16}, "latent_tokens must be 1"),
        ({"spim_sites": "head"}, "spim_sites must be group or block"),
        ({"predicts": "noise"}, "predicts must be prior"),
        ({"diffusion_steps": 0}, "diffusion_steps"),
        ({"last_beta": 1.0}, "betas"),
    ],
    ids=str,
)
def test_an_impossible_prior_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(TINY, **changes)
