"""NumPy files by blocks of lines: `.npy` with companions beside it, `.npz` with all in one."""

import json
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.arrays import WAVELENGTH_KEY, rows_of, write_npy_header
from runtime.files.disk import PIECE, Together, refuse_inputs
from runtime.files.layout import DEFAULT_LAYOUT, Order, check_type
from runtime.files.rows import Rows, turn_back, write_rows
from runtime.plain_json import plain_json
from runtime.products.arrays import ArrayDescription
from runtime.products.contract import PROVENANCE, CubeWriter, Quality, Result
from runtime.products.spool import Spool
from runtime.products.written import check_lines

_PLAIN: Order = tuple(DEFAULT_LAYOUT.split(","))


def holds_like(result: Result) -> int:
    """Bytes beside the block that is given."""
    return rows_of(_shape(result), _order(result), result.dtype).holds


def open_like(out: Path, result: Result) -> CubeWriter:
    """Write `.npy` or `.npz`, with the axes in the order in which the source was read.

    Raises:
        CubeFileError: the suffix is another one, the target is an input, there is no room, or the system refused.
    """
    writers = {".npy": NpyWriter, ".npz": NpzWriter}
    if out.suffix.lower() not in writers:
        raise CubeFileError(
            "is not a format arrays are written in", file=out, value=out.suffix or None, remedy="use .npz or .npy"
        )
    check_type(result.dtype, path=out)
    return writers[out.suffix.lower()](out, result)


class NpyWriter(CubeWriter):
    """`NAME.npy`, `NAME_quality.npy` [.., 2] with its axes in the same order, and `NAME.damp_deploy.json`."""

    def __init__(self, out: Path, result: Result) -> None:
        self._out, self._result, self._next = out, result, 0
        self._told = out.with_name(f"{out.stem}.{PROVENANCE}.json")
        self._quality = out.with_name(f"{out.stem}_quality.npy") if result.quality else None
        targets = (*([] if self._quality is None else [self._quality]), self._told, out)
        for target in targets:
            refuse_inputs(target, result.source.files)
        order = _order(result)
        plain = order if len(order) == 3 else _PLAIN
        size = prod(result.shape) * result.dtype.itemsize + 2 * prod(result.shape[1:])
        self._spool: Spool | None = None
        self._together = Together(targets, size + PIECE)
        try:
            self._rows = self._begun(out, _shape(result), order, result.dtype)
            if self._rows.depth == 2:
                self._spool = Spool(out, self._rows.end)
            if self._quality is not None:
                self._seen = self._begun(self._quality, _lengths(plain, (2, *result.shape[1:])), plain, np.dtype("u1"))
        except BaseException:
            self.close()
            raise

    def _begun(self, path: Path, shape: tuple[int, ...], order: Order, dtype: np.dtype[Any]) -> Rows:
        with self._together.writing(path) as file:
            write_npy_header(file, shape, dtype)
            rows = rows_of(shape, order, dtype, file.tell())
            file.truncate(rows.end)
            return rows

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        start, self._next = self._next, self._next + cube.shape[1]
        if self._spool is not None:
            self._spool.write_rows(self._rows.turned, start, cube)
        else:
            with self._together.writing(self._out) as file:
                write_rows(file, self._rows, start, cube)
        if self._quality is not None and quality is not None:
            with self._together.writing(self._quality) as file:
                write_rows(file, self._seen, start, np.stack([quality.seen, quality.expert]))

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        check_lines(self._next, self._result.shape[1], self._out)
        if self._spool is not None:
            with self._together.writing(self._out) as file:
                turn_back(self._spool.file, self._out, self._rows, file)
        with self._together.writing(self._told) as file:
            file.write(json.dumps(plain_json(provenance), indent=1).encode())
        self._together.finish()
        return (self._out, self._told, *([] if self._quality is None else [self._quality]))

    def close(self) -> None:
        self._together.close()
        if self._spool is not None:
            self._spool.close()


class NpzWriter(CubeWriter):
    """One file: the cube by its name there, `wavelength_nm`, `quality`, `expert`, and `damp_deploy`, a text."""

    def __init__(self, out: Path, result: Result) -> None:
        refuse_inputs(out, result.source.files)
        self._out, self._result, self._next, self._held = out, result, 0, ExitStack()
        self._rows = rows_of(_shape(result), _order(result), result.dtype)
        self._seen = Rows((2, *result.shape[1:]), ("bands", "lines", "samples"), np.dtype("u1"))
        with ExitStack() as stack:
            self._together = stack.enter_context(Together([out], self._rows.end + self._seen.end + PIECE))
            # An archive is written from its beginning to its end, whatever the order of the axes.
            self._cube = stack.enter_context(Spool(out, self._rows.end))
            self._quality = stack.enter_context(Spool(out, self._seen.end))
            self._held = stack.pop_all()

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        start, self._next = self._next, self._next + cube.shape[1]
        self._cube.write_rows(self._rows.turned if self._rows.depth == 2 else self._rows, start, cube)
        if self._result.quality and quality is not None:
            self._quality.write_rows(self._seen, start, np.stack([quality.seen, quality.expert]))

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        check_lines(self._next, self._result.shape[1], self._out)
        source, wavelengths = self._result.source, self._result.stated.wavelengths
        own = isinstance(source, ArrayDescription) and source.path.suffix.lower() == ".npz"
        name, dtype = (own and source.title) or "cube", self._result.dtype
        if self._rows.depth == 2:
            turned, self._cube = self._cube, self._held.enter_context(Spool(self._out, self._rows.end))
            with self._cube.filling():
                turn_back(turned.file, self._out, self._rows, self._cube.file)
            turned.close()
        with self._together.writing(self._out) as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                write_npy_header(cast(BinaryIO, member), _shape(self._result), dtype)
                _copy(self._cube, 0, self._rows.end, cast(BinaryIO, member))
            for place, layer in enumerate(("quality", "expert") if self._result.quality else ()):
                with archive.open(f"{layer}.npy", "w", force_zip64=True) as member:
                    write_npy_header(cast(BinaryIO, member), self._seen.shape[1:], np.dtype("u1"))
                    size = prod(self._seen.shape[1:])
                    _copy(self._quality, place * size, size, cast(BinaryIO, member))
            small = {PROVENANCE: np.array(json.dumps(plain_json(provenance)))}
            if wavelengths is not None:
                small[WAVELENGTH_KEY] = np.array(wavelengths)
            for layer, values in small.items():
                with archive.open(f"{layer}.npy", "w") as member:
                    np.lib.format.write_array(cast(BinaryIO, member), values, allow_pickle=False)
        self._together.finish()
        return (self._out,)

    def close(self) -> None:
        self._held.close()


def _copy(spool: Spool, start: int, size: int, target: BinaryIO) -> None:
    piece = np.empty(min(PIECE, size), np.uint8)
    for first in range(0, size, len(piece)):
        part = piece[: min(len(piece), size - first)]
        spool.read(start + first, part)
        target.write(part.data)


def _order(result: Result) -> Order:
    order = result.source.order if isinstance(result.source, ArrayDescription) else _PLAIN
    return order if len(order) == 3 or result.shape[0] == 1 else _PLAIN


def _shape(result: Result) -> tuple[int, ...]:
    return _lengths(_order(result), result.shape)


def _lengths(order: Order, shape: tuple[int, int, int]) -> tuple[int, ...]:
    by_axis = dict(zip(("bands", "lines", "samples"), shape, strict=True))
    return tuple(by_axis[axis] for axis in order)
