"""AVIRIS-3 and AVIRIS-5 L1B radiance and L2A reflectance, NetCDF-4 as JPL delivers them.

The cube [wavelength, line, sample] has its wavelengths in its own group. A file with a lookup table is on the sensor's
grid, and the grid mapping is of the map that the table fills; one without is on the map.
"""

from dataclasses import replace
from pathlib import Path

from runtime.products.cf_meaning import bad_bands, mapped, mapping_of, packed, quantity_of, wavelengths_of
from runtime.products.contract import CubeReader, Description, Place, Reading
from runtime.products.hdf5_reader import Hdf5Reader, needed, opened_as
from runtime.products.hdf5_tree import CubePart, Tree, chosen, recognised

_CUBES = ("/radiance/radiance", "/reflectance/reflectance")
_AXES = ("bands", "lines", "samples")
_GLT = ("/geolocation_lookup_table/sample", "/geolocation_lookup_table/line")
_MAPPINGS = ("/transverse_mercator", "/projection")
_MARK = -9999.0


def recognises(path: Path) -> bool:
    """Whether a group of its has a cube of the group's name."""
    return recognised(path, lambda tree: bool(_cubes(tree)))


def open_reader(path: Path, reading: Reading) -> CubeReader:
    """Open it. Raises CubeFileError."""
    return opened_as(path, reading, _reader)


def _cubes(tree: Tree) -> list[str]:
    return [cube for cube in _CUBES if tree.find(cube) is not None]


def _reader(tree: Tree, reading: Reading) -> Hdf5Reader:
    where = chosen(tree, _cubes(tree), reading.key)
    group = where.rpartition("/")[0]
    stored = needed(tree, where, (None, None, None))
    bands, lines, samples = stored.shape
    table = tree.array(_GLT[0], (None, None))
    mapping = mapping_of(tree, where) or next((one for one in _MAPPINGS if tree.find(one) is not None), None)
    grid = mapped(tree, mapping, (lines, samples) if table is None else table.shape) if mapping else None
    wavelengths = wavelengths_of(tree, f"{group}/wavelength", bands, "nm")
    about = Description(
        format="aviris",
        path=tree.path,
        files=(tree.path,),
        shape=(bands, lines, samples),
        dtype=stored.dtype,
        stated=replace(
            packed(tree, where, stored.dtype, bands, mark=_MARK if stored.dtype.kind == "f" else None),
            bad=bad_bands(tree, f"{group}/good_wavelengths", bands),
            wavelengths=wavelengths,
        ),
        fwhm=wavelengths_of(tree, f"{group}/fwhm", bands, "nm"),
        quantity=quantity_of(where),
        unit=tree.text(where, "units"),
        place=Place(grid=grid) if table is None else Place(ortho=grid),
        title=where,
        notes=() if wavelengths else ("its wavelengths are not in the file",),
    )
    located = ("/lon", "/lat")
    return Hdf5Reader(
        tree,
        about,
        [CubePart(where, _AXES, tuple(range(bands)))],
        located=located if table is not None and all(tree.find(one) is not None for one in located) else None,
        glt=None if table is None else _GLT,
    )
