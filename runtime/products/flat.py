"""Readers of cubes whose numbers lie in plain rows: in the product's own file, or unpacked into one without a name."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, BinaryIO

from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import mark_of, opened
from runtime.files.rows import Rows, read_rows, turn_rows
from runtime.products.contract import CubeReader, Description
from runtime.products.spool import Spool


class FlatReader(CubeReader):
    """Reads lines from one open file, renamed and deleted ones too; of one that was written to since it is an error.

    Args:
        description: of the product; its first file holds the numbers.
        rows: how they lie there, or in what `unpack` makes.
        unpack: fills a file of `rows.end` bytes when the first line is asked for; None where nothing is packed.
    """

    def __init__(self, description: Description, rows: Rows, unpack: Callable[[Spool], None] | None = None) -> None:
        self.description = description
        self._rows, self._unpack, self._held = rows, unpack, ExitStack()
        self._file: BinaryIO | None = None
        self._source: BinaryIO | None = None
        if unpack is None:
            self._source, _ = self._held.enter_context(opened(description.files[0]))
        self._mark = self._now()

    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        path, count = self.description.files[0], self._rows.shape[1]
        if not 0 <= start < stop <= count:
            raise CubeFileError(
                f"lines {start} to {stop} are not within the cube",
                file=path,
                key="lines",
                value=count,
                remedy=f"ask for lines from 0 to {count}",
            )
        if self._file is None:
            self._file = self._prepared()
        lines = read_rows(self._file, path, self._rows, start, stop)
        if self._file is self._source:
            self._check()
        return lines

    def close(self) -> None:
        self._held.close()

    def _prepared(self) -> BinaryIO:
        """The file of the lines: the product's own, or what was unpacked, or turned for them to lie together."""
        path, rows, file = self.description.files[0], self._rows, self._source
        if self._unpack is not None:
            spool = self._held.enter_context(Spool(path, rows.end))
            self._unpack(spool)
            file = spool.file
        assert file is not None
        if rows.depth == 2:
            spool = self._held.enter_context(Spool(path, rows.end))
            with spool.filling():
                self._rows = turn_rows(file, path, rows, spool.file)
            file = spool.file
        self._check()
        return file

    def _now(self) -> object:
        if self._source is None:
            return [mark_of(path) for path in self.description.files]
        status = os.fstat(self._source.fileno())
        return status.st_size, status.st_mtime_ns

    def _check(self) -> None:
        if self._now() != self._mark:
            raise CubeFileError(
                "was written to after it was opened",
                file=self.description.files[0],
                remedy="read it when nothing writes to it",
            )
