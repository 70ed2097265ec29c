"""`envi:PATH`: the lines of a finished ENVI pair, as fast as they are taken or at a rate.

The reader and the format are `watch:`'s too. Of a record of ours the index beside it says where runs and pictures
begin.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError, InputError
from runtime.files.disk import PIECE, allocated, opened
from runtime.files.envi import read_header, read_lines
from runtime.files.envi_header import EnviHeader, stated_by, wavelengths_nm
from runtime.files.rows import read_block
from runtime.lines import NO_FLAGS, Ended, Event, Flag, Line, LineFormat, Quiet, Taken
from runtime.record.index import read_index
from runtime.sources.contract import Source, SourceOptions, refuse_other_frames
from runtime.sources.pacing import Pace, check_buffer
from runtime.stated import Stated

SAMPLED_LINES, SAMPLED_BYTES = 64, 64 << 20
"""So many lines, of so many bytes in all, are looked at before the first is taken."""
BLOCK_LINES = 64
"""Lines that are read at a time, fewer where they are large."""


def open_source(address: str, options: SourceOptions) -> EnviFile:
    """Open the ENVI pair of which `address` is the header or the data file.

    Raises:
        CubeFileError: as `runtime.files.envi.read_header`.
        InputError: the address is empty, or the options do not fit the file.
    """
    return EnviFile(read_header(path_of(address, "envi")), options)


class EnviFile(Source):
    """A finished ENVI pair of any interleave and byte order. Frame ids are line numbers, from 0."""

    live = False

    def __init__(self, header: EnviHeader, options: SourceOptions) -> None:
        self.format, self.stated = format_of(header, options), stated_by(header)
        self._pace = Pace(options.rate)
        self._header = header
        self._lines = LineReader(header, options.frame, steady=True)

    def read(self, line: Line, timeout: float) -> Event:
        check_buffer(line, self.format)
        if not self._lines.left:
            return Ended()
        if not self._pace.wait(timeout):
            return Quiet()
        taken = self._lines.take(line)
        self._pace.step()
        return taken

    def sample(self) -> NDArray[Any] | None:
        return sampled(self._header, self._header.lines)

    def describe(self) -> dict[str, str]:
        return described("envi", self._header)

    def close(self) -> None:
        self._lines.close()


class LineReader:
    """The lines of a finished ENVI file in order, read a block at a time from one open file.

    A file that is renamed or deleted meanwhile is read to its end; one that is cut short gives the whole lines before
    the cut (not bsq), then an error.

    Args:
        header: of the pair.
        frame: see `SourceOptions`.
        steady: it is an error where somebody writes to the file, even where all lines are still there.

    Attributes:
        next: number of the line that comes next.

    Raises:
        CubeFileError: the data file cannot be read, or has no whole frames and no index that tells them.
    """

    def __init__(self, header: EnviHeader, frame: int | None = None, *, steady: bool = False) -> None:
        self._header, self._flags = header, _recorded(header)
        if self._flags is None:
            refuse_other_frames(header.lines, frame, header.path)
        self._block = allocated(header.data_path, block_shape(header, header.lines), header.dtype)
        self._first = self._held = self.next = 0
        self._stack = ExitStack()
        self._file, _ = self._stack.enter_context(opened(header.data_path))
        self._end = header.lines
        self._written = self._status().st_mtime_ns if steady else None

    @property
    def left(self) -> int:
        """Lines that are still to come; none after `close`."""
        return self._end - self.next

    def take(self, line: Line) -> Taken:
        """Put the next line into `line`, native [bands, samples]. Raises CubeFileError: the file was cut short."""
        if self.next == self._first + self._held:
            self._fill()
        line_in(self._block, self._header.interleave, self.next - self._first, line)
        self.next += 1
        flags = NO_FLAGS if self._flags is None else Flag(int(self._flags[self.next - 1])) & (Flag.BREAK | Flag.END)
        return Taken(self.next - 1, time.time_ns(), flags if self.next > 1 else flags | Flag.BREAK)

    def close(self) -> None:
        self._end = self.next
        self._stack.close()

    def _fill(self) -> None:
        header, rows = self._header, self._header.rows
        block = self._block[:, : self.left] if rows.depth else self._block[: self.left]
        count = read_block(self._file, header.data_path, rows, self.next, block)
        if not count:
            raise self._cut_short()
        now = self._status()
        if (
            self._written not in (None, now.st_mtime_ns)
            and now.st_size >= header.header_offset + header.lines * header.line_bytes
        ):
            raise CubeFileError(
                f"was written to while it was read: line {self.next} may be another one",
                file=header.data_path,
                key="lines",
                value=header.lines,
                remedy="read it when nothing writes to it, or with envi-live: while it grows",
            )
        self._first, self._held = self.next, count

    def _status(self) -> os.stat_result:
        return os.fstat(self._file.fileno())

    def _cut_short(self) -> CubeFileError:
        return CubeFileError(
            f"was cut short while it was read: line {self.next} is no longer whole",
            file=self._header.data_path,
            key="lines",
            value=self._header.lines,
            remedy="copy the file again, and read it when nothing writes to it",
        )


def _recorded(header: EnviHeader) -> NDArray[np.uint32] | None:
    """Flags [lines] that the index of a record of ours has; None where there is none, or of fewer lines."""
    index = header.data_path.with_suffix(".idx")
    if header.data_path.suffix != ".raw" or not index.is_file():
        return None
    flags: NDArray[np.uint32] = read_index(index)["flags"][: header.lines]
    return flags if len(flags) == header.lines else None


def path_of(address: str, scheme: str) -> Path:
    """The path of an address; InputError where there is none."""
    if not address:
        raise InputError("the path is missing", key="--source", value=f"{scheme}:", remedy=f"give {scheme}:PATH")
    return Path(address)


def format_of(header: EnviHeader, options: SourceOptions) -> LineFormat:
    """What the lines of an ENVI file look like; what the options say beats what its header says.

    Raises:
        InputError: the options have wavelengths for another number of bands.
    """
    if options.wavelengths is not None and len(options.wavelengths) != header.bands:
        raise InputError(
            f"not as many wavelengths as the {header.bands} bands of {header.data_path.name}",
            key="wavelengths",
            value=len(options.wavelengths),
            remedy="give one centre per band",
        )
    dtype = header.dtype.newbyteorder("=")
    return LineFormat(
        bands=header.bands,
        samples=header.samples,
        dtype=dtype,
        scale=header.reflectance_scale_factor if options.scale is None else options.scale,
        saturation=options.saturation,
        wavelengths=wavelengths_nm(header) if options.wavelengths is None else options.wavelengths,
        ignore_value=header.data_ignore_value,
    )


def converting(first: Stated, header: EnviHeader) -> str:
    """What of gains, offsets and bad bands a header states otherwise, by name; empty where nothing."""
    other = stated_by(header)
    keys = ("gains", "offsets", "reflectance_gains", "reflectance_offsets", "bad")
    names = {"bad": "bad bands"}
    return ", ".join(
        names.get(key, key.replace("_", " ")) for key in keys if getattr(first, key) != getattr(other, key)
    )


def sampled(header: EnviHeader, lines: int) -> NDArray[Any] | None:
    """The first lines of an ENVI file and others evenly spread over `lines`, [bands, lines, samples]; None of none."""
    most = min(lines, SAMPLED_LINES, max(1, SAMPLED_BYTES // header.line_bytes))
    if not most:
        return None
    first = range(min(most, -(-most // 4)))
    spread = np.linspace(len(first), lines - 1, most - len(first)).round().astype(int).tolist()
    with suppress(CubeFileError):
        return np.concatenate([read_lines(header, n, n + 1) for n in dict.fromkeys([*first, *spread])], axis=1)
    return None


def described(kind: str, header: EnviHeader) -> dict[str, str]:
    """What people and logs want to know of a source that reads this pair."""
    return {
        "kind": kind,
        "model": "ENVI file",
        "path": str(header.data_path),
        "header": str(header.path),
        "layout": f"{header.interleave}, {header.bands} bands x {header.samples} samples, {header.dtype.name}",
    }


def block_shape(header: EnviHeader, limit: int) -> tuple[int, ...]:
    """Of a buffer as the file lies, for at most `limit` and BLOCK_LINES lines, and some megabytes."""
    lines = max(1, min(limit, BLOCK_LINES, PIECE // header.line_bytes))
    return header.rows.block(lines)


def line_in(block: NDArray[Any], interleave: str, index: int, line: Line) -> None:
    """Copy line `index` of a block as it lies in the file into `line`, native [bands, samples]."""
    if interleave == "bsq":
        np.copyto(line, block[:, index])
    else:
        np.copyto(line, block[index] if interleave == "bil" else block[index].T)
