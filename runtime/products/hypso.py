"""HYPSO-1 and HYPSO-2 L1A counts, L1B and L1C radiance, L1D reflectance, NetCDF-4 as the HYPSO package writes them.

Names after NTNU-SmallSat-Lab/hypso-package `write/*_nc_writer.py`. Wavelengths are attributes of the variable.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runtime.files.envi_header import nanometres
from runtime.products.cf_meaning import packed
from runtime.products.contract import CubeReader, Description, Quantity, Reading
from runtime.products.hdf5_reader import Hdf5Reader, needed, opened_as
from runtime.products.hdf5_tree import CubePart, Tree, band_list, chosen, recognised

_CUBES = ("/products/Lt", "/products/rhot")
_AXES = ("lines", "samples", "bands")
_PLACES = (
    ("/navigation/longitude", "/navigation/latitude"),
    ("/navigation/longitude_indirect", "/navigation/latitude_indirect"),
)


def recognises(path: Path) -> bool:
    """Whether it has a cube where HYPSO's are."""
    return recognised(path, lambda tree: bool(_cubes(tree)))


def open_reader(path: Path, reading: Reading) -> CubeReader:
    """Open it. Raises CubeFileError."""
    return opened_as(path, reading, _reader)


def _cubes(tree: Tree) -> list[str]:
    return [cube for cube in _CUBES if tree.find(cube) is not None]


def _reader(tree: Tree, reading: Reading) -> Hdf5Reader:
    where = chosen(tree, _cubes(tree), reading.key)
    stored = needed(tree, where, (None, None, None))
    lines, samples, bands = stored.shape
    quantity: Quantity = "reflectance" if where.endswith("rhot") else "radiance"
    if tree.text("/", "processing_level") == "L1A":
        quantity = "counts"
    unit = tree.text(where, "wavelength_units") or "nm"
    wavelengths, fwhm = (_list(tree, where, name, bands, unit) for name in ("wavelengths", "fwhm"))
    about = Description(
        format="hypso",
        path=tree.path,
        files=(tree.path,),
        shape=(bands, lines, samples),
        dtype=stored.dtype,
        stated=replace(packed(tree, where, stored.dtype, bands), wavelengths=wavelengths),
        fwhm=fwhm,
        quantity=quantity,
        unit=tree.text(where, "units"),
        title=where,
        notes=() if wavelengths else ("its wavelengths are not in the file",),
    )
    parts = [CubePart(where, _AXES, tuple(range(bands)))]
    return Hdf5Reader(tree, about, parts, located=_located(tree, _PLACES))


def _list(tree: Tree, where: str, name: str, bands: int, unit: str) -> tuple[float, ...] | None:
    values = band_list(tree, tree.values(where, name), bands, f"{where} {name}")
    found = None if values is None else nanometres(values, unit)
    if values is not None and found is None:
        raise tree.wrong("the unit of these wavelengths is not known", f"{where} wavelength_units", unit)
    return found


def _located(tree: Tree, places: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    return next((pair for pair in places if all(tree.find(one) is not None for one in pair)), None)
