"""What a variant of a network costs against the network itself: quality by task, and experts chosen otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Float32
from runtime.signature import Signature

from .dataset import Sample
from .measuring import bands_measured
from .quality import psnr, sam

Infer = Callable[[Mapping[str, Float32]], Mapping[str, Float32]]
CLOSE = 1e-3
"""Where the network's last chosen expert is ahead of the next by less than this, the choice is counted apart."""


@dataclass(frozen=True)
class Routing:
    """How often the same experts were chosen, over pairs of tile and layer.

    Attributes:
        pairs, same: pairs whose choice was clear in the network, and those of them with the same top-k set.
        close, close_same: pairs whose choice was not clear, likewise.
        layers: [pairs, same] of every layer, clear choices only.
    """

    pairs: int = 0
    same: int = 0
    close: int = 0
    close_same: int = 0
    layers: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        """There was something to choose: the network has experts."""
        return bool(self.pairs or self.close)

    @property
    def agreement(self) -> float:
        """Share of the clear choices that are the same, 0 to 1."""
        return self.same / self.pairs if self.pairs else 1.0

    def __add__(self, other: Routing) -> Routing:
        layers = (
            tuple((a + c, b + d) for (a, b), (c, d) in zip(self.layers, other.layers, strict=True))
            if self.layers and other.layers
            else self.layers or other.layers
        )
        return Routing(
            self.pairs + other.pairs, self.same + other.same, self.close + other.close,
            self.close_same + other.close_same, layers,
        )  # fmt: skip


def routing(chosen: Float32, expected: Float32, margins: Float32) -> Routing:
    """Compare experts' weights [..., layers, experts] with the network's, whose margins are [..., layers]."""
    if not margins.size:
        return Routing()
    same = ((chosen > 0) == (expected > 0)).all(axis=-1)
    clear = margins >= CLOSE
    tiles = (clear.reshape(-1, clear.shape[-1]), same.reshape(-1, same.shape[-1]))
    layers = tuple((int(c.sum()), int((c & s).sum())) for c, s in zip(tiles[0].T, tiles[1].T, strict=True))
    return Routing(int(clear.sum()), int((clear & same).sum()), int((~clear).sum()), int((~clear & same).sum()), layers)


@dataclass(frozen=True, eq=False)
class Case:
    """A sample, and what the network makes of it.

    Attributes:
        restored: float32 [bands, lines, samples].
        routing: float32 [layers, experts], empty without experts.
        margins: float32 [layers], see `routing`.
        bands: those that quality is taken over, or None.
        psnr, sam: of `restored` against the truth.
    """

    sample: Sample
    restored: Float32
    routing: Float32
    margins: Float32
    bands: NDArray[np.bool_] | None
    psnr: float
    sam: float


NO_ROUTING = np.zeros((0, 0), np.float32)
"""Of a network without experts."""


def routing_in(made: Mapping[str, Float32], signature: Signature) -> Float32:
    """The experts' weights among what an engine gave."""
    return NO_ROUTING if signature.routing is None else made[signature.routing.name]


def case_of(sample: Sample, made: Mapping[str, Float32], margins: Float32, signature: Signature) -> Case:
    """A case; `made` is what the network gave. The sample's truth must be known."""
    assert sample.truth is not None
    bands = bands_measured(sample.origin.task, sample.feeds[signature.measured.name][0], sample.truth)
    cube, chosen = made[signature.restored.name][0], routing_in(made, signature)
    return Case(sample, cube, chosen, margins, bands, psnr(cube, sample.truth, bands), sam(cube, sample.truth, bands))


@dataclass(frozen=True)
class TaskCost:
    """What a variant costs in a task, means over its samples.

    Attributes:
        psnr_drop_db: PSNR of the network less that of the variant, both against the truth.
        sam_rise_deg: spectral angle of the variant less that of the network.
        distortion_db: what the distance between the two adds to the network's own error, in dB, never negative: where
            the first may be small by chance, this is not.
    """

    psnr_drop_db: float
    sam_rise_deg: float
    distortion_db: float


class TaskLoss(Protocol):
    """What a variant costs in a task: dB of PSNR that it loses, degrees that it adds to the spectral angle."""

    @property
    def psnr_drop_db(self) -> float: ...
    @property
    def sam_rise_deg(self) -> float: ...


class Cost:
    """What a variant costs.

    Attributes:
        tasks: task -> cost.
        routing: experts chosen otherwise.
        max_difference: largest difference from the network, as a share of its range.
    """

    tasks: Mapping[str, TaskLoss]
    routing: Routing
    max_difference: float

    @property
    def mean_psnr_drop_db(self) -> float:
        """Mean over tasks."""
        return float(np.mean([t.psnr_drop_db for t in self.tasks.values()]))

    @property
    def worst_psnr_drop_db(self) -> float:
        """Of the task that loses most."""
        return max(t.psnr_drop_db for t in self.tasks.values())

    @property
    def mean_sam_rise_deg(self) -> float:
        """Mean over tasks."""
        return float(np.mean([t.sam_rise_deg for t in self.tasks.values()]))

    @property
    def worst_sam_rise_deg(self) -> float:
        """Of the task whose spectra are bent most."""
        return max(t.sam_rise_deg for t in self.tasks.values())


@dataclass(frozen=True)
class Score(Cost):
    """What a variant costs on judged frames."""

    tasks: Mapping[str, TaskCost]
    routing: Routing = field(default_factory=Routing)
    max_difference: float = 0.0

    @property
    def mean_distortion_db(self) -> float:
        """Mean over tasks."""
        return float(np.mean([t.distortion_db for t in self.tasks.values()]))


def score(infer: Infer, signature: Signature, cases: Iterable[Case]) -> Score:
    """Run a variant on the cases."""
    scores = []
    for case in cases:
        made = infer(case.sample.feeds)
        cube = made[signature.restored.name][0]
        chosen = routing(routing_in(made, signature), case.routing, case.margins)
        largest = float(np.abs(cube - case.restored).max()) / (float(np.ptp(case.restored)) or 1.0)
        scores.append(Score({case.sample.origin.task: task_cost(cube, case)}, chosen, largest))
    return joined(scores)


def joined(scores: Sequence[Score]) -> Score:
    """Of all their cases: means by task."""
    costs: dict[str, list[TaskCost]] = {}
    for task, cost in (item for one in scores for item in one.tasks.items()):
        costs.setdefault(task, []).append(cost)
    means = {task: mean_cost(of_task) for task, of_task in costs.items()}
    return Score(means, sum((one.routing for one in scores), Routing()), max(one.max_difference for one in scores))


def task_cost(cube: Float32, case: Case) -> TaskCost:
    """What the variant's cube [bands, lines, samples] costs in one case."""
    truth = case.sample.truth
    assert truth is not None
    mask = slice(None) if case.bands is None else case.bands
    apart = float(np.mean(np.square(cube[mask] - case.restored[mask], dtype=np.float64)))
    own = max(float(np.mean(np.square(case.restored[mask] - truth[mask], dtype=np.float64))), 1e-12)
    return TaskCost(
        case.psnr - psnr(cube, truth, case.bands),
        sam(cube, truth, case.bands) - case.sam,
        float(10 * np.log10(1 + apart / own)),
    )


def mean_cost(costs: list[TaskCost]) -> TaskCost:
    """The mean of every figure."""
    return TaskCost(*(float(np.mean([getattr(c, name) for c in costs])) for name in TaskCost.__dataclass_fields__))
