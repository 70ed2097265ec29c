"""What an ENVI header says, checked.

What a header may leave out, and what it means, follows the "ENVI Header Files" page of the ENVI manual: `byte order`
and `header offset` default to 0, everything else that describes the layout must be there. Nothing is guessed or filled
in: a header that two common readers would read differently is refused with the reason. Lists that say nothing of the
layout (wavelengths, widths, bad bands, names) are read in whatever brackets they come where there is one reading, and
else left out with a word.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, isinf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.errors import CubeFileError, plain
from runtime.files import foreign
from runtime.files.envi_text import (
    BRACKETS,
    GAIN_KEYS,
    INTERLEAVES,
    WHOLE,
    Field,
    Fields,
    Interleave,
    left_out,
    normalised,
    split,
    wrong,
)
from runtime.files.layout import Order
from runtime.files.rows import Rows
from runtime.stated import Stated

ORDERS: Mapping[str, Order] = {
    "bsq": ("bands", "lines", "samples"),
    "bil": ("lines", "bands", "samples"),
    "bip": ("lines", "samples", "bands"),
}
"""Axes of each interleave, the slowest first."""
LARGEST_AXIS = 2**31 - 1
LARGEST_DATA = 2**46
MOST_BANDS = 100_000
"""For which one number may stand: a header of a few bytes asks for no more memory."""

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

UNTOLD = ("", "unknown")
"""Names for a unit that nobody told."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eEdD][+-]?[0-9]{1,4})?", re.ASCII)
_UNIT_APART = re.compile(r"(?<=[0-9.])\s+(?=[^\W\d_])")
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
        gains, offsets: what the numbers are multiplied by and what is added then, one per band, or None; gains are
            not 0.
        reflectance_gains, reflectance_offsets: the same to reflectance.
        fields: every key and its text as in the file; lists per band in the standard's way, without what is left out.
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
    gains: tuple[float, ...] | None
    offsets: tuple[float, ...] | None
    reflectance_gains: tuple[float, ...] | None
    reflectance_offsets: tuple[float, ...] | None
    fields: Fields
    doubts: tuple[str, ...] = ()

    @property
    def line_bytes(self) -> int:
        """Bytes of one line with all its bands."""
        return self.bands * self.samples * self.dtype.itemsize

    @property
    def rows(self) -> Rows:
        """How the numbers lie in the data file."""
        shape = (self.bands, self.lines, self.samples)
        return Rows(shape, ORDERS[self.interleave], self.dtype, self.header_offset)


def parse_header(text: str, *, path: Path, data_path: Path, compressed: bool = False) -> EnviHeader:
    """Check the text of a header, without looking at the data file.

    Args:
        compressed: the header may say that the data file is.

    Raises:
        CubeFileError: as `read_header`.
    """
    found, told = split(text, path)
    doubts = list(told.values())
    _check_kind(found, path, data_path, doubts, compressed)
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
    if "wavelength units" in told:
        unknown = [found.pop(key) for key in ("wavelength", "fwhm") if key in found]
        doubts += [left_out(field, "its unit is told twice, differently") for field in unknown]
    wavelengths, fwhm, bbl = _lists(found, bands, doubts)
    units = found.get("wavelength units")
    gains, offsets, reflectance_gains, reflectance_offsets = (
        _per_band(found, key, path, bands, doubts) for key in GAIN_KEYS
    )
    scale = _scale(found, path, doubts)
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
        fwhm=fwhm,
        bbl=bbl,
        data_ignore_value=_number(found, "data ignore value", path),
        reflectance_scale_factor=scale,
        gains=gains,
        offsets=offsets,
        reflectance_gains=reflectance_gains,
        reflectance_offsets=reflectance_offsets,
        fields=Fields({field.name: field.text for field in found.values()}),
        doubts=tuple(doubts),
    )


def is_envi(file_type: str) -> bool:
    """Whether `file type` says no more than that there are rows of numbers."""
    return normalised(file_type) in ("", "envi", "envi standard", "standard")


def _check_kind(found: Mapping[str, Field], path: Path, data_path: Path, doubts: list[str], compressed: bool) -> None:
    field = found.get("file type")
    if field is not None and not is_envi(field.text):
        if kind := foreign.named(field.text):
            problem = f"stands for {kind.name}, not for a cube in rows of numbers"
            raise wrong(field, path, problem, kind.remedy_for(data_path))
        said = f"{plain(field.text)!r} is another program's, read as rows of numbers, as the other keys say"
        doubts.append(f"line {field.line}, file type: {said}")
    compression = found.get("file compression")
    if compression is not None and compression.text not in ("", "0", "1" if compressed else "0"):
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
    # A list of one and the same number is that number.
    values = {repr(_float(part)) for part in re.split(r"[\s,;]+", text)}
    value = _float(re.split(r"[\s,;]+", text)[0]) if len(values) == 1 else None
    if value is None:
        raise wrong(field, path, "is not a number", "correct or delete it")
    if isinf(value) and not _NOT_FINITE.search(text):
        raise wrong(field, path, "is larger than a number can be", "correct or delete it")
    return value


def _scale(found: dict[str, Field], path: Path, doubts: list[str]) -> float | None:
    key = "reflectance scale factor"
    scale = _number(found, key, path)
    if scale == 0:
        doubts.append(left_out(found.pop(key), "0 says nothing"))
        return None
    if scale is not None and not (isfinite(scale) and scale > 0):
        raise wrong(found[key], path, "must be a finite number above 0", "correct or delete it")
    return scale


class _Numbers(NamedTuple):
    """A list per band: its numbers, their unit in lower case or nothing, and the list as the standard has it."""

    values: tuple[float, ...]
    unit: str
    text: str


def _lists(found: dict[str, Field], bands: int, doubts: list[str]) -> list[tuple[float, ...] | None]:
    """`wavelength`, `fwhm` and `bbl`; those that cannot be read, and such `band names`, leave `found`."""
    values: dict[str, tuple[float, ...]] = {}
    for key in ("wavelength", "fwhm", "bbl", "band names"):
        field = found.get(key)
        if field is None or not field.text.strip("{}[]() \n\t"):
            continue
        try:
            if key == "band names":
                found[key] = field._replace(text=_names(field.text, bands))
                continue
            numbers = _numbers(field.text, bands)
            if numbers.unit:
                _check_unit(key, numbers.unit, found)
            lowest = min(numbers.values)
            if lowest < 0 or (key == "wavelength" and not (lowest > 0 and max(numbers.values) < 1e12)):
                raise ValueError(f"{lowest if lowest <= 0 else max(numbers.values):g} is not plausible")
        except ValueError as error:
            doubts.append(left_out(found.pop(key), str(error)))
            continue
        values[key] = numbers.values
        found[key] = field._replace(text=numbers.text)
    return [values.get(key) for key in ("wavelength", "fwhm", "bbl")]


def _check_unit(key: str, unit: str, found: dict[str, Field]) -> None:
    """Hold the unit of a list's entries against `wavelength units`, for which that of the wavelengths may stand."""
    told = found.get("wavelength units")
    said = normalised(told.text) if told is not None else ""
    if key == "bbl":
        raise ValueError(f"its entries have a unit: {unit}")
    if key == "wavelength" and said in UNTOLD:
        found["wavelength units"] = Field("wavelength units", unit, found[key].line)
    elif NANOMETRES.get(said) != NANOMETRES[unit]:
        raise ValueError(f"its entries are in {unit}, but 'wavelength units' says {plain(said) or 'nothing'}")


def _per_band(found: dict[str, Field], key: str, path: Path, bands: int, doubts: list[str]) -> tuple[float, ...] | None:
    """Gains or offsets; one counts for all bands."""
    field = found.get(key)
    if field is None or not field.text.strip("{}[]() \n\t"):
        return None
    try:
        numbers = _numbers(field.text, bands, shared=MOST_BANDS)
        if numbers.unit:
            raise ValueError(f"its entries have a unit: {numbers.unit}")
        if "gain" in key and not any(numbers.values):
            doubts.append(left_out(found.pop(key), "gains of 0 say nothing"))
            return None
        if "gain" in key and 0.0 in numbers.values:
            raise ValueError(f"entry {numbers.values.index(0.0) + 1} is 0")
    except ValueError as error:
        remedy = "correct it; or delete the key if the numbers already have their gains applied, and say --scale"
        raise wrong(field, path, str(error), remedy) from None
    found[key] = field._replace(text=numbers.text)
    return numbers.values


def _numbers(text: str, bands: int, *, shared: int = 1) -> _Numbers:
    """A list in any brackets, separated by semicolons, commas or blanks; one number stands for up to `shared` bands.

    Raises:
        ValueError: why there is not one reading.
    """
    inner = _inner(text)
    mark = next((mark for mark in ";," if mark in inner), None)
    if mark is None:
        entries = _UNIT_APART.sub("", inner).split()
    else:
        entries = [entry.strip() for part in _parts(inner, mark) for entry in part.split("\n")]
    count = len(entries)
    if count != bands and not (count == 1 and bands <= shared):
        raise ValueError(f"has {count} values for {bands} bands")
    values, texts, units = [], [], set()
    for number, entry in enumerate(entries, start=1):
        match = _NUMBER.match(bare := entry.strip("'\""))
        value = _float(match.group()) if match else None
        unit = normalised(bare[match.end() :]) if match else ""
        if match is None or value is None or not isfinite(value) or (unit and unit not in NANOMETRES):
            raise ValueError(f"entry {number} is not a finite number ({plain(entry)!r})")
        values.append(value)
        texts.append(match.group())
        units.add(unit)
    if len(units) > 1:
        raise ValueError("its entries have different units")
    times = bands // count
    standard = text.startswith("{") and texts * times == _parts(text[1:-1], ",")
    return _Numbers(tuple(values) * times, units.pop(), text if standard else "{" + ", ".join(texts * times) + "}")


def _names(text: str, bands: int) -> str:
    """Names of bands as the standard has them. ValueError: there are more or fewer than bands."""
    inner = _inner(text)
    names = _parts(inner, next((mark for mark in ",;\n" if mark in inner), ","))
    if len(names) != bands:
        raise ValueError(f"has {len(names)} values for {bands} bands")
    return text if text.startswith("{") and names == _parts(text[1:-1], ",") else "{" + ", ".join(names) + "}"


def _parts(text: str, mark: str) -> list[str]:
    """What is between the marks; the last of them may be at the end."""
    return [part.strip() for part in text.strip().removesuffix(mark).split(mark)]


def _inner(text: str) -> str:
    """A list without what encloses it. ValueError: the brackets do not match."""
    for _ in range(3):
        if text[:1] in BRACKETS:
            if not text.endswith(BRACKETS[text[0]]):
                raise ValueError("its brackets do not match")
            text = text[1:-1].strip()
    return text


def stated_by(header: EnviHeader) -> Stated:
    """What a header says of its numbers."""
    bad = () if header.bbl is None else tuple(band for band, good in enumerate(header.bbl) if good == 0)
    return Stated(
        scale=header.reflectance_scale_factor,
        gains=header.gains,
        offsets=header.offsets,
        reflectance_gains=header.reflectance_gains,
        reflectance_offsets=header.reflectance_offsets,
        marks=() if header.data_ignore_value is None else (header.data_ignore_value,),
        # A list that calls every band bad was never filled in.
        bad=bad if len(bad) < header.bands else (),
        wavelengths=wavelengths_nm(header),
        axes=True,
        doubts=header.doubts,
    )


def wavelengths_nm(header: EnviHeader) -> tuple[float, ...] | None:
    """The header's wavelengths in nanometres, or None where they or their unit are not known."""
    return _in_nm(header, header.wavelengths)


def fwhm_nm(header: EnviHeader) -> tuple[float, ...] | None:
    """The header's widths of bands in nanometres, None where they or the unit of its wavelengths are not known."""
    return _in_nm(header, header.fwhm)


def _in_nm(header: EnviHeader, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    factor = nanometres_per(header.wavelength_units or "", header.wavelengths)
    return None if factor is None or values is None else tuple(value * factor for value in values)


def nanometres(values: tuple[float, ...], unit: str) -> tuple[float, ...] | None:
    """Wavelengths of such a unit in nanometres, or None where it is not known; see `nanometres_per`."""
    factor = nanometres_per(unit, values)
    return None if factor is None else tuple(value * factor for value in values)


def nanometres_per(unit: str, wavelengths: tuple[float, ...] | None) -> float | None:
    """How many nanometres one of the unit of these wavelengths is, None where it is not known.

    Without a unit (absent or `Unknown`, as several recorders write it), a list wholly within 150 to 30000 is taken as
    nanometres and one wholly within 0.15 to 30 with a fraction in it as micrometres: optical sensors leave no other
    reading, and band numbers are whole.
    """
    unit = normalised(unit)
    if unit in NANOMETRES or unit not in UNTOLD or wavelengths is None:
        return NANOMETRES.get(unit)
    if min(wavelengths) >= 150 and max(wavelengths) <= 30_000:
        return 1.0
    if min(wavelengths) >= 0.15 and max(wavelengths) <= 30 and not all(value.is_integer() for value in wavelengths):
        return 1e3
    return None
