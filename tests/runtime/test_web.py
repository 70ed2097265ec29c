"""The live view's server: what it answers, whom it refuses, and that nobody holds it up."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import InputError, MachineError
from runtime.stream import web, web_routes
from runtime.stream.books import Count
from runtime.stream.snapshot import Snapshot
from runtime.stream.web import Server, serve
from tests.contracts.snapshots import NOTHING, stages

ROUTES = ("/", "/api/snapshot", "/api/spectra", "/quicklook.png", "/healthz", "/metrics", "/favicon.ico", "/none")


def png(width: int = 4, height: int = 3) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(stream, "PNG")
    return stream.getvalue()


def snapshot() -> Snapshot:
    return replace(
        NOTHING,
        lines=Count(3300, restored=512),
        rates={"in": 0.5, "restored": float("nan")},
        experts=(0.25, float("inf")),
        stages=stages(source=0.1234),
        problems=["</script>\x1b[2J\ud800"],
    )


def spectra() -> dict[str, Any]:
    return {"wavelengths": None, "spectra": [{"sample": 3, "line": np.uint64(9), "values": np.array([1.0, np.nan])}]}


def start(
    snapshot: Callable[[], Snapshot] = snapshot,
    quicklook: Callable[[], bytes | None] = png,
    spectra: Callable[[], Mapping[str, Any]] = spectra,
    host: str = "127.0.0.1",
) -> Server:
    return serve(snapshot, quicklook, spectra, 0, host)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with start() as running:
        yield running


class Got:
    """An answer, read to its end."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(server: Server, path: str = "/", method: str = "GET", headers: Mapping[str, str] | None = None) -> Got:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        return Got(connection.getresponse())
    finally:
        connection.close()


def say(server: Server, words: bytes) -> bytes:
    """What comes back for raw bytes, until the server hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(words)
        return b"".join(iter(lambda: client.recv(65536), b""))


def threads() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def until(true: Callable[[], bool]) -> None:
    """Wait for it; the time only stops a hang."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_page_runs_nothing_but_its_own_script(server: Server) -> None:
    got = ask(server)
    assert (got.status, got.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = got.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    for place in (b"http:", b"https:", b"//cdn", b"@import", b"url("):
        assert place not in got.body.replace(b"http://www.w3.org/2000/svg", b"")


def test_figures_are_json_whatever_they_are_made_of(server: Server) -> None:
    given = ask(server, "/api/snapshot").json
    rest = {"recorded": 0, "passed": 0, "dropped": 0, "incomplete": 0, "pending": 2788}
    assert given["lines"] == {"in": 3300, "restored": 512, **rest}
    assert given["stages"] == {"source": {"age_s": 0.123, "ok": True, "vital": True}}
    assert given["rates"] == {"in": 0.5, "restored": None}
    assert given["experts"] == [0.25, None]
    assert given["spool"] == {}
    assert given["problems"] == snapshot().problems
    assert ask(server, "/api/spectra").json == {
        "wavelengths": None,
        "spectra": [{"sample": 3, "line": 9, "values": [1.0, None]}],
    }


def test_prometheus_may_ask_the_page_too(server: Server) -> None:
    got = ask(server, "/metrics")
    assert (got.status, got.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'damp_lines_total{fate="in"} 3300.0\n' in got.body


def test_quicklook_comes_once() -> None:
    pictures: list[bytes | None] = [None]
    with start(quicklook=lambda: pictures[-1]) as server:
        assert ask(server, "/quicklook.png").status == 204
        pictures.append(png())
        until(lambda: ask(server, "/quicklook.png").status == 200)
        first = ask(server, "/quicklook.png?t=1")
        assert (first.headers["Content-Type"], first.body) == ("image/png", png())
        again = ask(server, "/quicklook.png", headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status, again.body) == (304, b"")
        pictures.append(png(5, 5))
        until(lambda: ask(server, "/quicklook.png").body == png(5, 5))
        other = ask(server, "/quicklook.png", headers={"If-None-Match": first.headers["ETag"]})
        assert (other.status, other.body) == (200, png(5, 5))


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_is_guarded_and_head_is_get_without_a_body(server: Server, path: str) -> None:
    got, head = ask(server, path), ask(server, path, "HEAD")
    assert (head.status, head.body) == (got.status, b"")
    assert head.headers["Content-Length"] == got.headers["Content-Length"]
    for answer in (got, head):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Server"] == "damp-deploy"
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "127.0.0.1", "localhost:{port}", "LOCALHOST:9", "[::1]:80"])
def test_our_own_names_are_served(server: Server, host: str) -> None:
    assert ask(server, "/api/snapshot", headers={"Host": host.format(port=server.port)}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "localhost, evil.example",
        "10.0.0.5",
        "[::1",
        "127.0.0.1:x",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/snapshot", "/quicklook.png"])
def test_strangers_names_are_refused(server: Server, host: str, path: str) -> None:
    got = ask(server, path, headers={"Host": host.format(port=server.port)})
    assert got.status == 403
    assert "localhost" in got.json["remedy"]


def test_no_name_or_two_names_are_refused(server: Server) -> None:
    assert say(server, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 403 ")
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 403 " in say(server, two).partition(b"\r\n")[0]


def test_every_address_on_a_wildcard_but_no_name() -> None:
    with start(host="0.0.0.0") as server:
        assert server.url == f"http://127.0.0.1:{server.port}/"
        assert ask(server, headers={"Host": "192.168.7.20:80"}).status == 200
        assert ask(server, headers={"Host": "evil.example"}).status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(server: Server, method: str) -> None:
    answer = say(server, f"{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 405 " in head.partition(b"\r\n")[0]
    assert b"\r\nAllow: GET, HEAD\r\n" in head
    assert json.loads(body) == {"error": "only GET and HEAD"}


@pytest.mark.parametrize("path", ["/..", "/page.html", "//evil.example/", "http://localhost/", "*", "/api/snapshot/"])
def test_there_is_nothing_else(server: Server, path: str) -> None:
    answer = say(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert b" 404 " in answer.partition(b"\r\n")[0]
    assert b"<!doctype" not in answer


@pytest.mark.parametrize("words", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"a" * 70000])
def test_what_is_no_http_is_refused(server: Server, words: bytes) -> None:
    head, _, body = say(server, words).partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"414", b"505")
    assert b"nosniff" in head
    assert "error" in json.loads(body)
    assert ask(server, "/api/snapshot").status == 200


class Unspeakable:
    """No mapping, and no text either."""

    def __str__(self) -> str:
        raise TypeError("no words")


@pytest.mark.parametrize("path", ["/api/snapshot", "/healthz"])
def test_figures_that_fail_are_told_without_a_trace(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    figures: list[Any] = [KeyError("password of the camera")]

    def failing() -> Snapshot:
        if isinstance(figures[-1], Exception):
            raise figures[-1]
        return figures[-1]  # type: ignore[no-any-return]

    with start(snapshot=failing) as server:
        got = ask(server, path)
        assert got.status == 500
        assert got.json == {"error": "the stream gave no answer", "kind": "KeyError"}
        assert ask(server).status == 200
        figures.append(replace(NOTHING, stages=Unspeakable()))  # type: ignore[arg-type]
        until(lambda: ask(server, path).json.get("kind") != "KeyError")
        assert ask(server, path).status == 500
        figures.append(NOTHING)
        until(lambda: ask(server, path).status == 200)
    assert capfd.readouterr() == ("", "")


def test_stream_is_asked_four_times_a_second_at_most_and_never_twice_at_once() -> None:
    begun, inside, together = [], 0, 0

    def counting() -> Snapshot:
        nonlocal inside, together
        begun.append(time.monotonic())
        inside += 1
        together = max(together, inside)
        time.sleep(0.02)
        inside -= 1
        return NOTHING

    with start(snapshot=counting) as server:
        many = [
            threading.Thread(target=lambda: [ask(server, "/api/snapshot") for _ in range(20)], daemon=True)
            for _ in range(6)
        ]
        for thread in many:
            thread.start()
        for thread in many:
            thread.join()
    assert together == 1
    assert all(after - before >= web_routes.FRESH_SECONDS for before, after in pairwise(begun))


def test_stream_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_routes, "BUSY_SECONDS", 0.1)
    asked, go_on = threading.Event(), threading.Event()

    def stuck() -> Snapshot:
        asked.set()
        go_on.wait(20)
        return NOTHING

    with start(snapshot=stuck) as server:
        first: list[int] = []
        waiting = threading.Thread(target=lambda: first.append(ask(server, "/api/snapshot").status), daemon=True)
        waiting.start()
        assert asked.wait(20)
        assert ask(server, "/api/snapshot").status == 503
        assert ask(server).status == 200
        go_on.set()
        waiting.join(20)
        assert first == [200]


def test_who_sends_slowly_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CLIENT_SECONDS", 0.5)
    with start() as server, socket.create_connection(("127.0.0.1", server.port), 0.05) as client:
        until(lambda: threads() == 1)
        ended = False
        end = time.monotonic() + 20
        while not ended:
            assert time.monotonic() < end
            try:
                client.sendall(b"G")
                ended = client.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        until(lambda: threads() == 0)
        assert ask(server).status == 200


def test_who_never_reads_is_hung_up_on_and_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CLIENT_SECONDS", 0.5)
    huge = b"\x89PNG" + bytes(30_000_000)
    with start(quicklook=lambda: huge) as server, socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(b"GET /quicklook.png HTTP/1.0\r\nHost: localhost\r\n\r\n")
        until(lambda: threads() == 1)
        assert ask(server, "/api/snapshot").status == 200
        until(lambda: threads() == 0)


def test_there_is_room_for_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CLIENTS", 3)
    with start() as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(3)]
        until(lambda: threads() == 3)
        assert say(server, b"").startswith(b"HTTP/1.0 503 ")
        assert threads() == 3
        for client in idle:
            client.close()
        until(lambda: threads() == 0)
        assert ask(server).status == 200


def test_taken_port_is_told_with_a_remedy(server: Server) -> None:
    with pytest.raises(MachineError) as caught:
        serve(snapshot, png, spectra, server.port)
    assert str(caught.value) == (
        f"web: another program listens there (found '127.0.0.1:{server.port}'); "
        "choose another port, or 0 for any free one"
    )


def test_address_of_another_machine_is_told() -> None:
    with pytest.raises(MachineError, match=r"cannot be listened on.*192\.0\.2\.1.*choose another port or address"):
        serve(snapshot, png, spectra, 0, "192.0.2.1")


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_such_port(port: int) -> None:
    with pytest.raises(InputError, match="no such port"):
        serve(snapshot, png, spectra, port)


def test_closing_hangs_up_and_frees_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web._Handler, "timeout", 120)
    server = start()
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        until(lambda: threads() == 1)
        server.close()
        server.close()
        assert client.recv(1) == b""
    until(lambda: threads() == 0)
    with pytest.raises(OSError):
        ask(server)
    with serve(snapshot, png, spectra, server.port) as again:
        assert ask(again).status == 200


def test_loopback_of_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on loopback here")
    with start(host="::1") as server:
        assert server.url == f"http://[::1]:{server.port}/"
        connection = http.client.HTTPConnection("::1", server.port, timeout=20)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.parametrize(
    ("state", "ages", "status", "silent"),
    [
        ("running", {"a": 0.1}, 200, []),
        ("draining", {}, 200, []),
        ("stopped", {}, 503, []),
        ("running", {"a": 0.1, "b": 12.0}, 503, ["b"]),
        ("running", {"a": 0.1, "optional": 12.0}, 200, ["optional"]),
    ],
)
def test_health(state: str, ages: dict[str, float], status: int, silent: list[str]) -> None:
    known = {name: replace(stage, vital=name != "optional") for name, stage in stages(**ages).items()}
    with start(
        snapshot=lambda: replace(NOTHING, state=state, stages=known, problems=["its words stay here"])
    ) as server:
        got = ask(server, "/healthz")
        assert got.status == status
        told = {"ok": status == 200, "state": state, "restoration": "on", "silent": silent, "problems": 1}
        assert got.json == told
