"""Smile and keystone: detector images put straight by linear interpolation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools, Float32
from runtime.radiometry.bad_pixels import Doubles, Indices, of_weight

PIECE = 1 << 15
"""Elements that are gathered at once; a few such pieces fit into a core's second-level cache."""


class Resampling:
    """Every element of a line as a weighted sum of two elements, or of four where smile and keystone are given.

    What belongs at band b and sample s lies at band b + smile[b, s] and sample s + keystone[b, s] of the detector;
    beyond its edge the edge is repeated. It owns its scratch: one thread at a time.

    Attributes:
        sources: [k, bands * samples], flat indices, all of weight.
        weights: float32, the same shape.
    """

    def __init__(self, shape: tuple[int, int], smile: Doubles | None, keystone: Doubles | None) -> None:
        bands, samples = shape
        band = np.arange(bands)[:, None] + np.broadcast_to(0.0 if smile is None else smile, shape)
        sample = np.arange(samples)[None] + np.broadcast_to(0.0 if keystone is None else keystone, shape)
        band_low, band_share = _cell(band, bands)
        sample_low, sample_share = _cell(sample, samples)
        sources, weights = [], []
        for down in (0, 1) if smile is not None else (0,):
            for right in (0, 1) if keystone is not None else (0,):
                row, column = np.minimum(band_low + down, bands - 1), np.minimum(sample_low + right, samples - 1)
                sources.append((row * samples + column).ravel())
                weight = (band_share if down else 1 - band_share) * (sample_share if right else 1 - sample_share)
                weights.append(weight.ravel())
        self.weights: Float32 = np.array(weights, np.float32)
        self.sources: Indices = of_weight(np.array(sources, np.intp), self.weights)
        self._samples = samples
        self._step = max(1, PIECE // samples) * samples
        self._sum: Float32 = np.empty(min(self._step, bands * samples), np.float32)
        self._part: Float32 = np.empty_like(self._sum)

    def apply(self, line: Float32, out: Float32) -> None:
        """Put `line` straight into `out`, both [bands, samples]; `line` C-contiguous and not `out`."""
        flat = line.reshape(-1)
        for first in range(0, flat.size, self._step):
            piece = slice(first, min(first + self._step, flat.size))
            count = piece.stop - first
            total, part = self._sum[:count], self._part[:count]
            # Any mode but `clip` has NumPy copy `out` first; all indices are within the line.
            np.take(flat, self.sources[0, piece], out=total, mode="clip")
            np.multiply(total, self.weights[0, piece], out=total)
            for indices, weights in zip(self.sources[1:], self.weights[1:], strict=True):
                np.take(flat, indices[piece], out=part, mode="clip")
                np.multiply(part, weights[piece], out=part)
                np.add(total, part, out=total)
            rows = slice(first // self._samples, piece.stop // self._samples)
            np.copyto(out[rows], total.reshape(-1, self._samples))

    def touched(self, marked: Bools) -> Bools:
        """Which elements of the result draw on one that is marked in the line; [bands, samples], a new array."""
        result: Bools = np.asarray(marked.reshape(-1)[self.sources].any(axis=0)).reshape(marked.shape)
        return result

    def needed(self, wanted: Bools) -> Bools:
        """Which elements of the line the `wanted` ones of the result draw on; [bands, samples], a new array."""
        result: Bools = np.zeros(wanted.shape, np.bool_)
        result.reshape(-1)[self.sources[:, wanted.reshape(-1)]] = True
        return result


def _cell(position: NDArray[Any], length: int) -> tuple[Indices, Doubles]:
    """The whole number below each position, and how far it is above that; clamped to the detector."""
    clamped = position.clip(0, length - 1)
    low = np.floor(clamped).astype(np.intp)
    return low, clamped - low
