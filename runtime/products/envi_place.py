"""Where an ENVI cube lies: `map info` as GDAL's geotransform and back, and the tables that lie beside a cube."""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from runtime.errors import CubeFileError
from runtime.files.disk import opened
from runtime.files.envi import read_header, read_lines
from runtime.files.envi_header import EnviHeader
from runtime.files.envi_text import Fields
from runtime.products.contract import Doubles, Glt, Grid
from runtime.products.crs import NUMBER, WGS84, old_wkt, utm_wkt, wkt_of

_WKT_BEGINS = ("PROJC", "GEOGC", "GEODC", "COMPD", "BOUNDC", "LOCAL_CS", "ENGCRS")
_MOST_WKT = 1 << 16
_VERSION = re.compile(r"(?i)img|clip|v\w{1,8}|rdn|rfl|corr")
"""What stands behind the name of a flight line in that of a cube, and not in those of its tables."""


def grid_of(header: EnviHeader) -> tuple[Grid | None, str | None]:
    """The map grid that a header tells, and why it tells none though it has `map info`.

    The reference pixel counts from 1 at the upper left corner of the first pixel; `rotation` turns the grid about it
    (ENVI Header Files; GDAL's ENVI driver).
    """
    text = header.fields.get("map info", "").strip("{} \n\t")
    if not text:
        return None, None
    items = [item.strip() for item in text.split(",")]
    try:
        x, y, east, north, across, down = (float(item) for item in items[1:7])
        said = next((item.partition("=")[2] for item in items[7:] if item.lower().startswith("rotation")), "0")
        turn = math.radians(float(said))
        values = (x, y, east, north, across, down, turn)
        if len(values) != 7 or not all(map(math.isfinite, values)) or not (across > 0 and down > 0):
            raise ValueError
    except ValueError:
        return None, "its map info cannot be read"
    crs = _crs(header.fields, items)
    if crs is None:
        return None, "its map info names no coordinate system that is known, and there is no coordinate system string"
    a, d = across * math.cos(turn), across * math.sin(turn)
    b, e = down * math.sin(turn), -down * math.cos(turn)
    left, top = x - 1, y - 1
    corner = east - left * a - top * b, north - left * d - top * e
    return Grid(crs, (corner[0], a, b, corner[1], d, e), header.lines, header.samples), None


def _crs(fields: Fields, items: list[str]) -> str | None:
    text = fields.get("coordinate system string", "").strip("{} \n\t")
    if len(text) <= _MOST_WKT and text.upper().startswith(_WKT_BEGINS):
        # What is in quotes stays as it is.
        parts = text.split('"')
        return '"'.join(part if place % 2 else "".join(part.split()) for place, part in enumerate(parts))
    if NUMBER.fullmatch(text):
        return text
    name, more = items[0].casefold(), [item.casefold() for item in items[7:]]
    if not any(re.fullmatch(r"wgs[-_ ]?(?:19)?84", item) for item in more):
        return None
    if name.startswith("geographic"):
        return WGS84
    if name == "utm" and len(more) > 1 and re.fullmatch(r"[1-9]|[1-5][0-9]|60", more[0]):
        return utm_wkt(int(more[0]), more[1].startswith("s"))
    return None


def map_fields(grid: Grid) -> dict[str, str]:
    """The header fields that tell a grid; none of one that is sheared or mirrored, which `map info` cannot tell."""
    x, a, b, y, d, e = grid.transform
    across, down, turn = math.hypot(a, d), math.hypot(b, e), math.atan2(d, a)
    if not (across and down) or not np.allclose(
        (b, e), (down * math.sin(turn), -down * math.cos(turn)), rtol=0, atol=1e-6 * down
    ):
        return {}
    crs = old_wkt(" ".join(wkt_of(grid.crs).split()))
    name = re.match(r'\w+\["([^"]*)"', crs)
    said = (crs if NUMBER.fullmatch(crs) else "") if name is None else name[1]
    called = said.translate(str.maketrans(",{}[]", "     "))
    utm = re.search(r"(?i)UTM[ _]zone[ _](\d{1,2})([NS])", called)
    wgs = re.search(r'(?i)DATUM\["(?:D_)?WGS_?(?:19)?_?84', crs) or "WGS 84" in called or "WGS_1984" in called
    items = [repr(1.0), repr(1.0), repr(float(x)), repr(float(y)), repr(across), repr(down)]
    if crs.upper().startswith("GEOG"):
        items = ["Geographic Lat/Lon", *items, *(["WGS-84"] if wgs else []), "units=Degrees"]
    elif utm and wgs:
        items = ["UTM", *items, utm[1], "North" if utm[2].upper() == "N" else "South", "WGS-84", "units=Meters"]
    else:
        items = [called.strip() or "Arbitrary", *items]
    if turn:
        items.append(f"rotation={math.degrees(turn)!r}")
    fields = {"map info": "{" + ", ".join(items) + "}"}
    return fields | ({"coordinate system string": "{" + crs + "}"} if crs else {})


def beside(header: EnviHeader, kind: str) -> EnviHeader | None:
    """The header of the table `kind` (glt, igm, loc) of a cube, by its name: `X_rdn_v2_img` has `X_rdn_v2_KIND`.

    Raises:
        CubeFileError: there is one that cannot be read.
    """
    for name in _bases(header.data_path):
        for suffix in (".hdr", ".img.hdr"):
            path = header.data_path.with_name(f"{name}_{kind}{suffix}")
            if path.is_file() and path != header.path:
                return read_header(path)
    return None


def _bases(data: Path) -> Iterator[str]:
    stem = data.name.removesuffix(".gz")
    stem = stem if "." not in stem else stem.rpartition(".")[0]
    while True:
        yield stem
        stem, _, last = stem.rpartition("_")
        if not stem or not _VERSION.fullmatch(last):
            return
        yield f"{stem}_rdn"


def check_glt(table: EnviHeader) -> Grid:
    """The map grid of a lookup table; CubeFileError where it is none."""
    grid, why = grid_of(table)
    if table.bands != 2 or table.dtype.kind not in "iu" or grid is None:
        raise CubeFileError(
            "is no lookup table: two bands of whole numbers on a map grid",
            file=table.path,
            value=why or f"{table.bands} bands of {table.dtype.name}",
            remedy="move it elsewhere, or correct its header",
        )
    return grid


def read_glt(table: EnviHeader, shape: tuple[int, int, int]) -> Glt:
    """A lookup table to a cube [bands, lines, samples].

    It holds samples and lines from 1, negative where a pixel was filled from a neighbour, 0 where nothing is.

    Raises:
        CubeFileError: it points outside the cube, or cannot be read.
    """
    grid = check_glt(table)
    samples, lines = read_lines(table, 0, table.lines)
    with suppress(KeyError):
        first = table.fields["band names"].strip("{ \n").casefold().split(",")[0]
        if "line" in first and "sample" not in first:
            samples, lines = lines, samples
    inside = (samples != 0) & (lines != 0)
    places = []
    for what, values, most in (("lines", lines, shape[1]), ("samples", samples, shape[2])):
        # Before the sign is taken away: the lowest whole number has no positive one.
        wrong = inside & ((values > most) | (values < -most))
        if wrong.any():
            raise CubeFileError(
                f"the lookup table points to {what} outside the cube",
                file=table.data_path,
                key=what,
                value=int(values[wrong][0]),
                remedy=f"the cube has {most}: give the table that belongs to it",
            )
        places.append(np.where(inside, np.abs(values.astype(np.int32)) - 1, -1).astype(np.int32))
    return Glt(grid, *places)


def located_bands(table: EnviHeader, shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """The bands of longitude and latitude of a table [lines, samples] of a cube; None where it has others."""
    names = [name.strip().casefold() for name in table.fields.get("band names", "").strip("{} \n").split(",")]
    found = [next((at for at, name in enumerate(names) if name.startswith(one)), None) for one in ("lon", "lat")]
    if (table.lines, table.samples) != shape[1:] or table.dtype.kind != "f" or len(names) != table.bands:
        return None
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def read_located(table: EnviHeader, bands: tuple[int, int], start: int, stop: int) -> tuple[Doubles, Doubles]:
    """Longitudes and latitudes of lines, NaN where they are none."""
    values = read_lines(table, start, stop)
    lon, lat = (values[band].astype(np.float64) for band in bands)
    known = (np.abs(lon) <= 360) & (np.abs(lat) <= 90)
    if table.data_ignore_value is not None:
        known &= (lon != table.data_ignore_value) & (lat != table.data_ignore_value)
    return np.where(known, lon, np.nan), np.where(known, lat, np.nan)


def begins_gzip(path: Path) -> tuple[bool, int]:
    """Whether a file begins as gzip's, and its bytes. Raises CubeFileError."""
    with opened(path) as (file, size):
        return file.read(2) == b"\x1f\x8b", size
