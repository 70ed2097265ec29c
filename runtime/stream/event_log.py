"""The log of a stream: one JSON object per line, bounded in size, and never in the stream's way."""

import json
import os
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from runtime.closing import Closing
from runtime.errors import InputError
from runtime.plain_json import plain_json

LIMIT_BYTES = 64 << 20
KEEP = 8
WAITING_LINES = 4096
"""So many lines wait for a disk that does not answer; later ones are lost."""
CLOSE_S = 1.0
"""At the end the disk is given so long."""
TAIL_BYTES = 1 << 20
"""A torn last line is looked for in so much of the file's end."""
OWN_KEYS = ("utc", "kind", "lost")


@dataclass(frozen=True)
class _Waiting:
    """A finished line.

    Attributes:
        head, body: JSON objects: the log's own keys, and the others.
        lost: lines between the one before and this one that never came to wait.
    """

    head: bytes
    body: bytes
    lost: int

    def whole(self, unwritten: int) -> bytes:
        """The line as one object; `unwritten` lines before it waited in vain."""
        lost = self.lost + unwritten
        parts = (self.head, _said({"lost": lost}) if lost else b"{}", self.body)
        return b"{%b}\n" % b",".join(part[1:-1] for part in parts if part != b"{}")


class EventLog(Closing):
    """A file of JSON lines, each with `utc` and `kind`; renamed to `NAME.1` to `NAME.8` as it grows.

    A thread of its own gives every line to the system as soon as it can, but does not sync it: a power cut may take the
    last seconds. A torn last line of an earlier run is cut off.

    Args:
        path: of the newest file.
        limit_bytes: no file grows beyond it (a single longer line aside).
        keep: older files that are kept.

    Attributes:
        path: of the newest file.
        lost: lines that could not be written since the start, or were too many for a disk that does not answer.

    Raises:
        InputError: the file cannot be opened, or holds something else.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES, keep: int = KEEP) -> None:
        self.lost = 0
        self.path, self._limit, self._keep = path, limit_bytes, keep
        self._waiting: deque[_Waiting] = deque()
        self._changed = Condition()
        self._closed = False
        self._untold = 0
        self._file: int | None = None
        try:
            self._file, self._size = _opened(path)
        except OSError as error:
            raise InputError(
                f"the log cannot be opened: {error.strerror or error}", file=path, remedy="check folder and permissions"
            ) from error
        self._writer = Thread(target=self._write_all, name="log", daemon=True)
        self._writer.start()

    def write(self, kind: str, /, **fields: Any) -> None:
        """Add a line; from any thread. Never waits for the disk.

        Never raises: what cannot be written is counted, and told by the next line.

        Args:
            kind: `start`, `telemetry`, `gap`, `drop`, `broken`, `failed`, `stop`, ...
            fields: whatever belongs to it; `utc`, `kind` and `lost` are the log's own.
        """
        # The log is the last that may stop the stream, whatever a field's own code does.
        try:
            body = _said({key: value for key, value in fields.items() if key not in OWN_KEYS})
        except Exception:
            body = b""
        with self._changed:
            if not body or self._closed or len(self._waiting) >= WAITING_LINES:
                self.lost += 1
                self._untold += 1
                return
            now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
            self._waiting.append(_Waiting(_said({"utc": now, "kind": str(kind)}), body, self._untold))
            self._untold = 0
            self._changed.notify_all()

    def close(self) -> None:
        """Write what waits, for a second at most, and close the file; what comes later is counted as lost.

        May be called twice.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.join(CLOSE_S)
        with self._changed:
            self.lost += len(self._waiting)
            self._waiting.clear()

    def _write_all(self) -> None:
        """The writer's thread: until the log is closed and nothing waits."""
        unwritten = 0
        while (line := self._next()) is not None:
            written = True
            try:
                self._append(line.whole(unwritten))
            # Whatever the disk does: the next line may fare better.
            except Exception:
                written = False
            unwritten = 0 if written else unwritten + line.lost + 1
            with self._changed:
                # A line that `close` gave up is counted already.
                if self._waiting:
                    self._waiting.popleft()
                    self.lost += not written
        self._let_go()

    def _next(self) -> _Waiting | None:
        """The oldest line, which stays where it is until it is written; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            return self._waiting[0]

    def _append(self, line: bytes) -> None:
        if self._size and self._size + len(line) > self._limit:
            self._rotate()
        if self._file is None:
            self._file, self._size = _opened(self.path)
        whole = False
        try:
            whole = os.write(self._file, line) == len(line)
        finally:
            # A full disk may take half of a line: it is cut off when the file is opened again.
            if not whole:
                self._let_go()
        if not whole:
            raise OSError("the disk is full")
        self._size += len(line)

    def _rotate(self) -> None:
        self._let_go()
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{n}") for n in range(1, self._keep + 1))]
        if not self._keep:
            self.path.unlink()
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            with suppress(FileNotFoundError):
                newer.replace(older)

    def _let_go(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None


class Suspects:
    """The list of restored lines that may be wrong, beside them: a log that is there once there is something in it."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path, self._stack = path, stack
        self._log: EventLog | None = None

    def add(self, **fields: Any) -> None:
        """Add lines: `sequence`, `last`, `lines`, `why`; from one thread. A disk that refuses is no reason to end."""
        with suppress(InputError):
            self._log = self._log or self._stack.enter_context(EventLog(self._path))
            self._log.write("suspect", **{key: fields[key] for key in ("sequence", "last", "lines", "why")})


def _said(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(plain_json(fields), allow_nan=False, separators=(",", ":")).encode("ascii")


def _opened(path: Path) -> tuple[int, int]:
    """File and size, without what a crash or a full disk left of a last line."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, 0) != b"{":
            raise InputError("this is no log of a stream", file=path, remedy="name another file for the log")
        start = max(0, size - TAIL_BYTES)
        end = start + os.pread(file, TAIL_BYTES, start).rfind(b"\n") + 1
        if end < size and (end > start or not start):
            os.ftruncate(file, end)
            size = end
    except BaseException:
        os.close(file)
        raise
    return file, size
