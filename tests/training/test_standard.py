"""Standardised metrics: folded into a network they change no number, however metrics are scaled."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from export.networks.damp import Damp, DampConfig
from training.standard import Standard, identity, standard_of

CONFIG = DampConfig(
    bands=3, dim=8, heads=(2, 2, 2, 2), encoder_blocks=(1, 0, 0, 1), decoder_blocks=(1, 0, 0), refinement_blocks=0,
    expansion=1, experts=2, top_k=2, embedding=16, gate="concat", metric_set="log6",
)  # fmt: skip
LOGARITHMS = ((-0.2, -0.8, -2.0, -1.7, -0.5, -2.5), (0.3, 0.2, 0.5, 0.5, 0.2, 0.8))
"""Means and deviations as `log6` has them."""
NARROW = ((0.99,) * 6, (1e-3,) * 6)


def network() -> Damp:
    torch.manual_seed(0)
    net = Damp(CONFIG).eval()
    torch.nn.init.normal_(net.output.weight, 0, 0.1)
    return net


def drawn(means: tuple[float, ...], deviations: tuple[float, ...]) -> Tensor:
    noise = torch.randn(256, 6, generator=torch.Generator().manual_seed(1))
    return torch.tensor(means) + torch.tensor(deviations) * noise


def folded(net: Damp, standard: Standard) -> Damp:
    net = copy.deepcopy(net)
    standard.fold(net)
    return net


def test_a_standard_is_mean_and_deviation() -> None:
    metrics = drawn(*LOGARITHMS)
    standard = standard_of(metrics)
    torch.testing.assert_close(standard.mean, metrics.mean(0))
    torch.testing.assert_close(standard.deviation, metrics.std(0))
    shown = standard.of(metrics)
    assert shown.mean(0).abs().max() < 1e-5 and (shown.std(0) - 1).abs().max() < 1e-5
    assert torch.equal(identity(6).of(metrics), metrics)


@pytest.mark.parametrize("scaled", [LOGARITHMS, NARROW], ids=["logarithms", "narrow"])
@torch.no_grad()
def test_a_folded_network_of_raw_metrics_is_the_network_of_standardised_ones(
    scaled: tuple[tuple[float, ...], ...],
) -> None:
    net, metrics, frame = network(), drawn(*scaled), torch.rand(4, 3, 64, 64)
    standard = standard_of(metrics)
    of_raw = folded(net, standard)
    for found, expected in zip(of_raw(frame, metrics[:4]), net(frame, standard.of(metrics[:4])), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Raw metrics of float32 lose what their mean has more digits than their deviation.
    rounding = float((standard.mean / standard.deviation).abs().max()) * torch.finfo(torch.float32).eps
    torch.testing.assert_close(
        of_raw.dep(metrics), net.dep(standard.of(metrics)), rtol=1e-5, atol=max(1e-5, 10 * rounding)
    )
    exact, wide = net.double(), metrics.double()
    shown = (wide - standard.mean.double()) / standard.deviation.double()
    torch.testing.assert_close(folded(exact, standard).dep(wide), exact.dep(shown), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("scaled", [LOGARITHMS, NARROW], ids=["logarithms", "narrow"])
def test_folding_and_unfolding_are_inverse_and_touch_one_layer(scaled: tuple[tuple[float, ...], ...]) -> None:
    net = network()
    standard = standard_of(drawn(*scaled))
    there = folded(net, standard)
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, there.state_dict()[key])}
    assert changed == {f"dep.feature_encoder.encoder.0.{kind}" for kind in ("weight", "bias")}
    standard.unfold(there)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(there.state_dict()[key], value, rtol=1e-5, atol=1e-4, msg=key)
    back = network()
    standard.unfold(back)
    standard.fold(back)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], value, rtol=1e-5, atol=1e-4, msg=key)


@torch.no_grad()
def test_a_metric_that_never_changes_stays_in_its_own_size() -> None:
    net, metrics = network(), drawn(*LOGARITHMS)
    metrics[:, 2] = -6.0
    standard = standard_of(metrics)
    assert not standard.of(metrics)[:, 2].any()
    torch.testing.assert_close(folded(net, standard).dep(metrics), net.dep(standard.of(metrics)), rtol=1e-5, atol=1e-5)
    other = metrics.clone()
    other[:, 2] += 0.01
    assert standard.of(other)[:, 2].abs().max() < 0.1
