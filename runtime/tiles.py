"""Cutting a cube into frames of the engine's size and joining what comes back without seams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def starts(length: int, piece: int, overlap: int) -> tuple[int, ...]:
    """First positions of pieces of `piece` that cover `length`, evenly spread, sharing at least `overlap`.

    One piece where `length` is not longer than `piece`.
    """
    if length <= piece:
        return (0,)
    count = -(-(length - overlap) // (piece - overlap))
    return tuple(int(s) for s in np.round(np.linspace(0, length - piece, max(2, count))))


def ramp(piece: int, overlap: int) -> Float32:
    """Weights [piece] that rise as sin^2 over `overlap` at both ends, positive everywhere."""
    if overlap == 0:
        return np.ones(piece, np.float32)
    edge = np.sin(0.5 * np.pi * (np.arange(min(overlap, piece)) + 0.5) / overlap) ** 2
    weights = np.ones(piece)
    weights[: len(edge)] *= edge
    weights[piece - len(edge) :] *= edge[::-1]
    return weights.astype(np.float32)


@dataclass(frozen=True)
class Tile:
    """Place of a frame in a cube; lines and samples stop at the cube's edge, the frame is padded beyond it."""

    line: int
    sample: int
    lines: int
    samples: int


@dataclass(frozen=True)
class Tiling:
    """How cubes of one size are cut into frames.

    Attributes:
        cube: lines and samples of the cube.
        frame: lines and samples of the engine's frame.
        overlap: lines and samples that neighbours share at least.
    """

    cube: tuple[int, int]
    frame: tuple[int, int]
    overlap: int

    def tiles(self) -> tuple[Tile, ...]:
        """All tiles, line-major."""
        (lines, samples), (height, width) = self.cube, self.frame
        return tuple(
            Tile(line, sample, min(height, lines), min(width, samples))
            for line in starts(lines, height, self.overlap)
            for sample in starts(samples, width, self.overlap)
        )

    def cut(self, cube: Float32, tile: Tile) -> Float32:
        """Frame [1, bands, *frame] of a tile, reflected at the cube's edge where the cube is smaller than the frame."""
        part = cube[:, tile.line : tile.line + tile.lines, tile.sample : tile.sample + tile.samples]
        missing = (self.frame[0] - tile.lines, self.frame[1] - tile.samples)
        if any(missing):
            part = np.pad(part, ((0, 0), (0, missing[0]), (0, missing[1])), mode="reflect")
        return np.ascontiguousarray(part[None], np.float32)

    def weights(self, tile: Tile) -> Float32:
        """Blending weights [lines, samples] of a tile; those of all tiles are to be divided by their sum."""
        line = ramp(tile.lines, self.overlap if self.cube[0] > self.frame[0] else 0)
        sample = ramp(tile.samples, self.overlap if self.cube[1] > self.frame[1] else 0)
        return np.outer(line, sample)


@dataclass(frozen=True)
class BandGroup:
    """Bands `start` to `start + len(weights)` of a cube and their blending weights."""

    start: int
    weights: Float32


def band_groups(cube_bands: int, network_bands: int) -> Iterator[BandGroup]:
    """Groups of `network_bands` that cover a cube, overlapping by a quarter at least."""
    overlap = 0 if cube_bands == network_bands else network_bands // 4
    for start in starts(cube_bands, network_bands, overlap):
        yield BandGroup(start, ramp(network_bands, overlap))
