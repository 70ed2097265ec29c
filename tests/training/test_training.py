"""Training: the schedule, draws that follow from seed and step, and runs that go on as if never stopped."""

from __future__ import annotations

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from calibration.degradations import DEGRADATIONS
from export.networks import load_checkpoint
from export.networks.damp import SIZE_MULTIPLE, Damp, DampConfig
from runtime.errors import InputError
from runtime.metrics import prompt_metrics
from training import train as training
from training.data import draw_batch, draw_patch, load_scenes
from training.train import average, learning_rate, start_transparent, train

ROOT = Path(__file__).parents[2]
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
        "scale": 65535,
        "wavelengths": {"first": 400, "last": 700, "count": BANDS},
        "validation": ["held"],
        "gain": [0.6, 2.5],
    },
    "tasks": {"noise": 0.5, "blur": 0.2, "bandloss": 0.3},
    "patches": [[2, 64, 0.7], [1, 64, 0.3]],
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
    "save_every": 2,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order, so that runs can be compared bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes to train on and one to hold out, [lines, samples, bands] of 16 bits."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed, name in enumerate(("one", "two", "held")):
        cube = np.random.default_rng(seed).integers(0, 60000, (130, 140, BANDS), np.uint16)
        np.savez(folder / f"{name}.npz", cube=cube)
    return folder


@pytest.fixture(scope="module")
def straight(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that nothing stopped."""
    return train(RECIPE, scenes, tmp_path_factory.mktemp("straight"))


# The schedule


OPTIONS = {"learning_rate": 1e-3, "last_learning_rate": 1e-6, "warmup": 10, "steps": 110}


def test_the_rate_rises_evenly_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(step, OPTIONS) for step in range(110)]
    assert rates[:10] == pytest.approx([1e-4 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx((1e-3 + 1e-6) / 2)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    # A cosine: the fall is symmetric about its middle.
    assert [a + b for a, b in zip(rates[20:60], rates[100:60:-1], strict=True)] == pytest.approx([1e-3 + 1e-6] * 40)


def test_the_rate_ends_at_the_last_one_and_stays() -> None:
    assert learning_rate(110, OPTIONS) == learning_rate(5000, OPTIONS) == pytest.approx(1e-6)
    assert learning_rate(0, {**OPTIONS, "warmup": 0}) == pytest.approx(1e-3)
    assert learning_rate(0, {**OPTIONS, "warmup": 0, "steps": 0}) == pytest.approx(1e-3)


# Draws


def batch(scenes: Path, seed: int, step: int) -> Any:
    cubes = list(load_scenes(scenes, 65535).values())
    return draw_batch(cubes, RECIPE["tasks"], [(2, 64, 0.7), (1, 64, 0.3)], (0.6, 2.5), "paper6", seed, step)


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(vars(one)[name], vars(other)[name]) for name in ("degraded", "clean", "metrics"))


def test_a_batch_follows_from_seed_and_step_alone(scenes: Path) -> None:
    first = batch(scenes, 1, 7)
    np.random.seed(0)
    for step in (3, 8, 1):
        assert not same(batch(scenes, 1, step), first)
    assert same(batch(scenes, 1, 7), first)
    assert not same(batch(scenes, 2, 7), first)


def test_a_batch_is_patches_their_degraded_forms_and_their_metrics(scenes: Path) -> None:
    counts = set()
    for step in range(12):
        drawn = batch(scenes, 0, step)
        counts.add(len(drawn.clean))
        assert drawn.clean.shape == drawn.degraded.shape == (len(drawn.clean), BANDS, 64, 64)
        assert drawn.clean.dtype == drawn.degraded.dtype == drawn.metrics.dtype == np.float32
        assert drawn.clean.min() >= 0 and np.quantile(drawn.clean, 0.99) <= 1
        for clean, degraded, metrics in zip(drawn.clean, drawn.degraded, drawn.metrics, strict=True):
            assert not np.array_equal(clean, degraded)
            np.testing.assert_array_equal(metrics, prompt_metrics(degraded, "paper6"))
    assert counts == {1, 2}


def turns(patch: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for mirrored in (patch, patch[:, :, ::-1]):
        for quarter in range(4):
            yield np.rot90(mirrored, quarter, (1, 2))


def test_a_patch_is_a_piece_of_the_scene_turned_and_brightened() -> None:
    # Every value tells its place.
    scene = (np.arange(2 * 30 * 40).reshape(2, 30, 40) / (2 * 30 * 40) / 4).astype(np.float32)
    seen = set()
    for seed in range(40):
        patch = draw_patch(scene, 16, (1.0, 1.0), np.random.default_rng(seed))
        assert patch.flags.c_contiguous and patch.shape == (2, 16, 16)
        found = [
            number
            for number, turned in enumerate(turns(patch))
            if (place := np.argwhere(scene[0] == turned[0, 0, 0])).size
            and np.array_equal(scene[:, place[0, 0] : place[0, 0] + 16, place[0, 1] : place[0, 1] + 16], turned)
        ]
        assert len(found) == 1
        seen.add(found[0])
        bright = draw_patch(scene, 16, (2.0, 2.0), np.random.default_rng(seed))
        np.testing.assert_allclose(bright, 2 * patch, rtol=1e-6)
    assert seen == set(range(8))


def test_brightness_is_limited_by_the_brightest_pixels() -> None:
    scene = np.random.default_rng(0).random((2, 64, 64), np.float32)
    patch = draw_patch(scene, 64, (100.0, 100.0), np.random.default_rng(0))
    assert np.quantile(patch, 0.999) == pytest.approx(1, abs=0.01)


def test_scenes_are_read_by_name_in_the_unit_range(scenes: Path, tmp_path: Path) -> None:
    found = load_scenes(scenes, 65535)
    assert list(found) == ["held", "one", "two"]
    for name, cube in found.items():
        with np.load(scenes / f"{name}.npz") as archive:
            np.testing.assert_array_equal(cube, archive["cube"].transpose(2, 0, 1).astype(np.float32) / 65535)
        assert cube.flags.c_contiguous and cube.dtype == np.float32
    with pytest.raises(InputError, match="no training scenes"):
        load_scenes(tmp_path, 65535)


# Weights


def test_a_run_starts_with_frames_passing_unchanged() -> None:
    torch.manual_seed(0)
    net = Damp(DampConfig.from_dict(RECIPE["network"]))
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


def test_the_average_moves_fast_first_and_then_with_its_decay() -> None:
    net = Damp(DampConfig.from_dict(RECIPE["network"]))
    key = "output.weight"
    for step, rate in ((0, 0.9), (8, 0.5), (10_000, 0.01)):
        ema = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
        kept = net.state_dict()[key].clone()
        average(ema, net, step, 0.99)
        torch.testing.assert_close(ema[key], rate * kept)
        assert torch.equal(net.state_dict()[key], kept)


# Runs


def test_a_run_writes_a_checkpoint_that_loads(straight: Path) -> None:
    net = load_checkpoint(straight)
    assert straight.name == "nano.safetensors"
    assert net.config == DampConfig.from_dict(RECIPE["network"])
    assert net.facts.scale == 65535 and net.facts.wavelengths == (400, 500, 600, 700)
    assert "nano" in net.facts.about and "4 steps" in net.facts.about
    frame = torch.rand(1, BANDS, 64, 64)
    with torch.inference_mode():
        restored = net(frame, torch.rand(1, 6))[0]
    assert restored.isfinite().all() and not torch.equal(restored, frame)


def test_the_checkpoint_holds_the_average_not_the_last_step(straight: Path) -> None:
    state = torch.load(straight.with_name("state.pt"), weights_only=True)
    stored = load_checkpoint(straight).state_dict()
    assert state["step"] == 4
    assert all(torch.equal(stored[key], value) for key, value in state["ema"].items())
    assert not torch.equal(stored["output.weight"], state["net"]["output.weight"])


def test_a_run_logs_what_it_did(straight: Path) -> None:
    with straight.with_name("training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"] and all(0 < float(row["loss"]) < 1 for row in rows)
    with straight.with_name("validation.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row.pop("step") == "4" and set(row) == set(DEGRADATIONS)
    assert all(np.isfinite(float(gain)) for gain in row.values())


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    scenes: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def stops(at: int, options: dict[str, Any]) -> float:
        if at == step:
            raise KeyboardInterrupt
        return learning_rate(at, options)

    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", stops)
        with pytest.raises(KeyboardInterrupt):
            train(RECIPE, scenes, tmp_path)
    # What was done since the last save is lost; nothing else is.
    assert (tmp_path / "state.pt").exists() == (step >= 2) and not list(tmp_path.glob("*.safetensors"))
    assert train(RECIPE, scenes, tmp_path).read_bytes() == straight.read_bytes()


def test_a_finished_run_started_again_changes_nothing(scenes: Path, straight: Path) -> None:
    kept, state = straight.read_bytes(), straight.with_name("state.pt").read_bytes()
    assert train(RECIPE, scenes, straight.parent) == straight
    assert straight.read_bytes() == kept and straight.with_name("state.pt").read_bytes() == state


def test_another_seed_trains_other_weights(scenes: Path, straight: Path, tmp_path: Path) -> None:
    recipe = copy.deepcopy(RECIPE)
    recipe["seed"] += 1
    recipe["optimiser"]["steps"] = 1
    other = load_checkpoint(train(recipe, scenes, tmp_path)).state_dict()
    mine = load_checkpoint(straight).state_dict()
    assert any(not torch.equal(other[key], mine[key]) for key in mine)


def test_the_held_out_scene_is_not_trained_on(scenes: Path, straight: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        os.link(scenes / f"{name}.npz", tmp_path / f"{name}.npz")
    np.savez(tmp_path / "held.npz", cube=np.zeros((130, 140, BANDS), np.uint16))
    assert train(RECIPE, tmp_path, tmp_path / "run").read_bytes() == straight.read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(scenes: Path, tmp_path: Path) -> None:
    recipe = copy.deepcopy(RECIPE)
    recipe["optimiser"]["steps"] = 12
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(out: str) -> list[str]:
        place = ("--recipe", str(tmp_path / "recipe.yaml"), "--data", str(scenes), "--out", str(tmp_path / out))
        return [sys.executable, "-m", "training.train", *place]

    subprocess.run(command("straight"), env=environment, check=True, capture_output=True, timeout=300)
    with subprocess.Popen(command("killed"), env=environment, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "killed" / "state.pt").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "nano.safetensors").exists()
    subprocess.run(command("killed"), env=environment, check=True, capture_output=True, timeout=300)
    files = [tmp_path / out / "nano.safetensors" for out in ("straight", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


# The recipes that are shipped


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_can_be_run(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())
    config = DampConfig.from_dict(recipe["network"])
    assert recipe["name"] == path.stem and set(recipe) == set(RECIPE)
    assert set(recipe["data"]) == set(RECIPE["data"]) and set(recipe["optimiser"]) == set(RECIPE["optimiser"])
    assert set(recipe["tasks"]) <= set(DEGRADATIONS) and all(share > 0 for share in recipe["tasks"].values())
    assert all(count >= 1 and size % SIZE_MULTIPLE == 0 and share > 0 for count, size, share in recipe["patches"])
    assert recipe["data"]["wavelengths"]["count"] == config.bands
    assert 0 <= recipe["optimiser"]["warmup"] < recipe["optimiser"]["steps"]
    # YAML reads 1e-3 as text and 1.0e-3 as a number.
    assert all(isinstance(value, int | float) for value in recipe["optimiser"].values())
