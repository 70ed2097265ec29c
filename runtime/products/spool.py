"""A file without a name: for what comes in one order, or packed, and is needed in another."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.errors import MachineError
from runtime.files.disk import check_space, read_from, reason, write_at
from runtime.files.rows import Rows, write_rows

_AT_ONCE = 1 << 20
"""Bytes of lines that are read together; at least one line is."""


class Spool(Closing):
    """Bytes, zero at first, whose room is taken when it is made; gone when it is closed, or its process ends.

    Args:
        path: of the product that it is for, for errors.
        size: bytes that it holds.
        folder: where it lies; None of temporary files (`TMPDIR`).

    Raises:
        MachineError: there is no such folder, or no room in it; also from what reads and writes.
    """

    def __init__(self, path: Path, size: int, folder: Path | None = None) -> None:
        self._path, self._folder, self._next, self._held = path, folder, 0, ExitStack()
        with self.filling(), ExitStack() as stack:
            place = folder or Path(tempfile.gettempdir())
            check_space(place, size)
            self.file = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=place, buffering=0)))
            self.file.truncate(size)
            _reserve(self.file.fileno(), size)
            self._held = stack.pop_all()

    def append(self, data: bytes | memoryview) -> None:
        """Put bytes behind those that were appended before."""
        with self.filling():
            write_at(self.file.fileno(), memoryview(data), self._next)
            self._next += len(data)

    def write(self, offset: int, values: NDArray[Any]) -> None:
        """Put the bytes of a C-contiguous array at `offset`."""
        with self.filling():
            write_at(self.file.fileno(), values.reshape(-1).view(np.uint8).data, offset)

    def read(self, offset: int, into: NDArray[Any]) -> None:
        """Fill a C-contiguous array with the bytes at `offset`."""
        with self.filling():
            if read_from(self.file.fileno(), into.reshape(-1).view(np.uint8).data, offset) < into.nbytes:
                raise OSError(errno.EIO, "the file is shorter than it was")

    def write_rows(self, rows: Rows, start: int, cube: NDArray[Any]) -> None:
        """Put lines where they lie (`runtime.files.rows.write_rows`)."""
        with self.filling():
            write_rows(self.file, rows, start, cube)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """What the system refuses in the block is MachineError."""
        try:
            yield
        except OSError as error:
            key, value, what = None, self._folder, "write to"
            if value is None:
                key, what = "TMPDIR", "set TMPDIR to"
                with suppress(OSError):
                    value = Path(tempfile.gettempdir())
            raise MachineError(
                f"its temporary file failed: {reason(error)}",
                file=self._path,
                key=key,
                value=value and str(value),
                remedy=f"{what} a folder with more room",
            ) from error

    def close(self) -> None:
        self._held.close()


class Tiles(Closing):
    """A cube [bands, lines, samples] in a spool, as [lines][columns of chunks][bands][samples of the column].

    So a chunk is written or read by one call for each of its lines, and lines of the cube by one.

    Args:
        spool: closed with it.
        shape: of the cube.
        dtype: of its numbers.
        width: samples of a column; the last may be narrower.
        offset: of the cube in the spool.
    """

    def __init__(
        self, spool: Spool, shape: tuple[int, int, int], dtype: np.dtype[Any], width: int, offset: int = 0
    ) -> None:
        self._bands, _, self._samples = shape
        self._spool, self._dtype, self._width, self._offset = spool, dtype, width, offset
        self._line = self._bands * self._samples * dtype.itemsize

    def _place(self, band: int, line: int, sample: int, samples: int) -> int:
        return self._offset + line * self._line + (sample * self._bands + band * samples) * self._dtype.itemsize

    def put(self, band: int, line: int, sample: int, piece: NDArray[Any]) -> None:
        """Write what a column holds [some bands, some lines, all its samples], its first value at this place."""
        lines = piece.transpose(1, 0, 2)
        # Those that lie together here and there are written by one call, such as a picture of one band.
        together = lines.flags.c_contiguous and lines[0].nbytes == self._line
        for number, part in enumerate([lines] if together else lines):
            place = self._place(band, line + number, sample, piece.shape[2])
            self._spool.write(place, np.ascontiguousarray(part, self._dtype))

    def get(self, band: int, line: int, sample: int, piece: NDArray[Any]) -> None:
        """Fill the same."""
        part = np.empty((piece.shape[0], piece.shape[2]), self._dtype)
        for number in range(piece.shape[1]):
            self._spool.read(self._place(band, line + number, sample, piece.shape[2]), part)
            piece[:, number] = part

    def lines(self, start: int, cube: NDArray[Any], bands: list[int] | slice = slice(None)) -> None:
        """Fill those bands of lines [bands, n, samples] from `start` on."""
        step = max(1, _AT_ONCE // self._line)
        for first in range(0, cube.shape[1], step):
            count = min(step, cube.shape[1] - first)
            lines = np.empty((count, self._bands * self._samples), self._dtype)
            self._spool.read(self._place(0, start + first, 0, 0), lines)
            for sample in range(0, self._samples, self._width):
                width = min(self._width, self._samples - sample)
                part = lines[:, sample * self._bands : (sample + width) * self._bands]
                part = part.reshape(count, self._bands, width).transpose(1, 0, 2)
                cube[:, first : first + count, sample : sample + width] = part[bands]

    def close(self) -> None:
        self._spool.close()


def _reserve(descriptor: int, size: int) -> None:
    """Raises OSError where there is no room; a system that cannot reserve does nothing."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:
        pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
