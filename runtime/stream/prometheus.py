"""The counts of a stream as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric

FATES = ("in", "recorded", "restored", "passed", "dropped", "incomplete")
QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
LATENCY = "From the taking of a frame's last line to its restoration."
BEAT = "Since a stage last gave a sign of life."
TEMPERATURES = {
    "temperature_c": ("damp_source_temperature_celsius", "Temperature that the source reports."),
    "board_temperature_c": ("damp_board_temperature_celsius", "Temperature of the computer's hottest sensor."),
}
SEGMENTS = {
    "deleted_segments": "Parts of the record that were deleted to make room.",
    "bad_segments": "Parts of the record that were read back and found wrong.",
}


def exposition(snapshot: Mapping[str, Any]) -> tuple[str, bytes]:
    """Content type and text of a snapshot's metrics. Raises ImportError: prometheus-client is not installed."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(_Collector(snapshot))
    encode, kind = choose_encoder("")
    return kind, encode(registry)


class _Collector:
    """Turns a snapshot into metrics; what the snapshot lacks, or is no number, is not there."""

    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counters, gauges = partial(_labelled, CounterMetricFamily), partial(_labelled, GaugeMetricFamily)
        counter, gauge = partial(_single, CounterMetricFamily), partial(_single, GaugeMetricFamily)
        now = self._snapshot
        lines, source, spool = (_table(now.get(key)) for key in ("lines", "source", "spool"))
        queues, stages, latency = (_table(now.get(key)) for key in ("queues", "stages", "latency_s"))

        fates = {fate: lines.get(fate) for fate in FATES}
        yield from counters("damp_lines", "Lines by what became of them.", "fate", fates)
        yield from gauge("damp_lines_pending", "Lines that are still on their way.", lines.get("pending"))
        yield from counters("damp_flagged_lines", "Lines by what was wrong with them.", "flag", now.get("flags"))
        yield from counters("damp_frames", "Frames by what became of them.", "fate", now.get("frames"))
        yield from counter("damp_clipped_values", "Values that the output's type cannot hold.", now.get("clipped"))
        yield from gauges("damp_lines_per_second", "Lines per second.", "at", now.get("rates"))
        quantiles = {QUANTILES.get(key, key): value for key, value in latency.items()}
        yield from gauges("damp_latency_seconds", LATENCY, "quantile", quantiles)
        yield from gauges("damp_queue_level", "What waits in a queue.", "queue", _column(queues, "level"))
        yield from gauges("damp_queue_capacity", "What fits into a queue.", "queue", _column(queues, "capacity"))
        yield from counters("damp_queue_dropped", "What a queue had no room for.", "queue", _column(queues, "dropped"))
        yield from gauges("damp_prompt_metric", "Prompt metrics of the last frame.", "metric", now.get("prompt"))
        experts = now.get("experts")
        shares = dict(enumerate(experts)) if isinstance(experts, Iterable) else {}
        yield from gauges("damp_expert_share", "Share in which each expert was chosen.", "expert", shares)
        yield from gauge("damp_spool_bytes", "Size of the record.", spool.get("bytes"))
        yield from gauge("damp_spool_limit_bytes", "Size that the record may have.", spool.get("limit"))
        for key, about in SEGMENTS.items():
            yield from counter(f"damp_spool_{key}", about, spool.get(key))
        for key, (name, about) in TEMPERATURES.items():
            yield from gauge(name, about, source.get(key))
        figures = {key: value for key, value in source.items() if key not in TEMPERATURES}
        yield from gauges("damp_source", "Figures of the source's own.", "figure", figures)
        yield from gauges("damp_stage_beat_age_seconds", BEAT, "stage", _column(stages, "age_s"))
        yield from gauges("damp_stage_ok", "1 while a stage answers, else 0.", "stage", _column(stages, "ok"))
        problems = now.get("problems")
        failed = len(problems) if isinstance(problems, (list, tuple)) else None
        yield from gauge("damp_problems", "Parts of the stream that have failed, though their stages answer.", failed)
        yield from gauge("damp_uptime_seconds", "Since the stream was started.", now.get("seconds"))


def _table(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _column(table: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    return {name: _table(row).get(key) for name, row in table.items()}


def _labelled(kind: type[Any], name: str, about: str, label: str, values: Any) -> Iterator[Metric]:
    family = kind(name, about, labels=[label])
    for key, value in _table(values).items():
        if isinstance(value, Real):
            family.add_metric([str(key)], float(value))
    if family.samples:
        yield family


def _single(kind: type[Any], name: str, about: str, value: Any) -> Iterator[Metric]:
    if isinstance(value, Real):
        yield kind(name, about, value=float(value))
