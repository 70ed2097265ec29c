"""Coordinate systems as WKT, where a product gives no more than a number, and as older programs read them."""

import re
from contextlib import suppress

WGS84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
    'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
    'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]]'
)
_UTM = (
    'PROJCS["WGS 84 / UTM zone {zone}{half}",' + WGS84 + ',PROJECTION["Transverse_Mercator"],'
    'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",{meridian}],PARAMETER["scale_factor",0.9996],'
    'PARAMETER["false_easting",500000],PARAMETER["false_northing",{false_northing}],'
    'UNIT["metre",1,AUTHORITY["EPSG","9001"]],AXIS["Easting",EAST],AXIS["Northing",NORTH],'
    'AUTHORITY["EPSG","{code}"]]'
)
NUMBER = re.compile(r"(?i)\s*EPSG:{1,2}(\d{4,6})\s*")
UNKNOWN = "the coordinate system is told by its number alone: its WKT was not known where this was written"
_VERSION_2 = re.compile(r"(?i)(?:PROJ|GEOG|GEOD|BOUND|COMPOUND)(?:ETIC)?CRS")


def utm_wkt(zone: int, south: bool) -> str:
    """UTM on WGS 84, zones 1 to 60."""
    return _UTM.format(
        zone=zone,
        half="S" if south else "N",
        meridian=6 * zone - 183,
        false_northing=10_000_000 if south else 0,
        code=(32700 if south else 32600) + zone,
    )


def wkt_of(crs: str) -> str:
    """`EPSG:n` as WKT; as it is where it is WKT already, or a number that nothing installed here knows.

    WGS 84 and UTM on it (EPSG 4326, 32601 to 32660, 32701 to 32760) are the same text on every machine; others are
    asked of rasterio, where it is installed.
    """
    found = NUMBER.fullmatch(crs)
    if found is None:
        return crs
    code = int(found[1])
    if code == 4326:
        return WGS84
    if code // 100 in (326, 327) and 1 <= code % 100 <= 60:
        return utm_wkt(code % 100, code >= 32700)
    with suppress(ImportError, ValueError):
        from rasterio.crs import CRS

        return str(CRS.from_epsg(code).to_wkt(version="WKT1_GDAL"))
    return crs


def old_wkt(crs: str) -> str:
    """WKT of version 1, which is what others read in a header; as it is where nothing is installed that converts it."""
    if _VERSION_2.match(crs):
        with suppress(ImportError, ValueError):
            from rasterio.crs import CRS

            return str(CRS.from_wkt(crs).to_wkt(version="WKT1_GDAL"))
    return crs
