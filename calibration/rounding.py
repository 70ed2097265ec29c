"""Biases that make up for what rounding its weights to FP16 shifts a convolution's output by on average.

The error of a rounded weight is the same for every pixel: multiplied by the mean of what comes in, it shifts a whole
channel, and dark spectra turn with it. What the shift is follows from a few frames, and a bias takes it back at no cost
(Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2).
"""

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.arrays import Float32

from .ranges import Feeds, parts_of, session_of
from .typed import nodes_in_half, rewritten

Doubles = NDArray[np.float64]
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def with_corrected_biases(data: bytes, feeds: Sequence[Feeds], single: Collection[str] = ()) -> bytes:
    """A float32 graph whose convolutions, once their weights are rounded to FP16, keep the means of their channels.

    Borders count as interior, as if nothing were padded. Convolutions whose weights are quantised stay as they are.

    Args:
        data: a float32 graph, with or without int8 pairs.
        feeds: what it is fed with, {input: array} each, at least one.
        single: nodes that stay float32 besides the islands, as for `half_precision`.

    Returns:
        an ONNX file: the same graph, with other biases, and with one where a convolution had none.
    """
    model = onnx.load_model_from_string(data)
    weights = {i.name: i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT}
    half = nodes_in_half(data, single)
    nodes = [
        n
        for n in model.graph.node
        if n.op_type in CONVOLUTIONS and n.name in half and all(name in weights for name in n.input[1:])
    ]
    biases = []
    means = _channel_means(model, sorted({n.input[0] for n in nodes}), feeds)
    for node in nodes:
        shift = _shift(node, numpy_helper.to_array(weights[node.input[1]]), means[node.input[0]])
        bias = numpy_helper.to_array(weights[node.input[2]]) if len(node.input) > 2 else np.zeros(1, np.float32)
        name = f"{node.name}/bias"
        biases.append(numpy_helper.from_array((bias + shift).astype(np.float32), name))
        del node.input[2:]
        node.input.append(name)
    return rewritten(model, model.graph.node, biases)


def _channel_means(model: onnx.ModelProto, tensors: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, Doubles]:
    """Tensor [N, channels, ...] -> mean of each of its channels over all frames."""
    given = {i.name for i in model.graph.input}
    sums: dict[str, Doubles] = {name: np.zeros(0) for name in tensors}
    for part in parts_of(model, [name for name in tensors if name not in given]):
        session = session_of(model, part)
        for feed in feeds:
            for name, values in zip(part, session.run(part, dict(feed)), strict=True):
                sums[name] = sums[name] + _means(values) if sums[name].size else _means(values)
    for name in given & sums.keys():
        sums[name] = np.sum([_means(feed[name]) for feed in feeds], axis=0)
    return {name: total / len(feeds) for name, total in sums.items()}


def _means(values: Float32) -> Doubles:
    axes = (0, *range(2, values.ndim))
    return np.asarray(values.mean(axis=axes, dtype=np.float64))


def _shift(node: NodeProto, weights: Float32, means: Doubles) -> Doubles:
    """What the output's channels lose on average by rounding the weights: [channels out]."""
    attributes = {a.name: a for a in node.attribute}
    groups = attributes["group"].i if "group" in attributes else 1
    with np.errstate(over="ignore"):
        # A weight beyond the range of FP16 is refused where the graph is rewritten.
        rounded = weights.astype(np.float16).astype(np.float64)
    lost = np.where(np.isfinite(rounded), weights - rounded, 0).sum(axis=tuple(range(2, weights.ndim)))
    of_group = means.reshape(groups, -1)
    if node.op_type == "Conv":
        return np.asarray(np.einsum("goi,gi->go", lost.reshape(groups, -1, lost.shape[1]), of_group).ravel())
    # Each output pixel of a transposed convolution meets one in `strides` of the weights' places.
    strides = np.prod(attributes["strides"].ints) if "strides" in attributes else 1
    return np.asarray(np.einsum("gio,gi->go", lost.reshape(groups, -1, lost.shape[1]), of_group).ravel() / strides)
