"""NVIDIA's Model Optimizer as a second source of ranges, where it is installed: `pip install "damp-deploy[modelopt]"`.

It quantises a copy of the graph on the CPU; of that only the scales of what our products take are read. The graph that
flies is always written by `calibration.quantized`, so that its rules hold whoever chose the ranges. Two of its ways are
tried: `max`, and `entropy`, which differs from ours in how it bins. The ways that it refuses for a graph are left out.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from .quantized import LEVELS
from .ranges import Feeds

WAYS = ("max", "entropy")


def available() -> bool:
    """It is installed with all that it needs for ONNX graphs."""
    return find_spec("modelopt") is not None and find_spec("onnx_graphsurgeon") is not None


def modelopt_ranges(graph: bytes, inputs: Mapping[str, str], samples: Iterable[Feeds], way: str) -> dict[str, float]:
    """{product: range} as Model Optimizer chooses it; products that it leaves alone are missing.

    Args:
        graph: a float32 graph.
        inputs: product -> the tensor it takes.
        samples: what the graph is fed with, {input: array} each; Model Optimizer holds them all in memory.
        way: of `WAYS`.
    """
    from modelopt.onnx.quantization import quantize

    feeds = list(samples)
    data = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    logging.getLogger("modelopt").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, target = Path(folder) / "graph.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            quantize(
                onnx_path=str(source),
                quantize_mode="int8",
                calibration_data=data,
                calibration_method=way,
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                output_path=str(target),
                log_level="ERROR",
            )
        model = onnx.load(str(target))
    constants = {i.name: i for i in model.graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    scales = {
        node.input[0]: float(numpy_helper.to_array(constants[node.input[1]]).max()) * LEVELS
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[1] in constants
    }
    return {product: scales[tensor] for product, tensor in inputs.items() if tensor in scales}
