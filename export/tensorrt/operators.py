"""Operators that each generation of TensorRT's ONNX parser knows, and the opsets that it is documented for.

Sources: the operator table of onnx-tensorrt (docs/operators.md) as of 10.6 and of 10.15; its changelog, which dates the
windows to 10.4 and STFT to 10.5; for RTX the operators that the parser of 1.7.1 itself lists. What the tables call
unsupported is left out, and so is what is not in every release since: 10.15's additions count from 10.15 on.
"""

from runtime.versions import numbers

# fmt: off
_COMMON = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout",
    "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool",
    "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax",
    "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul",
    "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg",
    "NonMaxSuppression", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RNN", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round", "Scan", "Scatter",
    "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
    "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan",
    "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
))
# fmt: on
"""Known to TensorRT 10.3 and all later ones, and to TensorRT for RTX."""
_PLAIN = frozenset({"DeformConv", "ImageScaler", "NonZero", "ParametricSoftplus", "ScaledTanh"})
"""Known to TensorRT, not to TensorRT for RTX: there NonZero and DeformConv ask for a plug-in that is not there."""
_SINCE: tuple[tuple[tuple[int, ...], frozenset[str]], ...] = (
    ((10, 4), frozenset({"BlackmanWindow", "HammingWindow", "HannWindow"})),
    ((10, 5), frozenset({"STFT"})),
    ((10, 15), frozenset({"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"})),
)
_RTX_ONLY = frozenset({"CausalConvWithState", "LinearAttention", "Swish"})

OLDEST = {"tensorrt": "10.3", "tensorrt-rtx": "1.7"}
"""The oldest version of each kind that this project builds for."""


def operators(tensorrt: str, kind: str) -> frozenset[str]:
    """ONNX operators that the parser of that version knows.

    Args:
        tensorrt: a version, such as `10.3`; from `OLDEST` on.
        kind: `tensorrt` or `tensorrt-rtx`.
    """
    if kind == "tensorrt-rtx":
        return _COMMON.union(_RTX_ONLY, *(more for _, more in _SINCE))
    return _COMMON.union(_PLAIN, *(more for since, more in _SINCE if numbers(tensorrt) >= since))
