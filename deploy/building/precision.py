"""Which precision a build gets: the fastest that passes its gates, with everything that was measured on the way."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from calibration.figures import columns
from runtime.errors import GateError
from runtime.precisions import CLEARLY, PRECISIONS, VARIANTS

from .. import console
from ..checking.gates import failed, told
from .candidates import Candidate


@dataclass(frozen=True)
class Decision:
    """What runs.

    Attributes:
        precision, engine: chosen.
        why: in a sentence; empty where nothing was to be decided.
        candidates: the precisions that were judged.
        milliseconds: engine -> time of a frame in the chosen precision, where that was measured.
        rivals: precisions that pass too, and that the target times against the chosen one.
    """

    precision: str
    engine: str
    why: str
    candidates: tuple[Candidate, ...]
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()


def decide_by_speed(
    candidates: tuple[Candidate, ...],
    times: Mapping[tuple[str, str], float],
    left_out: Sequence[str],
    allowed: Collection[str] = VARIANTS,
) -> Decision:
    """The fastest of those that pass and that the target runs, where a lower precision is clearly faster."""
    measured = tuple(
        Candidate(c.precision, c.score, c.gates, {e: t for (p, e), t in times.items() if p == c.precision})
        for c in candidates
    )
    passing = [c for c in measured if c.passed and c.milliseconds and c.precision in allowed]
    reasons = [*left_out, *(_failed_why(c) for c in measured if not c.passed)]
    if not passing:
        raise _nothing_passes(measured, left_out, allowed)
    # From the highest precision down: each lower one has to earn its place.
    passing.sort(key=lambda c: -PRECISIONS[c.precision].bits)
    best = passing[0]
    for candidate in passing[1:]:
        faster = min(candidate.milliseconds.values()) <= CLEARLY * min(best.milliseconds.values())
        ratio = min(best.milliseconds.values()) / min(candidate.milliseconds.values())
        said = f"{candidate.precision} passes its gates and runs at {ratio:.2f} times the speed of {best.precision}"
        reasons.append(said if faster else f"{said}, which is not faster: {best.precision} is kept")
        best = candidate if faster else best
    engine = min(best.milliseconds, key=lambda name: best.milliseconds[name])
    return Decision(best.precision, engine, _why(reasons, best), measured, best.milliseconds)


def decide_unmeasured(
    candidates: tuple[Candidate, ...],
    engine: str,
    left_out: Sequence[str],
    *,
    made_there: bool,
    allowed: Collection[str] = VARIANTS,
) -> Decision:
    """For a target whose engine does not run here: FP16 where it passes, since int8 is often slower on a device."""
    passing = {c.precision: c for c in candidates if c.passed and c.precision in allowed}
    reasons = [*left_out, *(_failed_why(c) for c in candidates if not c.passed)]
    best = next((passing[p] for p in ("fp16", "fp32") if p in passing), None)
    if best is None:
        raise _nothing_passes(candidates, left_out, allowed)
    rivals = tuple(name for name in passing if name == "int8" and made_there)
    if "int8" in passing:
        then = (
            "`deploy finalize` builds both on the target and keeps the faster"
            if rivals
            else "build it with --precision int8 and compare the two with `deploy bench` on the target"
        )
        reasons.append(f"int8 passes its gates too, but is chosen only where its speed is measured: {then}")
    return Decision(best.precision, engine, _why(reasons, best), candidates, rivals=rivals)


def require_passed(candidates: tuple[Candidate, ...], precision: str) -> None:
    """Raise GateError with the figures where a precision that was asked for fails."""
    asked = next(c for c in candidates if c.precision == precision)
    missed = failed(asked.gates)
    if missed:
        error = GateError(
            f"{precision} was asked for and does not restore as PyTorch does: {'; '.join(told(g) for g in missed)}",
            key=f"gates.{missed[0].figure.key}",
            value=float(f"{missed[0].measured:.6g}"),
            remedy="nothing was written; lower calibration.max_drop, give more cubes, or build with --precision auto",
        )
        error.result = {"candidates": {c.precision: c.as_json() for c in candidates}}
        raise error


def show(decision: Decision) -> None:
    """The table for people."""
    told_of = decision.candidates
    cells = {
        "precision": [c.precision for c in told_of],
        **columns(c.score for c in told_of),
        "ms": [f"{min(c.milliseconds.values()):.1f}" if c.milliseconds else "not here" for c in told_of],
        "gates": ["passed" if c.passed else "FAILED" for c in told_of],
    }
    rows = list(zip(*cells.values(), strict=True))
    console.table("precisions, against PyTorch on the judged frames only", tuple(cells), rows)


def _failed_why(candidate: Candidate) -> str:
    return f"{candidate.precision} fails {', '.join(told(g) for g in failed(candidate.gates))}"


def _why(reasons: list[str], best: Candidate) -> str:
    return f"auto: {'; '.join(reasons) or f'{best.precision} passes its gates and nothing else was to be chosen'}"


def _nothing_passes(candidates: tuple[Candidate, ...], left_out: Sequence[str], allowed: Collection[str]) -> GateError:
    idle = [f"{c.precision} passes, but is none of the target's" for c in candidates if c.passed]
    told_of = [*left_out, *(_failed_why(c) for c in candidates if not c.passed and c.precision in allowed), *idle]
    error = GateError(
        f"no precision of the target passes its gates: {'; '.join(told_of)}",
        key="gates",
        remedy="nothing was written; look at the figures with --json",
    )
    error.result = {"candidates": {c.precision: c.as_json() for c in candidates}}
    return error
