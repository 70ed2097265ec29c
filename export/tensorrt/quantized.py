"""Rules for QuantizeLinear and DequantizeLinear: symmetric int8, zero point 0.

Sources: onnx-tensorrt docs/operators.md (`x_zero_point must be zero`), NvInfer.h on IQuantizeLayer (scales positive, as
many as the axis is long, zero point an initializer), TensorRT's guide "Working with Quantized Types" (activations per
tensor, weights per output channel), and what the parser of TensorRT for RTX 1.7.1 does.
"""

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from export.tensorrt.reading import Finding, Scope, Site, name_of, size, type_name

QUANTIZED = frozenset({TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.FLOAT4E2M1})
OUTPUT_AXES = {"Conv": 0, "ConvTranspose": 1}
SYMMETRIC = "quantise with symmetric int8: QInt8, ActivationSymmetric, WeightSymmetric"


def quantization(site: Site, kind: str) -> Iterator[Finding]:
    """Findings about one QuantizeLinear or DequantizeLinear, rule `quantization`."""
    if site.node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    problem, remedy = _types(site) or _zero_point(site) or _scale(site) or ("", "")
    if problem:
        yield site.finding("quantization", problem, remedy)
        return
    axis = _axis(site)
    if axis:
        # RTX finishes its kernels on the GPU: its ahead-of-time build takes any axis.
        yield site.finding("quantization", *axis, "error" if kind == "tensorrt" else "warning")


def quantized_constant(node: NodeProto, name: str, scope: Scope) -> tuple[str, str] | None:
    """(problem, remedy) where a constant of a quantised type is taken by another operator than DequantizeLinear.

    Source: RTX 1.7.1's builder, "Quantized constant is only allowed before DQ".
    """
    maker = scope.maker(name)
    is_constant = scope.constant(name) and (maker is None or maker.op_type == "Constant")
    if not is_constant or scope.type(name) not in QUANTIZED:
        return None
    if node.op_type == "DequantizeLinear" or (node.op_type == "QuantizeLinear" and name != node.input[0]):
        return None
    return f"the {type_name(scope.type(name))} constant {name!r} is not taken by DequantizeLinear", (
        "store it in the layout that DequantizeLinear takes, or as int32"
    )


def _types(site: Site) -> tuple[str, str] | None:
    data, zero = site.scope.type(site.input(0)), site.scope.type(site.input(2))
    if site.node.op_type == "DequantizeLinear":
        if data == TensorProto.INT32:
            return f"dequantises the int32 tensor {site.input(0)!r}", "keep biases float: QuantizeBias=False"
        stored = data
    else:
        # Without a zero point ONNX means uint8, the parser int8: the same file would compute two things.
        asked = site.attribute("output_dtype", 0)
        stored = zero or asked or TensorProto.UINT8
    for found in (stored, zero):
        if found is not None and found not in QUANTIZED:
            return f"quantises to {type_name(found)}", SYMMETRIC
    return None


def _zero_point(site: Site) -> tuple[str, str] | None:
    name = site.input(2)
    if not name:
        return None
    maker = site.scope.maker(name)
    if not site.scope.constant(name):
        return f"the zero point {name!r} is no constant", SYMMETRIC
    value = site.scope.value(name)
    if value is None and maker is not None and maker.op_type != "Constant":
        return f"the zero point {name!r} is computed", SYMMETRIC
    if value is not None and np.any(value.astype(np.float32)):
        return f"the zero point {name!r} is not 0", SYMMETRIC
    return None


def _scale(site: Site) -> tuple[str, str] | None:
    name, scope = site.input(1), site.scope
    value = scope.value(name)
    if value is not None:
        numbers = value.astype(np.float32)
        if not np.all(np.isfinite(numbers)) or not np.all(numbers > 0):
            return f"the scale {name!r} is not positive and finite", "calibrate with frames that reach this tensor"
    scales, data, zero = scope.shape(name), scope.shape(site.input(0)), scope.shape(site.input(2))
    if scales is None or data is None:
        return None
    if site.input(2) and zero is not None and size(zero) != size(scales):
        return f"{size(scales)} scales but {size(zero)} zero points", "write as many zero points as scales"
    if len(scales) != 1 or scales[0] == 1:
        return None
    axis = site.attribute("axis", 1)
    if not -len(data) <= axis < len(data):
        return f"the axis {axis} is not one of {len(data)}", "name the axis of the channels"
    if scales[0] != data[axis]:
        return f"{scales[0]} scales along axis {axis}, which has {data[axis]} elements", "name the axis of the channels"
    return None


def _axis(site: Site) -> tuple[str, str] | None:
    """Per-channel scales belong to weights, along their output channels."""
    scales, data = site.scope.shape(site.input(1)), site.scope.shape(site.input(0))
    if scales is None or data is None or len(scales) != 1 or scales[0] == 1:
        return None
    if not site.scope.constant(site.input(0)):
        return "quantises an activation per channel", "quantise activations per tensor"
    axis = site.attribute("axis", 1) % len(data)
    for user in site.scope.users_of(site.output(0)):
        expected = OUTPUT_AXES.get(user.op_type, axis)
        if user.op_type == "MatMul":
            expected = len(data) - 1
        elif user.op_type == "Gemm":
            expected = 0 if any(a.name == "transB" and a.i for a in user.attribute) else 1
        if expected != axis:
            return (
                f"the weights of {user.op_type} {name_of(user)!r} are scaled along axis {axis}",
                f"scale them along their output channels, axis {expected}",
            )
    return None
