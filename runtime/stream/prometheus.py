"""The counts of a stream as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .snapshot import Snapshot

if TYPE_CHECKING:
    from prometheus_client.core import Metric

QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
LATENCY = "From the taking of a frame's last line to its restoration."
BEAT = "Since a stage last gave a sign of life."
TEMPERATURES = {
    "temperature_c": ("damp_source_temperature_celsius", "Temperature that the source reports."),
    "board_temperature_c": ("damp_board_temperature_celsius", "Temperature of the computer's hottest sensor."),
}
DELETED = "Parts of the record that were deleted to make room."
BAD = "Parts of the record that were read back and found wrong."
FAILED = "Parts of the stream that have failed, though their stages answer."


def exposition(snapshot: Snapshot) -> tuple[str, bytes]:
    """Content type and text of a snapshot's metrics. Raises ImportError: prometheus-client is not installed."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(_Collector(snapshot))
    encode, kind = choose_encoder("")
    return kind, encode(registry)


class _Collector:
    """Turns a snapshot into metrics; what the snapshot lacks is not there."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counters, gauges = partial(_labelled, CounterMetricFamily), partial(_labelled, GaugeMetricFamily)
        counter, gauge = partial(_single, CounterMetricFamily), partial(_single, GaugeMetricFamily)
        now = self._snapshot
        queues, stages, spool = now.queues.items(), now.stages.items(), now.spool

        yield from counters("damp_lines", "Lines by what became of them.", "fate", now.lines.as_json())
        yield from gauge("damp_lines_pending", "Lines that are still on their way.", now.lines.pending)
        yield from counters("damp_flagged_lines", "Lines by what was wrong with them.", "flag", now.flags)
        yield from counters("damp_frames", "Frames by what became of them.", "fate", now.frames)
        yield from counter("damp_clipped_values", "Values that the output's type cannot hold.", now.clipped)
        yield from gauges("damp_lines_per_second", "Lines per second.", "at", now.rates)
        quantiles = {QUANTILES[key]: value for key, value in now.latency_s.items()}
        yield from gauges("damp_latency_seconds", LATENCY, "quantile", quantiles)
        levels = {name: queue.level for name, queue in queues}
        yield from gauges("damp_queue_level", "What waits in a queue.", "queue", levels)
        capacities = {name: queue.capacity for name, queue in queues}
        yield from gauges("damp_queue_capacity", "What fits into a queue.", "queue", capacities)
        dropped = {name: queue.dropped for name, queue in queues}
        yield from counters("damp_queue_dropped", "What a queue had no room for.", "queue", dropped)
        yield from gauges("damp_prompt_metric", "Prompt metrics of the last frame.", "metric", now.prompt)
        shares = dict(enumerate(now.experts))
        yield from gauges("damp_expert_share", "Share in which each expert was chosen.", "expert", shares)
        if spool is not None:
            yield from gauge("damp_spool_bytes", "Size of the record.", spool.bytes)
            yield from gauge("damp_spool_limit_bytes", "Size that the record may have.", spool.limit)
            yield from counter("damp_spool_deleted_segments", DELETED, spool.deleted_segments)
            yield from counter("damp_spool_bad_segments", BAD, spool.bad_segments)
        for key, (name, about) in TEMPERATURES.items():
            yield from gauge(name, about, now.source.get(key))
        figures = {key: value for key, value in now.source.items() if key not in TEMPERATURES}
        yield from gauges("damp_source", "Figures of the source's own.", "figure", figures)
        ages = {name: round(stage.seconds, 3) for name, stage in stages}
        yield from gauges("damp_stage_beat_age_seconds", BEAT, "stage", ages)
        answering = {name: stage.ok for name, stage in stages}
        yield from gauges("damp_stage_ok", "1 while a stage answers, else 0.", "stage", answering)
        yield from gauge("damp_problems", FAILED, len(now.problems))
        on, tests = now.restoration.state == "on", now.restoration.tests
        yield from gauge("damp_restoration_on", "1 while lines are restored, 0 where they are recorded only.", on)
        yield from counter("damp_suspect_lines", "Restored lines that may be wrong.", now.restoration.suspect_lines)
        yield from counter("damp_selftests", "Tests of the engine on golden frames.", tests.tests)
        yield from counter("damp_selftest_failures", "Those that found something.", tests.failed)
        yield from counter("damp_repairs", "Engines that took the place of one that was wrong.", tests.repairs)
        yield from gauge("damp_selftest_age_seconds", "Since the last test that found nothing.", tests.age_s)
        yield from gauge("damp_uptime_seconds", "Since the stream was started.", now.seconds)


def _labelled(kind: type[Any], name: str, about: str, label: str, values: Mapping[Any, float]) -> Iterator[Metric]:
    family = kind(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([str(key)], float(value))
    if family.samples:
        yield family


def _single(kind: type[Any], name: str, about: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield kind(name, about, value=float(value))
