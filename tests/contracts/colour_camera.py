"""A virtual area camera of colours, GigE Vision on loopback: Aravis' own fake camera, with images and formats of ours.

    with colour_camera({"BayerRG8": images}, 16, 24, tmp_path) as camera:
        camera.call(read_some, count=100)

As a program it is the camera: `python -m tests.contracts.colour_camera DESCRIPTION IMAGES HEIGHT WIDTH`.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.sources.camera.pixel_formats import BY_NAME

from .spectrometer import Spectrometer, network

SERIAL = "RGB01"
WIDTH, HEIGHT, SENSOR_HEIGHT, SENSOR_WIDTH, PIXEL_FORMAT = 0x100, 0x104, 0x118, 0x11C, 0x128


@contextmanager
def colour_camera(
    images: Mapping[str, NDArray[np.uint8]], height: int, width: int, folder: Path
) -> Iterator[Spectrometer]:
    """A camera that serves images over and over, by pixel format: [images, bytes]; see `network`."""
    description, served = folder / "colours.xml", folder / "colours.npz"
    with network(folder) as camera:
        entry = '<EnumEntry Name="{0.name}" NameSpace="Standard"><Value>{0.value}</Value></EnumEntry>'
        stock, first = camera.stock().read_text(), '<EnumEntry Name="BayerBG8"'
        missing = [entry.format(BY_NAME[name]) for name in images if f'"{name}"' not in stock]
        description.write_text(stock.replace(first, "".join([*missing, first])))
        np.savez(served, **images)
        camera.serve("-m", __name__, description, served, height, width)
        yield camera


def _serve(description: str, path: str, height: int, width: int) -> None:
    aravis = ctypes.CDLL("libaravis-0.8.so.0")
    images = {BY_NAME[name].value: array for name, array in np.load(path).items()}
    made, data_of = aravis.arv_gv_fake_camera_new_full, aravis.arv_buffer_get_data
    made.restype, made.argtypes = c_void_p, [c_char_p] * 3
    data_of.restype, data_of.argtypes = c_void_p, [c_void_p, POINTER(c_size_t)]
    of, put = aravis.arv_gv_fake_camera_get_fake_camera, aravis.arv_fake_camera_write_register
    of.restype, of.argtypes, put.argtypes = c_void_p, [c_void_p], [c_void_p, c_uint32, c_uint32]
    filled = CFUNCTYPE(None, c_void_p, c_void_p, c_uint32, c_uint32, c_uint32)
    aravis.arv_fake_camera_set_fill_pattern.argtypes = [c_void_p, filled, c_void_p]
    count = 0

    @filled
    def fill(buffer: int, user: int, exposure_us: int, gain: int, form: int) -> None:
        nonlocal count
        data = images[form][count % len(images[form])].tobytes()
        ctypes.memmove(data_of(buffer, None), data, len(data))
        count += 1

    camera = of(made(b"127.0.0.1", SERIAL.encode(), description.encode()))
    first = next(iter(images))
    registers = (WIDTH, width), (HEIGHT, height), (SENSOR_HEIGHT, height), (SENSOR_WIDTH, width), (PIXEL_FORMAT, first)
    for register, value in registers:
        put(camera, register, value)
    aravis.arv_fake_camera_set_fill_pattern(camera, fill, None)
    print("serving", *map(hex, images), flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
