"""Prompt metrics of a cube in NumPy: the numbers that tell DAMP how a cube is degraded.

Definitions follow the public DAMP reference (arXiv 2512.20251): spectral curvature, band correlation, energy and
flatness of the windowed spectrum, Sobel gradients. All arithmetic is float32 with sums that do not lose digits; the
spectral flatness of a strongly blurred cube is limited by float32 rounding in the reference too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import Float32
from .errors import CubeError
from .machine import available_cores

MetricSet = Literal["reference15", "paper6", "log6"]

METRICS: tuple[str, ...] = (
    "curvature_mean",
    "curvature_std",
    "curvature_max",
    "adjacent_correlation_mean",
    "adjacent_correlation_std",
    "correlation_mean",
    "correlation_std",
    "effective_rank",
    "high_frequency_ratio",
    "spectral_flatness",
    "gradient_mean",
    "gradient_std",
    "gradient_max",
    "strong_gradient_share",
    "orientation_std",
)
METRIC_SETS: Mapping[str, tuple[str, ...]] = {
    "reference15": METRICS,
    "paper6": (
        "high_frequency_ratio",
        "spectral_flatness",
        "curvature_mean",
        "curvature_std",
        "gradient_std",
        "adjacent_correlation_mean",
    ),
    "log6": (
        "high_frequency_ratio_log",
        "spectral_flatness_log",
        "curvature_mean_log",
        "curvature_std_log",
        "gradient_std_log",
        "adjacent_decorrelation_log",
    ),
}
LOG_FLOOR = 1e-6
LOGARITHMS: Mapping[str, tuple[str, float, float]] = {
    "high_frequency_ratio_log": ("high_frequency_ratio", 0, 1),
    "spectral_flatness_log": ("spectral_flatness", 0, 1),
    "curvature_mean_log": ("curvature_mean", 0, 1),
    "curvature_std_log": ("curvature_std", 0, 1),
    "gradient_std_log": ("gradient_std", 0, 1),
    "adjacent_decorrelation_log": ("adjacent_correlation_mean", 1, -1),
}
"""Metric -> (m, a, b): it is log10(a + b m), not below log10(LOG_FLOOR), for metrics that span decades."""

GUARD = 1e-8
BLOCK_PIXELS = 8192
"""Pixels worked on at a time, so that all bands of a block stay in a core's cache."""
TILE_BANDS, TILE_PIXELS = 32, 128
"""Size of a matrix product: below what makes OpenBLAS start threads, whose waiting costs seconds on a busy computer."""


def raw_metrics(cube: ArrayLike, sample_index: ArrayLike | None = None) -> Float32:
    """The fifteen metrics of the reference, in its order (`METRICS`).

    Args:
        cube: [bands, lines, samples], floating point, finite, nominally in [0, 1].
        sample_index: flat line-major positions [n] or [1, n] whose spectra give the curvature metrics; all pixels
            when None, which is the expectation of the reference's random choice.

    Returns:
        float32 [15]. Metrics that a tiny cube leaves undefined (curvature below 3 bands, a deviation of one value,
        correlation of one band with its neighbour) are 0.

    Raises:
        CubeError: not three-dimensional, empty, integer, not finite, or a position out of range.
    """
    return prompt_metrics(cube, "reference15", sample_index)


def prompt_metrics(cube: ArrayLike, metric_set: str, sample_index: ArrayLike | None = None) -> Float32:
    """The metrics of a named set, computing only what the set needs.

    Args:
        cube: as for `raw_metrics`.
        metric_set: a key of `METRIC_SETS`.
        sample_index: as for `raw_metrics`.

    Returns:
        float32 [M], in the order of `METRIC_SETS[metric_set]`.

    Raises:
        CubeError: as `raw_metrics`, or an unknown set.
    """
    if metric_set not in METRIC_SETS:
        raise CubeError(
            "unknown metric set", key="metric_set", value=metric_set, remedy=f"one of {', '.join(METRIC_SETS)}"
        )
    names = METRIC_SETS[metric_set]
    x = _checked(cube)
    positions = _checked_positions(sample_index, x.shape[1] * x.shape[2])
    wanted = {LOGARITHMS[name][0] if name in LOGARITHMS else name for name in names}
    values: dict[str, float] = {}
    # Values too large show in the result; numpy keeps its warnings per thread.
    quiet = partial(np.seterr, over="ignore", invalid="ignore")
    with np.errstate(over="ignore", invalid="ignore"), ThreadPoolExecutor(_threads(), initializer=quiet) as pool:
        means = _band_means(x)
        for part in (_curvature, _correlation, _spectrum, _gradients):
            values |= part(x, means, positions, wanted, pool)
    for name, (metric, offset, factor) in LOGARITHMS.items():
        if metric in values:
            values[name] = math.log10(max(offset + factor * values[metric], LOG_FLOOR))
    return finite_metrics(np.array([values[name] for name in names], np.float32), names, x)


def finite_metrics(metrics: Float32, names: Sequence[str], cube: Float32) -> Float32:
    """The metrics [M] of a float32 cube as they are; raises CubeError where one of them is not finite."""
    if not np.isfinite(metrics).all():
        _band_means(cube)
        name = names[int(np.flatnonzero(~np.isfinite(metrics))[0])]
        raise CubeError(
            "the cube's values are too large for its metrics",
            key=name,
            value=float(np.abs(cube).max()),
            remedy="scale the cube to [0, 1]",
        )
    return metrics


def prepare() -> None:
    """Import what transforms, which takes a fifth of a second: there is time for it while an engine is opened."""
    import scipy.fft  # noqa: F401


def _threads() -> int:
    return min(8, available_cores())


def _checked(cube: ArrayLike) -> Float32:
    x = np.asarray(cube)
    if x.ndim != 3 or x.size == 0:
        raise CubeError("a cube has three axes", key="cube", value=x.shape, remedy="pass [bands, lines, samples]")
    if x.dtype.kind != "f":
        raise CubeError(
            "metrics are defined on a scaled cube",
            key="cube",
            value=x.dtype,
            remedy="divide integer DN by their scale to get floats in [0, 1]",
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, np.float32)


def _checked_positions(sample_index: ArrayLike | None, pixels: int) -> NDArray[np.intp] | None:
    if sample_index is None:
        return None
    index = np.asarray(sample_index)
    if index.ndim == 2 and index.shape[0] == 1:
        index = index[0]
    if index.ndim != 1 or index.size == 0 or index.dtype.kind not in "iu":
        raise CubeError(
            "positions are whole numbers", key="sample_index", value=index.shape, remedy="pass integers [n] or [1, n]"
        )
    if index.min() < 0 or index.max() >= pixels:
        raise CubeError(
            "a position lies outside the cube",
            key="sample_index",
            value=int(index.min() if index.min() < 0 else index.max()),
            remedy=f"positions are line * samples + sample, 0 to {pixels - 1}",
        )
    return index.astype(np.intp)


def _band_means(x: Float32) -> Float32:
    """Mean per band, [bands]; also the place where a value that is not finite shows."""
    sums = np.array([band.sum(dtype=np.float64) for band in x.reshape(len(x), -1)])
    if not np.isfinite(sums).all():
        band = int(np.flatnonzero(~np.isfinite(sums))[0])
        count = int((~np.isfinite(x)).sum())
        raise CubeError(
            f"{count} values are not finite, the first in band {band}",
            key="cube",
            remedy="replace NaN and infinite values, or leave those bands out",
        )
    return np.asarray(sums / x[0].size, np.float32)


Values = dict[str, float]
Row = tuple[float, ...]


def _blocks(pixels: int) -> list[slice]:
    return [slice(i, min(i + BLOCK_PIXELS, pixels)) for i in range(0, pixels, BLOCK_PIXELS)]


def _curvature(
    x: Float32, means: Float32, positions: NDArray[np.intp] | None, wanted: set[str], pool: ThreadPoolExecutor
) -> Values:
    """Mean, deviation and maximum of the second difference along bands, averaged over pixels."""
    spectra = x.reshape(len(x), -1)
    if positions is not None:
        spectra = spectra[:, positions]
    n = len(x) - 2
    if n < 1:
        return {"curvature_mean": 0.0, "curvature_std": 0.0, "curvature_max": 0.0}
    with_max = "curvature_max" in wanted

    def block_sums(block: slice) -> tuple[float, float, float]:
        s = spectra[:, block]
        d = s[2:] + s[:-2]
        d -= s[1:-1]
        d -= s[1:-1]
        total = d.sum(axis=0)
        # Centred before squaring: the mean is exact here and the difference of two large sums is not.
        deviation = 0.0
        if n > 1:
            centred = d - total / np.float32(n)
            variance = np.einsum("bp,bp->p", centred, centred) / np.float32(n - 1)
            deviation = float(np.sqrt(variance).sum(dtype=np.float64))
        np.abs(d, out=d)
        return (
            float(d.sum(axis=0).sum(dtype=np.float64)) / n,
            deviation,
            float(d.max(axis=0).sum(dtype=np.float64)) if with_max else 0.0,
        )

    sums = np.sum(list(pool.map(block_sums, _blocks(spectra.shape[1]))), axis=0) / spectra.shape[1]
    return dict(zip(("curvature_mean", "curvature_std", "curvature_max"), map(float, sums), strict=True))


def _correlation(
    x: Float32, means: Float32, positions: NDArray[np.intp] | None, wanted: set[str], pool: ThreadPoolExecutor
) -> Values:
    """Statistics of the band correlation matrix R."""
    spectra = x.reshape(len(x), -1)

    gram = np.zeros((len(x), len(x)))
    for part in pool.map(lambda block: _gram(spectra[:, block] - means[:, None]), _blocks(spectra.shape[1])):
        gram += part
    norms = np.sqrt(np.maximum(np.diag(gram), GUARD))
    r = gram / np.outer(norms, norms)
    r[~np.isfinite(r)] = 0
    np.fill_diagonal(r, 1)
    adjacent = np.diag(r, 1)
    values = {
        "adjacent_correlation_mean": float(adjacent.mean()) if len(adjacent) else 0.0,
        "adjacent_correlation_std": float(adjacent.std()) if len(adjacent) else 0.0,
        "correlation_mean": float(r.mean()),
        "correlation_std": float(r.std()),
    }
    if "effective_rank" in wanted:
        singular = np.maximum(np.abs(np.linalg.eigvalsh(r)), GUARD)
        p = singular / singular.sum()
        values["effective_rank"] = float(np.exp(-(p * np.log(p + GUARD)).sum()))
    return values


def _gram(centred: Float32) -> NDArray[np.float64]:
    """Products of all bands with each other, [bands, bands], summed over the pixels of [bands, pixels]."""
    bands, pixels = centred.shape
    whole = pixels - pixels % TILE_PIXELS
    head = centred[:, :whole].reshape(bands, -1, TILE_PIXELS).transpose(1, 0, 2)
    tail = centred[:, whole:]
    gram = np.zeros((bands, bands))
    for i in range(0, bands, TILE_BANDS):
        a = slice(i, i + TILE_BANDS)
        for j in range(0, i + 1, TILE_BANDS):
            b = slice(j, j + TILE_BANDS)
            products = head[:, a] @ head[:, b].transpose(0, 2, 1)
            gram[a, b] = products.sum(axis=0, dtype=np.float64) + tail[a] @ tail[b].T
            gram[b, a] = gram[a, b].T
    return gram


def _spectrum(
    x: Float32, means: Float32, positions: NDArray[np.intp] | None, wanted: set[str], pool: ThreadPoolExecutor
) -> Values:
    """High-frequency energy ratio and spectral flatness of the Hann-windowed transform, averaged over bands."""
    import scipy.fft

    lines, samples = x.shape[1:]
    window = np.outer(np.hanning(lines), np.hanning(samples)).astype(np.float32)
    ky = np.minimum(np.arange(lines), lines - np.arange(lines))
    kx = np.arange(samples // 2 + 1)
    radius = min(lines // 2, samples // 2) // 3
    # Half a spectrum stands for a whole one: columns with a mirror image count twice.
    twice = np.where((kx > 0) & (2 * kx != samples), 2, 1).astype(np.float32)
    far = ((ky[:, None] ** 2 + kx[None] ** 2 > radius**2) * twice).astype(np.float32)
    count = lines * samples

    def band_values(band: Float32) -> tuple[float, float]:
        f = scipy.fft.rfft2(band * window, workers=1)
        power = np.square(f.real)
        power += np.square(f.imag)
        energy = float(power.sum(axis=0) @ twice)
        ratio = float(np.einsum("ls,ls->l", power, far).sum(dtype=np.float64)) / (energy + GUARD)
        amplitude = np.sqrt(power, out=power)
        amplitude += np.float32(GUARD)
        mean = float(amplitude.sum(axis=0) @ twice) / count
        log_mean = float(np.log(amplitude, out=amplitude).sum(axis=0) @ twice) / count
        return ratio, float(np.exp(log_mean)) / mean

    ratio, flatness = np.mean(list(pool.map(band_values, x)), axis=0)
    return {"high_frequency_ratio": float(ratio), "spectral_flatness": float(flatness)}


def _gradients(
    x: Float32, means: Float32, positions: NDArray[np.intp] | None, wanted: set[str], pool: ThreadPoolExecutor
) -> Values:
    """Sobel gradient statistics with zero padding, per band and averaged over bands."""
    lines, samples = x.shape[1:]
    count = lines * samples
    with_orientation = "orientation_std" in wanted
    with_extremes = "gradient_max" in wanted or "strong_gradient_share" in wanted

    def chunk_values(bands: Float32) -> list[Row]:
        padded = np.zeros((lines + 2, samples + 2), np.float32)
        smooth, slope = np.empty((2, lines, samples + 2), np.float32)
        gx, gy, magnitude = np.empty((3, lines, samples), np.float32)
        rows: list[Row] = []
        for band in bands:
            padded[1:-1, 1:-1] = band
            np.add(padded[:-2], padded[2:], out=smooth)
            smooth += padded[1:-1]
            smooth += padded[1:-1]
            np.subtract(smooth[:, 2:], smooth[:, :-2], out=gx)
            np.subtract(padded[2:], padded[:-2], out=slope)
            np.add(slope[:, :-2], slope[:, 2:], out=gy)
            gy += slope[:, 1:-1]
            gy += slope[:, 1:-1]
            orientation = 0.0
            np.multiply(gx, gx, out=magnitude)
            if with_orientation:
                np.arctan2(gy, gx, out=gx)
                orientation = _deviation(gx)[1]
            gy *= gy
            magnitude += gy
            np.sqrt(magnitude, out=magnitude)
            mean, deviation = _deviation(magnitude)
            # `_deviation` leaves the centred values behind.
            largest = float(magnitude.max()) + mean if with_extremes else 0.0
            share = float(np.count_nonzero(magnitude > deviation)) / count if with_extremes else 0.0
            rows.append((mean, deviation, largest, share, orientation))
        return rows

    parts = _each(pool, chunk_values, np.array_split(x, min(len(x), _threads())))
    names = ("gradient_mean", "gradient_std", "gradient_max", "strong_gradient_share", "orientation_std")
    return dict(zip(names, map(float, np.mean(parts, axis=0)), strict=True))


def _each(pool: ThreadPoolExecutor, work: Callable[[Float32], list[Row]], chunks: list[Float32]) -> list[Row]:
    return [row for rows in pool.map(work, chunks) for row in rows]


def _deviation(values: Float32) -> tuple[float, float]:
    """Mean and unbiased deviation; leaves `values` centred."""
    mean = values.mean(dtype=np.float32)
    values -= mean
    if values.size < 2:
        return float(mean), 0.0
    squares = np.einsum("ls,ls->l", values, values).sum(dtype=np.float64)
    return float(mean), float(np.sqrt(squares / (values.size - 1)))
