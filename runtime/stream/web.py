"""The running stream as a page for a browser: figures, quicklook and spectra; and for Prometheus; on loopback.

Reading only. Whoever asks gets figures that are at most a quarter of a second old, so that the stream is asked four
times a second at most, however many look; the page is the file beside this one and needs nothing from elsewhere.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from runtime.closing import Closing
from runtime.descriptors import is_shortage
from runtime.errors import InputError, MachineError

from .snapshot import Snapshot
from .web_routes import Answer, Page, Routes, Shared, json_answer

CLIENT_SECONDS = 10.0
"""How long a connection may last, from its first byte to its last."""
CLIENTS = 16
"""Connections, and so threads, at a time."""
SHORTAGE_SECONDS = 0.2
NO_NAME = "ask for an address of this machine, or through localhost"


class Server(Closing):
    """A running server. A context manager.

    Attributes:
        url: address of the page, or of the metrics where there is none.
        port: where it listens.
    """

    def __init__(self, listener: _Listener, url: str) -> None:
        self.url = url
        self.port: int = listener.server_address[1]
        self._listener = listener
        self._thread = threading.Thread(
            target=listener.serve_forever, kwargs={"poll_interval": 0.2}, name="web", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and hang up on everybody; may be called twice."""
        if self._thread.is_alive():
            self._listener.shutdown()
            self._thread.join()
        self._listener.server_close()
        self._listener.hang_up()


def serve(
    snapshot: Callable[[], Snapshot],
    quicklook: Callable[[], bytes | None],
    spectra: Callable[[], Mapping[str, Any]],
    port: int,
    host: str = "127.0.0.1",
) -> Server:
    """Serve the live view in threads of its own until `Server.close`.

    Routes: `/` the page (`/?every=10` asks every ten seconds instead of every one), `/api/snapshot`, `/api/spectra`
    and `/healthz` JSON, `/quicklook.png`, `/metrics` for Prometheus where its client is installed. `/healthz` is 200
    while the stream runs and every stage beats, 503 otherwise, with the names of the silent stages and how many
    problems there are.

    The three functions are called from several threads, but never at the same time as themselves, and at most four
    times a second. What they raise is answered with 500 and stops nothing.

    Args:
        snapshot: figures of the stream; what is not finite becomes null.
        quicklook: PNG of the newest lines; None while there is none.
        spectra: `wavelengths` in nm or None, and `spectra`: a sequence of `sample`, `line` and `values`.
        port: 0 takes any free one.
        host: address to listen on. Requests must name it, `localhost` or a loopback address in their Host header; on
            a wildcard address, any IP address. No other name is served: it could be a stranger's (DNS rebinding).

    Raises:
        InputError: no such port.
        MachineError: the address cannot be listened on.
    """
    page = files("runtime.stream").joinpath("page.html").read_bytes()
    routes = Routes(Shared(snapshot), Page(page, Shared(quicklook), Shared(spectra)))
    listener = _listen((host, port), routes, "web")
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    named = f"[{shown}]" if ":" in shown else shown
    return Server(listener, f"http://{named}:{listener.server_address[1]}/")


def serve_metrics(snapshot: Callable[[], Snapshot], port: int) -> Server:
    """Serve `/metrics` alone, on loopback, to whoever names this machine with that very port; else as `serve`.

    Raises:
        InputError: no such port.
        MachineError: prometheus-client is not installed, or the port cannot be listened on.
    """
    if find_spec("prometheus_client") is None:
        remedy = 'pip install "damp-deploy[stream]"'
        raise MachineError("prometheus-client is not installed", key="prometheus", remedy=remedy)
    listener = _listen(("127.0.0.1", port), Routes(Shared(snapshot)), "prometheus")
    listener.any_port = False
    return Server(listener, f"http://127.0.0.1:{listener.server_address[1]}/metrics")


def _listen(address: tuple[str, int], routes: Routes, key: str) -> _Listener:
    host, port = address
    if not 0 <= port <= 65535:
        raise InputError("no such port", key="port", value=port, remedy="give one from 0 (any free one) to 65535")
    try:
        return _Listener(address, routes)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise MachineError(
            "another program listens there" if taken else f"cannot be listened on: {error.strerror or error}",
            key=key,
            value=f"{host}:{port}",
            remedy="choose another port, or 0 for any free one" if taken else "choose another port or address",
        ) from error


class _Listener(ThreadingHTTPServer):
    """Listens; gives every connection a thread of its own, a bounded number of them, and a bounded time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = CLIENTS
    # Through an ssh tunnel the page is asked for by another one.
    any_port = True

    def __init__(self, address: tuple[str, int], routes: Routes) -> None:
        self.routes = routes
        self.host = address[0]
        self._clients: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # The one of HTTPServer asks DNS for its own name, which can take long where there is no network.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            if is_shortage(error):
                # Whoever waits keeps the listener ready: without a pause it would ask without end.
                time.sleep(SHORTAGE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._clients) >= CLIENTS
            if not full:
                self._clients[request] = time.monotonic()
        if full:
            with suppress(OSError):
                request.setblocking(False)
                request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Hang up on who is too slow; called a few times a second."""
        self.hang_up(time.monotonic() - CLIENT_SECONDS)

    def hang_up(self, older_than: float = math.inf) -> None:
        """End the connections that began before `older_than`; their threads find out and leave."""
        with self._lock:
            for request, begun in self._clients.items():
                if begun < older_than:
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away, or was hung up on, is no news.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = CLIENT_SECONDS
    # A request without a version gets an answer with headers all the same.
    default_request_version = "HTTP/1.0"

    def do_GET(self) -> None:
        if not self._host_is_ours():
            self._send(json_answer({"error": "not served under this name", "remedy": NO_NAME}, HTTPStatus.FORBIDDEN))
            return
        known = self.headers.get("If-None-Match", "")
        self._send(self.server.routes.answer(self._path(), known))

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Called for what is no GET or HEAD, and for what is no HTTP."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:
            answer = json_answer({"error": "only GET and HEAD"}, HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
        else:
            answer = json_answer({"error": HTTPStatus(code).phrase.lower()}, code)
        self._send(answer)

    def version_string(self) -> str:
        """No versions for strangers."""
        return "damp-deploy"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the stream."""

    def _path(self) -> str:
        with suppress(ValueError):
            target = urlsplit(self.path)
            # A whole address in the request is for proxies.
            return "" if target.scheme or target.netloc else target.path
        return ""

    def _host_is_ours(self) -> bool:
        given = self.headers.get_all("Host") or []
        if len(given) != 1:
            return False
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d{1,5})?", given[0].strip())
        if found is None or not (self.server.any_port or found[2] == f":{self.server.server_port}"):
            return False
        name = found[1].strip("[]").lower()
        if name in ("localhost", self.server.host.lower()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self.server.host in ("", "0.0.0.0", "::")

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        if answer.kind:
            self.send_header("Content-Type", answer.kind)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", self.server.routes.policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
