"""Pixel formats of grey and colour GenICam cameras, and how an image in one of them becomes an array.

Values, names and bit order are those of the GenICam Pixel Format Naming Convention (PFNC 2.4, EMVA); `Packed` are the
older ones of GigE Vision 1.2. `Mono10` to `Mono16` have each pixel in 16 bits, low byte first.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MachineError


@dataclass(frozen=True)
class Packing:
    """A group of pixels as one number: the place of its bits, and where they go.

    Attributes:
        pixels, bytes: of a group.
        word: a little-endian type that holds a group's bytes, and as many 16-bit pixels.
        moves: bits of the word, and by how many places they move up, which makes pixels of 16 bits of it.
    """

    pixels: int
    bytes: int
    word: str
    moves: tuple[tuple[int, int], ...]


_TWELVE = Packing(2, 3, "<u4", ((0x000FFF, 0), (0xFFF000, 4)))
_TEN = Packing(4, 5, "<u8", ((0x3FF, 0), (0x3FF << 10, 6), (0x3FF << 20, 12), (0x3FF << 30, 18)))
# Bytes of the high bits of the first pixel, of the low bits of both, and of the high bits of the second.
_TWELVE_OLD = Packing(2, 3, "<u4", ((0xFFF0FF, 4), (0x000F00, -8)))
_TEN_OLD = Packing(2, 3, "<u4", ((0xFF00FF, 2), (0x000300, -8), (0x003000, 4)))


@dataclass(frozen=True)
class PixelFormat:
    """A pixel format.

    Attributes:
        name, value: of the PFNC.
        bits: that count; the largest value is 2**bits - 1.
        stored: bits of a pixel in the image.
        packing: None where each pixel has bytes of its own.
        colours: of the first two pixels of a Bayer pattern, `RGB` where a pixel holds all three; empty of grey ones.
    """

    name: str
    value: int
    bits: int
    stored: int
    packing: Packing | None = None
    colours: str = ""

    @property
    def values(self) -> int:
        """Of a pixel."""
        return 3 if self.colours == "RGB" else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the line: uint8 for 8 bits, uint16 for all others."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    @property
    def largest(self) -> int:
        return (1 << self.bits) - 1

    def image_bytes(self, pixels: int) -> int:
        """Bytes of an image of so many pixels, whose rows follow each other without padding."""
        return -(-pixels * self.stored // 8)


_BAYER = {
    # Of 8 bits, of 12 bits, packed as GigE Vision 1 did, and packed as the convention does.
    "GR": (0x01080008, 0x01100010, 0x010C002A, 0x010C0057),
    "RG": (0x01080009, 0x01100011, 0x010C002B, 0x010C0059),
    "GB": (0x0108000A, 0x01100012, 0x010C002C, 0x010C0055),
    "BG": (0x0108000B, 0x01100013, 0x010C002D, 0x010C0053),
}


def _bayer(colours: str, plain: int, unpacked: int, old: int, packed: int) -> tuple[PixelFormat, ...]:
    name = f"Bayer{colours}"
    return (
        PixelFormat(f"{name}8", plain, 8, 8, None, colours),
        PixelFormat(f"{name}12", unpacked, 12, 16, None, colours),
        PixelFormat(f"{name}12Packed", old, 12, 12, _TWELVE_OLD, colours),
        PixelFormat(f"{name}12p", packed, 12, 12, _TWELVE, colours),
    )


PIXEL_FORMATS: dict[int, PixelFormat] = {
    form.value: form
    for form in (
        PixelFormat("Mono8", 0x01080001, 8, 8),
        PixelFormat("Mono10", 0x01100003, 10, 16),
        PixelFormat("Mono10Packed", 0x010C0004, 10, 12, _TEN_OLD),
        PixelFormat("Mono12", 0x01100005, 12, 16),
        PixelFormat("Mono12Packed", 0x010C0006, 12, 12, _TWELVE_OLD),
        PixelFormat("Mono14", 0x01100025, 14, 16),
        PixelFormat("Mono16", 0x01100007, 16, 16),
        PixelFormat("Mono10p", 0x010A0046, 10, 10, _TEN),
        PixelFormat("Mono12p", 0x010C0047, 12, 12, _TWELVE),
        *(form for colours, values in _BAYER.items() for form in _bayer(colours, *values)),
        PixelFormat("RGB8", 0x02180014, 8, 24, None, "RGB"),
    )
}
"""By PFNC value."""
BY_NAME = {form.name: form for form in PIXEL_FORMATS.values()}


def pixel_format(value: int, name: str = "") -> PixelFormat:
    """The format of a PFNC value; `name` is what the camera calls it.

    Raises:
        MachineError: it is not among those that are read.
    """
    if value not in PIXEL_FORMATS:
        raise MachineError(
            "the camera's pixel format is not one that is read here",
            key="camera.pixel_format",
            value=f"{name or 'unnamed'}, 0x{value:08X}",
            remedy="set one of " + ", ".join(BY_NAME),
        )
    return PIXEL_FORMATS[value]


class Unpacker:
    """Turns images of one format and number of pixels into arrays without allocating; for one thread at a time."""

    def __init__(self, form: PixelFormat, pixels: int) -> None:
        self.form, self.pixels = form, pixels
        self.image_bytes = form.image_bytes(pixels)
        if packing := form.packing:
            # A word is longer than the group at its start, so the last groups would be read beyond the image's end.
            beyond = np.dtype(packing.word).itemsize - packing.bytes
            readable = max(0, self.image_bytes - beyond) // packing.bytes
            self._whole = min(readable, pixels // packing.pixels)
            self._words = np.empty((2, self._whole), packing.word)
            rest = pixels - self._whole * packing.pixels
            groups = -(-rest // packing.pixels)
            self._rest = np.zeros(groups * packing.bytes + 8, np.uint8)
            self._rest_words = np.empty((3, groups), packing.word)

    def unpack(self, data: NDArray[np.uint8], out: NDArray[Any]) -> None:
        """Write the pixels of `data`, uint8 [at least image_bytes], to `out`.

        Args:
            out: C-contiguous, of the format's type, with as many values as the image's pixels have.
        """
        flat = out.reshape(-1)
        packing = self.form.packing
        if packing is None:
            np.copyto(flat, data[: self.image_bytes].view("<u2" if self.form.stored == 16 else "u1"))
            return
        split, done = self._whole * packing.bytes, self._whole * packing.pixels
        if self._whole:
            words = np.ndarray((self._whole,), packing.word, data.data, 0, (packing.bytes,))
            _move(packing, words, self._words, flat[:done].view(packing.word))
        if done < self.pixels:
            self._rest[: self.image_bytes - split] = data[split : self.image_bytes]
            groups = self._rest_words.shape[1]
            words = np.ndarray((groups,), packing.word, self._rest.data, 0, (packing.bytes,))
            _move(packing, words, self._rest_words[:2], self._rest_words[2])
            flat[done:] = self._rest_words[2].view("<u2")[: self.pixels - done]


def _move(packing: Packing, words: NDArray[Any], scratch: NDArray[Any], out: NDArray[Any]) -> None:
    """Move the bits of `words` [groups] to `out` [groups]; `scratch` is [2, groups]."""
    copy, part = scratch
    np.copyto(copy, words)
    for number, (mask, shift) in enumerate(packing.moves):
        target = part if number else out
        np.bitwise_and(copy, copy.dtype.type(mask), out=target)
        if shift > 0:
            np.left_shift(target, copy.dtype.type(shift), out=target)
        elif shift < 0:
            np.right_shift(target, copy.dtype.type(-shift), out=target)
        if number:
            np.bitwise_or(out, part, out=out)
