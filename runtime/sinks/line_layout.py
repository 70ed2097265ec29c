"""How lines lie in line files: their type and order, in words and as an ENVI header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import CubeFileError
from runtime.files.envi_header import CODE_OF_TYPE
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

    def describe(self) -> str:
        return described(self.format.bands, self.format.samples, self.stored)

    def header(self, lines: int, path: Path) -> bytes:
        shape = (self.format.bands, lines, self.format.samples)
        return header_text(shape, self.code, "bil", 0, self.fields, path=path).encode("utf-8", "replace")


def described(bands: int, samples: int, dtype: np.dtype[Any], interleave: str = "bil", offset: int = 0) -> str:
    """A layout in words, the same for the same layout."""
    order = "big endian " if dtype.itemsize > 1 and dtype.newbyteorder(">") == dtype else ""
    other = f", {interleave}, header offset {offset}" if (interleave, offset) != ("bil", 0) else ""
    return f"{bands} bands x {samples} samples, {order}{dtype.newbyteorder('=').name}{other}"


def layout_of(format: LineFormat, fields: Mapping[str, str | None], file: Path) -> Layout:
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
    layout = Layout(format, CODE_OF_TYPE[name], np.dtype("<" + name), fields)
    layout.header(MOST_LINES, file)
    return layout
