"""A cube on a sensor's grid put onto a map after it was restored: before, repeated pixels would read as stripes."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import allocated
from runtime.products.contract import CubeWriter, Glt, Place, Quality, Result, Seen
from runtime.products.spool import Spool
from runtime.products.written import check_lines
from runtime.scaling import next_to

BLOCK = 32 << 20
"""Bytes of map lines that are put together at a time; at least one line is."""


def result_on_map(result: Result, glt: Glt) -> Result:
    """The result as it lies on the map: its shape, its place, and a mark for where nothing is.

    A result without a mark gets one: -9999 for floats, the smallest number of a signed type, 0 of an unsigned one,
    which is what agencies take for no data. Restored numbers that equal it are moved to the next one.
    """
    shape = (result.shape[0], glt.grid.lines, glt.grid.samples)
    mark = chosen_mark(result.dtype) if result.mark is None else result.mark
    marks = result.stated.marks if mark in result.stated.marks else (*result.stated.marks, mark)
    stated = replace(result.stated, marks=marks if result.mark is None else result.stated.marks)
    return replace(result, shape=shape, place=Place(grid=glt.grid), mark=mark, stated=stated, reader=None)


def chosen_mark(dtype: np.dtype[Any]) -> float:
    """The mark of a result that has none, see `result_on_map`."""
    if dtype.kind == "f":
        return -9999.0
    return float(np.iinfo(dtype).min)


def open_ortho(inner: Callable[[], CubeWriter], glt: Glt, source: Result) -> CubeWriter:
    """A writer that takes a cube's lines on the sensor's grid, and hands the lines of the map to another at the end.

    Until then they lie in an unlinked temporary file (`TMPDIR`), all bands of a pixel together: a line of the map
    crosses many of the sensor, and needs few samples of each.

    Args:
        inner: opens the writer of `result_on_map(source, glt)`; asked at once, so that what it refuses is known before
            there is any work.
        glt: each pixel of the map is the pixel of the cube that it names (nearest neighbour); where it names none,
            there are the mark, and `Seen.MISSING`.
        source: the result on the sensor's grid.

    Raises:
        CubeFileError: the table points outside the cube; what `inner` raises.
        MachineError: there is not the temporary space.
    """
    lines, samples = source.shape[1:]
    there = (glt.lines >= 0) & (glt.samples >= 0)
    if (glt.lines[there] >= lines).any() or (glt.samples[there] >= samples).any():
        problem = f"its lookup table points outside its {lines} lines x {samples} samples"
        raise CubeFileError(problem, file=source.source.path, remedy="write it on the sensor's grid")
    return _Ortho(inner, glt, source)


class _Ortho(CubeWriter):
    def __init__(self, inner: Callable[[], CubeWriter], glt: Glt, source: Result) -> None:
        self._glt, self._source, self._target = glt, source, result_on_map(source, glt)
        self._path: Path = source.source.path
        self._bands, self._lines, self._samples = source.shape
        self._pixel = self._bands * source.dtype.itemsize
        self._done = 0
        self._stack = ExitStack()
        try:
            size = self._lines * self._samples * (self._pixel + 2)
            self._spool = self._stack.enter_context(Spool(self._path, size))
            self._inner = self._stack.enter_context(inner())
        except BaseException:
            self.close()
            raise
        # Behind the cube: the two bytes of each pixel's quality.
        self._behind = self._lines * self._samples * self._pixel

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        count, source = cube.shape[1], self._source
        if self._done + count > self._lines:
            raise ValueError(f"{self._done + count} lines of {self._lines}")
        for number in range(count):
            place = (self._done + number) * self._samples
            self._spool.write(place * self._pixel, np.ascontiguousarray(cube[:, number].T, source.dtype))
        if source.quality:
            if quality is None:
                raise ValueError("a layer of quality is written, and no quality was given")
            both = np.stack([quality.seen, quality.expert], -1)
            self._spool.write(self._behind + self._done * self._samples * 2, both)
        self._done += count

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        check_lines(self._done, self._lines, self._path)
        lines, samples = self._target.shape[1:]
        step = max(1, BLOCK // (samples * (self._pixel + 2)))
        for start in range(0, lines, step):
            self._inner.write_lines(*self._block(start, min(lines, start + step)))
        made = self._inner.finish(provenance)
        self.close()
        return made

    def close(self) -> None:
        self._stack.close()

    def _block(self, start: int, stop: int) -> tuple[NDArray[Any], Quality | None]:
        """Lines of the map."""
        dtype, mark = self._source.dtype, self._target.mark
        shape = (stop - start, self._glt.grid.samples)
        pixels = allocated(self._path, (shape[0] * shape[1], self._bands), dtype, copies=2)
        pixels[...] = mark
        both = np.zeros((len(pixels), 2), np.uint8)
        both[:, 0] = Seen.MISSING
        lines, samples = (table[start:stop].reshape(-1) for table in (self._glt.lines, self._glt.samples))
        there = np.flatnonzero((lines >= 0) & (samples >= 0))
        there = there[np.argsort(lines[there], kind="stable")]
        for these in np.split(there, np.flatnonzero(np.diff(lines[there])) + 1) if there.size else ():
            line, wanted = int(lines[these[0]]), samples[these]
            first, last = int(wanted.min()), int(wanted.max()) + 1
            values = np.empty((last - first, self._bands), dtype)
            place = line * self._samples + first
            self._spool.read(place * self._pixel, values)
            pixels[these] = self._off_mark(values)[wanted - first]
            if self._source.quality:
                said = np.empty((last - first, 2), np.uint8)
                self._spool.read(self._behind + place * 2, said)
                both[these] = said[wanted - first]
        cube = np.ascontiguousarray(pixels.T).reshape(self._bands, *shape)
        seen, expert = (np.ascontiguousarray(both[:, number]).reshape(shape) for number in range(2))
        return cube, Quality(seen, expert) if self._source.quality else None

    def _off_mark(self, values: NDArray[Any]) -> NDArray[Any]:
        """Numbers that a mark which was chosen here would take for missing, beside it."""
        if self._source.mark is None:
            mark = values.dtype.type(self._target.mark or 0)
            values[values == mark] = next_to(mark)
        return values
