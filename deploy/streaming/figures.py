"""Figures of a running stream as they are shown to people: a missing or odd one is a dash, text is escaped.

A snapshot is what `deploy stream` gives; nothing in it is taken for granted.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import Any

from runtime.errors import plain

DASH = "–"


def off_balance(snapshot: Mapping[str, Any]) -> int | None:
    """Lines in less restored, dropped, incomplete and pending ones; when all has stopped nothing may be pending.

    Returns:
        0 where the books balance, more where lines are unaccounted for, less where too many are counted; None where
        a figure is missing.
    """
    lines = part_of(snapshot, "lines")
    figures = [as_number(lines.get(name)) for name in ("in", "restored", "dropped", "incomplete", "pending")]
    known = [int(figure) for figure in figures if figure is not None]
    if len(known) < len(figures):
        return None
    total, *settled, pending = known
    still_open = total - sum(settled)
    underway = 0 if snapshot.get("state") == "stopped" else max(pending, 0)
    return still_open if still_open < 0 else still_open - underway


def troubles_of(snapshot: Mapping[str, Any]) -> list[str]:
    """What a person should know first: stages that do not answer, then what the stream says itself."""
    stages = part_of(snapshot, "stages").items()
    silent = [f"stage {plain(name)} is silent" for name, stage in stages if as_mapping(stage).get("ok") is False]
    given = snapshot.get("problems")
    return silent + [plain(problem) for problem in (given if isinstance(given, (list, tuple)) else ())]


def imbalance_text(off: int) -> str:
    """What `off_balance` found, in words."""
    amount = f"{abs(off)} line{'s' if abs(off) != 1 else ''}"
    return f"{amount} unaccounted for" if off > 0 else f"{amount} more than came in"


def as_mapping(value: object) -> Mapping[str, Any]:
    """`value` where it is a mapping, an empty one otherwise."""
    return value if isinstance(value, Mapping) else {}


def part_of(snapshot: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of the snapshot, empty where there is none."""
    return as_mapping(snapshot.get(key))


def as_number(value: object) -> float | None:
    """`value` where it is a finite number, None otherwise."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    return float(value) if isfinite(value) else None


def share_of(level: object, capacity: object) -> float | None:
    """Level by capacity; None where it is not known."""
    part, whole = as_number(level), as_number(capacity)
    return part / whole if part is not None and whole else None


def word_text(value: object) -> str:
    """A name or a path, on one line and without commands to the terminal."""
    return plain(value) if value not in (None, "") else DASH


def count_text(value: object, between: str = " ") -> str:
    """A whole number with `between` between its thousands."""
    number = as_number(value)
    return DASH if number is None else f"{round(number):,}".replace(",", between)


def rate_text(value: object) -> str:
    """Lines in a second."""
    number = as_number(value)
    return DASH if number is None else f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def seconds_text(value: object, decimals: int = 2) -> str:
    """Seconds, from 100 on without decimals."""
    number = as_number(value)
    return f"{DASH} s" if number is None else f"{number:.{decimals if number < 100 else 0}f} s"


def bytes_text(value: object) -> str:
    """Bytes with three figures and a unit."""
    number = as_number(value)
    if number is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
