"""Pixel formats against an independent packing, bit by bit from the convention's own pictures."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import MachineError
from runtime.sources.camera.pixel_formats import BY_NAME, PIXEL_FORMATS, Unpacker, pixel_format


def stream_of_bits(values: NDArray[Any], bits: int) -> bytes:
    """PFNC's lsb packing: the pixels' bits, lowest first, fill the bytes from their lowest bit."""
    places = (values[:, None] >> np.arange(bits)) & 1
    return np.packbits(places.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


def old_packing(values: NDArray[Any], bits: int) -> bytes:
    """GigE Vision 1.2, figures of Mono10Packed and Mono12Packed: high byte, both low parts, high byte."""
    low = bits - 8
    packed = bytearray()
    pixels = [int(value) for value in values]
    for first, second in zip(pixels[::2], [*pixels[1::2], None][: -(-len(pixels) // 2)], strict=True):
        packed += bytes([first >> low, first % (1 << low) | (0 if second is None else (second % (1 << low)) << 4)])
        if second is not None:
            packed.append(second >> low)
    return bytes(packed)


def packed(name: str, values: NDArray[Any]) -> bytes:
    name = re.sub("^Bayer..", "Mono", name)
    if name in ("Mono8", "RGB8"):
        return bytes(int(value) for value in values)
    if name.endswith("Packed"):
        return old_packing(values, int(name[4:6]))
    if name.endswith("p"):
        return stream_of_bits(values, int(name[4:6]))
    return b"".join(int(value).to_bytes(2, "little") for value in values)


def unpacked(name: str, data: bytes, pixels: int) -> NDArray[Any]:
    form = BY_NAME[name]
    out = np.full(pixels, 77, form.dtype)
    Unpacker(form, pixels // form.values).unpack(np.frombuffer(data, np.uint8), out)
    return out


@pytest.mark.parametrize("name", BY_NAME)
def test_every_value_at_every_place_of_a_group(name: str) -> None:
    form = BY_NAME[name]
    every = np.arange(2**form.bits)
    every = every[: len(every) // form.values * form.values]
    # Four orders put each value at each place, beside other neighbours.
    for shift in range(4):
        values = np.concatenate((np.roll(every, shift), np.random.default_rng(shift).permutation(every)))
        data = packed(name, values)
        assert len(data) == form.image_bytes(len(values) // form.values)
        np.testing.assert_array_equal(unpacked(name, data, len(values)), values)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("pixels", [*range(1, 18), 99])
def test_images_that_end_within_a_group(name: str, pixels: int) -> None:
    form = BY_NAME[name]
    values = np.random.default_rng(pixels).integers(0, 2**form.bits, form.values * pixels)
    data = packed(name, values)
    assert len(data) == form.image_bytes(pixels)
    np.testing.assert_array_equal(unpacked(name, data, len(values)), values)
    # What lies behind the image in the buffer is not looked at.
    np.testing.assert_array_equal(unpacked(name, data + b"\xff" * 9, len(values)), values)


@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_of_an_image_is_left_to_the_one_before(name: str) -> None:
    form = BY_NAME[name]
    unpacker, out = Unpacker(form, 77), np.empty((7, 11 * form.values), form.dtype)
    for fill in (b"\xff", b"\x00", b"\xff"):
        unpacker.unpack(np.frombuffer(fill * form.image_bytes(77), np.uint8), out)
        assert np.all(out == (form.largest if form.stored != 16 and fill != b"\x00" else 65535 * (fill != b"\x00")))


@pytest.mark.parametrize("name", BY_NAME)
def test_no_image_is_allocated(name: str) -> None:
    pixels = 640 * 224
    form = BY_NAME[name]
    unpacker, out = Unpacker(form, pixels), np.empty((224, 640 * form.values), form.dtype)
    data = np.zeros(form.image_bytes(pixels), np.uint8)
    unpacker.unpack(data, out)
    tracemalloc.start()
    try:
        unpacker.unpack(data, out)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_the_table_is_of_one_piece() -> None:
    for value, form in PIXEL_FORMATS.items():
        # PFNC: bits 16 to 23 of the value are the bits that a pixel takes.
        assert (value >> 16) & 0xFF == form.stored
        assert re.match(rf"(Mono|Bayer{form.colours or None}|RGB){form.bits}(p|Packed)?$", form.name)
        assert form.values * form.bits <= form.stored
        assert form.dtype == (np.uint8 if form.bits == 8 else np.uint16)
        assert pixel_format(value) is form


def test_formats_that_are_not_read() -> None:
    with pytest.raises(MachineError, match=r"YUV422_8, 0x02100032.*set one of Mono8, Mono10"):
        pixel_format(0x02100032, "YUV422_8")
