"""Evaluation: the figures are those of the cubes, and a scene's row depends on nothing but itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.baselines import BASELINES
from calibration.choosing import best_texts, choice_of, classical_text
from calibration.degradations import DEGRADATIONS, LOSE, PHOTOGRAPHS, lost_bands
from calibration.evaluation import Restorer, choices, compared, evaluate, means
from calibration.measuring import TASKS, Measuring, bands_measured
from calibration.quality import psnr, sam, ssim
from runtime.arrays import Bools
from runtime.errors import CubeError
from runtime.prompts import Prompts
from runtime.simulation.simulator import simulate_scene
from tests.contracts.graphs import damp_like

Float32 = NDArray[np.float32]
MEASURING = Measuring(Prompts(damp_like(8, 64, 72, layers=2, experts=3)))


@pytest.fixture(scope="module")
def scenes() -> dict[str, Float32]:
    return {name: simulate_scene(seed, 8, 64, 72).truth for seed, name in enumerate(("a", "b"))}


def half(cube: Float32, prompts: Prompts, missing: Bools | None) -> tuple[Float32, Float32]:
    """Half the cube, by an expert that follows from its brightness."""
    gates = np.zeros((2, 3), np.float32)
    gates[:, 0 if cube.mean() > 0.1 else 2] = 0.7
    return cube / 2, gates


def test_every_task_is_measured_and_has_a_baseline(scenes: dict[str, Float32]) -> None:
    assert {*TASKS, *PHOTOGRAPHS} == set(BASELINES) <= set(DEGRADATIONS)
    rows = [row for row, _ in evaluate([("a", scenes["a"])], half, MEASURING)]
    assert [row.task for row in rows] == list(TASKS)


def test_the_figures_are_those_of_the_cubes(scenes: dict[str, Float32]) -> None:
    for row, cubes in evaluate(scenes.items(), half, MEASURING, tasks=("noise", "bandloss", "sr")):
        bands = lost_bands(cubes.degraded) if row.task == "bandloss" else None
        for quality, cube in ((row.input, cubes.degraded), (row.baseline, cubes.baseline), (row.model, cubes.restored)):
            assert quality.psnr == psnr(cube, scenes[row.scene], bands)
            assert quality.ssim == ssim(cube, scenes[row.scene], bands)
            assert quality.sam == sam(cube, scenes[row.scene], bands)
        np.testing.assert_array_equal(cubes.restored, cubes.degraded / 2)
        np.testing.assert_array_equal(cubes.truth, scenes[row.scene])
        assert not np.array_equal(cubes.degraded, cubes.truth)


def test_a_band_that_was_dark_before_is_not_a_lost_one(scenes: dict[str, Float32]) -> None:
    truth = scenes["a"].copy()
    truth[[0, 3]] = 0
    degraded = truth.copy()
    degraded[5] = 0
    for task in ("bandloss", "mixed"):
        mask = bands_measured(task, degraded, truth)
        assert mask is not None and np.flatnonzero(mask).tolist() == [5]
    assert bands_measured("bandloss", truth, truth) is None
    assert bands_measured("blur", degraded, truth) is None
    for seed in range(4):
        ((row, cubes),) = evaluate([("a", truth)], half, MEASURING, tasks=("bandloss",), seed=seed)
        lost = lost_bands(cubes.degraded)
        lost[[0, 3]] = False
        if lost.any():
            assert row.input.psnr == psnr(cubes.degraded, truth, lost)


def test_a_model_that_diverges_is_named_with_its_scene_and_task(scenes: dict[str, Float32]) -> None:
    def diverge(cube: Float32, prompts: Prompts, missing: Bools | None) -> tuple[Float32, Float32]:
        return cube * np.float32(np.nan), np.zeros((1, 2), np.float32)

    with pytest.raises(CubeError, match="after noise is not finite") as caught:
        list(evaluate([("a", scenes["a"])], diverge, MEASURING))
    assert caught.value.file == "a"


def test_a_row_depends_on_its_scene_task_and_seed_alone(scenes: dict[str, Float32]) -> None:
    def figures(names: tuple[str, ...], tasks: tuple[str, ...], seed: int) -> dict[tuple[str, str], float]:
        given = [(name, scenes[name]) for name in names]
        return {(r.task, r.scene): r.input.psnr for r, _ in evaluate(given, half, MEASURING, tasks=tasks, seed=seed)}

    alone = figures(("b",), ("noise",), 0)
    assert figures(("a", "b"), ("inpaint", "noise"), 0)["noise", "b"] == alone["noise", "b"]
    assert figures(("b",), ("noise",), 1) != alone


def test_means_and_choices_are_over_scenes(scenes: dict[str, Float32]) -> None:
    rows = [row for row, _ in evaluate(scenes.items(), half, MEASURING, tasks=("noise", "poisson"))]
    found = means(rows)
    assert list(found) == ["noise", "poisson"]
    assert found["noise"][2].psnr == pytest.approx(np.mean([r.model.psnr for r in rows if r.task == "noise"]))
    for share in choices(rows).values():
        assert share.shape == (2, 3)
        np.testing.assert_allclose(share.sum(axis=1), 1)


def test_a_model_is_told_what_is_missing(scenes: dict[str, Float32]) -> None:
    told = []

    def looking(cube: Float32, prompts: Prompts, missing: Bools | None) -> tuple[Float32, Float32]:
        told.append(None if missing is None else (missing == (cube == 0)).all() and missing.any())
        return half(cube, prompts, missing)

    list(evaluate([("a", scenes["a"] + np.float32(0.01))], looking, MEASURING))
    assert told == [True if task in LOSE else None for task in TASKS]


def test_several_models_are_given_the_same_cubes(scenes: dict[str, Float32]) -> None:
    def same(cube: Float32, prompts: Prompts, missing: Bools | None) -> tuple[Float32, Float32]:
        return cube, np.zeros((0, 0), np.float32)

    tasks = ("noise", "bandloss")
    restorers = (Restorer("half", half, MEASURING), Restorer("same", same, MEASURING))
    found = list(compared(scenes.items(), restorers, tasks=tasks))
    alone = [(row, cubes) for row, cubes in evaluate(scenes.items(), half, MEASURING, tasks=tasks)]
    for (rows, kept), (row, cubes) in zip(found, alone, strict=True):
        assert [r.name for r in rows] == ["half", "same"]
        assert rows[0].model == row.model and rows[0].input == rows[1].input == row.input == rows[1].model
        assert rows[0].baseline == rows[1].baseline == row.baseline
        np.testing.assert_array_equal(kept[1].restored, cubes.degraded)
    choice = choice_of([row for rows, _ in found for row in rows], {"noise": "A", "bandloss": "B"})
    assert choice.best["noise"] == "half" and choice.overall in ("half", "same")
    assert choice.models["same"].gain == pytest.approx(0) and choice.baseline.seconds > 0
    assert choice.classical == {"noise": "A", "bandloss": "B"}
    assert classical_text(choice.classical).endswith("use A for noise; use B for bandloss.")
    assert best_texts(choice)[0].startswith(f"Best in the mean: {choice.overall}, ")


def test_a_model_has_to_be_ahead_of_a_classical_method_by_more_than_a_tenth(scenes: dict[str, Float32]) -> None:
    ((row, _),) = evaluate([("a", scenes["a"])], half, MEASURING, tasks=("noise",))
    assert row.baseline is not None
    for ahead, classical in ((0.11, {}), (0.09, {"noise": "A"}), (-5.0, {"noise": "A"})):
        made = replace(row, model=replace(row.model, psnr=row.baseline.psnr + ahead))
        assert choice_of([made], {"noise": "A"}).classical == classical
    assert choice_of([replace(row, baseline=None)], {}).classical == {} and classical_text({}) == ""
