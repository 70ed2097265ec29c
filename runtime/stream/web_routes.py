"""What the live view answers to a path: status, body and headers. `runtime.stream.web` listens and sends."""

import base64
import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Generic, TypeVar

from runtime.plain_json import plain_json

from .prometheus import exposition
from .snapshot import Snapshot

FRESH_SECONDS = 0.25
"""How long an answer of the stream serves everybody who asks."""
BUSY_SECONDS = 2.0
"""How long a request waits for a stream that is asked already."""

Value = TypeVar("Value")


class BusyError(Exception):
    """The stream has not answered the one who asked before."""


class Shared(Generic[Value]):
    """What a function of the stream gave last, or raised, for a quarter of a second."""

    def __init__(self, ask: Callable[[], Value]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._until = -math.inf
        self._value: Value | None = None
        self._error: Exception | None = None

    def __call__(self) -> Value:
        if not self._lock.acquire(timeout=BUSY_SECONDS):
            raise BusyError
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
class Answer:
    """What goes back: status, content type, body and headers of its own."""

    status: int
    kind: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(value: object, status: int = HTTPStatus.OK, **headers: str) -> Answer:
    """`value` as JSON; `headers` are those of the answer's own."""
    text = json.dumps(plain_json(value), allow_nan=False, separators=(",", ":"))
    return Answer(status, "application/json", text.encode("ascii"), headers)


@dataclass(frozen=True)
class Page:
    """The live page: its file, and what it asks for beside the snapshot."""

    html: bytes
    quicklook: Shared[bytes | None]
    spectra: Shared[Mapping[str, Any]]


class Routes:
    """From a path to its answer.

    Args:
        snapshot: figures of the stream.
        page: the live page; without it there is `/metrics` alone.

    Attributes:
        policy: content security policy of the page, sent with every answer.
    """

    def __init__(self, snapshot: Shared[Snapshot], page: Page | None = None) -> None:
        self.policy = _policy(page.html if page else b"")
        self._snapshot = snapshot
        # By path, from the tag of the picture that the client has.
        self._answers: dict[str, Callable[[str], Answer]] = {
            "/metrics": lambda known: Answer(HTTPStatus.OK, *exposition(self._snapshot()))
        }
        if page is not None:
            self._answers |= {
                "/": lambda known: Answer(HTTPStatus.OK, "text/html; charset=utf-8", page.html),
                "/api/snapshot": lambda known: json_answer(self._snapshot().as_json()),
                "/api/spectra": lambda known: json_answer(page.spectra()),
                "/quicklook.png": lambda known: _picture(page.quicklook(), known),
                "/healthz": lambda known: self._health(),
                "/favicon.ico": lambda known: Answer(HTTPStatus.NO_CONTENT),
            }

    def answer(self, path: str, known: str) -> Answer:
        """Answer for `path`; `known` is the tag of the picture that the client has."""
        if path not in self._answers:
            return json_answer({"error": "no such page"}, HTTPStatus.NOT_FOUND)
        try:
            return self._answers[path](known)
        except BusyError:
            return json_answer({"error": "the stream is slow to answer"}, HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception as error:
            # The stream's own words stay there: they may hold what is nobody's business.
            kind = type(error).__name__
            return json_answer({"error": "the stream gave no answer", "kind": kind}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _health(self) -> Answer:
        snapshot = self._snapshot()
        silent = [name for name, stage in snapshot.stages.items() if not stage.ok]
        well = snapshot.state != "stopped" and not any(snapshot.stages[name].vital for name in silent)
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
        told = {
            "ok": well,
            "state": snapshot.state,
            "restoration": snapshot.restoration.state,
            "silent": silent,
            "problems": len(snapshot.problems),
        }
        return json_answer(told, status)


def _picture(png: bytes | None, known: str) -> Answer:
    if png is None:
        return Answer(HTTPStatus.NO_CONTENT)
    tag = f'"{hashlib.sha256(png).hexdigest()[:32]}"'
    if known == tag:
        return Answer(HTTPStatus.NOT_MODIFIED, headers={"ETag": tag})
    return Answer(HTTPStatus.OK, "image/png", bytes(png), {"ETag": tag})


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
