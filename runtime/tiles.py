"""Cutting a cube into frames of the engine's size and joining what comes back without seams."""

from dataclasses import dataclass

import numpy as np

from .arrays import Float32
from .signature import Signature


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


def shares(length: int, piece: int, overlap: int) -> tuple[tuple[int, Float32], ...]:
    """Of every piece of `starts`: its first position and blending shares [its length], which rise and fall as `ramp`.

    The shares that the pieces have in a position add up to 1.
    """
    first = starts(length, piece, overlap)
    weights = ramp(min(piece, length), overlap if len(first) > 1 else 0)
    total = np.zeros(length, np.float32)
    for start in first:
        total[start : start + len(weights)] += weights
    return tuple((start, weights / total[start : start + len(weights)]) for start in first)


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

    def shares(self) -> tuple[Float32, ...]:
        """Blending shares [lines, samples] of all tiles, in their order; in every pixel they add up to 1."""
        lines, samples = (shares(c, f, self.overlap) for c, f in zip(self.cube, self.frame, strict=True))
        return tuple(np.outer(line, sample) for _, line in lines for _, sample in samples)


@dataclass(frozen=True)
class FramePlan:
    """The frames in which a cube is restored; what comes back is added up, times its shares of the tile and the group.

    Attributes:
        tiles: places of frames, and their shares [lines, samples] of what is restored.
        groups: first bands of groups, which overlap by a quarter at least, and their shares [restored bands, 1, 1].
    """

    tiling: Tiling
    tiles: tuple[tuple[Tile, Float32], ...]
    groups: tuple[tuple[int, Float32], ...]

    @property
    def runs(self) -> int:
        """Runs of the engine."""
        return len(self.groups) * len(self.tiles)


def frame_plan(shape: tuple[int, ...], signature: Signature, overlap: int) -> FramePlan:
    """How a network restores a cube [bands, lines, samples] that it can take, tiles sharing at least `overlap`."""
    measured, restored = signature.measured, signature.restored
    tiling = Tiling((shape[1], shape[2]), measured.size, overlap)
    groups = shares(shape[0], measured.bands, measured.bands // 4)
    if len(groups) == 1:
        # Whose restored bands may be others than the measured ones.
        groups = ((0, np.ones(restored.bands, np.float32)),)
    blended = tiling.shares() if signature.tiling == "free" else (np.ones(restored.size, np.float32),)
    return FramePlan(
        tiling,
        tuple(zip(tiling.tiles(), blended, strict=True)),
        tuple((start, share[:, None, None]) for start, share in groups),
    )
