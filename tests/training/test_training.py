"""Training: recipes, the schedule, the loss, draws that follow from seed and step, runs that go on where they were."""

from __future__ import annotations

import copy
import csv
import fcntl
import io
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from calibration.degradations import DEGRADATIONS
from calibration.quality import psnr
from export.networks import load_checkpoint, packaged_models, save_checkpoint
from export.networks.damp import Damp, DampConfig
from export.networks.damp.blocks import Router
from runtime.errors import CheckpointError, ConfigError, CubeError, CubeFileError, InputError, MachineError
from runtime.metrics import prompt_metrics
from tests.contracts.stranger import stranger
from training import run as training
from training import train as command_module
from training.curves import append_row, draw_curves, drop_rows_after, read_rows
from training.data import Batch, Draws, Scenes, brightened, draw_patch, load_scenes
from training.degrading import DAMAGES
from training.growth import grow, start_transparent
from training.recipe import Data, Ease, Gates, Loss, Optimiser, Recipe, architecture_of, load_recipe
from training.rgb.recipe import load_recipe as load_photograph_recipe
from training.run import SPATIAL_ALPHA, Run, Way, average, balance, begin, damp_of, learning_rate, save, softened, step
from training.snapshot.recipe import KINDS
from training.snapshot.recipe import load_recipe as load_snapshot_recipe
from training.train import main, train
from training.validation import held_scenes, validate

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(p for p in (ROOT / "training" / "recipes").glob("*.yaml") if not architecture_of(p))
BANDS = 4
RECIPE: dict[str, Any] = {
    "name": "nano",
    "seed": 3,
    "network": {
        "bands": BANDS,
        "dim": 8,
        "heads": [2, 2, 2, 2],
        "encoder_blocks": [1, 0, 0, 1],
        "decoder_blocks": [1, 0, 0],
        "refinement_blocks": 0,
        "expansion": 1,
        "experts": 2,
        "top_k": 1,
        "embedding": 16,
        "gate": "concat",
        "metric_set": "paper6",
    },
    "data": {
        "name": "noise",
        "scale": 65535,
        "stored_scale": 65535,
        "wavelengths": {"first": 400, "last": 700, "count": BANDS},
        "validation": ["held"],
        "gain": [0.6, 2.5],
    },
    "tasks": {"noise": 0.5, "blur": 0.2, "bandloss": 0.3},
    "patches": [{"count": 2, "size": 64, "share": 0.7}, {"count": 1, "size": 64, "share": 0.3}],
    "loss": {"first_floor": 0.2, "last_floor": 0.01},
    "optimiser": {
        "steps": 4,
        "learning_rate": 1.0e-3,
        "last_learning_rate": 1.0e-6,
        "warmup": 2,
        "weight_decay": 1.0e-4,
        "gradient_norm": 1.0,
        "ema": 0.9,
    },
    "log_every": 2,
    "validate_every": 100,
    "save_seconds": 0,
}


def content(**changes: Any) -> dict[str, Any]:
    """RECIPE with other values; `optimiser__steps` is the key `optimiser.steps`."""
    changed = copy.deepcopy(RECIPE)
    for path, value in changes.items():
        *parents, key = path.split("__")
        inner = changed
        for parent in parents:
            inner = inner[parent]
        inner[key] = value
    return changed


def made(**changes: Any) -> Recipe:
    return Recipe.model_validate(content(**changes))


def written(folder: Path, recipe: dict[str, Any]) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt_at(at: int, act: Callable[[], None]) -> Callable[[int, int, Optimiser], float]:
    """A learning rate that acts as step `at` begins."""

    def rate(number: int, steps: int, options: Optimiser) -> float:
        if number == at:
            act()
        return learning_rate(number, steps, options)

    return rate


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes to train on and one to hold out, [lines, samples, bands] of 16 bits."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, (name, *size) in enumerate((("one", 130, 140), ("two", 130, 140), ("held", 70, 80))):
        cube = np.random.default_rng(seed).integers(0, 60000, (*size, BANDS), np.uint16)
        np.savez(folder / f"{name}.npz", cube=cube)
    return folder


@pytest.fixture(scope="module")
def straight(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that nothing stopped."""
    return train(made(), scenes, tmp_path_factory.mktemp("straight"))


BUSY = {"log_every": 1, "validate_every": 1}


@pytest.fixture(scope="module")
def busy(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the same run, logged and validated at every step and saved at other ones."""
    return train(made(**BUSY, save_seconds=1000), scenes, tmp_path_factory.mktemp("busy"))


# Recipes


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"sead": 1}, "sead", "not permitted"),
        ({"optimiser__momentum": 0.9}, "optimiser.momentum", "not permitted"),
        ({"tasks": {"noise": 1, "rain": 1}}, "tasks", "rain"),
        ({"tasks": {}}, "tasks", "empty"),
        ({"tasks": {"noise": 0}}, "tasks.noise", "greater than 0"),
        ({"patches": [{"count": 1, "size": 96}]}, "patches.0.size", "multiple of 64"),
        ({"patches": [{"count": 0, "size": 64}]}, "patches.0.count", "greater than or equal to 1"),
        ({"patches": [{"size": 64}]}, "patches.0.count", "required"),
        ({"name": "../nano"}, "name", "pattern"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"ablate": "gate"}, "ablate", "'prompt' or 'spectral'"),
        ({"optimiser__steps": "many"}, "optimiser.steps", "integer"),
        ({"optimiser__learning_rate": math.inf}, "optimiser.learning_rate", "finite"),
        ({"optimiser__ema": 1.0}, "optimiser.ema", "less than 1"),
        ({"loss": {"first_floor": 0.2}}, "loss", "both floors or none"),
        ({"data__gain": [2.5, 0.6]}, "data.gain", "lower"),
        ({"data__scale": "Max"}, "data.scale", "or: Input should be 'max'"),
        ({"data__scales": {"abu-": -1}}, "data.scales.abu-", "greater than 0"),
        ({"patches": []}, "patches", "at least 1"),
        ({"network__heads": [2, 2, 2, 2.5]}, "network", "heads must be whole numbers"),
        ({"network__top_k": None}, "network", "top_k must be a whole number"),
        ({"data__wavelengths": {"first": 700, "last": 400, "count": 4}}, "data.wavelengths", "must rise"),
        ({"data__wavelengths__count": 5}, None, "data.wavelengths.count is 5, network.bands 4"),
        ({"network__width": 8}, "network", "has no key width"),
        ({"network__heads": [2, 2]}, None, "network: heads"),
        ({"network__top_k": 3}, None, "network: top_k"),
        ({"network__bands": "four"}, "network", "bands must be a whole number"),
        ({"gates": {"experts": {"rain": 0}}}, None, "gates.experts: must be of noise"),
        ({"gates": {"experts": {"noise": 2}}}, None, "gates.experts.noise is 2, network.experts 2"),
        ({"ease": {"first": 0.3, "share": 0}}, "ease.share", "greater than 0"),
        ({"data__wavelengths": None, "data__photographs": {"share": 0.5}}, None, "needs data.wavelengths"),
    ],
    ids=str,
)
def test_a_wrong_key_is_named_with_its_file(
    changes: dict[str, Any], key: str | None, says: str, tmp_path: Path
) -> None:
    file = written(tmp_path, content(**changes))
    with pytest.raises(ConfigError) as caught:
        load_recipe(file)
    assert caught.value.file == str(file) and caught.value.key == key
    assert says in caught.value.problem and "Value error" not in caught.value.problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a: [", "not YAML"),
        (b"name: \xff", "not YAML"),
        (b"- name", "no mapping"),
        (b"", "no mapping"),
        (None, "read"),
    ],
    ids=str,
)
def test_a_file_that_is_no_recipe_is_refused(text: bytes | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_recipe(file)
    assert caught.value.file == str(file)


def test_a_recipe_is_read_as_it_is_written_but_for_what_the_caller_changes(tmp_path: Path) -> None:
    file = written(tmp_path, content())
    assert load_recipe(file) == made()
    assert load_recipe(file, seed=9, ablate="prompt") == made(seed=9, ablate="prompt")
    with pytest.raises(ConfigError, match="seed"):
        load_recipe(file, seed="nine")


DECIDING: list[dict[str, Any]] = [
    {"name": "other"},
    {"seed": 4},
    {"start": "damp-tiny"},
    {"ablate": "prompt"},
    {"network__experts": 3},
    {"data__scale": "max"},
    {"data__scales": {"o": 1}},
    {"data__validation": ["one"]},
    {"data__gain": [0.6, 2.4]},
    {"tasks__noise": 0.6},
    {"patches": [{"count": 2, "size": 64}]},
    {"loss__last_floor": 0.02},
    {"optimiser__steps": 5},
    {"optimiser__ema": 0.99},
    {"teacher": {"checkpoint": "damp-tiny", "share": 0.5}},
    {"teacher": {"checkpoint": "damp-tiny", "share": 0.6}},
]


@pytest.mark.parametrize("changes", DECIDING, ids=str)
def test_the_digest_tells_recipes_apart_that_train_other_weights(changes: dict[str, Any]) -> None:
    assert made(**changes).digest() != made().digest()


def test_the_digest_leaves_out_what_changes_no_weight() -> None:
    assert made(log_every=1, validate_every=7, save_seconds=9).digest() == made().digest()


def test_the_order_of_tasks_in_the_file_changes_nothing(scenes: Path) -> None:
    turned = made(tasks=dict(reversed(RECIPE["tasks"].items())))
    assert turned.digest() == made().digest()
    assert all(same(batch(scenes, 1, at, turned), batch(scenes, 1, at)) for at in range(4))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_can_be_run(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert 0 < recipe.optimiser.warmup < recipe.optimiser.steps
    assert recipe.optimiser.last_learning_rate < recipe.optimiser.learning_rate
    assert recipe.data.validation and recipe.loss.first_floor
    if recipe.start is not None:
        assert recipe.start in packaged_models()
    with torch.device("meta"):
        net = Damp(recipe.config)
        for other in SHIPPED:
            if other.stem == recipe.start:
                grow(net, Damp(load_recipe(other).config))


def test_recipes_are_shipped() -> None:
    assert {"damp-nano", "damp-tiny", "damp-small"} <= {path.stem for path in SHIPPED}


# The schedule


OPTIONS = Optimiser(learning_rate=1e-3, last_learning_rate=1e-6, warmup=10, steps=110)


def test_the_rate_rises_evenly_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(at, OPTIONS.steps, OPTIONS) for at in range(110)]
    assert rates[:10] == pytest.approx([1e-4 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx((1e-3 + 1e-6) / 2)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    # A cosine: the fall is symmetric about its middle.
    assert [a + b for a, b in zip(rates[20:60], rates[100:60:-1], strict=True)] == pytest.approx([1e-3 + 1e-6] * 40)


def test_the_rate_ends_at_the_last_one_and_stays() -> None:
    assert learning_rate(110, 110, OPTIONS) == learning_rate(5000, 110, OPTIONS) == pytest.approx(1e-6)
    short = OPTIONS.model_copy(update={"warmup": 1, "steps": 1})
    assert learning_rate(0, 1, short) == learning_rate(1, 1, short) == pytest.approx(1e-3)


# The loss


ERRORS = torch.tensor([0.003, 0.01, 0.05, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_plain_loss_and_one_with_a_huge_floor_are_l1(progress: float) -> None:
    assert softened(ERRORS, Loss(), progress) == ERRORS.mean()
    huge = softened(ERRORS, Loss(first_floor=1e6, last_floor=1e5), progress)
    torch.testing.assert_close(huge, ERRORS.mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_no_error_pulls_harder_than_in_l1_and_small_ones_pull_relatively_harder(progress: float) -> None:
    errors = ERRORS.clone().requires_grad_()
    softened(errors, Loss(first_floor=0.2, last_floor=0.01), progress).backward()
    pull = errors.grad
    assert pull is not None and bool((pull > 0).all()) and bool((pull < 1 / len(ERRORS)).all())
    assert all(large < small for small, large in pairwise(pull.tolist()))


def test_the_floor_falls_slowly_first_and_to_its_last_value() -> None:
    falling = Loss(first_floor=0.2, last_floor=0.002)
    for progress, floor in ((0.0, 0.2), (0.5**0.5, 0.02), (1.0, 0.002)):
        expected = (floor * torch.log(1 + ERRORS / floor)).mean()
        torch.testing.assert_close(softened(ERRORS, falling, progress), expected)


def test_a_step_learns_from_the_softened_loss_and_tells_the_plain_one(scenes: Path) -> None:
    drawn = batch(scenes, 1, 0)
    runs = {kind: begun(made(loss=loss)) for kind, loss in LOSSES.items()}
    errors = {kind: step(run, made(loss=LOSSES[kind]), drawn) for kind, run in runs.items()}
    expected = (drawn.degraded - drawn.clean).abs().mean((1, 2, 3))
    for kind in LOSSES:
        torch.testing.assert_close(errors[kind], expected, rtol=1e-4, atol=0)
    weights = [run.net.state_dict()["output.weight"] for run in runs.values()]
    assert not torch.equal(*weights)


LOSSES: dict[str, dict[str, float]] = {"plain": {}, "softened": RECIPE["loss"]}


# Draws


def batch(scenes: Path, seed: int, at: int, recipe: Recipe | None = None) -> Batch:
    recipe = recipe or made()
    return draws(scenes, recipe.model_copy(update={"seed": seed})).batch(at)


def draws(scenes: Path, recipe: Recipe) -> Draws:
    return Draws(recipe, load_scenes(scenes, recipe.data), torch.device("cpu"))


def begun(recipe: Recipe) -> Run:
    """A run that draws nothing."""
    return begin(recipe, Draws(recipe, Scenes({}), torch.device("cpu")))


def same(one: Batch, other: Batch) -> bool:
    arrays = ("degraded", "clean", "metrics")
    return one.tasks == other.tasks and all(torch.equal(vars(one)[k], vars(other)[k]) for k in arrays)


def test_a_batch_follows_from_seed_and_step_alone(scenes: Path) -> None:
    first = batch(scenes, 1, 7)
    np.random.seed(0)
    for at in (3, 8, 1):
        assert not same(batch(scenes, 1, at), first)
    assert same(batch(scenes, 1, 7), first)
    assert not same(batch(scenes, 2, 7), first)


def test_a_batch_is_patches_their_degraded_forms_their_metrics_and_tasks(scenes: Path) -> None:
    counts, tasks = set(), set()
    for at in range(12):
        drawn = batch(scenes, 0, at)
        counts.add(len(drawn.clean))
        tasks |= set(drawn.tasks)
        assert drawn.clean.shape == drawn.degraded.shape == (len(drawn.clean), BANDS, 64, 64)
        assert drawn.clean.dtype == drawn.degraded.dtype == drawn.metrics.dtype == torch.float32
        arrays = [tensor.numpy() for tensor in (drawn.clean, drawn.degraded, drawn.metrics)]
        assert arrays[0].min() >= 0 and np.quantile(arrays[0], 0.99) <= 1
        for clean, degraded, metrics, task in zip(*arrays, drawn.tasks, strict=True):
            assert not np.array_equal(clean, degraded)
            assert (task == "bandloss") == (not degraded.any((1, 2)).all())
            np.testing.assert_allclose(metrics, prompt_metrics(degraded, "paper6"), rtol=1e-3)
    assert counts == {1, 2} and tasks == set(RECIPE["tasks"])


def test_metrics_that_torch_has_not_are_computed_in_numpy(scenes: Path) -> None:
    recipe = made(network__metric_set="reference15")
    drawn = draws(scenes, recipe).batch(0)
    wanted = [prompt_metrics(cube, "reference15") for cube in drawn.degraded.numpy()]
    np.testing.assert_array_equal(drawn.metrics.numpy(), wanted)


def turns(patch: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for mirrored in (patch, patch[:, :, ::-1]):
        for quarter in range(4):
            yield np.rot90(mirrored, quarter, (1, 2))


def test_a_patch_is_a_piece_of_the_scene_turned_and_brightened() -> None:
    # Every value tells its place.
    scene = (np.arange(2 * 30 * 40).reshape(2, 30, 40) / (2 * 30 * 40) / 4).astype(np.float32)
    seen = set()
    for seed in range(40):
        patch = draw_patch(torch.from_numpy(scene), 2, 16, np.random.default_rng(seed)).numpy()
        assert patch.shape == (2, 16, 16)
        found = [
            number
            for number, turned in enumerate(turns(patch))
            if (place := np.argwhere(scene[0] == turned[0, 0, 0])).size
            and np.array_equal(scene[:, place[0, 0] : place[0, 0] + 16, place[0, 1] : place[0, 1] + 16], turned)
        ]
        assert len(found) == 1
        seen.add(found[0])
        bright = brightened(torch.from_numpy(patch.copy()), (2.0, 2.0), np.random.default_rng(seed))
        np.testing.assert_allclose(bright, 2 * patch, rtol=1e-6)
    assert seen == set(range(8))


def test_a_patch_takes_neighbouring_bands_from_anywhere_in_the_scene() -> None:
    scene = torch.arange(1, 8)[:, None, None].expand(7, 20, 20) / 10
    seen = set()
    for seed in range(60):
        patch = draw_patch(scene, 3, 16, np.random.default_rng(seed))
        bands = (patch[:, 0, 0] * 10).round().int().tolist()
        assert bands == list(range(bands[0], bands[0] + 3))
        seen.add(bands[0])
    assert seen == {1, 2, 3, 4, 5}


def test_brightness_is_limited_by_the_brightest_pixels() -> None:
    scene = torch.from_numpy(np.random.default_rng(0).random((2, 64, 64), np.float32))
    patch = brightened(scene, (100.0, 100.0), np.random.default_rng(0))
    assert np.quantile(patch.numpy(), 0.999) == pytest.approx(1, abs=0.01)


# Scenes


def data(**values: Any) -> Data:
    return Data(**{"name": "d", "scale": 1.0, "stored_scale": None, "validation": (), **values})


def store(folder: Path, **cubes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, cube in cubes.items():
        np.savez(folder / f"{name.replace('_', '-')}.npz", cube=np.asarray(cube))
    return folder


def test_scenes_are_read_by_name_in_the_unit_range(scenes: Path) -> None:
    found = load_scenes(scenes, made().data).cubes
    assert list(found) == ["held", "one", "two"]
    for name, cube in found.items():
        with np.load(scenes / f"{name}.npz") as archive:
            np.testing.assert_array_equal(cube, archive["cube"].transpose(2, 0, 1).astype(np.float32) / 65535)
        assert cube.flags.c_contiguous and cube.dtype == np.float32


def test_what_stands_for_one_is_a_number_or_the_largest_value_and_follows_the_name(tmp_path: Path) -> None:
    ramp = np.arange(1, 9, dtype=np.int16).reshape(2, 2, 2)
    store(tmp_path, a=ramp, a_b=ramp, c=ramp)
    found = load_scenes(tmp_path, data(scale=2, scales={"a": "max", "a-": 4})).cubes
    assert {name: float(cube.max()) for name, cube in found.items()} == {"a": 1, "a-b": 2, "c": 4}
    turned = load_scenes(tmp_path, data(scale="max", scales={"a-": 4, "a": 16})).cubes
    assert {name: float(cube.max()) for name, cube in turned.items()} == {"a": 0.5, "a-b": 2, "c": 1}


def test_negative_values_become_zero(tmp_path: Path) -> None:
    store(tmp_path, one=[[[-3.0, 0.5], [0.25, -0.1]]])
    np.testing.assert_array_equal(load_scenes(tmp_path, data()).cubes["one"], [[[0, 0.25]], [[0.5, 0]]])


def test_scenes_come_from_several_folders_without_two_of_one_name(tmp_path: Path) -> None:
    first, second = store(tmp_path / "1", one=np.ones((2, 2, 2))), store(tmp_path / "2", two=np.ones((2, 2, 2)))
    assert list(load_scenes([second, first], data()).cubes) == ["two", "one"]
    store(second, one=np.ones((2, 2, 2)))
    with pytest.raises(InputError, match="two scenes of one name") as caught:
        load_scenes([first, second], data())
    assert caught.value.file == str(second / "one.npz")


@pytest.mark.parametrize("cube", [[[[1.0, math.nan]]], [[[1.0, math.inf]]], [[[0.0, -1.0]]]], ids=str)
def test_scenes_that_are_not_finite_or_dark_throughout_are_refused(cube: Any, tmp_path: Path) -> None:
    store(tmp_path, bad=cube)
    with pytest.raises(CubeError, match="not finite, or dark") as caught:
        load_scenes(tmp_path, data(scale="max"))
    assert caught.value.file == str(tmp_path / "bad.npz")


def test_a_folder_without_scenes_is_named_beside_one_that_has_some(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training scenes") as caught:
        load_scenes([scenes, tmp_path], made().data)
    assert caught.value.file == str(tmp_path)


def test_files_that_are_no_scenes_are_refused(tmp_path: Path) -> None:
    flat = io.BytesIO()
    np.savez(flat, cube=np.ones((2, 2)))
    unnamed, complex_, array, packed = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(unnamed, frame=np.ones((2, 2, 2)))
    np.savez(complex_, cube=np.ones((2, 2, 2), complex))
    np.save(array, np.ones((2, 2, 2)))
    np.savez_compressed(packed, cube=np.random.default_rng(0).random((20, 20, 4)))
    torn = bytearray(packed.getvalue())
    torn[200:2000] = b"\xff" * 1800
    for given in (
        complex_.getvalue(),
        array.getvalue(),
        bytes(torn),
        b"",
        b"PK\x03\x04 and no more",
        flat.getvalue(),
        flat.getvalue()[:100],
        unnamed.getvalue(),
    ):
        (tmp_path / "bad.npz").write_bytes(given)
        with pytest.raises(CubeFileError, match="is no scene"):
            load_scenes(tmp_path, data())


# Weights


def test_a_run_starts_with_frames_passing_unchanged() -> None:
    torch.manual_seed(0)
    net = Damp(made().config)
    frame, metrics = torch.rand(1, BANDS, 64, 64), torch.rand(1, 6)
    start_transparent(net)
    net.eval()
    with torch.inference_mode():
        assert torch.equal(net(frame, metrics)[0], frame)
        # And the way through the network is open: what comes out at its end is made of the bands.
        seen: list[torch.Tensor] = []
        net.output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        net(frame, metrics)
    for band in range(BANDS):
        pair = torch.stack([seen[0][0, band].flatten(), frame[0, band].flatten()])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.7


def test_a_constant_stands_beside_the_bands_where_there_is_room() -> None:
    # Where bands fill the width, none of them gives way.
    for dim, bands, constants in ((8, 4, 1), (24, 4, 2), (8, 8, 0), (8, 12, 0)):
        torch.manual_seed(0)
        net = Damp(replace(made().config, dim=dim, bands=bands, decoder_blocks=(0, 0, 0), refinement_blocks=0)).eval()
        start_transparent(net, constant=3.0)
        seen: list[torch.Tensor] = []
        net.output.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.inference_mode():
            net(torch.rand(1, bands, 64, 64), torch.rand(1, 6))
        flat = [c for c in range(dim) if float(seen[0][0, c].std()) < 1e-6]
        assert flat == list(range(dim - constants, dim))
        assert all(float(seen[0][0, c].mean()) == pytest.approx(3.0) for c in flat)


def test_the_average_moves_fast_first_and_then_with_its_decay() -> None:
    for at, rate in ((0, 0.9), (8, 0.5), (10_000, 0.01)):
        moving, present = torch.zeros(3), torch.arange(3.0)
        average([moving], [present], at, 0.99)
        torch.testing.assert_close(moving, rate * torch.arange(3.0))
        assert torch.equal(present, torch.arange(3.0))


def test_a_run_can_start_from_a_checkpoint(scenes: Path, straight: Path, tmp_path: Path) -> None:
    tuned = made(start=str(straight), optimiser__steps=1, optimiser__learning_rate=1e-7, seed=8)
    given = load_checkpoint(straight).module.state_dict()
    before = begun(tuned)
    assert all(torch.equal(value, given[key]) for key, value in before.net.state_dict().items())
    after = load_checkpoint(train(tuned, scenes, tmp_path)).module.state_dict()
    apart = [float((after[key] - given[key]).abs().max()) for key in given if given[key].is_floating_point()]
    assert 0 < max(apart) < 1e-6


def test_a_prompt_that_begins_anew_takes_standardised_metrics_as_they_come(scenes: Path, straight: Path) -> None:
    """And one that goes on sees through its standard what it saw before."""
    first = "dep.feature_encoder.encoder.0.weight"
    for metric_set, anew in (("log6", True), ("paper6", False)):
        recipe = made(start=str(straight), standardise=True, network__metric_set=metric_set)
        run = begin(recipe, draws(scenes, recipe))
        torch.manual_seed(recipe.seed)
        fresh, given = Damp(recipe.config).state_dict()[first], load_checkpoint(straight).module.state_dict()[first]
        weight = run.net.state_dict()[first]
        assert torch.equal(weight, fresh) == anew
        if not anew:
            torch.testing.assert_close(weight, given * run.standard.deviation, rtol=1e-5, atol=0)


def test_a_start_that_is_no_part_of_the_network_is_refused(scenes: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no part of the recipe's network") as caught:
        train(made(start=str(straight), network__embedding=32), scenes, tmp_path / "run")
    assert caught.value.key is not None and caught.value.key.startswith("start")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        train(made(start="damp-none"), scenes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Teachers


def test_a_step_learns_from_the_truth_and_from_what_the_teacher_restores(scenes: Path, straight: Path) -> None:
    """The share weighs the two losses, and so their gradients."""
    drawn, weights, plain = batch(scenes, 1, 0), {}, {"loss": {}, "optimiser__gradient_norm": 1e6}
    taught = load_checkpoint(straight).module
    with torch.no_grad():
        target = replace(drawn, clean=taught(drawn.degraded, drawn.metrics)[0])
    for share in (None, 0.25, 1.0):
        teacher = None if share is None else {"checkpoint": str(straight), "share": share}
        run = begun(recipe := made(teacher=teacher, **plain))
        errors = step(run, recipe, drawn)
        weights[share] = run.net.output.weight.grad
        expected = (drawn.degraded - drawn.clean).abs().mean((1, 2, 3))
        torch.testing.assert_close(errors, expected, rtol=1e-4, atol=0)
    run = begun(made(**plain))
    step(run, made(**plain), target)
    torch.testing.assert_close(weights[1.0], run.net.output.weight.grad, rtol=1e-4, atol=1e-7)
    mixed = 0.75 * weights[None] + 0.25 * weights[1.0]
    torch.testing.assert_close(weights[0.25], mixed, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights[None], weights[1.0], rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"network__metric_set": "log6"}, "network.metric_set"),
        ({"fill": True}, "fill"),
        ({"data__wavelengths": {"first": 400, "last": 1000, "count": BANDS}}, "data.wavelengths"),
    ],
    ids=str,
)  # fmt: skip
def test_a_teacher_of_other_frames_or_metrics_is_refused(straight: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match="the teacher takes other") as caught:
        begun(made(teacher={"checkpoint": str(straight), "share": 0.5}, **changes))
    assert caught.value.key == key and caught.value.file == str(straight)


def test_a_run_goes_on_with_its_teacher_alone(
    scenes: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = shutil.copy(straight, tmp_path / "teacher.safetensors")
    recipe = made(teacher={"checkpoint": str(teacher), "share": 0.5})
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", interrupt_at(2, interrupted))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, scenes, tmp_path / "run")
    whole = train(recipe, scenes, tmp_path / "whole")
    other = made(seed=4)
    shutil.copy(train(other, scenes, tmp_path / "other"), teacher)
    with pytest.raises(ConfigError, match="another teacher"):
        train(recipe, scenes, tmp_path / "run")
    shutil.copy(straight, teacher)
    assert train(recipe, scenes, tmp_path / "run").read_bytes() == whole.read_bytes()


# Ablations


def steps_with(metrics: float, recipe: Recipe, scenes: Path) -> dict[str, torch.Tensor]:
    """Weights after three steps whose batches show `metrics` in place of their own."""
    run = begun(recipe)
    for at in range(3):
        drawn = batch(scenes, 1, at)
        step(run, recipe, replace(drawn, metrics=torch.full_like(drawn.metrics, metrics)))
    return run.net.state_dict()


def test_gates_without_a_prompt_do_not_see_the_metrics(scenes: Path) -> None:
    for recipe, blind in ((made(ablate="prompt"), True), (made(), False)):
        one, other = steps_with(0.1, recipe, scenes), steps_with(2.0, recipe, scenes)
        assert all(torch.equal(one[key], other[key]) for key in one) == blind


def test_validation_without_a_prompt_shows_zeros() -> None:
    scenes = {"held": random_scene(0)}
    for recipe, shown in ((made(ablate="prompt"), False), (made(), True)):
        for held in held_scenes(scenes, recipe):
            expected = prompt_metrics(held.bad, "paper6") if shown else np.zeros(6, np.float32)
            np.testing.assert_array_equal(held.metrics, expected)


def test_without_spectral_branches_their_weights_do_not_matter(scenes: Path, straight: Path, tmp_path: Path) -> None:
    spatial = train(made(ablate="spectral"), scenes, tmp_path)
    frame, metrics = torch.rand(1, BANDS, 64, 64), torch.rand(1, 6)
    for file, indifferent in ((spatial, True), (straight, False)):
        net = load_checkpoint(file)
        state = net.module.state_dict()
        alphas = [float(value) for key, value in state.items() if key.endswith(".alpha")]
        assert len(alphas) == RECIPE["network"]["experts"] + 1
        assert all(alpha == SPATIAL_ALPHA for alpha in alphas) == indifferent
        with torch.inference_mode():
            before = net(frame, metrics)[0]
            spectral = [value for key, value in state.items() if "proj_spe." in key or "body_spe." in key]
            assert spectral
            for value in spectral:
                value.uniform_(-1, 1)
            assert torch.equal(net(frame, metrics)[0], before) == indifferent


# Validation


class Filler(torch.nn.Module):
    """Fills lost bands with one value and harms the others by another."""

    def __init__(self, filling: float, harm: float) -> None:
        super().__init__()
        self.config = made().config
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.filling, self.harm = filling, harm

    def forward(self, frame: torch.Tensor, metrics: torch.Tensor) -> tuple[torch.Tensor, None]:
        lost = ~frame.ne(0).any(3).any(2)[:, :, None, None]
        return torch.where(lost, self.filling, frame + self.harm), None


def random_scene(seed: int, bands: int = BANDS, lines: int = 70, samples: int = 80) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.1, 0.9, (bands, lines, samples)).astype(np.float32)


def test_gains_after_band_loss_are_of_the_lost_bands_alone() -> None:
    held = {"held": random_scene(0)}
    kind, harmful = (validate(Filler(0.5, harm), held_scenes(held, made())) for harm in (0.0, 0.3))
    assert set(kind) == set(DAMAGES)
    assert kind["bandloss"] == harmful["bandloss"]
    assert kind["noise"] == 0 and harmful["noise"] < -1
    clean = held["held"][:, 3:67, 8:72]
    bad = DEGRADATIONS["bandloss"](clean, np.random.default_rng([3, list(DEGRADATIONS).index("bandloss"), 0]))
    lost = ~bad.any((1, 2))
    assert lost.sum() == 1
    filled = np.where(lost[:, None, None], np.float32(0.5), bad)
    assert kind["bandloss"] == pytest.approx(psnr(filled, clean, lost) - psnr(bad, clean, lost))


def test_a_dark_band_of_the_scene_is_not_a_lost_one() -> None:
    scene = random_scene(0)
    scene[1] = 0
    gains = validate(Filler(0.5, 0.0), held_scenes({"held": scene}, made()))
    assert gains["blur"] < 0 and gains["blur"] > -40
    clean = scene[:, 3:67, 8:72]
    for task in ("blur", "sr"):
        bad = DEGRADATIONS[task](clean, np.random.default_rng([3, list(DEGRADATIONS).index(task), 0]))
        filled = np.where(bad.any((1, 2), keepdims=True), bad, np.float32(0.5))
        assert gains[task] == pytest.approx(psnr(filled, clean) - psnr(bad, clean))


def test_scenes_of_more_bands_are_validated_by_their_middle_ones() -> None:
    wide = random_scene(0, BANDS + 4)
    other = wide.copy()
    other[[0, 1, -2, -1]] = 0.5
    gains = [
        validate(Filler(0.5, 0.1), held_scenes({"held": scene}, made()))
        for scene in (wide, other, wide[2:-2], wide[1:-3])
    ]
    assert gains[0] == gains[1] == gains[2] != gains[3]


def test_scenes_smaller_than_a_frame_are_not_validated() -> None:
    large, small = random_scene(0), random_scene(1, lines=60)
    net = Filler(0.5, 0.1)
    assert validate(net, held_scenes({"large": large, "small": small}, made())) == validate(
        net, held_scenes({"large": large}, made())
    )
    assert all(math.isnan(gain) for gain in validate(net, held_scenes({"small": small}, made())).values())


# Runs


def test_a_run_writes_a_checkpoint_that_loads(straight: Path) -> None:
    net = load_checkpoint(straight)
    assert straight.name == "nano.safetensors"
    assert damp_of(net).config == DampConfig.from_dict(RECIPE["network"])
    assert net.facts.scale == 65535 and net.facts.wavelengths == (400, 500, 600, 700)
    assert all(part in net.facts.about for part in ("nano", "4 steps", "seed 3", made().digest()[:12]))
    frame = torch.rand(1, BANDS, 64, 64)
    with torch.inference_mode():
        restored = net(frame, torch.rand(1, 6))[0]
    assert restored.isfinite().all() and not torch.equal(restored, frame)


def test_the_checkpoint_holds_the_average_not_the_last_step(straight: Path) -> None:
    state = torch.load(straight.with_name("state.pt"), weights_only=True)
    stored = load_checkpoint(straight).module.state_dict()
    assert state["step"] == 4
    assert all(torch.equal(stored[key], value) for key, value in state["ema"].items())
    assert not torch.equal(stored["output.weight"], state["net"]["output.weight"])


def test_a_run_logs_what_it_did(straight: Path, busy: Path) -> None:
    with straight.with_name("training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"] and all(0 < float(row["loss"]) < 1 for row in rows)
    assert list(rows[0]) == ["step", "loss", *RECIPE["tasks"]]
    with straight.with_name("validation.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row.pop("step") == "4" and set(row) == {*DAMAGES, "mean"}
    gains = {key: float(gain) for key, gain in row.items()}
    assert gains["mean"] == pytest.approx(np.mean([gains[task] for task in RECIPE["tasks"]]))
    for log in ("training.csv", "validation.csv"):
        assert [row["step"] for row in read_rows(busy.with_name(log))] == [1, 2, 3, 4]


def test_the_log_tells_l1_per_task_and_over_all_patches(scenes: Path, busy: Path) -> None:
    first, *_ = read_rows(busy.with_name("training.csv"))
    found = load_scenes(scenes, made().data)
    used = Scenes({name: cube for name, cube in found.cubes.items() if name != "held"})
    recipe = made()
    drawn = Draws(recipe, used, torch.device("cpu")).batch(0)
    errors = (drawn.degraded - drawn.clean).abs().mean((1, 2, 3)).numpy()
    assert first["loss"] == pytest.approx(errors.mean(), rel=1e-4)
    for task in recipe.tasks:
        mine = errors[[name == task for name in drawn.tasks]]
        assert first[task] == pytest.approx(mine.mean() if mine.size else math.nan, rel=1e-4, nan_ok=True)


def test_logging_validating_and_saving_change_no_bit_of_the_result(straight: Path, busy: Path) -> None:
    assert busy.read_bytes() == straight.read_bytes()


def test_a_run_draws_its_curves(straight: Path) -> None:
    with Image.open(straight.with_name("curves.png")) as picture:
        assert picture.format == "PNG"
        picture.load()
        assert min(picture.size) > 300 and len(set(picture.convert("L").tobytes())) > 10


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    scenes: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", interrupt_at(at, interrupted))
        with pytest.raises(KeyboardInterrupt):
            train(made(), scenes, tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == at
    assert not list(tmp_path.glob("*.safetensors"))
    assert train(made(), scenes, tmp_path).read_bytes() == straight.read_bytes()


@pytest.mark.slow
def test_no_row_of_a_log_is_lost_or_written_twice_by_a_run_that_goes_on(
    scenes: Path, busy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = made(**BUSY, save_seconds=0)
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", interrupt_at(2, interrupted))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, scenes, tmp_path)
        earlier = (tmp_path / "state.pt").read_bytes()
        patched.setattr(training, "learning_rate", interrupt_at(3, interrupted))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, scenes, tmp_path)
    assert len(read_rows(tmp_path / "training.csv")) == len(read_rows(tmp_path / "validation.csv")) == 3
    # The last saved state is older than the logs.
    (tmp_path / "state.pt").write_bytes(earlier)
    assert train(recipe, scenes, tmp_path).read_bytes() == busy.read_bytes()
    for log in ("training.csv", "validation.csv"):
        assert (tmp_path / log).read_bytes() == busy.with_name(log).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step_and_stops(
    scenes: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    recipe = made(save_seconds=1000)
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", interrupt_at(1, lambda: os.kill(os.getpid(), number)))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, scenes, tmp_path)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
    assert train(recipe, scenes, tmp_path).read_bytes() == straight.read_bytes()


def test_a_second_signal_stops_at_once(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        handler = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        # Two signals that arrive at once are one.
        while signal.getsignal(signal.SIGINT) is handler:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", interrupt_at(1, twice))
        with pytest.raises(KeyboardInterrupt):
            train(made(save_seconds=1000), scenes, tmp_path)
    assert not (tmp_path / "state.pt").exists()


def test_a_finished_run_started_again_changes_nothing(scenes: Path, straight: Path) -> None:
    kept = files_of(straight.parent)
    assert train(made(), scenes, straight.parent) == straight
    assert files_of(straight.parent) == kept


@pytest.mark.parametrize("changes", [{"seed": 4}, {"optimiser__steps": 5}, {"data__gain": [0.5, 2.5]}], ids=str)
def test_a_run_does_not_go_on_with_another_recipe(
    scenes: Path, straight: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight.parent, out)
    with pytest.raises(ConfigError, match="another recipe") as caught:
        train(made(**changes), scenes, out)
    assert caught.value.file == str(out / "state.pt") and caught.value.value == made().digest()
    assert files_of(out) == files_of(straight.parent)


def test_a_run_goes_on_with_other_intervals(
    scenes: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", interrupt_at(2, interrupted))
        with pytest.raises(KeyboardInterrupt):
            train(made(), scenes, tmp_path)
    finished = train(made(log_every=1, validate_every=3, save_seconds=1000), scenes, tmp_path)
    assert finished.read_bytes() == straight.read_bytes()
    assert [row["step"] for row in read_rows(tmp_path / "training.csv")] == [2, 3, 4]
    assert [row["step"] for row in read_rows(tmp_path / "validation.csv")] == [3, 4]


def test_a_log_goes_on_in_the_middle_of_a_line(
    scenes: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", interrupt_at(1, interrupted))
        with pytest.raises(KeyboardInterrupt):
            train(made(), scenes, tmp_path)
    train(made(), scenes, tmp_path)
    assert (tmp_path / "training.csv").read_bytes() == straight.with_name("training.csv").read_bytes()


def test_recipes_of_packaged_models_are_still_theirs() -> None:
    for name in packaged_models():
        file = ROOT / "training" / "recipes" / f"{name}.yaml"
        if named := architecture_of(file):
            load = load_snapshot_recipe if named in KINDS else load_photograph_recipe
            assert load(file).digest()[:12] in load_checkpoint(name).facts.about
            continue
        recipe = load_recipe(file)
        assert recipe.digest()[:12] in load_checkpoint(name).facts.about
        assert recipe.on_device("cuda").digest() == recipe.digest()


def test_another_seed_trains_other_weights(scenes: Path, straight: Path, tmp_path: Path) -> None:
    other = load_checkpoint(train(made(seed=4, optimiser__steps=1), scenes, tmp_path)).module.state_dict()
    mine = load_checkpoint(straight).module.state_dict()
    assert any(not torch.equal(other[key], mine[key]) for key in mine)


def test_the_held_out_scene_is_not_trained_on(scenes: Path, straight: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        os.link(scenes / f"{name}.npz", tmp_path / f"{name}.npz")
    np.savez(tmp_path / "held.npz", cube=np.ones((70, 80, BANDS), np.uint16))
    assert train(made(), tmp_path, tmp_path / "run").read_bytes() == straight.read_bytes()


def test_a_run_takes_scenes_of_more_bands_and_tells_no_wavelengths(scenes: Path, tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(1, 60000, (80, 70, BANDS + 3), np.uint16)
    folder = store(tmp_path / "wide", wide=wide)
    recipe = made(optimiser__steps=1, data__wavelengths=None, data__stored_scale=None, data__scale="max")
    net = load_checkpoint(train(recipe, [scenes, folder], tmp_path / "run"))
    assert damp_of(net).config.bands == BANDS and net.facts.scale is None and net.facts.wavelengths == ()


@pytest.mark.parametrize(
    ("shape", "changes", "says"),
    [
        ((70, 70, BANDS), {"data__validation": ["lost"]}, "no such scene"),
        ((70, 70, BANDS - 1), {}, "only 3 bands"),
        ((70, 70, BANDS), {"patches": [{"count": 1, "size": 192}]}, "as large as a patch"),
    ],
)
def test_data_that_do_not_fit_the_recipe_are_refused_before_a_run_begins(
    shape: tuple[int, int, int], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = store(tmp_path / "data", held=np.ones((70, 70, BANDS)), one=np.ones(shape))
    with pytest.raises(ConfigError, match=says):
        train(made(**changes), folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_told_and_leaves_the_last_state(tmp_path: Path) -> None:
    run, file = begun(made()), tmp_path / "state.pt"
    file.write_bytes(b"the last state")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            save(run, made(), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_of(tmp_path) == {"state.pt": b"the last state"}


# Logs


def test_a_log_keeps_the_columns_that_it_began_with(tmp_path: Path) -> None:
    file = tmp_path / "validation.csv"
    append_row(file, {"step": 1, "noise": 2.0})
    append_row(file, {"step": 2, "noise": 3.0, "faint": 4.0})
    append_row(file, {"step": 3})
    assert file.read_text().splitlines() == ["step,noise", "1,2.0", "2,3.0", "3,nan"]


def test_a_log_is_cut_after_a_step(tmp_path: Path) -> None:
    file = tmp_path / "training.csv"
    drop_rows_after(file, 5)
    assert not file.exists() and read_rows(file) == []
    for at in (1, 2, 3):
        append_row(file, {"step": at, "loss": 0.5, "noise": math.nan})
    kept = file.read_bytes()
    drop_rows_after(file, 3)
    assert file.read_bytes() == kept
    drop_rows_after(file, 2)
    assert file.read_bytes() == kept[: kept.index(b"3,")]
    drop_rows_after(file, 0)
    assert not file.exists()


@pytest.mark.parametrize(
    ("tail", "steps"),
    [
        (b"2,0.5", [1, 6]),
        (b"2,0.5,0.", [1, 6]),
        (b"2,0.5\r\n", [1, 6]),
        (b"\0\0\0", [1, 6]),
        (b"2,0.5,0.1\r\n", [1, 2, 6]),
    ],
)
def test_a_torn_row_is_left_out(tmp_path: Path, tail: bytes, steps: list[int]) -> None:
    file = tmp_path / "training.csv"
    file.write_bytes(b"step,loss,noise\r\n1,0.5,nan\r\n" + tail)
    drop_rows_after(file, 5)
    append_row(file, {"step": 6, "loss": 0.5, "noise": 0.5})
    assert [row["step"] for row in read_rows(file)] == steps


@pytest.mark.parametrize("before", [b"", b"step,lo", b"\0\0\0\0"])
def test_a_log_torn_in_its_header_begins_anew(tmp_path: Path, before: bytes) -> None:
    file = tmp_path / "training.csv"
    file.write_bytes(before)
    drop_rows_after(file, 5)
    append_row(file, {"step": 6, "loss": 0.5})
    assert read_rows(file) == [{"step": 6, "loss": 0.5}]


def test_curves_are_drawn_of_any_log(tmp_path: Path) -> None:
    pictures = []
    for at in range(0, 24, 12):
        draw_curves(tmp_path)
        pictures.append((tmp_path / "curves.png").read_bytes())
        for number in range(at, at + 12):
            append_row(tmp_path / "training.csv", {"step": number, "loss": 0.1, "noise": math.nan, "blur": 0.01})
        append_row(tmp_path / "validation.csv", {"step": at, "noise": 5.0, "blur": math.nan})
    draw_curves(tmp_path)
    pictures.append((tmp_path / "curves.png").read_bytes())
    assert all(picture.startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures) and len(set(pictures)) == 3


# The command


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("broken", ["recipe", "yaml", "missing", "data", "scene", "out", "start"])
def test_an_error_is_one_line_and_exit_code_2(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    changes = {"recipe": {"patches": [{"count": 1, "size": 96}]}, "scene": {"data__validation": ["[red]lost"]}}
    recipe = written(tmp_path, content(**changes.get(broken, {"start": "lost"} if broken == "start" else {})))
    named = {"recipe": "patches.0.size", "scene": "[red]lost", "start": "lost"}.get(broken, str(tmp_path))
    if broken == "yaml":
        recipe.write_text("a: [")
    if broken == "missing":
        recipe.unlink()
    out = recipe / "run" if broken == "out" else tmp_path / "run"
    folder = tmp_path if broken == "data" else scenes
    code = run_main(monkeypatch, "--recipe", recipe, "--data", folder, "--out", out, "--device", "cpu")
    printed = capsys.readouterr()
    assert code == 2 and not printed.out
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert named in printed.err and not out.exists()


@pytest.mark.parametrize(
    ("device", "code", "says"),
    [("gpu", 2, "choose cpu or cuda"), ("meta", 2, "choose cpu or cuda"), ("cuda:x", 2, "no such"), ("cuda:99", 3, "")],
)
def test_an_impossible_device_is_refused_in_one_line(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    code: int,
    says: str,
) -> None:
    recipe = written(tmp_path, content())
    run = tmp_path / "run"
    assert run_main(monkeypatch, "--recipe", recipe, "--data", scenes, "--out", run, "--device", device) == code
    said = capsys.readouterr().err
    assert said.startswith("error: --device: ") and device in said and says in said and said.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize("state", [b"", b"PK\x03\x04", b"\x80\x02c", [1]], ids=str)
def test_what_is_no_state_of_a_run_is_refused(scenes: Path, tmp_path: Path, state: Any) -> None:
    file = tmp_path / "state.pt"
    if isinstance(state, bytes):
        file.write_bytes(state)
    else:
        torch.save(state, file)
    with pytest.raises(InputError, match="is no state of a run") as caught:
        train(made(), scenes, tmp_path)
    assert caught.value.file == str(file)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(recipe: Path, scenes: Path, out: Path) -> list[str]:
    places = ("--recipe", str(recipe), "--data", str(scenes), "--out", str(out), "--device", "cpu")
    return [sys.executable, "-m", "training.train", *places]


def test_the_command_refuses_a_wrong_recipe_in_one_line(tmp_path: Path) -> None:
    recipe = written(tmp_path, content(tasks={"rain": 1}))
    done = subprocess.run(
        command(recipe, tmp_path, tmp_path / "run"),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {recipe}, tasks: ") and "rain" in line


def started_and_sent(arguments: list[str], awaited: Path, number: signal.Signals) -> tuple[int, str]:
    """Exit code and last line of a command that is sent a signal as soon as a file is there."""
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while not awaited.exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=300)
    return process.returncode, (said.splitlines() or [""])[-1]


@pytest.mark.slow
def test_the_command_ends_with_130_on_sigterm_and_goes_on_with_the_same_bits(scenes: Path, tmp_path: Path) -> None:
    changes = {"optimiser__steps": 14, "log_every": 1, "save_seconds": 1000, "validate_every": 1000}
    recipe, out = written(tmp_path, content(**changes)), tmp_path / "run"
    arguments = command(recipe, scenes, out)
    code, said = started_and_sent(arguments, out / "training.csv", signal.SIGTERM)
    assert code == 130 and "the same command goes on" in said
    assert sorted(files_of(out)) == ["lock", "state.pt", "training.csv"]
    assert 0 < torch.load(out / "state.pt", weights_only=True)["step"] < 14
    subprocess.run(arguments, env=environment(), check=True, capture_output=True, timeout=300)
    expected = train(made(**changes), scenes, tmp_path / "straight")
    for name in ("nano.safetensors", "training.csv", "validation.csv"):
        assert (out / name).read_bytes() == expected.with_name(name).read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(scenes: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, content(optimiser__steps=12))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(recipe, scenes, straight), env=environment(), check=True, capture_output=True, timeout=300)
    code, _ = started_and_sent(command(recipe, scenes, killed), killed / "state.pt", signal.SIGKILL)
    assert code == -signal.SIGKILL and not (killed / "nano.safetensors").exists()
    subprocess.run(command(recipe, scenes, killed), env=environment(), check=True, capture_output=True, timeout=300)
    for name in ("nano.safetensors", "training.csv", "validation.csv"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()


# A run of its own time, by one process, from other weights


@pytest.mark.slow
def test_a_run_ends_in_the_minutes_that_it_is_given_and_keeps_its_steps(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(command_module, "PACE_STEPS", 2)
    # Every look at the clock is a second later than the last one: two steps take one, and so does validating.
    monkeypatch.setattr(command_module.time, "monotonic", lambda: float(next(clock)))
    train(made(save_seconds=0, validate_every=2), scenes, tmp_path, minutes=13 / 60)
    steps = torch.load(tmp_path / "state.pt", weights_only=True)["steps"]
    assert steps == read_rows(tmp_path / "training.csv")[-1]["step"] == 8
    kept = files_of(tmp_path)
    train(made(save_seconds=0), scenes, tmp_path, minutes=100)
    assert files_of(tmp_path) == kept


def test_a_run_that_another_process_is_at_is_left_alone(scenes: Path, straight: Path) -> None:
    kept = files_of(straight.parent)
    with (straight.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match="another process is at this run"):
            train(made(), scenes, straight.parent)
    assert files_of(straight.parent) == kept


@pytest.mark.parametrize("better", [True, False])
def test_weights_that_validate_better_replace_the_runs_own(
    scenes: Path, tmp_path: Path, better: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a run whose weights are spoilt, or given weights that are."""
    recipe = made(standardise=True, optimiser__steps=1, optimiser__learning_rate=1e-9)
    first = train(recipe, scenes, tmp_path / "run")
    given = load_checkpoint(first)
    module = damp_of(given)
    with torch.no_grad():
        module.enc[0][0].layers[0].norms[0].body.weight.mul_(2)
        module.output.weight.add_(0.0 if better else 0.05)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    state["ema"]["output.weight"] += 0.05 if better else 0.0
    torch.save(state, tmp_path / "run" / "state.pt")
    save_checkpoint(given, tmp_path / "given.safetensors", about="")
    train(recipe, scenes, tmp_path / "run", weights=tmp_path / "given.safetensors")
    assert ("taken" if better else "left") in capsys.readouterr().err
    went_on = load_checkpoint(first).module.state_dict()
    key = "enc.0.0.layers.0.norms.0.body.weight"
    assert torch.allclose(went_on[key], module.state_dict()[key], atol=1e-4) == better
    first_layer = "dep.feature_encoder.encoder.0.weight"
    if better:
        torch.testing.assert_close(went_on[first_layer], module.state_dict()[first_layer], rtol=1e-4, atol=1e-6)


def test_weights_are_taken_once_however_often_a_run_goes_on(
    scenes: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verdicts in (1, 0):
        train(made(), scenes, tmp_path / "run", weights=straight)
        assert capsys.readouterr().err.count("the run's own weights") == verdicts


def test_an_error_that_is_not_finite_ends_the_run_before_it_is_saved(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="diverged"):
        train(made(optimiser__learning_rate=1e30, optimiser__steps=40, save_seconds=1000), scenes, tmp_path)
    assert not (tmp_path / "state.pt").exists()


def test_what_is_no_damp_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no DAMP") as caught:
        damp_of(stranger())
    assert caught.value.value == "unmixer"


def test_weights_of_another_network_are_refused(scenes: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another network"):
        train(made(network__embedding=32), scenes, tmp_path, weights=straight)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        train(made(), scenes, tmp_path / "run", weights="damp-nothing")
    # Nothing was begun.
    assert not (tmp_path / "run").exists()


def test_the_best_weights_are_kept_beside_the_newest(busy: Path) -> None:
    rows = read_rows(busy.with_name("validation.csv"))
    best = max(rows, key=lambda row: row["mean"])
    assert f"{best['step']:.0f} steps" in load_checkpoint(busy.with_name("nano-best.safetensors")).facts.about


@pytest.mark.slow
def test_a_compiled_step_of_all_experts_is_the_plain_one(scenes: Path) -> None:
    recipe, drawn = made(), batch(scenes, 1, 0)
    plain, compiled = (begin(recipe, draws(scenes, recipe), way) for way in (Way(), Way(dense=True, compiled=True)))
    for _ in range(2):
        one, other = step(plain, recipe, drawn), step(compiled, recipe, drawn)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_network_that_cannot_be_compiled_is_told_in_a_line() -> None:
    def odd(frame: torch.Tensor, metrics: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return frame + 1, metrics * 2, frame

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler\nand more")

    with pytest.MonkeyPatch.context() as patch:
        whole = torch.compile
        patch.setattr(torch, "compile", lambda module, **asked: whole(module, backend=broken, **asked))
        fast = training.compiled(odd)
    with pytest.raises(MachineError, match="cannot compile") as caught:
        fast(torch.ones(1), torch.ones(1))
    assert "--eager" in caught.value.one_line() and "\n" not in caught.value.one_line()


def test_a_recipe_is_another_on_a_gpu_where_it_says_so() -> None:
    there = {"patches": [{"count": 16, "size": 128}], "learning_rate": 4e-4, "warmup": 7}
    recipe = made(on_gpu=there)
    assert recipe.on_device("cpu") == recipe
    gpu = recipe.on_device("cuda")
    assert gpu.patches[0].count == 16 and (gpu.optimiser.learning_rate, gpu.optimiser.warmup) == (4e-4, 7)
    assert gpu.tasks == recipe.tasks and made().on_device("cuda") == made()


# Gates that follow the prompt


def test_the_rate_is_level_where_the_recipe_holds_it() -> None:
    held = OPTIONS.model_copy(update={"hold": 0.5})
    rates = [learning_rate(at, 110, held) for at in range(110)]
    assert rates[10:61] == pytest.approx([1e-3] * 51)
    assert all(later < earlier for earlier, later in pairwise(rates[60:]))


def test_the_noise_of_gates_falls_and_features_are_hidden_as_the_recipe_says(scenes: Path) -> None:
    recipe = made(gates={"noise": [1.0, 0.0], "blind": 1.0}, optimiser__steps=4)
    run = begun(recipe)
    seen = []
    for at in range(3):
        step(run, recipe, batch(scenes, 1, at))
        (router,) = [m for m in run.net.modules() if isinstance(m, Router)]
        seen.append((float(router.noise), float(router.blind)))
    assert seen == [(1.0, 1.0), (0.75, 1.0), (0.5, 1.0)]
    # A blind gate does not see the features, in training alone.
    features, embedding = torch.rand(2, 3, 8, 8, 8), torch.rand(3, 16)
    router.noise.fill_(0)
    for training_, blind in ((True, True), (False, False)):
        router.train(training_)
        one, other = (router.probabilities(f, embedding) for f in features)
        assert torch.equal(one, other) == blind


def test_balance_is_least_where_experts_are_chosen_alike_and_pulls_towards_those_that_are_not() -> None:
    options = Gates(balance=1.0)
    chosen = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, None]
    even, uneven = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    p = torch.full((2, 1, 2), 0.5, requires_grad=True)
    assert balance(even, options, chosen, p).item() == pytest.approx(1)
    balance(uneven, options, chosen, p).backward()
    assert p.grad is not None and (p.grad[..., 0] > p.grad[..., 1]).all()
    # The shares follow what is chosen.
    for _ in range(2000):
        balance(uneven, options, chosen, p)
    torch.testing.assert_close(uneven, torch.tensor([[0.5, 0.5]]), atol=1e-3, rtol=0)


def test_a_curriculum_begins_weak_and_ends_as_training_usually_is() -> None:
    ease, rng = Ease(first=0.25, share=0.5), np.random.default_rng(0)
    begun_, ended = ([ease.strength(at, rng) for _ in range(200)] for at in (0.0, 0.5))
    assert 0.25 <= min(begun_) < 0.3 and max(begun_) > 0.95 and set(ended) == {1.0}
