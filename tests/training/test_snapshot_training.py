"""Networks for snapshots: what is drawn and measured, the stages of a prior, and how they are judged and packaged."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from export.networks import load_checkpoint
from export.networks.mst import Mst
from export.networks.sdp import SdpMst
from runtime.errors import ConfigError, InputError
from runtime.simulation import cassi
from training import lessons
from training.curves import read_rows
from training.lessons import begin, step
from training.recipe import architecture_of
from training.snapshot import judge, study
from training.snapshot.draws import Draws, load_cubes, mask_of
from training.snapshot.lesson import STAGES, Learning, SdpLesson, spectra_of
from training.snapshot.pack import pack
from training.snapshot.recipe import KINDS, SnapshotRecipe, load_recipe
from training.snapshot.train import lesson_of, train
from training.study import recipes_of
from training.train import main

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
SHIPPED = sorted(path for path in RECIPES.glob("*.yaml") if architecture_of(path) in KINDS)
SIDE = 16
CONTENT: dict[str, Any] = {
    "architecture": "mst",
    "name": "bare",
    "seed": 3,
    "network": {"blocks": [1, 1]},
    "mask": {"seed": 2},
    "data": {
        "name": "noise", "scale": 1000, "wavelengths": {"first": 400, "last": 700, "count": 7}, "validation": ["held"],
    },
    "patches": {"count": 2, "size": SIDE},
    "optimiser": {"steps": 4, "learning_rate": 1e-3, "warmup": 1, "weight_decay": 0, "ema": 0.9},
    "log_every": 1,
    "validate_every": 2,
    "save_seconds": 0,
}  # fmt: skip
TINY = {"latent_dims": 6, "hfe_width": 4, "hfe_blocks": 1, "denoiser_layers": 1}
PRIORS = {
    "bare": {},
    "learned": {"architecture": "sdp", "name": "learned", "prior": {"network": TINY}},
    "pooled": {
        "architecture": "sdp", "name": "pooled",
        "prior": {"network": {**TINY, "latent_dims": 112}, "target": "pooled"},
    },
}  # fmt: skip


def made(kind: str, **changes: Any) -> SnapshotRecipe:
    return SnapshotRecipe.model_validate({**copy.deepcopy(CONTENT), **copy.deepcopy(PRIORS[kind]), **changes})


def written(kind: str, file: Path, **changes: Any) -> Path:
    file.write_text(yaml.safe_dump({**CONTENT, **PRIORS[kind], **changes}))
    return file


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for index, name in enumerate(("one", "two", "held")):
        rng = np.random.default_rng(index)
        cube = rng.integers(0, 1000, (5, 6, 7), np.uint16).repeat(6, 0).repeat(6, 1)
        np.savez(folder / f"{name}.npz", cube=cube)
    return folder


@pytest.fixture(scope="module")
def runs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of every kind."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in PRIORS:
        train(made(kind), scenes, folder / kind)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the state, whose bytes tell how often it was pickled."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("state.pt", "judged.json")}


@pytest.mark.parametrize(("kind", "at"), [("bare", 3), ("learned", 1), ("learned", 3), ("pooled", 1)])
def test_a_run_that_was_stopped_equals_one_that_was_not(
    kind: str, at: int, scenes: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = lessons.learning_rate

    def stopped(step: int, *rest: Any) -> float:
        if step == at:
            raise KeyboardInterrupt
        return rate(step, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(lessons, "learning_rate", stopped)
        train(made(kind), scenes, tmp_path / "run")
    train(made(kind), scenes, tmp_path / "run")
    assert files_of(tmp_path / "run") == files_of(runs / kind)


def test_another_recipe_does_not_go_on_with_a_run(scenes: Path, runs: Path) -> None:
    with pytest.raises(ConfigError, match="another recipe"):
        train(made("bare", mask={"seed": 4}), scenes, runs / "bare")


def test_every_draw_follows_from_seed_and_step_and_is_measured_through_the_mask(scenes: Path) -> None:
    cubes, (held,) = load_cubes(made("bare"), scenes)
    assert list(cubes) == ["one", "two"] and held.scene == "held" and len(held.batch.clean) == 2
    one, two = (Draws(made("bare"), cubes) for _ in range(2))
    one.batch(1)
    for number in (0, 7):
        a, b = one.batch(number), two.batch(number)
        assert torch.equal(a.clean, b.clean) and torch.equal(a.measured, b.measured)
    assert not torch.equal(Draws(made("bare", seed=4), cubes).batch(7).clean, two.batch(7).clean)
    batch, mask = two.batch(0), cassi.random_mask(2, SIDE, SIDE)
    assert batch.clean.shape == (2, 28, SIDE, SIDE) and 0 <= batch.clean.min() < batch.clean.max() <= 1
    for each in (batch, held.batch):
        for seen, clean in zip(each.measured.numpy(), each.clean.numpy(), strict=True):
            np.testing.assert_array_equal(seen[0], cassi.measure(clean, mask))


def test_scenes_are_resampled_to_the_bands_of_the_instrument(scenes: Path) -> None:
    cubes, _ = load_cubes(made("bare"), scenes)
    with np.load(scenes / "one.npz") as found:
        own = np.maximum(found["cube"].transpose(2, 0, 1).astype(np.float32) / np.float32(1000), 0)
    np.testing.assert_array_equal(cubes["one"], cassi.resampled(own, np.linspace(400, 700, 7).tolist()))


def lesson(kind: str, scenes: Path) -> tuple[SnapshotRecipe, SdpLesson, Draws]:
    recipe = made(kind)
    cubes, held = load_cubes(recipe, scenes)
    taught = lesson_of(recipe, held, cubes)
    assert isinstance(taught, SdpLesson)
    return recipe, taught, Draws(recipe, cubes)


@pytest.mark.parametrize(
    ("kind", "first"), [("learned", {"target", "net.spim", "net.embedding"}), ("pooled", {"net.hfe", "net.diffusion"})]
)
def test_every_stage_teaches_its_own_parts(kind: str, first: set[str], scenes: Path) -> None:
    recipe, taught, draws = lesson(kind, scenes)
    run = begin(recipe, taught)
    assert isinstance(run.net, Learning) and (run.net.target is None) is (kind == "pooled")
    watched = ("target", "net.hfe", "net.diffusion", "net.spim", "net.embedding")
    stages = first, {*watched[1:]}
    for number in range(4):
        before = {key: value.clone() for key, value in run.net.state_dict().items()}
        _, columns = step(run, recipe, taught, draws)
        assert columns == (STAGES[kind][number // 2],) * 2
        moved = {key for key, value in run.net.state_dict().items() if not torch.equal(value, before[key])}
        parts = {part for part in watched if any(key.startswith(f"{part}.") for key in moved)}
        # The scale and shift of a place are zero at first, by which nothing of a prior has a slope yet.
        assert parts == stages[number // 2] - ({"target"} if number == 0 else set())


def test_a_pooled_target_is_the_standardised_mean_spectrum_of_every_region(scenes: Path) -> None:
    recipe, taught, draws = lesson("pooled", scenes)
    net, batch = taught.begin(), draws.batch(0)
    found = net.true(batch).reshape(2, 28, 2, 2)
    corner = batch.clean[1, 5, SIDE // 2 :, : SIDE // 2].mean()
    assert float(found[1, 5, 1, 0]) == pytest.approx(float((corner - net.mean[5]) / net.deviation[5]), abs=1e-4)
    cubes, _ = load_cubes(recipe, scenes)
    mean, deviation = spectra_of([*cubes.values()], SIDE)
    assert torch.equal(mean, net.mean) and torch.equal(deviation, net.deviation) and deviation.min() > 0


def test_the_loss_is_the_root_of_the_mean_squared_error(scenes: Path) -> None:
    recipe, taught, draws = lesson("learned", scenes)
    net, batch = begin(recipe, taught).net, draws.batch(0)
    assert isinstance(net, Learning)
    first, errors, _ = taught.learn(net, batch, 0)
    off = net.informed(batch) - batch.clean
    assert float(first.detach()) == pytest.approx(float(off.detach().square().mean().sqrt()))
    torch.testing.assert_close(errors, off.detach().abs().mean((1, 2, 3)))
    again, _, _ = taught.learn(net, batch, 2)
    missed = (
        net.net.estimated(net.net.bands(batch.measured), taught.noised(net.true(batch), 2)) - net.true(batch)
    ).abs()
    # Nothing is told yet: the cube is the same.
    assert float(again.detach()) == pytest.approx(float((first + missed.mean()).detach()), rel=1e-5)


def test_a_prior_begins_with_the_backbone_of_a_run_without_one(scenes: Path) -> None:
    cubes, held = load_cubes(made("bare"), scenes)
    bare, told = (begin(made(kind), lesson_of(made(kind), held, cubes)).net for kind in ("bare", "learned"))
    state = told.state_dict()
    assert all(torch.equal(value, state[f"net.{key}"]) for key, value in bare.state_dict().items())


def test_a_checkpoint_is_of_the_network_alone_and_has_its_mask(runs: Path) -> None:
    for kind in PRIORS:
        net = load_checkpoint(runs / kind / f"{kind}.safetensors")
        assert isinstance(net.module, Mst) and isinstance(net.module, SdpMst) is (kind != "bare")
        np.testing.assert_array_equal(net.module.mask.numpy(), mask_of(made(kind)))
        assert "mask of seed 2" in net.facts.about and "data not included" in net.facts.about
    rows = read_rows(runs / "learned" / "validation.csv")
    assert [row["step"] for row in rows] == [2, 4] and set(rows[0]) == {"step", "held", "true prior", "mean"}
    logged = read_rows(runs / "learned" / "training.csv")
    assert [np.isnan(row["true prior"]) for row in logged] == [False, False, True, True]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_of_a_network_that_a_cpu_can_train(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem and recipe.data.validation == ("cloth", "superballs", "paints", "thread_spools")
    with torch.device("meta"):
        backbone = sum(p.numel() for p in Mst(recipe.config).parameters())
        whole = SdpMst(recipe.config, recipe.prior.config) if recipe.prior else None
    assert backbone <= 1_000_000
    assert whole is None or sum(p.numel() for p in whole.parameters()) - backbone <= 400_000


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("bare", {"prior": {}}, "prior belongs to an sdp"),
        ("learned", {"prior": None}, "prior belongs to an sdp"),
        ("bare", {"patches": {"count": 1, "size": 18}}, "multiple of 4"),
        ("bare", {"network": {"blocks": [1, 1, 1, 1]}, "patches": {"count": 1, "size": 20}}, "multiple of 8"),
        ("bare", {"network": {"blocks": [1, 0]}}, "network: "),
        ("bare", {"network": {"width": 3}}, "network: "),
        ("learned", {"prior": {"network": {"diffusion_steps": 0}}}, "prior.network: "),
        ("pooled", {"prior": {"network": TINY, "target": "pooled"}}, "latent_dims must be 112"),
        ("learned", {"prior": {"target": "guessed"}}, "learned"),
        ("bare", {"data": {**CONTENT["data"], "wavelengths": None}}, "data.wavelengths"),
        ("bare", {"data": {**CONTENT["data"], "validation": []}}, "data.validation"),
        ("bare", {"architecture": "bisrnet"}, "mst"),
        ("bare", {"tasks": {"noise": 1}}, "tasks"),
    ],
    ids=str,
)
def test_a_wrong_recipe_is_refused_in_one_line(kind: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(written(kind, tmp_path / "recipe.yaml", **changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_scene_that_is_missing_is_named(scenes: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_cubes(made("bare", data={**CONTENT["data"], "validation": ["absent"]}), scenes)
    with pytest.raises(ConfigError, match="smaller than a patch"):
        load_cubes(made("bare", patches={"count": 1, "size": 32}), scenes)


def command(monkeypatch: pytest.MonkeyPatch, run: Any, *line: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, line)])
    run()


def test_the_command_trains_what_the_recipe_names(
    scenes: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = written("learned", tmp_path / "recipe.yaml"), tmp_path / "out"
    line = "--recipe", file, "--data", scenes, "--out", out, "--device", "cpu"
    command(monkeypatch, main, *line)
    assert (out / "learned.safetensors").read_bytes() == (runs / "learned" / "learned.safetensors").read_bytes()
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, main, *line, "--minutes", "1")
    assert ended.value.code == 2


def test_a_run_is_judged_and_then_packaged(
    scenes: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = made("learned"), runs / "learned"
    with pytest.raises(InputError, match="not judged"):
        pack(recipe, run, "a moment", tmp_path)
    file = written("learned", tmp_path / "recipe.yaml")
    other = run / "learned-best.safetensors"
    command(monkeypatch, judge.main, "--recipe", file, "--run", run, "--data", scenes, "--beside", other)
    found = judge.judged(recipe, run, scenes)
    told, best = capsys.readouterr().out, judge.beside(recipe, other, scenes)
    assert f"| learned | {found['restored']['psnr']:.3f} |" in told
    assert f"| learned-best | {best['restored']['psnr']:.3f} |" in told
    assert f"| GAP-TV | {found['GAP-TV']['psnr']:.3f} |" in told and found["GAP-TV"]["psnr"] > 10
    # The file keeps kernels in 16 bits.
    assert found["restored"]["psnr"] == pytest.approx(read_rows(run / "validation.csv")[-1]["mean"], abs=1e-3)
    ended = next(row for row in read_rows(run / "validation.csv")[::-1] if row["step"] <= recipe.first_stage)
    assert found["true prior"] == {"step": f"{ended['step']:g}", "psnr": ended["true prior"]}
    assert found["tiles"] == 2 and found["starts"] > 0
    assert load_checkpoint(pack(recipe, run, "a moment", tmp_path)).facts.about == recipe.about(recipe.optimiser.steps)
    card = (tmp_path / "learned.md").read_text()
    assert "after a description alone" in card and "| learned |" in card and "own split" in card


@pytest.mark.slow
def test_a_study_compares_what_it_trained(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written("learned", tmp_path / "recipe.yaml")
    variants = {
        "base": {"about": "bare", "changes": {"architecture": "mst", "prior": None}},
        "prior": {"about": "told"},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"recipe": "recipe.yaml", "seeds": [1], "variants": variants}))
    line = "--study", tmp_path / "study.yaml", "--data", scenes, "--out", tmp_path / "tried"
    command(monkeypatch, study.main, *line)
    printed = capsys.readouterr().out
    assert "| base-1 |" in printed and "| prior-1 |" in printed
    assert (
        "- prior, over base with as many steps: " in printed
        and "- prior told the prior of the truth, at step" in printed
    )
    assert (tmp_path / "tried" / "study.md").read_text() in printed
    monkeypatch.setattr(lessons, "step", lambda *_: pytest.fail("a finished run is trained again"))
    command(monkeypatch, study.main, *line)
    assert capsys.readouterr().out == printed


def test_the_shipped_study_differs_in_the_prior_alone() -> None:
    found = [recipe for _, recipe in recipes_of(RECIPES.parent / "studies" / "sdp.yaml", load_recipe)]
    assert {(r.architecture, r.seed) for r in found} == {(kind, seed) for kind in ("mst", "sdp") for seed in (1, 2)}
    same = {"architecture": "mst", "prior": None, "name": "one", "seed": 1}
    assert len({r.model_copy(update=same).digest() for r in found}) == 1
