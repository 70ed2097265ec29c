"""What a GPU would refuse, shown without one: tensors made on another device, and types that its autocast mixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from export.networks.damp import Damp, DampConfig, deployment_form
from export.networks.damp.blocks import ExpertMixture

SMALL = DampConfig(
    bands=5, dim=16, heads=(2, 2, 2, 2), encoder_blocks=(1, 0, 0, 1), decoder_blocks=(1, 1, 0), refinement_blocks=1,
    expansion=1, embedding=16, gate="concat", metric_set="paper6",
)  # fmt: skip
FLOAT32 = {"softmax", "layer_norm", "sum", "exp", "log", "log1p", "norm", "vector_norm"}
"""What CUDA's autocast computes in float32 whatever it is given (PyTorch, "CUDA Ops that can autocast to float32")."""
HALF = {"linear", "conv2d", "conv1d", "conv_transpose2d", "matmul", "__matmul__", "__rmatmul__", "einsum", "bmm"}
"""What it computes in the lower type."""


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple | dict):
        return [t for each in (value.values() if isinstance(value, dict) else value) for t in tensors(each)]
    return []


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    return value


class OnOneDevice(TorchFunctionMode):
    """Everything is on `meta`, as it would be on a GPU: a tensor that is made elsewhere is refused."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tensors(result):
            assert tensor.device.type == "meta", f"{function.__name__} makes a tensor on the {tensor.device}"
        return result


class LikeAutocast(TorchFunctionMode):
    """The types of CUDA's autocast on a CPU: bfloat16 products, float32 softmax, norms and sums."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        wanted = torch.float32 if name in FLOAT32 else torch.bfloat16 if name in HALF else None
        if wanted is not None:
            args = mapped(args, lambda t: t.to(wanted) if t.is_floating_point() else t)
        return function(*args, **kwargs)


def network(dense: bool = False) -> Damp:
    torch.manual_seed(0)
    net = Damp(SMALL)
    for module in net.modules():
        if isinstance(module, ExpertMixture):
            module.dense = dense
    return net


@pytest.mark.parametrize(
    "form", [lambda: network(dense=True), lambda: deployment_form(network())], ids=["dense", "static"]
)
def test_a_network_makes_no_tensor_on_another_device(form: Callable[[], nn.Module]) -> None:
    net = form().to("meta")
    frame, metrics = torch.empty(1, 5, 64, 64, device="meta"), torch.empty(1, 6, device="meta")
    for training in (False, True):
        with OnOneDevice():
            restored, _ = net.train(training)(frame, metrics)
        assert restored.device.type == "meta" and restored.shape == frame.shape


@pytest.mark.parametrize("dense", [False, True])
def test_a_step_in_mixed_types_runs_and_is_near_one_in_float32(dense: bool) -> None:
    frame, metrics = torch.rand(3, 5, 64, 64), torch.rand(3, 6)
    results = []
    for mode in (None, LikeAutocast()):
        net = network(dense)
        torch.manual_seed(1)
        if mode is None:
            restored, gates, _ = net.routed(frame, metrics)
        else:
            with mode:
                restored, gates, _ = net.routed(frame, metrics)
        (restored.float() - frame).abs().mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.patch_embed.parameters())
        results.append((restored.float().detach(), gates.float().detach()))
    (exact, chosen), (half, also) = results
    assert torch.equal(chosen > 0, also > 0)
    assert float((half - exact).abs().max()) < 0.1 * float(exact.std())


def test_norms_of_heads_keep_the_type_that_they_are_given() -> None:
    net = network()
    norm = net.latent.layers[0].mixer.wa.attn.diff_norm
    assert norm(torch.rand(2, 3, norm.weight.numel(), dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_all_experts_for_all_patches_give_the_numbers_and_gradients_of_those_chosen() -> None:
    frame, metrics = torch.rand(4, 5, 64, 64), torch.rand(4, 6)
    gradients = []
    for dense in (False, True):
        net = network(dense)
        torch.manual_seed(1)
        restored, gates, _ = net.routed(frame, metrics)
        restored.square().mean().backward()
        found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}
        gradients.append((restored.detach(), gates.detach(), found))
    (one, gates, routed), (other, same, dense_) = gradients
    assert torch.equal(gates, same)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for name, gradient in routed.items():
        torch.testing.assert_close(dense_[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
