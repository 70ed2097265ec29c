"""Inputs and weights of the snapshot-spectrometer golden vectors, rebuilt from seeds.

`state(shapes)` extends `golden_state.golden_state`: with the same n of each key,

  *.rescale                  4 + n                      (temperatures of MST's attention)
  *.pr_prelu.weight          0.25 + 0.1 n               (slopes of BiSRNet's PReLU)
  *.move0.k                  1 + 0.1 n
  *.move0.b                  0.05 n
  *.beta                     1 + 0.1 n
  to_q, to_k, to_v, proj and every other key: as in golden_state
"""

import zlib

import numpy as np

from tests.golden.golden_state import golden_state

BANDS = 28
STEP = 2


def state(shapes):
    """{key: shape} -> {key: float32 array}, for the networks of `cassi.md`."""
    out = golden_state(shapes)
    for key, shape in shapes.items():
        n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        last = key.rsplit(".", 1)[-1]
        if last == "rescale":
            out[key] = (4 + n).astype(np.float32)
        elif key.endswith("pr_prelu.weight"):
            out[key] = (0.25 + 0.1 * n).astype(np.float32)
        elif last in ("k", "beta"):
            out[key] = (1 + 0.1 * n).astype(np.float32)
        elif last == "b":
            out[key] = (0.05 * n).astype(np.float32)
    return out


def mask(seed, lines, samples, grey=False):
    """Coded aperture, float32 [lines, samples]: open or shut with even odds; `grey` leaks, as a real one does."""
    rng = np.random.default_rng(seed)
    opened = (rng.random((lines, samples)) < 0.5).astype(np.float64)
    if grey:
        opened = 0.02 + 0.93 * opened + 0.05 * rng.random((lines, samples))
    return opened.astype(np.float32)


def measure(cube, aperture):
    """Measurement, float32 [lines, samples + 54], of a cube [28, lines, samples]: coded, dispersed, and added up."""
    bands, lines, samples = cube.shape
    out = np.zeros((lines, samples + (bands - 1) * STEP), np.float32)
    for band in range(bands):
        out[:, STEP * band : STEP * band + samples] += aperture * cube[band]
    return out / np.float32(bands) * np.float32(2)


def shift_back(measurement, bands=BANDS):
    """The networks' input H, float32 [bands, lines, samples]: band i is the measurement from column 2 i on."""
    samples = measurement.shape[1] - (bands - 1) * STEP
    return np.stack([measurement[:, STEP * i : STEP * i + samples] for i in range(bands)])


def shifted(aperture, bands=BANDS):
    """Phi, float32 [bands, lines, samples + 54]: the mask of each band where its light falls on the detector."""
    lines, samples = aperture.shape
    out = np.zeros((bands, lines, samples + (bands - 1) * STEP), np.float32)
    for band in range(bands):
        out[band, :, STEP * band : STEP * band + samples] = aperture
    return out
