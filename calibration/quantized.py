"""A graph with explicit int8: QuantizeLinear and DequantizeLinear pairs in front of the products that are chosen.

What every engine agrees on (TensorRT's guide "Working with Quantized Types", onnx-tensorrt docs/operators.md,
OpenVINO's low precision transformations): int8, zero point 0; activations with one scale, weights with one per output
channel and stored as int8; bias, residuals and norms stay as they are. A tensor is quantised once for all products that
take it, and before it is merely moved, so that a quarter of the bytes is moved. Scales are numbers that FP16 holds, so
that the same int8 weights serve a float32 and an FP16 graph.

Written here rather than by onnxruntime's `quantize_static`: that hands quantised values to residuals too unless each
product gets a pair of its own, keeps weights as float32, and writes FP16 graphs that the ONNX checker refuses (1.31).
The two give the same numbers (tests/calibration/test_quantized.py).
"""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .products import MOVING, WEIGHTED
from .typed import constants_of, rewritten

LEVELS = 127
SMALLEST_SCALE = 2.0**-20
"""Far below what a network's numbers need; a multiple of FP16's smallest number."""


def taken(model: onnx.ModelProto, names: Collection[str]) -> dict[str, str]:
    """{product: the tensor it takes}."""
    return {n.name: n.input[0] for n in model.graph.node if n.name in names}


def quantized(graph: bytes, ranges: Mapping[str, float], chosen: Collection[str]) -> bytes:
    """The float32 graph with the chosen products in int8.

    Args:
        graph: a float32 graph.
        ranges: product -> largest magnitude of what it takes.
        chosen: names of products, of those that `calibration.products` calls quantisable.
    """
    model = onnx.load_model_from_string(graph)
    nodes, constants = list(model.graph.node), constants_of(model.graph)
    outputs = {o.name for o in model.graph.output}
    writer = _Writer(nodes, constants, {n.name for n in nodes if n.name in chosen}, outputs)
    for place, node in enumerate(nodes):
        if node.name in chosen:
            assert node.op_type in WEIGHTED
            writer.pair(node, scale_of(ranges[node.name]))
            writer.weights(place, node)
    return rewritten(model, writer.written(), writer.stored)


def scale_of(magnitude: float) -> float:
    """The step of int8 for values up to `magnitude`: a number of FP16, rounded up so that nothing more is clipped."""
    return float(_rounded_up(np.array([magnitude / LEVELS]))[0])


def _rounded_up(scales: NDArray[np.float64]) -> NDArray[np.float32]:
    scales = np.maximum(scales, SMALLEST_SCALE)
    near = scales.astype(np.float16)
    return np.where(near < scales, np.nextafter(near, np.float16(np.inf)), near).astype(np.float32)


class _Writer:
    """Collects the pairs in front of products and the int8 weights behind them."""

    def __init__(
        self, nodes: list[NodeProto], constants: Mapping[str, TensorProto], chosen: set[str], outputs: set[str]
    ) -> None:
        self.nodes, self.constants, self.outputs = nodes, constants, outputs
        self.makers = {o: n for n in nodes for o in n.output}
        self.users: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.chosen = chosen
        self.stored: list[TensorProto] = []
        self.before: dict[int, list[NodeProto]] = {}
        """Place of a node -> DequantizeLinear of its weights."""
        self.after: dict[str, list[NodeProto]] = {}
        """Tensor -> its pair."""
        self.scales: dict[str, float] = {}
        self.renamed: dict[tuple[str, str], str] = {}
        """(name of a node, tensor that it took) -> tensor that it takes."""

    def pair(self, node: NodeProto, scale: float) -> None:
        """Quantise what the product takes, where it is made."""
        tensor, user = node.input[0], node
        # Not for convolutions: OpenVINO 2026.4 then rounds to whole numbers (test_quantized_engines.py).
        while node.op_type == "MatMul" and self._only_for_products(tensor):
            maker = self.makers[tensor]
            tensor, user = maker.input[0], maker
        self.renamed[user.name, tensor] = self._paired(tensor, scale)

    def _only_for_products(self, tensor: str) -> bool:
        """The tensor is one that was moved, for products of int8 alone."""
        maker = self.makers.get(tensor)
        if maker is None or maker.op_type not in MOVING or any(i not in self.constants for i in maker.input[1:]):
            return False
        return tensor not in self.outputs and all(self._quantises(user, tensor) for user in self.users[tensor])

    def _quantises(self, user: NodeProto, tensor: str) -> bool:
        if user.name in self.chosen:
            return bool(user.input[0] == tensor) and user.op_type == "MatMul"
        moves = user.op_type in MOVING and user.input[0] == tensor and user.output[0] not in self.outputs
        return moves and all(self._quantises(next_, user.output[0]) for next_ in self.users.get(user.output[0], ()))

    def _paired(self, tensor: str, scale: float) -> str:
        # Products that take the same values have the same range, but for the order of sums: the largest serves all.
        known = self.scales.get(tensor)
        if known is None:
            quantised, restored = f"{tensor}/int8", f"{tensor}/dequantised"
            terms = [f"{tensor}/scale", "int8/zero"]
            taken, limited = tensor, []
            if tensor in self.makers and self.makers[tensor].op_type == "Concat":
                # OpenVINO 2026.4 moves a bare pair in front of a Concat, and then rounds to whole numbers.
                taken = f"{tensor}/limited"
                limits = [f"{tensor}/lowest", f"{tensor}/highest"]
                limited = [helper.make_node("Clip", [tensor, *limits], [taken], name=f"{tensor}/Clip")]
            self.after[tensor] = [
                *limited,
                helper.make_node("QuantizeLinear", [taken, *terms], [quantised], name=f"{tensor}/QuantizeLinear"),
                helper.make_node(
                    "DequantizeLinear", [quantised, *terms], [restored], name=f"{tensor}/DequantizeLinear"
                ),
            ]
        self.scales[tensor] = max(scale, known or 0.0)
        return f"{tensor}/dequantised"

    def weights(self, place: int, node: NodeProto) -> None:
        """Store the product's weights as int8, one scale per output channel."""
        values = numpy_helper.to_array(self.constants[node.input[1]]).astype(np.float64)
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, values.ndim - 1)
        # A transposed convolution in groups has the channels of one group along its axis: one scale for all is exact.
        per_channel = not (node.op_type == "ConvTranspose" and groups > 1)
        others = tuple(a for a in range(values.ndim) if a != axis) if per_channel else tuple(range(values.ndim))
        scales = _rounded_up(np.abs(values).max(axis=others, keepdims=True) / LEVELS)
        stored = np.clip(np.round(values / scales), -LEVELS, LEVELS).astype(np.int8)
        name = f"{node.name}/weight"
        count = (scales.size,) if per_channel else ()
        self.stored += [
            numpy_helper.from_array(stored, name),
            numpy_helper.from_array(scales.reshape(count), f"{name}/scale"),
            numpy_helper.from_array(np.zeros(count, np.int8), f"{name}/zero"),
        ]
        terms = [name, f"{name}/scale", f"{name}/zero"]
        dequantise = helper.make_node(
            "DequantizeLinear", terms, [f"{name}/dequantised"], name=f"{name}/DequantizeLinear"
        )
        if per_channel:
            dequantise.attribute.append(helper.make_attribute("axis", axis))
        self.before[place] = [dequantise]
        self.renamed[node.name, node.input[1]] = f"{name}/dequantised"

    def written(self) -> list[NodeProto]:
        """The nodes in an order in which each comes after what it needs."""
        if self.after:
            self.stored.append(numpy_helper.from_array(np.array(0, np.int8), "int8/zero"))
        self.stored += [
            numpy_helper.from_array(np.array(scale, np.float32), f"{tensor}/scale")
            for tensor, scale in self.scales.items()
        ]
        self.stored += [
            numpy_helper.from_array(np.array(sign * LEVELS * scale, np.float32), f"{tensor}/{end}")
            for tensor, scale in self.scales.items()
            if self.after[tensor][0].op_type == "Clip"
            for sign, end in ((-1, "lowest"), (1, "highest"))
        ]
        out: list[NodeProto] = []
        for tensor, pair in self.after.items():
            if tensor not in self.makers:
                out += pair
        for place, node in enumerate(self.nodes):
            out += self.before.get(place, [])
            node.input[:] = [self.renamed.get((node.name, name), name) for name in node.input]
            out.append(node)
            for name in node.output:
                out += self.after.get(name, [])
        return out
