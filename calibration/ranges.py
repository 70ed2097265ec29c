"""What values tensors take, as histograms that hold a fixed memory, and four ways to choose a range from them.

A range is the largest magnitude that int8 represents; what lies beyond is clipped, what lies within is rounded to
range / 127. The ways: `minmax` clips nothing; `percentile` clips 0.01 %; `entropy` keeps the most of the distribution's
information (Migacz, "8-bit inference with TensorRT", GTC 2017); `mse` has the smallest mean squared error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime.arrays import Float32
from runtime.engines.onnx_guard import check_onnx
from runtime.errors import MachineError

from .quantized import LEVELS

Feeds = Mapping[str, NDArray[Any]]
Counts = NDArray[np.int64]

BINS = 4096
MOST_VALUES = 1 << 17
"""Values of a tensor that are counted in each sample, evenly spread; its largest magnitude is always exact."""
PERCENTILE = 0.9999
CANDIDATES = 96
MOST_BYTES = 1 << 30
"""Tensors that are looked at in one run of the graph."""


@dataclass(frozen=True)
class Histogram:
    """Magnitudes of a tensor.

    Attributes:
        limit: where the last bin ends, a power of two above the largest magnitude; 0 where only zeros were seen.
        counts: int64 [BINS].
        largest: the largest magnitude.
    """

    limit: float = 0.0
    counts: Counts | None = None
    largest: float = 0.0

    def with_values(self, values: Float32) -> Histogram:
        """This histogram and these values. A larger value than any before doubles the bins' width, exactly."""
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0))
        if not np.isfinite(largest):
            raise MachineError(
                "the network's values are not finite on a calibration frame",
                remedy="look at the cube: its scale may be wrong",
            )
        limit = self.limit
        if largest and largest >= limit:
            limit = 2.0 ** (np.floor(np.log2(largest)) + 1)
        counts = np.zeros(BINS, np.int64) if self.counts is None else self.counts
        for _ in range(round(np.log2(limit / self.limit)) if self.limit else 0):
            counts = np.concatenate([counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
        # An odd step meets every channel of a tensor whose channels are the last axis.
        spread = magnitudes[:: max(1, magnitudes.size // MOST_VALUES) | 1]
        places = (spread * (BINS / limit if limit else 0.0)).astype(np.int64)
        return Histogram(limit, counts + np.bincount(places, minlength=BINS), max(self.largest, largest))


def collect(
    graph: bytes,
    inputs: Mapping[str, str],
    samples: Callable[[], Iterable[Feeds]],
    progress: Callable[[int, int], None] | None = None,
    *,
    onto: Mapping[str, Histogram] | None = None,
    beside: tuple[str, Callable[[Float32], None]] | None = None,
) -> dict[str, Histogram]:
    """Run the graph on every sample and count what its products take in.

    Args:
        graph: a float32 graph.
        inputs: product -> the tensor it takes.
        samples: gives what the graph is fed with, {input: array}, one frame after the other, as often as asked.
        progress: called with (runs done, 0).
        onto: product -> histogram of values that were seen before.
        beside: an output of the graph, and what is called with it for each sample in turn.

    Returns:
        product -> histogram. Of samples and tensors no more is held in memory than one run of a part of the tensors.
    """
    model = onnx.load_model_from_string(graph)
    before = {tensor: onto[product] for product, tensor in inputs.items()} if onto else {}
    found: dict[str, Histogram] = {tensor: before.get(tensor, Histogram()) for tensor in set(inputs.values())}
    runs = 0
    given = {i.name for i in model.graph.input}
    for part in parts_of(model, [tensor for tensor in found if tensor not in given]):
        session = session_of(model, part)
        watched = part if beside is None else [*part, beside[0]]
        for feed in samples():
            for tensor, values in zip(watched, session.run(watched, dict(feed)), strict=True):
                if tensor in found:
                    found[tensor] = found[tensor].with_values(values)
                elif beside is not None:
                    beside[1](values)
            runs += 1
            if progress is not None:
                progress(runs, 0)
        beside = None
    for feed in samples() if given & found.keys() else ():
        for name in given & found.keys():
            found[name] = found[name].with_values(feed[name])
    return {product: found[tensor] for product, tensor in inputs.items()}


def parts_of(model: onnx.ModelProto, tensors: Sequence[str]) -> list[list[str]]:
    """The tensors in parts, in their order of names, none of which holds more than MOST_BYTES; graph outputs too."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    sizes = {
        v.name: 4 * int(np.prod([d.dim_value for d in v.type.tensor_type.shape.dim], dtype=np.int64))
        for v in (*inferred.graph.value_info, *inferred.graph.output)
    }
    parts: list[list[str]] = [[]]
    held = 0
    for tensor in sorted(set(tensors)):
        if held + sizes[tensor] > MOST_BYTES and parts[-1]:
            parts.append([])
            held = 0
        parts[-1].append(tensor)
        held += sizes[tensor]
    return [part for part in parts if part]


def session_of(model: onnx.ModelProto, outputs: Sequence[str]) -> Any:
    """An ONNX Runtime session on the CPU that gives these tensors of the graph."""
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {o.name for o in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in present)
    watched = onnx.shape_inference.infer_shapes(watched, data_prop=True)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    data = watched.SerializeToString()
    check_onnx(data)
    return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])


def _percentile(histogram: Histogram) -> float:
    assert histogram.counts is not None
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    return min(histogram.largest, (int(np.searchsorted(share, PERCENTILE)) + 1) * histogram.limit / BINS)


def _mse(histogram: Histogram) -> float:
    assert histogram.counts is not None
    centres = (np.arange(BINS) + 0.5) * (histogram.limit / BINS)
    candidates = _candidates(histogram)
    errors = []
    for candidate in candidates:
        step = candidate / LEVELS
        rounded = np.minimum(np.round(centres / step), LEVELS) * step
        # Within a step the error is that of rounding, even where a bin is as wide as the step.
        error = np.where(centres < candidate, step**2 / 12, (centres - rounded) ** 2)
        errors.append(float((histogram.counts * error).sum()))
    return float(candidates[int(np.argmin(errors))])


def _entropy(histogram: Histogram) -> float:
    assert histogram.counts is not None
    width = histogram.limit / BINS
    best, found = np.inf, histogram.largest
    for candidate in _candidates(histogram):
        last = min(BINS, max(LEVELS + 1, int(np.ceil(candidate / width))))
        kept = histogram.counts[:last].astype(np.float64)
        clipped = kept.copy()
        clipped[-1] += histogram.counts[last:].sum()
        level = np.minimum(np.arange(last) * (LEVELS + 1) // last, LEVELS)
        occupied = kept > 0
        sums = np.bincount(level, kept, LEVELS + 1)
        share = np.bincount(level, occupied, LEVELS + 1)
        spread = np.where(occupied, sums[level] / np.maximum(share[level], 1), 0)
        divergence = _divergence(clipped, spread)
        if divergence < best:
            best, found = divergence, min(last * width, histogram.largest)
    return float(found)


def _divergence(exact: NDArray[np.float64], rounded: NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence; a bin that only the exact distribution has counts as one value in a million."""
    p, q = exact / exact.sum(), rounded / max(rounded.sum(), 1)
    inside = p > 0
    return float((p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-6))).sum())


def _candidates(histogram: Histogram) -> NDArray[np.float64]:
    return np.geomspace(histogram.largest / 32, histogram.largest, CANDIDATES)


METHODS: Mapping[str, Callable[[Histogram], float]] = MappingProxyType(
    {"minmax": lambda histogram: histogram.largest, "percentile": _percentile, "entropy": _entropy, "mse": _mse}
)


def ranges(histograms: Mapping[str, Histogram], method: str) -> dict[str, float]:
    """{product: range of what it takes} by a method of `METHODS`; 1 where nothing but zeros was seen."""
    choose = METHODS[method]
    return {name: choose(h) if h.largest else 1.0 for name, h in histograms.items()}
