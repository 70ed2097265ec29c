"""The prompt metrics are the same numbers on every processor, and with every NumPy, that may fly.

`python -m tests.flight.test_metrics` writes what they are held against; AMD EPYC (AVX-512), NumPy 2.4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.metrics import METRIC_SETS, prompt_metrics
from tests.flight.cubes import measured_cubes

GOLDEN = Path(__file__).with_name("metrics.json")
SOME = 4
ULPS: Mapping[str, int] = {
    # A deviation of correlations near 1, and their distance from 1: of their digits some are gone.
    "adjacent_correlation_std": 1024, "correlation_std": 16, "adjacent_decorrelation_log": 512,
    # A mean of logarithms, some of which are of sums that cancel.
    "spectral_flatness": 64, "spectral_flatness_log": 64,
}  # fmt: skip
"""Units in the last place by which a metric may be off, `SOME` for the others.

Sums go in one order everywhere; what differs are fused multiply-adds, OpenBLAS's kernels, and logarithms and arc
tangents of NumPy's own. Seen: nothing between NumPy 2.2 and 2.4 on Python 3.10 to 3.13; 1 without AVX-512; without AVX2
and FMA 75, 2 and 31 of the first three, 1 of others.
"""


def metrics_of(cube: NDArray[np.float32]) -> dict[str, float]:
    """Every metric of every set."""
    return {
        name: float(value)
        for metric_set, names in METRIC_SETS.items()
        for name, value in zip(names, prompt_metrics(cube, metric_set), strict=True)
    }


@pytest.mark.parametrize("kind", sorted(measured_cubes()))
def test_metrics_are_those_of_every_other_computer(kind: str, record_property: Callable[[str, object], None]) -> None:
    golden, found = json.loads(GOLDEN.read_text())[kind], metrics_of(measured_cubes()[kind])
    assert golden.keys() == found.keys()
    off = {name: abs(found[name] - golden[name]) / float(np.spacing(np.float32(abs(golden[name])))) for name in golden}
    assert {name: ulps for name, ulps in off.items() if not ulps <= ULPS.get(name, SOME)} == {}
    others = ", ".join(f"{name} {ulps:.0f}" for name, ulps in off.items() if ulps)
    record_property(
        "metrics", f"{sum(not ulps for ulps in off.values())} of {len(off)} to the bit; ulps: {others or 0}"
    )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({kind: metrics_of(cube) for kind, cube in measured_cubes().items()}, indent=1) + "\n")
