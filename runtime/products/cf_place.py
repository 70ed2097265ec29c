"""Where a cube lies, as CF conventions and GDAL tell it in NetCDF."""

import re
from typing import Any

import numpy as np

from runtime.products.contract import Doubles, Grid
from runtime.products.crs import NUMBER, UNKNOWN, wkt_of

_MERCATOR = {
    "latitude_of_origin": "latitude_of_projection_origin",
    "latitude of natural origin": "latitude_of_projection_origin",
    "central_meridian": "longitude_of_central_meridian",
    "longitude of natural origin": "longitude_of_central_meridian",
    "scale_factor": "scale_factor_at_central_meridian",
    "scale factor at natural origin": "scale_factor_at_central_meridian",
    "false_easting": "false_easting",
    "false easting": "false_easting",
    "false_northing": "false_northing",
    "false northing": "false_northing",
}
"""Parameters of a transverse Mercator projection, in WKT of either version -> in CF conventions, appendix F."""
_EVEN = 1e-3
"""By how much of a step coordinates may lie beside an even grid: they are rounded to their type."""


def mapping_of(grid: Grid) -> dict[str, Any]:
    """Attributes of the variable `spatial_ref`: the system as WKT, GDAL's geotransform.

    A system of which nothing here knows more than its number has no WKT, and a comment that says so. CF's own names
    are added for degrees and for transverse Mercator (UTM), whose programs read no WKT.
    """
    told: dict[str, Any] = {}
    crs = wkt_of(grid.crs)
    if _is_degrees(crs):
        told["grid_mapping_name"] = "latitude_longitude"
    elif re.search(r'"transverse[_ ]mercator"', crs, re.IGNORECASE):
        told["grid_mapping_name"] = "transverse_mercator"
        for name, value in re.findall(r'PARAMETER\["([^"]+)",\s*([-+.\deE]+)', crs):
            if (cf := _MERCATOR.get(name.lower())) is not None:
                told[cf] = float(value)
    known = {"comment": UNKNOWN} if NUMBER.fullmatch(crs) else {"crs_wkt": crs}
    told |= {**known, "spatial_ref": crs}
    return told | {"GeoTransform": " ".join(map(repr, map(float, grid.transform)))}


def axes_of(grid: Grid) -> dict[str, tuple[Doubles, dict[str, str]]]:
    """Coordinates `y` and `x` of the centres of pixels with their attributes; none of a grid that is turned."""
    left, across, turned, top, tilted, down = grid.transform
    if turned or tilted:
        return {}
    y = (top + (np.arange(grid.lines) + 0.5) * down).astype(np.float64)
    x = (left + (np.arange(grid.samples) + 0.5) * across).astype(np.float64)
    if _is_degrees(grid.crs):
        return {
            "y": (y, {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}),
            "x": (x, {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}),
        }
    unit = _length(wkt_of(grid.crs))
    return {
        "y": (y, {"standard_name": "projection_y_coordinate", "units": unit, "axis": "Y"}),
        "x": (x, {"standard_name": "projection_x_coordinate", "units": unit, "axis": "X"}),
    }


def spaced(x: Doubles, y: Doubles) -> tuple[float, float, float, float, float, float] | None:
    """The geotransform, in GDAL's order, of coordinates of the centres of pixels; None where they are not even."""
    ends = []
    for values in (x, y):
        step = float(values[-1] - values[0]) / max(1, len(values) - 1)
        # From an even grid, not from pixel to pixel: there what is rounded away adds up.
        if not np.abs(values - (values[0] + step * np.arange(len(values)))).max() <= _EVEN * abs(step) or step == 0:
            return None
        ends += [float(values[0]) - step / 2, step]
    left, across, top, down = ends
    return left, across, 0.0, top, 0.0, down


def _is_degrees(crs: str) -> bool:
    return wkt_of(crs).lstrip().upper().startswith(("GEOG", "GEODCRS"))


def _length(crs: str) -> str:
    """The unit of a projection: the last of its WKT, after those of its angles."""
    found = re.findall(r'(?:LENGTHUNIT|UNIT)\["([^"]+)"', crs)
    named = [unit for unit in found if not unit.lower().startswith(("degree", "unity", "grad", "radian"))]
    return "m" if not named or named[-1].lower() in ("metre", "meter", "m") else named[-1].replace(" ", "_")
