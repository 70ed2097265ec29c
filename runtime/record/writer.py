"""Line files that survive being killed: the raw record and the restored cube.

One file of any size, or a ring of segments within a limit. NAME.raw holds whole lines (BIL, little endian), NAME.idx 32
bytes on each (`runtime.record.index`), NAME.hdr is their ENVI header. Lines are written first, then their records. A
checkpoint syncs both and then replaces the header, so that its `lines` are never more than what a power cut leaves.

A writer is used by one thread; its counts may be read by any.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.descriptors import insisting, is_shortage
from runtime.durable import sync_folder
from runtime.errors import CubeFileError, InputError, MachineError
from runtime.files.disk import write_at
from runtime.lines import LineFormat
from runtime.record.index import (
    RECORD,
    Runs,
    last_sequence,
    read_line_header,
    rising,
    runs_of,
    segment_numbers,
    segment_stem,
    stems,
    suffixed,
)
from runtime.record.layout import MOST_LINES, Layout, check_header, check_record, layout_of
from runtime.record.ring import (
    VERIFIED_BYTES,
    Ring,
    check_kept,
    checked_segment_bytes,
    closed_segment,
    finish_deletions,
)
from runtime.record.segment import LineFile, refused

UNSAVED_BYTES = 512 << 20
"""Lines behind the last checkpoint are checked at a start: so many, then a checkpoint is made unasked."""
Numbers = Sequence[int] | NDArray[Any]


class Lock:
    """The right to write lines of one name into a folder; the system takes it back when the process ends.

    Its file keeps the layout and the meaning of the lines, also for files that were killed before they had a header.
    """

    def __init__(self, path: Path) -> None:
        try:
            import fcntl
        except ImportError as error:
            raise MachineError("line files need a POSIX system", file=path, remedy="record on Linux") from error
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise InputError(
                "another process is writing these lines",
                file=path,
                remedy="stop it first, or record into another folder",
            ) from error
        except OSError:
            self.release()
            raise

    def layout(self) -> str:
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0).decode("utf-8", "replace")

    def keep(self, layout: str) -> None:
        data = layout.encode("utf-8", "replace")
        # The layout in words comes first in what was there before, too: it is never gone.
        write_at(self._descriptor, memoryview(data), 0)
        os.ftruncate(self._descriptor, len(data))
        os.fsync(self._descriptor)
        sync_folder(self.path.parent)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class LineWriter(Closing):
    """Appends lines to one file or a ring of them; see `open_line_writer`. A context manager.

    Attributes:
        appended: lines appended by this writer.
        resumed: what was found of an unclean end and done about it, for the log; None after a clean one.
        waiting: called four times a second while `append` waits for a segment to be read back; may be set. What it
            raises comes out of `append`, which has then not taken the lines that waited.
    """

    waiting: Callable[[], object]

    def __init__(
        self,
        folder: Path,
        name: str,
        layout: Layout,
        lock: Lock,
        *,
        limit: int | None,
        segment_bytes: int | None,
    ) -> None:
        self.appended = 0
        self.waiting = _nothing
        self._folder, self._name, self._layout, self._lock = folder, name, layout, lock
        self._size = layout.format.line_bytes
        self._failed: MachineError | None = None
        self._closed = False
        # The old header and the new one are there for a moment at every checkpoint.
        self._header_room = 2 * len(layout.header(MOST_LINES, folder))
        self._reserve = folder / f"{name}.reserve"
        reserve = 16384 + self._header_room
        self._segment_lines: int | None = None
        self._ring: Ring | None = None
        notes: list[str | None] = []
        if limit is not None:
            self._header_room += 2 * VERIFIED_BYTES
            apart = reserve + len(layout.record().encode("utf-8", "replace"))
            line = self._size + RECORD.itemsize
            size = checked_segment_bytes(limit, segment_bytes, line + self._header_room, apart, file=folder)
            self._segment_lines = (size - self._header_room) // line
            finished = finish_deletions(folder, name)
            notes += [f"{stem.name}: its deletion was finished" for stem in finished]
            self._ring = Ring(limit - apart)
            self._ring.deleted_lines, self._ring.deleted_segments = sum(finished.values()), len(finished)
        try:
            with suppress(OSError):
                # Random bytes: file systems that compress would keep nothing for zeros.
                self._reserve.write_bytes(os.urandom(reserve))
            closed = self._closed_segments()
            notes += [f"{stem.name}: its header is missing; it is kept" for stem in closed if _headless(stem)]
            last = next((found for stem in reversed(closed) if (found := last_sequence(stem)) >= 0), -1)
            self._file = self._opened()
            if limit is not None:
                self._check_kept(limit, size, segment_bytes, apart, closed)
        except BaseException:
            self._give_back()
            raise
        notes.append(self._file.resumed)
        self.resumed = "; ".join(note for note in notes if note) or None
        self._next = 1 + (last if self._file.last is None else self._file.last)

    def _closed_segments(self) -> list[Path]:
        """All segments but the newest, taken into the ring."""
        self._number = 1
        if self._ring is None:
            return []
        *older, self._number = segment_numbers(self._folder, self._name) or [1]
        closed = [segment_stem(self._folder, self._name, number) for number in older]
        for stem in closed:
            self._ring.add(closed_segment(stem))
        return closed

    def _check_kept(self, limit: int, size: int, segment_bytes: int | None, apart: int, closed: list[Path]) -> None:
        full = self._segment_lines is not None and self._file.lines >= self._segment_lines
        newest = [self._file.stem] if full else closed[-1:]
        kept = sum(closed_segment(stem).bytes for stem in newest)
        try:
            check_kept(limit, size, segment_bytes, apart, kept, file=self._folder)
        except InputError:
            self._file.release()
            raise

    def _opened(self) -> LineFile:
        plain = self._ring is None
        stem = self._folder / self._name if plain else segment_stem(self._folder, self._name, self._number)
        return LineFile(stem, self._layout)

    @property
    def files(self) -> tuple[Path, ...]:
        """The data files that are there now, oldest first: one, or those of a ring's segments."""
        found = (suffixed(stem, ".raw") for stem in stems(self._folder, self._name))
        return tuple(path for path in found if path.exists())

    @property
    def next_sequence(self) -> int:
        """The number after the last line's, 0 where there are no lines."""
        return self._next

    def runs(self) -> Runs:
        """Numbers of the lines that are there now."""
        return runs_of(stems(self._folder, self._name))

    @property
    def lines(self) -> int:
        """Whole lines in all files that are there now."""
        return self._file.lines + (self._ring.lines if self._ring else 0)

    @property
    def bytes(self) -> int:
        """Bytes of these lines and of their records."""
        return self._file.lines * (self._size + RECORD.itemsize) + (self._ring.bytes if self._ring else 0)

    @property
    def deleted_lines(self) -> int:
        """Lines of the segments that this writer deleted to stay within the limit."""
        return self._ring.deleted_lines if self._ring else 0

    @property
    def deleted_segments(self) -> int:
        return self._ring.deleted_segments if self._ring else 0

    @property
    def bad_segments(self) -> int:
        """Segments that were not what was written when they were read back; they are kept."""
        return self._ring.bad_segments if self._ring else 0

    @property
    def problems(self) -> tuple[str, ...]:
        """One text for each of these."""
        return tuple(self._ring.problems) if self._ring else ()

    def append(
        self,
        line: NDArray[np.generic],
        sequence: int,
        frame_id: int,
        utc_ns: int,
        flags: int = 0,
        checksum: int | None = None,
    ) -> None:
        """Append a line [bands, samples] of the format's type; see `append_lines`.

        Args:
            checksum: crc32 of the line's bytes, little endian, where the caller knows it.
        """
        known = None if checksum is None else (checksum,)
        self.append_lines((line,), (sequence,), (frame_id,), (utc_ns,), (flags,), known)

    def append_lines(
        self,
        lines: Sequence[NDArray[np.generic]],
        sequence: Numbers,
        frame_id: Numbers,
        utc_ns: Numbers,
        flags: Numbers,
        checksums: Numbers | None = None,
    ) -> None:
        """Append lines [bands, samples] of the format's type that lie anywhere in memory; else as `append_block`.

        Where the system refuses, as many of them are in as it took: `appended` tells.
        """
        self._append([self._bytes(line) for line in lines], sequence, frame_id, utc_ns, flags, checksums)

    def append_block(
        self,
        values: NDArray[np.generic],
        sequence: Numbers,
        frame_id: Numbers,
        utc_ns: Numbers,
        flags: Numbers,
        checksums: Numbers | None = None,
    ) -> None:
        """Append lines [n, bands, samples] of the format's type, from where they lie in memory.

        Nothing is synced: call `checkpoint` once a second or so. A ring may wait here until a segment was read back,
        and calls `waiting` meanwhile.

        Args:
            sequence, frame_id, utc_ns, flags: [n], one for each line; sequence numbers rise, from `next_sequence` on.
            checksums: crc32 [n] of each line's bytes, little endian; None where they are to be worked out.

        Raises:
            MachineError: the system refused. The files end with a whole line (of a block, in one file, either all is in
                or none), `checkpoint` and `close` still work, and every later call raises the same error.
            ValueError: the lines are not of the format, or the numbers do not rise.
        """
        data = self._bytes(values)
        lines = [data[start : start + self._size] for start in range(0, len(data), self._size)]
        self._append(lines, sequence, frame_id, utc_ns, flags, checksums, data)

    def _append(
        self,
        lines: list[memoryview],
        sequence: Numbers,
        frame_id: Numbers,
        utc_ns: Numbers,
        flags: Numbers,
        checksums: Numbers | None,
        block: memoryview | None = None,
    ) -> None:
        if self._failed is not None:
            raise self._failed.with_traceback(None)
        if self._closed:
            raise ValueError("the writer is closed")
        records = np.empty(len(lines), RECORD)
        for key, numbers in (("sequence", sequence), ("frame_id", frame_id), ("utc_ns", utc_ns), ("flags", flags)):
            if len(numbers) != len(lines):
                raise ValueError(f"{len(numbers)} of {key} for {len(lines)} lines")
            records[key] = numbers
        if len(lines) and not (int(records["sequence"][0]) >= self._next and rising(records).all()):
            raise ValueError(f"sequence numbers must rise from {self._next}")
        records["crc32"] = [crc32(line) for line in lines] if checksums is None else checksums
        start = 0
        try:
            while start < len(lines):
                count = self._room(len(lines) - start)
                end = start + count
                pieces = lines[start:end] if block is None else [block[start * self._size : end * self._size]]
                before = self._file.lines
                try:
                    self._file.write(pieces, records[start:end])
                finally:
                    if done := self._file.lines - before:
                        self._next = int(records["sequence"][start + done - 1]) + 1
                        self.appended += done
                start = end
                if self._file.unsaved_bytes >= UNSAVED_BYTES:
                    self.checkpoint()
        except MachineError as error:
            self._failed = error
            self._free_reserve()
            raise

    def _bytes(self, values: NDArray[np.generic]) -> memoryview:
        """Lines [..., bands, samples] as they are stored."""
        format = self._layout.format
        if values.shape[-2:] != format.shape or values.dtype != format.dtype:
            raise ValueError(f"{values.dtype} {values.shape} are not lines of {self._layout.describe()}")
        if values.dtype != self._layout.stored or not values.flags.c_contiguous:
            values = np.ascontiguousarray(values, self._layout.stored)
        return values.reshape(-1).view(np.uint8).data

    def _room(self, wanted: int) -> int:
        """Lines, at least one, that the open file may take now: a ring goes on to a new segment, deletes an old one."""
        if self._ring is None or self._segment_lines is None:
            return wanted
        if self._file.lines >= self._segment_lines:
            self.checkpoint()
            stem = segment_stem(self._folder, self._name, self._number + 1)
            try:
                following = insisting(lambda: LineFile(stem, self._layout))
            except MachineError as error:
                if not is_shortage(error):
                    raise
                # The next segment begins later.
                return wanted
            full, self._file, self._number = self._file, following, self._number + 1
            full.release()
            self._ring.add(closed_segment(full.stem))
        count = min(wanted, self._segment_lines - self._file.lines)
        needed = (self._file.lines + count) * (self._size + RECORD.itemsize) + self._header_room
        self._ring.make_room(needed, self.waiting)
        return count

    def checkpoint(self) -> None:
        """Make every line so far safe from a power cut and let the header say so. Takes tens of milliseconds.

        Raises:
            MachineError: the system refused; the header is as it was.
        """
        try:
            self._file.checkpoint()
        except MachineError:
            if not self._free_reserve():
                raise
            self._file.checkpoint()

    def _free_reserve(self) -> bool:
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Checkpoint and close; may be called twice. Raises MachineError: the last lines are not in the header."""
        if self._closed:
            return
        self._closed = True
        try:
            self._file.tidy()
            self.checkpoint()
        finally:
            self._file.release()
            self._give_back()

    def _give_back(self) -> None:
        if self._ring is not None:
            self._ring.close()
        self._free_reserve()
        self._lock.release()


def _nothing() -> None:
    pass


def _headless(stem: Path) -> bool:
    return not suffixed(stem, ".hdr").exists()


def open_line_writer(
    folder: Path,
    name: str,
    format: LineFormat,
    *,
    fields: Mapping[str, str | None] | None = None,
    limit: int | None = None,
    segment_bytes: int | None = None,
    meaning: str = "",
) -> LineWriter:
    """Create the line files NAME.raw, .idx and .hdr in a folder, or go on with what is there.

    Files that were left in the middle of writing are cut back to whole lines with the right CRC-32.

    Args:
        folder: made where it is not there.
        name: of letters, digits and underscores: `lines` for a record, `restored` for a restored cube.
        format: of the lines.
        fields: of the header (description, wavelength, reflectance scale factor, data ignore value); what the format
            tells is there without being asked for. None drops a key.
        limit: bytes that a ring of segments NAME-0001, NAME-0002, ... may take; None for one file of any size.
        segment_bytes: of a segment; by default a sixteenth of the limit, from 16 MiB to 1 GiB.
        meaning: what else gives the values their meaning, as a short text or a digest: radiometry, bands chosen,
            network. Spaces and line breaks are as good as one space.

    Raises:
        CubeFileError: lines of another shape, type, scale, ignore value, wavelengths or meaning are there (the
            description may be another), or the files do not belong together.
        InputError: another process writes there, the limit is too small (also for what is there and is never deleted),
            or a ring is there and no limit given, or the reverse.
        MachineError: the system refused.
    """
    if re.fullmatch("[A-Za-z0-9_]+", name) is None:
        raise ValueError(f"{name!r} is not a name of letters, digits and underscores")
    layout = layout_of(format, fields or {}, suffixed(folder / name, ".hdr"), meaning)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / f"{name}.lock")
    except FileExistsError as error:
        raise InputError("is not a folder", file=folder, remedy="give a folder, or another name") from error
    except OSError as error:
        raise InputError(
            f"cannot be written to: {error.strerror or error}", file=folder, remedy="check the path and the permissions"
        ) from error
    try:
        _clear_leftovers(folder, name)
        _check_kind(folder, name, limit)
        _check_layout(folder, name, layout, lock)
        return LineWriter(folder, name, layout, lock, limit=limit, segment_bytes=segment_bytes)
    except OSError as error:
        lock.release()
        raise refused(error, Path(error.filename or folder)) from error
    except BaseException:
        lock.release()
        raise


def _clear_leftovers(folder: Path, name: str) -> None:
    """Small files that were being replaced when a process was killed, and proofs of segments that are gone."""
    temporary = re.compile(rf"\.{name}(?:-[0-9]+)?\.(?:hdr|verified)\.[0-9a-f]{{12}}\.part", re.ASCII)
    proof = re.compile(rf"({name}-[0-9]{{4,}})\.verified", re.ASCII)
    there = {stem.name for stem in stems(folder, name)}
    for path in list(folder.iterdir()):
        match = proof.fullmatch(path.name)
        if temporary.fullmatch(path.name) or (match is not None and match[1] not in there):
            path.unlink()


def _check_kind(folder: Path, name: str, limit: int | None) -> None:
    ring = bool(segment_numbers(folder, name))
    if limit is None and ring:
        raise InputError(
            "a ring of segments is there", file=folder, key="limit", remedy="give its limit, or another folder"
        )
    if limit is not None and not ring and stems(folder, name):
        raise InputError(
            f"{name}.raw is there, which is no ring of segments",
            file=folder,
            key="limit",
            value=limit,
            remedy="leave the limit out, or give another folder",
        )


def _check_layout(folder: Path, name: str, layout: Layout, lock: Lock) -> None:
    """Compare with what is there: the newest header, and what the lock remembers."""
    found = stems(folder, name)
    header = next((header for stem in reversed(found) if (header := read_line_header(stem)) is not None), None)
    data = [path for stem in found if (path := suffixed(stem, ".raw")).exists() and path.stat().st_size]
    there = lock.layout()
    if header is not None:
        check_header(header, layout)
    elif data and not there:
        raise CubeFileError("has no header", file=data[-1], remedy="move it elsewhere, nobody knows its layout")
    if there and (header is not None or data):
        check_record(there, layout, lock.path)
    if there != layout.record():
        lock.keep(layout.record())
