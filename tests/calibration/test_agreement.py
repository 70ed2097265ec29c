"""What a variant costs: experts counted layer by layer, and quality lost as known perturbations lose it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.agreement import (
    CLOSE,
    Case,
    Routing,
    Score,
    TaskCost,
    case_of,
    joined,
    mean_cost,
    routing,
    score,
    task_cost,
)
from calibration.dataset import Origin, Sample
from calibration.degradations import DEGRADATIONS
from calibration.quality import psnr, sam
from tests.contracts.graphs import damp_like

Float32 = NDArray[np.float32]
LAYERS, EXPERTS = 2, 4
SHAPE = (5, 12, 16)
SIGNATURE = damp_like(*SHAPE, layers=LAYERS, experts=EXPERTS)


def gates_of(*chosen: tuple[int, ...]) -> Float32:
    """[layers, experts], a pair of experts chosen in each."""
    gates = np.zeros((len(chosen), EXPERTS), np.float32)
    for layer, experts in enumerate(chosen):
        gates[layer, list(experts)] = 1 / len(experts)
    return gates


def case(task: str, seed: int, error: float = 0.05) -> Case:
    """A case whose network is off by white noise of a known size."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.2, 0.8, SHAPE).astype(np.float32)
    frame = DEGRADATIONS[task](truth, rng)[None]
    feeds = {"frame": frame, "metrics": np.full((1, 6), seed, np.float32)}
    sample = Sample(Origin(f"cube{seed}", task, 0, 0, 0), feeds, truth, hashlib.sha256(frame.tobytes()).hexdigest())
    restored = truth + (error * rng.standard_normal(SHAPE)).astype(np.float32)
    made = {"restored": restored[None], "routing": gates_of((0, 1), (2, 3))}
    return case_of(sample, made, np.full(LAYERS, 0.5, np.float32), SIGNATURE)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [case(task, seed) for seed, task in enumerate(("noise", "bandloss", "noise", "blur"))]


def added(cases: list[Case], noise: float, gates: Float32 | None = None) -> tuple[Score, dict[str, list[Float32]]]:
    """The score of a variant that adds noise to what the network gives, and its cubes by task."""
    known = {c.sample.sha256: c for c in cases}
    cubes: dict[str, list[Float32]] = {}

    def infer(feeds: Mapping[str, Float32]) -> dict[str, Float32]:
        assert list(feeds) == ["frame", "metrics"]
        at = known[hashlib.sha256(feeds["frame"].tobytes()).hexdigest()]
        np.testing.assert_array_equal(feeds["metrics"], at.sample.feeds["metrics"])
        rng = np.random.default_rng(int(feeds["metrics"][0, 0]) + 100)
        cube = at.restored + np.float32(noise) * rng.standard_normal(SHAPE).astype(np.float32)
        cubes.setdefault(at.sample.origin.task, []).append(cube)
        return {"restored": cube[None], "routing": at.routing if gates is None else gates}

    return score(infer, SIGNATURE, cases), cubes


def test_the_network_itself_costs_nothing(cases: list[Case]) -> None:
    found, _ = added(cases, 0)
    assert found.tasks == dict.fromkeys(("noise", "bandloss", "blur"), TaskCost(0.0, 0.0, 0.0))
    assert found.mean_psnr_drop_db == found.worst_psnr_drop_db == found.mean_sam_rise_deg == 0
    assert found.mean_distortion_db == 0
    assert found.routing == Routing(8, 8, 0, 0, ((4, 4), (4, 4))) and found.routing.agreement == 1


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_noise_of_a_known_size_costs_what_it_adds(noise: float) -> None:
    # Independent errors add up in their squares.
    large = [case("noise", seed) for seed in range(20)]
    expected = 10 * np.log10(1 + (noise / 0.05) ** 2)
    found, _ = added(large, noise)
    assert found.tasks["noise"].psnr_drop_db == pytest.approx(expected, rel=0.05, abs=0.02)
    assert found.tasks["noise"].distortion_db == pytest.approx(expected, rel=0.05)
    assert found.tasks["noise"].sam_rise_deg > 0


def test_costs_are_those_of_the_quality_figures(cases: list[Case]) -> None:
    found, cubes = added(cases, 0.03)
    for task, cost in found.tasks.items():
        of = [c for c in cases if c.sample.origin.task == task]
        drops, rises = [], []
        for at, cube in zip(of, cubes[task], strict=True):
            assert at.sample.truth is not None
            drops.append(psnr(at.restored, at.sample.truth, at.bands) - psnr(cube, at.sample.truth, at.bands))
            rises.append(sam(cube, at.sample.truth, at.bands) - sam(at.restored, at.sample.truth, at.bands))
        assert cost.psnr_drop_db == pytest.approx(np.mean(drops)) != 0
        # Of one band, as is lost here, the angle is always 0.
        assert cost.sam_rise_deg == pytest.approx(np.mean(rises)) and (cost.sam_rise_deg > 0) == (task != "bandloss")
    drops = [t.psnr_drop_db for t in found.tasks.values()]
    assert found.mean_psnr_drop_db == pytest.approx(np.mean(drops))
    assert found.worst_psnr_drop_db == max(drops) > found.mean_psnr_drop_db


def test_after_band_loss_the_lost_bands_alone_count() -> None:
    at = case("bandloss", 1)
    assert at.bands is not None and 0 < at.bands.sum() < SHAPE[0]
    assert at.sample.truth is not None
    assert at.psnr == psnr(at.restored, at.sample.truth, at.bands)
    others = at.restored.copy()
    others[~at.bands] += 1
    assert task_cost(others, at) == TaskCost(0.0, 0.0, 0.0)
    lost = at.restored.copy()
    lost[at.bands] += 0.2
    cost = task_cost(lost, at)
    # The network's own error is 0.05, and this one comes on top of it.
    assert cost.distortion_db == pytest.approx(10 * np.log10(1 + (0.2 / 0.05) ** 2), abs=0.8)
    assert cost.psnr_drop_db > 8


def test_a_variant_that_is_nearer_the_truth_gains_and_is_still_distorted() -> None:
    at = case("noise", 0)
    assert at.sample.truth is not None
    cost = task_cost((at.restored + at.sample.truth) / 2, at)
    assert cost.psnr_drop_db == pytest.approx(-20 * np.log10(2), abs=1e-3)
    assert cost.distortion_db == pytest.approx(10 * np.log10(1.25), abs=1e-3)
    assert cost.sam_rise_deg < 0


def test_a_network_without_error_gives_finite_figures() -> None:
    at = case("noise", 0, error=0)
    assert at.psnr == 100
    cost = task_cost(at.restored + np.float32(0.01), at)
    assert cost.psnr_drop_db == pytest.approx(60, abs=0.1) and np.isfinite(cost.distortion_db)


def test_routing_counts_sets_and_not_their_weights() -> None:
    expected = gates_of((0, 1), (2, 3))
    weights = expected * np.float32([[0.3, 1.7, 1, 1]])
    assert routing(weights, expected, np.ones(LAYERS, np.float32)) == Routing(2, 2, 0, 0, ((1, 1), (1, 1)))
    for other in (gates_of((0, 2), (2, 3)), gates_of((0,), (2, 3)), gates_of((0, 1, 3), (2, 3))):
        assert routing(other, expected, np.ones(LAYERS, np.float32)) == Routing(2, 1, 0, 0, ((1, 0), (1, 1)))


def test_close_choices_are_counted_apart() -> None:
    expected, other = gates_of((0, 1), (2, 3)), gates_of((0, 2), (2, 3))
    close = np.float32([CLOSE * 0.9, CLOSE])
    found = routing(other, expected, close)
    assert found == Routing(1, 1, 1, 0, ((0, 0), (1, 1))) and found.agreement == 1
    assert routing(expected, expected, close) == Routing(1, 1, 1, 1, ((0, 0), (1, 1)))
    assert routing(other, expected, close[::-1].copy()) == Routing(1, 0, 1, 1, ((1, 0), (0, 0)))


def test_tiles_are_counted_one_by_one() -> None:
    expected = np.stack([gates_of((0, 1), (2, 3))] * 3)[:, None]
    chosen = expected.copy()
    chosen[1, 0, 1] = gates_of((0, 1))[0]
    margins = np.float32([[1, 1], [1, 1], [1, 0]])[:, None]
    assert routing(chosen, expected, margins) == Routing(5, 4, 1, 1, ((3, 3), (2, 1)))


def test_counts_add_up() -> None:
    one, two = Routing(2, 1, 1, 0, ((1, 0), (1, 1))), Routing(3, 3, 2, 1, ((2, 2), (1, 1)))
    assert one + two == two + one == Routing(5, 4, 3, 1, ((3, 2), (2, 2)))
    assert one + Routing() == Routing() + one == one
    assert (one + two).agreement == 0.8 and Routing().agreement == 1
    with pytest.raises(ValueError, match=r"shorter|longer"):
        one + Routing(1, 1, 0, 0, ((1, 1),))


def test_other_experts_are_seen_in_the_score(cases: list[Case]) -> None:
    found, _ = added(cases, 0, gates_of((0, 1), (1, 2)))
    assert found.routing == Routing(8, 4, 0, 0, ((4, 4), (4, 0))) and found.routing.agreement == 0.5


def test_a_mean_is_taken_of_every_figure() -> None:
    found = mean_cost([TaskCost(1, 2, 3), TaskCost(3, -2, 4)])
    assert found == TaskCost(2, 0, 3.5)


def test_a_task_counts_once_however_many_samples_it_has() -> None:
    tasks = {"a": TaskCost(1, 0, 2), "b": TaskCost(-3, 2, 6)}
    found = Score(tasks)
    assert (found.mean_psnr_drop_db, found.worst_psnr_drop_db) == (-1, 1)
    assert (found.mean_sam_rise_deg, found.mean_distortion_db) == (1, 4)


def test_scores_of_single_cases_join_to_that_of_all(cases: list[Case]) -> None:
    made = {"restored": cases[0].restored[None], "routing": cases[0].routing}
    of_all = score(lambda _: made, SIGNATURE, cases)
    assert joined([score(lambda _: made, SIGNATURE, [one]) for one in cases]) == of_all


def test_a_network_without_mixtures_has_nothing_to_choose() -> None:
    none = routing(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32), np.zeros(0, np.float32))
    assert none == Routing() and none.agreement == 1.0
