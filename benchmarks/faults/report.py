"""What a campaign found, one row for each kind of fault."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import track
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """What became of one kind of fault.

    Attributes:
        fault: what was done.
        tried: how often.
        found: by what, and how often.
        after: how long it took.
        effect: on the image, the largest.
        missed: a sentence for each bar that is not reached.
    """

    fault: str
    tried: int
    found: str
    after: str
    effect: str
    missed: list[str] = field(default_factory=list)


def counted(found: Counter[str]) -> str:
    """How often each was found, most often first."""
    return ", ".join(f"{name} {count}" for name, count in found.most_common()) or "-"


def spread(seconds: Sequence[float]) -> str:
    """Median and worst."""
    if not seconds:
        return "-"
    unit, name = (1.0, "s") if max(seconds) >= 2 else (1e3, "ms")
    return f"{unit * statistics.median(seconds):.3g} {name}, {unit * max(seconds):.3g} {name}"


def steps(count: int, what: str) -> Iterable[int]:
    """Numbers up to a count, with a bar for people that goes away."""
    console = Console(stderr=True)
    return track(range(count), what, console=console, transient=True, disable=not console.is_terminal)


def table(rows: Iterable[Row]) -> Table:
    """All of it, for people."""
    made = Table(title="faults")
    for heading in ("fault", "tried", "found by what", "after how long (median, worst)", "effect on the image"):
        made.add_column(heading, justify="right" if heading == "tried" else "left")
    for row in rows:
        made.add_row(row.fault, str(row.tried), row.found, row.after, row.effect)
    return made
