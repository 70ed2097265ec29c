"""The books of a stream: every line that the source issued, and what became of it."""

import threading
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Count:
    """Lines, at one moment: issued = restored + dropped + incomplete + pending.

    Attributes:
        issued: line numbers that the source issued, missing ones included.
        recorded: written to the record.
        restored: given out, `passed` among them.
        passed: given out as they came.
        dropped: never given out, since restoration was behind, failed, or was told to end.
        incomplete: missing, damaged, or not recorded though a record was asked for.
    """

    issued: int = 0
    recorded: int = 0
    restored: int = 0
    passed: int = 0
    dropped: int = 0
    incomplete: int = 0

    @property
    def pending(self) -> int:
        """On their way: their fate is not known yet."""
        return self.issued - self.restored - self.dropped - self.incomplete

    def as_json(self) -> dict[str, int]:
        content = {"in": self.issued, **asdict(self)}
        del content["issued"]
        return content

    def told(self) -> dict[str, int]:
        """`as_json`, with what is pending."""
        return {**self.as_json(), "pending": self.pending}


class Books:
    """Counts that several threads write and any thread reads, always of one moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines = {one.name: 0 for one in fields(Count)}
        self._closed = False

    def add(self, **lines: int) -> None:
        """Enter lines by `Count`'s names; what belongs together in one call, so that the books always balance."""
        with self._lock:
            if self._closed:
                return
            now = self._lines
            for fate, count in lines.items():
                now[fate] += count
            settled = now["restored"] + now["dropped"] + now["incomplete"]
            assert now["issued"] >= settled, "more lines were settled than issued"

    def close(self, *, record: bool) -> Count:
        """Enter what is still pending, and nothing after it; returns the final count.

        Args:
            record: there is one: what is not in it is incomplete. What else is pending is dropped.
        """
        with self._lock:
            self._closed = True
            now = Count(**self._lines)
            unrecorded = now.issued - now.recorded - now.incomplete if record else 0
            self._lines["dropped"] += now.pending - unrecorded
            self._lines["incomplete"] += unrecorded
            return Count(**self._lines)

    @property
    def count(self) -> Count:
        with self._lock:
            return Count(**self._lines)
