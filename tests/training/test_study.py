"""Studies: every variant changes what it says and trains as long as the others; the table is what the runs logged."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from runtime.errors import ConfigError
from training import study as command
from training.curves import read_rows
from training.recipe import architecture_of, load_recipe
from training.study import TASKS, Study, load_study, markdown, recipe_of
from training.validation import COSTS

STUDIES = sorted(
    file
    for file in (Path(__file__).parents[2] / "training" / "studies").glob("*.yaml")
    if not architecture_of(file.parent / load_study(file).recipe)
)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_shipped_variant_changes_what_it_says_and_nothing_of_the_schedule(file: Path) -> None:
    study = load_study(file)
    base = load_recipe(file.parent / study.recipe)
    for name, variant in study.variants.items():
        recipes = [recipe_of(file, study, name, seed) for seed in study.seeds]
        assert len({r.name for r in recipes}) == len({r.digest() for r in recipes}) == len(study.seeds)
        assert all(r.optimiser == base.optimiser and r.patches == base.patches for r in recipes)
        whole, mine = base.model_dump(mode="json"), recipes[0].model_dump(mode="json")
        changed = {key for key in whole if whole[key] != mine[key]} - {"name", "seed"}
        assert changed <= {path.split(".")[0] for path in variant.changes}, name


def shortened(folder: Path, **changes: Any) -> Path:
    """A study of two variants of a network of two steps, on four-band scenes."""
    for seed, name in enumerate(("one", "held")):
        cube = np.random.default_rng(seed).integers(0, 60000, (70, 64, 4), np.uint16)
        np.savez(folder / f"{name}.npz", cube=cube)
    recipe = yaml.safe_load((STUDIES[0].parent / load_study(STUDIES[0]).recipe).read_text())
    recipe["network"] |= {"bands": 4, "dim": 8, "embedding": 8}
    recipe["data"] |= {"validation": ["held"], "wavelengths": None, "photographs": None}
    recipe["optimiser"] |= {"steps": 2, "warmup": 1}
    recipe["patches"] = [{"count": 1, "size": 64}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    variants = {
        "full": {"about": "all of it"},
        "none": {"about": "no prompt", "changes": {"ablate": "prompt"}},
        "unet": {"about": "another network", "rival": "unet"},
    }
    study = {"recipe": "recipe.yaml", "seeds": [1, 2], "variants": variants, **changes}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


def run(monkeypatch: pytest.MonkeyPatch, file: Path, *more: str) -> None:
    arguments = ["--study", file, "--data", file.parent, "--out", file.parent / "out", *more]
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    command.main()


@pytest.mark.slow
def test_the_table_is_what_the_runs_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = shortened(tmp_path), tmp_path / "out"
    # Half of the work by another command.
    run(monkeypatch, file, "--variants", "none,unet")
    times = {each: each.stat().st_mtime_ns for each in out.glob("*/*.safetensors")}
    run(monkeypatch, file)
    assert (out / "study.md").read_text() in capsys.readouterr().out
    assert times == {each: each.stat().st_mtime_ns for each in times}, "a finished run was run again"
    with (out / "study.csv").open() as table:
        rows = {(row["variant"], row["seed"]): row for row in csv.DictReader(table)}
    assert list(rows) == [(name, seed) for name in ("full", "none", "unet") for seed in "12"]
    for (name, seed), row in rows.items():
        logged = read_rows(out / f"{name}-{seed}" / "validation.csv")[-1]
        assert [float(row[task]) for task in (*TASKS, "mean")] == [logged[task] for task in (*TASKS, "mean")]
        assert all((row[cost] == "") if name != "full" else np.isfinite(float(row[cost])) for cost in COSTS)


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shortened(tmp_path, seeds=[1], variants={"full": {"about": "all of it"}})
    run(monkeypatch, file)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["data"]["gain"] = [0.5, 2.0]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, file)
    assert stopped.value.code == 2 and "another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variants": {}}, "at least 1"),
        ({"seeds": []}, "at least 1"),
        ({"variants": {"full": {"about": "x", "change": {}}}}, "not permitted"),
        ({"variants": {"full": {"about": "x", "changes": {"network.width": 3}}}}, "has no key width"),
        ({"variants": {"full": {"about": "x", "changes": {"optimizer.steps": 3}}}}, "no such key in the recipe"),
        ({"variants": {"full": {"about": "x", "changes": {"ease.first": 0.5}}}}, "no such key in the recipe"),
        ({"recipe": "none.yaml"}, "cannot be read"),
    ],
    ids=str,
)
def test_a_wrong_study_is_refused_by_name(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = shortened(tmp_path, **changes)
    with pytest.raises(ConfigError, match=says):
        study = load_study(file)
        for name in study.variants:
            recipe_of(file, study, name, 1)


def test_an_unknown_variant_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, shortened(tmp_path), "--variants", "full,half")
    assert stopped.value.code == 2 and "half" in capsys.readouterr().err


def test_the_table_says_what_the_variants_are_and_how_far_seeds_are_apart() -> None:
    study = Study.model_validate({"recipe": "r", "seeds": [1, 2], "variants": {"full": {"about": "all of it"}}})
    rows = [{**dict.fromkeys((*TASKS, *COSTS), 1.0), "mean": mean} for mean in (1.0, 1.5)]
    text = markdown(study, {"full": rows})
    assert "- full: all of it" in text and "| +1.25 | 0.25 | 1.00 |" in text
