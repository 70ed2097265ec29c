"""How frames come from clean cubes: by the degradations, or by a network's own instrument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.agreement import NO_ROUTING, Routing, TaskCost, case_of, routing_in, score
from calibration.cubes import Wanted
from calibration.dataset import Asked, CalibrationSet, calibration_set
from calibration.degradations import DEGRADATIONS, TRAINING, UNSEEN
from calibration.evaluation import evaluate, means
from calibration.measuring import CLEAN, TASKS, Measuring, fitting
from calibration.quality import psnr, quality
from runtime.arrays import Bools
from runtime.errors import CubeError
from runtime.metrics import prompt_metrics
from runtime.prompts import Prompts
from runtime.signature import Plane, Prompt, Signature
from runtime.simulation.simulator import simulate_scene
from tests.contracts.graphs import damp_like

Float32 = NDArray[np.float32]
MEASURED, RESTORED, SIZE = 3, 5, (16, 24)
MIX = np.random.default_rng(11).dirichlet(np.ones(RESTORED), MEASURED).astype(np.float32)
BACK = np.linalg.pinv(MIX).astype(np.float32)
CODE = np.float32([[0.25, -1, 3]])
SIGNATURE = Signature(
    Plane("shot", MEASURED, *SIZE, "coded"),
    Plane("restored", RESTORED, *SIZE),
    (Prompt("code", (1, 3), "constant", "prompts/code.npy"),),
    tiling="fixed",
    band_groups=False,
)
SIGMA = {"still": 0.01, "dim": 0.05}


def instrument(arrays: Mapping[str, Float32], task: str, clean: Float32, rng: np.random.Generator) -> Float32:
    """Three bands that mix five, and noise."""
    shot = np.einsum("mb,bls->mls", MIX, clean)
    return np.asarray(shot + SIGMA[task] * rng.standard_normal(shot.shape), np.float32)


def unmixed(shot: Float32) -> Float32:
    return np.einsum("bm,mls->bls", BACK, shot).astype(np.float32)


OWN = Measuring(Prompts(SIGNATURE, {"code": CODE}), tuple(SIGMA), instrument)
DAMAGING = Measuring(Prompts(damp_like(RESTORED, *SIZE)))


def scene(seed: int, lines: int = SIZE[0], samples: int = SIZE[1]) -> Float32:
    return simulate_scene(seed, RESTORED, lines, samples).truth


# Tasks


def test_damages_are_fitted_by_what_was_trained_and_by_clean_cubes() -> None:
    assert DAMAGING.tasks == TASKS and set(TASKS) == {*TRAINING, *UNSEEN} and len(TASKS) == 7
    assert DAMAGING.fit == (*TRAINING, CLEAN)
    assert Measuring(DAMAGING.prompts, ("poisson", "noise")).fit == ("noise", CLEAN)


def test_an_instrument_is_fitted_by_all_its_tasks_and_nothing_else() -> None:
    """A clean cube is none of its frames."""
    assert OWN.tasks == OWN.fit == ("still", "dim")


# Frames


def test_damages_are_those_of_the_degradations() -> None:
    clean = scene(0)
    for task in TASKS:
        found = DAMAGING.measured(task, clean, np.random.default_rng(3))
        np.testing.assert_array_equal(found, DEGRADATIONS[task](clean, np.random.default_rng(3)))
    assert DAMAGING.measured(CLEAN, clean, np.random.default_rng(3)) is clean


def test_an_instrument_measures_its_own_bands() -> None:
    clean = scene(0)
    for task, sigma in SIGMA.items():
        found = OWN.measured(task, clean, np.random.default_rng(3))
        assert found.shape == (MEASURED, *SIZE) and found.dtype == np.float32
        np.testing.assert_array_equal(found, instrument({}, task, clean, np.random.default_rng(3)))
        assert float((found - np.einsum("mb,bls->mls", MIX, clean)).std()) == pytest.approx(sigma, rel=0.1)


def test_feeds_are_the_frame_and_what_goes_beside_it() -> None:
    shot = OWN.measured("still", scene(0), np.random.default_rng(0))
    feeds = OWN.feeds(shot)
    assert {name: array.shape for name, array in feeds.items()} == SIGNATURE.ports.inputs
    np.testing.assert_array_equal(feeds["shot"][0], shot)
    np.testing.assert_array_equal(feeds["code"], CODE)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in feeds.values())
    frame = DAMAGING.measured("noise", scene(0), np.random.default_rng(0))
    feeds = DAMAGING.feeds(frame[:, ::-1])
    assert list(feeds) == ["frame", "metrics"] and feeds["frame"].flags.c_contiguous
    np.testing.assert_array_equal(feeds["metrics"][0], prompt_metrics(frame[:, ::-1], "paper6"))


def test_a_frame_that_has_one_place_is_the_middle_of_a_cube() -> None:
    clean = scene(1, 21, 30)
    np.testing.assert_array_equal(fitting(SIGNATURE, clean), clean[:, 2:18, 3:27])
    exact = scene(1)
    assert fitting(SIGNATURE, exact) is exact
    assert fitting(SIGNATURE, clean[:, :16]).shape == fitting(SIGNATURE, clean[:, :, :24]).shape == (RESTORED, *SIZE)


@pytest.mark.parametrize("size", [(15, 24), (16, 23), (15, 100), (1, 1)])
def test_a_cube_that_is_smaller_than_the_one_frame_is_refused(size: tuple[int, int]) -> None:
    small = np.zeros((RESTORED, *size), np.float32)
    with pytest.raises(CubeError, match="smaller than the network's one frame") as caught:
        fitting(SIGNATURE, small)
    assert caught.value.value == f"{size[0]}x{size[1]}" and "16 lines x 24 samples" in caught.value.remedy


@pytest.mark.parametrize("size", [(15, 24), SIZE, (40, 50)])
def test_frames_that_lie_anywhere_leave_a_cube_as_it_is(size: tuple[int, int]) -> None:
    cube = np.zeros((RESTORED, *size), np.float32)
    assert fitting(DAMAGING.signature, cube) is cube


# Evaluation


def restored(shot: Float32, prompts: Prompts, missing: Bools | None) -> tuple[Float32, Float32]:
    assert shot.shape == (MEASURED, *SIZE)
    return unmixed(shot), NO_ROUTING


def test_what_an_instrument_measures_has_no_quality_of_its_own() -> None:
    scenes = {"a": scene(0, 20, 30), "b": scene(1)}
    found = list(evaluate(scenes.items(), restored, OWN))
    assert [(row.scene, row.task) for row, _ in found] == [(s, t) for s in "ab" for t in ("still", "dim")]
    for row, cubes in found:
        truth = fitting(SIGNATURE, scenes[row.scene])
        assert row.input is None and row.baseline is None and cubes.baseline is None
        assert row.routing.shape == (0, 0)
        assert row.model == quality(unmixed(cubes.degraded), truth, None)
        assert cubes.degraded.shape == (MEASURED, *SIZE)
        np.testing.assert_array_equal(cubes.truth, truth)
        np.testing.assert_array_equal(cubes.restored, unmixed(cubes.degraded))
    for task, (given, baseline, model) in means([row for row, _ in found]).items():
        assert given is None and baseline is None
        assert model.psnr == pytest.approx(np.mean([row.model.psnr for row, _ in found if row.task == task]))


def test_a_row_of_an_instrument_follows_from_scene_task_and_seed() -> None:
    def figures(names: str, seed: int = 0, **asked: tuple[str, ...]) -> dict[tuple[str, str], float]:
        scenes = [(name, scene(ord(name))) for name in names]
        return {(r.scene, r.task): r.model.psnr for r, _ in evaluate(scenes, restored, OWN, seed=seed, **asked)}

    alone = figures("b", tasks=("dim",))
    assert list(alone) == [("b", "dim")] and figures("ab")["b", "dim"] == alone["b", "dim"]
    assert figures("b", seed=1)["b", "dim"] != alone["b", "dim"]


def test_a_scene_that_is_smaller_than_the_one_frame_is_not_evaluated() -> None:
    with pytest.raises(CubeError, match="smaller than the network's one frame"):
        next(evaluate([("a", scene(0, 12, 30))], restored, OWN))


# Calibration sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cubes of 5 bands and 20 x 28 pixels."""
    path = tmp_path_factory.mktemp("cubes")
    for seed in range(4):
        np.save(path / f"cube{seed}.npy", scene(seed, 20, 28).transpose(1, 2, 0))
    return path


def drawn(folder: Path, measuring: Measuring = OWN) -> CalibrationSet:
    return calibration_set(Asked(str(folder), samples=8, judged=2), Wanted(bands=RESTORED), measuring)


def test_a_set_of_an_instruments_frames_has_truths_of_more_bands(folder: Path, tmp_path: Path) -> None:
    found = drawn(folder)
    assert {o.task for o in found.fit} == {"still", "dim"} and {o.cube for o in found.fit}.isdisjoint(
        o.cube for o in found.judge
    )
    cubes = dict.fromkeys(o.cube for o in found.judge)
    assert [(o.cube, o.task) for o in found.judge] == [(cube, task) for cube in cubes for task in ("still", "dim")]
    for _ in range(2):
        for sample in found.samples([*found.fit, *found.judge], tmp_path):
            o = sample.origin
            cube = np.load(folder / f"{o.cube}.npy").transpose(2, 0, 1)
            truth = cube[:, o.line : o.line + SIZE[0], o.sample : o.sample + SIZE[1]]
            assert {name: array.shape for name, array in sample.feeds.items()} == SIGNATURE.ports.inputs
            np.testing.assert_array_equal(sample.truth, truth)
            np.testing.assert_array_equal(sample.feeds["code"], CODE)
            noise = sample.feeds["shot"][0] - np.einsum("mb,bls->mls", MIX, truth)
            assert float(noise.std()) == pytest.approx(SIGMA[o.task], rel=0.15)
    assert len(list(tmp_path.iterdir())) == len({*found.fit, *found.judge})


def test_simulated_scenes_are_measured_by_the_instrument_too() -> None:
    found = calibration_set(Asked("simulated", samples=4, judged=1), Wanted(bands=RESTORED), OWN)
    for sample in found.samples([*found.fit, *found.judge]):
        assert sample.truth is not None and sample.truth.shape == (RESTORED, *SIZE)
        assert sample.feeds["shot"].shape == (1, MEASURED, *SIZE)


def test_frames_and_truths_may_differ_in_size(folder: Path) -> None:
    def disperse(arrays: Mapping[str, Float32], task: str, clean: Float32, rng: np.random.Generator) -> Float32:
        return np.pad(np.einsum("mb,bls->mls", MIX, clean), ((0, 0), (0, 0), (0, 8)))

    def sized(lines: int, samples: int) -> Measuring:
        measured = replace(SIGNATURE.measured, lines=lines, samples=samples + 8)
        restored = replace(SIGNATURE.restored, lines=lines, samples=samples)
        return Measuring(
            Prompts(replace(SIGNATURE, measured=measured, restored=restored), {"code": CODE}), ("one",), disperse
        )

    found = drawn(folder, sized(16, 24))
    for lines, samples in ((16, 24), (8, 28)):
        frames = found.made_by(sized(lines, samples))
        assert frames.size == (lines, samples + 8)
        for sample in frames.samples([*frames.fit, *frames.judge]):
            assert sample.truth is not None and sample.truth.shape == (RESTORED, lines, samples)
            assert sample.feeds["shot"].shape == (1, MEASURED, lines, samples + 8)
            o = sample.origin
            assert o.line + lines <= 20 and o.sample + samples <= 28


def test_planes_that_are_unlike_need_an_instrument() -> None:
    with pytest.raises(ValueError, match="needs a `measure`"):
        Measuring(Prompts(SIGNATURE, {"code": CODE}))


def test_networks_that_measure_otherwise_share_no_kept_frame(folder: Path, tmp_path: Path) -> None:
    one = drawn(folder)
    kept = {sample.origin: sample.sha256 for sample in one.samples(one.fit, tmp_path)}
    for plane in (Plane("shot", 2, *SIZE, "coded"), Plane("snapshot", MEASURED, *SIZE, "coded")):
        prompts = Prompts(replace(SIGNATURE, measured=plane), {"code": CODE})
        other = drawn(folder, Measuring(prompts, OWN.tasks, lambda *given, n=plane.bands: instrument(*given)[:n]))
        assert other.fit == one.fit and other.digest() != one.digest()
        for sample in other.samples(other.fit, tmp_path):
            assert sample.feeds[plane.name].shape == plane.shape
            assert (sample.sha256 == kept[sample.origin]) == (plane.bands == MEASURED)


def test_the_digest_is_of_what_the_network_asks_for(folder: Path) -> None:
    assert drawn(folder).digest() == drawn(folder).digest()
    others = [replace(OWN, tasks=("still",)), DAMAGING, Measuring(Prompts(damp_like(RESTORED, *SIZE, "log6")))]
    assert len({drawn(folder, each).digest() for each in (OWN, *others)}) == 4


# Scores


def given(feeds: Mapping[str, Float32]) -> dict[str, Float32]:
    return {"restored": unmixed(feeds["shot"][0])[None]}


def test_a_network_without_experts_is_scored_by_what_it_restores(folder: Path) -> None:
    found = drawn(folder)
    margins = np.zeros(0, np.float32)
    cases = [case_of(s, given(s.feeds), margins, SIGNATURE) for s in found.samples(found.judge)]
    for case in cases:
        assert case.routing.shape == (0, 0) and case.bands is None and case.sample.truth is not None
        assert case.psnr == psnr(case.restored, case.sample.truth, None)
    own = score(given, SIGNATURE, cases)
    assert own.tasks == dict.fromkeys(("still", "dim"), TaskCost(0.0, 0.0, 0.0)) and own.max_difference == 0
    assert own.routing == Routing() and own.routing.agreement == 1

    def worse(feeds: Mapping[str, Float32]) -> dict[str, Float32]:
        return {"restored": given(feeds)["restored"] + np.float32(0.2)}

    spoilt = score(worse, SIGNATURE, cases)
    assert spoilt.mean_distortion_db > 0 and spoilt.routing == Routing()
    largest = max(0.2 / float(np.ptp(case.restored)) for case in cases)
    assert spoilt.max_difference == pytest.approx(largest, rel=1e-4)


def test_experts_weights_are_found_by_the_name_of_the_side_output() -> None:
    weights = np.ones((2, 4), np.float32)
    assert routing_in({"restored": weights, "routing": weights}, damp_like(RESTORED, *SIZE)) is weights
    assert routing_in({"restored": weights}, SIGNATURE) is NO_ROUTING
