"""The running stream as a page for a browser: figures, quicklook and spectra, on loopback.

Reading only. Whoever asks gets figures that are at most a quarter of a second old, so that the stream is asked four
times a second at most, however many look; the page is the file beside this one and needs nothing from elsewhere.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import ipaddress
import json
import math
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import numpy as np

from runtime.errors import InputError, MachineError

FRESH_SECONDS = 0.25
"""How long an answer of the stream serves everybody who asks."""
BUSY_SECONDS = 2.0
"""How long a request waits for a stream that is asked already."""
CLIENT_SECONDS = 10.0
"""How long a connection may last, from its first byte to its last."""
CLIENTS = 16
"""Connections, and so threads, at a time."""
NO_NAME = "ask for an address of this machine, or through localhost"

Snapshot = Callable[[], Mapping[str, Any]]
Quicklook = Callable[[], "bytes | None"]
Value = TypeVar("Value")


class Server:
    """A running server. A context manager.

    Attributes:
        url: address of the page.
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

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(
    snapshot: Snapshot,
    quicklook: Quicklook,
    spectra: Callable[[], Mapping[str, Any]],
    port: int,
    host: str = "127.0.0.1",
) -> Server:
    """Serve the live view in threads of its own until `Server.close`.

    Routes: `/` the page (`/?every=10` asks every ten seconds instead of every one), `/api/snapshot`, `/api/spectra`
    and `/healthz` JSON, `/quicklook.png`. `/healthz` is 200 while the stream runs and every stage beats, 503
    otherwise, with the names of the silent stages.

    The three functions are called from several threads, but never at the same time as themselves, and at most four
    times a second. What they raise is answered with 500 and stops nothing.

    Args:
        snapshot: figures of the stream; NumPy's numbers are fine, what is not finite becomes null.
        quicklook: PNG of the newest lines; None while there is none.
        spectra: `wavelengths` in nm or None, and `spectra`: a sequence of `sample`, `line` and `values`.
        port: 0 takes any free one.
        host: address to listen on. Requests must name it, `localhost` or a loopback address in their Host header; on
            a wildcard address, any IP address. No other name is served: it could be a stranger's (DNS rebinding).

    Raises:
        InputError: no such port.
        MachineError: the address cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise InputError("no such port", key="port", value=port, remedy="give one from 0 (any free one) to 65535")
    page = files("runtime.stream").joinpath("page.html").read_bytes()
    routes = _Routes(page, _Shared(snapshot), _Shared(quicklook), _Shared(spectra))
    try:
        listener = _Listener((host, port), routes)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise MachineError(
            "another program listens there" if taken else f"cannot be listened on: {error.strerror or error}",
            key="web",
            value=f"{host}:{port}",
            remedy="choose another port, or 0 for any free one" if taken else "choose another port or address",
        ) from error
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    named = f"[{shown}]" if ":" in shown else shown
    return Server(listener, f"http://{named}:{listener.server_address[1]}/")


class _BusyError(Exception):
    """The stream has not answered the one who asked before."""


class _Shared(Generic[Value]):
    """What a function of the stream gave last, or raised, for a quarter of a second."""

    def __init__(self, ask: Callable[[], Value]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._until = -math.inf
        self._value: Value | None = None
        self._error: Exception | None = None

    def __call__(self) -> Value:
        if not self._lock.acquire(timeout=BUSY_SECONDS):
            raise _BusyError
        try:
            if time.monotonic() >= self._until:
                self._value, self._error = None, None
                try:
                    self._value = self._ask()
                except Exception as error:
                    self._error = error
                self._until = time.monotonic() + FRESH_SECONDS
            if self._error is not None:
                raise self._error
            return self._value  # type: ignore[return-value]  # the function's own, None where it gave None
        finally:
            self._lock.release()


@dataclass(frozen=True)
class _Answer:
    """What goes back: status, content type, body and headers of its own."""

    status: int
    kind: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(value: object, status: int = HTTPStatus.OK, **headers: str) -> _Answer:
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    return _Answer(status, "application/json", text.encode("ascii"), headers)


def _plain(value: object) -> object:
    """`value` as JSON knows it: NumPy's numbers are Python's, what is not finite is null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    raise TypeError(f"no JSON for {type(value).__name__}")


class _Routes:
    """From a path to its answer."""

    def __init__(
        self,
        page: bytes,
        snapshot: _Shared[Mapping[str, Any]],
        quicklook: _Shared[bytes | None],
        spectra: _Shared[Mapping[str, Any]],
    ) -> None:
        self.policy = _policy(page)
        self._page = page
        self._snapshot = snapshot
        self._quicklook = quicklook
        self._spectra = spectra

    def answer(self, path: str, known: str) -> _Answer:
        """Answer for `path`; `known` is the tag of the picture that the client has."""
        try:
            if path == "/":
                return _Answer(HTTPStatus.OK, "text/html; charset=utf-8", self._page)
            if path == "/api/snapshot":
                return _json(self._snapshot())
            if path == "/api/spectra":
                return _json(self._spectra())
            if path == "/quicklook.png":
                return self._picture(known)
            if path == "/healthz":
                return self._health()
        except _BusyError:
            return _json({"error": "the stream is slow to answer"}, HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception as error:
            # The stream's own words stay there: they may hold what is nobody's business.
            kind = type(error).__name__
            return _json({"error": "the stream gave no answer", "kind": kind}, HTTPStatus.INTERNAL_SERVER_ERROR)
        if path == "/favicon.ico":
            return _Answer(HTTPStatus.NO_CONTENT)
        return _json({"error": "no such page"}, HTTPStatus.NOT_FOUND)

    def _picture(self, known: str) -> _Answer:
        png = self._quicklook()
        if png is None:
            return _Answer(HTTPStatus.NO_CONTENT)
        tag = f'"{hashlib.sha256(png).hexdigest()[:32]}"'
        if known == tag:
            return _Answer(HTTPStatus.NOT_MODIFIED, headers={"ETag": tag})
        return _Answer(HTTPStatus.OK, "image/png", bytes(png), {"ETag": tag})

    def _health(self) -> _Answer:
        snapshot = self._snapshot()
        stages = snapshot.get("stages") or {}
        silent = [name for name, stage in stages.items() if not (stage or {}).get("ok")]
        state = snapshot.get("state")
        well = not silent and state in ("running", "draining")
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
        return _json({"ok": well, "state": state, "silent": silent}, status)


def _policy(page: bytes) -> str:
    """Content security policy by which only the script and the style that stand in `page` count."""
    allowed = []
    for tag, name in ((b"script", "script-src"), (b"style", "style-src")):
        inside = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        hashes = (f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inside)
        allowed.append(f"{name} {' '.join(hashes)}")
    return (
        f"default-src 'none'; {'; '.join(allowed)}; img-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


class _Listener(ThreadingHTTPServer):
    """Listens; gives every connection a thread of its own, a bounded number of them, and a bounded time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = CLIENTS

    def __init__(self, address: tuple[str, int], routes: _Routes) -> None:
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
            self._send(_json({"error": "not served under this name", "remedy": NO_NAME}, HTTPStatus.FORBIDDEN))
            return
        known = self.headers.get("If-None-Match", "")
        self._send(self.server.routes.answer(self._path(), known))

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Called for what is no GET or HEAD, and for what is no HTTP."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:
            answer = _json({"error": "only GET and HEAD"}, HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
        else:
            answer = _json({"error": HTTPStatus(code).phrase.lower()}, code)
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
        # Any port will do: through an ssh tunnel it is another one.
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d{1,5})?", given[0].strip())
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        if name in ("localhost", self.server.host.lower()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self.server.host in ("", "0.0.0.0", "::")

    def _send(self, answer: _Answer) -> None:
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
