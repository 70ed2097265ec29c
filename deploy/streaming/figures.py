"""Figures of a running stream as they are shown to people: what is not known is a dash, text is escaped."""

from math import isfinite

from runtime.errors import plain
from runtime.stream.snapshot import Snapshot

DASH = "–"


def off_balance(snapshot: Snapshot) -> int:
    """Lines in less restored, dropped, incomplete and pending ones; when all has stopped nothing may be pending.

    Returns:
        0 where the books balance, more where lines are unaccounted for, less where too many are counted.
    """
    still_open = snapshot.lines.pending
    return still_open if snapshot.state == "stopped" else min(still_open, 0)


def troubles_of(snapshot: Snapshot) -> list[str]:
    """What a person should know first: stages that do not answer, then what the stream says itself."""
    silent = [f"stage {plain(name)} is silent" for name, stage in snapshot.stages.items() if not stage.ok]
    return silent + [plain(problem) for problem in snapshot.problems]


def imbalance_text(off: int) -> str:
    """What `off_balance` found, in words."""
    amount = f"{abs(off)} line{'s' if abs(off) != 1 else ''}"
    return f"{amount} unaccounted for" if off > 0 else f"{amount} more than came in"


def number_text(value: float | None, form: str) -> str:
    """A number formatted as `form` says."""
    return DASH if value is None or not isfinite(value) else format(value, form)


def count_text(value: float | None, between: str = " ") -> str:
    """A whole number with `between` between its thousands."""
    return number_text(value, ",.0f").replace(",", between)


def rate_text(value: float | None) -> str:
    """Lines in a second."""
    return number_text(value, ".0f" if value and value >= 100 else ".1f")


def seconds_text(value: float | None, decimals: int = 2) -> str:
    """Seconds, from 100 on without decimals."""
    return number_text(value, ".0f" if value and value >= 100 else f".{decimals}f") + " s"


def bytes_text(number: float | None) -> str:
    """Bytes with three figures and a unit."""
    if number is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
