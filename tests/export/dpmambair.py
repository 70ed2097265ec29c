"""Small DPMambaIRs with seeded weights, and the sequential scan that is their oracle."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from export.networks.dpmambair import DPMambaConfig, DPMambaIR, network

TINY = DPMambaConfig(
    dim=8,
    encoder_blocks=(1, 0, 0, 1),
    decoder_blocks=(0, 0, 0),
    refinement_blocks=0,
    states=4,
    embedding=12,
    extractor_widths=(6, 10),
)
OTHER = replace(
    TINY,
    bands=4,
    dim=6,
    encoder_blocks=(0, 1, 0, 0),
    decoder_blocks=(1, 0, 1),
    expand=1.5,
    states=3,
    expansion=1.5,
    high_frequency="after_ssm",
    modulation="full",
    embedding=7,
    extractor_widths=(5,),
)
SPANS = {"usual": (1e-3, 0.1), "tiny": (1e-5, 1e-3), "large": (1.0, 50.0), "wild": (1e-5, 50.0)}
"""Between which Delta lies."""


def dpmambair(config: DPMambaConfig = TINY, seed: int = 0, branched: bool = False) -> DPMambaIR:
    """One with weights of every kind away from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = DPMambaIR(config, branched).eval()
        with torch.no_grad():
            for name, value in net.named_parameters():
                if "modulation" in name:
                    value.add_(torch.randn_like(value), alpha=0.1)
                elif name.rpartition(".")[2] in ("gain", "skip1", "skip2", "A_log", "D") or ".norm" in name:
                    value.add_(torch.randn_like(value), alpha=0.2)
    return net


def sequential(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, how: str) -> Tensor:
    """`scan` one pixel after the other, in the type of its inputs."""
    state, y = x.new_zeros(*x.shape[:2], a.shape[1]), []
    for t in range(x.shape[-1]):
        exponent = delta[:, :, t, None] * a
        gain = delta[:, :, t, None] if how == "euler" else torch.expm1(exponent) / a
        state = exponent.exp() * state + gain * (x[:, :, t, None] * b[:, None, :, t])
        y.append((state * c[:, None, :, t]).sum(-1))
    return torch.stack(y, -1)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Networks scan sequentially."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "scan", sequential)
        yield


def exactly(net: DPMambaIR, frame: Tensor, embedding: Tensor) -> Tensor:
    """What a network gives in float64, unfolded and sequentially scanned."""
    with torch.no_grad(), one_by_one():
        made: Tensor = copy.deepcopy(net).double()(frame.double(), embedding.double())
    return made


def scanned(span: str, length: int, channels: int = 6, states: int = 5, batch: int = 1) -> tuple[Tensor, ...]:
    """x, Delta, A, B, C in float64; Delta is log-uniform in a span."""
    rng = torch.Generator().manual_seed(length)
    low, high = (torch.tensor(end, dtype=torch.float64).log() for end in SPANS[span])
    uniform = torch.rand(batch, channels, length, generator=rng, dtype=torch.float64)
    x, b, c = (torch.randn(batch, n, length, generator=rng, dtype=torch.float64) for n in (channels, states, states))
    a = -torch.arange(1.0, states + 1, dtype=torch.float64).repeat(channels, 1)
    return x, (low + (high - low) * uniform).exp(), a, b, c
