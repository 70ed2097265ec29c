"""The counts of a stream for Prometheus, as they are when it asks; on 127.0.0.1 only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from numbers import Real
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from runtime.errors import MachineError, plain

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Snapshot = Mapping[str, Any]
# `wsgiref.types` came with Python 3.11 (PEP 3333).
WSGIEnvironment = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApplication = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]
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


class StreamCollector:
    """Turns a snapshot into metrics whenever it is scraped; what the snapshot lacks, or is no number, is not there.

    Args:
        snapshot: gives the counts; called from the server's threads.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counters, gauges = partial(_labelled, CounterMetricFamily), partial(_labelled, GaugeMetricFamily)
        counter, gauge = partial(_single, CounterMetricFamily), partial(_single, GaugeMetricFamily)
        now = self._snapshot()
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


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no event."""


class _Handler(WSGIRequestHandler):
    timeout = 5.0

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes come every few seconds; the log is for what happens."""


class PrometheusEndpoint:
    """`http://127.0.0.1:PORT/metrics`, served from a thread of its own.

    Requests whose Host is not this machine's are refused, so that no web page can read it through a browser.

    Args:
        snapshot: gives the counts; keys may be missing, see docs/stream-messages.md.
        port: TCP port; 0 takes a free one, see `port`.

    Attributes:
        port: where it listens.

    Raises:
        MachineError: prometheus-client is not installed, or the port is taken.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], port: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError as error:
            raise MachineError(
                "prometheus-client is not installed", key="prometheus", remedy='pip install "damp-deploy[stream]"'
            ) from error
        registry = CollectorRegistry()
        registry.register(StreamCollector(snapshot))
        metrics: WSGIApplication = make_wsgi_app(registry)
        try:
            self._server = make_server("127.0.0.1", port, self._answer, _Server, _Handler)
        except (OSError, OverflowError) as error:
            raise MachineError(
                f"cannot listen there: {error}",
                key="prometheus",
                value=f"127.0.0.1:{port}",
                remedy="another program may have the port; choose another one",
            ) from error
        self.port: int = self._server.server_port
        self._metrics = metrics
        self._hosts = {f"{name}:{self.port}" for name in ("localhost", "127.0.0.1", "[::1]")}
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="prometheus", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; may be called twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> PrometheusEndpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, request: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if request.get("HTTP_HOST", "").lower() not in self._hosts:
            return _say(start, "403 Forbidden", "wrong Host header")
        if request.get("PATH_INFO") != "/metrics":
            return _say(start, "404 Not Found", "there is /metrics")
        try:
            return self._metrics(request, start)
        # A snapshot that cannot be had is Prometheus' to know, and no reason to fill the console.
        except Exception as error:
            return _say(start, "500 Internal Server Error", f"no counts: {type(error).__name__}: {plain(error)}")


def _say(start: StartResponse, status: str, text: str) -> list[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode(errors="replace") + b"\n"]
