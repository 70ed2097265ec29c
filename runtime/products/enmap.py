"""EnMAP L1B, L1C and L2A as DLR delivers them: images and METADATA.XML, which says what their numbers are.

EN-PCV-ICD-2009 (EnMAP HSI product specification). L1B has an image for each detector, VNIR before SWIR, which overlap:
bands stay in that order. Its geotransform is false, its place is the polynomials of the XML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from runtime.errors import CubeFileError
from runtime.files.foreign import kind_of
from runtime.products.contract import Description, Place, Quantity, Reading
from runtime.products.gdal import Tiff
from runtime.products.tiff_cube import Image, Images, RawImage, TiffCube, names_in, open_images
from runtime.products.tiff_tags import Told, told_by
from runtime.products.xml_tree import Element, read_xml
from runtime.stated import Stated

_METADATA = re.compile(r"(enmap.*)-metadata\.xml(?:\.gz)?", re.IGNORECASE)
_IMAGE = re.compile(r"(enmap.*-spectral_image(?:_vnir|_swir)?)(?:_cog)?\.(tiff?|bsq|bil|bip|jp2|hdr)", re.IGNORECASE)
_RAW = ("bsq", "bil", "bip")
_LEVELS: Mapping[str, Quantity] = {"L1B": "radiance", "L1C": "radiance", "L2A": "reflectance"}
_UNIT = "W m-2 sr-1 nm-1"
_NOTHING = -32768.0
"""What L1C and L2A fill with; their `backgroundValue` is 0 all the same."""
_PIECES = {"ROW": "LINE", "COL": "SAMP", "LAT": "LAT", "LONG": "LONG", "HEIGHT": "HEIGHT"}
_AGAIN = "copy the product again"


def recognises(path: Path) -> bool:
    """By names: of the folder's files, of METADATA.XML, of a spectral image."""
    if path.is_dir():
        return any(map(_METADATA.fullmatch, names_in(path)))
    return bool(_METADATA.fullmatch(path.name) or _IMAGE.fullmatch(path.name)) and path.is_file()


def open_reader(path: Path, reading: Reading) -> TiffCube:
    """Open a product by its folder, its METADATA.XML or one of its spectral images.

    Raises:
        CubeFileError: metadata or images are missing, several could be meant, they contradict each other, or one is
            nothing that a stranger's file may be.
        ModuleNotFoundError: rasterio is not installed.
    """
    metadata = _metadata_of(path)
    root = read_xml(metadata)
    level = (root.said("base/level") or "").upper()
    files = _images_of(root, metadata, path)
    if level not in _LEVELS:
        remedy = f"levels {', '.join(_LEVELS)} are read"
        raise CubeFileError("is no level of a spectral image", file=metadata, key="level", value=level, remedy=remedy)
    opened = open_images(files, _image)
    try:
        told = [told_by(image) if isinstance(image, Tiff) else None for image in opened]
        images = Images(opened, [range(1, image.layout.shape[0] + 1) for image in opened])
        return TiffCube(_described(path, metadata, root, level, images, told), images)
    except BaseException:
        for image in opened:
            image.close()
        raise


def _image(path: Path) -> Image:
    return RawImage(path) if path.suffix.lower()[1:] in _RAW else Tiff(path)


def _described(
    path: Path, metadata: Path, root: Element, level: str, images: Images, told: Sequence[Told | None]
) -> Description:
    bands = list(root.all("specific/bandCharacterisation/bandID"))
    numbers = [band.attributes.get("number", str(place)) for place, band in enumerate(bands, start=1)]
    if len(bands) != images.shape[0] or numbers != [str(place) for place in range(1, len(bands) + 1)]:
        raise CubeFileError(
            f"{len(bands)} bands, numbered {numbers[0] if numbers else None} and on, do not fit the images' "
            f"{' + '.join(str(len(part.bands)) for part in images.parts)}",
            file=metadata,
            key="bandCharacterisation",
            remedy=_AGAIN,
        )
    centres, widths, gains, offsets = (
        tuple(band.number(name, metadata) for band in bands)
        for name in ("wavelengthCenterOfBand", "FWHMOfBand", "GainOfBand", "OffsetOfBand")
    )
    for key, values in (("wavelengthCenterOfBand", centres), ("FWHMOfBand", widths)):
        if min(values) <= 0:
            raise CubeFileError("must be above 0", file=metadata, key=key, value=min(values), remedy=_AGAIN)
    if 0 in gains:
        problem = f"band {gains.index(0) + 1} has none that a number can go through"
        raise CubeFileError(problem, file=metadata, key="GainOfBand", value=0, remedy=_AGAIN)
    marks = dict.fromkeys(mark for one in told if one is not None for mark in one.stated.marks)
    scales = [gain for one in told if one is not None for gain in one.stated.gains or ()]
    doubts: tuple[str, ...] = ()
    if scales and not (len(scales) == len(gains) and np.allclose(scales, gains, atol=0)):
        doubts = ("the images state other scales than METADATA.XML, whose gains are taken",)
    if level == "L1B":
        marks[root.number("specific/backgroundValue", metadata)] = None
    elif not marks:
        marks[_NOTHING] = None
    return Description(
        format="enmap",
        path=path,
        files=(*(part.path for part in images.parts), metadata),
        shape=images.shape,
        dtype=images.dtype,
        block=images.block,
        holds=images.holds,
        stated=Stated(
            gains=gains,
            offsets=offsets if any(offsets) else None,
            marks=tuple(marks),
            wavelengths=centres,
            axes=True,
            doubts=doubts,
        ),
        fwhm=widths,
        quantity=_LEVELS[level],
        unit=_UNIT if _LEVELS[level] == "radiance" else None,
        place=_place(root, level, told),
        title=level,
        notes=("bands are those of VNIR, then of SWIR: they overlap",) if level == "L1B" else (),
    )


def _place(root: Element, level: str, told: Sequence[Told | None]) -> Place:
    found = told[0].place if told[0] is not None else Place()
    if level != "L1B":
        return found
    first = root.first("product/navigation/RPC/bandID")
    texts = {child.name: "".join(child.pieces).strip() for child in first.children} if first is not None else {}
    rpc = {}
    for ours, theirs in _PIECES.items():
        for what in ("OFF", "SCALE"):
            rpc[f"{theirs}_{what}"] = texts.get(f"{ours}_{what}", "")
        for what in ("NUM", "DEN") if ours in ("ROW", "COL") else ():
            rpc[f"{theirs}_{what}_COEFF"] = " ".join(texts.get(f"{ours}_{what}_{n:02d}", "?") for n in range(1, 21))
    whole = all(text and "?" not in text for text in rpc.values())
    return replace(Place(), rpc=rpc if whole else {})


def _metadata_of(path: Path) -> Path:
    """The METADATA.XML that a folder or an image belongs to."""
    if _METADATA.fullmatch(path.name) and not path.is_dir():
        return path
    folder = path if path.is_dir() else path.parent
    found = {name: match.group(1).casefold() for name in names_in(folder) if (match := _METADATA.fullmatch(name))}
    if not path.is_dir():
        product = path.name.casefold().partition("-spectral_image")[0]
        found = {name: stem for name, stem in found.items() if stem == product}
    plain = [name for name in found if not name.lower().endswith(".gz")] or list(found)
    if len(plain) != 1:
        problem = "holds several products" if plain else "the METADATA.XML of its product is not beside it"
        remedy = "give one METADATA.XML" if plain else "keep the product's files together"
        raise CubeFileError(problem, file=path, key="METADATA.XML", value=len(plain) or None, remedy=remedy)
    return folder / plain[0]


def _images_of(root: Element, metadata: Path, path: Path) -> list[Path]:
    """The spectral images that the XML names, VNIR first, in the format in which they are there."""
    told = {part: root.said(f"product/image/{part}/name") for part in ("vnir", "swir", "merge")}
    names = [name for name in told.values() if name is not None]
    if not names:
        raise CubeFileError("names no spectral image", file=metadata, key="product/image", remedy=_AGAIN)
    there = names_in(metadata.parent)
    return [_image_of(name, metadata, there, path) for name in names]


def _image_of(name: str, metadata: Path, there: Sequence[str], path: Path) -> Path:
    match = _IMAGE.fullmatch(name)
    if match is None or "/" in name or "\\" in name or not name.isprintable():
        problem = "is no plain name of a spectral image in that folder"
        raise CubeFileError(problem, file=metadata, key="name", value=name, remedy=_AGAIN)
    stem = match.group(1).casefold()
    found = {
        other: m.group(2).lower() for other in there if (m := _IMAGE.fullmatch(other)) and m.group(1).casefold() == stem
    }
    named = [one for one in (path.name, name) if found.get(one, "hdr") != "hdr"][:1]
    kinds = ([other for other in found if found[other] in some] for some in (("tif", "tiff"), _RAW, ("jp2",)))
    chosen = next((kind for kind in (named, *kinds) if kind), [])
    if len(chosen) != 1:
        problem = f"{len(chosen)} files could be this image" if chosen else "this image is missing"
        remedy = f"give one of them: {' '.join(chosen)}" if chosen else "put it beside METADATA.XML"
        raise CubeFileError(problem, file=metadata, key="name", value=name, remedy=remedy)
    file = metadata.with_name(chosen[0])
    if found[chosen[0]] == "jp2":
        kind = kind_of(file)
        remedy = kind.remedy_for(file) if kind is not None else "order it as GeoTIFF"
        raise CubeFileError("JPEG 2000 is not read", file=file, remedy=f"order it as GeoTIFF, or {remedy}")
    return file
