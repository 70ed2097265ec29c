"""A ring of line files within a limit: the oldest segment goes when room is needed, once it was read back and right."""

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from runtime.descriptors import insisting, is_shortage
from runtime.durable import sync_folder, write_bytes
from runtime.errors import CubeFileError, DeployError, InputError, MachineError
from runtime.files.envi_header import parse_header
from runtime.priority import ROOM, yield_to_others
from runtime.record.index import PIECE, RECORD, check_file, suffixed

SMALLEST_SEGMENT, LARGEST_SEGMENT = 16 << 20, 1 << 30
"""Bytes of a segment where nothing else was asked for."""
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
    size = segment_bytes or _by_default(limit // 16)
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
            remedy=f"give at least {2 * size + apart} bytes, or smaller segments (stream.segment_mib)",
        )
    return size


def check_kept(limit: int, size: int, segment_bytes: int | None, apart: int, kept: int, *, file: Path) -> None:
    """Refuse a limit that does not hold what a ring that is there never deletes, and one more segment.

    Args:
        limit, segment_bytes, apart: as of `checked_segment_bytes`, which gave `size`.
        kept: bytes of the newest full segment.

    Raises:
        InputError: it does not.
    """
    kept += VERIFIED_BYTES + apart
    if limit < kept + size:
        needed = kept + (segment_bytes or _by_default(kept // 15 + 1))
        raise InputError(
            f"the limit does not hold the newest full segment that is there, which is never deleted, and one of {size} "
            "bytes more; nothing was deleted",
            file=file,
            key="limit",
            value=limit,
            remedy=f"give at least {needed} bytes, or another folder",
        )


def _by_default(size: int) -> int:
    return min(max(size, SMALLEST_SEGMENT), LARGEST_SEGMENT)


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
    # The proof is of data and index alone.
    proven = suffixed(stem, ".verified").exists() and suffixed(stem, ".hdr").exists()
    return Segment(stem, sizes[".idx"] // RECORD.itemsize, sum(sizes.values()), proven)


def _taken(segments: Sequence[Segment]) -> int:
    return sum(segment.bytes + VERIFIED_BYTES for segment in segments)


class Ring:
    """The closed segments of a ring. A thread of its own reads each back; only the newest is never deleted.

    A segment that was right gets a proof, NAME.verified, so that a rerun need not read it again. Proofs are compared
    first, then segments are read back, oldest first. One that was wrong is read again by every rerun.

    Attributes:
        lines, bytes: of the closed segments that are there now.
        deleted_lines, deleted_segments: since the ring was opened, and those whose deletion it finished then.
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

        Waits where segments are still being read back, and calls `waiting` every WAITING_SECONDS. Nothing is deleted
        until what may be deleted is enough.

        Raises:
            MachineError: it is not enough, or it cannot be deleted.
        """
        while not self._made_room(needed):
            waiting()

    def _made_room(self, needed: int) -> bool:
        """Whether there is room; False after WAITING_SECONDS or when one more segment was read back."""
        with self._changed:
            while (excess := _taken(self._segments) + needed - self._allowed) > 0:
                done = [segment for segment in self._segments[:-1] if segment.state == "verified"]
                if _taken(done) >= excess:
                    self._delete(done[0])
                elif any(segment.state == "waiting" for segment in self._segments):
                    self._changed.wait(WAITING_SECONDS)
                    return False
                else:
                    raise self._full(needed, excess - _taken(done))
        return True

    def _full(self, needed: int, short: int) -> MachineError:
        """Why no room can be made: the newest segment is too large, or damaged ones are kept."""
        newest = self._segments[-1:]
        if _taken(newest) + needed > self._allowed:
            names = "".join(segment.stem.name for segment in newest)
            why, first = f"{names or 'the open segment'} is the newest and never deleted", ""
        else:
            why, first = f"{self.bad_segments} damaged segments are kept", "move the damaged segments away or "
        return MachineError(
            f"the ring is full: {why}",
            file=self._segments[0].stem.parent if self._segments else None,
            key="limit",
            remedy=f"{first}raise the limit by {short} bytes or more",
        )

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
        yield_to_others(by=ROOM)
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
    """Delete a segment: first, and for good, its header becomes NAME.deleting, by which an unfinished one is known."""
    with suppress(FileNotFoundError):
        suffixed(stem, ".hdr").replace(suffixed(stem, ".deleting"))
    _synced(stem.parent)
    for suffix in (".verified", ".idx", ".raw"):
        suffixed(stem, suffix).unlink(missing_ok=True)
    _synced(stem.parent)
    suffixed(stem, ".deleting").unlink(missing_ok=True)


def _synced(folder: Path) -> None:
    try:
        insisting(lambda: sync_folder(folder))
    except OSError as error:
        # Where nothing can be opened, a power cut may bring a deleted segment back, and no line is lost for it.
        if not is_shortage(error):
            raise


def finish_deletions(folder: Path, name: str) -> dict[Path, int]:
    """Delete the rest of the segments whose deletion was begun, and nothing else; gives their lines."""
    pattern = re.compile(rf"{re.escape(name)}-[0-9]{{4,}}\.deleting", re.ASCII)
    found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    begun = {path.with_suffix(""): path for path in found if not path.with_suffix(".hdr").exists()}
    lines = {}
    for stem, marker in begun.items():
        lines[stem] = 0
        # A header that cannot be read is of no segment that could be.
        with suppress(OSError, CubeFileError):
            lines[stem] = parse_header(marker.read_text("utf-8", "replace"), path=marker, data_path=stem).lines
        remove_files(stem)
    return lines
