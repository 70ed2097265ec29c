"""Cards: what was measured, where it falls short, and nothing that the recipe and the checkpoint do not bear out."""

from __future__ import annotations

import json
import lzma
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from calibration.baselines import BASELINES
from export.networks import PACKAGED, load_checkpoint, network_of, save_checkpoint
from export.networks.damp import Damp
from runtime.errors import CheckpointError, ConfigError, InputError
from training.card import GOALS, card, main, read_evaluation
from training.package import package
from training.recipe import Recipe, load_recipe

SHIPPED = Path(__file__).parents[2] / "training" / "recipes" / "damp-nano.yaml"
HELD = ["cloth", "paints"]


def quality(decibels: float, angle: float = 5.0) -> dict[str, float]:
    return {"psnr": decibels, "ssim": 0.9, "sam": angle}


def figures(**gains: float) -> dict[str, dict[str, dict[str, float]]]:
    """Every task reaches its goal by half a decibel and is ahead of the baseline, but for those named."""
    return {
        task: {
            "input": quality(20.0, 9.0),
            "baseline": quality(20.2),
            "model": quality(20 + gains.get(task, goal + 0.5)),
        }
        for task, goal in GOALS.items()
    }


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = yaml.safe_load(SHIPPED.read_text())
    recipe["name"] = "nano"
    recipe["network"] |= {"bands": 4, "dim": 8, "embedding": 8}
    recipe["data"] |= {"wavelengths": {"first": 400, "last": 700, "count": 4}}
    file = tmp_path_factory.mktemp("recipe") / "nano.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.fixture(scope="module")
def checkpoint(recipe_file: Path) -> Path:
    recipe = load_recipe(recipe_file)
    net = network_of(Damp(recipe.config))
    return save_checkpoint(
        net, recipe_file.with_name("nano.safetensors"), scale=65535, about=recipe.about(recipe.optimiser.steps)
    )


def made(checkpoint: Path, recipe: Recipe, tasks: Any, scenes: list[str] | None = None) -> str:
    return card(load_checkpoint(checkpoint), recipe, tasks, scenes or HELD, "3 minutes, one CPU thread", 2**20)


def test_a_card_tells_the_figures_beside_goal_and_baseline(recipe_file: Path, checkpoint: Path) -> None:
    text = made(checkpoint, load_recipe(recipe_file), figures())
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert set(rows) == {"task", *GOALS}
    for task, goal in GOALS.items():
        assert f"| 20.00 | 20.20 | {20.5 + goal:.2f} | +{goal + 0.5:.2f} | +{goal:g} |" in rows[task]
        assert rows[task].endswith(f"| {BASELINES[task].name} |")
    assert "It reaches every goal." in text and "restores better" not in text and "bends" not in text
    assert "4 bands, 400 to 700 nm" in text and "1.0 MiB" in text and "65535 stands for 1.0" in text
    assert "top-1 of 4 experts in one mixture" in text and "3 minutes, one CPU thread" in text
    assert "Means over cloth, paints, whole" in text and "--scenes cloth,paints" in text


def test_a_card_says_where_goals_are_missed_baselines_better_and_spectra_bent(
    recipe_file: Path, checkpoint: Path
) -> None:
    tasks = figures(sr=2.96, motionblur=-0.5)
    tasks["sr"]["model"]["sam"] = 9.5
    text = made(checkpoint, load_recipe(recipe_file), tasks)
    assert "misses the project's goals for gain: sr by 0.04 dB, motionblur by 1.00 dB." in text
    assert "A classical method restores better: motionblur by 0.70 dB." in text
    assert "(SAM rises): sr." in text


def test_a_card_says_of_its_training_what_the_recipe_says(recipe_file: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(recipe_file.read_text())["data"]
    for changes, says, says_not in (
        ({}, ("never trained on: motion blur, Poisson noise", "L1 softened"), ()),
        ({"tasks": {"noise": 1, "poisson": 1}}, ("never trained on: motion blur.",), ("Poisson",)),
        ({"loss": {}}, ("AdamW, L1, cosine",), ("softened",)),
        ({"start": "damp-tiny"}, ("grown from `damp-tiny`;",), ("earlier", "taught")),
        ({"start": "nano"}, ("grown from `nano`, its earlier edition;",), ()),
        ({"teacher": {"checkpoint": "damp-base", "share": 0.5}}, ("taught by `damp-base`",), ("grown",)),
        (
            {"data": {**data, "stored_scale": None}},
            ("training.held", "nano --data HELD --layout lines,samples,bands --scenes cloth,paints\n"),
            ("--data DIR --scenes",),
        ),
    ):
        recipe = load_recipe(recipe_file, **changes)
        net = network_of(Damp(recipe.config))
        file = save_checkpoint(net, tmp_path / "nano.safetensors", about=recipe.about(recipe.optimiser.steps))
        text = made(file, recipe, figures())
        assert all(part in text for part in says) and not any(part in text for part in says_not)


def test_a_card_of_another_recipe_or_of_scenes_trained_on_is_refused(recipe_file: Path, checkpoint: Path) -> None:
    with pytest.raises(InputError, match="trained by another recipe"):
        made(checkpoint, load_recipe(recipe_file, seed=5), figures())
    with pytest.raises(InputError, match=r"does not hold this scene out.*balloons"):
        made(checkpoint, load_recipe(recipe_file), figures(), ["cloth", "balloons"])
    net = load_checkpoint(checkpoint)
    net = replace(net, facts=replace(net.facts, about=""))
    with pytest.raises(InputError, match="trained by another recipe"):
        card(net, load_recipe(recipe_file), figures(), HELD, "", 1)


def written(file: Path, content: Any) -> Path:
    file.write_text(content if isinstance(content, str) else "a warning\n" + json.dumps(content) + "\n")
    return file


def test_the_command_prints_the_card(
    recipe_file: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenes = {task: dict.fromkeys(HELD, figures()[task]) for task in GOALS}
    evaluation = {"model": "runs/nano.safetensors", "tasks": figures(), "scenes": scenes}
    file = written(tmp_path / "evaluation.json", evaluation)
    arguments = ["--checkpoint", checkpoint, "--recipe", recipe_file, "--evaluation", file, "--took", "a day"]
    monkeypatch.setattr(sys, "argv", ["card", *map(str, arguments)])
    main()
    size = checkpoint.stat().st_size
    expected = card(load_checkpoint(checkpoint), load_recipe(recipe_file), figures(), HELD, "a day", size)
    assert capsys.readouterr().out == expected
    file.unlink()
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not what"),
        ("{", "is not what"),
        ("[]", "is not what"),
        ({"error": {}}, "is not what"),
        ({"model": "nano", "tasks": {}, "scenes": {}}, "is not what"),
        ({"model": "damp-tiny", "tasks": {}, "scenes": {"noise": {"cloth": {}}}}, "is not of nano"),
    ],
    ids=str,
)
def test_an_evaluation_that_is_none_or_anothers_is_refused(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read_evaluation(written(tmp_path / "evaluation.json", content), Path("nano.safetensors"))


def test_a_packaged_model_is_the_run_in_16_bits(checkpoint: Path, tmp_path: Path) -> None:
    given = load_checkpoint(checkpoint)
    file = save_checkpoint(
        given, tmp_path / "nano.safetensors", scale=4095, wavelengths=(1.0, 2.0, 3.0, 4.0), about="of a run", fills=True
    )
    (tmp_path / "models").mkdir()
    packaged = package(file, tmp_path / "models")
    assert packaged.name == "nano.safetensors.xz" and packaged.stat().st_size < 0.7 * file.stat().st_size
    facts = load_checkpoint(packaged).facts
    told = (facts.scale, facts.wavelengths, facts.about, facts.fills)
    assert told == (4095, (1.0, 2.0, 3.0, 4.0), "of a run", True)
    stored, own = safetensors.torch.load(lzma.decompress(packaged.read_bytes())), given.state_dict()
    for key, value in stored.items():
        halved = value.is_floating_point() and value.dim() > 1 and not key.startswith("dep.")
        assert torch.equal(value, own[key].half() if halved else own[key])


def test_weights_that_16_bits_do_not_hold_leave_the_packaged_model_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    (good := tmp_path / "nano.safetensors.xz").write_bytes(b"the model before")
    given = load_checkpoint(checkpoint)
    with torch.no_grad():
        given.module.get_parameter("patch_embed.proj.weight")[0, 0, 0, 0] = 1e5
    file = save_checkpoint(given, tmp_path / "run.nano.safetensors").rename(tmp_path / "nano-best.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of .* weights are NaN or infinite"):
        package(file, tmp_path)
    assert good.read_bytes() == b"the model before"


def test_another_network_is_not_packaged_as_a_damp(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no DAMP"):
        package(PACKAGED / "mst-tiny.safetensors.xz", tmp_path)
    assert not list(tmp_path.iterdir())
