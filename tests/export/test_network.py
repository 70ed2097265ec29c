"""DAMP in torch: keys, shapes and numbers of the public reference; batches; routing noise; frame sizes."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from export.networks.damp import Damp, DampConfig
from export.networks.damp.blocks import Router
from runtime.errors import CubeError
from runtime.metrics import METRICS, raw_metrics
from tests.export.checkpoints import SMALL, Golden, from_reference, golden, golden_keys, network
from tests.golden.scene import KINDS

ORIENTATION = METRICS.index("orientation_std")
# BiasFree norms with the clamp acting amplify rounding: `odd` in float32 moves by 1e-4 to 7e-4 (1e-5 rms) with the
# thread count, and the float32 reference is 5e-4 max, 1.8e-5 rms from float64. So it runs in float64, and the error of
# the reference is the tolerance.
RESTORED = {"options": (2e-4, 2e-6), "main": (2e-4, 2e-6), "odd": (1e-3, 3e-5)}


@cache
def reference(name: str) -> Golden:
    return golden(name)


def run(net: Damp, frame: Tensor, metrics: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return net(frame, metrics)


# The reference


@pytest.mark.parametrize("name", ["options", "main"])
def test_full_size_networks_have_the_references_keys_shapes_types_and_parameters(name: str) -> None:
    expected = golden_keys(name)
    with torch.device("meta"):
        net = Damp(from_reference(expected["config"]))
    found = {key: [list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in net.state_dict().items()}
    assert found == expected["state_dict"]
    assert sum(p.numel() for p in net.parameters()) == expected["parameters"]


def test_parameter_counts_are_the_published_ones() -> None:
    assert golden_keys("options")["parameters"] == 36_880_330 and len(golden_keys("options")["state_dict"]) == 1795
    assert golden_keys("main")["parameters"] == 72_098_413 and len(golden_keys("main")["state_dict"]) == 3407


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RESTORED)
def test_numbers_are_the_references(name: str, kind: str) -> None:
    case = reference(name)
    expected = {k.removeprefix(f"{kind}/"): v for k, v in case.arrays.items() if k.startswith(f"{kind}/")}
    cube = case.cube(kind)

    metrics = raw_metrics(cube, case.arrays["sample_index"])
    tolerance = np.full(len(METRICS), 1e-4)
    if kind == "sr":
        # The reference's convolution leaves rounding where a differenced Sobel gives exact zeros, so atan2 differs.
        tolerance[ORIENTATION] = 0.15
    assert (np.abs(metrics / expected["raw_metrics"][0] - 1) < tolerance).all()

    dtype = torch.float64 if name == "odd" else torch.float32
    seen: dict[str, list[Tensor]] = {"embedding": [], "probabilities": []}
    routers = [m for m in case.net.modules() if isinstance(m, Router)]
    hooks = [
        case.net.dep.register_forward_hook(lambda _, __, out: seen["embedding"].append(out)),
        *(r.register_forward_hook(lambda r, x, _: seen["probabilities"].append(r.probabilities(*x))) for r in routers),
    ]
    restored, gates = run(
        case.net,
        torch.from_numpy(cube)[None].to(dtype),
        torch.from_numpy(expected["raw_metrics"]).to(dtype),
    )
    for hook in hooks:
        hook.remove()

    assert seen["embedding"][0].numpy() == pytest.approx(expected["embedding"], abs=5e-6)
    layers = case.net.config.layers
    assert gates.shape == (1, layers, case.net.config.experts) and len(seen["probabilities"]) == layers
    for layer in range(layers):
        assert gates[:, layer].numpy() == pytest.approx(expected[f"gates_{layer}"], abs=1e-5)
        logits = torch.from_numpy(expected[f"logits_{layer}"]).to(dtype)
        assert seen["probabilities"][layer].log().numpy() == pytest.approx(logits.log_softmax(-1).numpy(), abs=1e-5)

    whole = restored[0].numpy()
    difference = case.thinned(whole).astype(np.float64) - expected["restored"]
    span = np.ptp(expected["restored"])
    largest, rms = RESTORED[name]
    assert np.abs(difference).max() < largest * span
    assert np.sqrt((difference**2).mean()) < rms * span
    stats = whole.mean(), whole.std(), np.abs(whole).max()
    assert np.abs(stats - expected["restored_stats"]).max() < largest * span


# Batches


def varied(config: DampConfig, count: int) -> tuple[Tensor, Tensor]:
    """Frames [count, bands, 64, 64] and metrics [count, M] in float64 that differ from each other."""
    generator = torch.Generator().manual_seed(5)
    levels = torch.linspace(0.1, 3, count, dtype=torch.float64)[:, None, None, None]
    frames = levels * torch.rand(count, config.bands, 64, 64, generator=generator, dtype=torch.float64)
    return frames, 2 * torch.randn(count, config.metrics, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("gate", ["additive", "concat"])
@pytest.mark.parametrize("metric_set", ["reference15", "paper6"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_batch_is_its_cubes_one_by_one(gate: str, metric_set: str, top_k: int) -> None:
    config = dataclasses.replace(
        SMALL,
        encoder_blocks=(0, 0, 0, 1),
        decoder_blocks=(0, 1, 1),
        experts=4,
        top_k=top_k,
        gate=gate,
        metric_set=metric_set,
    )
    net = network(config).double()
    frames, metrics = varied(config, 5)
    with torch.no_grad():
        # Prompts that point away from each other and outweigh the pixels, so that the experts differ inside the batch.
        encoder = net.dep.feature_encoder.encoder
        encoder[6].bias -= encoder[:7](metrics).mean(0)
        for router in (m for m in net.modules() if isinstance(m, Router)):
            (router.freq_gate if gate == "additive" else router.mix).weight[:, -config.embedding :] *= 4
    restored, gates = run(net, frames, metrics)
    assert restored.shape == frames.shape and gates.shape == (5, 2, 4)
    for layer in range(2):
        assert len({tuple(row.nonzero()[:, 0].tolist()) for row in gates[:, layer]}) > 1, "the same experts throughout"
    for i in range(5):
        alone, its_gates = run(net, frames[i : i + 1], metrics[i : i + 1])
        assert torch.allclose(alone[0], restored[i], rtol=0, atol=1e-10)
        assert torch.allclose(its_gates[0], gates[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_gates_are_the_top_probabilities_and_not_renormalised(top_k: int) -> None:
    net = network(dataclasses.replace(SMALL, experts=4, top_k=top_k)).double()
    router = net.dec[2][2].layers[0].DAMoE.adapter_spaspe.routing
    frames, metrics = varied(net.config, 6)
    features = torch.randn(6, net.config.dim, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        embedding = net.dep(metrics)
        gates, probabilities = router(features, embedding)
        assert torch.equal(probabilities, router.probabilities(features, embedding))
    assert torch.allclose(probabilities.sum(1), torch.ones(6, dtype=torch.float64))
    for row, p in zip(gates, probabilities, strict=True):
        order = p.argsort(descending=True)
        assert torch.equal(row[order[:top_k]], p[order[:top_k]]) and not row[order[top_k:]].any()
    if top_k == 4:
        assert torch.equal(gates, probabilities)
    else:
        assert (gates.sum(1) < 1).all()
    assert (run(net, frames, metrics)[1] != 0).sum(-1).unique().tolist() == [top_k]


def test_metrics_alone_change_the_restoration() -> None:
    net = network(SMALL)
    frames, metrics = (t.float() for t in varied(net.config, 2))
    (one, _), (other, _) = run(net, frames[:1], metrics[:1]), run(net, frames[:1], metrics[1:])
    assert (one - other).abs().max() > 1e-3


def test_without_decoder_blocks_there_are_no_gates() -> None:
    net = network(dataclasses.replace(SMALL, decoder_blocks=(0, 0, 0)))
    restored, gates = run(net, torch.rand(2, 3, 64, 64), torch.rand(2, 15))
    assert restored.shape == (2, 3, 64, 64) and gates.shape == (2, 0, 2)


# Noise


def test_only_training_adds_noise_to_the_routing() -> None:
    net = network(dataclasses.replace(SMALL, experts=4, top_k=4))
    frames, metrics = (t.float() for t in varied(net.config, 2))
    first, again = run(net, frames, metrics), run(net, frames, metrics)
    assert all(map(torch.equal, first, again))
    net.train()
    noisy, noisier = run(net, frames, metrics), run(net, frames, metrics)
    assert not torch.equal(noisy[1], noisier[1]) and not torch.equal(noisy[1], first[1])
    net.eval()
    assert all(map(torch.equal, first, run(net, frames, metrics)))


def test_training_noise_has_a_deviation_of_one_over_the_experts() -> None:
    net = network(dataclasses.replace(SMALL, experts=2, top_k=2))
    router = net.dec[2][2].layers[0].DAMoE.adapter_spaspe.routing.train()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        p = router.probabilities(torch.zeros(20_000, 8, 1, 1), torch.zeros(20_000, SMALL.embedding))
    # The difference of two logits, each with a deviation of 1/2.
    assert float((p[:, 0] / p[:, 1]).log().std()) == pytest.approx(np.sqrt(2) / 2, rel=0.03)


# Shapes and configurations


@pytest.mark.parametrize("size", [(64, 128), (192, 64)])
def test_frames_need_not_be_square(size: tuple[int, int]) -> None:
    net = network(SMALL)
    restored, gates = run(net, torch.rand(1, 3, *size), torch.rand(1, 15))
    assert restored.shape == (1, 3, *size) and restored.isfinite().all() and gates.shape == (1, 1, 2)


@pytest.mark.parametrize("size", [(32, 64), (64, 72), (96, 96), (65, 64), (64, 1)])
def test_a_frame_that_is_no_multiple_of_64_is_never_restored(size: tuple[int, int]) -> None:
    with pytest.raises(CubeError, match="multiples of 64"):
        run(network(SMALL), torch.rand(1, 3, *size), torch.rand(1, 15))


@pytest.mark.parametrize(
    "change",
    [
        {"heads": (2, 2, 2)},
        {"heads": (1, 2, 2, 2)},
        {"heads": (2, 2, 2, 6)},
        {"encoder_blocks": (1, 1, 1, -1)},
        {"decoder_blocks": (1, 1, 1, 1)},
        {"experts": 5},
        {"experts": 0},
        {"top_k": 0},
        {"top_k": 3},
        {"dim": 12},
        {"dim": 0},
        {"bands": 0},
        {"embedding": 0},
        {"refinement_blocks": -1},
        {"expansion": 0},
        {"norm": "LayerNorm"},
        {"gate": "sum"},
        {"metric_set": "paper"},
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(SMALL, **change)


def test_a_configuration_comes_back_from_its_dictionary() -> None:
    assert DampConfig.from_dict(SMALL.as_dict()) == SMALL
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.as_dict().items()}
    assert DampConfig.from_dict(listed) == SMALL
