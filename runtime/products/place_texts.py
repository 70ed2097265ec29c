"""Points of known place and rational polynomials as texts, for formats that have no words of their own for them.

`gcps` is `line sample x y z, line sample x y z, ...`; `gcp_crs` their system as WKT; `rpc` is `NAME=numbers, ...` by
GDAL's names.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from runtime.products.contract import Gcp, Place
from runtime.products.crs import wkt_of
from runtime.products.texts import finite

RPC = re.compile(r"(?:LINE|SAMP|LAT|LONG|HEIGHT)_(?:OFF|SCALE)|(?:LINE|SAMP)_(?:NUM|DEN)_COEFF|ERR_(?:BIAS|RAND)")
MOST_POINTS = 500
"""Of more, as many spread evenly are written: an attribute of HDF5 holds 64 KiB."""
KEYS = ("gcps", "gcp_crs", "rpc")
_MOST_TEXT = 1 << 16
_PIECE = re.compile(rf"({RPC.pattern})=(.*)")


def texts_of(place: Place) -> dict[str, str]:
    """The texts, by `KEYS`; none of a cube on a map grid."""
    if place.grid is not None:
        return {}
    step = -(-len(place.gcps) // MOST_POINTS) or 1
    points = (" ".join(repr(float(number)) for number in point) for point in place.gcps[::step])
    told = {
        "gcps": ", ".join(points),
        "gcp_crs": wkt_of(place.gcp_crs or "") if place.gcps else "",
        "rpc": ", ".join(f"{key}={' '.join(text.split())}" for key, text in place.rpc.items()),
    }
    return {key: text for key, text in told.items() if text}


def with_texts(place: Place, text: Callable[[str], object]) -> Place:
    """A place with what the texts say, those that can be read; `text` gives that of a key, or anything else."""
    if place.grid is not None:
        return place
    said = {key: found for key in KEYS if isinstance(found := text(key), str) and len(found) <= _MOST_TEXT}
    points = [[finite(word) for word in point.split()] for point in said.get("gcps", "").split(",")]
    whole = [[number for number in point if number is not None] for point in points if len(point) == 5]
    gcps = [Gcp(*point) for point in whole if len(point) == 5]
    gcps = gcps if len(gcps) == len(points) else []
    pieces = filter(None, (piece.strip() for piece in said.get("rpc", "").split(",")))
    found = [_PIECE.fullmatch(piece) for piece in pieces]
    rpc = {one[1]: one[2] for one in found if one and None not in map(finite, one[2].split(" "))}
    return replace(
        place,
        gcps=tuple(gcps),
        gcp_crs=said.get("gcp_crs") if gcps else None,
        rpc=rpc if len(rpc) == len(found) else {},
    )
