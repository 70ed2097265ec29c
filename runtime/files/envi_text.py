"""The text of an ENVI header: taken apart into fields, and put together so that it reads back the same."""

import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Literal, NamedTuple

from runtime.errors import CubeFileError, plain

Interleave = Literal["bil", "bip", "bsq"]
INTERLEAVES: tuple[Interleave, ...] = ("bil", "bip", "bsq")

HEADER_FIELDS = 100_000

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

GAIN_KEYS = (
    "data gain values",
    "data offset values",
    "data reflectance gain values",
    "data reflectance offset values",
)

STRICT_KEYS = LAYOUT_KEYS | {*GAIN_KEYS, "data ignore value", "reflectance scale factor"}
"""Keys that say where and what the numbers are: where they cannot be read, nor can the image."""

OPTIONAL_KEYS = frozenset({"wavelength", "fwhm", "bbl", "band names"})
"""Lists that are left out where they cannot be read."""

INTERPRETED_KEYS = STRICT_KEYS | OPTIONAL_KEYS | {"wavelength units"}

BAND_KEYS = OPTIONAL_KEYS | {*GAIN_KEYS, "solar irradiance"}
"""Keys with one value per band."""

CONVERTING = ("reflectance scale factor", *GAIN_KEYS)
"""Keys that turn numbers into values: no longer true of numbers that were converted."""

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

WHOLE = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
BRACKETS = {"{": "}", "[": "]", "(": ")"}
_KEY_FIRST = re.compile(
    "(?:" + "|".join(key.replace(" ", r"\s+") for key in sorted(INTERPRETED_KEYS, reverse=True)) + r")\b", re.IGNORECASE
)
_KNOWN_KEY = re.compile(_KEY_FIRST.pattern + r"\s*=", re.IGNORECASE)
_ANY_KEY = re.compile(r"[^={}\[\]()]*=")
_NUMBERS = re.compile(r"[0-9eE+\-.,;\s]+", re.ASCII)


class Field(NamedTuple):
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


def normalised(name: str) -> str:
    """A key as it is compared: lower case, single spaces."""
    return " ".join(name.split()).casefold()


def wrong(field: Field, path: Path, problem: str, remedy: str) -> CubeFileError:
    """A field that cannot be taken as it is."""
    return CubeFileError(problem, file=path, line=field.line, key=field.name, value=field.text, remedy=remedy)


def left_out(field: Field, problem: str) -> str:
    """What a person is told of a field that does not count."""
    return f"line {field.line}, {plain(field.name)}: {problem}; it is left out"


class _Rows(Iterator[tuple[int, str]]):
    """The rows of a header with their numbers, without blanks around them; one that was taken may be put back."""

    def __init__(self, text: str) -> None:
        self._rows = enumerate((row.strip() for row in StringIO(text, newline=None)), start=1)
        self._back: list[tuple[int, str]] = []

    def __next__(self) -> tuple[int, str]:
        return self._back.pop() if self._back else next(self._rows)

    def put_back(self, row: tuple[int, str]) -> None:
        self._back.append(row)


def split(text: str, path: Path) -> tuple[dict[str, Field], dict[str, str]]:
    """The fields of a header by normalised key, and what is left out of them in words, in one pass.

    Braces nest, since a list that lost its closing brace would otherwise swallow the keys after it unnoticed; a list of
    one value per band ends at the next key at the latest. A line that is neither blank, comment nor `key = value` is a
    vendor's note, unless it begins with a key that we interpret, or is the last one and is cut off.
    """
    if "\0" in text:
        raise CubeFileError(
            "holds NUL bytes",
            file=path,
            line=text.count("\n", 0, text.index("\0")) + 1,
            remedy="this is no ENVI header: give the text header",
        )
    rows = _Rows(text)
    if next(rows, (1, ""))[1] != "ENVI":
        raise CubeFileError("the first line is not ENVI", file=path, line=1, remedy="give an ENVI header")
    found: dict[str, Field] = {}
    doubts: dict[str, str] = {}
    last, cut = "", None
    whole = text.rstrip(" \t").endswith(("\n", "\r"))
    for number, line in rows:
        if not line or line.startswith(";"):
            continue
        cut = None
        if line.startswith("{") and last and not found[last].text:
            name, value = found.pop(last).name, line
        elif "=" in line and not line.startswith(("{", "}")):
            name, _, value = line.partition("=")
            name, value = " ".join(name.split()), value.strip()
        else:
            _note(line, number, rows, path, doubts)
            last, cut = "", (number, line)
            continue
        last = normalised(name)
        if last in BAND_KEYS:
            value = _listed(last, value, rows)
        elif value.startswith("{"):
            value = _braced(value, rows, name, number, path)
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
        _add(found, doubts, last, Field(name, value, number), path)
        if not (value or whole) and last in INTERPRETED_KEYS:
            cut = number, line
    # Once, for the last line: a header may have a million of them.
    if cut is not None and not (whole and not any(key.startswith(normalised(cut[1])) for key in INTERPRETED_KEYS)):
        raise CubeFileError(
            "the header ends within this line", file=path, line=cut[0], value=cut[1], remedy="copy it again, whole"
        )
    return {key: field for key, field in found.items() if key not in doubts}, doubts


def _add(found: dict[str, Field], doubts: dict[str, str], key: str, field: Field, path: Path) -> None:
    earlier = found.setdefault(key, field)
    if earlier is not field and normalised(earlier.text) != normalised(field.text):
        problem = f"is given twice with different values, first on line {earlier.line}"
        if key in STRICT_KEYS:
            raise wrong(field, path, problem, "delete the wrong one")
        doubts.setdefault(key, left_out(field, problem))
    if len(found) > HEADER_FIELDS:
        raise CubeFileError(
            f"more than {HEADER_FIELDS} keys", file=path, line=field.line, remedy="check that this is the header"
        )


def _note(line: str, number: int, rows: _Rows, path: Path, doubts: dict[str, str]) -> None:
    if line[0] in "{}":
        raise CubeFileError(
            "a brace outside a value", file=path, line=number, value=line, remedy="put the list behind its key and '='"
        )
    if match := _KEY_FIRST.match(line):
        key = normalised(match.group())
        field = Field(key, line, number)
        if key in STRICT_KEYS:
            raise wrong(field, path, "'=' is missing", f"write '{key} = ...'")
        _listed(key, line[match.end() :].strip(), rows)
        doubts[f"={number}"] = left_out(field, "'=' is missing")


def _listed(key: str, first: str, rows: _Rows) -> str:
    """The text of a list: to its closing bracket, else as long as there are numbers; not beyond the next key."""
    parts = [first] if first else []
    opening = next((c for c in first if c in BRACKETS), "")
    depth = _depth(first, opening)
    next_key = _KNOWN_KEY if key == "band names" else _ANY_KEY
    while (depth > 0 or not opening) and (row := next(rows, None)) is not None:
        line = row[1]
        if not line or line.startswith(";"):
            continue
        if not parts and line[0] in BRACKETS:
            opening = line[0]
        elif next_key.match(line) if opening else not all(map(_NUMBERS.fullmatch, [*parts[-1:], line])):
            rows.put_back(row)
            break
        parts.append(line)
        depth += _depth(line, opening)
    return "\n".join(parts)


def _depth(line: str, opening: str) -> int:
    return line.count(opening) - line.count(BRACKETS[opening]) if opening else 0


def _braced(first: str, rows: _Rows, name: str, number: int, path: Path) -> str:
    """The text of a value from its opening brace to the one that closes it; comment lines inside are left out."""
    parts: list[str] = []
    depth = 0
    line = first
    while True:
        parts.append(line)
        depth += line.count("{") - line.count("}")
        if depth <= 0:
            break
        line = next((line for _, line in rows if not line.startswith(";")), "\0")
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
        raise wrong(Field(name, text[-60:], number), path, "text after the closing brace", "delete it or the brace")
    return text


def _closes_early(text: str) -> bool:
    depth = 0
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.end() != len(text)
    return True


def header_text(
    shape: tuple[int, ...],
    code: int,
    interleave: Interleave,
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
        "byte order": 0,
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
    old = {key: int(text) for key, text in sizes.items() if WHOLE.fullmatch(text)}
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
    return all(WHOLE.fullmatch(item) is not None and 1 <= int(item) <= bands for item in items)


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
