"""`file:PATH`: the lines of a product of any format that is read, as fast as they are taken or at a rate.

Of ENVI pairs `runtime.sources.envi_file` does it, which knows records of ours.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.by_lines.survey import steps
from runtime.errors import CubeFileError, InputError
from runtime.files.disk import unchanged
from runtime.lines import NO_FLAGS, Ended, Event, Flag, Line, LineFormat, Quiet, Taken
from runtime.products import format_of, open_cube
from runtime.products.contract import CubeReader
from runtime.sources import envi_file
from runtime.sources.contract import Source, SourceOptions, refuse_other_frames
from runtime.sources.envi_file import SAMPLED_BYTES, SAMPLED_LINES, path_of
from runtime.sources.pacing import Pace, check_buffer

BLOCK_BYTES = 16 << 20
"""Of lines that are read at a time."""


def open_source(address: str, options: SourceOptions) -> Source:
    """Open a finished product.

    Raises:
        CubeFileError: as `runtime.products.open_cube`.
        InputError: the address is empty, or the options do not fit the file.
        MachineError: a library that reads it is not installed.
    """
    path = path_of(address, "file")
    found = format_of(path)
    if found is None or (found.name == "envi" and path.suffix.lower() != ".gz"):
        return envi_file.open_source(address, options)
    return ProductFile(open_cube(path), options)


class ProductFile(Source):
    """A finished product. Frame ids are line numbers, from 0; bands are in the file's order."""

    live = False

    def __init__(self, reader: CubeReader, options: SourceOptions) -> None:
        described, self._reader = reader.description, reader
        bands, lines, samples = described.shape
        told = described.stated
        try:
            refuse_other_frames(lines, options.frame, described.path)
            if options.wavelengths is not None and len(options.wavelengths) != bands:
                raise InputError(
                    f"not as many wavelengths as the {bands} bands of {described.path.name}",
                    key="wavelengths",
                    value=len(options.wavelengths),
                    remedy="give one centre per band",
                )
            masked = reader.missing(0, 1) is not None
        except InputError:
            reader.close()
            raise
        self.format = LineFormat(
            bands=bands,
            samples=samples,
            dtype=described.dtype,
            scale=told.scale if options.scale is None else options.scale,
            saturation=options.saturation,
            wavelengths=told.wavelengths if options.wavelengths is None else options.wavelengths,
            ignore_value=next(iter(told.marks), None),
        )
        doubt = "its mask of missing pixels is not asked, line by line: `deploy run` restores it with the mask"
        self.stated = replace(
            told,
            radiance=described.quantity == "radiance",
            doubts=(*told.doubts, doubt) if masked else told.doubts,
        )
        self._pace, self._next = Pace(options.rate), 0
        self._blocks = steps(reader, BLOCK_BYTES)
        self._first, self._block = 0, np.zeros((bands, 0, samples), described.dtype)
        self._steady = unchanged(*(file for file in described.files if file.is_file()))
        self._steady.__enter__()

    def read(self, line: Line, timeout: float) -> Event:
        check_buffer(line, self.format)
        if self._next == self._reader.description.shape[1]:
            return Ended()
        if not self._pace.wait(timeout):
            return Quiet()
        if self._next == self._first + self._block.shape[1]:
            start, stop = self._blocks.pop(0)
            self._first, self._block = start, self._reader.read_lines(start, stop)
            if not self._blocks:
                self._steady.__exit__(None, None, None)
        np.copyto(line, self._block[:, self._next - self._first])
        self._next += 1
        self._pace.step()
        return Taken(self._next - 1, time.time_ns(), NO_FLAGS if self._next > 1 else Flag.BREAK)

    def sample(self) -> NDArray[Any] | None:
        lines = self._reader.description.shape[1]
        most = min(lines, SAMPLED_LINES, max(1, SAMPLED_BYTES // self.format.line_bytes))
        places = np.linspace(0, lines - 1, most).round().astype(int).tolist()
        try:
            return np.concatenate([self._reader.read_lines(n, n + 1) for n in dict.fromkeys(places)], axis=1)
        except CubeFileError:
            return None

    def describe(self) -> dict[str, str]:
        described = self._reader.description
        layout = f"{self.format.bands} bands x {self.format.samples} samples, {self.format.dtype.name}"
        return {"kind": "file", "model": f"{described.format} product", "path": str(described.path), "layout": layout}

    def close(self) -> None:
        self._reader.close()
