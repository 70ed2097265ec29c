"""How a TIFF lies on the disk, looked at within bounds before any library opens it: what it claims, it must store.

TIFF 6.0, BigTIFF (https://www.awaresystems.be/imaging/tiff/bigtiff.html), GDAL's tags
(https://gdal.org/en/stable/drivers/raster/gtiff.html).
"""

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import check_expansion, reason
from runtime.files.tags import NO_DATA, SIZES
from runtime.meaning.marks import held
from runtime.products.texts import number_of
from runtime.untrusted import open_regular

BEGINS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
COMPRESSIONS = {
    1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate", 34887: "LERC", 34925: "LZMA", 50000: "ZSTD",
}  # fmt: skip
"""What keeps numbers as they were and needs no tables of another tag."""
MOST_DIRECTORIES = 128
MOST_TAGS = 4096
MOST_PIECES = 1 << 24
MOST_PIECE = 1 << 30
"""Bytes of one strip or tile as GDAL decodes it, in whole."""
MOST_METADATA = 16 << 20
_AT_ONCE = 1 << 20
_NAMES = {
    254: "NewSubfileType",
    256: "ImageWidth", 257: "ImageLength", 258: "BitsPerSample", 259: "Compression", 262: "PhotometricInterpretation",
    277: "SamplesPerPixel", 278: "RowsPerStrip", 284: "PlanarConfiguration", 322: "TileWidth", 323: "TileLength",
    339: "SampleFormat", 273: "StripOffsets", 279: "StripByteCounts", 324: "TileOffsets", 325: "TileByteCounts",
}  # fmt: skip
_WHOLE = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_REDUCED, _MASK = 1, 4
_CONVERT = "convert it: gdal_translate -co COMPRESS=DEFLATE IN.tif OUT.tif"
_AGAIN = "copy the file again"


@dataclass(frozen=True)
class Layout:
    """The image of a TIFF.

    Attributes:
        shape: [bands, lines, samples], an alpha band counted.
        dtype: of its numbers, in native byte order.
        block: lines and samples of a strip or tile.
        by_pixel: the bands of a pixel lie together; else each band has strips or tiles of its own.
        loose: its strips are numbers as they are, so that lines of one can be had alone.
        nodata: what GDAL's tag says stands for nothing; `dtype` holds it.
        mask: there is a mask of its own, of the same size.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    block: tuple[int, int]
    by_pixel: bool
    loose: bool
    nodata: float | None = None
    mask: bool = False

    @property
    def piece(self) -> int:
        """Bytes of a strip or tile, decoded."""
        return prod(self.block) * (self.shape[0] if self.by_pixel else 1) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Lines that have to be read together."""
        return 1 if self.loose else min(self.block[0], self.shape[1])


def begins_as_tiff(path: Path) -> bool:
    """Whether the first bytes of a file are those of a TIFF; False of what cannot be read."""
    try:
        with open_regular(path)[0] as file:
            return file.read(4) in BEGINS
    except (OSError, ValueError):
        return False


def layout_of(path: Path) -> Layout:
    """The image of a TIFF that stores all that it claims.

    Raises:
        CubeFileError: it is no TIFF, ends early, has pieces that are not stored, holds several images, or what no cube
            is: colours by palette, complex numbers, pieces that expand beyond all measure.
    """
    try:
        file, size = open_regular(path)
    except FileNotFoundError as error:
        raise CubeFileError("no such file", file=path, remedy="check the path") from error
    except (OSError, ValueError) as error:
        raise CubeFileError(f"cannot be opened: {reason(error)}", file=path, remedy="check the path") from error
    with file:
        try:
            return _layout(path, _File(file, size))
        except (OSError, ValueError) as error:
            raise CubeFileError(f"is no whole TIFF: {reason(error)}", file=path, remedy=_AGAIN) from error


class _Entry(NamedTuple):
    kind: int
    values: int
    at: int


class _File:
    """An open file and the order of its bytes. Raises ValueError where it ends too early or is no TIFF."""

    def __init__(self, file: FileIO, size: int) -> None:
        self._number, self.size = file.fileno(), size
        head = os.pread(self._number, 16, 0)
        if head[:4] not in BEGINS:
            raise ValueError("it does not begin as a TIFF file does")
        self.order = "<" if head[:2] == b"II" else ">"
        self._wide = 43 in head[2:4]
        self._offset, self._inline = ("Q", 8) if self._wide else ("I", 4)
        self.first = int(struct.unpack_from(f"{self.order}{self._offset}", head.ljust(16, b"\0"), self._inline)[0])

    def take(self, at: int, count: int) -> bytes:
        if at + count > self.size or len(found := os.pread(self._number, count, at)) < count:
            raise ValueError(f"{count} bytes at {at} lie behind its end, at {self.size}")
        return found

    def directories(self) -> Iterator[dict[int, _Entry]]:
        """The tags of each directory of the chain."""
        at = self.first
        for _ in range(MOST_DIRECTORIES):
            if not at:
                return
            width = 8 if self._wide else 2
            count = int.from_bytes(self.take(at, width), "little" if self.order == "<" else "big")
            if count > MOST_TAGS:
                raise ValueError(f"a directory claims {count} tags")
            row = 4 + 2 * self._inline
            rows = self.take(at + width, count * row + self._inline)
            found: dict[int, _Entry] = {}
            for start in range(0, count * row, row):
                tag, kind, values = struct.unpack_from(f"{self.order}HH{self._offset}", rows, start)
                place = start + row - self._inline
                inside = values * SIZES.get(kind, 0) <= self._inline
                found.setdefault(
                    tag, _Entry(kind, values, at + width + place if inside else self._unpacked(rows, place))
                )
            yield found
            at = self._unpacked(rows, count * row)
        raise ValueError(f"it has more than {MOST_DIRECTORIES} directories")

    def _unpacked(self, data: bytes, at: int) -> int:
        return int(struct.unpack_from(f"{self.order}{self._offset}", data, at)[0])

    def array(self, tag: int, entry: _Entry, start: int, stop: int) -> NDArray[Any]:
        """Whole numbers `start` to `stop` of a tag."""
        if entry.kind not in _WHOLE:
            raise ValueError(f"{_NAMES.get(tag, tag)} is of a kind that is no whole number")
        dtype = np.dtype(self.order + _WHOLE[entry.kind])
        stop = min(stop, entry.values)
        return np.frombuffer(self.take(entry.at + start * dtype.itemsize, (stop - start) * dtype.itemsize), dtype)


class _Image:
    """One directory of a file: its numbers, by tag."""

    def __init__(self, path: Path, file: _File, tags: Mapping[int, _Entry]) -> None:
        self.path, self.file, self.tags = path, file, tags
        self.kind = self.number(254, 0)
        self.samples, self.lines, self.bands = self.number(256), self.number(257), self.number(277, 1)

    def number(self, tag: int, default: int | None = None) -> int:
        """The only number of a tag."""
        if tag not in self.tags and default is not None:
            return default
        return self.alike(tag, default)

    def alike(self, tag: int, default: int | None = None) -> int:
        """The number that a tag has, for every band the same."""
        if (entry := self.tags.get(tag)) is None:
            if default is None:
                raise ValueError(f"{_NAMES[tag]} is missing")
            return default
        values = np.unique(self.file.array(tag, entry, 0, 1 << 16))
        if values.size != 1:
            raise self.wrong(tag, "differs among the bands", values.tolist(), "write bands of one type")
        return int(values[0])

    def wrong(self, tag: int, problem: str, value: object, remedy: str = _CONVERT) -> CubeFileError:
        return CubeFileError(problem, file=self.path, key=_NAMES.get(tag, str(tag)), value=value, remedy=remedy)

    def text(self, tag: int, most: int) -> str | None:
        if (entry := self.tags.get(tag)) is None:
            return None
        if entry.values > most:
            raise ValueError(f"tag {tag} has {entry.values} bytes, {most} are accepted")
        return self.file.take(entry.at, entry.values).split(b"\0")[0].decode("latin-1").strip()

    def check_pieces(self, bits: int) -> tuple[int, int]:
        """The lines and samples of a strip or tile, when all are stored, inside the file, and expand within bounds."""
        compression, planar = self.number(259, 1), self.number(284, 1)
        if compression not in COMPRESSIONS:
            raise self.wrong(259, "this compression is not read", compression)
        if planar not in (1, 2):
            raise self.wrong(284, "must be 1 or 2", planar, _AGAIN)
        tiled = 322 in self.tags
        rows = self.number(323) if tiled else min(self.number(278, 2**32 - 1), self.lines)
        columns = self.number(322) if tiled else self.samples
        if not 0 < min(self.samples, self.lines, self.bands) <= max(self.samples, self.lines) < 2**31:
            raise self.wrong(256, "is no size of an image", f"{self.samples} x {self.lines} x {self.bands}", _AGAIN)
        if not (0 < rows < 2**31 and 0 < columns < 2**31):
            raise self.wrong(322 if tiled else 278, "is no size of a piece", f"{columns} x {rows}", _AGAIN)
        planes, deep = (self.bands, 1) if planar == 2 else (1, self.bands)
        down, across = -(-self.lines // rows), -(-self.samples // columns)
        row = -(-columns * deep * bits // 8)
        where, sizes = (324, 325) if tiled else (273, 279)
        stored = self._stored(where, sizes, planes * down * across)
        least = row * rows if tiled else row * (self.lines - rows * (down - 1))
        if compression == 1 and stored[1] < least:
            raise self.wrong(sizes, "a piece is shorter than its numbers", f"{stored[1]} of {least} bytes", _AGAIN)
        check_expansion(self.path, planes * down * across * row * rows, min(stored[0], self.file.size), key=_NAMES[256])
        # Where strips are plain numbers, GDAL takes the lines that are asked for.
        if row * rows > MOST_PIECE and (tiled or compression != 1):
            problem = f"a piece of it holds {row * rows} bytes, {MOST_PIECE} are accepted"
            raise self.wrong(323 if tiled else 278, problem, rows, "write smaller ones: gdal_translate -co TILED=YES")
        return rows, columns

    def _stored(self, where: int, sizes: int, pieces: int) -> tuple[int, int]:
        """The bytes that all pieces take, and those of the smallest."""
        places, lengths = self.tags.get(where), self.tags.get(sizes)
        if places is None or lengths is None:
            raise ValueError(f"{_NAMES[where if places is None else sizes]} is missing")
        if not pieces == places.values == lengths.values:
            problem = f"the image needs {pieces} pieces, {places.values} have a place and {lengths.values} a length"
            raise self.wrong(where, problem, None, _AGAIN)
        if pieces > MOST_PIECES:
            raise self.wrong(where, f"more than {MOST_PIECES} pieces", pieces, "write larger strips or tiles")
        total, smallest, absent = 0, 2**63, 0
        for start in range(0, pieces, _AT_ONCE):
            at = self.file.array(where, places, start, start + _AT_ONCE).astype(np.uint64)
            length = self.file.array(sizes, lengths, start, start + _AT_ONCE).astype(np.uint64)
            absent += int(np.count_nonzero((at == 0) | (length == 0)))
            outside = (at > self.file.size) | (length > self.file.size) | (at + length > self.file.size)
            if outside.any():
                piece = int(outside.argmax()) + start
                problem = f"piece {piece + 1} of {pieces} ends behind the file, which has {self.file.size} bytes"
                raise self.wrong(where, f"it is cut short: {problem}", None, _AGAIN)
            total, smallest = total + int(length.sum()), min(smallest, int(length.min()))
        if absent:
            problem = f"{absent} of {pieces} pieces are not stored"
            raise self.wrong(sizes, problem, None, "write it whole: gdal_translate -co SPARSE_OK=FALSE IN.tif OUT.tif")
        return total, smallest


def _layout(path: Path, file: _File) -> Layout:
    images = [_Image(path, file, tags) for tags in file.directories()]
    if not images:
        raise ValueError("it holds no image")
    image = images[0]
    if image.kind & (_REDUCED | _MASK):
        raise image.wrong(254, "the first image is a smaller copy or a mask", image.kind, "write the cube first")
    pages = sum(not one.kind & (_REDUCED | _MASK) for one in images)
    if pages > 1:
        raise image.wrong(254, f"it holds {pages} images", None, "save the cube as one image of many bands")
    if (photometric := image.number(262, 1)) not in (0, 1, 2):
        raise image.wrong(262, "its numbers are colours, not measurements", photometric, "give the cube as numbers")
    dtype = _dtype(image)
    block = image.check_pieces(8 * dtype.itemsize)
    size = (image.lines, image.samples)
    masks = [one for one in images if one.kind & _MASK and not one.kind & _REDUCED and (one.lines, one.samples) == size]
    for mask in masks[:1]:
        mask.check_pieces(mask.alike(258, 1))
    image.text(42112, MOST_METADATA)
    return Layout(
        shape=(image.bands, *size),
        dtype=dtype,
        block=block,
        by_pixel=image.number(284, 1) == 1,
        loose=image.number(259, 1) == 1 and 322 not in image.tags,
        nodata=_nodata(image, dtype),
        mask=bool(masks),
    )


def _dtype(image: _Image) -> np.dtype[Any]:
    bits, kind = image.alike(258, 1), image.alike(339, 1)
    if kind not in _KINDS:
        problem = "complex numbers are not spectra" if kind in (5, 6) else "is no type of numbers"
        raise image.wrong(339, problem, kind, "write integers or floats")
    if bits not in ((32, 64) if kind == 3 else (8, 16, 32, 64)):
        raise image.wrong(258, "numbers of so many bits are not read", bits, "write whole bytes: gdal_translate -ot")
    return np.dtype(f"{_KINDS[kind]}{bits // 8}")


def _nodata(image: _Image, dtype: np.dtype[Any]) -> float | None:
    text = image.text(NO_DATA, 256)
    if not text:
        return None
    value = number_of(text)
    if value is None or held(value, dtype) is None:
        raise CubeFileError(
            f"no {dtype} is what it says stands for nothing",
            file=image.path,
            key="GDAL_NODATA",
            value=text,
            remedy="delete it with gdal_edit.py -unsetnodata, and say --ignore-value",
        )
    return value
