"""Line files that survive being killed: the raw record and the restored cube.

One file of any size, or a ring of segments within a limit. NAME.raw holds whole lines (BIL, little endian), NAME.idx 32
bytes on each (`line_index`), NAME.hdr is their ENVI header. Lines are written first, then their records. A checkpoint
syncs both and then replaces the header, so that its `lines` are never more than what a power cut leaves.

A writer is used by one thread; its counts may be read by any.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from runtime.durable import sync_folder, write_bytes
from runtime.errors import CubeFileError, InputError, MachineError
from runtime.files.envi_header import CODE_OF_TYPE
from runtime.files.envi_text import header_text, listed, normalised
from runtime.lines import LineFormat
from runtime.sinks import line_index
from runtime.sinks.line_index import (
    RECORD,
    Records,
    last_sequence,
    read_line_header,
    rising,
    segment_numbers,
    segment_stem,
    stems,
    suffixed,
)
from runtime.sinks.ring import Ring, checked_segment_bytes, closed_segment, remains, remove_files

UNSAVED_BYTES = 512 << 20
"""Lines behind the last checkpoint are checked at a start: so many, then a checkpoint is made unasked."""

WRITE_BACK_BYTES = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2
"""linux/fs.h"""

MOST_LINES = 10**12
"""For the room that a header takes."""

Numbers = Sequence[int] | NDArray[Any]

_DATA_SYNC: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True)
class Layout:
    """How lines lie in the files, and what their headers say."""

    format: LineFormat
    code: int
    stored: np.dtype[Any]
    fields: Mapping[str, str | None]

    def describe(self) -> str:
        return described(self.format.bands, self.format.samples, self.stored)

    def header(self, lines: int, path: Path) -> bytes:
        shape = (self.format.bands, lines, self.format.samples)
        return header_text(shape, self.code, "bil", 0, self.fields, path=path).encode("utf-8", "replace")


def described(bands: int, samples: int, dtype: np.dtype[Any], interleave: str = "bil", offset: int = 0) -> str:
    """A layout in words, the same for the same layout."""
    order = "big endian " if dtype.itemsize > 1 and dtype.newbyteorder(">") == dtype else ""
    other = f", {interleave}, header offset {offset}" if (interleave, offset) != ("bil", 0) else ""
    return f"{bands} bands x {samples} samples, {order}{dtype.newbyteorder('=').name}{other}"


def layout_of(format: LineFormat, fields: Mapping[str, str | None], file: Path) -> Layout:
    """The layout of lines, with header fields of the format where `fields` says nothing of them."""
    name = format.dtype.newbyteorder("=").str[1:]
    if name not in CODE_OF_TYPE or format.bands < 1 or format.samples < 1:
        raise CubeFileError(
            "ENVI files hold lines of " + ", ".join(str(np.dtype(name)) for name in CODE_OF_TYPE),
            file=file,
            value=f"{format.dtype} {list(format.shape)}",
            remedy="convert the lines",
        )
    own: dict[str, str | None] = {}
    if format.wavelengths is not None:
        own |= {"wavelength units": "Nanometers", "wavelength": listed(format.wavelengths)}
    if format.scale is not None:
        own["reflectance scale factor"] = repr(float(format.scale))
    if format.ignore_value is not None:
        own["data ignore value"] = repr(float(format.ignore_value))
    given = {normalised(key) for key in fields}
    fields = {**{key: text for key, text in own.items() if key not in given}, **fields}
    layout = Layout(format, CODE_OF_TYPE[name], np.dtype("<" + name), fields)
    layout.header(MOST_LINES, file)
    return layout


class LineFile:
    """One data file, its index and its header, open for more lines.

    Attributes:
        lines: whole lines in it.
        saved: lines at the last checkpoint.
        last: sequence number of its last line, None where it has none.
        resumed: what was found of an unclean end, None after a clean one.
    """

    def __init__(self, stem: Path, layout: Layout) -> None:
        self.stem = stem
        self.resumed: str | None = None
        self._layout = layout
        self._size = layout.format.line_bytes
        self._lost: MachineError | None = None
        self._started = 0
        header = read_line_header(stem)
        self.lines = self.saved = 0 if header is None else header.lines
        self._path = suffixed(stem, ".raw"), suffixed(stem, ".idx")
        for path, other in (self._path, self._path[::-1]):
            if not path.exists() and (header is not None or (other.exists() and other.stat().st_size)):
                raise CubeFileError("is missing", file=path, remedy="bring it back, or move its companions elsewhere")
        try:
            self._data = os.open(self._path[0], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._index = os.open(self._path[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError:
                os.close(self._data)
                raise
        except OSError as error:
            raise refused(error, Path(error.filename or self._path[0])) from error
        try:
            sync_folder(stem.parent)
            self._resume()
        except OSError as error:
            self.release()
            raise refused(error, self._path[0]) from error
        except BaseException:
            self.release()
            raise

    def _resume(self) -> None:
        sizes = os.fstat(self._data).st_size, os.fstat(self._index).st_size
        whole = min(sizes[0] // self._size, sizes[1] // RECORD.itemsize)
        promised = self.saved
        tail = line_index.intact(self._data, self._index, whole, promised, self._size)
        if tail is None or sizes[0] - whole * self._size > line_index.CHECKED_BYTES:
            raise CubeFileError(
                f"more than {line_index.CHECKED_BYTES >> 20} MiB at its end do not agree with its index",
                file=self._path[0],
                remedy="record into another folder, and keep this one for a person to look at",
            )
        self.lines = tail.lines
        excess = sizes[0] - self.lines * self._size, sizes[1] - self.lines * RECORD.itemsize
        if any(excess) or self.lines != promised:
            self.resumed = (
                f"{self.stem.name}: not closed cleanly: {self.lines} lines are whole, its header said {promised}; cut "
                f"off {excess[0]} bytes of data and {excess[1]} of its index"
            )
        if tail.damaged:
            kept = f"{tail.damaged} damaged lines near the end were saved before and are kept"
            self.resumed = f"{self.resumed}; {kept}" if self.resumed else f"{self.stem.name}: {kept}"
        if self.lines == 0 and promised:
            suffixed(self.stem, ".hdr").unlink()
            sync_folder(self.stem.parent)
            self.saved = 0
        self._cut()
        self.last = int(line_index.records_at(self._index, self.lines - 1, 1)["sequence"][0]) if self.lines else None
        self._started = self.lines * self._size
        self.checkpoint()

    def _cut(self) -> None:
        os.ftruncate(self._data, self.lines * self._size)
        os.ftruncate(self._index, self.lines * RECORD.itemsize)

    def write(self, data: memoryview, records: Records) -> None:
        """Append lines and then their records: all of them, or none and a MachineError."""
        path = self._path[0]
        try:
            write_at(self._data, data, self.lines * self._size)
            path = self._path[1]
            write_at(self._index, records.view(np.uint8).data, self.lines * RECORD.itemsize)
        except OSError as error:
            with suppress(OSError):
                self._cut()
            raise refused(error, path) from error
        self.lines += len(records)
        self.last = int(records["sequence"][-1])
        self._start_write_back()

    def _start_write_back(self) -> None:
        """Let the disk begin, so that a checkpoint finds little left to do."""
        end = self.lines * self._size
        if end - self._started >= WRITE_BACK_BYTES and _sync_file_range is not None:
            _sync_file_range(self._data, self._started, end - self._started, _SYNC_FILE_RANGE_WRITE)
            self._started = end

    @property
    def unsaved_bytes(self) -> int:
        return (self.lines - self.saved) * self._size

    def checkpoint(self) -> None:
        """Make all lines safe and let the header say so. Raises MachineError; the old header stands then."""
        if self._lost is not None:
            raise self._lost
        if self.lines == self.saved:
            return
        path = self._path[0]
        try:
            _DATA_SYNC(self._data)
            path = self._path[1]
            _DATA_SYNC(self._index)
        except OSError as error:
            # The system forgets what it could not write: asked again, it would say that all is well.
            self._lost = refused(error, path)
            raise self._lost from error
        header = suffixed(self.stem, ".hdr")
        try:
            write_bytes(header, self._layout.header(self.lines, header))
        except InputError as error:
            cause = error.__cause__
            raise (refused(cause, header) if isinstance(cause, OSError) else error) from error
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._data, 0, self.lines * self._size, os.POSIX_FADV_DONTNEED)
        self.saved = self.lines

    def release(self) -> None:
        """Close the files as they are."""
        os.close(self._data)
        os.close(self._index)

    def tidy(self) -> None:
        """Cut off what an interrupted write left."""
        with suppress(OSError):
            self._cut()


def refused(error: OSError, file: Path) -> MachineError:
    """A system that does not write, as an error with what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = {
        True: "free space on this disk and start again; what was recorded is kept",
        False: "check the disk and its permissions; what was recorded is kept",
    }[full]
    if error.errno == errno.EFBIG:
        remedy = "raise the limit of file sizes (ulimit -f), or use a disk that holds larger files"
    return MachineError(f"cannot be written: {error.strerror or error}", file=file, remedy=remedy)


def write_at(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of it, however often the system takes a part only."""
    while data:
        count = os.pwrite(descriptor, data, position)
        if count == 0:
            raise OSError(errno.EIO, "the system takes no more bytes")
        data, position = data[count:], position + count


def _found_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], int] = function
    return found


_sync_file_range = _found_sync_file_range()


class Lock:
    """The right to write lines of one name into a folder; the system takes it back when the process ends.

    Its file keeps the layout in words, for files that were killed before they had a header.
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
        return os.pread(self._descriptor, 1000, 0).decode("utf-8", "replace")

    def keep(self, layout: str) -> None:
        os.ftruncate(self._descriptor, 0)
        write_at(self._descriptor, memoryview(layout.encode()), 0)
        os.fsync(self._descriptor)
        sync_folder(self.path.parent)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class LineWriter:
    """Appends lines to one file or a ring of them; see `open_line_writer`. A context manager.

    Attributes:
        appended: lines appended by this writer.
        resumed: what was found of an unclean end and done about it, for the log; None after a clean one.
    """

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
            apart = reserve + len(layout.describe())
            line = self._size + RECORD.itemsize
            size = checked_segment_bytes(limit, segment_bytes, line + self._header_room, apart, file=folder)
            self._segment_lines = (size - self._header_room) // line
            for stem in remains(folder, name):
                remove_files(stem)
                notes.append(f"{stem.name}: its deletion was finished")
            self._ring = Ring(limit - apart)
        try:
            with suppress(OSError):
                # Random bytes: file systems that compress would keep nothing for zeros.
                self._reserve.write_bytes(os.urandom(reserve))
            closed = self._closed_segments()
            last = max((last_sequence(stem) for stem in closed[-1:]), default=-1)
            self._file = self._opened()
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

    def _opened(self) -> LineFile:
        plain = self._ring is None
        stem = self._folder / self._name if plain else segment_stem(self._folder, self._name, self._number)
        return LineFile(stem, self._layout)

    @property
    def next_sequence(self) -> int:
        """The number after the last line's, 0 where there are no lines."""
        return self._next

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
        """Append a line [bands, samples] of the format's type; see `append_block`.

        Args:
            checksum: crc32 of the line's bytes, little endian, where the caller knows it.
        """
        known = None if checksum is None else (checksum,)
        self.append_block(line[None], (sequence,), (frame_id,), (utc_ns,), (flags,), known)

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

        Nothing is synced: call `checkpoint` once a second or so. A ring may wait here until a segment was read back.

        Args:
            sequence, frame_id, utc_ns, flags: [n], one for each line; sequence numbers rise, from `next_sequence` on.
            checksums: crc32 [n] of each line's bytes, little endian; None where they are to be worked out.

        Raises:
            MachineError: the system refused. The files end with a whole line (of a block, in one file, either all is in
                or none), `checkpoint` and `close` still work, and every later call raises the same error.
            ValueError: the lines are not of the format, or the numbers do not rise.
        """
        if self._failed is not None:
            raise self._failed.with_traceback(None)
        if self._closed:
            raise ValueError("the writer is closed")
        format = self._layout.format
        if values.shape[1:] != format.shape or values.dtype != format.dtype:
            raise ValueError(f"{values.dtype} {values.shape} are not lines of {self._layout.describe()}")
        stored = np.ascontiguousarray(values, self._layout.stored)
        records = np.empty(len(values), RECORD)
        for key, numbers in (("sequence", sequence), ("frame_id", frame_id), ("utc_ns", utc_ns), ("flags", flags)):
            if len(numbers) != len(values):
                raise ValueError(f"{len(numbers)} of {key} for {len(values)} lines")
            records[key] = numbers
        if len(records) and not (int(records["sequence"][0]) >= self._next and rising(records).all()):
            raise ValueError(f"sequence numbers must rise from {self._next}")
        data = stored.reshape(-1).view(np.uint8).data
        if checksums is None:
            checksums = [crc32(data[n * self._size : (n + 1) * self._size]) for n in range(len(records))]
        records["crc32"] = checksums
        try:
            while len(records):
                count = self._room(len(records))
                self._file.write(data[: count * self._size], records[:count])
                self._next = int(records["sequence"][count - 1]) + 1
                self.appended += count
                data, records = data[count * self._size :], records[count:]
                if self._file.unsaved_bytes >= UNSAVED_BYTES:
                    self.checkpoint()
        except MachineError as error:
            self._failed = error
            self._free_reserve()
            raise

    def _room(self, wanted: int) -> int:
        """Lines, at least one, that the open file may take now: a ring goes on to a new segment, deletes an old one."""
        if self._ring is None or self._segment_lines is None:
            return wanted
        if self._file.lines >= self._segment_lines:
            self.checkpoint()
            following = LineFile(segment_stem(self._folder, self._name, self._number + 1), self._layout)
            full, self._file, self._number = self._file, following, self._number + 1
            full.release()
            self._ring.add(closed_segment(full.stem))
        count = min(wanted, self._segment_lines - self._file.lines)
        self._ring.make_room((self._file.lines + count) * (self._size + RECORD.itemsize) + self._header_room)
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

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_line_writer(
    folder: Path,
    name: str,
    format: LineFormat,
    *,
    fields: Mapping[str, str | None] | None = None,
    limit: int | None = None,
    segment_bytes: int | None = None,
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

    Raises:
        CubeFileError: lines of another layout are there, or the files do not belong together.
        InputError: another process writes there, the limit is too small, or a ring is there and no limit given, or
            the reverse.
        MachineError: the system refused.
    """
    if re.fullmatch("[A-Za-z0-9_]+", name) is None:
        raise ValueError(f"{name!r} is not a name of letters, digits and underscores")
    layout = layout_of(format, fields or {}, suffixed(folder / name, ".hdr"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / f"{name}.lock")
    except OSError as error:
        raise InputError(
            f"cannot be written to: {error.strerror or error}", file=folder, remedy="check the path and the permissions"
        ) from error
    try:
        _clear_temporary(folder, name)
        _check_kind(folder, name, limit)
        _check_layout(folder, name, layout, lock)
        return LineWriter(folder, name, layout, lock, limit=limit, segment_bytes=segment_bytes)
    except OSError as error:
        lock.release()
        raise refused(error, Path(error.filename or folder)) from error
    except BaseException:
        lock.release()
        raise


def _clear_temporary(folder: Path, name: str) -> None:
    """Headers that were being replaced when a process was killed."""
    pattern = re.compile(rf"\.{name}(?:-[0-9]+)?\.hdr\.[0-9a-f]{{12}}\.part", re.ASCII)
    for path in folder.iterdir():
        if pattern.fullmatch(path.name):
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
    """Compare with what is there: the newest header, or without one what the lock remembers."""
    wanted = layout.describe()
    found = stems(folder, name)
    header = next((header for stem in reversed(found) if (header := read_line_header(stem)) is not None), None)
    if header is not None:
        there = described(header.bands, header.samples, header.dtype, header.interleave, header.header_offset)
        file = header.path
    else:
        there, file = lock.layout(), lock.path
        data = [path for stem in found if (path := suffixed(stem, ".raw")).exists() and path.stat().st_size]
        if not data:
            there = wanted
        elif not there:
            raise CubeFileError("has no header", file=data[-1], remedy="move it elsewhere, nobody knows its layout")
    if there != wanted:
        raise CubeFileError(
            f"the lines that are there have {there}, those to come {wanted}",
            file=file,
            remedy="record into another folder",
        )
    if lock.layout() != wanted:
        lock.keep(wanted)
