"""What CF conventions tell of a cube's axes, and of its bands: in NetCDF and in Zarr alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.products.contract import Result
from runtime.products.written import scale_of

WAVELENGTHS = ("wavelength", "wavelengths", "wl", "wvl", "lambda")
_AXES: dict[str, str] = {
    name: axis
    for axis, names in {
        "bands": (*WAVELENGTHS, "band", "bands", "channel", "channels", "spectral", "nbands"),
        "samples": ("x", "lon", "longitude", "easting", "sample", "samples", "column", "columns", "col", "crosstrack"),
        "lines": (
            *("y", "lat", "latitude", "northing", "line", "lines", "row", "rows"),
            *("downtrack", "along_track", "alongtrack"),
        ),
    }.items()
    for name in names
}


def axes_named(names: Sequence[str | None]) -> tuple[str, ...] | None:
    """What three dimensions are by their names: exactly one of them is that of the bands, others stand lines first."""
    known = [_AXES.get((name or "").casefold()) for name in names]
    if len(known) != 3 or known.count("bands") != 1:
        return None
    others = [axis for axis in known if axis != "bands"]
    order = iter(("samples", "lines") if others[0] == "samples" or others[1] == "lines" else ("lines", "samples"))
    return tuple(axis if axis == "bands" else next(order) for axis in known)


def band_axis(wavelengths: Sequence[float] | None) -> str:
    """`wavelength` where they rise, or fall, as CF asks of a dimension's own coordinate, else `band`."""
    steps = np.diff(wavelengths or ())
    return "wavelength" if wavelengths and ((steps > 0).all() or (steps < 0).all()) else "band"


def of_bands(result: Result) -> dict[str, tuple[NDArray[Any], dict[str, Any]]]:
    """{name of a variable: a value for each band, and its attributes}; lists among these are of the values' type.

    `gain` and `offset` are there where they differ from band to band.
    """
    stated, found = result.stated, dict[str, tuple[NDArray[Any], dict[str, Any]]]()
    if stated.wavelengths is not None:
        about = {"standard_name": "radiation_wavelength", "long_name": "wavelength", "units": "nm"}
        found["wavelength"] = np.array(stated.wavelengths, np.float64), about
    if result.fwhm is not None:
        about = {"long_name": "full width at half maximum", "units": "nm"}
        found["fwhm"] = np.array(result.fwhm, np.float64), about
    if stated.bad:
        good = np.ones(result.shape[0], np.uint8)
        good[list(stated.bad)] = 0
        flags = {"flag_values": [0, 1], "flag_meanings": "bad good"}
        found["good_wavelengths"] = good, {"long_name": "bands that are good", **flags}
    pairs = scale_of(result)
    if any(len(set(values)) > 1 for values in pairs):
        for name, values in zip(("gain", "offset"), pairs, strict=True):
            about = {"long_name": f"{name} of the band: number * gain + offset is the physical value"}
            found[name] = np.array(values, np.float64), about
    return found
