"""Which products may run in int8: what each group costs, and the search for as many as a limit allows.

Three parts kept apart, as in NNCF's accuracy-aware quantisation: something that scores a set of groups (`Evaluate`),
the ranking of the groups, and the search over prefixes of that ranking. A group is the products of one kind in one
block. The search is a bisection: costs add up, so that of the prefixes of a ranking by cost per multiply-add the
longest one within the limit is found in a few evaluations, each of the whole graph; then groups that did not fit are
tried one by one. Where what the groups cost alone says how many will fit, it begins there, and asks again what they
cost where that fails: frames that rank groups do not show all that other frames have. Groups too small to be worth
an evaluation follow their neighbours. Then groups that are left are taken apart, and the same is done with their
products. Nothing is random: the same scores give the same choice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .agreement import Score
from .products import Product

Evaluate = Callable[[frozenset[str]], Score]
"""Names of groups that run in int8 -> what it costs."""
MOST_RETRIES = 6
MOST_REVISIONS = 3
WORTH = 0.005
"""Groups that hold less than this share of the multiply-adds together are not worth an evaluation."""


@dataclass(frozen=True)
class Group:
    """Products of one kind in one block; `share` of all multiply-adds."""

    name: str
    products: tuple[str, ...]
    share: float


class Limit(Protocol):
    """What int8 may cost."""

    def missed_by(self, score: Score) -> list[str]:
        """What the score goes beyond, in words; nothing where the limit holds."""
        ...


@dataclass(frozen=True)
class MaxDrop:
    """What int8 may cost on the judged frames: dB of PSNR (mean over tasks, worst task), degrees, share of choices."""

    psnr_db: float
    worst_psnr_db: float
    sam_deg: float
    routing: float

    def missed_by(self, score: Score) -> list[str]:
        """What the score goes beyond, in words."""
        figures = (
            ("psnr_db", score.mean_psnr_drop_db, self.psnr_db, "dB"),
            ("worst_psnr_db", score.worst_psnr_drop_db, self.worst_psnr_db, "dB"),
            ("sam_deg", score.mean_sam_rise_deg, self.sam_deg, "degrees"),
        )
        missed = [f"{key} {found:.3g} {unit}, at most {most:g}" for key, found, most, unit in figures if found > most]
        if score.routing.agreement < self.routing:
            found, least = 100 * score.routing.agreement, 100 * self.routing
            missed.append(f"routing_percent {found:.4g}, at least {least:g}")
        return missed


@dataclass(frozen=True)
class Point:
    """An evaluated set of groups: share of multiply-adds in int8, what it costs, and where it goes beyond the limit."""

    groups: frozenset[str]
    share: float
    score: Score
    missed: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """The limit is kept."""
        return not self.missed


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        ranking: groups, the cheapest per multiply-add first.
        costs: group -> score of the graph in which it alone runs in int8.
        points: all evaluated sets, in the order of evaluation.
        chosen: the one with the most multiply-adds of those that hold, or None.
    """

    ranking: tuple[Group, ...]
    costs: Mapping[str, Score]
    points: tuple[Point, ...]
    chosen: Point | None


def groups_of(products: Sequence[Product]) -> tuple[Group, ...]:
    """The quantisable products by block and kind."""
    total = sum(p.multiply_adds for p in products)
    members: dict[str, list[Product]] = {}
    for product in products:
        if product.quantisable:
            members.setdefault(f"{product.block} {product.kind}", []).append(product)
    return tuple(
        Group(name, tuple(p.name for p in of), sum(p.multiply_adds for p in of) / total) for name, of in members.items()
    )


def taken_apart(groups: Sequence[Group], kept: frozenset[str], products: Sequence[Product]) -> tuple[Group, ...]:
    """The groups that are kept or have one product, and of the others each product as a group of its own."""
    total = sum(p.multiply_adds for p in products)
    whole = [group for group in groups if group.name in kept or len(group.products) == 1]
    held = {name for group in whole for name in group.products}
    there = {name for group in groups for name in group.products} - held
    return (*whole, *(Group(p.name, (p.name,), p.multiply_adds / total) for p in products if p.name in there))


def names_of(groups: Iterable[Group], chosen: frozenset[str]) -> frozenset[str]:
    """The products of the chosen groups."""
    return frozenset(name for group in groups if group.name in chosen for name in group.products)


def search(
    groups: Sequence[Group],
    costs: Mapping[str, Score],
    evaluate: Evaluate,
    limit: Limit,
    told: Callable[[Point], None] | None = None,
    *,
    first: float | None = None,
    revise: Callable[[Point, Mapping[str, Score]], Mapping[str, Score]] | None = None,
    beside: Search | None = None,
) -> Search:
    """Rank the groups by what each costs alone, and find the most int8 that keeps the limit.

    Args:
        groups: what may run in int8.
        costs: group -> score of the graph in which it alone runs in int8.
        evaluate: scores a set of groups.
        limit: what must hold.
        told: called with each set that was evaluated.
        first: begin with as many groups of the ranking as cost no more dB than this together; all where it is None.
        revise: what the groups cost alone, where they were said to cost less than the first set turned out to.
        beside: a search before, whose choice is kept in every set; what it evaluated is in what is returned.
    """
    held = None if beside is None else beside.chosen
    base: frozenset[str] = frozenset() if held is None else held.groups
    groups = [g for g in groups if g.name not in base]
    ranking = _ranking(groups, costs)
    points: list[Point] = [] if beside is None else list(beside.points)

    def tried(chosen: frozenset[str]) -> Point:
        known = next((p for p in points if p.groups == chosen), None)
        if known is None:
            found = evaluate(chosen)
            share = sum(g.share for g in groups if g.name in chosen) + (0.0 if held is None else held.share)
            known = Point(chosen, share, found, tuple(limit.missed_by(found)))
            points.append(known)
            if told is not None:
                told(known)
        return known

    def prefix(length: int) -> frozenset[str]:
        return base | {g.name for g in ranking[:length]}

    def beginning() -> int:
        # All of them first: often everything fits, or everything but the last.
        return len(ranking) if first is None else _fitting(ranking, costs, first)

    for _ in range(MOST_REVISIONS if revise is not None and ranking else 0):
        point = tried(prefix(beginning()))
        if point.holds:
            break
        assert revise is not None
        costs = revise(point, costs)
        ranking = _ranking(groups, costs)
    longest, beyond, reach = 0, len(ranking) + 1, 1
    middle = beginning()
    while beyond - longest > 1 and (longest == 0 or _share(ranking[longest : beyond - 1]) >= WORTH):
        longest, beyond = (middle, beyond) if tried(prefix(middle)).holds else (longest, middle)
        if beyond > len(ranking):
            middle = min(len(ranking), longest + reach)
        elif longest or first is None:
            middle = (longest + beyond) // 2
        else:
            middle = max(1, beyond - reach)
        reach *= 2
    kept = prefix(longest)
    # What is behind the one that did not fit may fit without it.
    behind = [g for g in ranking[longest + 1 :] if g.share >= WORTH]
    for group in behind[:MOST_RETRIES]:
        more = kept | {group.name}
        kept = more if tried(more).holds else kept
    holding = [p for p in points if p.holds and p.groups]
    before = () if beside is None else tuple(g for g in beside.ranking if g.name in base)
    every = dict(costs) if beside is None else {**beside.costs, **costs}
    return Search((*before, *ranking), every, tuple(points), max(holding, key=lambda p: p.share, default=None))


def _ranking(groups: Sequence[Group], costs: Mapping[str, Score]) -> tuple[Group, ...]:
    return tuple(sorted(groups, key=lambda g: (_price(costs[g.name], g), g.name)))


def _share(groups: Iterable[Group]) -> float:
    return sum(g.share for g in groups)


def _fitting(ranking: Sequence[Group], costs: Mapping[str, Score], most: float) -> int:
    """How many groups of the ranking distort by no more than this together, at least one."""
    total = 0.0
    for count, group in enumerate(ranking):
        total += costs[group.name].mean_distortion_db
        if total > most:
            return max(count, 1)
    return len(ranking)


def settled(
    found: Search, point: Point, evaluate: Evaluate, limit: Limit, told: Callable[[Point], None] | None = None
) -> tuple[Point, ...]:
    """Put groups of a chosen set back, the dearest first, until another evaluation of it keeps its own limit too.

    Args:
        found: with the ranking.
        point: of it, to begin with.
        evaluate: scores a set of groups as it is going to fly.
        limit: what must hold there.
        told: called with each set that was evaluated.

    Returns:
        every set that was evaluated. The last one holds, or is the one group that could not be spared either.
    """
    kept = [g for g in found.ranking if g.name in point.groups]
    back, points = 0, []
    while True:
        kept = kept[: max(1, len(kept) - back)]
        chosen = frozenset(g.name for g in kept)
        score = evaluate(chosen)
        points.append(Point(chosen, _share(kept), score, tuple(limit.missed_by(score))))
        if told is not None:
            told(points[-1])
        if points[-1].holds or len(kept) == 1:
            return tuple(points)
        # Twice as many each time, so that the number of evaluations is bounded.
        back = max(1, 2 * back)


def _price(score: Score, group: Group) -> float:
    """Cost per share of the multiply-adds; one choice in a hundred that is another costs as much as a dB."""
    wrong = 1 - score.routing.agreement
    return (score.mean_distortion_db + 100 * wrong) / max(group.share, 1e-9)


def pareto(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other beats in both share and mean loss of PSNR, by share."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.share, p.score.mean_psnr_drop_db)):
        if not front or point.score.mean_psnr_drop_db < front[-1].score.mean_psnr_drop_db:
            front.append(point)
    return tuple(reversed(front))
