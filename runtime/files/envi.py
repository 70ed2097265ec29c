"""ENVI header and data pairs: a strict reader and a crash-safe writer.

What a header may leave out, and what it means, follows the "ENVI Header Files" page of the ENVI manual: `byte order`
and `header offset` default to 0, everything else that describes the layout must be there. Nothing is guessed or filled
in: a header that two common readers would read differently is refused with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from math import isfinite, prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import PIECE, allocated, checked_size, opened, refuse_inputs, write_together

Interleave = Literal["bil", "bip", "bsq"]
INTERLEAVES: tuple[Interleave, ...] = ("bil", "bip", "bsq")

HEADER_BYTES = 16 << 20
HEADER_FIELDS = 100_000
LARGEST_AXIS = 2**31 - 1
LARGEST_DATA = 2**46

DATA_SUFFIXES = (".img", ".raw", ".dat", ".bsq", ".bil", ".bip", ".bin")

TYPE_OF_CODE = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
CODE_OF_TYPE = {name: code for code, name in TYPE_OF_CODE.items()}

LAYOUT_KEYS = frozenset(
    {
        "samples",
        "lines",
        "bands",
        "header offset",
        "file type",
        "file compression",
        "data type",
        "interleave",
        "byte order",
        "major frame offsets",
        "minor frame offsets",
    }
)
"""Keys that say how the bytes lie: never copied from one file to another."""

INTERPRETED_KEYS = LAYOUT_KEYS | {
    "wavelength",
    "wavelength units",
    "fwhm",
    "bbl",
    "data ignore value",
    "reflectance scale factor",
}

BAND_KEYS = frozenset(
    {
        "wavelength",
        "fwhm",
        "bbl",
        "band names",
        "data gain values",
        "data offset values",
        "data reflectance gain values",
        "data reflectance offset values",
        "solar irradiance",
    }
)
"""Keys with one value per band."""

RASTER_KEYS = frozenset(
    {
        "map info",
        "projection info",
        "coordinate system string",
        "geo points",
        "rpc info",
        "pixel size",
        "pseudo map info",
        "x start",
        "y start",
    }
)
"""Keys that place the samples and lines on the ground."""

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

_WHOLE = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eEdD][+-]?[0-9]{1,4})?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_KEY_FIRST = re.compile(
    "(?:" + "|".join(key.replace(" ", r"\s+") for key in sorted(INTERPRETED_KEYS, reverse=True)) + r")\b", re.IGNORECASE
)


class _Field(NamedTuple):
    name: str
    text: str
    line: int


class Fields(Mapping[str, str]):
    """Raw header fields in file order: iterates over the names as written, looks them up in any case and spacing."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = {normalised(name): (name, text) for name, text in fields.items()}

    def __getitem__(self, name: str) -> str:
        return self._fields[normalised(name)][1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._fields.values())

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Fields({dict(self)!r})"


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
        byte_order: 0 little, 1 big; as the header says, also for single bytes.
        wavelengths: one per band, in the file's units, or None.
        wavelength_units: the unit as written, or None.
        fwhm: one per band, in the file's units, or None.
        bbl: good-band factors, one per band, or None.
        data_ignore_value: the value that marks missing pixels, possibly NaN, or None.
        reflectance_scale_factor: DN per reflectance of 1.0, > 0, or None.
        fields: every key and its text as in the file.
    """

    path: Path
    data_path: Path
    samples: int
    lines: int
    bands: int
    dtype: np.dtype[Any]
    interleave: Interleave
    header_offset: int
    byte_order: int
    wavelengths: tuple[float, ...] | None
    wavelength_units: str | None
    fwhm: tuple[float, ...] | None
    bbl: tuple[float, ...] | None
    data_ignore_value: float | None
    reflectance_scale_factor: float | None
    fields: Fields

    @property
    def shape(self) -> tuple[int, int, int]:
        """[bands, lines, samples]."""
        return self.bands, self.lines, self.samples

    @property
    def line_bytes(self) -> int:
        """Bytes of one line with all its bands."""
        return self.bands * self.samples * self.dtype.itemsize


def normalised(name: str) -> str:
    """A key as it is compared: lower case, single spaces."""
    return " ".join(name.split()).casefold()


def pair_of(path: str | Path) -> tuple[Path, Path]:
    """The header and data files that belong to `path`, which is either of them.

    `X.hdr` describes `X` or `X` with one of DATA_SUFFIXES; data file `X.img` is described by `X.hdr` or `X.img.hdr`.

    Raises:
        CubeFileError: `path` or its partner is missing, or several files could be the partner.
    """
    path = Path(path)
    _require(path)
    if path.suffix.lower() == ".hdr":
        stem = path.with_suffix("")
        candidates = [stem, *(_with_suffix(stem, suffix) for suffix in DATA_SUFFIXES)]
        candidates += [_with_suffix(stem, suffix.upper()) for suffix in DATA_SUFFIXES]
        return path, _partner(path, candidates, "data file")
    candidates = [_with_suffix(path, suffix) for suffix in (".hdr", ".HDR")]
    if path.suffix:
        candidates += [path.with_suffix(suffix) for suffix in (".hdr", ".HDR")]
    return _partner(path, candidates, "header"), path


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _require(path: Path) -> None:
    with opened(path):
        pass


def _partner(path: Path, candidates: Sequence[Path], kind: str) -> Path:
    found: list[Path] = []
    for candidate in candidates:
        with suppress(OSError):
            if candidate.is_file() and not any(candidate.samefile(other) for other in found):
                found.append(candidate)
    if not found:
        names = ", ".join(dict.fromkeys(candidate.name for candidate in candidates if not candidate.suffix.isupper()))
        raise CubeFileError(f"its {kind} is missing", file=path, remedy=f"put one of these beside it: {names}")
    if len(found) > 1:
        names = " and ".join(candidate.name for candidate in found)
        raise CubeFileError(
            f"several files could be its {kind}: {names}",
            file=path,
            remedy=f"give the {kind} itself, or remove what does not belong to it",
        )
    return found[0]


def read_header(path: str | Path, *, growing: bool = False) -> EnviHeader:
    """Read and check the header of an ENVI pair.

    Args:
        path: the header or the data file.
        growing: the data file is still being written: it may be shorter than the header says.

    Raises:
        CubeFileError: the pair is incomplete or ambiguous, the header is malformed, contradicts itself or the size of
            the data file, or asks for what is not a plain image cube (spectral library, compressed, complex).
    """
    path, data_path = pair_of(path)
    header = parse_header(_header_text(path), path=path, data_path=data_path)
    expected = header.header_offset + header.lines * header.line_bytes
    with opened(data_path) as (_, size):
        _check_size(header, expected, size, growing=growing)
    return header


def _header_text(path: Path) -> str:
    with opened(path) as (file, size):
        if size > HEADER_BYTES:
            raise CubeFileError(
                "the header is larger than 16 MiB",
                file=path,
                value=f"{size} bytes",
                remedy="check that this is the header",
            )
        pieces = []
        while piece := file.read(HEADER_BYTES + 1):
            pieces.append(piece)
            if sum(map(len, pieces)) > HEADER_BYTES:
                raise CubeFileError("the header grew beyond 16 MiB while it was read", file=path, remedy="try again")
    data = b"".join(pieces).removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _check_size(header: EnviHeader, expected: int, size: int, *, growing: bool) -> None:
    if size == expected or (growing and size < expected):
        return
    excess = size - expected
    sum_of_parts = (
        f"{header.lines} lines x {header.bands} bands x {header.samples} samples x {header.dtype.itemsize} bytes"
        + (f" + header offset {header.header_offset}" if header.header_offset else "")
    )
    if excess < 0:
        whole = max(0, size - header.header_offset) // header.line_bytes
        lines = f"; {whole} whole lines are there" if header.interleave != "bsq" else ""
        raise CubeFileError(
            f"the data file has {size} bytes, its header asks for {expected} ({sum_of_parts}){lines}",
            file=header.data_path,
            key="lines",
            value=header.lines,
            remedy="copy the data file again or correct the header",
        )
    remedy = (
        f"set 'header offset = {excess}' if the image follows a header of that size, else correct the layout keys"
        if header.header_offset == 0 and excess < header.line_bytes
        else "correct samples, lines, bands or data type in the header"
    )
    raise CubeFileError(
        f"the data file has {size} bytes, its header accounts for only {expected} ({sum_of_parts})",
        file=header.data_path,
        key="lines",
        value=header.lines,
        remedy=remedy,
    )


def parse_header(text: str, *, path: Path, data_path: Path) -> EnviHeader:
    """Check the text of a header, without looking at the data file.

    Raises:
        CubeFileError: as `read_header`.
    """
    found = _split(text, path)
    _check_kind(found, path)
    samples, lines, bands = (_whole(found, key, path, 1, LARGEST_AXIS) for key in ("samples", "lines", "bands"))
    code = _whole(found, "data type", path, 0, LARGEST_AXIS)
    byte_order = _whole(found, "byte order", path, 0, 1, default=0)
    header_offset = _whole(found, "header offset", path, 0, LARGEST_DATA, default=0)
    if code not in TYPE_OF_CODE:
        complex_type = code in (6, 9)
        raise _wrong(
            found["data type"],
            path,
            "complex numbers are not spectra" if complex_type else "is not an ENVI data type",
            "convert the cube to one of the data types " + ", ".join(map(str, TYPE_OF_CODE)),
        )
    field = _needed(found, "interleave", path)
    interleave = field.text.casefold()
    if interleave not in INTERLEAVES:
        raise _wrong(field, path, "is not an interleave", "set it to bil, bip or bsq")
    dtype = np.dtype("<>"[byte_order] + TYPE_OF_CODE[code])
    if header_offset + samples * lines * bands * dtype.itemsize >= LARGEST_DATA:
        raise CubeFileError(
            "samples x lines x bands is more than 64 TiB",
            file=path,
            line=found["samples"].line,
            key="samples",
            value=f"{samples} x {lines} x {bands}",
            remedy="correct the header",
        )
    wavelengths = _numbers(found, "wavelength", path, bands)
    units = found.get("wavelength units")
    ignore = _number(found, "data ignore value", path)
    scale = _number(found, "reflectance scale factor", path)
    if scale is not None and not (isfinite(scale) and scale > 0):
        raise _wrong(found["reflectance scale factor"], path, "must be a finite number above 0", "correct or delete it")
    return EnviHeader(
        path=path,
        data_path=data_path,
        samples=samples,
        lines=lines,
        bands=bands,
        dtype=dtype,
        interleave=interleave,
        header_offset=header_offset,
        byte_order=byte_order,
        wavelengths=wavelengths,
        wavelength_units=units.text if units is not None and units.text else None,
        fwhm=_numbers(found, "fwhm", path, bands),
        bbl=_numbers(found, "bbl", path, bands),
        data_ignore_value=ignore,
        reflectance_scale_factor=scale,
        fields=Fields({field.name: field.text for field in found.values()}),
    )


def _split(text: str, path: Path) -> dict[str, _Field]:
    """The fields of a header by normalised key, in one pass.

    Braces nest, since a list that lost its closing brace would otherwise swallow the keys after it unnoticed. A line
    that is neither blank, comment nor `key = value` is a vendor's note, unless it begins with a key that we interpret.
    """
    if "\0" in text:
        raise CubeFileError(
            "holds NUL bytes",
            file=path,
            line=text.count("\n", 0, text.index("\0")) + 1,
            remedy="this is no ENVI header: give the text header",
        )
    lines = enumerate((row.strip() for row in StringIO(text, newline=None)), start=1)
    if next(lines)[1] != "ENVI":
        raise CubeFileError("the first line is not ENVI", file=path, line=1, remedy="give an ENVI header")
    found: dict[str, _Field] = {}
    last = ""
    for number, line in lines:
        if not line or line.startswith(";"):
            continue
        if line.startswith("{") and last and not found[last].text:
            name, value = found.pop(last).name, line
        elif "=" in line and not line.startswith(("{", "}")):
            name, _, value = line.partition("=")
            name, value = " ".join(name.split()), value.strip()
        else:
            _check_note(line, number, path)
            last = ""
            continue
        if value.startswith("{"):
            value = _braced(value, lines, name, number, path)
        elif "{" in value and "}" not in value:
            raise CubeFileError(
                "an opening brace in the middle of a value is not closed",
                file=path,
                line=number,
                key=name,
                remedy="close it",
            )
        if not name:
            raise CubeFileError(
                "a value without a key", file=path, line=number, value=value, remedy="name it or delete it"
            )
        last = normalised(name)
        _add(found, last, _Field(name, value, number), path)
    return found


def _add(found: dict[str, _Field], key: str, field: _Field, path: Path) -> None:
    earlier = found.setdefault(key, field)
    if earlier is not field and normalised(earlier.text) != normalised(field.text):
        raise CubeFileError(
            f"is given twice with different values, first on line {earlier.line}",
            file=path,
            line=field.line,
            key=field.name,
            value=field.text,
            remedy="delete the wrong one",
        )
    if len(found) > HEADER_FIELDS:
        raise CubeFileError(
            f"more than {HEADER_FIELDS} keys", file=path, line=field.line, remedy="check that this is the header"
        )


def _check_note(line: str, number: int, path: Path) -> None:
    if line[0] in "{}":
        raise CubeFileError(
            "a brace outside a value", file=path, line=number, value=line, remedy="put the list behind its key and '='"
        )
    if match := _KEY_FIRST.match(line):
        key = normalised(match.group())
        raise CubeFileError(
            "'=' is missing", file=path, line=number, key=key, value=line, remedy=f"write '{key} = ...'"
        )


def _braced(first: str, lines: Iterator[tuple[int, str]], name: str, number: int, path: Path) -> str:
    """The text of a value from its opening brace to the one that closes it; comment lines inside are left out."""
    parts: list[str] = []
    depth = 0
    line = first
    while True:
        parts.append(line)
        depth += line.count("{") - line.count("}")
        if depth <= 0:
            break
        line = next((line for _, line in lines if not line.startswith(";")), "\0")
        if line == "\0":
            raise CubeFileError(
                "the brace opened here is never closed",
                file=path,
                line=number,
                key=name,
                remedy="close the list with '}'",
            )
    text = "\n".join(parts)
    if depth < 0 or not text.endswith("}") or _closes_early(text):
        raise CubeFileError(
            "text after the closing brace",
            file=path,
            line=number,
            key=name,
            value=text[-60:],
            remedy="delete it or the brace",
        )
    return text


def _closes_early(text: str) -> bool:
    depth = 0
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.end() != len(text)
    return True


def _check_kind(found: Mapping[str, _Field], path: Path) -> None:
    kind = found.get("file type")
    if kind is not None and normalised(kind.text) not in ("", "envi", "envi standard", "standard"):
        what = {
            "envi spectral library": "a spectral library holds single spectra, not a cube",
            "envi classification": "a classification holds labels, not measurements",
        }.get(normalised(kind.text), "is not a plain ENVI image")
        raise _wrong(kind, path, what, "give an image of type ENVI Standard")
    compression = found.get("file compression")
    if compression is not None and compression.text not in ("", "0"):
        raise _wrong(compression, path, "compressed ENVI files are not read", "write it without compression")
    for key in ("major frame offsets", "minor frame offsets"):
        field = found.get(key)
        if field is not None and field.text.strip("{}0, \n\t"):
            raise _wrong(field, path, "bytes around every frame are not read", "write the cube without them")


def _wrong(field: _Field, path: Path, problem: str, remedy: str) -> CubeFileError:
    return CubeFileError(problem, file=path, line=field.line, key=field.name, value=field.text, remedy=remedy)


def _needed(found: Mapping[str, _Field], key: str, path: Path) -> _Field:
    if key not in found:
        raise CubeFileError("is missing", file=path, key=key, remedy=f"add '{key} = ...' to the header")
    return found[key]


def _whole(found: Mapping[str, _Field], key: str, path: Path, low: int, high: int, default: int | None = None) -> int:
    if default is not None and key not in found:
        return default
    field = _needed(found, key, path)
    if not _WHOLE.fullmatch(field.text) or not low <= int(field.text) <= high:
        raise _wrong(field, path, f"must be a whole number from {low} to {high}", "correct it")
    return int(field.text)


def _float(text: str) -> float | None:
    if len(text) <= 64 and (_NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text)):
        return float(text.replace("d", "e").replace("D", "e") if "n" not in text.lower() else text)
    return None


def _number(found: Mapping[str, _Field], key: str, path: Path) -> float | None:
    field = found.get(key)
    if field is None or not (text := field.text.strip("{} \n\t")):
        return None
    value = _float(text)
    if value is None:
        raise _wrong(field, path, "is not a number", "correct or delete it")
    return value


def _numbers(found: Mapping[str, _Field], key: str, path: Path, bands: int) -> tuple[float, ...] | None:
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
    for index, item in enumerate(text.split(",")):
        value = _float(item.strip())
        if value is None or not isfinite(value):
            raise CubeFileError(
                f"entry {index + 1} is not a finite number",
                file=path,
                line=field.line,
                key=field.name,
                value=item.strip(),
                remedy="correct it or delete the key",
            )
        values.append(value)
    return tuple(values)


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


def read_envi(path: str | Path | EnviHeader) -> NDArray[Any]:
    """The whole cube of an ENVI pair.

    Returns:
        [bands, lines, samples] in native byte order and the file's own type, C-contiguous.

    Raises:
        CubeFileError: as `read_header`, or the cube does not fit into memory.
    """
    header = path if isinstance(path, EnviHeader) else read_header(path)
    return read_lines(header, 0, header.lines)


def read_lines(path: str | Path | EnviHeader, start: int, stop: int) -> NDArray[Any]:
    """Lines `start` to `stop` (excluded) of an ENVI pair, without reading the others.

    By plain reads: a file cut short meanwhile is an error, where a memory map would end the process.

    Args:
        path: the header or data file, or a header already read (nothing is checked again but the range).
        start, stop: 0 <= start < stop <= lines.

    Returns:
        [bands, stop - start, samples] in native byte order and the file's own type, C-contiguous.

    Raises:
        CubeFileError: the range is not within the cube, or the file ends before it.
    """
    header = path if isinstance(path, EnviHeader) else read_header(path)
    if not 0 <= start < stop <= header.lines:
        raise CubeFileError(
            f"lines {start} to {stop} are not within the cube",
            file=header.path,
            key="lines",
            value=header.lines,
            remedy=f"ask for lines from 0 to {header.lines}",
        )
    native = header.dtype.newbyteorder("=")
    cube = allocated(header.data_path, (header.bands, stop - start, header.samples), native)
    with opened(header.data_path) as (file, _):
        if header.interleave == "bsq":
            _read_bsq(file, header, start, cube.view(header.dtype))
            if header.dtype != native:
                cube.byteswap(inplace=True)
        else:
            _read_by_line(file, header, start, cube)
    return cube


def lines_present(header: EnviHeader) -> int:
    """Whole lines in the data file now, at most `header.lines`: for a line-interleaved file that is still growing."""
    try:
        size = checked_size(header.data_path, header.data_path.stat())
    except OSError as error:
        raise CubeFileError("the data file is gone", file=header.data_path, remedy="check the disk") from error
    return max(0, min(header.lines, (size - header.header_offset) // header.line_bytes))


def _read_bsq(file: BinaryIO, header: EnviHeader, start: int, cube: NDArray[Any]) -> None:
    line = header.samples * header.dtype.itemsize
    if cube.shape[1] == header.lines:
        _read_at(file, header, 0, cube)
        return
    for band in range(header.bands):
        _read_at(file, header, (band * header.lines + start) * line, cube[band])


def _read_by_line(file: BinaryIO, header: EnviHeader, start: int, cube: NDArray[Any]) -> None:
    bil = header.interleave == "bil"
    step = max(1, min(cube.shape[1], PIECE // header.line_bytes))
    shape = (header.bands, header.samples) if bil else (header.samples, header.bands)
    block = allocated(header.data_path, (step, *shape), header.dtype)
    for first in range(0, cube.shape[1], step):
        count = min(step, cube.shape[1] - first)
        _read_at(file, header, (start + first) * header.line_bytes, block[:count])
        cube[:, first : first + count] = block[:count].transpose((1, 0, 2) if bil else (2, 0, 1))


def _read_at(file: BinaryIO, header: EnviHeader, offset: int, array: NDArray[Any]) -> None:
    """Fill a C-contiguous array from `offset` bytes behind the header offset."""
    target = array.reshape(-1).view(np.uint8).data
    position = header.header_offset + offset
    while target:
        count = os.preadv(file.fileno(), [target[: 1 << 30]], position)
        if count == 0:
            raise CubeFileError(
                f"the data file ends at byte {position}, before the lines asked for",
                file=header.data_path,
                remedy="wait until they are written, or copy the file again",
            )
        target = target[count:]
        position += count


def write_envi(
    path: str | Path,
    cube: NDArray[Any],
    *,
    interleave: Interleave = "bil",
    fields: Mapping[str, str | None] | None = None,
    byte_order: int = 0,
    inputs: Sequence[Path] = (),
) -> tuple[Path, Path]:
    """Write an ENVI pair so that both files are whole afterwards, or neither is there.

    Args:
        path: the header (its data file becomes `.img`) or the data file (its header gets the suffix `.hdr`).
        cube: [bands, lines, samples], real numbers of 1 to 8 bytes (float16 and int8 have no ENVI type).
        interleave: order of the axes in the file.
        fields: more header fields, as `EnviHeader.fields` gives them or as plain text. Those that describe the layout
            are left out; per-band lists of another length and, where `samples` or `lines` are among the fields and
            differ from the cube's, georeferencing are left out too: they would no longer be true. None drops a key.
        byte_order: 0 little, 1 big.
        inputs: files that must not be overwritten.

    Returns:
        the header and data files.

    Raises:
        CubeFileError: the cube has no ENVI form, the target is an input or would make the pair ambiguous, or the system
            refused to write (its reason is given); nothing has changed on disk then.
    """
    header_path, data_path = target_pair(Path(path))
    name = cube.dtype.newbyteorder("=").str[1:]
    if cube.ndim != 3 or 0 in cube.shape or name not in CODE_OF_TYPE:
        raise CubeFileError(
            "ENVI files hold 3-D cubes of " + ", ".join(str(np.dtype(name)) for name in CODE_OF_TYPE),
            file=data_path,
            value=f"{cube.dtype} {list(cube.shape)}",
            remedy="convert the cube",
        )
    if interleave not in INTERLEAVES or byte_order not in (0, 1):
        raise CubeFileError(
            "interleave must be bil, bip or bsq, byte order 0 or 1", file=data_path, value=f"{interleave}, {byte_order}"
        )
    for target in (header_path, data_path):
        refuse_inputs(target, inputs)
    text = header_text(cube.shape, CODE_OF_TYPE[name], interleave, byte_order, fields or {}, path=header_path)
    dtype = np.dtype("<>"[byte_order] + name)

    def write_data(file: BinaryIO) -> None:
        _write_data(file, cube, dtype, interleave)

    def write_header(file: BinaryIO) -> None:
        file.write(text.encode("utf-8", "replace"))

    write_together([(data_path, write_data), (header_path, write_header)])
    return header_path, data_path


def target_pair(path: Path) -> tuple[Path, Path]:
    """The header and data files that `write_envi` writes. Raises CubeFileError: a file beside them is in the way."""
    if not path.name:
        raise CubeFileError("is not a file name", file=path, remedy="name the header or the data file")
    if path.suffix.lower() == ".hdr":
        header_path, data_path = path, path.with_suffix(".img")
    else:
        header_path, data_path = path.with_suffix(".hdr") if path.suffix else _with_suffix(path, ".hdr"), path
    stem = header_path.with_suffix("")
    rivals = [stem, *(_with_suffix(stem, suffix) for suffix in DATA_SUFFIXES)]
    for rival in [*rivals, _with_suffix(data_path, ".hdr")]:
        if rival not in (header_path, data_path) and rival.is_file():
            raise CubeFileError(
                f"{rival.name} beside it would make the pair ambiguous",
                file=path,
                remedy="write to another name or folder",
            )
    return header_path, data_path


def header_text(
    shape: tuple[int, ...],
    code: int,
    interleave: Interleave,
    byte_order: int,
    fields: Mapping[str, str | None],
    *,
    path: Path,
) -> str:
    """The header of a cube [bands, lines, samples]; see `write_envi`."""
    bands, lines, samples = shape
    kept = carried(fields, shape, path=path)
    description = kept.pop("description", None)
    layout = {
        "samples": samples,
        "lines": lines,
        "bands": bands,
        "header offset": 0,
        "file type": "ENVI Standard",
        "data type": code,
        "interleave": interleave,
        "byte order": byte_order,
    }
    rows = ["ENVI"]
    if description is not None:
        text = description[1]
        rows.append(f"description = {text if text.startswith('{') else '{' + text + '}'}")
    rows += [f"{key} = {value}" for key, value in layout.items()]
    rows += [f"{name} = {text}" for name, text in kept.values()]
    return "\n".join(rows) + "\n"


def carried(fields: Mapping[str, str | None], shape: tuple[int, ...], *, path: Path) -> dict[str, tuple[str, str]]:
    """The fields that stay true of a cube [bands, lines, samples]: normalised key -> (name, text safe in a header)."""
    known = {normalised(name): text for name, text in fields.items()}
    bands, lines, samples = shape
    sizes = {key: known.get(key) or "" for key in ("samples", "lines", "bands")}
    old = {key: int(text) for key, text in sizes.items() if _WHOLE.fullmatch(text)}
    moved = old.get("samples", samples) != samples or old.get("lines", lines) != lines
    kept: dict[str, tuple[str, str]] = {}
    for name, text in fields.items():
        key = normalised(name)
        if text is None or key in LAYOUT_KEYS or (moved and key in RASTER_KEYS):
            continue
        count = text.rstrip("} \n").removesuffix(",").count(",") + 1 if text.startswith("{") else 1
        if key in BAND_KEYS and count != bands:
            continue
        if text.startswith("{") and count > 1 and old.get("bands", bands) == count != bands:
            continue
        if key == "default bands" and not _band_numbers(text, bands):
            continue
        kept[key] = _safe_name(name, path), _safe_text(text)
    return kept


def _band_numbers(text: str, bands: int) -> bool:
    items = [item.strip() for item in text.strip("{} \n").split(",")]
    return all(_WHOLE.fullmatch(item) is not None and 1 <= int(item) <= bands for item in items)


def _safe_name(name: str, path: Path) -> str:
    safe = " ".join(name.split())
    if not safe or safe[0] == ";" or not safe.isprintable() or any(c in safe for c in "={}"):
        raise CubeFileError("is not a name for a header field", file=path, key=name, remedy="use words without = { } ;")
    return safe


def _safe_text(text: str) -> str:
    """A value that stays one value: balanced outer braces at most, no line that reads as anything else."""
    text = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text.strip().replace("\r\n", "\n"))
    braced = text.startswith("{") and text.endswith("}") and len(text) > 1
    inner = (text[1:-1] if braced else text).replace("{", "(").replace("}", ")")
    if not braced or any(line.lstrip().startswith(";") for line in inner.split("\n")):
        inner = " ".join(inner.split())
    return "{" + inner + "}" if braced else inner


def listed(values: Sequence[float]) -> str:
    """Numbers as a header list, ten to a line, each so that it reads back equal."""
    texts = [repr(float(value)) for value in values]
    rows = [", ".join(texts[first : first + 10]) for first in range(0, len(texts), 10)]
    return "{" + ",\n ".join(rows) + "}"


def _write_data(file: BinaryIO, cube: NDArray[Any], dtype: np.dtype[Any], interleave: Interleave) -> None:
    axes = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}[interleave]
    ordered = cube.transpose(axes)
    step = max(1, PIECE // (prod(ordered.shape[1:]) * dtype.itemsize))
    for first in range(0, ordered.shape[0], step):
        block = np.ascontiguousarray(ordered[first : first + step], dtype=dtype)
        file.write(block.data)
