"""Ablations: every variant leaves out one thing and trains as long as the others; the table is what the runs logged."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from training import ablations
from training.ablations import TASKS, VARIANTS, markdown, variant
from training.curves import read_rows

SHIPPED = Path(__file__).parents[2] / "training" / "recipes" / "ablation.yaml"


def test_a_variant_changes_one_thing() -> None:
    full = variant(SHIPPED, "full").model_dump(exclude={"name"})
    for name in VARIANTS:
        other = variant(SHIPPED, name).model_dump(exclude={"name"})
        changed = {key for key in full if full[key] != other[key]}
        network = {key for key in full["network"] if full["network"][key] != other["network"][key]}
        assert len(changed) == (name != "full") and len(network) == ("network" in changed), name
        assert other["optimiser"] == full["optimiser"] and other["patches"] == full["patches"]


@pytest.fixture
def shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command on four-band scenes and a network of two steps."""
    for seed, name in enumerate(("one", "held")):
        cube = np.random.default_rng(seed).integers(0, 60000, (70, 64, 4), np.uint16)
        np.savez(tmp_path / f"{name}.npz", cube=cube)
    recipe = yaml.safe_load(SHIPPED.read_text())
    recipe["network"] |= {"bands": 4, "dim": 8, "embedding": 8}
    recipe["data"] |= {"validation": ["held"], "wavelengths": None}
    recipe["optimiser"] |= {"steps": 2, "warmup": 1}
    recipe["patches"] = [{"count": 1, "size": 64}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    arguments = ["--recipe", tmp_path / "recipe.yaml", "--data", tmp_path, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["ablations", *map(str, arguments)])
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("shortened")
@pytest.mark.slow
def test_the_table_is_what_the_runs_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablations.main()
    out = tmp_path / "out"
    text = (out / "ablations.md").read_text()
    assert text in capsys.readouterr().out
    with (out / "ablations.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(VARIANTS)
    for name, row in rows.items():
        logged = read_rows(out / name / "validation.csv")[-1]
        assert [float(row[task]) for task in TASKS] == [logged[task] for task in TASKS]
        assert float(row["mean"]) == pytest.approx(np.mean([logged[task] for task in TASKS]))
        assert f"| {name} | " in text
    # A finished run is not run again.
    times = {file: file.stat().st_mtime_ns for file in out.glob("*/*.safetensors")}
    ablations.main()
    assert len(times) == len(VARIANTS) and times == {f: f.stat().st_mtime_ns for f in times}


@pytest.mark.usefixtures("shortened")
def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "VARIANTS", {"full": VARIANTS["full"]})
    ablations.main()
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["optimiser"]["steps"] = 3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(SystemExit) as stopped:
        ablations.main()
    assert stopped.value.code == 2 and "another recipe" in capsys.readouterr().err
    recipe["optimiser"]["steps"] = 2
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "out" / "full" / "validation.csv").unlink()
    with pytest.raises(SystemExit):
        ablations.main()
    assert "does not tell the last step" in capsys.readouterr().err


def test_the_table_says_what_the_variants_are() -> None:
    text = markdown({name: {**dict.fromkeys(TASKS, 1.0), "mean": 1.0} for name in VARIANTS})
    assert all(what in text for what, _ in VARIANTS.values())
