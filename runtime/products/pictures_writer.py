"""A folder with one PNG file for each band, by blocks of lines."""

import json
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.durable import fill_folder, part_of, place_folder
from runtime.errors import CubeFileError
from runtime.files.disk import check_space, reason
from runtime.files.pictures import write_picture
from runtime.files.rows import Rows, read_rows
from runtime.plain_json import plain_json
from runtime.products.contract import PROVENANCE, CubeWriter, Quality, Result
from runtime.products.pictures import WAVELENGTHS
from runtime.products.spool import Spool
from runtime.products.tiff_folder import refuse_foreign_folder
from runtime.products.written import check_lines

_LAYERS = ("quality.png", "quality_expert.png")


def holds_like(result: Result) -> int:
    """Bytes beside the block that is given: a band, when all lines are there."""
    return result.shape[1] * result.shape[2] * result.dtype.itemsize


def open_like(out: Path, result: Result) -> "PicturesWriter":
    """Write a folder of PNG files named as the source's.

    Raises:
        CubeFileError: PNG has no such type, the folder is the source's, there is no room, or the system refused.
    """
    if result.dtype.newbyteorder("=").str[1:] not in ("u1", "u2"):
        raise CubeFileError(
            "pictures hold uint8 and uint16 only", file=out, key="type", value=str(result.dtype), remedy="write envi"
        )
    if out.resolve() == result.source.path.resolve():
        raise CubeFileError("would overwrite the input", file=out, remedy="write to another folder")
    refuse_foreign_folder(out)
    return PicturesWriter(out, result)


class PicturesWriter(CubeWriter):
    """Lines are kept in a file without a name until each band is whole."""

    def __init__(self, out: Path, result: Result) -> None:
        self._out, self._result, self._next = out, result, 0
        self._rows = Rows(result.shape, ("bands", "lines", "samples"), result.dtype)
        self._seen = Rows((2, *result.shape[1:]), self._rows.order, np.dtype("u1"))
        with ExitStack() as stack:
            with self._refusing():
                check_space(out.parent, self._rows.end)
                self._part = stack.enter_context(part_of(out, folder=True))
            self._cube = stack.enter_context(Spool(out, self._rows.end))
            self._quality = stack.enter_context(Spool(out, self._seen.end))
            self._held = stack.pop_all()

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        start, self._next = self._next, self._next + cube.shape[1]
        self._cube.write_rows(self._rows, start, cube)
        if self._result.quality and quality is not None:
            self._quality.write_rows(self._seen, start, np.stack([quality.seen, quality.expert]))

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        check_lines(self._next, self._result.shape[1], self._out)
        bands, lines, samples = self._result.shape
        names = [f"{file.stem}.png" for file in self._result.source.files[:bands]]
        for band, name in enumerate(names):
            rows = Rows((1, lines, samples), self._rows.order, self._rows.dtype, band * lines * self._rows.run_bytes)
            write_picture(self._part / name, read_rows(self._cube.file, self._out, rows, 0, lines), None, ())
        if self._result.quality:
            for layer, name in enumerate(_LAYERS):
                rows = Rows((1, lines, samples), self._rows.order, self._seen.dtype, layer * lines * samples)
                write_picture(self._part / name, read_rows(self._quality.file, self._out, rows, 0, lines), None, ())
        texts = {f"{PROVENANCE}.json": json.dumps(plain_json(provenance), indent=1).encode()}
        if self._result.stated.wavelengths is not None:
            texts[WAVELENGTHS] = "".join(f"{value!r}\n" for value in self._result.stated.wavelengths).encode()
        with self._refusing():
            fill_folder(self._part, texts)
            place_folder(self._part, self._out)
        self._held.close()
        layers = _LAYERS if self._result.quality else ()
        return (self._out, *(self._out / name for name in (*names, *layers, *texts)))

    @contextmanager
    def _refusing(self) -> Any:
        try:
            yield
        except OSError as error:
            raise CubeFileError(
                f"cannot be written: {reason(error)}",
                file=self._out,
                remedy="check the folder, its permissions and its free space",
            ) from error

    def close(self) -> None:
        self._held.close()
