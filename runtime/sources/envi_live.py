"""`envi-live:PATH`: the lines of an ENVI pair that is still being recorded, as far as they are whole.

The size of the data file says how many lines are there, whatever its header says. So a recorder that sets that size in
advance cannot be followed; nor can one that cuts the file and writes more than before into it between two looks.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runtime.errors import CubeFileError, MachineError, printable
from runtime.files.disk import allocated, read_at
from runtime.files.envi import growing_pair_of
from runtime.files.envi_header import EnviHeader, stated_by
from runtime.lines import NO_FLAGS, Broken, Ended, Event, Flag, Line, Missing, Quiet, Taken
from runtime.sources.contract import Source, SourceOptions
from runtime.sources.envi_file import block_shape, described, format_of, line_in, path_of, sampled
from runtime.sources.growing import Growing, changed, in_words, layout
from runtime.sources.pacing import Pace, check_buffer

IDLE_SECONDS = 10.0
POLL = 0.05


def open_source(address: str, options: SourceOptions) -> EnviLive:
    """Open the growing ENVI pair of which `address` is the header or the data file, and wait for it where need be.

    It has ended when it has not grown for `idle_seconds`, 10 where the options do not say.

    Raises:
        MachineError: within `idle_seconds` the file did not come.
        CubeFileError: within `idle_seconds` there was no pair with a readable header and some data; it is bsq.
        InputError: the address is empty, or the options do not fit the file.
    """
    return EnviLive(path_of(address, "envi-live"), options)


class EnviLive(Source):
    """A growing pair, bil or bip. Frame ids are line numbers; they begin again with a file that takes its place."""

    live = False

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self._idle = IDLE_SECONDS if options.idle_seconds is None else options.idle_seconds
        self._options = options
        self._pace = Pace(options.rate)
        self._file = _patiently(path, self._idle)
        self.format, self.stated = format_of(self._file.header, options), stated_by(self._file.header)
        self._open = True
        self._reopened = 0
        self._events: deque[Event] = deque()
        self._block = allocated(path, block_shape(self._file.header, 1 << 20), self._file.header.dtype)
        self._begin(self._file)

    def sample(self) -> NDArray[Any] | None:
        header = self._file.header
        with suppress(OSError):
            lines = (header.data_path.stat().st_size - header.header_offset) // header.line_bytes
            return sampled(replace(header, lines=lines), lines) if lines > 0 else None
        return None

    def _begin(self, file: Growing) -> None:
        self._file = file
        self._present = True
        self._first = self._held = self._line = 0
        self._size = self._whole = 0
        self._grown = time.monotonic()

    def read(self, line: Line, timeout: float) -> Event:
        check_buffer(line, self.format)
        deadline = time.monotonic() + timeout
        while True:
            if self._line < self._first + self._held:
                if not self._pace.wait(deadline - time.monotonic()):
                    return Quiet()
                return self._take(line)
            if not self._events and self._open:
                self._look()
            if self._events:
                return self._events.popleft()
            if not self._open:
                return Ended()
            if self._line < self._first + self._held:
                continue
            self._pace.restart()
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return Quiet()
            time.sleep(min(POLL, remaining))

    def telemetry(self) -> Mapping[str, float]:
        return {"reconnects": self._reopened}

    def describe(self) -> dict[str, str]:
        return described("envi-live", self._file.header)

    def close(self) -> None:
        self._open = False
        self._held = 0
        self._events.clear()
        self._file.close()

    def _take(self, line: Line) -> Taken:
        line_in(self._block, self._file.header.interleave, self._line - self._first, line)
        self._line += 1
        self._pace.step()
        return Taken(self._line - 1, time.time_ns(), NO_FLAGS if self._line > 1 else Flag.BREAK)

    def _look(self) -> None:
        """See what became of the file: fill the block, or put what happened among the events."""
        if not self._present:
            self._look_for_the_next()
            return
        file, header = self._file, self._file.header
        if not file.check_header(self._options):
            return
        size = file.size()
        whole = max(0, size - header.header_offset) // header.line_bytes
        # A torn line may be cut off again, as a recorder does that was restarted; whole lines may not.
        if whole < self._whole:
            why = f"{header.data_path.name} was cut from {self._size} to {size} bytes"
            if (unread := self._whole - self._line) > 0:
                self._events.append(Missing(self._line, unread, printable(why)))
            self._lost(why)
            return
        if size != self._size:
            self._size, self._whole, self._grown = size, whole, time.monotonic()
        if whole > self._line:
            self._fill(whole)
        elif file.replaced() and file.size() == size:
            self._tell_torn()
            self._lost(f"another file took the place of {header.data_path.name}")
        elif time.monotonic() - self._grown >= self._idle:
            self._tell_torn()
            self._end()

    def _fill(self, whole: int) -> None:
        header = self._file.header
        count = min(len(self._block), whole - self._line)
        offset = header.header_offset + self._line * header.line_bytes
        read = read_at(self._file.data, header.data_path, offset, self._block[:count])
        # What is cut while it is read may be of the old file or of the new: it is not taken.
        if read == count * header.line_bytes and self._file.size() >= offset + read:
            self._first, self._held = self._line, count

    def _tell_torn(self) -> None:
        header = self._file.header
        torn = self._size - header.header_offset - self._whole * header.line_bytes
        if torn > 0:
            why = f"{header.data_path.name} ends within a line: {torn} of {header.line_bytes} bytes are there"
            self._events.append(Missing(self._line, 1, printable(why)))

    def _lost(self, why: str) -> None:
        self._events.append(Broken(printable(why)))
        self._file.close()
        self._present = False
        self._grown = time.monotonic()

    def _look_for_the_next(self) -> None:
        old = self._file.header
        try:
            file = Growing.opened(old.path, old.data_path)
        except CubeFileError as error:
            if time.monotonic() - self._grown >= self._idle:
                self._events.append(Broken(f"it did not come back: {error}"))
                self._end()
            return
        keys = changed(old, file.header, self._options)
        if keys or layout(file.header) != layout(old):
            file.close()
            raise CubeFileError(
                "the file that took its place has another layout, scale, gains, bad bands or wavelengths",
                file=file.header.path,
                key=", ".join(keys) or None,
                value=in_words(file.header),
                remedy=f"open it anew; the file before had {in_words(old)}",
            )
        self._reopened += 1
        self._begin(file)

    def _end(self) -> None:
        self._open = False
        self._file.close()


def _patiently(path: Path, seconds: float) -> Growing:
    """The pair, as soon as it is there with some data; its header must say the same twice, lest it be half written."""
    deadline = time.monotonic() + seconds
    before: EnviHeader | None = None
    while True:
        try:
            file = Growing.opened(*growing_pair_of(path))
        except CubeFileError as error:
            if time.monotonic() >= deadline or path.is_dir():
                # A recorder that is late is not a wrong argument: a service is to try again.
                kind = CubeFileError if os.path.lexists(path) else MachineError
                raise kind(
                    f"nothing to read within {seconds:g} s: {error.problem}",
                    file=error.file,
                    line=error.line,
                    key=error.key,
                    value=error.value,
                    remedy="start the recorder first, or allow more seconds of idleness (stream.idle_seconds)",
                ) from error
            before = None
        else:
            if file.header.interleave == "bsq":
                file.close()
                raise CubeFileError(
                    "a bsq file has no whole line before it is complete",
                    file=file.header.path,
                    key="interleave",
                    value="bsq",
                    remedy="record bil or bip, or wait and read it with file:PATH",
                )
            if before is not None and layout(before) == layout(file.header):
                return file
            before = file.header
            file.close()
        time.sleep(POLL)
