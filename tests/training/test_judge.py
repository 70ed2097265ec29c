"""Judging: the figures are those of a training's own validation, and filling is told apart from the network."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export.networks import load_checkpoint, network_of, save_checkpoint
from export.networks.damp import Damp
from training import judge
from training.degrading import DAMAGES
from training.recipe import Recipe, load_recipe
from training.run import damp_of
from training.validation import COSTS, held_scenes, validate

SHIPPED = Path(__file__).parents[2] / "training" / "recipes" / "damp-base-rs.yaml"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    whole = load_recipe(SHIPPED).model_dump(mode="json")
    whole["network"] |= {"bands": 4, "dim": 8, "embedding": 8}
    return Recipe.model_validate({**whole, "tasks": {"noise": 1, "inpaint": 1}})


@pytest.fixture(scope="module")
def checkpoint(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("judge") / "four.safetensors"
    return save_checkpoint(network_of(Damp(recipe.config)), file, about="of a test", fills=True)


def test_gains_are_those_of_the_validation_and_filling_is_told_alone(recipe: Recipe, checkpoint: Path) -> None:
    ramp = np.linspace(0.1, 0.9, 64, dtype=np.float32)
    scenes = {"ramp": np.broadcast_to(ramp, (6, 64, 64)).copy()}
    rows = {kind: values for _, kind, values in judge.judged(str(checkpoint), recipe, scenes)}
    assert list(rows) == ["filled", "gain", *COSTS]
    # Six bands of one picture: what is lost of it is known.
    assert set(rows["filled"]) >= {"inpaint", "bandloss"} and rows["filled"]["bandloss"] > 20
    assert "noise" not in rows["filled"]
    expected = validate(damp_of(load_checkpoint(checkpoint)), held_scenes(scenes, recipe))
    assert rows["gain"] == pytest.approx(expected) and set(rows["zeros"]) == {"noise", "inpaint"}


def test_the_command_prints_a_row_for_each_and_says_what_it_cannot_judge(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in load_recipe(SHIPPED).data.validation:
        np.savez(tmp_path / f"{name}.npz", cube=np.random.default_rng(1).uniform(0, 1, (64, 64, 4)).astype(np.float32))
    arguments = ["judge", str(checkpoint), "--recipe", str(SHIPPED), "--data", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    judge.main()
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[1] for row in rows] == ["filled", "gain", *COSTS]
    assert all(row.count("|") == head.count("|") == len(DAMAGES) + 4 for row in rows)
    monkeypatch.setattr(sys, "argv", [*arguments, "mst-tiny"])
    with pytest.raises(SystemExit) as stopped:
        judge.main()
    assert stopped.value.code == 2
