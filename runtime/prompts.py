"""What a network takes beside the frame: metrics by NumPy or a bundle's graph, constants, or what somebody gives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Float32
from .engines.onnxruntime_session import BoundSession
from .errors import CubeError, InputError
from .metrics import LOGARITHMS, METRIC_SETS, finite_metrics, prompt_metrics
from .signature import Signature
from .tiles import Tiling

MetricsBy = Literal["host", "graph", "given", "none"]
Given = ArrayLike | Mapping[str, ArrayLike]
TOLERANCES: Mapping[str, float] = {
    "high_frequency_ratio": 2e-5, "spectral_flatness": 0.2, "curvature_mean": 2e-5, "curvature_std": 2e-5,
    "gradient_mean": 2e-5, "gradient_std": 2e-5, "adjacent_correlation_mean": 2e-5,
    "high_frequency_ratio_log": 2e-5, "spectral_flatness_log": 0.1, "curvature_mean_log": 2e-5,
    "curvature_std_log": 2e-5, "gradient_std_log": 2e-5, "adjacent_decorrelation_log": 1e-4,
}  # fmt: skip
"""Metric that a graph can compute -> its largest `differences` from NumPy, at 256x256 under the training's damages.

Flatness is a mean of logarithms; after a blur most of them are of rounding alone, which NumPy's float32 transform has
more of (4 % off float64) than the graph (1 %). Decorrelation is 1 - r, of which NumPy's float32 products leave fewer
digits (3e-5 off float64) than differences of unit spectra do (2e-7).
"""
LEAST = 5e-3
"""Smaller metrics are compared as if they were so large: of nothing, nothing is a share."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What a network is told of one purpose.

    Attributes:
        constants: {prompt: array} of its constant prompts.
        tasks: it is measured by with them; empty where that is not known.
        about: plain values, for people and the manifest.
    """

    constants: Mapping[str, Float32]
    tasks: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


def tasks_of(conditions: Mapping[str, Condition]) -> tuple[str, ...]:
    """What a network is measured by with its conditions; nothing where that is not known."""
    return tuple(dict.fromkeys(task for condition in conditions.values() for task in condition.tasks))


class Extractor(Protocol):
    """Computes the embedding of a frame."""

    def compute(self, *inputs: Float32) -> tuple[Float32, ...]:
        """(embedding [1, E]) of a frame [1, bands, lines, samples] and its share [1, 1, lines, samples] of the picture.

        What follows the mean over pixels is affine. Raises MachineError.
        """

    def close(self) -> None:
        """Give it back."""


class Prompts:
    """Makes what a network takes beside the frame: `prompts(part) -> {name: array}`. Not for two threads at once.

    Metrics are of a whole cube, so NumPy's are those of any size. A graph computes the same for a part that is exactly
    its frame, and only that. Constants are what they are; of several conditions one is chosen. An embedding is a mean
    over the picture, so that of a larger part is the mean of those of its frames.
    """

    def __init__(
        self,
        signature: Signature,
        constants: Mapping[str, Float32] | None = None,
        graph: BoundSession | None = None,
        conditions: Mapping[str, Condition] | None = None,
        chosen: str | None = None,
        extractor: Extractor | None = None,
    ) -> None:
        """Keep what prompts are made of.

        Args:
            signature: of the network.
            constants: {name: array} of its constant prompts.
            graph: frame -> metrics, which is this object's from now on.
            conditions: the same as `constants` by name, for several purposes, in place of it.
            chosen: one of them; without it the only one, or none.
            extractor: what computes the embedding, where the network takes one; this object's from now on.
        """
        self.signature, self._graph, self._extractor = signature, graph, extractor
        self.conditions = conditions or {}
        self.chosen = chosen or (next(iter(self.conditions)) if len(self.conditions) == 1 else None)
        told = self.conditions[self.chosen].constants if self.chosen else constants or {}
        self._unsaid = bool(self.conditions) and self.chosen is None
        self.constants = {} if self._unsaid else {p.name: told[p.name] for p in signature.constants}
        self.names = signature.metric_names

    def of(self, name: str) -> Prompts:
        """The same for another condition. Raises InputError where there is no such."""
        if name not in self.conditions:
            told = f"choose from {', '.join(self.conditions)}" if self.conditions else "leave it out"
            raise InputError("there is no such prompt", key="prompt", value=name, remedy=told)
        return Prompts(self.signature, None, self._graph, self.conditions, name, self._extractor)

    def for_task(self, task: str) -> Prompts:
        """The same for the first condition that is measured by a task, else by nobody knows what, else itself."""
        fit = [name for name, one in self.conditions.items() if task in one.tasks]
        fit += [name for name, one in self.conditions.items() if not one.tasks]
        return self.of(fit[0]) if fit else self

    def check_chosen(self) -> None:
        """Refuse to guess. Raises InputError where there are several conditions and none was chosen."""
        if self._unsaid:
            remedy = f"say which: {', '.join(self.conditions)}"
            raise InputError("there are prompts for several purposes", key="prompt", remedy=remedy)

    @property
    def identity(self) -> str:
        """The chosen condition, and what tells its constants from others of its name; empty where none is chosen."""
        if self.chosen is None:
            return ""
        digest = hashlib.sha256(b"".join(self.constants[name].tobytes() for name in sorted(self.constants)))
        return f"prompt {self.chosen} {digest.hexdigest()[:12]}"

    def by(self, shape: tuple[int, ...]) -> MetricsBy:
        """What computes the metrics of a part of this shape."""
        if self.signature.metrics is None:
            return "none"
        name = self.signature.measured.name
        return "graph" if self._graph is not None and self._graph.ports.inputs[name] == (1, *shape) else "host"

    def __call__(self, part: Float32) -> dict[str, Float32]:
        """Prompts of a float32 part [bands, lines, samples], each of the shape that the network takes.

        Raises:
            CubeError: as `prompt_metrics`; the graph's float32 sums overflow a little earlier.
            InputError: of several conditions none was chosen.
            MachineError: the graph failed.
        """
        self.check_chosen()
        made = dict(self.constants)
        if (metrics := self.signature.metrics) is not None:
            made[metrics.name] = self.metrics(part)[None]
        if (embedding := self.signature.embedding) is not None:
            made[embedding.name] = self.embedding(part)
        return made

    def embedding(self, part: Float32) -> Float32:
        """The embedding [1, E] of a part [bands, lines, samples] of any size. Raises MachineError."""
        told, measured = self.signature.embedding, self.signature.measured
        assert told is not None and self._extractor is not None, "the network takes one, and something computes it"
        tiling, total, area = Tiling((part.shape[1], part.shape[2]), measured.size, 0), np.zeros(told.shape), 0.0
        for tile, share in zip(tiling.tiles(), tiling.shares(), strict=True):
            # What a frame shares with another counts once, and what it is padded with does not.
            own = np.zeros((1, 1, *measured.size), np.float32)
            own[0, 0, : tile.lines, : tile.samples] = share
            total += share.sum() * self._extractor.compute(tiling.cut(part, tile), own)[0]
            area += float(share.sum())
        return np.asarray(total / area, np.float32)

    def metrics(self, part: Float32) -> Float32:
        """The metrics [M] of a part; empty where the network takes none."""
        asked = self.signature.metrics
        if asked is None:
            return np.zeros(0, np.float32)
        if self._graph is None or self.by(part.shape) == "host":
            return prompt_metrics(part, asked.of)
        (metrics,) = self._graph.compute(part[None])
        return finite_metrics(metrics[0], self.names, part)

    def on_host(self) -> Prompts:
        """The same without a graph: metrics by NumPy."""
        return self.by_graph(None)

    def by_graph(self, graph: BoundSession | None) -> Prompts:
        """The same with a graph for the metrics, which is the new object's."""
        return Prompts(self.signature, self.constants, graph, self.conditions, self.chosen, self._extractor)

    @property
    def told(self) -> str:
        """What computes metrics, for people."""
        if self.signature.metrics is None:
            return "none"
        if self._graph is None:
            return "NumPy on the host"
        told = self._graph.describe()
        lines, samples = self.signature.measured.size
        return f"a graph in {told['engine']}, {told['device']}; of other sizes than {lines}x{samples} NumPy on the host"

    def close(self) -> None:
        """Give back the graphs."""
        for graph in (self._graph, self._extractor):
            if graph is not None:
                graph.close()


def given_prompts(prompts: Given, signature: Signature, groups: int) -> list[dict[str, Float32]]:
    """Prompts that were given in place of those that would be made, for each band group.

    Args:
        prompts: {name: array}; or, where the network takes metrics, these alone. An array has the shape of the prompt,
            that shape without its first axis, or one such for each band group.
        signature: of the network.
        groups: band groups.

    Raises:
        CubeError: a name that the network does not know, a shape that does not fit, or values that are not finite.
    """
    if not isinstance(prompts, Mapping):
        if signature.metrics is None:
            raise CubeError("the network takes no metrics", key="prompts", remedy="leave them out")
        prompts = {signature.metrics.name: prompts}
    shapes = {p.name: p.shape for p in signature.prompts}
    for name in prompts:
        if name not in shapes:
            known = ", ".join(shapes) or "none"
            raise CubeError("the network takes no such prompt", key="prompts", value=name, remedy=f"it takes {known}")
    rows = {name: _rows(name, array, shapes[name], groups) for name, array in prompts.items()}
    return [{name: row[index] for name, row in rows.items()} for index in range(groups)]


def _rows(name: str, given: ArrayLike, shape: tuple[int, ...], groups: int) -> Float32:
    """[groups, *shape]."""
    inner = shape[1:] if shape[0] == 1 else shape
    try:
        values = np.asarray(given)
    except ValueError as error:
        raise CubeError(f"the {name} are not an array of numbers", key=name, remedy=f"{list(inner)}") from error
    fits = values.shape in (inner, shape, (1, *inner), (groups, *inner))
    if not fits or values.dtype.kind not in "fiu":
        expected = f"{list(inner)} or {list(shape)}" + (f" or {[groups, *inner]}" if groups > 1 else "")
        raise CubeError(f"the {name} do not fit the network", key=name, value=values.shape, remedy=expected)
    with np.errstate(over="ignore"):
        each = np.broadcast_to(values.reshape(-1, *inner), (groups, *inner)).astype(np.float32)
    if not np.isfinite(each).all():
        raise CubeError(f"the {name} are not finite", key=name, remedy=f"give finite {name}")
    return np.ascontiguousarray(each.reshape(groups, *shape))


def differences(found: Float32, expected: Float32, metric_set: str) -> dict[str, float]:
    """{metric: how far it is off}, both [M]: of logarithms absolute, of others as a share of what is expected."""
    names = METRIC_SETS[metric_set]
    sizes = [1.0 if name in LOGARITHMS else max(LEAST, abs(float(e))) for name, e in zip(names, expected, strict=True)]
    apart = np.abs(found.astype(np.float64) - expected) / sizes
    return dict(zip(names, apart.tolist(), strict=True))


def beyond(apart: Mapping[str, float]) -> dict[str, float]:
    """Of such differences those that are not within `TOLERANCES`, the worst first."""
    shares = {name: value / TOLERANCES[name] for name, value in apart.items()}
    return {name: apart[name] for name in sorted(shares, key=lambda n: -shares[n]) if not shares[name] <= 1}
