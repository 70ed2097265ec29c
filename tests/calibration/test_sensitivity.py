"""The search for as much int8 as a limit allows, on costs that are known."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest

from calibration.agreement import Routing, Score, TaskCost
from calibration.products import Product
from calibration.sensitivity import (
    MOST_RETRIES,
    Group,
    MaxDrop,
    Point,
    Search,
    groups_of,
    names_of,
    pareto,
    search,
    settled,
    taken_apart,
)

LIMIT = MaxDrop(psnr_db=0.1, worst_psnr_db=10, sam_deg=10, routing=0)


def group(name: str, share: float) -> Group:
    return Group(name, (f"{name}/Conv",), share)


def score_of(cost: float, wrong: int = 0) -> Score:
    """A drop of PSNR and a distortion of `cost`, and so many of 1000 choices that are others."""
    return Score({"noise": TaskCost(cost, 0.0, max(cost, 0.0))}, Routing(1000, 1000 - wrong))


class Adding:
    """Evaluates sets whose costs add up, and remembers what it was asked."""

    def __init__(self, costs: Mapping[str, float], wrong: Mapping[str, int] | None = None) -> None:
        self.costs, self.wrong = costs, wrong or {}
        self.asked: list[frozenset[str]] = []

    def __call__(self, names: frozenset[str]) -> Score:
        self.asked.append(names)
        return self.of(names)

    def of(self, names: frozenset[str]) -> Score:
        return score_of(sum(self.costs[n] for n in sorted(names)), sum(self.wrong.get(n, 0) for n in names))

    def alone(self) -> dict[str, Score]:
        return {name: self.of(frozenset({name})) for name in self.costs}


def searched(groups: list[Group], evaluate: Adding, limit: MaxDrop = LIMIT) -> Search:
    return search(groups, evaluate.alone(), evaluate, limit)


def equal_groups(count: int) -> list[Group]:
    return [group(f"g{i:02}", 1 / count) for i in range(count)]


@pytest.mark.parametrize("fit", range(1, 17))
def test_the_longest_prefix_that_holds_is_found(fit: int) -> None:
    # Costs grow with the place; the limit lies between those of `fit` and `fit` + 1 groups.
    groups = equal_groups(16)
    costs = {g.name: 1.0 + i for i, g in enumerate(groups)}
    ends = np.cumsum([0.0, *costs.values()])
    limit = MaxDrop(float(ends[fit]) + 0.5, 1e9, 10, 0)
    evaluate = Adding(costs)
    found = searched(groups[::-1], evaluate, limit)
    assert [g.name for g in found.ranking] == [g.name for g in groups]
    assert found.chosen is not None and found.chosen.holds
    assert found.chosen.groups == {g.name for g in groups[:fit]}
    assert found.chosen.share == pytest.approx(fit / 16)
    assert len(evaluate.asked) == len(found.points) <= 1 + 5 + MOST_RETRIES


def test_products_of_what_is_left_are_tried_beside_what_holds() -> None:
    products = [Product(f"{block}/Conv{place}", block, "pointwise", 100, True) for block in "ab" for place in range(4)]
    groups = groups_of(products)
    costs = {p.name: 0.01 for p in products} | {"b/Conv2": 1.0}
    every = Adding(costs)

    def evaluate(chosen: frozenset[str]) -> Score:
        return every(names_of(now, chosen))

    now = groups
    first = search(groups, {g.name: every.of(frozenset(g.products)) for g in groups}, evaluate, LIMIT)
    assert first.chosen is not None and first.chosen.groups == {"a pointwise"}
    now = taken_apart(groups, first.chosen.groups, products)
    assert [g.name for g in now] == ["a pointwise", "b/Conv0", "b/Conv1", "b/Conv2", "b/Conv3"]
    left = {g.name: every.of(frozenset(g.products)) for g in now[1:]}
    found = search(now, left, evaluate, LIMIT, first=0.05, beside=first)
    assert found.chosen is not None and found.chosen.groups == {g.name for g in now} - {"b/Conv2"}
    assert found.chosen.share == pytest.approx(7 / 8) and found.points[: len(first.points)] == first.points
    assert [g.name for g in found.ranking] == ["a pointwise", "b/Conv0", "b/Conv1", "b/Conv3", "b/Conv2"]
    assert set(found.costs) >= {g.name for g in found.ranking}


def test_where_everything_holds_one_evaluation_is_enough() -> None:
    groups = equal_groups(30)
    evaluate = Adding(dict.fromkeys((g.name for g in groups), 0.001))
    found = searched(groups, evaluate)
    assert len(evaluate.asked) == 1
    assert found.chosen is not None and found.chosen.share == pytest.approx(1)


def test_groups_behind_the_one_that_did_not_fit_are_added() -> None:
    # By cost per share: a, b, big, c, d. With `big` the limit of 0.1 is passed, without it c and d fit.
    shares = {"a": 0.2, "b": 0.2, "big": 0.5, "c": 0.05, "d": 0.05}
    costs = {"a": 0.01, "b": 0.02, "big": 0.09, "c": 0.02, "d": 0.03}
    evaluate = Adding(costs)
    found = searched([group(n, s) for n, s in shares.items()], evaluate)
    assert [g.name for g in found.ranking] == ["a", "b", "big", "c", "d"]
    assert found.chosen is not None and found.chosen.groups == {"a", "b", "c", "d"}


def test_a_later_group_that_does_not_fit_is_passed_over() -> None:
    shares = {"a": 0.2, "big": 0.5, "c": 0.2, "d": 0.1}
    costs = {"a": 0.01, "big": 0.2, "c": 0.095, "d": 0.08}
    found = searched([group(n, s) for n, s in shares.items()], Adding(costs))
    assert [g.name for g in found.ranking] == ["a", "big", "c", "d"]
    assert found.chosen is not None and found.chosen.groups == {"a", "d"}


def test_the_choice_is_close_to_the_best_of_all_subsets() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(40):
        names = [f"g{i}" for i in range(9)]
        share = rng.dirichlet(np.ones(9))
        costs = dict(zip(names, rng.uniform(0, 0.05, 9), strict=True))
        groups = [group(n, float(s)) for n, s in zip(names, share, strict=True)]
        found = searched(groups, Adding(costs))
        fits = [
            sum(share[i] for i in some)
            for count in range(1, 10)
            for some in combinations(range(9), count)
            if sum(costs[f"g{i}"] for i in some) <= 0.1
        ]
        assert found.chosen is not None and found.chosen.score.mean_psnr_drop_db <= 0.1
        shares.append(found.chosen.share / max(fits))
    assert np.mean(shares) > 0.95 and min(shares) > 0.75


def test_nothing_is_chosen_where_nothing_holds() -> None:
    groups = equal_groups(12)
    evaluate = Adding(dict.fromkeys((g.name for g in groups), 5.0))
    found = searched(groups, evaluate)
    assert found.chosen is None and not any(p.holds for p in found.points)
    assert len(evaluate.asked) <= 5 + MOST_RETRIES


# Where the group that is cheapest per multiply-add does not fit alone, no other is tried (sensitivity.py,
# `if longest else ()`), though `costs` says that one of them fits.
def test_a_first_group_that_does_not_fit_does_not_stand_in_the_way() -> None:
    shares, costs = {"big": 0.9, "small": 0.1}, {"big": 0.2, "small": 0.05}
    found = searched([group(n, s) for n, s in shares.items()], Adding(costs))
    assert [g.name for g in found.ranking] == ["big", "small"]
    assert found.chosen is not None and found.chosen.groups == {"small"}


def test_without_groups_nothing_is_evaluated() -> None:
    evaluate = Adding({})
    found = searched([], evaluate)
    assert found == Search((), {}, (), None) and not evaluate.asked


def test_no_set_is_evaluated_twice_and_few_are() -> None:
    for count in (1, 2, 3, 7, 40, 100):
        groups = equal_groups(count)
        for fit in {1, count // 2, count - 1} - {0}:
            evaluate = Adding(dict.fromkeys((g.name for g in groups), 0.1 / (fit + 0.5)))
            found = searched(groups, evaluate)
            assert len(set(evaluate.asked)) == len(evaluate.asked) <= count.bit_length() + 1 + MOST_RETRIES
            assert [p.groups for p in found.points] == evaluate.asked


def test_the_same_scores_give_the_same_choice_in_any_order() -> None:
    rng = np.random.default_rng(1)
    groups = [group(f"g{i}", float(s)) for i, s in enumerate(rng.dirichlet(np.ones(11)))]
    costs = {g.name: float(c) for g, c in zip(groups, rng.choice([0.01, 0.02, 0.03], 11), strict=True)}
    first = searched(groups, Adding(costs))
    for _ in range(5):
        other = searched([groups[i] for i in rng.permutation(11)], Adding(costs))
        assert other.ranking == first.ranking
        assert [p.groups for p in other.points] == [p.groups for p in first.points]
        assert other.chosen is not None and first.chosen is not None
        assert other.chosen.groups == first.chosen.groups


def test_groups_are_ranked_by_cost_per_multiply_add() -> None:
    groups = [group("dear", 0.1), group("cheap", 0.5), group("equal b", 0.2), group("equal a", 0.2)]
    costs = {"dear": 0.02, "cheap": 0.02, "equal b": 0.02, "equal a": 0.02}
    assert [g.name for g in searched(groups, Adding(costs)).ranking] == ["cheap", "equal a", "equal b", "dear"]


def test_a_group_that_changes_experts_comes_last() -> None:
    groups = [group(name, 0.25) for name in ("flips", "loses", "fine", "gains")]
    evaluate = Adding({"flips": 0.0, "loses": 2.0, "fine": 0.01, "gains": -0.5}, {"flips": 100})
    found = searched(groups, evaluate, MaxDrop(5, 5, 5, 0.95))
    assert [g.name for g in found.ranking] == ["gains", "fine", "loses", "flips"]
    assert found.chosen is not None and found.chosen.groups == {"gains", "fine", "loses"}


@pytest.mark.parametrize(
    ("score", "holds"),
    [
        (Score({"a": TaskCost(0.1, 0.2, 9)}, Routing(100, 99)), True),
        (Score({"a": TaskCost(0.3, 0.2, 0), "b": TaskCost(-0.1, 0.2, 0)}, Routing(100, 99)), True),
        (Score({"a": TaskCost(0.11, 0, 0)}), False),
        (Score({"a": TaskCost(0.31, 0, 0), "b": TaskCost(-0.3, 0, 0)}), False),
        (Score({"a": TaskCost(0, 0.21, 0)}), False),
        (Score({"a": TaskCost(0, 0, 0)}, Routing(100, 98)), False),
        # Choices that were close in the network do not count.
        (Score({"a": TaskCost(0, 0, 0)}, Routing(100, 100, 50, 0)), True),
    ],
)
def test_all_four_limits_must_hold(score: Score, holds: bool) -> None:
    assert (MaxDrop(0.1, 0.3, 0.2, 0.99).missed_by(score) == []) is holds


def test_a_group_is_the_products_of_one_kind_in_one_block() -> None:
    products = [
        Product("enc.0.layers.0.a/MatMul", "enc.0.layers.0", "linear", 30, True),
        Product("enc.0.layers.0.c/Conv", "enc.0.layers.0", "depthwise", 10, True),
        Product("enc.0.layers.0/MatMul", "enc.0.layers.0", "activations", 40, False),
        Product("enc.0.layers.0.b/MatMul", "enc.0.layers.0", "linear", 15, True),
        Product("dec/MatMul", "dec", "linear", 5, True),
    ]
    groups = groups_of(products)
    assert groups == (
        Group("enc.0.layers.0 linear", ("enc.0.layers.0.a/MatMul", "enc.0.layers.0.b/MatMul"), 0.45),
        Group("enc.0.layers.0 depthwise", ("enc.0.layers.0.c/Conv",), 0.1),
        Group("dec linear", ("dec/MatMul",), 0.05),
    )
    assert names_of(groups, frozenset({"dec linear", "enc.0.layers.0 linear"})) == {
        "dec/MatMul", "enc.0.layers.0.a/MatMul", "enc.0.layers.0.b/MatMul",
    }  # fmt: skip
    assert groups_of([]) == () and names_of(groups, frozenset()) == frozenset()


def test_the_front_is_what_no_other_point_beats() -> None:
    def point(share: float, cost: float) -> Point:
        return Point(frozenset({f"{share} {cost}"}), share, score_of(cost))

    best = [point(0.1, -0.1), point(0.4, 0.0), point(0.7, 0.2)]
    beaten = [point(0.3, 0.1), point(0.4, 0.05), point(0.1, 0.0), point(0.7, 0.3)]
    front = pareto([*beaten, *best[::-1]])
    assert front == tuple(best)
    for one in (*best, *beaten):
        beats = [
            p
            for p in (*best, *beaten)
            if p is not one and p.share >= one.share and p.score.mean_psnr_drop_db <= one.score.mean_psnr_drop_db
        ]
        assert (one in front) == (not beats)
    assert pareto([]) == ()


def test_every_set_that_is_evaluated_is_told() -> None:
    groups = equal_groups(20)
    evaluate = Adding(dict.fromkeys((g.name for g in groups), 0.02))
    seen: list[Point] = []
    found = search(groups, evaluate.alone(), evaluate, LIMIT, seen.append)
    assert tuple(seen) == found.points and [p.holds for p in seen] == [not p.missed for p in seen]


@pytest.mark.parametrize("first", [0.0, 0.04, 0.1, 5.0])
def test_where_it_begins_changes_the_number_of_evaluations_and_not_the_choice(first: float) -> None:
    groups = equal_groups(30)
    evaluate = Adding({g.name: 0.004 + 0.0001 * i for i, g in enumerate(groups)})
    found = search(groups, evaluate.alone(), evaluate, LIMIT, first=first)
    best = searched(groups, evaluate).chosen
    assert found.chosen is not None and best is not None and found.chosen.groups == best.groups
    assert first != 0.1 or len(found.points) <= 2 + MOST_RETRIES


@pytest.mark.parametrize("fits", range(1, 17))
def test_a_choice_that_fails_as_it_flies_gives_the_dearest_groups_back_until_it_holds(fits: int) -> None:
    groups = equal_groups(16)
    costs = Adding({g.name: 0.001 + 0.0001 * i for i, g in enumerate(groups)})
    found = searched(groups, costs)
    assert found.chosen is not None and len(found.chosen.groups) == 16
    flies = Adding(dict.fromkeys(costs.costs, 0.1 / (fits + 0.5)))
    steps = settled(found, found.chosen, flies, LIMIT)
    assert [p.holds for p in steps] == [False] * (len(steps) - 1) + [True] and len(steps) <= 6
    assert steps[-1].groups == {g.name for g in found.ranking[: len(steps[-1].groups)]}


def test_the_one_group_that_cannot_be_spared_is_left_with_what_it_misses() -> None:
    groups = equal_groups(16)
    found = searched(groups, Adding(dict.fromkeys((g.name for g in groups), 0.001)))
    assert found.chosen is not None
    steps = settled(found, found.chosen, Adding(dict.fromkeys((g.name for g in groups), 5.0)), LIMIT)
    assert steps[-1].groups == {"g00"} and not steps[-1].holds and "psnr_db 5 dB, at most 0.1" in steps[-1].missed


def test_a_group_whose_cost_was_hidden_is_found_where_the_first_set_lost() -> None:
    groups = equal_groups(16)
    true = Adding({g.name: 0.5 if g.name == "g03" else 0.001 for g in groups})
    hidden = {**true.alone(), "g03": score_of(0.0)}
    asked: list[Point] = []

    def revise(point: Point, costs: Mapping[str, Score]) -> Mapping[str, Score]:
        asked.append(point)
        return {**costs, "g03": true.of(frozenset({"g03"}))}

    found = search(groups, hidden, true, LIMIT, first=0.1, revise=revise)
    assert found.chosen is not None and found.chosen.groups == {g.name for g in groups} - {"g03"}
    assert [p.groups for p in asked] == [{g.name for g in groups}] and len(found.points) <= 3
    without = search(groups, hidden, true, LIMIT, first=0.1)
    assert len(without.points) > len(found.points) and without.chosen is not None
    assert without.chosen.share < found.chosen.share
