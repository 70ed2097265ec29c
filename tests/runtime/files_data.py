"""Where the real cubes are, and small ENVI pairs made for the tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

DATA = Path(os.environ.get("DAMP_DATA", Path(__file__).parents[3] / "shared" / "data"))

REAL_HEADERS = (
    "envi/aviris_mastercal.hdr",
    "envi/aviris_ng_0.hdr",
    "envi/aviris_ng_1.hdr",
    "envi/aviris_ng_2.hdr",
    "envi/corn_kernel.hdr",
    "envi/hyspex_bavaria_232.hdr",
    "envi/hyspex_bavaria_325.hdr",
    "calib/aviris3_flatfield.hdr",
    "calib/emit_badelements.hdr",
    "calib/emit_flatfield_20241024.hdr",
    "calib/emit_raw_lab.hdr",
    "calib/headwall_dark_1600.hdr",
    "calib/specim_fenix1k_radiometric.hdr",
    "calib/specim_fenix_radiometric.hdr",
)

skip_without_data = pytest.mark.skipif(
    not (DATA / "envi").is_dir(), reason=f"{len(REAL_HEADERS)} real ENVI files left out: set DAMP_DATA to their folder"
)

INTERLEAVED = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}

CODES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}


def sample(dtype: str, shape: tuple[int, int, int] = (3, 4, 5), seed: int = 0) -> NDArray[Any]:
    """A cube that uses every byte of its type, finite for floats."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    native = np.dtype(dtype).newbyteorder("=")
    return random.integers(limits.min, limits.max, shape, dtype=native, endpoint=True).astype(dtype)


def as_matlab(cube: NDArray[Any]) -> NDArray[Any]:
    """[bands, lines, samples] as [lines, samples, bands]."""
    return cube.transpose(1, 2, 0)


def header_lines(cube: NDArray[Any], code: int, interleave: str, byte_order: int, **more: object) -> list[str]:
    bands, lines, samples = cube.shape
    return [
        "ENVI",
        f"samples = {samples}",
        f"lines = {lines}",
        f"bands = {bands}",
        f"header offset = {more.pop('header_offset', 0)}",
        "file type = ENVI Standard",
        f"data type = {code}",
        f"interleave = {interleave}",
        f"byte order = {byte_order}",
        *(f"{key.replace('_', ' ')} = {value}" for key, value in more.items()),
    ]


def write_pair(
    folder: Path, cube: NDArray[Any], code: int, interleave: str = "bil", byte_order: int = 0, **more: Any
) -> Path:
    """An ENVI pair written by hand, not by the code under test; gives the header."""
    offset = int(str(more.get("header_offset", 0)))
    data = cube.transpose(INTERLEAVED[interleave.lower()]).astype("<>"[byte_order] + CODES[code]).tobytes()
    (folder / "cube.img").write_bytes(b"\x5a" * offset + data)
    header = folder / "cube.hdr"
    header.write_text("\n".join(header_lines(cube, code, interleave, byte_order, **more)) + "\n", encoding="utf-8")
    return header


def edited(header: Path, *lines: str, drop: tuple[str, ...] = ()) -> Path:
    """The header with the keys in `drop` left out and `lines` added."""
    kept = [row for row in header.read_text(encoding="utf-8").splitlines() if row.partition("=")[0].strip() not in drop]
    header.write_text("\n".join([*kept, *lines]) + "\n", encoding="utf-8")
    return header
