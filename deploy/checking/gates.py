"""The accuracy gates: what a variant may cost against PyTorch, by precision, and how it is held against that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config.sections import GatesSection

DIRECTIONS: dict[str, str] = {
    "max_difference": "at most",
    "psnr_drop_db": "at most",
    "mean_psnr_drop_db": "at most",
    "sam_rise_deg": "at most",
    "mean_sam_rise_deg": "at most",
    "routing_agreement": "at least",
}
"""Gate -> which way its limit goes."""
CLEARLY = 0.97
"""A lower precision must take at most this share of the time: for less nobody should pay with accuracy."""


def _limits(difference: float | None, drop: float, mean: float, rise: float, mean_rise: float, same: float) -> Any:
    return dict(zip(DIRECTIONS, (difference, drop, mean, rise, mean_rise, same), strict=True))


AUTO: dict[str, dict[str, float | None]] = {
    "fp32": _limits(1e-3, 0.01, 0.01, 0.005, 0.005, 1.0),
    "fp16": _limits(2e-2, 0.05, 0.01, 0.02, 0.005, 1.0),
    "bf16": _limits(5e-2, 0.1, 0.1, 0.05, 0.05, 1.0),
    "int8": _limits(None, 0.4, 0.15, 5.0, 1.0, 0.995),
}
"""Precision -> limits where the configuration says `auto`. One value in int8 may be far off where none is in FP16: what
counts there is the quality of the whole."""


@dataclass(frozen=True)
class GateResult:
    """A gate: the figure that is held, and its limit (None where the gate is off)."""

    key: str
    measured: float
    limit: float | None
    passed: bool | None


def judge(figures: Mapping[str, float], gates: GatesSection, precision: str) -> list[GateResult]:
    """Hold figures, of which some may be missing, against the limits of a precision."""
    judged = []
    for key, direction in DIRECTIONS.items():
        if key not in figures:
            continue
        asked = getattr(gates, key)
        limit = AUTO[precision][key] if asked == "auto" else asked
        passed = None if limit is None else figures[key] >= limit if direction == "at least" else figures[key] <= limit
        judged.append(GateResult(key, figures[key], limit, passed))
    return judged


def failed(gates: list[GateResult]) -> list[GateResult]:
    """Those that did not pass."""
    return [g for g in gates if g.passed is False]


def told(gate: GateResult) -> str:
    """A gate in a line: `loses 0.52 dB in the worst task, at most 0.4 is allowed`."""
    limit = "no limit" if gate.limit is None else f"{DIRECTIONS[gate.key]} {gate.limit:g}"
    return f"{gate.key} {gate.measured:.4g} ({limit})"
