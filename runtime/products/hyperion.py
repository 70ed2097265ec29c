"""EO-1 Hyperion L1T and L1Gst as USGS delivers them: 242 TIFFs of one band, and a text that says their scale.

Radiance times 40 in bands 1 to 70 (VNIR), times 80 in bands 71 to 242 (SWIR); 44 bands were never calibrated and hold 0
alone (https://www.usgs.gov/centers/eros/science/earth-observing-1-eo-1). Wavelengths are not in the product.
"""

import re
from pathlib import Path

from runtime.errors import CubeFileError
from runtime.files.disk import opened
from runtime.products.contract import Description, Place, Reading
from runtime.products.gdal import Tiff
from runtime.products.texts import finite
from runtime.products.tiff_cube import Images, TiffCube, names_in, open_images
from runtime.products.tiff_tags import told_by
from runtime.stated import Stated

_BAND = re.compile(r"(eo1h.*)_b(\d{3})_(l1t|l1gst)\.tiff?", re.IGNORECASE)
_TEXT = re.compile(r"(eo1h.*)_mtl_(l1t|l1gst)\.txt", re.IGNORECASE)
_L1R = re.compile(r"eo1h.*\.l1r", re.IGNORECASE)
_VNIR, _BANDS = 70, 242
_MOST_TEXT = 1 << 20
_AGAIN = "copy the product again"


def recognises(path: Path) -> bool:
    """By names: of the folder's files, of a band, of the text."""
    if path.is_dir():
        return any(map(_TEXT.fullmatch, names := names_in(path))) or any(map(_BAND.fullmatch, names))
    return path.is_file() and any(one.fullmatch(path.name) for one in (_BAND, _TEXT, _L1R))


def open_reader(path: Path, reading: Reading) -> TiffCube:
    """Open a product by its folder, its text or any of its bands.

    Raises:
        CubeFileError: it is HDF4 (L1R), bands or the text are missing, or bands differ in size, type or place.
        ModuleNotFoundError: rasterio is not installed.
    """
    if _L1R.fullmatch(path.name):
        raise CubeFileError("is HDF4 (L1R), which is not read", file=path, remedy="convert to GeoTIFF (L1T)")
    folder = path if path.is_dir() else path.parent
    bands, text = _files(path, folder)
    factors = {key: _factor(text, f"SCALING_FACTOR_{key}") for key in ("VNIR", "SWIR")}
    places: list[Place] = []

    def band(path: Path) -> Tiff:
        tiff = Tiff(path)
        places.append(told_by(tiff).place)
        if tiff.layout.shape[0] != 1 or places[-1] != places[0]:
            tiff.close()
            problem = "must have one band, and the place of the first"
            raise CubeFileError(problem, file=path, value=f"{tiff.layout.shape[0]} bands", remedy=_AGAIN)
        return tiff

    tiffs = open_images(list(bands.values()), band)
    try:
        images = Images(tiffs, [(1,)] * len(tiffs))
        missing = _BANDS - len(bands)
        description = Description(
            format="hyperion",
            path=path,
            files=(*bands.values(), text),
            shape=images.shape,
            dtype=images.dtype,
            block=images.block,
            holds=images.holds,
            stated=Stated(
                gains=tuple(1 / factors["VNIR" if number <= _VNIR else "SWIR"] for number in bands),
                marks=(0.0,),
                axes=True,
            ),
            quantity="radiance",
            unit="W m-2 sr-1 um-1",
            place=places[0],
            notes=(f"{missing} of {_BANDS} bands are not there",) if missing else (),
        )
        return TiffCube(description, images)
    except BaseException:
        for tiff in tiffs:
            tiff.close()
        raise


def _files(path: Path, folder: Path) -> tuple[dict[int, Path], Path]:
    """The bands by number, and the text."""
    names = names_in(folder)
    match = _BAND.fullmatch(path.name) or _TEXT.fullmatch(path.name)
    products = {m.group(1).casefold() for name in names if (m := _BAND.fullmatch(name) or _TEXT.fullmatch(name))}
    wanted = match.group(1).casefold() if match and not path.is_dir() else next(iter(products), "")
    if path.is_dir() and len(products) > 1:
        raise CubeFileError("holds several products", file=path, remedy="give the _MTL_ text of one")
    bands: dict[int, Path] = {}
    texts = [name for name in names if (m := _TEXT.fullmatch(name)) and m.group(1).casefold() == wanted]
    if len(texts) != 1:
        problem = "holds several texts of its scale" if texts else "the text of its scale is missing"
        raise CubeFileError(problem, file=path, key="MTL", remedy="keep one _MTL_L1T.TXT beside its bands")
    for name in names:
        if (m := _BAND.fullmatch(name)) and m.group(1).casefold() == wanted:
            number = int(m.group(2))
            if number in bands or not 1 <= number <= _BANDS:
                raise CubeFileError("is no band, or one of two", file=folder / name, value=number, remedy=_AGAIN)
            bands[number] = folder / name
    if not bands:
        raise CubeFileError("holds no bands", file=path, key="_B001_L1T.TIF", remedy="unpack the whole product")
    return dict(sorted(bands.items())), folder / texts[0]


def _factor(text: Path, key: str) -> float:
    with opened(text) as (file, size):
        said = file.read(_MOST_TEXT + 1).decode("latin-1") if size <= _MOST_TEXT else ""
    found = re.findall(rf"^[ \t]*{key}[ \t]*=[ \t]*(\S+)[ \t]*\r?$", said, re.MULTILINE)
    value = finite(found[0]) if len(set(found)) == 1 else None
    if value is None or value <= 0:
        problem = "must be one number above 0"
        raise CubeFileError(problem, file=text, key=key, value=" ".join(found[:3]) or None, remedy=_AGAIN)
    return value
