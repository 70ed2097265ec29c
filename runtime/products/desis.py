"""DESIS L1B, L1C and L2A as DLR delivers them: a pixel-interleaved TIFF and an ENVI header beside it.

The header says `file type = TIFF`, and holds what the TIFF does not: gains, offsets, wavelengths.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from runtime.errors import CubeFileError
from runtime.files.envi import read_text
from runtime.files.envi_header import EnviHeader, nanometres_per, parse_header, stated_by
from runtime.products.contract import Description, Quantity, Reading
from runtime.products.gdal import Tiff
from runtime.products.tiff_cube import Images, TiffCube, names_in
from runtime.products.tiff_tags import told_by

_IMAGE = re.compile(r"desis.*-spectral_image(?:_cog)?\.(tiff?|hdr)", re.IGNORECASE)
_TYPE = re.compile(r"^([ \t]*file type[ \t]*=).*$", re.IGNORECASE | re.MULTILINE)
_QUANTITIES: Mapping[str, Quantity] = {"L1A": "counts", "L1B": "radiance", "L1C": "radiance", "L2A": "reflectance"}


def recognises(path: Path) -> bool:
    """By names: of the folder's files, of the image, of its header."""
    if path.is_dir():
        return any(map(_IMAGE.fullmatch, names_in(path)))
    return _IMAGE.fullmatch(path.name) is not None and path.is_file()


def open_reader(path: Path, reading: Reading) -> TiffCube:
    """Open a product by its folder, its spectral image or the header of that.

    Raises:
        CubeFileError: one of the two is missing, several could be meant, or they contradict each other.
        ModuleNotFoundError: rasterio is not installed.
    """
    image, header_path = _only(path, ("tif", "tiff")), _only(path, ("hdr",))
    header = _header(header_path, image)
    tiff = Tiff(image)
    try:
        told = told_by(tiff)
        images = Images([tiff], [told.bands])
        said = (header.bands, header.lines, header.samples)
        if said != images.shape:
            raise CubeFileError(
                "its header tells another size",
                file=header_path,
                key="bands, lines, samples",
                value=f"{said}, the image has {images.shape}",
                remedy="copy the product again",
            )
        stated = stated_by(header)
        factor = nanometres_per(header.wavelength_units or "", header.wavelengths) if header.wavelengths else None
        level = re.search(r"-(L1[ABC]|L2A)-", image.name, re.IGNORECASE)
        quantity = _QUANTITIES[level.group(1).upper()] if level else None
        description = Description(
            format="desis",
            path=path,
            files=(image, header_path),
            shape=images.shape,
            dtype=images.dtype,
            block=images.block,
            holds=images.holds,
            stated=replace(stated, marks=tuple(dict.fromkeys((*told.stated.marks, *stated.marks)))),
            fwhm=None if header.fwhm is None or factor is None else tuple(w * factor for w in header.fwhm),
            quantity=quantity,
            place=told.place,
            title=level.group(1).upper() if level else None,
            notes=told.notes,
        )
        return TiffCube(description, images, told.opacity)
    except BaseException:
        tiff.close()
        raise


def _only(path: Path, suffixes: tuple[str, ...]) -> Path:
    """The file of one of these suffixes that a folder or a file's name stands for."""
    folder = path if path.is_dir() else path.parent
    found = [name for name in names_in(folder) if (m := _IMAGE.fullmatch(name)) and m.group(1).lower() in suffixes]
    if not path.is_dir():
        found = [path.name] if path.name in found else [name for name in found if _same(name, path.name)]
    if len(found) != 1:
        problem = f"several could be its .{suffixes[0]} file" if found else f"its .{suffixes[0]} file is missing"
        remedy = f"give one of them: {' '.join(found)}" if found else "keep SPECTRAL_IMAGE .tif and .hdr together"
        raise CubeFileError(problem, file=path, key=f"SPECTRAL_IMAGE.{suffixes[0]}", remedy=remedy)
    return folder / found[0]


def _same(one: str, other: str) -> bool:
    return one.rpartition(".")[0].casefold() == other.rpartition(".")[0].casefold()


def _header(path: Path, image: Path) -> EnviHeader:
    # As rows of numbers it would be read as such: its size is not looked at.
    return parse_header(_TYPE.sub(r"\1 ENVI", read_text(path)), path=path, data_path=image)
