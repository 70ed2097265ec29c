"""The prompt metrics in torch, for batches on a GPU and as a graph of their own; `runtime.metrics` defines them.

Transforms are products with the matrices of the DFT, since neither TensorRT before 11.2 nor ONNX Runtime's CUDA has an
FFT. Everything is float32; `runtime.prompts.TOLERANCES` says how far that is from NumPy, which sums in float64.
"""

import numpy as np
import torch
from torch import Tensor, nn

from runtime.errors import InputError
from runtime.metrics import GUARD, LOG_FLOOR, LOGARITHMS, METRIC_SETS
from runtime.prompts import TOLERANCES


class PromptMetrics(nn.Module):
    """`forward(cube [B, bands, lines, samples]) -> metrics [B, M]`, float32, for one size of cube.

    Raises:
        InputError: a metric of the set cannot be computed here.
    """

    def __init__(self, metric_set: str, bands: int, lines: int, samples: int) -> None:
        super().__init__()
        self.names = METRIC_SETS[metric_set]
        missing = [name for name in self.names if name not in TOLERANCES]
        if missing:
            raise InputError(
                "a metric of the set is computed in NumPy alone", key="metric_set", value=metric_set,
                remedy=f"{missing[0]} is; leave the metrics to the host",
            )  # fmt: skip
        if bands < 3:
            raise InputError("has too few bands for curvature", key="bands", value=bands, remedy="three or more")
        self.pixels = lines * samples
        window = np.outer(np.hanning(lines), np.hanning(samples))
        kx, ky = np.arange(samples // 2 + 1), np.arange(lines)
        across, down = (_dft(n, k) for n, k in ((samples, kx), (lines, ky)))
        twice = np.where((kx > 0) & (2 * kx != samples), 2.0, 1.0)
        radius = min(lines // 2, samples // 2) // 3
        far = (np.minimum(ky, lines - ky)[:, None] ** 2 + kx[None] ** 2 > radius**2) * twice
        # A band's mean is taken away before the transform and its part added after: what is left has small numbers.
        of_window = down.T @ window @ across
        for name, value in {
            "window": window, "across": np.concatenate([across.real, across.imag], 1), "far": far,
            "down": np.concatenate([down.real, down.imag], 1).T, "twice": twice / self.pixels,
            "of_window": np.stack([of_window.real, of_window.imag]),
        }.items():  # fmt: skip
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value)).float(), persistent=False)

    def forward(self, cube: Tensor) -> Tensor:
        with torch.autocast(cube.device.type, enabled=False):
            x = cube.float()
            mean = _mean(x, keepdim=True)
            centred = x - mean
            values = {**_curvature(x), **_gradients(x), **_correlation(centred), **self._spectrum(centred, mean)}
        for name, (metric, offset, factor) in LOGARITHMS.items():
            small = values["adjacent_decorrelation"] if factor < 0 else offset + factor * values[metric]
            values[name] = torch.log10(small.clamp(min=LOG_FLOOR))
        return torch.stack([values[name] for name in self.names], dim=1)

    def _spectrum(self, centred: Tensor, mean: Tensor) -> dict[str, Tensor]:
        half = self.twice.numel()
        rows = (centred * self.window) @ self.across
        columns = self.down @ rows
        lines = columns.shape[2] // 2
        top, bottom = columns[:, :, :lines], columns[:, :, lines:]
        real = top[..., :half] - bottom[..., half:] + mean * self.of_window[0]
        imaginary = top[..., half:] + bottom[..., :half] + mean * self.of_window[1]
        power = real * real + imaginary * imaginary
        energy = _sum(power * self.twice) * self.pixels
        # clamp survives the exporter's optimiser, an added guard of 1e-8 would not; above it they are the same number.
        ratio = _sum(power * self.far) / energy.clamp(min=GUARD)
        amplitude = power.sqrt().clamp(min=GUARD)
        flat = _sum(amplitude.log() * self.twice).exp() / _sum(amplitude * self.twice)
        return {"high_frequency_ratio": ratio.mean(1), "spectral_flatness": flat.mean(1)}


def _dft(n: int, k: np.ndarray) -> np.ndarray:
    """[n, len(k)] of exp(-2 pi i jk / n); whole turns are taken off before they are rounded."""
    return np.exp(-2j * np.pi * (np.outer(np.arange(n), k) % n) / n)


def _sum(x: Tensor, *, keepdim: bool = False) -> Tensor:
    """Over lines and samples, [B, bands]. One after the other: ONNX Runtime loses digits where it adds all at once."""
    return x.sum(dim=3, keepdim=keepdim).sum(dim=2, keepdim=keepdim)


def _mean(x: Tensor, *, keepdim: bool = False) -> Tensor:
    return _sum(x, keepdim=keepdim) / (x.shape[2] * x.shape[3])


def _curvature(x: Tensor) -> dict[str, Tensor]:
    d = x[:, 2:] + x[:, :-2] - x[:, 1:-1] - x[:, 1:-1]
    values = {"curvature_mean": _mean(d.abs()).mean(dim=1)}
    centred = d - d.mean(dim=1, keepdim=True)
    variance = (centred * centred).sum(dim=1, keepdim=True) / max(1, d.shape[1] - 1)
    return {**values, "curvature_std": _mean(variance.sqrt())[:, 0]}


def _correlation(centred: Tensor) -> dict[str, Tensor]:
    """Of neighbouring bands; 1 - r from the difference of unit spectra, which keeps its digits where r is nearly 1."""
    # A mean is rounded, and what it leaves of constant bands would correlate.
    centred = centred - _mean(centred, keepdim=True)
    squares = _sum(centred * centred, keepdim=True)
    unit = centred / squares.clamp(min=GUARD).sqrt()
    length = (squares / squares.clamp(min=GUARD))[..., 0, 0]
    apart = _sum((unit[:, 1:] - unit[:, :-1]).square())
    less = 1 - (length[:, 1:] + length[:, :-1]) / 2 + apart / 2
    decorrelation = less.mean(1)
    return {"adjacent_correlation_mean": 1 - decorrelation, "adjacent_decorrelation": decorrelation}


def _gradients(x: Tensor) -> dict[str, Tensor]:
    # Zeros taken from what is there: in a graph, an operator that makes them could make anything (`onnx_guard`).
    line = 0 * x[:, :, :1]
    tall = torch.cat([line, x, line], dim=2)
    sample = 0 * tall[..., :1]
    padded = torch.cat([sample, tall, sample], dim=3)
    smooth = padded[:, :, :-2] + padded[:, :, 2:] + 2 * padded[:, :, 1:-1]
    slope = padded[:, :, 2:] - padded[:, :, :-2]
    gx = smooth[..., 2:] - smooth[..., :-2]
    gy = slope[..., :-2] + slope[..., 2:] + 2 * slope[..., 1:-1]
    magnitude = (gx * gx + gy * gy).sqrt()
    mean = _mean(magnitude, keepdim=True)
    squares = _sum((magnitude - mean).square())
    pixels = max(1, magnitude.shape[2] * magnitude.shape[3] - 1)
    return {"gradient_mean": mean[..., 0, 0].mean(1), "gradient_std": (squares / pixels).sqrt().mean(1)}
