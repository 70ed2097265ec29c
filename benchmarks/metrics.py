"""Prompt metrics against the same fifteen written straight down in PyTorch: `python -m benchmarks.metrics`.

Both run on two threads (`--threads`) in one process, in turns; on a busy computer `--threads 1` compares them more
fairly, since PyTorch's threads wait for each other. The bars are against all fifteen in PyTorch, which is what the
public reference computes; the six of `paper6` are compared with the six alone too. Exit code 1 when a bar is missed or
the values disagree.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

import runtime.metrics
from runtime.metrics import prompt_metrics

from .timing import compare, extra_memory, show, table

SHAPE = (31, 448, 448)
BARS = {"reference15": 3.0, "paper6": 6.0}
AGREEMENT = 1e-4
GUARD = 1e-8


def torch_metrics(x: Tensor) -> Tensor:
    """The fifteen metrics of a cube [C, H, W], one line of PyTorch per line of their definition; all pixels."""
    return torch.stack([*_curvature(x), *_correlation(x), *_spectrum(x), *_gradients(x)])


def torch_six(x: Tensor) -> Tensor:
    """The six metrics of `paper6`, as `torch_metrics` but without what they do not need."""
    d = torch.diff(x.flatten(1).T, n=2, dim=1)
    adjacent = _correlation_matrix(x).diagonal(1).mean()
    deviation = torch.hypot(*_sobel(x)).std((1, 2)).mean()
    return torch.stack([*_spectrum(x), d.abs().mean(1).mean(), d.std(1).mean(), deviation, adjacent])


def _curvature(x: Tensor) -> tuple[Tensor, ...]:
    spectra = x.flatten(1).T
    d = torch.diff(spectra, n=2, dim=1)
    return d.abs().mean(1).mean(), d.std(1).mean(), d.abs().amax(1).mean()


def _correlation_matrix(x: Tensor) -> Tensor:
    centred = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
    norms = (centred**2).sum(1).clamp(min=GUARD).sqrt()
    return torch.nan_to_num((centred @ centred.T) / torch.outer(norms, norms), 0, 0, 0).fill_diagonal_(1)


def _correlation(x: Tensor) -> tuple[Tensor, ...]:
    r = _correlation_matrix(x)
    adjacent = r.diagonal(1)
    singular = torch.linalg.svdvals(r).clamp(min=GUARD)
    p = singular / singular.sum()
    rank = torch.exp(-(p * torch.log(p + GUARD)).sum())
    return adjacent.mean(), adjacent.std(correction=0), r.mean(), r.std(correction=0), rank


def _spectrum(x: Tensor) -> tuple[Tensor, ...]:
    height, width = x.shape[1:]
    window = torch.outer(torch.hann_window(height, periodic=False), torch.hann_window(width, periodic=False))
    f = torch.fft.fftshift(torch.fft.fft2(x * window), dim=(1, 2)).abs()
    line, sample = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = torch.hypot((line - height // 2).float(), (sample - width // 2).float())
    far = distance > min(height // 2, width // 2) // 3
    power = f**2
    ratio = (power * far).sum((1, 2)) / (power.sum((1, 2)) + GUARD)
    m = f + GUARD
    return ratio.mean(), (m.log().mean((1, 2)).exp() / m.mean((1, 2))).mean()


def _sobel(x: Tensor) -> tuple[Tensor, Tensor]:
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gx = F.conv2d(x[:, None], kernel[None, None], padding=1)[:, 0]
    gy = F.conv2d(x[:, None], kernel.T[None, None], padding=1)[:, 0]
    return gx, gy


def _gradients(x: Tensor) -> tuple[Tensor, ...]:
    gx, gy = _sobel(x)
    magnitude, angle = torch.sqrt(gx**2 + gy**2), torch.atan2(gy, gx)
    mean, deviation = magnitude.mean((1, 2)), magnitude.std((1, 2))
    share = (magnitude > (mean + deviation)[:, None, None]).float().mean((1, 2))
    return mean.mean(), deviation.mean(), magnitude.amax((1, 2)).mean(), share.mean(), angle.std((1, 2)).mean()


def cube(seed: int = 0) -> np.ndarray:
    """A noisy cube with structure at every scale, float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    field = sum(s * gaussian_filter(rng.standard_normal(SHAPE, np.float32), (2, s, s)) for s in (1, 4, 16))
    field = field / (8 * field.std()) + 0.5 + 0.02 * rng.standard_normal(SHAPE, np.float32)
    return np.clip(field, 0, 1).astype(np.float32)


def main() -> int:
    """Compare and print; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    runtime.metrics._threads = lambda: threads
    # The first square root of a process was seen to be inexact on two threads.
    torch.sqrt(torch.rand(1))
    x = cube()
    tensor = torch.from_numpy(x)

    worst = max(
        np.abs(prompt_metrics(x, name) / torched(tensor).numpy() - 1).max()
        for name, torched in (("reference15", torch_metrics), ("paper6", torch_six))
    )
    show(f"largest relative difference {worst:.1e}; {AGREEMENT:g} is allowed")
    if worst > AGREEMENT:
        return 1

    comparisons = [
        compare(what, lambda t=torched: t(tensor), lambda name=name: prompt_metrics(x, name), bar=bar)
        for what, torched, name, bar in (
            ("15 against 15", torch_metrics, "reference15", BARS["reference15"]),
            ("15 against 6", torch_metrics, "paper6", BARS["paper6"]),
            ("6 against 6", torch_six, "paper6", None),
        )
    ]
    title = f"metrics of {' x '.join(map(str, SHAPE))} on {threads} thread{'s' * (threads > 1)}"
    show(table(title, comparisons, "PyTorch", "NumPy"))
    for name in BARS:
        extra = extra_memory(lambda name=name: prompt_metrics(x, name)) / x.nbytes
        show(f"{name}: at most {extra:.2f} times the cube of extra memory")
    return 0 if all(c.passed for c in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
