"""Pictures out: PNG and TIFF, by strips, with what the photograph they were made of carries beside its numbers."""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import refuse_inputs, write_together
from runtime.files.photographs import Photograph, stored
from runtime.files.tags import BYTE, KEPT, LONG, ORIENTATION, PLACED, SHORT, UNDEFINED, Entry, Tags, header, packed

LEVEL = 4
"""Of zlib: 6 takes a third longer and gains 0.3 %."""
TIFF_BYTES = (1 << 32) - (64 << 20)
"""Of numbers in a TIFF file, whose offsets have 32 bits."""
STRIP = 1 << 18
"""Bytes of a strip, about."""
_PLAIN = Photograph("png")


def check_picture(path: Path, shape: Sequence[int], dtype: np.dtype[Any], like: Photograph | None) -> None:
    """Refuse a cube [bands, lines, samples] that cannot be written as a picture: CubeFileError, with what to do."""
    tiff, kept = path.suffix.lower() != ".png", like or _PLAIN
    if shape[0] not in (1, 3):
        raise CubeFileError(
            "pictures have 1 or 3 bands", file=path, key="bands", value=shape[0], remedy="use .hdr or .npy"
        )
    name = dtype.newbyteorder("=").str[1:]
    if name not in (("u1", "u2", "f4") if tiff else ("u1", "u2")):
        what = "uint8, uint16 and float32" if tiff else "uint8 and uint16"
        way = "a .tif file" if dtype.kind == "f" and not tiff else "--output-type float32 and a .tif file"
        raise CubeFileError(
            f"holds {what} only", file=path, key="type", value=str(dtype), remedy=f"use {way}, or .hdr or .npy"
        )
    if kept.alpha is not None:
        if kept.alpha.shape != tuple(shape[1:]):
            raise CubeFileError(
                "the transparency of the photograph is of another size than the cube",
                file=path, key="cube", value=list(shape), remedy="use .hdr or .npy",
            )  # fmt: skip
        if not tiff and kept.alpha_kind == 1:
            raise CubeFileError(
                "its colours are multiplied by its transparency, which PNG has no word for",
                file=path, key="alpha", remedy="use a .tif file",
            )  # fmt: skip
    size = (shape[0] + 1) * shape[1] * shape[2] * dtype.itemsize
    if tiff and size > TIFF_BYTES:
        raise CubeFileError(
            "a TIFF file holds no more than 4 GiB", file=path, key="cube", value=f"{size / 2**30:.1f} GiB",
            remedy="use .hdr or .npy",
        )  # fmt: skip


def write_picture(path: Path, cube: NDArray[Any], like: Photograph | None, inputs: Sequence[Path]) -> None:
    """Write a PNG or TIFF file in one step: it is whole afterwards, or what was there before still is.

    Args:
        cube: upright, [3 or 1, lines, samples]; of a grey photograph the mean of its three bands is written.
        like: the photograph that it was made of.
        inputs: files that must not be overwritten.

    Raises:
        CubeFileError: as `check_picture`, the target is an input, or the system refused to write.
    """
    check_picture(path, cube.shape, cube.dtype, like)
    refuse_inputs(path, inputs)
    kept = like or _PLAIN
    planes = stored(cube, kept.orientation)
    alpha = None if kept.alpha is None else stored(kept.alpha, kept.orientation)
    colours = 1 if kept.grey else len(planes)
    bands, (lines, samples) = colours + (alpha is not None), planes.shape[1:]
    high = max(1, STRIP // (bands * samples * cube.itemsize))

    def strips() -> Iterator[NDArray[Any]]:
        for line in range(0, lines, high):
            part = planes[:, line : line + high]
            rows = np.empty((*part.shape[1:], bands), cube.dtype)
            if colours == len(planes):
                rows[..., :colours] = np.moveaxis(part, 0, 2)
            else:
                grey = part.mean(axis=0, dtype=np.float64)
                rows[..., 0] = grey if cube.dtype.kind == "f" else np.rint(grey)
            if alpha is not None:
                rows[..., colours] = _as(alpha[line : line + high], cube.dtype)
            yield rows

    write = _png if path.suffix.lower() == ".png" else _tiff
    write_together([(path, write(kept, (lines, samples, colours, bands), high, cube.dtype, strips))])


def _as(alpha: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Transparency as numbers of another type have it: as a share of their largest, 1 of floats."""
    if alpha.dtype == dtype:
        return alpha
    share = alpha / np.iinfo(alpha.dtype).max
    return share if dtype.kind == "f" else np.rint(share * np.iinfo(dtype).max)


Strips = Callable[[], Iterator[NDArray[Any]]]
Size = tuple[int, int, int, int]
"""Lines, samples, bands of colour, and bands."""


def _png(kept: Photograph, size: Size, high: int, dtype: np.dtype[Any], strips: Strips) -> Callable[[BinaryIO], None]:
    lines, samples, colours, bands = size
    step = bands * dtype.itemsize
    kind = (0 if colours == 1 else 2) + 4 * (bands > colours)
    icc = [(b"iCCP", b"icc\0\0" + zlib.compress(kept.icc, LEVEL))] if kept.icc else []
    xmp = [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + kept.xmp)] if kept.xmp else []
    exif = [(b"eXIf", kept.exif)] if kept.exif else []
    # Where there are both, a profile is what counts, and PNG forbids the other beside it.
    chunks = [chunk for chunk in kept.chunks if not (icc and chunk[0] == b"sRGB")]

    def write(file: BinaryIO) -> None:
        def chunk(name: bytes, data: bytes) -> None:
            file.write(struct.pack(">I", len(data)) + name + data)
            file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))

        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", struct.pack(">IIBBBBB", samples, lines, 8 * dtype.itemsize, kind, 0, 0, 0))
        for name, data in [*chunks, *icc, *exif, *xmp]:
            chunk(name, data)
        packer, above = zlib.compressobj(LEVEL), np.zeros(samples * step, np.uint8)
        for strip in strips():
            rows = strip.astype(dtype.newbyteorder(">")).reshape(len(strip), -1).view(np.uint8)
            if data := packer.compress(_filtered(rows, above, step)):
                chunk(b"IDAT", data)
            above = rows[-1]
        chunk(b"IDAT", packer.flush())
        chunk(b"IEND", b"")

    return write


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> bytes:
    """Rows [n, bytes] by the PNG filter, of three, that leaves the least in each: left, above, or Paeth's."""
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    up = np.vstack([above, rows[:-1]])
    left[:, step:], corner[:, step:] = rows[:, :-step], up[:, :-step]
    a, b, c = (values.astype(np.int16) for values in (left, up, corner))
    by_left, by_up, by_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest = np.where(by_up <= by_corner, up, corner)
    nearest = np.where((by_left <= by_up) & (by_left <= by_corner), left, nearest)
    tried = np.stack([rows - left, rows - up, rows - nearest])
    best = np.minimum(tried, -tried.view(np.int8).view(np.uint8)).sum(axis=2, dtype=np.int64).argmin(axis=0)
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    out[:, 0] = np.array([1, 2, 4])[best]
    out[:, 1:] = tried[best, np.arange(len(rows))]
    return out.tobytes()


def _tiff(kept: Photograph, size: Size, high: int, dtype: np.dtype[Any], strips: Strips) -> Callable[[BinaryIO], None]:
    lines, samples, colours, bands = size
    old = Tags(kept.exif) if kept.exif else None
    order: Literal["<", ">"] = ">" if old and old.order == ">" else "<"
    # What lies below EXIF, a maker's note among it, points into its file: that begins this one, so it stays true.
    tree = {tag: e for tag, e in old.directory(old.first)[0].items() if tag in KEPT | PLACED} if old else {}

    def entry(kind: int, *values: int) -> Entry:
        return Entry(kind, len(values), struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values))

    def blob(kind: int, data: bytes) -> Entry:
        return Entry(kind, len(data), data)

    def write(file: BinaryIO) -> None:
        file.write(header(order, 0) + kept.exif[8:])
        places, lengths = list[int](), list[int]()
        for strip in strips():
            if dtype.kind != "f":
                strip[:, 1:] -= strip[:, :-1].copy()
            data = zlib.compress(strip.astype(dtype.newbyteorder(order)).tobytes(), LEVEL)
            places.append(file.tell())
            lengths.append(len(data))
            file.write(data)
        file.write(bytes(file.tell() % 2))
        tree.update(
            {
                256: entry(LONG, samples),
                257: entry(LONG, lines),
                258: entry(SHORT, *[8 * dtype.itemsize] * bands),
                259: entry(SHORT, 8),
                262: entry(SHORT, 1 if colours == 1 else 2),
                273: entry(LONG, *places),
                ORIENTATION: entry(SHORT, kept.orientation),
                277: entry(SHORT, bands),
                278: entry(LONG, high),
                279: entry(LONG, *lengths),
                284: entry(SHORT, 1),
                339: entry(SHORT, *[3 if dtype.kind == "f" else 1] * bands),
                **({} if dtype.kind == "f" else {317: entry(SHORT, 2)}),
                **({338: entry(SHORT, kept.alpha_kind)} if bands > colours else {}),
                **({700: blob(BYTE, kept.xmp)} if kept.xmp else {}),
                **({34675: blob(UNDEFINED, kept.icc)} if kept.icc else {}),
            }
        )
        first = file.tell()
        file.write(packed(order, tree, first))
        file.seek(4)
        file.write(struct.pack(f"{order}I", first))

    return write
