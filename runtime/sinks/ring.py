"""A ring of line files within a limit: the oldest segment goes when room is needed, once it was read back and right."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from runtime.durable import sync_folder, write_bytes
from runtime.errors import DeployError, InputError, MachineError
from runtime.sinks.line_index import PIECE, RECORD, check_file, segment_numbers, segment_stem, suffixed

SMALLEST_SEGMENT, LARGEST_SEGMENT = 16 << 20, 1 << 30
"""Bytes of a segment where nothing else was asked for."""

NICENESS = 10

WAITING_SECONDS = 0.25
"""Between two calls of `waiting`."""

VERIFIED_BYTES = 64
"""Most that a proof takes."""


def checked_segment_bytes(limit: int, segment_bytes: int | None, line: int, apart: int, *, file: Path) -> int:
    """Size of a segment that suits a limit.

    Args:
        limit: bytes of everything.
        segment_bytes: what was asked for; None for a sixteenth of the limit, from 16 MiB to 1 GiB.
        line: bytes of a line with its record and the header of its segment.
        apart: bytes of what is no segment.

    Raises:
        InputError: the limit does not hold two segments, or a segment no line.
    """
    size = segment_bytes or min(max(limit // 16, SMALLEST_SEGMENT), LARGEST_SEGMENT)
    if size < line:
        raise InputError(
            "a segment does not hold one line",
            file=file,
            key="segment_bytes",
            value=size,
            remedy=f"give at least {line} bytes",
        )
    if limit < 2 * size + apart:
        raise InputError(
            f"the limit does not hold two segments of {size} bytes",
            file=file,
            key="limit",
            value=limit,
            remedy=f"give at least {2 * size + apart} bytes, or smaller segments",
        )
    return size


@dataclass
class Segment:
    """A closed segment.

    Attributes:
        lines, bytes: what it holds.
        proven: whether a proof lies beside it, until that is found to be of other files.
        state: whether it was read back: `waiting`, `verified` or `bad`.
    """

    stem: Path
    lines: int
    bytes: int
    proven: bool = False
    state: str = "waiting"


def closed_segment(stem: Path) -> Segment:
    """A segment as it lies there; where its data or index is gone, reading it back will tell."""
    sizes = dict.fromkeys((".raw", ".idx", ".hdr"), 0)
    for suffix in sizes:
        with suppress(OSError):
            sizes[suffix] = suffixed(stem, suffix).stat().st_size
    proven = suffixed(stem, ".verified").exists()
    return Segment(stem, sizes[".idx"] // RECORD.itemsize, sum(sizes.values()), proven)


class Ring:
    """The closed segments of a ring. A thread of its own reads each back; only the newest is never deleted.

    A segment that was right gets a proof, NAME.verified, so that a rerun need not read it again. Proofs are compared
    first, then segments are read back, oldest first. One that was wrong is read again by every rerun.

    Attributes:
        lines, bytes: of the closed segments that are there now.
        deleted_lines, deleted_segments: since the ring was opened.
        problems: one for each segment that is not what was written. It is kept.
    """

    def __init__(self, allowed: int) -> None:
        self.lines = self.bytes = self.deleted_lines = self.deleted_segments = 0
        self.problems: list[str] = []
        self._allowed = allowed
        self._segments: list[Segment] = []
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._verify_all, name="ring-verify", daemon=True)
        self._thread.start()

    @property
    def bad_segments(self) -> int:
        return sum(segment.state == "bad" for segment in tuple(self._segments))

    def add(self, segment: Segment) -> None:
        """Take a segment that was closed and synced; it is now the newest."""
        with self._changed:
            self._segments.append(segment)
            self.lines += segment.lines
            self.bytes += segment.bytes
            self._changed.notify_all()

    def make_room(self, needed: int, waiting: Callable[[], object]) -> None:
        """Delete the oldest verified segments until `needed` bytes beside the others are within the limit.

        Waits where segments are still being read back, and calls `waiting` every WAITING_SECONDS.

        Raises:
            MachineError: no segment may be deleted, or it cannot be.
        """
        while not self._made_room(needed):
            waiting()

    def _made_room(self, needed: int) -> bool:
        """Whether there is room; False after WAITING_SECONDS or when one more segment was read back."""
        with self._changed:
            while self.bytes + len(self._segments) * VERIFIED_BYTES + needed > self._allowed:
                older = self._segments[:-1]
                done = next((segment for segment in older if segment.state == "verified"), None)
                if done is not None:
                    self._delete(done)
                elif any(segment.state == "waiting" for segment in older):
                    self._changed.wait(WAITING_SECONDS)
                    return False
                else:
                    raise MachineError(
                        f"the ring is full: {self.bad_segments} damaged segments are kept",
                        file=self._segments[0].stem.parent if self._segments else None,
                        key="limit",
                        remedy="move the damaged segments away or raise the limit",
                    )
        return True

    def _delete(self, segment: Segment) -> None:
        try:
            remove_files(segment.stem)
        except OSError as error:
            raise MachineError(
                f"cannot be deleted to make room: {error.strerror or error}",
                file=error.filename or segment.stem,
                remedy="check the folder and its permissions",
            ) from error
        self._segments.remove(segment)
        self.lines -= segment.lines
        self.bytes -= segment.bytes
        self.deleted_lines += segment.lines
        self.deleted_segments += 1

    def _verify_all(self) -> None:
        with suppress(OSError, AttributeError):
            # Linux: of this thread alone.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            with self._changed:
                while not self._stopping.is_set() and self._next() is None:
                    self._changed.wait()
                segment = self._next()
            if segment is None or self._stopping.is_set():
                return
            if segment.proven and not holds(segment.stem):
                segment.proven = False
                continue
            problem = None if segment.proven else self._read_back(segment)
            if self._stopping.is_set():
                return
            with self._changed:
                segment.state = "bad" if problem else "verified"
                self.problems += [problem] if problem else []
                self._changed.notify_all()

    def _read_back(self, segment: Segment) -> str | None:
        """What is wrong with a segment, or None and a proof beside it."""
        # Before the reading: what changes in between is not proven.
        proof = proof_of(segment.stem)
        problem = problem_of(segment, self._stopping.is_set)
        if problem is None and proof is not None and not self._stopping.is_set():
            with suppress(InputError):  # without it a rerun reads the segment again, and that is all
                write_bytes(suffixed(segment.stem, ".verified"), proof)
        return problem

    def _next(self) -> Segment | None:
        left = [segment for segment in self._segments if segment.state == "waiting"]
        return next((segment for segment in left if segment.proven), left[0] if left else None)

    def close(self) -> None:
        """Stop reading back, at once; may be called twice."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()


def problem_of(segment: Segment, stop: Callable[[], bool]) -> str | None:
    """Read a segment back from the disk; what is wrong with it, as one line, or None."""
    try:
        report = check_file(segment.stem, stop=stop)
    except DeployError as error:
        return error.one_line()
    except Exception as error:  # a segment that cannot be judged is kept, and nobody waits for it for ever
        return f"{segment.stem.name}: {type(error).__name__}: {error}"
    return "; ".join(report.problems) or None


def proof_of(stem: Path) -> bytes | None:
    """Sizes of a segment's data and index, and CRC-32 of the index, which has those of all lines; None: no files."""
    crc = 0
    try:
        sizes = [suffixed(stem, suffix).stat().st_size for suffix in (".raw", ".idx")]
        with suffixed(stem, ".idx").open("rb", buffering=0) as index:
            while piece := index.read(PIECE):
                crc = crc32(piece, crc)
    except OSError:
        return None
    return f"{sizes[0]} {sizes[1]} {crc:08x}\n".encode()


def holds(stem: Path) -> bool:
    """Whether the proof beside a segment is one of what lies there now."""
    try:
        return suffixed(stem, ".verified").read_bytes() == proof_of(stem)
    except OSError:
        return False


def remove_files(stem: Path) -> None:
    """Delete a segment: its header first and for good, so that what a power cut leaves is not taken for a segment."""
    suffixed(stem, ".hdr").unlink(missing_ok=True)
    sync_folder(stem.parent)
    suffixed(stem, ".verified").unlink(missing_ok=True)
    suffixed(stem, ".idx").unlink(missing_ok=True)
    suffixed(stem, ".raw").unlink(missing_ok=True)


def remains(folder: Path, name: str) -> list[Path]:
    """Segments whose deletion was begun: without a header, and not the newest, which may not have one yet."""
    found = [segment_stem(folder, name, number) for number in segment_numbers(folder, name)]
    return [stem for stem in found[:-1] if not suffixed(stem, ".hdr").exists()]
