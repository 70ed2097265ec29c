"""Growing: a deeper network starts where the smaller one ended, and every new block can learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from export.networks.damp import Damp, DampConfig
from runtime.errors import ConfigError
from training.growth import grow

SMALL = DampConfig(
    bands=4,
    dim=8,
    heads=(2, 2, 2, 2),
    encoder_blocks=(0, 0, 0, 0),
    decoder_blocks=(0, 1, 0),
    refinement_blocks=1,
    expansion=2,
    experts=2,
    embedding=16,
    gate="concat",
    metric_set="paper6",
)
LARGE = replace(SMALL, encoder_blocks=(1, 0, 2, 1), decoder_blocks=(1, 2, 1), refinement_blocks=2)


def seeded(config: DampConfig, seed: int) -> Damp:
    torch.manual_seed(seed)
    return Damp(config).eval()


def test_a_grown_network_restores_as_its_start_bit_by_bit() -> None:
    small, large = seeded(SMALL, 0), seeded(LARGE, 1)
    frame, metrics = torch.rand(1, 4, 64, 64), torch.rand(1, 6)
    with torch.inference_mode():
        before = large(frame, metrics)[0]
        grow(large, small)
        after = large(frame, metrics)[0]
        assert torch.equal(after, small(frame, metrics)[0])
        assert not torch.equal(after, before)


def test_every_new_block_takes_part_after_a_few_steps() -> None:
    small, large = seeded(SMALL, 0), seeded(LARGE, 1)
    grow(large, small)
    new = [key for key in large.state_dict() if key not in small.state_dict()]
    blocks = {key.split(".layers.")[0] + ".layers." + key.split(".layers.")[1].split(".")[0] for key in new}
    optimiser = torch.optim.SGD(large.parameters(), 1e-2)
    frame, metrics = torch.rand(1, 4, 64, 64), torch.rand(1, 6)
    for _ in range(3):
        optimiser.zero_grad()
        (large(frame, metrics)[0] - 2 * frame).square().mean().backward()
        optimiser.step()
    learning = {name for name, p in large.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    for block in blocks:
        inside = [name for name in learning if name.startswith(block + ".")]
        assert any("attn" in name or "fn.net.0" in name for name in inside), block
        assert any("ffn.project_in" in name for name in inside), block


@pytest.mark.parametrize("change", [{"dim": 16}, {"experts": 3}, {"decoder_blocks": (0, 0, 0)}, {"bands": 5}])
def test_what_is_no_part_of_the_network_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"start: .*no part of the recipe's network"):
        grow(seeded(replace(LARGE, **change), 0), seeded(SMALL, 1))


def test_a_prompt_of_other_metrics_begins_anew_and_all_else_is_kept() -> None:
    small, large = seeded(SMALL, 0), seeded(replace(LARGE, metric_set="log6"), 1)
    own = {key: value.clone() for key, value in large.state_dict().items()}
    grow(large, small)
    grown = large.state_dict()
    for key, value in small.state_dict().items():
        assert torch.equal(grown[key], own[key] if key.startswith("dep.") else value), key
