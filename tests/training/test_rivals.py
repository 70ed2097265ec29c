"""Rivals: as large as the DAMP that they are measured against, told nothing, and trained on the same draws."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from export.networks.damp import Damp
from runtime.errors import ConfigError
from training.curves import read_rows
from training.recipe import Recipe, load_recipe
from training.rivals import RIVALS, Kind, Rival, parameters, rival_recipe, train_rival

SHIPPED = Path(__file__).parents[2] / "training" / "recipes" / "ablation.yaml"


def small(**changes: object) -> Recipe:
    """The ablations' recipe for four bands and three steps."""
    whole = load_recipe(SHIPPED).model_dump(mode="json")
    whole["network"] |= {"bands": 4, "dim": 8, "embedding": 8}
    whole["data"] |= {"validation": ["held"], "wavelengths": None, "photographs": None}
    whole["optimiser"] |= {"steps": 3, "warmup": 1}
    return Recipe.model_validate({**whole, "patches": [{"count": 1, "size": 64}], **changes})


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_rival_is_as_large_as_the_damp_and_begins_with_the_frame(kind: Kind) -> None:
    recipe = load_recipe(SHIPPED)
    torch.manual_seed(0)
    net, frame = Rival(kind, recipe), torch.rand(2, 31, 64, 128)
    assert parameters(net) == pytest.approx(parameters(Damp(recipe.config)), rel=0.05)
    (restored,) = net(frame, torch.rand(2, 6))
    assert torch.equal(restored, frame)
    torch.nn.init.ones_(net.body.output.weight)
    net(frame, torch.rand(2, 6))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters()), "a part that cannot learn"


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_finished_run_is_neither_run_again_nor_taken_for_another_recipes(kind: Kind, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "held")):
        np.savez(tmp_path / f"{name}.npz", cube=np.random.default_rng(seed).integers(0, 60000, (70, 64, 4), np.uint16))
    whole = train_rival(kind, small(), tmp_path, tmp_path / "whole")
    rows = read_rows(tmp_path / "whole" / "validation.csv")
    assert rows[-1]["step"] == 3 and np.isfinite(rows[-1]["mean"])
    with pytest.raises(ConfigError, match="another recipe"):
        train_rival(kind, small(seed=2), tmp_path, tmp_path / "whole")
    # What changes no number is no other recipe.
    train_rival(kind, small(log_every=7, save_seconds=1), tmp_path, tmp_path / "whole")
    before = whole.read_bytes()
    assert train_rival(kind, small(), tmp_path, tmp_path / "whole").read_bytes() == before
    assert len(read_rows(tmp_path / "whole" / "validation.csv")) == len(rows)


def test_what_a_rival_cannot_have_is_refused() -> None:
    for changes in (
        {"start": "damp-tiny"},
        {"ablate": "prompt"},
        {"teacher": {"checkpoint": "damp-base", "share": 0.5}},
    ):
        with pytest.raises(ConfigError, match="a rival has no such thing"):
            rival_recipe("unet", small(**changes))
    assert set(RIVALS) == set(get_args(Kind))
