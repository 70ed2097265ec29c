"""Two ways of doing one thing, timed side by side: interleaved in one run, so that a busy machine slows both."""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

Work = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Paired timings of a baseline and a candidate.

    Attributes:
        name: what was timed.
        baseline: seconds of each run of the baseline.
        candidate: seconds of the run that followed it.
        bar: how many times faster the candidate has to be; None if nothing is asked.
    """

    name: str
    baseline: tuple[float, ...]
    candidate: tuple[float, ...]
    bar: float | None = None

    @property
    def ratio(self) -> float:
        """Median of the paired ratios: how many times faster the candidate is."""
        return statistics.median(b / c for b, c in zip(self.baseline, self.candidate, strict=True))

    @property
    def passed(self) -> bool:
        """Whether the ratio reaches the bar."""
        return self.bar is None or self.ratio >= self.bar


def compare(
    name: str, baseline: Work, candidate: Work, *, runs: int = 15, warm_up: int = 2, bar: float | None = None
) -> Comparison:
    """Time both, one after the other, `runs` times; which of them goes first alternates."""
    for _ in range(warm_up):
        baseline()
        candidate()
    pairs = []
    for run in range(runs):
        if run % 2:
            after = seconds(candidate)
            pairs.append((seconds(baseline), after))
        else:
            pairs.append((seconds(baseline), seconds(candidate)))
    return Comparison(name, tuple(b for b, _ in pairs), tuple(c for _, c in pairs), bar)


def seconds(work: Work) -> float:
    """Wall time of one run."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def extra_memory(work: Work) -> int:
    """Most bytes that NumPy and Python hold beyond what they held before, during one run."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def table(title: str, comparisons: Iterable[Comparison], baseline: str, candidate: str) -> Table:
    """Medians in milliseconds, ratios and bars."""
    made = Table(title=title)
    made.add_column("what")
    for heading in (f"{baseline}, ms", f"{candidate}, ms", "times faster", "bar", ""):
        made.add_column(heading, justify="right")
    for c in comparisons:
        made.add_row(
            c.name,
            f"{1e3 * statistics.median(c.baseline):.1f}",
            f"{1e3 * statistics.median(c.candidate):.1f}",
            f"{c.ratio:.2f}",
            "" if c.bar is None else f"{c.bar:g}",
            "" if c.bar is None else ("reached" if c.passed else "missed"),
        )
    return made


def show(*tables: Table | str) -> None:
    """Print tables and lines."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for item in tables:
        console.print(item)
