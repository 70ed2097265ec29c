"""EMIT L1B radiance and L2A reflectance, NetCDF-4 as LP DAAC delivers them.

Structure after emit-sds/emit-utils `daac_converter.py`. The cube is on the sensor's grid; `geotransform` and
`spatial_ref` are of the grid that the lookup table fills.
"""

from dataclasses import replace
from pathlib import Path

from runtime.products.cf_meaning import bad_bands, crs_of, packed, quantity_of, transform_of, wavelengths_of
from runtime.products.contract import CubeReader, Description, Grid, Place, Reading
from runtime.products.hdf5_reader import Hdf5Reader, needed, opened_as
from runtime.products.hdf5_tree import CubePart, Tree, chosen, recognised

_CUBES = ("/radiance", "/reflectance")
_AXES = ("lines", "samples", "bands")
_BANDS, _LOCATION = "/sensor_band_parameters", "/location"
_GLT = (f"{_LOCATION}/glt_x", f"{_LOCATION}/glt_y")
_MARK = -9999.0


def recognises(path: Path) -> bool:
    """Whether its `instrument` is EMIT."""
    return recognised(path, lambda tree: tree.text("/", "instrument") == "EMIT")


def open_reader(path: Path, reading: Reading) -> CubeReader:
    """Open it. Raises CubeFileError, of masks, observation geometry and other products without a cube as well."""
    return opened_as(path, reading, _reader)


def _reader(tree: Tree, reading: Reading) -> Hdf5Reader:
    where = chosen(tree, [cube for cube in _CUBES if tree.find(cube) is not None], reading.key)
    stored = needed(tree, where, (None, None, None))
    lines, samples, bands = stored.shape
    wavelengths = wavelengths_of(tree, f"{_BANDS}/wavelengths", bands, "nm")
    stated = replace(
        packed(tree, where, stored.dtype, bands, mark=_MARK if stored.dtype.kind == "f" else None),
        bad=bad_bands(tree, f"{_BANDS}/good_wavelengths", bands),
        wavelengths=wavelengths,
    )
    ortho = _ortho(tree)
    located = (f"{_LOCATION}/lon", f"{_LOCATION}/lat")
    about = Description(
        format="emit",
        path=tree.path,
        files=(tree.path,),
        shape=(bands, lines, samples),
        dtype=stored.dtype,
        stated=stated,
        fwhm=wavelengths_of(tree, f"{_BANDS}/fwhm", bands, "nm"),
        quantity=quantity_of(where),
        unit=tree.text(where, "units"),
        place=Place(ortho=ortho),
        title=where,
        notes=(
            *(["its wavelengths are not in the file"] if wavelengths is None else []),
            *(["its lookup table is not in the file, so its place is not known"] if ortho is None else []),
        ),
    )
    return Hdf5Reader(
        tree,
        about,
        [CubePart(where, _AXES, tuple(range(bands)))],
        located=located if all(tree.find(one) is not None for one in located) else None,
        glt=_GLT,
    )


def _ortho(tree: Tree) -> Grid | None:
    table = tree.array(_GLT[0], (None, None))
    if table is None:
        return None
    transform, crs = transform_of(tree, "/", "geotransform"), crs_of(tree, "/")
    return Grid(crs, transform, *table.shape) if transform and crs else None
