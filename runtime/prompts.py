"""What makes the prompt metrics of a part of a cube: NumPy on the host, or a bundle's graph in the engine's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from .engines.onnxruntime_session import BoundSession
from .metrics import LOGARITHMS, METRIC_SETS, Float32, finite_metrics, prompt_metrics

MetricsBy = Literal["host", "graph", "given"]
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


class Prompts:
    """Makes metrics: `prompts(part [bands, lines, samples]) -> float32 [M]`. Not for two threads at once.

    Metrics are of a whole cube, so NumPy's are those of any size. A graph computes the same for a part that is exactly
    its frame, and only that.
    """

    def __init__(self, metric_set: str, graph: BoundSession | None = None) -> None:
        """Args: name of the metrics; `frame` -> `metrics`, which is this object's from now on."""
        self.metric_set, self._graph = metric_set, graph
        self.names = METRIC_SETS[metric_set]

    def by(self, shape: tuple[int, ...]) -> MetricsBy:
        """What computes the metrics of a part of this shape."""
        return "graph" if self._graph is not None and self._graph.ports.inputs["frame"] == (1, *shape) else "host"

    def __call__(self, part: Float32) -> Float32:
        """Metrics of a float32 part.

        Raises:
            CubeError: as `prompt_metrics`; the graph's float32 sums overflow a little earlier.
            MachineError: the graph failed.
        """
        if self._graph is None or self.by(part.shape) == "host":
            return prompt_metrics(part, self.metric_set)
        (metrics,) = self._graph.compute(part[None])
        return finite_metrics(metrics[0], self.names, part)

    @property
    def told(self) -> str:
        """What computes metrics, for people."""
        if self._graph is None:
            return "NumPy on the host"
        told = self._graph.describe()
        _, _, lines, samples = self._graph.ports.inputs["frame"]
        return f"a graph in {told['engine']}, {told['device']}; of other sizes than {lines}x{samples} NumPy on the host"

    def close(self) -> None:
        """Give back the graph."""
        if self._graph is not None:
            self._graph.close()


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
