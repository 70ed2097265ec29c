"""A file without a name for a cube that cannot be read, or written, by lines where it is."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.errors import MachineError
from runtime.files.disk import check_space, reason
from runtime.files.rows import Rows, write_rows


class Spool(Closing):
    """A file in the folder of temporary files (`TMPDIR`), which is gone when it is closed.

    Args:
        path: of the product, for errors.
        size: bytes that it will hold.

    Raises:
        MachineError: there is no such folder, or no room in it.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._temporary: IO[bytes] | None = None
        with self.filling():
            check_space(Path(tempfile.gettempdir()), size)
            self._temporary = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    @property
    def file(self) -> BinaryIO:
        return cast(BinaryIO, self._temporary)

    def append(self, data: bytes | memoryview) -> None:
        """Raises MachineError."""
        with self.filling():
            while data:
                data = data[os.write(self.file.fileno(), data) :]

    def write(self, rows: Rows, start: int, cube: NDArray[Any]) -> None:
        """Put lines where they lie (`runtime.files.rows.write_rows`). Raises MachineError."""
        with self.filling():
            write_rows(self.file, rows, start, cube)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """What the system refuses in the block is MachineError."""
        try:
            yield
        except OSError as error:
            raise MachineError(
                f"cannot be unpacked into {tempfile.gettempdir()}: {reason(error)}",
                file=self._path,
                remedy="set TMPDIR to a folder with more room",
            ) from error

    def close(self) -> None:
        if self._temporary is not None:
            self._temporary.close()
