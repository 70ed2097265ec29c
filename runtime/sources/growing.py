"""An ENVI pair that is still being recorded: its open data file, and the header while it is rewritten."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.errors import CubeFileError
from runtime.files.disk import opened, reason
from runtime.files.envi import read_text
from runtime.files.envi_header import EnviHeader, parse_header

_NO_LINES = re.compile(r"^([ \t]*lines[ \t]*=[ \t]*)0+(?=[ \t\r]*$)", re.ASCII | re.IGNORECASE | re.MULTILINE)


@dataclass(eq=False)
class Growing:
    """The open data file of a pair, and the header as it was last read."""

    header: EnviHeader
    header_mark: tuple[int, ...]
    data: BinaryIO
    stack: ExitStack

    @classmethod
    def opened(cls, header_path: Path, data_path: Path) -> Growing:
        """Raises CubeFileError: there is no such file, no data in it, or no whole header."""
        mark = _mark(header_path)
        header = _read(header_path, data_path)
        with ExitStack() as stack:
            data, _ = stack.enter_context(opened(data_path))
            return cls(header, mark, data, stack.pop_all())

    def size(self) -> int:
        return self._status().st_size

    def replaced(self) -> bool:
        """Whether another file has its name; a file that has none any more may still grow."""
        here = self._status()
        with suppress(OSError):
            there = self.header.data_path.stat()
            return (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)
        return False

    def _status(self) -> os.stat_result:
        try:
            return os.fstat(self.data.fileno())
        except OSError as error:
            raise CubeFileError(
                f"cannot be read: {reason(error)}", file=self.header.data_path, remedy="check the disk"
            ) from error

    def check_header(self) -> None:
        """Read the header again where it was rewritten; one that is not whole is left alone until it changes again.

        Raises:
            CubeFileError: it says now that the lines look otherwise than they were read.
        """
        mark = _mark(self.header.path)
        if mark in (self.header_mark, ()):
            return
        self.header_mark = mark
        try:
            header = _read(self.header.path, self.header.data_path)
        except CubeFileError:
            return
        # The header of a file that has taken this one's place is that file's.
        if layout(header) != layout(self.header) and not self.replaced():
            raise CubeFileError(
                "the header was rewritten with another layout than the lines were read with",
                file=self.header.path,
                value=in_words(header),
                remedy=f"it was {in_words(self.header)}; read the file again when it is whole",
            )

    def close(self) -> None:
        self.stack.close()


def _read(path: Path, data_path: Path) -> EnviHeader:
    # Recorders write `lines = 0` until they know better, which a finished file must not say.
    return parse_header(_NO_LINES.sub(r"\g<1>1", read_text(path)), path=path, data_path=data_path)


def _mark(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty where there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def layout(header: EnviHeader) -> tuple[object, ...]:
    """What says where each value of a line is; the number of lines is no part of it."""
    return header.bands, header.samples, header.dtype, header.interleave, header.header_offset


def in_words(header: EnviHeader) -> str:
    """The layout of the lines, for messages."""
    offset = f" after {header.header_offset} bytes" if header.header_offset else ""
    return f"{header.interleave} {header.bands} x {header.samples} {header.dtype.str}{offset}"
