"""Channels of what a product takes made alike before they share one scale of int8.

Activations have one scale for all channels. Where one channel is twenty times as large as most, these keep four of the
127 levels, and dark pixels none. Dividing each channel by a number and multiplying the weights that meet it by the same
changes nothing but that (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
section 4.1; half of the difference goes to the weights, as in Xiao et al. 2023, "SmoothQuant"). The numbers are powers
of two: a float32 graph computes the same bits before and after.

The division goes into the convolution that made the channels, directly or as one factor of a product: it costs nothing
in flight. What comes out of anything else is divided by a Mul of its own where that gains enough.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from .products import MOVING, WEIGHTED
from .ranges import Feeds, parts_of, session_of
from .typed import constants_of, rewritten

Peaks = NDArray[np.float64]
"""[channels]: largest magnitudes."""
SPREAD = 4.0
"""Channels whose largest is this much above their median are worth a Mul of their own."""
MOST = 2.0**10
"""The largest number that a channel is divided or multiplied by."""


def peaks_of(graph: bytes, inputs: Mapping[str, str], samples: Callable[[], Iterable[Feeds]]) -> dict[str, Peaks]:
    """Product -> the largest magnitude in each channel of what it takes, over all samples.

    Args:
        graph: a float32 graph.
        inputs: product -> the tensor it takes.
        samples: gives what the graph is fed with, as often as asked.
    """
    model = onnx.load_model_from_string(graph)
    axes = {n.input[0]: _channel_axis(n) for n in model.graph.node if n.name in inputs}
    given = {i.name for i in model.graph.input}
    found: dict[str, Peaks] = {}
    for part in parts_of(model, [tensor for tensor in axes if tensor not in given]):
        session = session_of(model, part)
        for feed in samples():
            for tensor, values in zip(part, session.run(part, dict(feed)), strict=True):
                seen = np.abs(np.moveaxis(values, axes[tensor], 0)).reshape(values.shape[axes[tensor]], -1).max(axis=1)
                found[tensor] = np.maximum(found.get(tensor, np.zeros(1)), seen)
    return {product: found[tensor] for product, tensor in inputs.items() if tensor in found}


def equalised(graph: bytes, peaks: Mapping[str, Peaks]) -> bytes:
    """A float32 graph that computes the same, the channels of what its products take made alike.

    Args:
        graph: a float32 graph.
        peaks: product -> the largest magnitude in each channel of what it takes.
    """
    model = onnx.load_model_from_string(graph)
    writer = _Writer(model)
    for tensor in dict.fromkeys(n.input[0] for n in model.graph.node if n.name in peaks):
        writer.equalise(tensor, peaks)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        nodes += [writer.divided[name] for name in node.output if name in writer.divided]
    for node in nodes:
        node.input[:] = [writer.renamed.get(name, name) for name in node.input]
        node.output[:] = [writer.renamed.get(name, name) for name in node.output]
    return rewritten(model, nodes, [numpy_helper.from_array(v, name) for name, v in writer.values.items()])


class _Writer:
    """Collects new weights and the divisions that no convolution takes in."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = constants_of(model.graph)
        self.makers = {o: n for n in model.graph.node for o in n.output}
        self.users: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outputs = {o.name for o in model.graph.output}
        self.values: dict[str, NDArray[np.float32]] = {}
        self.divided: dict[str, NodeProto] = {}
        self.renamed: dict[str, str] = {}
        """Tensors that hold other values than in the graph as it was: a name says the same in every variant."""

    def equalise(self, tensor: str, peaks: Mapping[str, Peaks]) -> None:
        """Divide the channels of a tensor, and multiply the weights of the products that take it."""
        products = [n for n in self.users[tensor] if n.name in peaks and n.input[0] == tensor]
        maker = self.makers.get(tensor)
        if maker is None or len({n.op_type == "MatMul" for n in products}) > 1:
            return
        most = np.maximum.reduce([peaks[n.name] for n in products])
        if not most.any():
            return
        divisors = self._divisors(most, products)
        alone = len(products) == len(self.users[tensor]) and tensor not in self.outputs
        # A product over the last axis has other channels than a convolution makes.
        alone = alone and _channel_axis(products[0]) == 1
        if not (alone and self._taken_in(maker, divisors)):
            worth = most.max() > SPREAD * np.median(most) and maker.op_type not in (*MOVING, "Concat")
            if not worth:
                return
            axis = _channel_axis(products[0])
            shape = (-1, *(1,) * (-1 - axis if axis < 0 else 2))
            self.values[f"{tensor}/divisors"] = (1 / divisors).reshape(shape).astype(np.float32)
            self.divided[tensor] = helper.make_node(
                "Mul", [tensor, f"{tensor}/divisors"], [f"{tensor}/divided"], name=f"{maker.name}/divided"
            )
            for node in products:
                node.input[0] = f"{tensor}/divided"
        for node in products:
            self._scaled(node, 1, _of_inputs(node, self._value(node.input[1]), divisors))

    def _divisors(self, most: Peaks, products: Sequence[NodeProto]) -> Peaks:
        # Depthwise convolutions have a scale for each channel's weights already: they take all of the difference.
        if all(_groups(n) == len(most) for n in products):
            wanted = most
        else:
            met = np.maximum.reduce([_weights_met(n, self._value(n.input[1]), len(most)) for n in products])
            wanted = np.sqrt(np.maximum(most, most.max() / MOST) / np.maximum(met, met.max() / MOST))
        wanted = np.maximum(wanted, wanted.max() / MOST)
        wanted = wanted / np.exp(np.log(wanted).mean())
        return np.asarray(2.0 ** np.round(np.log2(wanted)))

    def _taken_in(self, maker: NodeProto, divisors: Peaks) -> bool:
        """Let the convolution that made the channels divide them, or one factor of theirs; whether there is one."""
        made = maker
        if maker.op_type == "Mul":
            factors = [self.makers.get(name) for name in maker.input if self.users[name] == [maker]]
            maker = next((n for n in factors if n is not None and self._divides(n)), maker)
        if not self._divides(maker):
            return False
        self.renamed |= {name: f"{name}/divided" for name in (made.output[0], maker.output[0])}
        self._scaled(maker, 1, (1 / divisors).reshape(-1, *(1,) * (self._value(maker.input[1]).ndim - 1)))
        if len(maker.input) > 2:
            self._scaled(maker, 2, 1 / divisors)
        return True

    def _divides(self, node: NodeProto) -> bool:
        return node.op_type == "Conv" and all(n in self.values or n in self.constants for n in node.input[1:])

    def _value(self, name: str) -> NDArray[np.float32]:
        return self.values[name] if name in self.values else numpy_helper.to_array(self.constants[name])

    def _scaled(self, node: NodeProto, place: int, factors: Peaks) -> None:
        """Give a node a constant of its own: the one it has, multiplied."""
        name = f"{node.name}/{('', 'weight', 'bias')[place]}/equalised"
        self.values[name] = (self._value(node.input[place]) * factors).astype(np.float32)
        node.input[place] = name


def _channel_axis(node: NodeProto) -> int:
    assert node.op_type in WEIGHTED
    return -1 if node.op_type == "MatMul" else 1


def _groups(node: NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _of_inputs(node: NodeProto, weights: NDArray[np.float32], divisors: Peaks) -> NDArray[np.float64]:
    """The numbers of the channels where the weights meet them, in a shape that multiplies the weights."""
    if node.op_type == "MatMul":
        return divisors[:, None]
    if node.op_type == "ConvTranspose":
        return divisors.reshape(-1, *(1,) * (weights.ndim - 1))
    of_group = divisors.reshape(_groups(node), -1)
    return np.repeat(of_group, len(weights) // len(of_group), axis=0).reshape(*weights.shape[:2], 1, 1)


def _weights_met(node: NodeProto, weights: NDArray[np.float32], channels: int) -> Peaks:
    """[channels]: the largest weight that each channel of what the product takes meets."""
    sizes = np.abs(weights)
    if node.op_type == "MatMul":
        return np.asarray(sizes.max(axis=1), np.float64)
    if node.op_type == "ConvTranspose":
        return np.asarray(sizes.reshape(channels, -1).max(axis=1), np.float64)
    groups = _groups(node)
    by_group = sizes.reshape(groups, len(weights) // groups, channels // groups, -1)
    return np.asarray(by_group.max(axis=(1, 3)).ravel(), np.float64)
