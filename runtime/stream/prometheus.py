"""The counts of a stream for Prometheus, as they are when it asks; on 127.0.0.1 only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from runtime.errors import MachineError, plain

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client.core import Metric

Snapshot = Mapping[str, Any]
FATES = ("in", "recorded", "restored", "passed", "dropped", "incomplete")
QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
LATENCY = "From the taking of a frame's last line to its restoration."


class StreamCollector:
    """Turns a snapshot into metrics whenever it is scraped; what the snapshot lacks is not there.

    Args:
        snapshot: gives the counts; called from the server's threads.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now = self._snapshot()

        def labelled(kind: type[Any], name: str, about: str, label: str, values: Mapping[Any, Any]) -> Iterator[Metric]:
            family = kind(name, about, labels=[label])
            for key, value in values.items():
                if value is not None:
                    family.add_metric([str(key)], float(value))
            if family.samples:
                yield family

        counters, gauges = partial(labelled, CounterMetricFamily), partial(labelled, GaugeMetricFamily)

        def gauge(name: str, about: str, value: Any) -> Iterator[Metric]:
            if value is not None:
                yield GaugeMetricFamily(name, about, value=float(value))

        lines = now.get("lines", {})
        source = dict(now.get("source", {}))
        queues = now.get("queues", {})
        latency = now.get("latency_s", {})
        fates = {fate: lines.get(fate) for fate in FATES}
        yield from counters("damp_lines", "Lines by what became of them.", "fate", fates)
        yield from gauge("damp_lines_pending", "Lines that are still on their way.", lines.get("pending"))
        yield from counters("damp_frames", "Frames by what became of them.", "fate", now.get("frames", {}))
        yield from gauges("damp_lines_per_second", "Lines per second.", "at", now.get("rates", {}))
        yield from gauges(
            "damp_latency_seconds", LATENCY, "quantile", {QUANTILES.get(key, key): latency[key] for key in latency}
        )
        levels, capacities = ({name: queues[name].get(key) for name in queues} for key in ("level", "capacity"))
        yield from gauges("damp_queue_level", "What waits in a queue.", "queue", levels)
        yield from gauges("damp_queue_capacity", "What fits into a queue.", "queue", capacities)
        yield from gauges("damp_prompt_metric", "Prompt metrics of the last frame.", "metric", now.get("prompt", {}))
        experts = dict(enumerate(now.get("experts", ())))
        yield from gauges("damp_expert_share", "Share in which each expert was chosen.", "expert", experts)
        about = "Temperature that the source reports."
        yield from gauge("damp_source_temperature_celsius", about, source.pop("temperature_c", None))
        yield from gauges("damp_source", "Figures of the source's own.", "figure", source)
        about = "Since a stage last gave a sign of life."
        yield from gauges("damp_stage_beat_age_seconds", about, "stage", now.get("stages", {}))
        yield from gauge("damp_uptime_seconds", "Since the stream was started.", now.get("seconds"))


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
