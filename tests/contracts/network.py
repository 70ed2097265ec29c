"""What every network must do. A test class for an architecture inherits `NetworkContract` and gives `network`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch

from export.networks import ARCHITECTURES, Network, load_checkpoint, network_of, save_checkpoint
from export.networks.architecture import Option
from export.networks.places import WRAPPER
from export.onnx import compare, export_graph
from export.torch_engine import TorchEngine
from runtime.errors import CheckpointError, InputError
from tests.contracts.engine import assert_equal, inputs


class NetworkContract:
    """Tests of one architecture; `network` is one of its networks with seeded weights, `other` of another shape."""

    OPTIONS: ClassVar[dict[str, Option]] = {}
    """What has to be said to load a bare state dict."""

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> Network:
        raise NotImplementedError("give the network under test")

    @pytest.fixture(scope="class")
    @classmethod
    def other(cls) -> Network:
        raise NotImplementedError("give a network of other hyper-parameters")

    @staticmethod
    def sizes(network: Network) -> list[tuple[int, int]]:
        """The two smallest frames, or the only one."""
        multiple = network.architecture.multiple
        return list(dict.fromkeys(network.frame(multiple, samples) for samples in (multiple, 2 * multiple)))

    def test_it_is_found_by_its_id_and_its_module(self, network: Network) -> None:
        architecture = network.architecture
        assert ARCHITECTURES[architecture.id] is architecture
        assert network_of(network.module).architecture is architecture
        assert not network.module.training
        # By which a bundle of it is judged.
        assert architecture.tasks

    def test_no_other_architecture_recognises_its_keys(self, network: Network) -> None:
        keys = network.module.state_dict().keys()
        assert [a.id for a in ARCHITECTURES.values() if a.recognises(keys)] == [network.architecture.id]

    def test_it_gives_what_its_signature_says(self, network: Network) -> None:
        for size in self.sizes(network):
            engine = TorchEngine(network, *size)
            made = engine.infer(inputs(engine.signature, 0))
            assert {name: array.shape for name, array in made.items()} == engine.signature.ports.outputs
            assert engine.signature.measured.size == size

    def test_its_constants_are_those_of_the_signature(self, network: Network) -> None:
        shapes = {p.name: p.shape for p in network.smallest.constants}
        assert {name: array.shape for name, array in network.constants.items()} == shapes
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in network.constants.values())
        frame = np.random.default_rng(0).random(network.smallest.measured.shape[1:], np.float32)
        made = network.prompts(network.smallest)(frame)
        assert {name: array.shape for name, array in made.items()} == {
            p.name: p.shape for p in network.smallest.prompts
        }

    @pytest.mark.parametrize("prefix", ["net.", "_orig_mod.module.", "a.b-c.0."])
    def test_it_is_found_behind_any_prefix_and_beside_other_weights(
        self, network: Network, tmp_path: Path, prefix: str
    ) -> None:
        state = network.module.state_dict()
        behind = {prefix + key: value for key, value in state.items()}
        assert not network.architecture.recognises(behind.keys())
        assert not any(WRAPPER.search(key) for key in state)
        torch.save({"state_dict": {"critic.scale": torch.ones(2), **behind}, "epoch": 3}, tmp_path / "net.pth")
        again = load_checkpoint(tmp_path / "net.pth", **self.OPTIONS)
        assert again.architecture is network.architecture
        assert all(torch.equal(value, state[key]) for key, value in again.module.state_dict().items())
        assert (again.facts.weights, again.facts.beside) == (
            f"state_dict.{prefix}"[:-1],
            ("state_dict.critic (1 tensor)",),
        )

    @pytest.mark.parametrize("which", ["network", "other"])
    def test_it_loads_what_it_saved(self, which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        net: Network = request.getfixturevalue(which)
        again = load_checkpoint(save_checkpoint(net, tmp_path / "net.safetensors", about="a line"))
        assert again.configuration == net.configuration and again.options == net.options
        assert again.facts.about == "a line" and again.architecture is net.architecture
        size = self.sizes(net)[0]
        given = inputs(net.signature(*size), 1)
        assert_equal(TorchEngine(again, *size).infer(given), TorchEngine(net, *size).infer(given))

    @pytest.mark.parametrize("which", ["network", "other"])
    def test_hyper_parameters_are_read_off_bare_weights(
        self, which: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        net: Network = request.getfixturevalue(which)
        torch.save(net.module.state_dict(), tmp_path / "bare.pth")
        assert load_checkpoint(tmp_path / "bare.pth", **self.OPTIONS).configuration == net.configuration

    def test_other_weights_are_refused_by_the_name_of_a_key(self, network: Network, tmp_path: Path) -> None:
        state = dict(network.module.state_dict())
        last = next(key for key in reversed(state) if state[key].ndim > 1 and state[key].is_floating_point())
        for change in (
            {last: state[last][:-1]},
            {"stranger": torch.zeros(1)},
            {last: torch.full_like(state[last], torch.nan)},
        ):
            torch.save({**state, **change}, tmp_path / "bare.pth")
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(tmp_path / "bare.pth", **self.OPTIONS)
            assert caught.value.key in (last, "stranger")

    def test_an_unknown_option_is_refused_with_those_that_there_are(self, network: Network, tmp_path: Path) -> None:
        file = save_checkpoint(network, tmp_path / "net.safetensors")
        with pytest.raises(CheckpointError, match="no such option") as caught:
            load_checkpoint(file, flavour="none")
        assert caught.value.key == "flavour"
        assert all(name in str(caught.value.remedy) for name in network.architecture.options)

    def test_other_frame_sizes_are_refused(self, network: Network) -> None:
        lines, samples = network.frame(1, 1)
        only = network.architecture.size(network.module)
        told = f"its one frame is {lines}x{samples}" if only else f"multiples of {network.architecture.multiple}"
        for size in ((lines - 1, samples), (lines, samples + 1), (0, samples)):
            with pytest.raises(InputError, match=told):
                export_graph(network, *size)

    def test_the_static_form_is_the_network(self, network: Network) -> None:
        for size in self.sizes(network):
            static = TorchEngine(network, *size, form="deployment")
            for seed in range(2):
                given = inputs(static.signature, seed)
                found, expected = static.infer(given), TorchEngine(network, *size).infer(given)
                for name, array in expected.items():
                    span = float(np.ptp(array)) or 1.0
                    np.testing.assert_allclose(found[name], array, atol=1e-4 * span, err_msg=name)

    def test_making_the_static_form_leaves_the_network_alone(self, network: Network) -> None:
        kept = copy.deepcopy(network.module.state_dict())
        network.architecture.static(network.module)
        assert all(torch.equal(kept[key], value) for key, value in network.module.state_dict().items())

    def test_the_graph_is_the_network_and_its_nodes_name_its_modules(self, network: Network) -> None:
        size = self.sizes(network)[-1]
        graph = export_graph(network, *size)
        agreement = compare(network, graph, [inputs(network.signature(*size), seed) for seed in range(2)], size)
        assert agreement.difference <= agreement.limit
        parts = [name for name, _ in network.module.named_modules() if name]
        model = onnx.load_model_from_string(graph.data)
        named = {node.name.rpartition("/")[0] for node in model.graph.node}
        # A part of the static form may stand for several modules, or for some of what a module computes.
        strange = {name for name in named - {"network"} if not any(_related(name, part) for part in parts)}
        assert not strange


def _related(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.") or part.startswith(f"{name}.")
