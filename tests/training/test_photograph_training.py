"""Networks for photographs: what is drawn, learned, saved and gone on with."""

from __future__ import annotations

import copy
import hashlib
import json
import lzma
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from calibration.degradations import DEGRADATIONS
from export.networks import load_checkpoint
from export.networks.dfpir import Dfpir
from export.networks.dpmambair import DPMambaIR
from runtime.errors import CheckpointError, ConfigError, InputError
from training import lessons as module
from training.lessons import begin
from training.recipe import architecture_of
from training.rgb import judge, study
from training.rgb.dfpir import KEPT, DfpirLesson, codes
from training.rgb.dpmambair import ExtractorLesson, Learning, loss, read_extractor, told_apart
from training.rgb.draws import Draws, held_pictures, load_pictures
from training.rgb.pack import pack
from training.rgb.recipe import CONFIGS, PhotographRecipe, load_recipe
from training.rgb.train import train
from training.study import load_study
from training.train import main

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
SHIPPED = sorted(path for path in RECIPES.glob("*.yaml") if architecture_of(path) in CONFIGS)
MAMBA = {
    "dim": 4, "encoder_blocks": [0, 0, 0, 1], "decoder_blocks": [0, 0, 0], "refinement_blocks": 0, "states": 2,
    "embedding": 6, "extractor_widths": [4, 6], "cdc_kernels": [3], "plain_kernel": 3,
}  # fmt: skip
COMMON: dict[str, Any] = {
    "seed": 3,
    "data": {"name": "noise", "held": 1},
    "tasks": {"grain": 0.5, "haze": 0.5},
    "patches": {"count": 3, "size": 16},
    "optimiser": {"steps": 4, "learning_rate": 1e-3, "warmup": 1, "ema": 0.9},
    "log_every": 2,
    "validate_every": 2,
    "save_seconds": 0,
}
CONTENT: dict[str, dict[str, Any]] = {
    "dfpir": {
        **COMMON,
        "name": "prompted",
        "network": {
            "dim": 4, "heads": [1, 1, 1, 1], "blocks": [0, 0, 0, 1], "refinement_blocks": 0, "hidden": [4, 4, 4, 4],
            "text": 8,
        },
        "severity": {"grain": {"sigma": 0.1}},
        "prompts": {"seed": 5, "tasks": {"denoise25": "grain", "dehaze": "haze"}, "mismatched": 0.4},
    },
    "dpmambair-extractor": {
        **COMMON, "name": "told", "network": MAMBA, "reconstructor": {"width": 4, "blocks": 1},
    },
    "dpmambair": {**COMMON, "name": "restoring", "network": MAMBA, "extractor": "told"},
}  # fmt: skip


def made(kind: str, **changes: Any) -> PhotographRecipe:
    return PhotographRecipe.model_validate({"architecture": kind, **copy.deepcopy(CONTENT[kind]), **changes})


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (6, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def runs(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole run of every kind, stage 2 after stage 1."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, content in CONTENT.items():
        train(made(kind), photographs, folder / content["name"])
    yield folder


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the state, whose bytes tell how often it was pickled."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "state.pt"}


@pytest.mark.parametrize("kind", CONTENT)
def test_a_run_that_was_stopped_equals_one_that_was_not(
    kind: str, photographs: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = made(kind), tmp_path / CONTENT[kind]["name"]
    if kind == "dpmambair":
        recipe = made(kind, extractor=str(runs / "told" / "told.safetensors"))
        runs = tmp_path / "straight"
        train(recipe, photographs, runs / out.name)
    rate = module.learning_rate

    def stopped_at_three(step: int, *rest: Any) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return rate(step, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "learning_rate", stopped_at_three)
        train(recipe, photographs, out)
    train(recipe, photographs, out)
    assert files_of(out) == files_of(runs / out.name)


def test_another_recipe_does_not_go_on_with_a_run(photographs: Path, runs: Path) -> None:
    with pytest.raises(ConfigError, match="another recipe"):
        train(made("dfpir", seed=4), photographs, runs / "prompted")


def test_every_draw_follows_from_seed_and_step(photographs: Path) -> None:
    pictures = load_pictures(photographs, 16)
    one, two = (Draws(made("dfpir"), pictures) for _ in range(2))
    one.batch(1)
    for step in (0, 7):
        a, b = one.batch(step), two.batch(step)
        assert a.tasks == b.tasks and torch.equal(a.degraded, b.degraded) and torch.equal(a.clean, b.clean)
    other = Draws(made("dfpir", seed=4), pictures).batch(7)
    assert not torch.equal(other.clean, two.batch(7).clean)
    batch = two.batch(0)
    assert batch.clean.shape == (3, 3, 16, 16) and not torch.equal(batch.degraded, batch.clean)


def test_haze_thickens_to_the_top_of_the_photograph_not_of_the_patch(photographs: Path) -> None:
    pictures = {"black": np.zeros((3, 400, 40), np.uint8)}
    draws = Draws(made("dfpir", tasks={"haze": 1, "grain": 1e-9}), pictures)
    strips = torch.cat([draws.batch(step).degraded.mean(1) for step in range(10)])
    falls = (strips[:, 0].mean(1) - strips[:, -1].mean(1)) / strips.mean((1, 2))
    assert falls.abs().max() < 0.5


def test_severity_of_the_recipe_is_what_a_degradation_is_called_with(photographs: Path) -> None:
    recipe = made("dfpir")
    (held,) = [h for h in held_pictures(recipe, {"grey": np.full((3, 64, 64), 128, np.uint8)}, 64) if h.task == "grain"]
    assert float((held.bad - held.clean).std()) == pytest.approx(0.1, rel=0.05)


def test_a_prompt_that_is_not_the_pictures_own_is_to_leave_it_as_it_is(photographs: Path) -> None:
    lesson = DfpirLesson(made("dfpir"), ())
    net, batch = lesson.begin(), Draws(made("dfpir"), load_pictures(photographs, 16)).batch(0)
    own = [lesson.tasks.index(task) for task in batch.tasks]
    steps = range(400)
    strange = np.array([lesson.said(batch.tasks, step) != own for step in steps])
    assert strange.mean() == pytest.approx(0.4, abs=0.05)
    # A network that adds nothing yet is right about those, and wrong by the damage itself about the others.
    for step in range(5):
        _, errors, columns = lesson.learn(net, batch, step)
        damage = (batch.degraded - batch.clean).abs().mean((1, 2, 3))
        kept = torch.tensor([column == KEPT for column in columns])
        assert kept.tolist() == strange[step].tolist()
        torch.testing.assert_close(errors, torch.where(kept, 0, damage))


def test_the_prompt_changes_what_a_trained_network_does(photographs: Path) -> None:
    lesson = DfpirLesson(made("dfpir"), ())
    draws = Draws(made("dfpir"), load_pictures(photographs, 16))
    batch, run = draws.batch(0), begin(made("dfpir"), lesson)
    fixed = [block.linear_layer3.weight.clone() for block in run.net.perturbing().values()]
    for step in range(3):
        module.step(run, made("dfpir"), lesson, draws)
        assert run.step == step + 1
    one, two = (run.net(batch.degraded, run.net.perturbation(code.tensor)) for code in lesson.codes.values())
    assert not torch.equal(one, two)
    assert all(
        torch.equal(a, b.linear_layer3.weight) for a, b in zip(fixed, run.net.perturbing().values(), strict=True)
    )


def test_a_checkpoint_brings_its_prompts_and_says_that_they_are_not_clips(runs: Path) -> None:
    net = load_checkpoint(runs / "prompted" / "prompted.safetensors")
    assert isinstance(net.module, Dfpir) and list(net.module.prompts) == ["denoise25", "dehaze"]
    recipe = made("dfpir")
    assert recipe.prompts is not None
    for name, code in codes(recipe.prompts, 8).items():
        assert np.array_equal(net.module.prompts[name].values, code.values)
        assert net.module.prompts[name].sentence == code.sentence != ""
    assert "not CLIP's" in net.facts.about


def test_stage_two_reads_what_stage_one_writes_and_leaves_it_alone(runs: Path) -> None:
    written = read_extractor(runs / "told" / "told.safetensors")
    net = load_checkpoint(runs / "restoring" / "restoring.safetensors")
    assert isinstance(net.module, DPMambaIR)
    frame = torch.rand(1, 3, 16, 24)
    # Kernels are written in 16 bits.
    torch.testing.assert_close(net.module.extractor(frame), written(frame), rtol=0, atol=1e-3)
    with pytest.raises(CheckpointError, match="is no extractor"):
        read_extractor(runs / "restoring" / "restoring.safetensors")
    other = made("dpmambair", network={**MAMBA, "embedding": 5}).config
    with pytest.raises(CheckpointError, match="another extractor"):
        read_extractor(runs / "told" / "told.safetensors", other)


def test_a_merged_extractor_gives_what_its_branches_gave(runs: Path, photographs: Path) -> None:
    recipe = made("dpmambair-extractor")
    run = begin(recipe, ExtractorLesson(recipe, ()))
    module.resume(run, recipe, runs / "told" / "state.pt")
    net = run.averaged()
    assert isinstance(net, Learning)
    frame = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(
        read_extractor(runs / "told" / "told.safetensors")(frame), net.extractor(frame), atol=1e-5, rtol=1e-4
    )


def test_a_network_without_modulation_sees_nothing_of_its_embedding(
    runs: Path, photographs: Path, tmp_path: Path
) -> None:
    extractor = str(runs / "told" / "told.safetensors")
    frame = torch.rand(1, 3, 16, 16)
    for modulated in (True, False):
        recipe = made("dpmambair", name="tried", modulated=modulated, extractor=extractor)
        net = load_checkpoint(train(recipe, photographs, tmp_path / str(modulated)))
        one, two = net(frame, torch.zeros(1, 6)), net(frame, torch.ones(1, 6))
        assert torch.equal(one, two) is not modulated


def test_the_losses_are_those_of_the_paper() -> None:
    a, b = torch.rand(2, 3, 8, 8).double(), torch.rand(2, 3, 8, 8).double()
    spectrum = np.fft.fft2((a - b).numpy())
    parts = np.concatenate([spectrum.real, spectrum.imag])
    difference = (a - b).numpy()
    wanted = abs(difference).mean() + 0.5 * (difference**2).mean() + 0.001 * abs(parts).mean()
    assert float(loss(a, b)) == pytest.approx(wanted, rel=1e-9)


def test_kinds_are_told_apart_by_means_that_leave_the_asked_one_out() -> None:
    rng = np.random.default_rng(1)
    kinds = [kind for kind in ("haze", "rain", "snow") for _ in range(20)]
    near = np.eye(3)[[("haze", "rain", "snow").index(kind) for kind in kinds]]
    assert told_apart(near + 0.1 * rng.standard_normal(near.shape), kinds) == 1
    assert told_apart(rng.standard_normal((60, 50)), kinds) < 0.6


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_of_a_network_that_a_cpu_can_train(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem and set(recipe.tasks) <= set(DEGRADATIONS)
    if recipe.architecture == "dpmambair-extractor":
        return
    with torch.device("meta"):
        net = {"dfpir": Dfpir, "dpmambair": DPMambaIR}[recipe.architecture](recipe.config)
    assert sum(p.numel() for p in net.parameters()) <= 2_500_000


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("dfpir", {"prompts": None}, "prompts belong to a dfpir"),
        ("dfpir", {"prompts": {"seed": 1, "tasks": {"denoise25": "grain", "derain": "rain"}}}, "name every task"),
        ("dfpir", {"prompts": {"seed": 1, "tasks": {"denoise": "grain", "dehaze": "haze"}}}, "denoise15"),
        ("dfpir", {"network": {"dim": 5}}, "network: "),
        ("dfpir", {"network": {"bands": 4}}, "bands must be 3"),
        ("dfpir", {"patches": {"count": 1, "size": 12}}, "multiple of 8"),
        ("dfpir", {"tasks": {"fog": 1}}, "haze"),
        ("dpmambair", {"extractor": None}, "extractor belongs"),
        ("dpmambair-extractor", {"extractor": "told"}, "extractor belongs"),
        ("resnet", {}, "dfpir"),
    ],
    ids=str,
)
def test_a_wrong_recipe_is_refused(kind: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"architecture": kind, **CONTENT.get(kind, COMMON), **changes}))
    with pytest.raises(ConfigError, match=says):
        load_recipe(file)


def test_the_command_trains_what_the_recipe_names(
    photographs: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"architecture": "dfpir", **CONTENT["dfpir"]}))
    line = ["train", "--recipe", file, "--data", photographs, "--out", out, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*map(str, line)])
    main()
    assert (out / "prompted.safetensors").read_bytes() == (runs / "prompted" / "prompted.safetensors").read_bytes()
    monkeypatch.setattr(sys, "argv", [*map(str, line), "--minutes", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2


def test_figures_of_a_network_that_adds_nothing_are_zero(photographs: Path) -> None:
    recipe = made("dfpir")
    held = held_pictures(recipe, load_pictures(photographs, 16), 16)
    figures = DfpirLesson(recipe, held).figures(DfpirLesson(recipe, held).begin())
    assert set(figures) == {"grain", "haze", "grain wrong prompt", "haze wrong prompt", "mean"}
    assert all(math.isclose(value, 0, abs_tol=1e-6) for value in figures.values())


def test_every_prompt_is_judged_on_every_task(
    photographs: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, prompts in (("dfpir", {"denoise25", "dehaze"}), ("dpmambair", {"embedding", "zeros"})):
        run, file = runs / CONTENT[kind]["name"], tmp_path / f"{kind}.yaml"
        file.write_text(yaml.safe_dump({"architecture": kind, **CONTENT[kind]}))
        line = ["judge", "--recipe", file, "--run", run, "--data", photographs, "--pictures", "2", "--size", "16"]
        monkeypatch.setattr(sys, "argv", [*map(str, line)])
        judge.main()
        judged = json.loads((run / "judged.json").read_text())
        found = judged["figures"]
        assert (judged["pictures"], judged["size"]) == (2, 16)
        (run / "judged.json").unlink()
        assert set(found) == {"grain", "haze"} and set(found["haze"]) == {"input", *prompts}
        assert f"| grain | {found['grain']['input']['psnr']:.2f} | **" in capsys.readouterr().out


def test_what_is_packaged_was_trained_to_its_end_and_judged_as_it_is(
    photographs: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = made("dfpir"), shutil.copytree(runs / "prompted", tmp_path / "run")
    with pytest.raises(InputError, match="not judged"):
        pack(recipe, run, "a moment", tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"architecture": "dfpir", **CONTENT["dfpir"]}))
    line = ["judge", "--recipe", file, "--run", run, "--data", photographs, "--pictures", "2", "--size", "16"]
    monkeypatch.setattr(sys, "argv", [*map(str, line)])
    judge.main()
    written = pack(recipe, run, "a moment", tmp_path)
    # Compared as hashes: what differs in megabytes is not worth being told.
    unpacked, own = lzma.decompress(written.read_bytes()), (run / "prompted.safetensors").read_bytes()
    assert hashlib.sha256(unpacked).digest() == hashlib.sha256(own).digest()
    card = (tmp_path / "prompted.md").read_text()
    assert "not CLIP's" in card and "| grain |" in card and "costs less than 1 dB: haze, grain" in card
    with pytest.raises(InputError, match="unfinished"):
        pack(made("dfpir", optimiser={**COMMON["optimiser"], "steps": 5}), run, "a moment", tmp_path)
    (run / "prompted.safetensors").write_bytes((run / "prompted-best.safetensors").read_bytes()[:-4] + b"\0" * 4)
    with pytest.raises(CheckpointError):
        pack(recipe, run, "a moment", tmp_path)


def test_an_extractor_is_judged_by_whether_it_tells_kinds_apart(photographs: Path) -> None:
    recipe = made("dpmambair-extractor", tasks={"lowlight": 1, "haze": 1})
    held = held_pictures(recipe, load_pictures(photographs, 16), 16)

    class Brightness(torch.nn.Module):
        def forward(self, frame: torch.Tensor) -> torch.Tensor:
            return frame.mean((2, 3))

    found = judge.separability(Brightness(), held, held)
    assert found["nearest mean"] == found["head"] == 1 and found["confusion of the head"] == [[3, 0], [0, 3]]
    assert "nearest mean 100.0%" in judge.separability_table(found)


def test_a_study_trains_its_variants_beside_the_extractor(
    photographs: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"architecture": "dpmambair", **CONTENT["dpmambair"]}))
    shutil.copytree(runs / "told", tmp_path / "told")
    variants = {"modulated": {"about": "whole"}, "zeroed": {"about": "zeros", "changes": {"modulated": False}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"recipe": "recipe.yaml", "seeds": [1], "variants": variants}))
    line = ["study", "--study", tmp_path / "study.yaml", "--data", photographs, "--out", tmp_path / "tried"]
    monkeypatch.setattr(sys, "argv", [*map(str, line)])
    study.main()
    printed = capsys.readouterr().out
    assert "| modulated |" in printed and "| zeroed |" in printed
    assert (tmp_path / "tried" / "zeroed-1" / "zeroed-1.safetensors").exists()
    monkeypatch.setattr(module, "step", lambda *_: pytest.fail("a finished run is trained again"))
    study.main()
    assert capsys.readouterr().out == printed


def test_the_shipped_study_differs_in_the_embedding_alone() -> None:
    file = RECIPES.parent / "studies" / "modulation.yaml"
    shipped = load_study(file)
    one, two = (load_recipe(file.parent / shipped.recipe, **v.changes) for v in shipped.variants.values())
    assert one.modulated and not two.modulated and one == two.model_copy(update={"modulated": True})
