"""The accuracy gates: how the figures of a variant are held against their limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibration.figures import FIGURES, Figure
from runtime.parity import Parity

from ..config.sections import GatesSection


@dataclass(frozen=True)
class GateResult:
    """A gate: the figure that is held, what was measured, and its limit (None where the gate is off)."""

    figure: Figure
    measured: float
    limit: float | None

    @property
    def passed(self) -> bool | None:
        """None where the gate is off."""
        if self.limit is None:
            return None
        return self.measured >= self.limit if self.figure.direction == "at least" else self.measured <= self.limit

    @property
    def allowed(self) -> str:
        """The limit in words."""
        return "off" if self.limit is None else f"{self.figure.direction} {self.limit:g}"

    def as_json(self) -> dict[str, Any]:
        """For the manifest and `--json`."""
        return {"measured": self.measured, "limit": self.limit, "passed": self.passed}


def judge(
    figures: Mapping[str, float], gates: GatesSection, precision: str, parity: Parity = "elements"
) -> list[GateResult]:
    """Hold figures, of which some may be missing, against the limits of a precision, or of quality alone."""
    judged, row = [], precision if parity == "elements" else parity
    for figure in FIGURES:
        if figure.key in figures:
            asked = getattr(gates, figure.key)
            judged.append(GateResult(figure, figures[figure.key], figure.auto.get(row) if asked == "auto" else asked))
    return judged


def failed(gates: list[GateResult]) -> list[GateResult]:
    """Those that did not pass."""
    return [g for g in gates if g.passed is False]


def told(gate: GateResult) -> str:
    """A gate in a line: `psnr_drop_db 0.52 (at most 0.4)`."""
    return f"{gate.figure.key} {gate.measured:.4g} ({gate.allowed})"
