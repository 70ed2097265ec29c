"""What the toolkit asks of a kind of network: options by name, modules by class, and a form that fits its signature."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from calibration.measuring import TASKS
from export.networks import ARCHITECTURES, Network, load_checkpoint, network_of, save_checkpoint
from export.networks.architecture import UNSAVED
from export.networks.damp import ARCHITECTURE
from export.onnx import compare, diverse_probes, export_graph
from export.torch_engine import TorchEngine
from runtime.errors import CheckpointError, MachineError
from runtime.signature import Plane, Prompt, Side, Signature
from tests.contracts.engine import inputs
from tests.contracts.stranger import STRANGER, stranger
from tests.export.checkpoints import SMALL, network

SIZE = (64, 64)


@pytest.fixture(scope="module")
def small() -> Network:
    return network_of(network(SMALL))


@pytest.fixture(scope="module")
def single() -> Network:
    """A DAMP without mixtures, which has nothing to choose."""
    return network_of(network(dataclasses.replace(SMALL, encoder_blocks=(1, 0, 0, 0), decoder_blocks=(0, 0, 0))))


# Options


@pytest.mark.parametrize("options", [{"topk": 1}, {"top_k": 1, "gain": 2.0}, {"Top_k": 1}], ids=str)
def test_an_unknown_option_is_refused_by_name_beside_those_known(
    small: Network, tmp_path: Path, options: dict[str, float]
) -> None:
    unknown = next(name for name in options if name != "top_k")
    path = save_checkpoint(small, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="a damp network has no such option") as caught:
        load_checkpoint(path, **options)
    error = caught.value
    assert (error.key, error.value, error.file) == (unknown, options[unknown], str(path))
    assert error.exit_code == 2 and "top_k" in error.remedy


def test_an_architecture_without_options_says_so() -> None:
    without = dataclasses.replace(STRANGER, options={})
    with pytest.raises(CheckpointError, match="it has none"):
        without.check_options({"gain": 2.0}, Path("net.pth"))
    without.check_options({}, Path("net.pth"))


def test_options_are_told_from_what_was_said_or_the_file(tmp_path: Path) -> None:
    net = network_of(network(dataclasses.replace(SMALL, experts=3, top_k=2)))
    path = save_checkpoint(net, tmp_path / "net.safetensors")
    assert net.options == load_checkpoint(path).options == {"top_k": 2}
    assert load_checkpoint(path, 1).options == load_checkpoint(path, top_k=1).options == {"top_k": 1}
    assert load_checkpoint(path, 3).configuration == {**net.configuration, "top_k": 3}


def test_options_of_another_architecture_are_taken_by_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, STRANGER.id, STRANGER)
    path = save_checkpoint(stranger(), tmp_path / "net.safetensors")
    assert load_checkpoint(path).options == {"gain": 1.0}
    assert load_checkpoint(path, gain=0.5).options == {"gain": 0.5}
    with pytest.raises(CheckpointError, match="unmixer network has no such option") as caught:
        load_checkpoint(path, 1)
    assert caught.value.key == "top_k" and "gain" in caught.value.remedy


# Modules


def test_a_module_that_was_made_here_becomes_a_network() -> None:
    module = network(SMALL).train()
    net = network_of(module)
    assert net.module is module and not module.training
    assert net.architecture is ARCHITECTURE and net.facts is UNSAVED
    assert net.configuration == SMALL.as_dict() and net.parameters == sum(p.numel() for p in module.parameters())
    assert net.smallest == net.signature(64, 64) and net.constants == {}


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Module(), nn.Sequential(nn.Identity())], ids=repr)
def test_a_strangers_module_belongs_to_no_architecture(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"{type(module).__name__} belongs to no known architecture"):
        network_of(module)
    with pytest.raises(TypeError, match="Unmixer"):
        network_of(stranger().module)


def test_damp_is_measured_by_the_degradations() -> None:
    assert ARCHITECTURE.tasks == TASKS and ARCHITECTURE.measure is None


# Signature and static form


def test_the_signature_of_a_damp_is_its_configuration(small: Network) -> None:
    config, found = small.module.config, small.signature(64, 128)
    assert found.ports.inputs == {"frame": (1, config.bands, 64, 128), "metrics": (1, config.metrics)}
    assert found.ports.outputs == {"restored": (1, config.bands, 64, 128), "routing": (config.layers, config.experts)}
    assert found.metrics is not None and found.metrics.of == config.metric_set
    assert found.tiling == "free" and found.band_groups and found.alike


def test_a_damp_without_mixtures_gives_the_frame_alone(single: Network) -> None:
    signature = single.signature(*SIZE)
    assert signature.side == () and signature.routing is None
    assert list(signature.ports.outputs) == ["restored"] and list(signature.ports.inputs) == ["frame", "metrics"]
    given = inputs(signature, 0)
    tensors = [torch.from_numpy(array) for array in given.values()]
    with torch.inference_mode():
        made = single.architecture.static(single.module)(*tensors)
        assert len(made) == 1 and made[0].shape == signature.restored.shape
        torch.testing.assert_close(made[0], single(*tensors)[0], rtol=0, atol=1e-5)
    for form in ("reference", "deployment"):
        found = TorchEngine(single, *SIZE, form=form).infer(given)
        assert list(found) == ["restored"] and not np.array_equal(found["restored"], given["frame"])
    found, margins = TorchEngine(single, *SIZE).infer_with_margins(given)
    assert list(found) == ["restored"] and margins.shape == (0,)


def test_a_damp_without_mixtures_is_exported_and_compared(single: Network) -> None:
    signature = single.signature(*SIZE)
    probes = diverse_probes(single, [inputs(signature, seed) for seed in range(4)], wanted=2)
    assert len(probes) == 2, "there is nothing to choose by"
    graph = export_graph(single, *SIZE)
    assert [o.name for o in onnx.load_model_from_string(graph.data).graph.output] == ["restored"]
    agreement = compare(single, graph, probes, SIZE)
    assert (agreement.routing, agreement.choices, agreement.probes) == (0.0, 0, 2)
    assert agreement.difference <= agreement.limit


def test_margins_are_of_the_layers_that_choose(small: Network) -> None:
    made, margins = TorchEngine(small, *SIZE).infer_with_margins(inputs(small.signature(*SIZE), 0))
    assert list(made) == ["restored", "routing"] and margins.shape == (small.module.config.layers,)
    assert (margins > 0).all() and (margins < 1).all()
    net = stranger()
    made, margins = TorchEngine(net, 16, 16).infer_with_margins(inputs(net.signature(16, 16), 0))
    assert list(made) == ["restored"] and margins.shape == (0,)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_choices_for_other_metrics_are_those_of_a_run(top_k: int) -> None:
    net = network_of(network(dataclasses.replace(SMALL, experts=4, top_k=top_k)))
    engine, feeds = TorchEngine(net, *SIZE), inputs(net.signature(*SIZE), 0)
    made, choices = engine.infer_with_choices(feeds)
    np.testing.assert_array_equal(made["routing"], engine.infer(feeds)["routing"])
    tried = np.random.default_rng(0).standard_normal((8, feeds["metrics"].shape[1])).astype(np.float32)
    for metrics, chosen, margins in zip(tried, *choices(tried), strict=True):
        other, ahead = engine.infer_with_margins({**feeds, "metrics": metrics[None]})
        np.testing.assert_array_equal(chosen, other["routing"] > 0)
        np.testing.assert_allclose(margins, ahead, atol=1e-6)
    assert len(np.unique(choices(tried)[0], axis=0)) > (top_k == 1)


class Turned(nn.Module):
    """Gives its bands last, and more than it promised."""

    def forward(self, frame: Tensor, *prompts: Tensor) -> tuple[Tensor, ...]:
        return frame.permute(0, 2, 3, 1), *(torch.ones(3) for _ in prompts)


@pytest.mark.parametrize(("prompts", "told"), [(0, "restored: "), (1, "outputs: ")])
def test_outputs_that_the_signature_does_not_have_are_refused(prompts: int, told: str) -> None:
    named = tuple(Prompt("code", (1, 4), "constant", "prompts/code.npy") for _ in range(prompts))
    signature = Signature(Plane("cube", 4, 8, 16), Plane("restored", 4, 8, 16), named)
    architecture = dataclasses.replace(STRANGER, signature=lambda net, lines, samples: signature)
    engine = TorchEngine(Network(Turned(), architecture), 8, 16)
    with pytest.raises(MachineError, match=told):
        engine.infer(inputs(signature, 0))


def test_routing_that_chooses_nothing_has_clear_margins() -> None:
    class Soft(nn.Module):
        def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
            return frame, torch.full((1, 2, 4), 0.25)

    signature = Signature(Plane("cube", 4, 8, 16), Plane("restored", 4, 8, 16), side=(Side("routing", (2, 4)),))
    architecture = dataclasses.replace(STRANGER, signature=lambda net, lines, samples: signature)
    made, margins = TorchEngine(Network(Soft(), architecture), 8, 16).infer_with_margins(inputs(signature, 0))
    assert made["routing"].shape == (2, 4) and margins.tolist() == [1, 1]
