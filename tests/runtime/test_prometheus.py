"""What Prometheus is given, over HTTP and through the official parser; and who is refused."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.errors import InputError, MachineError
from runtime.lines import Missing
from runtime.stream import web_routes
from runtime.stream.books import Count
from runtime.stream.pipeline import NamedSink
from runtime.stream.selftest import TestFigures
from runtime.stream.snapshot import QueueFigures, RestorationFigures, Snapshot, Spool
from runtime.stream.web import CLIENTS, Server, serve_metrics
from tests.contracts.snapshots import NOTHING, stages
from tests.runtime.stream.lines import SHAPE, Script
from tests.runtime.stream.test_pipeline import Kept, stream_of

FULL = replace(
    NOTHING,
    lines=Count(10, 10, 5, 2, 1, 0),
    frames={"restored": 3, "failed": 1},
    rates={"in": 330.5, "restored": 329.5},
    latency_s={"p50": 0.25, "p95": 0.5, "p99": 1.0},
    queues={"record": QueueFigures(3, 64, "block", 4), 'of "whom"\n\\': QueueFigures(0, 2, "drop-oldest", 0)},
    flags={"saturated": 6},
    clipped=9,
    doubts=(),
    prompt={"noise": 0.125, "blur": float("nan")},
    experts=(0.75, 0.25),
    source={"temperature_c": 41.5, "board_temperature_c": 60.5, "underruns": 7},
    spool=Spool(4096, 8192, 10, 2, 5, 1),
    stages=stages(engine=0.5, zeromq=12.0),
    problems=("zeromq: gone",),
    restoration=RestorationFigures("off", 64, TestFigures(12, 2, 1, 3.5)),
    seconds=12.5,
)


class Counts:
    """A snapshot that a test can change."""

    now: Any = FULL

    def __call__(self) -> Any:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scrape asks the stream anew."""
    monkeypatch.setattr(web_routes, "FRESH_SECONDS", 0.0)


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def endpoint(counts: Counts) -> Iterator[Server]:
    with serve_metrics(counts, 0) as endpoint:
        yield endpoint


def get(port: int, path: str = "/metrics", host: str | None = None, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def samples(port: int) -> dict[tuple[str, ...], float]:
    """Value by metric's name and label values."""
    status, text = get(port)
    assert status == 200, text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_everything_of_a_snapshot_is_there(endpoint: Server) -> None:
    found = samples(endpoint.port)
    assert np.isnan(found.pop(("damp_prompt_metric", "blur")))
    assert found == {
        ("damp_lines_total", "in"): 10,
        ("damp_lines_total", "recorded"): 10,
        ("damp_lines_total", "restored"): 5,
        ("damp_lines_total", "passed"): 2,
        ("damp_lines_total", "dropped"): 1,
        ("damp_lines_total", "incomplete"): 0,
        ("damp_lines_pending",): 4,
        ("damp_frames_total", "restored"): 3,
        ("damp_frames_total", "failed"): 1,
        ("damp_lines_per_second", "in"): 330.5,
        ("damp_lines_per_second", "restored"): 329.5,
        ("damp_latency_seconds", "0.5"): 0.25,
        ("damp_latency_seconds", "0.95"): 0.5,
        ("damp_latency_seconds", "0.99"): 1,
        ("damp_queue_level", "record"): 3,
        ("damp_queue_level", 'of "whom"\n\\'): 0,
        ("damp_queue_capacity", "record"): 64,
        ("damp_queue_capacity", 'of "whom"\n\\'): 2,
        ("damp_queue_dropped_total", "record"): 4,
        ("damp_queue_dropped_total", 'of "whom"\n\\'): 0,
        ("damp_flagged_lines_total", "saturated"): 6,
        ("damp_clipped_values_total",): 9,
        ("damp_prompt_metric", "noise"): 0.125,
        ("damp_expert_share", "0"): 0.75,
        ("damp_expert_share", "1"): 0.25,
        ("damp_source_temperature_celsius",): 41.5,
        ("damp_source", "underruns"): 7,
        ("damp_board_temperature_celsius",): 60.5,
        ("damp_spool_bytes",): 4096,
        ("damp_spool_limit_bytes",): 8192,
        ("damp_spool_deleted_segments_total",): 2,
        ("damp_spool_bad_segments_total",): 1,
        ("damp_stage_beat_age_seconds", "engine"): 0.5,
        ("damp_stage_beat_age_seconds", "zeromq"): 12,
        ("damp_stage_ok", "engine"): 1,
        ("damp_stage_ok", "zeromq"): 0,
        ("damp_problems",): 1,
        ("damp_restoration_on",): 0,
        ("damp_suspect_lines_total",): 64,
        ("damp_selftests_total",): 12,
        ("damp_selftest_failures_total",): 2,
        ("damp_repairs_total",): 1,
        ("damp_selftest_age_seconds",): 3.5,
        ("damp_uptime_seconds",): 12.5,
    }


def test_types_are_told(endpoint: Server) -> None:
    families = {family.name: family.type for family in text_string_to_metric_families(get(endpoint.port)[1])}
    assert {name for name, kind in families.items() if kind == "counter"} == {
        "damp_lines",
        "damp_frames",
        "damp_flagged_lines",
        "damp_clipped_values",
        "damp_queue_dropped",
        "damp_spool_deleted_segments",
        "damp_spool_bad_segments",
        "damp_suspect_lines",
        "damp_selftests",
        "damp_selftest_failures",
        "damp_repairs",
    }
    assert set(families.values()) == {"counter", "gauge"}


def test_it_is_read_when_asked_and_what_is_not_known_is_left_out(endpoint: Server, counts: Counts) -> None:
    for issued in (1, 2):
        counts.now = replace(NOTHING, lines=Count(issued), spool=Spool(0, None, 0, 0, 0, 0))
        found = samples(endpoint.port)
        assert found["damp_lines_total", "in"] == found["damp_lines_pending",] == issued
        assert {name for name, *_ in found} == {
            "damp_lines_total",
            "damp_lines_pending",
            "damp_clipped_values_total",
            "damp_spool_bytes",
            "damp_spool_deleted_segments_total",
            "damp_spool_bad_segments_total",
            "damp_problems",
            "damp_restoration_on",
            "damp_suspect_lines_total",
            "damp_selftests_total",
            "damp_selftest_failures_total",
            "damp_repairs_total",
            "damp_uptime_seconds",
        }


class Camera(Script):
    """A source that tells of itself."""

    def telemetry(self) -> dict[str, float]:
        return {"temperature_c": 41.5, "underruns": 7}


def scrape_stream(spool: Spool) -> tuple[list[dict[tuple[str, ...], float]], Snapshot]:
    """What is scraped from a stream while it runs, and its last snapshot."""
    lines: list[Any] = [*range(30), np.full(SHAPE, 7, np.uint16), Missing(32, 1, "lost"), *range(40, 60)]
    stream = stream_of(Camera(lines, pause=0.01), sinks=[NamedSink("kept", Kept(), "block", True)])

    def snapshot() -> Snapshot:
        found = stream.snapshot()
        return replace(found, source={**found.source, "board_temperature_c": 60.5}, spool=spool)

    with serve_metrics(snapshot, 0) as endpoint:
        scraped: list[dict[tuple[str, ...], float]] = []
        stream.run(lambda: scraped.append(samples(endpoint.port)))
        scraped.append(samples(endpoint.port))
    return scraped, snapshot()


def test_a_real_stream_is_told_while_it_runs_and_when_it_has_ended() -> None:
    scraped, last = scrape_stream(Spool(4096, None, 10, 0, 0, 0))
    first, end = scraped[0], scraped[-1]
    for stage in ("source", "record", "restore", "kept"):
        assert first["damp_stage_ok", stage] == 1
        assert 0 <= first["damp_stage_beat_age_seconds", stage] < 60
    assert {("damp_lines_total", fate): end["damp_lines_total", fate] for fate in last.lines.as_json()} == {
        ("damp_lines_total", "in"): 52,
        ("damp_lines_total", "recorded"): 0,
        ("damp_lines_total", "restored"): 51,
        ("damp_lines_total", "passed"): last.lines.passed,
        ("damp_lines_total", "dropped"): 0,
        ("damp_lines_total", "incomplete"): 1,
    }
    assert last.lines.passed >= 1
    assert end["damp_flagged_lines_total", "empty"] == last.flags["empty"] == 1
    assert end["damp_clipped_values_total",] == last.clipped
    assert end["damp_queue_capacity", "kept"] == last.queues["kept"].capacity
    assert end["damp_queue_dropped_total", "kept"] == 0
    assert (end["damp_source_temperature_celsius",], end["damp_board_temperature_celsius",]) == (41.5, 60.5)
    assert end["damp_source", "underruns"] == 7
    assert (end["damp_spool_bytes",], end["damp_spool_deleted_segments_total",]) == (4096, 0)
    assert ("damp_spool_limit_bytes",) not in end
    assert [end["damp_expert_share", str(expert)] for expert in range(3)] == pytest.approx(last.experts)


def test_counts_that_cannot_be_had_are_an_error_and_come_back(
    endpoint: Server, counts: Counts, capfd: pytest.CaptureFixture[str]
) -> None:
    counts.now = ZeroDivisionError("no frames")
    status, text = get(endpoint.port)
    assert status == 500 and json.loads(text) == {"error": "the stream gave no answer", "kind": "ZeroDivisionError"}
    counts.now = FULL
    assert samples(endpoint.port)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "[::1]"])
def test_this_machine_is_answered(endpoint: Server, host: str) -> None:
    assert get(endpoint.port, host=f"{host}:{endpoint.port}")[0] == 200


@pytest.mark.parametrize("host", ["evil.example:{port}", "localhost", "localhost:1", "", "localhost:{port}.evil:80"])
def test_others_are_refused(endpoint: Server, host: str) -> None:
    status, text = get(endpoint.port, host=host.format(port=endpoint.port))
    assert status == 403 and json.loads(text)["error"] == "not served under this name"


@pytest.mark.parametrize("lines", ["", "Host: localhost:{port}\r\nHost: evil.example\r\n"])
def test_no_host_and_two_hosts_are_refused(endpoint: Server, lines: str) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=30) as client:
        client.sendall(f"GET /metrics HTTP/1.0\r\n{lines.format(port=endpoint.port)}\r\n".encode())
        assert b" 403 " in client.recv(65536).splitlines()[0]


def test_other_paths_and_methods_are_refused(endpoint: Server) -> None:
    for path in ("/", "/metrics/../x", "/api/snapshot", "/quicklook.png", "/healthz"):
        assert get(endpoint.port, path)[0] == 404
    assert get(endpoint.port, method="POST")[0] == 405


def test_a_client_that_says_nothing_holds_up_nobody(endpoint: Server) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=30) as silent:
        silent.sendall(b"GET /met")
        assert samples(endpoint.port)


def test_there_is_room_for_so_many_and_no_more(endpoint: Server) -> None:
    with ExitStack() as idle:
        for _ in range(CLIENTS):
            idle.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=30))
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=30) as late:
            assert b" 503 " in late.recv(65536).splitlines()[0]


def test_it_listens_on_this_machine_only_and_gives_the_port_back(endpoint: Server) -> None:
    assert endpoint._listener.server_address[0] == "127.0.0.1"
    with pytest.raises(MachineError, match=rf"prometheus: another program listens.*127\.0\.0\.1:{endpoint.port}"):
        serve_metrics(Counts(), endpoint.port)
    endpoint.close()
    endpoint.close()
    with serve_metrics(Counts(), endpoint.port) as again:
        assert samples(again.port)


def test_two_endpoints_do_not_share_what_they_tell() -> None:
    other = Counts()
    other.now = replace(NOTHING, seconds=1)
    with serve_metrics(Counts(), 0) as one, serve_metrics(other, 0) as two:
        assert len(samples(one.port)) == len(samples(one.port)) > 25
        assert samples(two.port)["damp_uptime_seconds",] == 1


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such port"):
        serve_metrics(Counts(), 70_000)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MachineError, match=r'prometheus-client is not installed; pip install "damp-deploy\[stream\]"'):
        serve_metrics(Counts(), 0)
