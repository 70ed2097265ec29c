"""A flat file that has no name: for what comes in one order and is needed in another."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.errors import MachineError
from runtime.files.disk import reason

_REMEDY = "set TMPDIR to a folder with more space"


class Scratch(Closing):
    """Bytes in an unlinked temporary file, reserved when it is made; gone when it is closed, or its process ends.

    Args:
        size: bytes that it holds.
        path: of the product that it is for, for errors.

    Raises:
        MachineError: the folder for temporary files (`TMPDIR`) has no such space; also from `write` and `read`.
    """

    def __init__(self, size: int, path: Path) -> None:
        self._path = path
        try:
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            if size > free:
                problem = f"needs {size} bytes of temporary space, {free} are free"
                raise MachineError(problem, file=path, key="TMPDIR", value=folder, remedy=_REMEDY)
            self._file = tempfile.TemporaryFile(prefix="damp-deploy-", buffering=0)  # noqa: SIM115
        except OSError as error:
            self._fail(error)
        try:
            os.posix_fallocate(self._file.fileno(), 0, max(1, size))
        except AttributeError:  # Not every system can reserve.
            pass
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.close()
                self._fail(error)

    def write(self, offset: int, values: NDArray[Any]) -> None:
        """Put the bytes of a C-contiguous array at `offset`."""
        data = values.reshape(-1).view(np.uint8).data
        try:
            while data:
                done = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[done:], offset + done
        except OSError as error:
            self._fail(error)

    def read(self, offset: int, into: NDArray[Any]) -> None:
        """Fill a C-contiguous array with the bytes at `offset`."""
        data = into.reshape(-1).view(np.uint8).data
        try:
            while data:
                done = os.preadv(self._file.fileno(), [data], offset)
                if not done:
                    raise OSError(errno.EIO, "the file is shorter than it was")
                data, offset = data[done:], offset + done
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        self._file.close()

    def _fail(self, error: OSError) -> NoReturn:
        problem = f"its temporary file failed: {reason(error)}"
        raise MachineError(problem, file=self._path, key="TMPDIR", remedy=_REMEDY) from error


class Tiles(Closing):
    """A cube [bands, lines, samples] in such a file, as [lines][columns of chunks][bands][samples of the column].

    So a chunk is written or read by one call for each of its lines, and lines of the cube by one.

    Args:
        shape: of the cube.
        dtype: of its numbers.
        width: samples of a column; the last may be narrower.
        path: of the product that it is for.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype[Any], width: int, path: Path) -> None:
        self._bands, _, self._samples = shape
        self._dtype, self._width = dtype, width
        self._line = self._bands * self._samples * dtype.itemsize
        self._spool = Scratch(self._line * shape[1], path)

    def _place(self, band: int, line: int, sample: int, samples: int) -> int:
        return line * self._line + (sample * self._bands + band * samples) * self._dtype.itemsize

    def put(self, band: int, line: int, sample: int, piece: NDArray[Any]) -> None:
        """Write what a column holds [some bands, some lines, all its samples], its first value at this place."""
        for number in range(piece.shape[1]):
            place = self._place(band, line + number, sample, piece.shape[2])
            self._spool.write(place, np.ascontiguousarray(piece[:, number]))

    def get(self, band: int, line: int, sample: int, piece: NDArray[Any]) -> None:
        """Fill the same."""
        part = np.empty((piece.shape[0], piece.shape[2]), self._dtype)
        for number in range(piece.shape[1]):
            self._spool.read(self._place(band, line + number, sample, piece.shape[2]), part)
            piece[:, number] = part

    def lines(self, start: int, cube: NDArray[Any]) -> None:
        """Fill lines [bands, n, samples] from `start` on."""
        line = np.empty(self._bands * self._samples, self._dtype)
        for number in range(cube.shape[1]):
            self._spool.read((start + number) * self._line, line)
            for sample in range(0, self._samples, self._width):
                width = min(self._width, self._samples - sample)
                part = line[sample * self._bands : (sample + width) * self._bands]
                cube[:, number, sample : sample + width] = part.reshape(self._bands, width)

    def close(self) -> None:
        self._spool.close()
