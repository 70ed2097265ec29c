"""DPMambaIR after the paper: the contract, its parameters, its scan, its extractor, its checkpoints."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.networks import load_checkpoint, network_of, save_checkpoint
from export.networks.dpmambair import ARCHITECTURE, DPMambaConfig, DPMambaIR
from export.networks.dpmambair import scan as scanning
from export.networks.dpmambair.config import CHOICES
from export.networks.dpmambair.extractor import merged
from export.networks.dpmambair.scan import chunk, scan
from export.onnx import compare, export_extractor, export_graph
from runtime.engines import EngineOptions
from runtime.engines.onnxruntime_cpu import open_session
from runtime.errors import CheckpointError, CubeError
from tests.contracts.engine import inputs
from tests.contracts.network import NetworkContract
from tests.export.dpmambair import OTHER, SPANS, TINY, dpmambair, one_by_one, scanned, sequential

EVERY = [
    *({"high_frequency": value} for value in CHOICES["high_frequency"]),
    *({"discretisation": value} for value in CHOICES["discretisation"]),
    *({"order": value} for value in CHOICES["order"]),
    {"modulation": "full"},
    {"modulation": "full", "delta": "outside"},
    {"bands": 1},
    {"states": 1},
    {"expand": 1},
    {"expansion": 2.66},
    {"cdc_kernels": (), "plain_kernel": 3},
    {"cdc_kernels": (5,), "plain_kernel": 1, "theta": 0.5},
    {"extractor_widths": (4,)},
]


class TestDPMambaIR(NetworkContract):
    @pytest.fixture(scope="class")
    @classmethod
    def network(cls):
        return network_of(dpmambair())

    @pytest.fixture(scope="class")
    @classmethod
    def other(cls):
        return network_of(dpmambair(OTHER, 1))


def test_the_default_network_is_as_large_as_it_should_be() -> None:
    with torch.device("meta"):
        net = DPMambaIR(DPMambaConfig())
    assert sum(p.numel() for p in net.parameters()) == 29_460_922
    assert sum(p.numel() for p in net.extractor.parameters()) == 2_822_912
    assert sum(b.ssm.modulation.out_features for b in net.modules() if hasattr(b, "ssm")) == 1_636


@pytest.mark.parametrize("embedding, parameters", [(256, 28.94), (384, 29.20), (1024, 30.50)])
def test_embeddings_of_other_sizes(embedding: int, parameters: float) -> None:
    with torch.device("meta"):
        net = DPMambaIR(DPMambaConfig(embedding=embedding))
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)


@pytest.mark.parametrize("how", CHOICES["discretisation"])
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("length", [1, 2, 9, 17, 24, 64, 100, 1041])
def test_chunks_are_the_sequential_scan(span: str, how: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.networks.dpmambair.scan.CACHED", 4 * 10 * length)
    given = scanned(span, length, batch=2)
    expected = sequential(*given, how)
    limit = 1e-12 * float(expected.max() - expected.min() + 1e-9)
    for size in {chunk(length), 3, min(length, 16)}:
        assert (scan(*given, how, size) - expected).abs().max() <= limit
    single = scan(*(t.float() for t in given), how)
    assert (single - expected).abs().max() <= 1e6 * limit


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_sequential_scan(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_learned", scanning._learned)
    if compiled:
        scanning.compile_learning()
    net = dpmambair(replace(TINY, discretisation="zoh")).double()
    frame, embedding = torch.rand(2, 3, 16, 16).double(), torch.rand(2, 12).double()

    def gradients() -> list[torch.Tensor]:
        return torch.autograd.grad(net(frame, embedding).square().sum(), [p for n, p in net.named_parameters() if
                                                                          "extractor" not in n])  # fmt: skip

    found = gradients()
    with one_by_one():
        expected = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


SEVERAL = {
    "high_frequency": CHOICES["high_frequency"][-1], "discretisation": "zoh", "order": CHOICES["order"][-1],
    "modulation": "full", "delta": "outside", "bands": 1, "states": 3, "expansion": 2.66, "extractor_widths": (4,),
    "cdc_kernels": (5,), "plain_kernel": 1, "theta": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("changed", [SEVERAL, *(pytest.param(each, marks=pytest.mark.slow) for each in EVERY)], ids=str)
def test_every_choice_is_built_exported_and_read_back(changed: dict[str, object], tmp_path: Path) -> None:
    net = network_of(dpmambair(replace(TINY, **changed)))
    size = (24, 24)
    given = [inputs(net.signature(*size), 0)]
    assert compare(net, export_graph(net, *size), given, size).difference < 1e-5
    again = load_checkpoint(save_checkpoint(net, tmp_path / "net.safetensors"))
    assert again.configuration == net.configuration
    assert again.smallest.measured.kind == ("cube" if "bands" in changed else "rgb")


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"dim": 7}, "dim"),
        ({"order": "spiral"}, "order"),
        ({"delta": "outside"}, "modulation full only"),
        ({"theta": 0.5, "plain_kernel": 4}, "odd"),
        ({"encoder_blocks": (1, 1)}, "encoder_blocks"),
        ({"encoder_blocks": (0, 0, 0, 0)}, "a block"),
        ({"expand": 0}, "expand"),
        ({"extractor_widths": ()}, "extractor_widths"),
        ({"embedding": 0}, "embedding"),
    ],
)
def test_impossible_configurations_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(TINY, **changed)


def test_frames_that_do_not_halve_three_times_are_refused() -> None:
    with pytest.raises(CubeError, match="multiples of 8"):
        dpmambair()(torch.zeros(1, 3, 12, 8), torch.zeros(1, 12))


# The extractor


def test_a_merged_extractor_gives_what_its_branches_do() -> None:
    net = dpmambair(branched=True).double()
    frame = torch.rand(2, 3, 24, 16, dtype=torch.float64)
    one = merged(net.extractor, net.config)
    assert not hasattr(one, "branches")
    with torch.no_grad():
        found, expected = one(frame), net.extractor(frame)
    assert (found - expected).abs().max() <= 1e-12 * (expected.max() - expected.min())


def test_branches_are_merged_when_they_are_loaded(tmp_path: Path) -> None:
    net = dpmambair(branched=True)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    for again in (
        load_checkpoint(tmp_path / "net.pth"),
        load_checkpoint(save_checkpoint(network_of(net), tmp_path / "net.safetensors")),
    ):
        assert again.configuration == net.config.as_dict()
        frame = torch.rand(1, 3, 16, 16)
        torch.testing.assert_close(again.module.extractor(frame), net.extractor(frame))
    weaker = load_checkpoint(tmp_path / "net.pth", theta=0.0)
    assert weaker.options["theta"] == 0 and not torch.allclose(weaker.module.extractor(frame), net.extractor(frame))


def test_embeddings_of_tiles_average_to_that_of_their_pooled_features() -> None:
    extractor = dpmambair().double().extractor
    tiles = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        together = extractor.embed(extractor.features(tiles).mean(0))
        torch.testing.assert_close(extractor(tiles).mean(0), together, rtol=0, atol=1e-14)


@pytest.mark.parametrize("branched", [False, True])
def test_the_extractors_graph_is_the_extractor(branched: bool) -> None:
    net = network_of(dpmambair(branched=branched))
    signature = net.signature(32, 40)
    graph = export_extractor(net, signature)
    frame = np.random.default_rng(0).random(signature.measured.shape, np.float32)
    session = open_session(graph.data, signature.embedding_ports, EngineOptions())
    with torch.no_grad():
        expected = net.module.extractor(torch.from_numpy(frame)).numpy()
    (found,) = session.compute(frame, np.ones((1, 1, 32, 40), np.float32))
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.ptp(expected))
    # What has no share is not there, but for what convolutions see beside it.
    share = np.zeros((1, 1, 32, 40), np.float32)
    share[..., :24, :24] = 1
    frame[..., 24:, :], frame[..., 24:] = 0, 0
    (found,) = session.compute(frame, share)
    with torch.no_grad():
        features = net.module.extractor.features(torch.from_numpy(frame), torch.from_numpy(share))
    np.testing.assert_allclose(
        found, net.module.extractor.embed(features).detach().numpy(), atol=2e-6 * np.ptp(expected)
    )


# Checkpoints


def test_a_mambair_is_not_taken_for_one() -> None:
    keys = [f"layers.0.blocks.0.self_attention.{name}" for name in ("A_logs", "Ds", "x_proj_weight")]
    assert not ARCHITECTURE.recognises(keys)
    assert not ARCHITECTURE.recognises([*keys, "extractor.embed.weight"])
    own = dpmambair().state_dict().keys()
    assert not ARCHITECTURE.recognises([key for key in own if not key.startswith("extractor.")])
    assert not ARCHITECTURE.recognises([key for key in own if not key.endswith("A_log")])


def test_what_shapes_do_not_tell_is_said(tmp_path: Path) -> None:
    net = dpmambair(replace(TINY, modulation="full"))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    bare = load_checkpoint(tmp_path / "net.pth")
    assert bare.options == {"delta": "inside", "discretisation": "euler", "order": "rows", "theta": 0.7}
    said = load_checkpoint(tmp_path / "net.pth", delta="outside", discretisation="zoh", order="columns")
    assert said.module.config == replace(net.config, delta="outside", discretisation="zoh", order="columns")
    save_checkpoint(said, tmp_path / "said.safetensors")
    for file, name, value in (("net.pth", "theta", 0.1), ("said.safetensors", "order", "rows")):
        with pytest.raises(CheckpointError, match="the weights were trained with") as caught:
            load_checkpoint(tmp_path / file, **{name: value})
        assert caught.value.key == name
    for name, value in {"delta": "beside", "order": 1, "theta": "much"}.items():
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / "net.pth", **{name: value})
        assert caught.value.key == name
    torch.save(dpmambair().state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "net.pth", delta="outside")
    assert caught.value.key == "delta"


@pytest.mark.parametrize("branched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_missing_extra_and_misshapen_keys_are_named(branched: bool, tmp_path: Path) -> None:
    state = dpmambair(branched=branched).state_dict()
    # One of each kind: blocks are alike.
    for key in {re.sub(r"\d+", "", key): key for key in state}.values():
        value = state[key]
        for change in ({key: None}, {key: value[..., None]}, {key: value.to(torch.int64)}, {key + ".more": value}):
            if change == {"extractor.branches.central.3.weight": None}:
                # Three branches are a network as well.
                continue
            kept = {k: v for k, v in {**state, **change}.items() if v is not None}
            torch.save(kept, tmp_path / "net.pth")
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(tmp_path / "net.pth")
            assert f"{caught.value.key}".startswith("extractor.branches" if "branches" in key else "")
            assert caught.value.key is not None


def test_a_configuration_that_the_weights_contradict_is_refused(tmp_path: Path) -> None:
    net = dpmambair()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    for text, key in (('{"states": 5}', "states"), ('{"plain_kernel": 11}', "plain_kernel"), ('{"dim": "8"}', "dim")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / "net.pth")
        assert caught.value.key == key
