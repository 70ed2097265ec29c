"""The damages of `calibration.degradations` for batches on any device; tests hold each to its definition there.

Each is a function `(cubes [B, bands, lines, samples], rng, fields, strength) -> cubes`. Severities are drawn from
`rng`, a NumPy generator, one for each cube; fields of random numbers from `fields`, a generator of the device.
`strength`, 0 to 1, weakens the severities that training usually has.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.degradations import (
    BANDLOSS_RATES,
    BICUBIC_A,
    BLUR_SIZES,
    FAINT_SIGMAS,
    INPAINT_RATES,
    LONG_AXES,
    MOTION_LENGTH,
    NOISE_SIGMAS,
    POISSON_PEAK,
    SHORT_AXES,
    SR_FACTORS,
    elliptic_kernel,
    gaussian_kernel,
    motion_kernel,
)

Damage = Callable[[Tensor, np.random.Generator, torch.Generator, float], Tensor]


def noise(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    return _noisy(cubes, strength * rng.uniform(*NOISE_SIGMAS, len(cubes)), fields)


def faint(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    sigmas = strength * np.exp(rng.uniform(*np.log(FAINT_SIGMAS), cubes.shape[:2])).astype(np.float32)
    return cubes + sent(sigmas, cubes.device)[:, :, None, None] * _normal(tuple(cubes.shape), fields)


def blur(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    sizes = rng.choice(BLUR_SIZES, len(cubes))
    kernels = [gaussian_kernel(int(strength * (size - 1) / 2) * 2 + 1) for size in sizes]
    return _filtered(cubes, [np.outer(k, k) for k in kernels])


def sr(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    factors = np.maximum(2, np.round(strength * rng.choice(SR_FACTORS, len(cubes)))).astype(int)
    return torch.stack([_coarse(cube, int(factor)) for cube, factor in zip(cubes, factors, strict=True)])


def inpaint(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    rates = _each(cubes, strength * rng.choice(INPAINT_RATES, len(cubes)))
    return cubes * (_uniform(cubes.shape, fields) >= rates)


def bandloss(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    return _without_bands(cubes, strength * rng.choice(BANDLOSS_RATES, len(cubes)), rng)


def poisson(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    peak = POISSON_PEAK / max(strength, 1e-3)
    return torch.poisson(cubes.clamp(min=0) * peak, fields) / peak


def motionblur(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    length = max(1, round(strength * MOTION_LENGTH))
    return _filtered(cubes, [motion_kernel(length, angle) for angle in rng.uniform(0, 180, len(cubes))])


def stripes(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    return _striped(cubes, 0.05 * strength, 0.03 * strength, fields)


def deadlines(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    return _with_dead_columns(cubes, 0.3 * strength, 0.05 * strength, rng)


def mixed(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    worn = _noisy(cubes, strength * rng.uniform(10 / 255, 30 / 255, len(cubes)), fields)
    worn = _with_dead_columns(_striped(worn, 0.03 * strength, 0.02 * strength, fields), 0.2, 0.03, rng)
    return _without_bands(worn, np.full(len(cubes), 0.1), rng)


def astigmatism(cubes: Tensor, rng: np.random.Generator, fields: torch.Generator, strength: float) -> Tensor:
    drawn = [rng.uniform(*limits, len(cubes)) for limits in (LONG_AXES, SHORT_AXES, (0, 180))]
    shapes = zip(*drawn, strict=True)
    return _filtered(
        cubes, [elliptic_kernel(strength * long, strength * short, angle) for long, short, angle in shapes]
    )


DAMAGES: Mapping[str, Damage] = MappingProxyType(
    {
        f.__name__: f
        for f in (
            noise,
            blur,
            sr,
            inpaint,
            bandloss,
            poisson,
            motionblur,
            stripes,
            deadlines,
            mixed,
            astigmatism,
            faint,
        )
    }
)


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, which is not waited for."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _each(cubes: Tensor, values: np.ndarray) -> Tensor:
    """A number for each cube, [B, 1, 1, 1]."""
    return sent(values.astype(np.float32), cubes.device)[:, None, None, None]


def _uniform(shape: torch.Size, fields: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=fields, device=fields.device)


def _normal(shape: tuple[int, ...], fields: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=fields, device=fields.device)


def _noisy(cubes: Tensor, sigmas: np.ndarray, fields: torch.Generator) -> Tensor:
    return cubes + _each(cubes, sigmas) * _normal(tuple(cubes.shape), fields)


def _filtered(cubes: Tensor, kernels: list[np.ndarray]) -> Tensor:
    """Every band of cube i correlated with kernel i (odd sides), borders reflected about the edge pixel."""
    batch, bands, lines, samples = cubes.shape
    side = max(len(kernel) for kernel in kernels)
    padded = [np.pad(kernel, (side - len(kernel)) // 2) for kernel in kernels]
    weight = sent(np.stack(padded).astype(np.float32), cubes.device)[:, None]
    framed = F.pad(cubes, (side // 2,) * 4, mode="reflect").transpose(0, 1)
    return F.conv2d(framed, weight, groups=batch).transpose(0, 1).reshape(batch, bands, lines, samples)


def _coarse(cube: Tensor, factor: int) -> Tensor:
    lines, samples = cube.shape[-2:]
    size = (max(1, lines // factor), max(1, samples // factor))
    assert BICUBIC_A == -0.75, "what torch's bicubic has"
    small = F.interpolate(cube[None], size, mode="bicubic", align_corners=True)[0]
    line, sample = (
        torch.arange(full, device=cube.device) * few // full for full, few in zip((lines, samples), size, strict=True)
    )
    return small[:, line][:, :, sample]


def _without_bands(cubes: Tensor, rates: np.ndarray, rng: np.random.Generator) -> Tensor:
    batch, bands = cubes.shape[:2]
    kept = np.ones((batch, bands), np.float32)
    for row, rate in zip(kept, rates, strict=True):
        row[rng.choice(bands, max(1, round(rate * bands)), replace=False)] = 0
    return cubes * sent(kept, cubes.device)[:, :, None, None]


def _striped(cubes: Tensor, gain: float, offset: float, fields: torch.Generator) -> Tensor:
    batch, bands, _, samples = cubes.shape
    gains, offsets = _normal((2, batch, bands, 1, samples), fields)
    return cubes * (1 + gain * gains) + offset * offsets


def _with_dead_columns(cubes: Tensor, bands: float, samples: float, rng: np.random.Generator) -> Tensor:
    batch, count, _, width = cubes.shape
    stuck = np.full((batch, count, 1, width), np.nan, np.float32)
    dead = max(1, round(samples * width))
    for cube in stuck:
        for band in rng.choice(count, max(1, round(bands * count)), replace=False):
            cube[band, 0, rng.choice(width, dead, replace=False)] = rng.random(dead) * (rng.random(dead) < 0.5)
    values = sent(stuck, cubes.device)
    return torch.where(values.isnan(), cubes, values)
