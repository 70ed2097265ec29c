"""ENVI pairs by blocks of lines: data, header, a pair of quality, and a file that says how they were made."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import Together, refuse_inputs
from runtime.files.envi import read_text, target_pair
from runtime.files.envi_header import CODE_OF_TYPE, ORDERS, EnviHeader, parse_header
from runtime.files.envi_text import (
    GAIN_KEYS,
    INTERLEAVES,
    RASTER_KEYS,
    Interleave,
    header_text,
    listed,
    normalised,
)
from runtime.files.rows import Rows, write_rows
from runtime.plain_json import plain_json
from runtime.products.contract import PROVENANCE, CubeWriter, Quality, Result
from runtime.products.crs import NUMBER, UNKNOWN, wkt_of
from runtime.products.envi import QUANTITY_KEY, UNIT_KEY
from runtime.products.envi_place import map_fields
from runtime.products.place_texts import KEYS, texts_of
from runtime.products.written import check_lines
from runtime.stated import Stated

SUFFIX = ".img"
_ROOM = 16 << 20
"""Bytes for headers and provenance, when free space is asked for."""
_GAINS = dict(zip(GAIN_KEYS, ("gains", "offsets", "reflectance_gains", "reflectance_offsets"), strict=True))
_QUALITY = {
    "description": "{1 restored + 2 passed + 4 missing + 8 saturated + 16 suspect; the expert that weighs most}",
    "band names": "{quality, expert}",
}


def holds(result: Result) -> int:
    """Bytes beside the block that is given."""
    return _rows(result, "bil").holds


def open_writer(out: Path, result: Result) -> "EnviWriter":
    """Write lines as the suffix says, else BIL.

    Raises:
        CubeFileError: ENVI has no such type, the target is an input or would make the pair ambiguous, there is no room,
            or the system refused.
    """
    return EnviWriter(out, result, _interleave(out, ""))


def open_like(out: Path, result: Result) -> "EnviWriter":
    """The same, as the source's lines lie where the suffix does not say."""
    header = _source(result)
    return EnviWriter(out, result, _interleave(out, header.interleave if header else ""))


holds_like = holds


class EnviWriter(CubeWriter):
    """Takes lines in order. A header never stands beside data that it does not describe (`runtime.files.disk`)."""

    def __init__(self, out: Path, result: Result, interleave: Interleave) -> None:
        name = result.dtype.newbyteorder("=").str[1:]
        if name not in CODE_OF_TYPE or out.suffix.lower() == ".gz":
            raise CubeFileError(
                "ENVI files are written of " + ", ".join(str(np.dtype(name)) for name in CODE_OF_TYPE),
                file=out,
                value=f"{result.dtype} {out.suffix}",
                remedy="convert the cube" if name not in CODE_OF_TYPE else "leave .gz out of the name",
            )
        self._result, self._interleave, self._code = result, interleave, CODE_OF_TYPE[name]
        self._rows = _rows(result, interleave)
        self._quality = Rows((2, *result.shape[1:]), ORDERS["bsq"], np.dtype("u1"))
        self._header, self._data = target_pair(out, self._rows.end)
        stem = self._header.with_suffix("")
        self._told = stem.with_name(f"{stem.name}.{PROVENANCE}.json")
        beside = target_pair(stem.with_name(f"{stem.name}_quality{SUFFIX}")) if result.quality else ()
        self._beside = beside[::-1]
        self._out, self._next = out, 0
        self._fields = _fields(result)
        targets = (self._data, *self._beside, self._told, self._header)
        for target in targets:
            refuse_inputs(target, result.source.files)
        # What cannot be said in a header is found before anything is restored.
        self._text("")
        self._together = Together(targets, self._rows.end + self._quality.end * result.quality + _ROOM)
        try:
            with self._together.writing(self._data) as file:
                file.truncate(self._rows.end)
            if self._beside:
                with self._together.writing(self._beside[0]) as file:
                    file.truncate(self._quality.end)
        except BaseException:
            self._together.close()
            raise

    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        start, self._next = self._next, self._next + cube.shape[1]
        if self._next > self._result.shape[1]:
            raise ValueError(f"{self._next} lines of {self._result.shape[1]}")
        with self._together.writing(self._data) as file:
            write_rows(file, self._rows, start, cube)
        if self._beside and quality is not None:
            with self._together.writing(self._beside[0]) as file:
                write_rows(file, self._quality, start, np.stack([quality.seen, quality.expert]))

    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        check_lines(self._next, self._result.shape[1], self._out)
        told = json.dumps(plain_json(provenance), indent=1).encode()
        texts = {self._told: told, self._header: self._text(hashlib.sha256(told).hexdigest())}
        if self._beside:
            shape = self._quality.shape
            texts[self._beside[1]] = header_text(shape, 1, "bsq", _QUALITY, path=self._beside[1]).encode()
        for path, text in texts.items():
            with self._together.writing(path) as file:
                file.write(text)
        self._together.finish()
        first = self._header if self._out == self._header else self._data
        second = self._data if self._out == self._header else self._header
        return first, second, self._told, *self._beside

    def close(self) -> None:
        self._together.close()

    def _text(self, digest: str) -> bytes:
        # Braces of JSON would end a header's value: it lies beside, and its hash says which it is.
        fields = self._fields | {PROVENANCE: f"sha256 {digest} {self._told.name}"}
        text = header_text(self._result.shape, self._code, self._interleave, fields, path=self._header)
        return text.encode("utf-8", "replace")


def _rows(result: Result, interleave: Interleave) -> Rows:
    return Rows(result.shape, ORDERS[interleave], result.dtype.newbyteorder("<"))


def _interleave(out: Path, own: str) -> Interleave:
    said = (out.suffix.lower().removeprefix("."), own)
    return next((name for one in said for name in INTERLEAVES if name == one), "bil")


def _source(result: Result) -> EnviHeader | None:
    """The header of the source, where it is an ENVI pair; its second file."""
    if result.source.format != "envi":
        return None
    data, path = result.source.files[:2]
    return parse_header(read_text(path), path=path, data_path=data, compressed=True)


def _fields(result: Result) -> dict[str, str | None]:
    """The source's fields as far as they are true of the result, and what else it says."""
    header, source, grid = _source(result), result.source, result.place.grid
    fields: dict[str, str | None] = {} if header is None else dict(header.fields)
    said = _said(result, source.stated if header else None)
    moved = source.place.grid != result.place.grid or source.shape[1:] != result.shape[1:]
    if moved or header is None:
        said |= dict.fromkeys((*RASTER_KEYS, *KEYS)) | ({} if grid is None else map_fields(grid))
        said |= {key: f"{{{text}}}" for key, text in texts_of(result.place).items()}
        # `carried` would take the new place for one of the old size.
        said |= {"samples": None, "lines": None}
    if header is None:
        unknown = grid is not None and NUMBER.fullmatch(wkt_of(grid.crs))
        said["description"] = "{restored from " + source.path.name + (f"; {UNKNOWN}" if unknown else "") + "}"
    for key, value, old in (
        (UNIT_KEY, result.unit, source.unit),
        (QUANTITY_KEY, result.quantity, source.quantity),
    ):
        if header is None or value != old:
            said[key] = value
    return {name: text for name, text in fields.items() if normalised(name) not in said} | said


def _said(result: Result, old: Stated | None) -> dict[str, str | None]:
    """What is said of the numbers; where the source's header says the same, its words stay."""
    new, said = result.stated, dict[str, str | None]()
    if old is None or new.scale != old.scale:
        said["reflectance scale factor"] = None if new.scale is None else _number(new.scale)
    for key, name in _GAINS.items():
        values = getattr(new, name)
        if old is None or values != getattr(old, name):
            said[key] = None if values is None else listed(values)
    marks = new.marks if result.mark is None else (result.mark,)
    if old is None or repr(marks[:1]) != repr(old.marks[:1]):
        said["data ignore value"] = _number(marks[0]) if marks else None
    if old is None or new.bad != old.bad:
        good = ["0" if band in set(new.bad) else "1" for band in range(result.shape[0])]
        said["bbl"] = "{" + ", ".join(good) + "}" if new.bad else None
    if old is None or (new.wavelengths, result.fwhm) != (old.wavelengths, result.source.fwhm):
        said |= {
            "wavelength units": None if new.wavelengths is None and result.fwhm is None else "Nanometers",
            "wavelength": None if new.wavelengths is None else listed(new.wavelengths),
            "fwhm": None if result.fwhm is None else listed(result.fwhm),
        }
    return said


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
