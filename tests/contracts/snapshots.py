"""A snapshot of a stream that no test needs to run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runtime.stream.books import Count
from runtime.stream.health import StageHealth
from runtime.stream.snapshot import QueueFigures, Snapshot, Spool

NOTHING = Snapshot(
    state="running", seconds=0.0, lines=Count(), frames={}, rates={}, latency_s={}, queues={}, slots={}, flags={},
    clipped=0, doubts=(), prompt={}, prompt_by="", experts=(), peak=None, frame_seconds={}, source={}, stages={},
    problems=(),
)  # fmt: skip
"""Of a stream of which nothing is known but that it runs."""
USUAL = replace(
    NOTHING,
    seconds=3725.0,
    lines=Count(3300, 3299, 512, 32, 2700, 17),
    frames={"restored": 8, "passed": 1, "dropped": 40, "failed": 0, "unfit": 0, "cut_off": 0},
    rates={"in": 330.4, "recorded": 330.4, "restored": 51.24},
    latency_s={"p50": 0.61, "p95": 0.82, "p99": 1.24},
    queues={"record": QueueFigures(3, 64, "block", 0), "restore": QueueFigures(1, 2, "drop-oldest", 40)},
    prompt={"spectral_flatness": 0.0412},
    experts=(0.42, 0.08, 0.31, 0.19),
    source={"temperature_c": 41.52, "reconnects": 1},
    describe={"source": "envi:line_0007.hdr", "bundle": "small", "engine": "CPU", "precision": "fp16"},
    spool=Spool(3_200_000_000, 20_000_000_000, 3299, 0, 0, 0),
)


def stages(**ages: float) -> dict[str, StageHealth]:
    """Stages by how long ago they beat; after ten seconds one is silent."""
    return {name: StageHealth(age, 10.0, age <= 10, True) for name, age in ages.items()}


class Told(Snapshot):
    """A snapshot that is these figures as JSON, whatever they are."""

    def __init__(self, figures: Any) -> None:
        object.__setattr__(self, "figures", figures)

    def as_json(self) -> Any:
        return self.figures  # type: ignore[attr-defined]
