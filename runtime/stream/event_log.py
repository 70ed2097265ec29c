"""The log of a stream: one JSON object per line, bounded in size, and never in the stream's way."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from runtime.errors import InputError

LIMIT_BYTES = 64 << 20
KEEP = 8
TAIL_BYTES = 1 << 20
"""A torn last line is looked for in so much of the file's end."""


def plain_json(value: Any) -> Any:
    """`value` as JSON can say it: numbers that are not finite become null, NumPy's become Python's, others text."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain_json(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


class EventLog:
    """A file of JSON lines, each with `utc` and `kind`; renamed to `NAME.1` to `NAME.8` as it grows.

    Every line is given to the system at once, but not synced: a power cut may take the last seconds. A torn last line
    of an earlier run is cut off.

    Args:
        path: of the newest file.
        limit_bytes: no file grows beyond it (a single longer line aside).
        keep: older files that are kept.

    Attributes:
        lost: lines that could not be written since the start.

    Raises:
        InputError: the file cannot be opened, or holds something else.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES, keep: int = KEEP) -> None:
        self.lost = 0
        self._path, self._limit, self._keep = path, limit_bytes, keep
        self._lock = Lock()
        self._closed = False
        self._told = 0
        self._file: int | None = None
        try:
            self._file, self._size = _opened(path)
        except OSError as error:
            raise InputError(
                f"the log cannot be opened: {error.strerror or error}", file=path, remedy="check folder and permissions"
            ) from error

    def write(self, kind: str, /, **fields: Any) -> None:
        """Add a line; from any thread. Never raises: what cannot be written is counted, and told by the next line.

        Args:
            kind: `start`, `telemetry`, `gap`, `drop`, `broken`, `failed`, `stop`, ...
            fields: whatever belongs to it; `utc`, `kind` and `lost` are the log's own.
        """
        with self._lock:
            try:
                self._append(self._line(kind, fields))
                self._told = self.lost
            # The log is the last that may stop the stream, whatever a field's own code or the disk does.
            except Exception:
                self.lost += 1

    def close(self) -> None:
        """Close the file; later lines are counted as lost. May be called twice."""
        with self._lock:
            self._closed = True
            self._let_go()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
        told: dict[str, Any] = {"utc": now, "kind": str(kind)}
        if self.lost > self._told:
            told["lost"] = self.lost - self._told
        line = {**told, **plain_json(fields), **told}
        return json.dumps(line, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"

    def _append(self, line: bytes) -> None:
        if self._closed:
            raise OSError("the log is closed")
        if self._size and self._size + len(line) > self._limit:
            self._rotate()
        if self._file is None:
            self._file, self._size = _opened(self._path)
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
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._keep + 1))]
        if not self._keep:
            self._path.unlink()
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            with suppress(FileNotFoundError):
                newer.replace(older)

    def _let_go(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None


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
