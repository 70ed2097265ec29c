"""One line file, whole or a ring's segment: NAME.raw, NAME.idx and NAME.hdr open for more lines.

Lines are written first, then their records, and the header last: see `runtime.record.writer`.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from runtime.descriptors import hold_back, insisting, is_shortage
from runtime.durable import sync_folder, write_bytes
from runtime.errors import CubeFileError, InputError, MachineError
from runtime.files.disk import write_all_at, write_at
from runtime.record import index as line_index
from runtime.record.index import RECORD, Records, read_line_header, suffixed
from runtime.record.layout import Layout

WRITE_BACK_BYTES = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2
"""linux/fs.h"""
_DATA_SYNC: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


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

    def write(self, pieces: Sequence[memoryview], records: Records) -> None:
        """Append lines and then their records.

        Args:
            pieces: the bytes of each line, of which as many are in as the system takes; or of all of them in one, which
                are in as a whole or not at all.
            records: of the lines.

        Raises:
            MachineError: the system refused; `lines` tells what is in.
        """
        try:
            self._write(pieces, records)
        except MachineError:
            if len(pieces) == 1:
                raise
            for place, piece in enumerate(pieces):
                self._write((piece,), records[place : place + 1])

    def _write(self, pieces: Sequence[memoryview], records: Records) -> None:
        path = self._path[0]
        try:
            write_all_at(self._data, pieces, self.lines * self._size)
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
        hold_back()
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
            insisting(lambda: write_bytes(header, self._layout.header(self.lines, header)))
        except InputError as error:
            if is_shortage(error):
                # The lines are safe, and a later header says so.
                return
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


def _found_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], int] = function
    return found


_sync_file_range = _found_sync_file_range()
