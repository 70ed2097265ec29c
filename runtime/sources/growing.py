"""An ENVI pair that is still being recorded: its open data file, and the header while it is rewritten."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.errors import CubeFileError
from runtime.files.disk import mark_of, opened, reason
from runtime.files.envi import read_text
from runtime.files.envi_header import EnviHeader, parse_header, stated_by
from runtime.files.envi_text import GAIN_KEYS
from runtime.sources.contract import SourceOptions

_NO_LINES = re.compile(r"^([ \t]*lines[ \t]*=[ \t]*)0+(?=[ \t\r]*$)", re.ASCII | re.IGNORECASE | re.MULTILINE)

_CONVERTING = ("gains", "offsets", "reflectance_gains", "reflectance_offsets")
_MEANING = {
    "reflectance scale factor": "scale",
    "wavelength": "wavelengths",
    "data ignore value": "marks",
    "bbl": "bad",
    **dict(zip(GAIN_KEYS, _CONVERTING, strict=True)),
}
"""Keys that say what numbers mean, and what of `Stated` they become."""
_SETTLED_S = 0.2
"""What a header says anew is believed when it stands there for so long: it may be half written."""


@dataclass(eq=False)
class Growing:
    """The open data file of a pair, and the header as it was last read."""

    header: EnviHeader
    header_mark: tuple[int, ...]
    data: BinaryIO
    stack: ExitStack
    _anew: tuple[tuple[int, ...], float] = ((), 0.0)

    @classmethod
    def opened(cls, header_path: Path, data_path: Path) -> Growing:
        """Raises CubeFileError: there is no such file, no data in it, or no whole header."""
        mark = mark_of(header_path)
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

    def check_header(self, options: SourceOptions) -> bool:
        """Read the header again where it was rewritten; one that is not whole is left alone until it changes again.

        Returns:
            whether it says what it said before; it may say otherwise where it is being written just now.

        Raises:
            CubeFileError: it says now that the lines look otherwise, or mean something else, than they were read.
        """
        mark = mark_of(self.header.path)
        if mark in (self.header_mark, ()):
            return True
        if self._anew[0] != mark:
            self._anew = mark, time.monotonic()
        header, keys = self.header, []
        with suppress(CubeFileError):
            header = _read(header.path, header.data_path)
            keys = changed(self.header, header, options)
        # The header of a file that has taken this one's place is that file's.
        if (layout(header) == layout(self.header) and not keys) or self.replaced():
            self.header_mark = mark
            return True
        if time.monotonic() - self._anew[1] < _SETTLED_S:
            return False
        if layout(header) == layout(self.header):
            raise CubeFileError(
                "the header was rewritten, and says something else of the numbers than the lines were read by",
                file=header.path,
                key=", ".join(keys),
                value=header.fields.get(keys[0]),
                remedy="read the file again when it is whole, or tell its recorder to say this before the first line",
            )
        raise CubeFileError(
            "the header was rewritten with another layout than the lines were read with",
            file=header.path,
            value=in_words(header),
            remedy=f"it was {in_words(self.header)}; read the file again when it is whole",
        )

    def close(self) -> None:
        self.stack.close()


def _read(path: Path, data_path: Path) -> EnviHeader:
    # Recorders write `lines = 0` until they know better, which a finished file must not say.
    return parse_header(_NO_LINES.sub(r"\g<1>1", read_text(path)), path=path, data_path=data_path)


def layout(header: EnviHeader) -> tuple[object, ...]:
    """What says where each value of a line is; the number of lines is no part of it."""
    return header.bands, header.samples, header.dtype, header.interleave, header.header_offset


def changed(old: EnviHeader, new: EnviHeader, options: SourceOptions) -> list[str]:
    """Keys that say something else of what the numbers mean, without those for which the options speak."""
    told = {"scale": options.scale, "wavelengths": options.wavelengths}
    one, two = stated_by(old), stated_by(new)
    # By their text, since the mark of missing pixels may be NaN.
    differs = {name: repr(getattr(one, name)) != repr(getattr(two, name)) for name in _MEANING.values()}
    return [key for key, name in _MEANING.items() if differs[name] and told.get(name) is None]


def in_words(header: EnviHeader) -> str:
    """The layout of the lines, for messages."""
    offset = f" after {header.header_offset} bytes" if header.header_offset else ""
    return f"{header.interleave} {header.bands} x {header.samples} {header.dtype.str}{offset}"
