"""`deploy run` as a process: ENVI cubes of every interleave come back restored, in their own type and order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.files.envi import read_envi
from tests.contracts.command import assert_failed, start
from tests.flight.cubes import noise, scene

BANDS, LINES, SAMPLES = 31, 72, 80
AXES = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}


def write_by_hand(folder: Path, interleave: str) -> Path:
    """A cube of 12 bits in that order, and its header."""
    cube = ((scene(BANDS, LINES, SAMPLES) + noise((BANDS, LINES, SAMPLES)) // 16) // 16).astype("<u2")
    (folder / "scene.raw").write_bytes(np.ascontiguousarray(cube.transpose(AXES[interleave])).tobytes())
    header = folder / "scene.hdr"
    header.write_text(
        f"ENVI\nsamples = {SAMPLES}\nlines = {LINES}\nbands = {BANDS}\nheader offset = 0\nfile type = ENVI Standard\n"
        f"data type = 12\ninterleave = {interleave}\nbyte order = 0\nreflectance scale factor = 4095\n"
        f"wavelength units = Nanometers\nwavelength = {{{', '.join(str(nm) for nm in range(400, 701, 10))}}}\n"
    )
    return header


@pytest.mark.parametrize("interleave", AXES)
def test_a_cube_comes_back_in_its_own_order(tiny_bundle: Path, tmp_path: Path, interleave: str) -> None:
    header, out = write_by_hand(tmp_path, interleave), tmp_path / "restored.hdr"
    done = start("run", tiny_bundle, header, "--out", out, "--threads", 1, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert re.search(rf"^interleave = {interleave}$", out.read_text(), re.MULTILINE)
    cube, restored = read_envi(header), read_envi(out)
    with load_bundle(tiny_bundle, threads=1) as bundle:
        np.testing.assert_array_equal(restored, bundle.restore(cube, scale=4095).cube)
    assert restored.dtype == cube.dtype and not np.array_equal(restored, cube)
    again = start("run", tiny_bundle, header, "--out", out, cwd=tmp_path)
    assert_failed(again, 2, "restored.hdr")
