"""Cubes that are the same to the bit on every computer: whole numbers, divided once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]
TOP = 60000
"""The largest value; 65535 stands for 1.0."""


def scene(bands: int, lines: int, samples: int) -> Whole:
    """Three materials on folded maps, [bands, lines, samples] from 0 to `TOP`."""
    band, line, sample = np.arange(bands)[:, None, None], np.arange(lines)[:, None], np.arange(samples)
    made = np.zeros((bands, lines, samples), np.int64)
    for material in range(1, 4):
        fold = np.abs((line * (2 * material + 1) + sample * (7 - material)) % (64 * material) - 32 * material)
        spectrum = 4 * bands**2 - (2 * band - material * bands // 2) ** 2
        made += fold * spectrum + (line * sample // (16 * material)) % 32 * bands**2
    return made * TOP // int(made.max())


def noise(shape: tuple[int, ...]) -> Whole:
    """Whole numbers of 16 bits that look random."""
    mixed = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(48)).astype(np.int64).reshape(shape)


def blurred(cube: Whole) -> Whole:
    """Means of 5x5, of what lies inside alone."""
    out = cube[:, :-4] + cube[:, 1:-3] + cube[:, 2:-2] + cube[:, 3:-1] + cube[:, 4:]
    return (out[..., :-4] + out[..., 1:-3] + out[..., 2:-2] + out[..., 3:-1] + out[..., 4:]) // 25


def unit(cube: Whole) -> NDArray[np.float32]:
    """In the unit range: float32 of one correctly rounded division."""
    return (cube.astype(np.float32) / np.float32(65535)).astype(np.float32)


def measured_cubes() -> Mapping[str, NDArray[np.float32]]:
    """Of many kinds and sizes, for the metrics."""
    clean = scene(31, 64, 64)
    random = noise(clean.shape)
    wide = scene(31, 72, 128)
    lost = clean.copy()
    lost[3::7] = 0
    whole: dict[str, Any] = {
        "clean": clean,
        "noisy": np.clip(clean + (random - 32768) // 5, 0, 65535),
        "holes": np.where(random % 4 == 0, 0, clean),
        "bands lost": lost,
        "blurred": blurred(scene(31, 68, 68)),
        "wide": wide + noise(wide.shape) // 64,
        "odd": scene(7, 33, 47) + noise((7, 33, 47)) // 16,
    }
    return {name: unit(cube) for name, cube in whole.items()}
