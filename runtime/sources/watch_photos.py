"""`watch-photos:DIR`: a folder into which a camera's program writes photographs, each read once when it is complete.

A line is a row of the picture, upright, [3, samples], or of a grey one [1, samples] where frames have one band. Each
picture begins with a break, so that no frame has lines of two. All must be as wide, and of as many bits, as the first;
heights may differ. A scheme of its own, since recorders put pictures of their own beside ENVI pairs.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError, InputError, MachineError
from runtime.files.disk import PIECE, opened
from runtime.files.photographs import SUFFIXES, as_plane, read_photograph
from runtime.lines import NO_FLAGS, Flag, Line, LineFormat, Taken
from runtime.sources.contract import SourceOptions, refuse_other_frames
from runtime.sources.envi_file import path_of
from runtime.sources.pairs import Skipped
from runtime.sources.watching import PATIENCE, Finished, Watch
from runtime.stated import Stated

SAMPLED_LINES = 64
Status = tuple[str, int, int, int]
"""Name, inode, size and time of change (ns) of a file."""


def open_source(address: str, options: SourceOptions) -> Watch:
    """Open a folder; see `Watch`. For `idle_seconds`, or 10 s, a picture may stay half written before it is skipped.

    Raises:
        CubeFileError: there is no such folder, or no complete photograph came in that time.
        InputError: the address is empty, or wavelengths are given that are not three.
        MachineError, ModuleNotFoundError: libvips is not there.
    """
    path = path_of(address, "watch-photos")
    patience = PATIENCE if options.idle_seconds is None else options.idle_seconds
    return Watch(path, Pictures(path, patience, options.frame), options)


class Picture(Finished):
    """A photograph in memory: upright, [bands, lines, samples]."""

    def __init__(self, path: Path, cube: NDArray[Any], stated: Stated) -> None:
        self.path, self.name, self.stated = path, path.name, stated
        self.cube = cube

    def format(self, options: SourceOptions) -> LineFormat:
        bands, _, samples = self.cube.shape
        if options.wavelengths is not None and len(options.wavelengths) != bands:
            raise InputError(
                f"{len(options.wavelengths)} wavelengths for {bands} bands", key="wavelengths", remedy="give one each"
            )
        scale = self.stated.scale if options.scale is None else options.scale
        # What is bright in a photograph is no detector at its limit, unless somebody says so.
        return LineFormat(bands, samples, self.cube.dtype, scale, options.saturation, options.wavelengths)

    def lines(self, frame: int | None) -> Rows:
        return Rows(self.cube)

    def sample(self) -> NDArray[Any]:
        rows = np.linspace(0, self.cube.shape[1] - 1, min(self.cube.shape[1], SAMPLED_LINES)).astype(int)
        return self.cube[:, rows]

    def describe(self) -> dict[str, str]:
        layout = f"{self.cube.shape[2]} samples, {self.cube.dtype.name}"
        return {"kind": "watch-photos", "model": "folder of photographs", "layout": layout}


class Rows:
    """The rows of a picture as lines."""

    def __init__(self, cube: NDArray[Any]) -> None:
        self._cube: NDArray[Any] | None = cube
        self._end, self.next = cube.shape[1], 0

    @property
    def left(self) -> int:
        """Lines that are still to come; none after `close`."""
        left: int = self._end - self.next
        return left

    def take(self, line: Line) -> Taken:
        """Put the next row into `line`, [bands, samples]."""
        assert self._cube is not None, "it was closed"
        np.copyto(line, self._cube[:, self.next])
        self.next += 1
        flags = (Flag.BREAK if self.next == 1 else NO_FLAGS) | (NO_FLAGS if self.left else Flag.END)
        return Taken(self.next - 1, time.time_ns(), flags)

    def close(self) -> None:
        self._end, self._cube = self.next, None


@dataclass(eq=False)
class _Waiting:
    status: Status
    since: float
    settled: bool = False
    why: str = ""


class Pictures:
    """The photographs of a folder: which are complete, which are waited for, which have been dealt with.

    Hidden files are left alone. One that is written anew under its old name is another picture, one that is only
    touched is not.

    Args:
        patience: seconds that a picture may stay as it is without being complete.
        frame: lines that they have, and one band; None for colours of any height.
    """

    what = "photograph"

    def __init__(self, path: Path, patience: float, frame: int | None = None) -> None:
        self.patience, self._frame = patience, frame
        self._path = path
        self._waiting: dict[str, _Waiting] = {}
        self._over: dict[str, Status] = {}
        self._read: dict[str, int] = {}

    @property
    def waits(self) -> bool:
        """Whether there are pictures that were not dealt with."""
        return bool(self._waiting)

    def look(self) -> None:
        """Look through the folder. Raises OSError."""
        now, before, self._waiting = time.monotonic(), self._waiting, {}
        there: set[str] = set()
        for path in self._path.iterdir():
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            try:
                told = path.stat()
            except FileNotFoundError:
                continue
            there.add(path.name)
            status = (path.name, told.st_ino, told.st_size, told.st_mtime_ns)
            if self._over.get(path.name) == status:
                continue
            known = before.get(path.name)
            if known is not None and known.status == status:
                known.settled = True
            else:
                known = _Waiting(status, now)
            self._waiting[path.name] = known
        # What is gone from the folder need not be remembered for years.
        self._over = {name: status for name, status in self._over.items() if name in there}
        self._read = {name: crc for name, crc in self._read.items() if name in there}

    def finished(self) -> Iterator[Finished | Skipped]:
        """Pictures that are complete and did not change between two looks, and those that are waited for no longer."""
        for name, one in sorted(self._waiting.items(), key=lambda item: (item[1].status[3], item[0])):
            late = time.monotonic() - one.since >= self.patience
            if not one.settled or (one.why and not late):
                continue
            try:
                crc, picture = self._picture(self._path / name)
            except (CubeFileError, MachineError) as error:
                if isinstance(error, MachineError) and error.file is None:
                    raise
                one.why = str(error)
                if late or isinstance(error, MachineError):
                    self._done(name, one)
                    yield Skipped(name, one.why)
                continue
            self._done(name, one)
            if self._read.get(name) != crc:
                self._read[name] = crc
                yield picture

    def _done(self, name: str, one: _Waiting) -> None:
        del self._waiting[name]
        self._over[name] = one.status

    def _picture(self, path: Path) -> tuple[int, Picture]:
        crc = 0
        with opened(path) as (file, _):
            while piece := file.read(PIECE):
                crc = zlib.crc32(piece, crc)
        cube, photograph, stated = read_photograph(path)
        if self._frame is not None:
            cube, stated = as_plane(cube, photograph, stated)
            refuse_other_frames(cube.shape[1], self._frame, path, alone=True)
        return crc, Picture(path, cube, stated)

    def reasons(self) -> list[str]:
        """Why the pictures that are waited for are not complete."""
        return [one.why for one in self._waiting.values() if one.why]
