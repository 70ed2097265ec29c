"""Scenes that are held out, written for `deploy evaluate`: those of the recipe alone, with 1.0 for what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from calibration.cubes import Wanted, unit_cube
from training import held

SHIPPED = Path(__file__).parents[2] / "training" / "recipes" / "damp-base-rs.yaml"


def run(monkeypatch: pytest.MonkeyPatch, recipe: Path, data: Path, out: Path) -> None:
    arguments = ["held", "--recipe", str(recipe), "--data", str(data), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    held.main()


def test_held_scenes_are_cubes_in_the_unit_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = {}
    for seed, name in enumerate(("abu-one", "two", "three")):
        scenes[name] = np.random.default_rng(seed).integers(-5, 8000, (9, 10, 33), np.int16)
        np.savez(tmp_path / f"{name}.npz", cube=scenes[name])
    recipe = yaml.safe_load(SHIPPED.read_text())
    recipe["data"]["validation"] = ["abu-one", "three"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    dead = scenes["three"][..., 7]
    dead[:] = 12
    np.savez(tmp_path / "three.npz", cube=scenes["three"])
    run(monkeypatch, tmp_path / "recipe.yaml", tmp_path, out := tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == ["abu-one.npz", "three.npz"]
    for name, scale in (("abu-one", 10000), ("three", scenes["three"].max())):
        found = unit_cube(out / f"{name}.npz", Wanted(31, layout="lines,samples,bands"))
        expected = np.maximum(scenes[name] / np.float32(scale), 0).transpose(2, 0, 1)
        expected = np.delete(expected, 7, 0) if name == "three" else expected
        np.testing.assert_allclose(found.cube, expected, rtol=1e-6)
    before = (tmp_path / "three.npz").read_bytes()
    for recipe_file, where, says in (
        (SHIPPED, tmp_path / "new", "no such scene"),
        (tmp_path / "recipe.yaml", tmp_path, "holds something already"),
        (tmp_path / "recipe.yaml", tmp_path / "three.npz", "cannot be made"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, recipe_file, tmp_path, where)
        assert stopped.value.code == 2 and says in capsys.readouterr().err
    assert (tmp_path / "three.npz").read_bytes() == before
