"""Photographs: PNG, JPEG and TIFF in, by libvips. What is written of them is in `pictures`."""

import logging
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError, MachineError
from runtime.files.disk import SMALL_EXPANSION, allocated, check_expansion, fill, opened, reason
from runtime.files.foreign import converted
from runtime.files.tags import MOST_BYTES, NO_DATA, ORIENTATION, PLACED, SHORT, Tags, header, packed
from runtime.stated import Stated

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
PIECE = 1 << 16
"""Bytes that are decoded at a time, about: larger pieces of ever new memory leave as much again unused."""
CHUNKS = (b"cICP", b"cHRM", b"gAMA", b"sRGB", b"sBIT", b"pHYs")
"""Of a PNG file: what says how its colours and pixels are meant, beside a profile."""
_XMP, _RAW = b"XML:com.adobe.xmp", (b"Raw profile type exif", b"Raw profile type APP1")
"""Keywords of a PNG file's texts that are kept."""
_BEGINS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", **dict.fromkeys((b"II*\0", b"MM\0*"), "tiff"),
           **dict.fromkeys((b"II+\0", b"MM\0+"), "tiff")}  # fmt: skip
_AGAIN = "copy it again, or save it anew in a program that shows it"
_DIRECTORIES = 1000
_YCBCR, _LAB, _JPEG = 6, 8, 7
_KINDS = {2: ", signed", 3: ", float", 5: ", complex", 6: ", complex"}
"""Of a TIFF file's numbers."""
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, _YCBCR: 3, _LAB: 3}
"""What TIFF says that its numbers mean -> bands of colour: grey, RGB, palette, CMYK, YCbCr, Lab."""


@dataclass(frozen=True, eq=False)
class Photograph:
    """What a photograph's file holds beside the numbers that a network sees.

    Attributes:
        kind: of the file.
        orientation: 1 to 8, as EXIF has it: how the stored picture is turned to be upright.
        grey: it has one band, which the cube holds three times.
        alpha: [lines, samples], upright and of the cube's type, or None.
        alpha_kind: what TIFF calls it: 1 the colours were multiplied by it, 2 they were not, 0 not told.
        icc: profile of its colours, or nothing.
        exif: a file of tags (`tags.Tags`), the orientation among them, without thumbnail; or nothing.
        xmp: the packet, or nothing.
        chunks: of a PNG file, those of CHUNKS, as they stand there.
    """

    kind: Literal["png", "jpeg", "tiff"]
    orientation: int = 1
    grey: bool = False
    alpha: NDArray[Any] | None = None
    alpha_kind: int = 2
    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    chunks: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def placed(self) -> bool:
        """Whether it says where on Earth its pixels lie."""
        return bool(self.exif) and not PLACED.isdisjoint(Tags(self.exif).directory(Tags(self.exif).first)[0])


def stored(upright: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of an upright picture [..., lines, samples] as a file of this orientation stores it."""
    view = upright[..., ::-1] if orientation in (2, 3, 6, 7) else upright
    view = view[..., ::-1, :] if orientation in (3, 4, 7, 8) else view
    return view.swapaxes(-1, -2) if orientation >= 5 else view


def is_photograph(path: Path) -> bool:
    """Whether a file begins as one; True where it cannot be opened, so that its reader says why."""
    try:
        with opened(path) as (file, _):
            return _kind(file.read(8)) is not None
    except CubeFileError:
        return True


def as_plane(cube: NDArray[Any], photograph: Photograph, stated: Stated) -> tuple[NDArray[Any], Stated]:
    """One band of a grey picture, numbers whose white stands for nothing; pictures in colours as they are."""
    return (cube[:1], replace(stated, scale=None, photograph=False)) if photograph.grey else (cube, stated)


def read_photograph(path: Path) -> tuple[NDArray[Any], Photograph, Stated]:
    """The upright picture of a PNG, JPEG or TIFF file, [3, lines, samples] of uint8 or uint16.

    The first bytes say what it is, whatever its suffix. Values of RGB and grey are untouched; CMYK and Lab become sRGB.

    Raises:
        CubeFileError: it is missing, damaged, cut short, bilevel, of several pages, a TIFF file that is no photograph,
            or it expands beyond the bound of `disk.check_expansion`.
        MachineError: it does not fit into memory, or libvips is not there.
        ModuleNotFoundError: pyvips is not installed.
    """
    with opened(path) as (file, size):
        data = allocated(path, (size,), np.dtype(np.uint8))
        if fill(data, file.read) != size:
            raise CubeFileError("was cut short while it was read", file=path, remedy=_AGAIN)
    kind = _kind(data[:8].tobytes())
    if kind is None:
        raise CubeFileError("is no PNG, JPEG or TIFF file", file=path, remedy="give a photograph in one of these")
    try:
        about = {"png": _of_png, "tiff": _of_tiff}.get(kind, _of_jpeg)(path, data)
    except (ValueError, struct.error) as error:
        raise _damaged(path, kind, reason(error)) from error
    vips = _vips()
    # Of a tile that it cannot decode libvips 8.18 makes black, and says so here alone.
    vips.vips_lib.vips_error_clear()
    try:
        made = _decoded(vips, path, data, about)
        if vips.vips_lib.vips_error_buffer()[0] != b"\0":
            raise vips.Error("a part of it cannot be decoded")
        return made
    except (vips.Error, UnicodeDecodeError, struct.error) as error:
        detail = getattr(error, "detail", None) or ""
        said = [line.strip() for line in str(detail).splitlines() if line.strip()]
        raise _damaged(path, kind, said[0] if said else "it cannot be decoded") from error


def _kind(head: bytes) -> str | None:
    return next((kind for begins, kind in _BEGINS.items() if head.startswith(begins)), None)


def _damaged(path: Path, kind: str, why: str) -> CubeFileError:
    remedy = _AGAIN
    if kind == "tiff":
        remedy += f"; where it is no photograph, {converted(path)}"
    name = {"png": "a PNG", "jpeg": "a JPEG", "tiff": "a TIFF"}[kind]
    # Decoders tell of what they were built without as they tell of damage.
    whole = re.search(r"(?i)unsupported|not (?:supported|configured|implemented)", why)
    what = "of a kind that is not read" if whole else "that is damaged or cut short"
    return CubeFileError(f"is {name} file {what}: {why}", file=path, remedy=remedy)


class _About(NamedTuple):
    """What the file's own structure says, before it is decoded."""

    photograph: Photograph
    lab8: bool = False
    doubts: tuple[str, ...] = ()
    marks: tuple[float, ...] = ()
    packed: int | None = None
    jpeg: bool = False


def _of_png(path: Path, data: NDArray[np.uint8]) -> _About:
    found, texts, pixels = dict[bytes, bytes](), dict[bytes, bytes](), 0
    view, at = data.data, 8
    while b"IEND" not in found:
        head = bytes(view[at : at + 8])
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if at + length + 12 > len(view):
            raise ValueError("it ends too early")
        body = b"" if name == b"IDAT" else bytes(view[at + 8 : at + 8 + length])
        pixels += length * (name == b"IDAT")
        found.setdefault(name, body)
        key, _, text = body.partition(b"\0")
        if name in (b"tEXt", b"zTXt", b"iTXt") and key in (_XMP, *_RAW) and key not in texts:
            texts[key] = _unpacked(name, text)
        at += length + 12
    head = found.get(b"IHDR", b"")
    if len(head) != 13:
        raise ValueError("it does not say how large it is")
    if head[8:10] == b"\1\0":
        raise _bilevel(path)
    if b"acTL" in found:
        raise _several(path)
    exif, doubts = _exif(found.get(b"eXIf") or next(filter(None, (_raw(texts.get(key, b"")) for key in _RAW)), b""))
    if head[9] == 3 or b"tRNS" in found:
        # Significant bits are told of each band: not of those that become of a palette, or of a transparent colour.
        found.pop(b"sBIT", None)
    chunks = tuple((name, found[name]) for name in CHUNKS if name in found)
    about = Photograph("png", _orientation(exif), exif=exif, xmp=texts.get(_XMP, b""), chunks=chunks)
    return _About(about, doubts=doubts, packed=pixels)


def _unpacked(kind: bytes, text: bytes) -> bytes:
    """What a PNG file's text says behind its keyword; nothing where it cannot be unpacked, or not within bounds."""
    # Behind flag and method stand the language, and the keyword in it.
    packed_ = text[:1] == b"\1" if kind == b"iTXt" else kind == b"zTXt"
    text = text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text[packed_:]
    if not packed_:
        return text
    unpacker = zlib.decompressobj()
    with suppress(zlib.error):
        text = unpacker.decompress(text, MOST_BYTES)
    return text if unpacker.eof else b""


def _raw(text: bytes) -> bytes:
    """EXIF as ImageMagick wrote it before PNG had a chunk for it: a name, a length, and the bytes in hexadecimal."""
    with suppress(ValueError):
        blob = bytes.fromhex(text.decode("ascii").split(maxsplit=2)[-1]) if text.strip() else b""
        return blob if blob.startswith(b"Exif\0\0") else b""
    return b""


def _of_jpeg(path: Path, data: NDArray[np.uint8]) -> _About:
    return _About(Photograph("jpeg"), jpeg=True)


def _exif(blob: bytes) -> tuple[bytes, tuple[str, ...]]:
    """EXIF as a file of tags, without its thumbnail, which would show the picture as it was; and a doubt."""
    blob = blob.removeprefix(b"Exif\0\0")
    if not blob:
        return b"", ()
    try:
        tags = Tags(blob)
        end = tags.directory(tags.first)[1]
        at = size = 0
        with suppress(ValueError):
            small = tags.directory(tags.next_of(end))[0] if tags.next_of(end) else {}
            at, size = (sum(tags.numbers(small.get(tag), 1)) for tag in (513, 514))
        bare = blob[:at] + bytes(len(blob[at : at + size])) + blob[at + size :]
        bare = bare[:end] + bytes(4) + bare[end + 4 :]
        if _kept(Tags(bare)) != _kept(tags):
            raise ValueError("its thumbnail lies over it")
    except (ValueError, struct.error) as error:
        return b"", (f"its EXIF cannot be read and is left out, {reason(error)}: save it anew if that matters",)
    return bare, ()


def _kept(tags: Tags) -> bytes:
    return packed(tags.order, tags.tree(), 8)


def _orientation(exif: bytes) -> int:
    return Tags(exif).orientation() if exif else 1


def _of_tiff(path: Path, data: NDArray[np.uint8]) -> _About:
    tags = Tags(data.data)
    first, end = tags.directory(tags.first)
    # Smaller copies of the picture, and masks, are no pages.
    following, seen = tags.next_of(end), {tags.first}
    while following and following not in seen and len(seen) < _DIRECTORIES:
        seen.add(following)
        page, end = tags.directory(following)
        if not (tags.numbers(page.get(254)) or (0,))[0] & 5:
            raise _several(path)
        following = tags.next_of(end)
    means = (tags.numbers(first.get(262)) or (-1,))[0]
    bands, colours = (tags.numbers(first.get(277)) or (1,))[0], _COLOURS.get(means, 0)
    bits, kinds = {*(tags.numbers(first.get(258)) or (1,))}, {*(tags.numbers(first.get(339)) or (1,))}
    if bits == {1} and means in (0, 1):
        raise _bilevel(path)
    across, down, wide, high = (sum(tags.numbers(first.get(tag), 1)) for tag in (256, 257, 322, 323))
    if bands * wide * high > max(SMALL_EXPANSION, 4 * bands * across * down):
        raise ValueError("its tiles are far larger than it")
    extra = bands - colours
    whole = (
        kinds <= ({1, 2} if means == _LAB else {1})
        and len(bits) == 1
        and bits <= ({2, 4, 8, 16} if bands == 1 else {8, 16})
    )
    if not (colours and whole and (extra == 0 or (extra == 1 and means in (0, 1, 2)))):
        raise CubeFileError(
            "is a TIFF file, no cube file that is read, and no photograph of 1, 3 or 4 bands of 8 or 16 bits",
            file=path,
            value=f"{bands} of {max(bits)} bits{''.join(_KINDS.get(kind, '') for kind in kinds)}",
            remedy=converted(path),
        )

    def shown(tag: int, value: int) -> None:
        """Let libvips find another value of a tag."""
        if tag in first and first[tag].kind == SHORT:
            memoryview(first[tag].data)[:2] = struct.pack(f"{tags.order}H", value)

    if means == _YCBCR and tags.numbers(first.get(259)) != (_JPEG,):
        # libvips 8.18 would take them for red, green and blue.
        raise CubeFileError("is a TIFF file of YCbCr without JPEG inside", file=path, remedy="save it anew as RGB")
    # What says no way to turn it is refused by libvips, and means nothing to others.
    shown(ORIENTATION, tags.orientation())
    if bands == 1:
        # There is but one way that one band can lie, and libvips refuses tiles of the other.
        shown(284, 1)
    if means == _LAB and bits == {8}:
        # libvips 8.18 refuses Lab of 8 bits, which is read as three plain bands in its stead.
        shown(262, 2)
    if means == 3 and (320 not in first or first[320].values < 3 << max(bits)):
        raise ValueError("its palette is not whole")
    alpha_kind = (tags.numbers(first.get(338)) or (0,))[0]
    if alpha_kind == 1:
        # Its colours stay as they are, multiplied, and are written so: libvips 8.18 would divide them by the alpha.
        shown(338, 2)
    doubts: tuple[str, ...] = ()
    if extra and alpha_kind not in (1, 2):
        doubts = (
            f"its band {bands} is not said to be alpha, and is kept as it was, not restored: to have it restored, "
            "convert the file to ENVI",
        )
    tree = tags.tree()
    exif = header(tags.order, 8) + packed(tags.order, tree, 8) if tree else b""
    xmp = bytes(first[700].data) if 700 in first else b""
    marks: tuple[float, ...] = ()
    if NO_DATA in first:
        mark = bytes(first[NO_DATA].data).strip(b"\0 ").decode("ascii", "replace")
        if means == 1 and bits <= {8, 16}:
            with suppress(ValueError):
                marks = (float(mark),)
        else:
            # Pure colours hold it in one band, and libvips converts the numbers of others.
            doubts += (f"its pixels without data, {mark} by its tag of GDAL's, are restored too",)
    found = Photograph("tiff", tags.orientation(), alpha_kind=alpha_kind, exif=exif, xmp=xmp)
    jpeg = tags.numbers(first.get(259)) == (_JPEG,)
    return _About(found, means == _LAB and bits == {8}, doubts, marks, jpeg=jpeg)


def _bilevel(path: Path) -> CubeFileError:
    return CubeFileError(
        "is bilevel: a picture of black and white alone", file=path, remedy="give a grey or colour picture"
    )


def _several(path: Path) -> CubeFileError:
    return CubeFileError("holds several pictures", file=path, remedy="save the one that is meant as a file of its own")


def _vips() -> Any:
    alone = "pyvips" not in sys.modules
    if alone:
        # Without it libvips warns on stderr.
        os.environ.setdefault("VIPS_WARNING", "0")
    try:
        import pyvips
    except OSError as error:
        remedy = 'pip install "damp-deploy[photographs]", which brings it'
        raise MachineError(f"libvips cannot be loaded: {reason(error)}", key="photographs", remedy=remedy) from error
    logging.getLogger("pyvips").addHandler(logging.NullHandler())
    if alone and (remove := getattr(pyvips, "_remove_log_handler", None)):
        # It would print a traceback of its own where a warning quotes bytes of a damaged file.
        remove()
    # A cache would keep what strangers' files hold.
    pyvips.cache_set_max(0)
    return pyvips


def _decoded(vips: Any, path: Path, data: NDArray[np.uint8], about: _About) -> tuple[NDArray[Any], Photograph, Stated]:
    found, doubts = about.photograph, about.doubts
    # By name: nothing else that libvips can load is tried. JPEG tells of damage in warnings alone.
    load = {"png": vips.Image.pngload_source, "jpeg": vips.Image.jpegload_source, "tiff": vips.Image.tiffload_source}
    source, strict = vips.Source.new_from_memory(data), "warning" if about.jpeg else "error"
    # Its own limit of 50 MB would refuse large files of one strip; here what they claim is checked before.
    more = {"unlimited": True} if found.kind == "tiff" else {}
    image = load[found.kind](source, access="sequential", fail_on=strict, **more)
    icc = _blob(image, "icc-profile-data")
    if found.kind == "jpeg":
        exif, doubts = _exif(_blob(image, "exif-data"))
        found = replace(found, orientation=_orientation(exif), exif=exif, xmp=_blob(image, "xmp-data"))
    deep = image.format in ("ushort", "short")
    samples, lines = image.width, image.height
    # What stands behind the pixels makes no bomb smaller.
    packed_ = len(data) if about.packed is None else about.packed
    check_expansion(path, samples * lines * image.bands * (1 + deep), packed_)
    whole = image.get_typeof("interlaced") != 0
    if about.lab8 or image.interpretation in ("cmyk", "labs"):
        name = "CMYK" if image.interpretation == "cmyk" else "Lab"
        doubts += (f"its colours are {name}, and become sRGB: to choose how, convert it to RGB before",)
        image, icc = _as_srgb(image, lab8=about.lab8, deep=deep), b""
    bands = 1 if image.interpretation in ("b-w", "grey16") else 3
    if image.format != ("ushort" if deep else "uchar") or image.bands not in (bands, bands + 1):
        raise CubeFileError("is a picture of a kind that is not read", file=path, remedy="save it as RGB")
    if found.kind == "jpeg" and deep:
        raise CubeFileError("is a JPEG file of 12 bits", file=path, remedy="save it as PNG or TIFF of 16 bits")
    size = (samples, lines) if found.orientation >= 5 else (lines, samples)
    dtype = np.dtype(np.uint16 if deep else np.uint8)
    cube = allocated(path, (3, *size), dtype, copies=4 if whole else 2)
    alpha = allocated(path, size, dtype, copies=2) if image.bands > bands else None
    for line, rows in _rows(vips, image, dtype):
        stored(cube, found.orientation)[:, line : line + len(rows)] = np.moveaxis(rows[..., :bands], 2, 0)
        if alpha is not None:
            stored(alpha, found.orientation)[line : line + len(rows)] = rows[..., bands]
    stated = Stated(scale=65535.0 if deep else 255.0, axes=True, photograph=True, doubts=doubts, marks=about.marks)
    return cube, replace(found, grey=bands == 1, alpha=alpha, icc=icc), stated


def _as_srgb(image: Any, *, lab8: bool, deep: bool) -> Any:
    if image.interpretation == "cmyk":
        return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=16 if deep else 8)
    if lab8:
        signed = [(image[band] > 127).ifthenelse(image[band] - 256, image[band]) for band in (1, 2)]
        image = (image[0] * (100 / 255)).bandjoin(signed).copy(interpretation="lab")
    return image.colourspace("rgb16" if deep else "srgb")


def _rows(vips: Any, image: Any, dtype: np.dtype[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """From top to bottom: (first line, [lines, samples, bands]). In this thread, whatever libvips' pool has."""
    region = vips.Region.new(image)
    step = max(1, PIECE // (image.width * image.bands * dtype.itemsize))
    for line in range(0, image.height, step):
        height = min(step, image.height - line)
        piece = np.frombuffer(region.fetch(0, line, image.width, height), dtype)
        yield line, piece.reshape(height, image.width, image.bands)


def _blob(image: Any, name: str) -> bytes:
    return bytes(image.get(name)) if image.get_typeof(name) else b""
