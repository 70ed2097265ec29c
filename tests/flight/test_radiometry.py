"""Radiometry against its equations, written straight down in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime.lines import LineFormat
from runtime.radiometry import load_radiometry
from tests.flight.cubes import noise

BANDS, SAMPLES = 31, 64
EXACT = 4e-7
"""A few roundings of float32, relative."""


def write_recording(path: Path, lines: np.ndarray) -> None:
    """ENVI in `bil`, from [lines, bands, samples]."""
    path.with_suffix(".raw").write_bytes(lines.astype("<u2").tobytes())
    path.with_suffix(".hdr").write_text(
        f"ENVI\nsamples = {SAMPLES}\nlines = {len(lines)}\nbands = {BANDS}\ndata type = 12\ninterleave = bil\n"
        "header offset = 0\nbyte order = 0\n"
    )


def test_reflectance_of_dark_white_and_bad_pixels(tmp_path: Path) -> None:
    dark = 100 + noise((20, BANDS, SAMPLES)) % 8
    white = 3000 + noise((30, BANDS, SAMPLES))[::-1] % 64
    bad = np.zeros((BANDS, SAMPLES))
    bad[3, 4] = bad[:, 9] = 1
    write_recording(tmp_path / "dark", dark)
    write_recording(tmp_path / "white", white)
    np.save(tmp_path / "bad.npy", bad)
    asked = {
        "output": "reflectance", "dark": "dark.hdr", "white": "white.hdr", "panel_reflectance": 0.98,
        "bad_pixels": "bad.npy", "saturation": 4095,
    }  # fmt: skip
    made = load_radiometry(asked, LineFormat(BANDS, SAMPLES, np.dtype("u2"), scale=4095.0), tmp_path)
    raw = (500 + noise((BANDS, SAMPLES)) % 2000).astype(np.uint16)
    out = np.full(raw.shape, np.nan, np.float32)
    made.apply_line(raw, out)

    level = dark.mean(axis=0)
    expected = (raw - level) / (white.mean(axis=0) - level) * 0.98
    assert made.bad is not None
    np.testing.assert_array_equal(made.bad, bad > 0)
    good = bad == 0
    np.testing.assert_allclose(out[good], expected[good], rtol=EXACT, atol=1e-7)
    assert np.isfinite(out).all()
    # Between its neighbours along the line, where the whole column is bad: docs/radiometry.md.
    between = (expected[:, 8] + expected[:, 10]) / 2
    np.testing.assert_allclose(out[:, 9], between, rtol=EXACT, atol=1e-7)
