"""What can be watched of a stream at one moment; what others get of it as JSON is made here alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .books import Count
from .health import StageHealth
from .queues import Policy
from .selftest import TestFigures


@dataclass(frozen=True)
class QueueFigures:
    """What waits in a queue, what fits, what it does when it is full, and what it had no room for since the start."""

    level: int
    capacity: int
    policy: Policy
    dropped: int


@dataclass(frozen=True)
class Spool:
    """The record on disk; `limit` is None where it may have any size. What was deleted counts from the start on."""

    bytes: int
    limit: int | None
    lines: int
    deleted_segments: int
    deleted_lines: int
    bad_segments: int


@dataclass(frozen=True)
class RestorationFigures:
    """Whether lines are restored (`on`, or `off`: recorded only), how many may be wrong, and what self-tests found.

    At the end also how many lines were `untested`: the last round of self-tests had no time.
    """

    state: str = "on"
    suspect_lines: int = 0
    tests: TestFigures = field(default_factory=TestFigures)
    untested: int = 0


@dataclass(frozen=True)
class Snapshot:
    """See docs/stream-messages.md, "The snapshot"; a mapping lacks what is not known (yet)."""

    state: str
    seconds: float
    lines: Count
    frames: Mapping[str, int]
    rates: Mapping[str, float]
    latency_s: Mapping[str, float]
    queues: Mapping[str, QueueFigures]
    slots: Mapping[str, int]
    flags: Mapping[str, int]
    clipped: int
    doubts: Sequence[str]
    prompt: Mapping[str, float]
    prompt_by: str
    experts: Sequence[float]
    peak: float | None
    frame_seconds: Mapping[str, float]
    source: Mapping[str, float]
    stages: Mapping[str, StageHealth]
    problems: Sequence[str]
    restoration: RestorationFigures = field(default_factory=RestorationFigures)
    describe: Mapping[str, str] = field(default_factory=dict)
    spool: Spool | None = None

    def as_json(self) -> dict[str, Any]:
        """As the log, the page and other programs get it."""
        stages = {
            name: {"age_s": round(stage.seconds, 3), "ok": stage.ok, "vital": stage.vital}
            for name, stage in self.stages.items()
        }
        spool = {} if self.spool is None else asdict(self.spool)
        return {**asdict(self), "lines": self.lines.told(), "stages": stages, "spool": spool}
