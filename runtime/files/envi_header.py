"""What an ENVI header says, checked.

What a header may leave out, and what it means, follows the "ENVI Header Files" page of the ENVI manual: `byte order`
and `header offset` default to 0, everything else that describes the layout must be there. Nothing is guessed or filled
in: a header that two common readers would read differently is refused with the reason.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import CubeFileError
from runtime.files.envi_text import INTERLEAVES, WHOLE, Field, Fields, Interleave, normalised, split, wrong
from runtime.stated import Stated

LARGEST_AXIS = 2**31 - 1
LARGEST_DATA = 2**46

TYPE_OF_CODE = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
CODE_OF_TYPE = {name: code for code, name in TYPE_OF_CODE.items()}

NANOMETRES = {
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1.0),
    **dict.fromkeys(
        ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), 1e3
    ),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e6),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 1e7),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e9),
    **dict.fromkeys(("angstrom", "angstroms", "ångström"), 0.1),
}
"""Nanometres per unit, by the unit's name in lower case."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eEdD][+-]?[0-9]{1,4})?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class EnviHeader:
    """What an ENVI header says, checked.

    Attributes:
        path: the header file.
        data_path: the data file.
        samples, lines, bands: 1 to 2**31 - 1.
        dtype: element type including the file's byte order.
        interleave: 'bil', 'bip' or 'bsq'.
        header_offset: bytes before the first element.
        wavelengths: one per band, in the file's units, or None.
        wavelength_units: the unit as written, or None.
        fwhm: one per band, in the file's units, or None.
        bbl: good-band factors, one per band, or None.
        data_ignore_value: the value that marks missing pixels, possibly NaN, or None.
        reflectance_scale_factor: DN per reflectance of 1.0, > 0, or None.
        fields: every key and its text as in the file.
        doubts: what could not be taken as it stands, in words for people.
    """

    path: Path
    data_path: Path
    samples: int
    lines: int
    bands: int
    dtype: np.dtype[Any]
    interleave: Interleave
    header_offset: int
    wavelengths: tuple[float, ...] | None
    wavelength_units: str | None
    fwhm: tuple[float, ...] | None
    bbl: tuple[float, ...] | None
    data_ignore_value: float | None
    reflectance_scale_factor: float | None
    fields: Fields
    doubts: tuple[str, ...] = ()

    @property
    def line_bytes(self) -> int:
        """Bytes of one line with all its bands."""
        return self.bands * self.samples * self.dtype.itemsize


def parse_header(text: str, *, path: Path, data_path: Path) -> EnviHeader:
    """Check the text of a header, without looking at the data file.

    Raises:
        CubeFileError: as `read_header`.
    """
    found = split(text, path)
    _check_kind(found, path)
    samples, lines, bands = (_whole(found, key, path, 1, LARGEST_AXIS) for key in ("samples", "lines", "bands"))
    code = _whole(found, "data type", path, 0, LARGEST_AXIS)
    byte_order = _whole(found, "byte order", path, 0, 1, default=0)
    header_offset = _whole(found, "header offset", path, 0, LARGEST_DATA, default=0)
    if code not in TYPE_OF_CODE:
        complex_type = code in (6, 9)
        raise wrong(
            found["data type"],
            path,
            "complex numbers are not spectra" if complex_type else "is not an ENVI data type",
            "convert the cube to one of the data types " + ", ".join(map(str, TYPE_OF_CODE)),
        )
    field = _needed(found, "interleave", path)
    interleave = field.text.casefold()
    if interleave not in INTERLEAVES:
        raise wrong(field, path, "is not an interleave", "set it to bil, bip or bsq")
    dtype = np.dtype("<>"[byte_order] + TYPE_OF_CODE[code])
    if header_offset + samples * lines * bands * dtype.itemsize >= LARGEST_DATA:
        size = Field("samples", f"{samples} x {lines} x {bands}", found["samples"].line)
        raise wrong(size, path, "samples x lines x bands is more than 64 TiB", "correct the header")
    wavelengths = _numbers(found, "wavelength", path, bands)
    units = found.get("wavelength units")
    ignore = _number(found, "data ignore value", path)
    scale = _number(found, "reflectance scale factor", path)
    if scale is not None and not (isfinite(scale) and scale > 0):
        raise wrong(found["reflectance scale factor"], path, "must be a finite number above 0", "correct or delete it")
    return EnviHeader(
        path=path,
        data_path=data_path,
        samples=samples,
        lines=lines,
        bands=bands,
        dtype=dtype,
        interleave=interleave,
        header_offset=header_offset,
        wavelengths=wavelengths,
        wavelength_units=units.text if units is not None and units.text else None,
        fwhm=_numbers(found, "fwhm", path, bands),
        bbl=_numbers(found, "bbl", path, bands),
        data_ignore_value=ignore,
        reflectance_scale_factor=scale,
        fields=Fields({field.name: field.text for field in found.values()}),
    )


def _check_kind(found: Mapping[str, Field], path: Path) -> None:
    kind = found.get("file type")
    if kind is not None and normalised(kind.text) not in ("", "envi", "envi standard", "standard"):
        what = {
            "envi spectral library": "a spectral library holds single spectra, not a cube",
            "envi classification": "a classification holds labels, not measurements",
        }.get(normalised(kind.text), "is not a plain ENVI image")
        raise wrong(kind, path, what, "give an image of type ENVI Standard")
    compression = found.get("file compression")
    if compression is not None and compression.text not in ("", "0"):
        raise wrong(compression, path, "compressed ENVI files are not read", "write it without compression")
    for key in ("major frame offsets", "minor frame offsets"):
        field = found.get(key)
        if field is not None and field.text.strip("{}0, \n\t"):
            raise wrong(field, path, "bytes around every frame are not read", "write the cube without them")


def _needed(found: Mapping[str, Field], key: str, path: Path) -> Field:
    if key not in found:
        raise CubeFileError("is missing", file=path, key=key, remedy=f"add '{key} = ...' to the header")
    return found[key]


def _whole(found: Mapping[str, Field], key: str, path: Path, low: int, high: int, default: int | None = None) -> int:
    if default is not None and key not in found:
        return default
    field = _needed(found, key, path)
    if not WHOLE.fullmatch(field.text) or not low <= int(field.text) <= high:
        raise wrong(field, path, f"must be a whole number from {low} to {high}", "correct it")
    return int(field.text)


def _float(text: str) -> float | None:
    if len(text) <= 64 and (_NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text)):
        return float(text.replace("d", "e").replace("D", "e") if "n" not in text.lower() else text)
    return None


def _number(found: Mapping[str, Field], key: str, path: Path) -> float | None:
    field = found.get(key)
    if field is None or not (text := field.text.strip("{} \n\t")):
        return None
    value = _float(text)
    if value is None:
        raise wrong(field, path, "is not a number", "correct or delete it")
    return value


def _numbers(found: Mapping[str, Field], key: str, path: Path, bands: int) -> tuple[float, ...] | None:
    field = found.get(key)
    if field is None or not (text := field.text.removeprefix("{").removesuffix("}").strip()):
        return None
    text = text.removesuffix(",")
    count = text.count(",") + 1
    if count != bands:
        raise CubeFileError(
            f"has {count} values for {bands} bands",
            file=path,
            line=field.line,
            key=field.name,
            remedy="correct the list or bands, or delete the key",
        )
    values: list[float] = []
    for number, item in enumerate(map(str.strip, text.split(",")), start=1):
        value = _float(item)
        if value is None or not isfinite(value):
            entry = field._replace(text=item)
            raise wrong(entry, path, f"entry {number} is not a finite number", "correct it or delete the key")
        values.append(value)
    return tuple(values)


def stated_by(header: EnviHeader) -> Stated:
    """What a header says of its numbers."""
    return Stated(
        scale=header.reflectance_scale_factor,
        marks=() if header.data_ignore_value is None else (header.data_ignore_value,),
        bad=() if header.bbl is None else tuple(band for band, good in enumerate(header.bbl) if good == 0),
        wavelengths=wavelengths_nm(header),
        axes=True,
        doubts=header.doubts,
    )


def wavelengths_nm(header: EnviHeader) -> tuple[float, ...] | None:
    """The header's wavelengths in nanometres, or None where they or their unit are not known.

    Without a unit (absent or `Unknown`, as several recorders write it), a list wholly within 150 to 30000 is taken as
    nanometres and one wholly within 0.15 to 30 with a fraction in it as micrometres: optical sensors leave no other
    reading, and band numbers are whole.
    """
    values = header.wavelengths
    if values is None:
        return None
    unit = normalised(header.wavelength_units or "")
    if unit in NANOMETRES:
        return tuple(value * NANOMETRES[unit] for value in values)
    if unit not in ("", "unknown"):
        return None
    if min(values) >= 150 and max(values) <= 30_000:
        return values
    if min(values) >= 0.15 and max(values) <= 30 and not all(value.is_integer() for value in values):
        return tuple(value * 1e3 for value in values)
    return None
