"""How lines lie in line files and what their values mean, in words and as an ENVI header."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import CubeFileError, plain
from runtime.files.envi_header import CODE_OF_TYPE, EnviHeader, parse_header, wavelengths_nm
from runtime.files.envi_text import header_text, listed, normalised
from runtime.lines import LineFormat

MOST_LINES = 10**12
"""For the room that a header takes."""


@dataclass(frozen=True)
class Layout:
    """How lines lie in the files, and what their headers say."""

    format: LineFormat
    code: int
    stored: np.dtype[Any]
    fields: Mapping[str, str | None]
    meaning: str = ""

    def describe(self) -> str:
        return described(self.format.bands, self.format.samples, self.stored)

    def record(self) -> str:
        """What a lock's file keeps: the layout in words, then a row for each fact that gives lines a meaning."""
        format = self.format
        facts = _facts(format.scale, format.ignore_value, format.wavelengths) | {"meaning": self.meaning}
        return "".join(f"{row}\n" for row in (self.describe(), *(f"{key}: {text}" for key, text in facts.items())))

    def header(self, lines: int, path: Path) -> bytes:
        shape = (self.format.bands, lines, self.format.samples)
        return header_text(shape, self.code, "bil", self.fields, path=path).encode("utf-8", "replace")


def described(bands: int, samples: int, dtype: np.dtype[Any], interleave: str = "bil", offset: int = 0) -> str:
    """A layout in words, the same for the same layout."""
    order = "big endian " if dtype.itemsize > 1 and dtype.newbyteorder(">") == dtype else ""
    other = f", {interleave}, header offset {offset}" if (interleave, offset) != ("bil", 0) else ""
    return f"{bands} bands x {samples} samples, {order}{dtype.newbyteorder('=').name}{other}"


def as_recorded(lock: Path, format: LineFormat) -> LineFormat:
    """The format with the scale, ignore value and wavelengths that the lines there have, by what their lock keeps."""
    try:
        words, facts = _taken_apart(lock.read_text("utf-8", "replace"))
        if words != described(format.bands, format.samples, format.dtype) or facts.keys() < {"scale", "ignore value"}:
            return format
        scale, ignore = (None if (said := facts[key]) == "none" else float(said) for key in ("scale", "ignore value"))
        told = facts.get("wavelengths", "none")
        return replace(
            format,
            scale=scale,
            ignore_value=ignore,
            wavelengths=None if told == "none" else tuple(map(float, told.split(", "))),
        )
    except (OSError, ValueError):
        return format


def check_header(there: EnviHeader, layout: Layout) -> None:
    """Compare what a header says of its lines with what it would say after a rerun.

    Raises:
        CubeFileError: lines that are there would get another layout or meaning.
    """
    _check_words(
        described(there.bands, there.samples, there.dtype, there.interleave, there.header_offset),
        layout.describe(),
        there.path,
    )
    to_come = parse_header(layout.header(1, there.path).decode(), path=there.path, data_path=there.data_path)
    _check_facts(_told(there), _told(to_come), there.path)


def check_record(there: str, layout: Layout, file: Path) -> None:
    """The same with the text of `Layout.record`. One of earlier versions has the layout in words and no more."""
    words, facts = _taken_apart(there)
    wanted_words, wanted = _taken_apart(layout.record())
    _check_words(words, wanted_words, file)
    _check_facts(facts, wanted, file)


def _check_words(there: str, wanted: str, file: Path) -> None:
    if there != wanted:
        raise CubeFileError(
            f"the lines that are there have {there}, those to come {wanted}",
            file=file,
            remedy="record into another folder",
        )


def _check_facts(there: Mapping[str, str], wanted: Mapping[str, str], file: Path) -> None:
    for key, new in wanted.items():
        old = there.get(key, new)
        if old == new:
            continue
        if key == "wavelengths" and old.count(",") == new.count(","):
            pairs = zip(old.split(", "), new.split(", "), strict=True)
            band, (old, new) = next((band, pair) for band, pair in enumerate(pairs, 1) if len(set(pair)) == 2)
            key = f"wavelength of band {band}"
        raise CubeFileError(
            f"the lines that are there have {plain(old) or 'none'}, those to come {plain(new) or 'none'}",
            file=file,
            key=key,
            remedy="record into another folder",
        )


def _taken_apart(record: str) -> tuple[str, dict[str, str]]:
    words, *rows = record.split("\n")
    # The last row that is whole ends with a newline.
    return words, {key: text for key, _, text in (row.partition(": ") for row in rows[:-1])}


def _told(header: EnviHeader) -> dict[str, str]:
    wavelengths = wavelengths_nm(header) or header.wavelengths
    return _facts(header.reflectance_scale_factor, header.data_ignore_value, wavelengths)


def _facts(scale: float | None, ignore: float | None, wavelengths: tuple[float, ...] | None) -> dict[str, str]:
    """As texts, of which NaN equals NaN."""
    return {
        "scale": "none" if scale is None else repr(float(scale)),
        "ignore value": "none" if ignore is None else repr(float(ignore)),
        "wavelengths": "none" if wavelengths is None else ", ".join(repr(float(value)) for value in wavelengths),
    }


def layout_of(format: LineFormat, fields: Mapping[str, str | None], file: Path, meaning: str = "") -> Layout:
    """The layout of lines, with header fields of the format where `fields` says nothing of them."""
    name = format.dtype.newbyteorder("=").str[1:]
    if name not in CODE_OF_TYPE or format.bands < 1 or format.samples < 1:
        raise CubeFileError(
            "ENVI files hold lines of " + ", ".join(str(np.dtype(name)) for name in CODE_OF_TYPE),
            file=file,
            value=f"{format.dtype} {list(format.shape)}",
            remedy="convert the lines",
        )
    own: dict[str, str | None] = {}
    if format.wavelengths is not None:
        own |= {"wavelength units": "Nanometers", "wavelength": listed(format.wavelengths)}
    if format.scale is not None:
        own["reflectance scale factor"] = repr(float(format.scale))
    if format.ignore_value is not None:
        own["data ignore value"] = repr(float(format.ignore_value))
    given = {normalised(key) for key in fields}
    fields = {**{key: text for key, text in own.items() if key not in given}, **fields}
    meaning = " ".join(meaning.encode("utf-8", "replace").decode().split())
    layout = Layout(format, CODE_OF_TYPE[name], np.dtype("<" + name), fields, meaning)
    layout.header(MOST_LINES, file)
    return layout
