"""OpenVINO on the CPU: the same graph, often faster; bfloat16 only where the bundle says so."""

import sys
from typing import Any

import numpy as np

from runtime.arrays import Float32
from runtime.errors import BundleError, MachineError
from runtime.machine import available_cores
from runtime.signature import Signature

from .contract import Engine, EngineOptions, check_signature

EXTRAS = {"openvino": "openvino"}
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Precision of a bundle -> type in which OpenVINO may compute what is not int8; without the word it would choose
bfloat16 by itself."""
PRODUCTS = ("FullyConnected", "Convolution", "GroupConvolution", "ConvolutionBackpropData")
"""Layers with weights, as OpenVINO names them when it has compiled a graph; int8 ones may have more behind it."""


def _silenced() -> None:
    """Keep OpenVINO from telling its maker, over the network, that it was imported; call it before that.

    It would fork a process for it, and write to the user's home, unless somebody had told it not to.
    """
    # None makes an import fail, and OpenVINO then takes the stub that it has for where this is not installed.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def available() -> str | None:
    """Version of OpenVINO, or None where it is not installed."""
    _silenced()
    try:
        import openvino
    except ImportError:
        return None
    return str(openvino.__version__).split("-")[0]


class OpenVinoCpu(Engine):
    """A compiled model and its one request on the CPU device."""

    def __init__(self, request: Any, signature: Signature, threads: int, precision: str) -> None:
        super().__init__(signature)
        self._request, self._threads, self._precision = request, threads, precision

    def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
        ports = self.signature.ports
        try:
            results = self._request.infer(dict(zip(ports.inputs, inputs, strict=True)), share_inputs=True)
        # OpenVINO says RuntimeError for all that can go wrong in a frame.
        except RuntimeError as error:
            raise MachineError(
                "OpenVINO failed on a frame", value=str(error), remedy="free memory, or check the bundle here"
            ) from error
        return tuple(np.array(results[name]) for name in ports.outputs)

    def close(self) -> None:
        """Give back the compiled model; a frame after it fails."""
        self._request = None

    def describe(self) -> dict[str, str]:
        return {
            "engine": "openvino",
            "version": available() or "",
            "device": f"CPU, {self._threads} threads",
            "computes in": self._precision,
        }


def open_engine(graph: bytes, signature: Signature, options: EngineOptions) -> OpenVinoCpu:
    """See `runtime.engines.open_engine`."""
    _silenced()
    try:
        import openvino as ov
    except ImportError as error:
        raise MachineError(
            "OpenVINO is not installed", key="engine", remedy='pip install "damp-deploy[openvino]"'
        ) from error
    if options.precision not in PRECISIONS:
        raise MachineError(
            "OpenVINO does not run this precision here",
            key="precision",
            value=options.precision,
            remedy=f"it runs {', '.join(PRECISIONS)}",
        )
    wanted = PRECISIONS[options.precision]
    threads = options.threads or available_cores()
    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": wanted,
        "EXECUTION_MODE_HINT": "ACCURACY" if options.precision == "fp32" else "PERFORMANCE",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
    }
    # OpenVINO says RuntimeError for a graph it cannot read, and for one it cannot run here.
    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        raise BundleError(
            "OpenVINO cannot load the graph", value=str(error), remedy="build the bundle again"
        ) from error
    try:
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise MachineError(
            "OpenVINO cannot compile the graph for this CPU",
            key="precision",
            value=str(error),
            remedy="open the bundle with engine onnxruntime, or build with --precision fp32",
        ) from error
    check_signature(_shapes(compiled), signature.ports)
    computes = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if computes != wanted:
        raise MachineError(
            "OpenVINO computes in another type than asked for on this CPU",
            key="precision",
            value=computes,
            remedy="build with --precision fp32",
        )
    computed = options.precision
    if options.precision == "int8":
        quantised, products = _in_int8(compiled)
        if not quantised:
            raise MachineError(
                "OpenVINO runs nothing of this int8 graph in int8 on this CPU",
                key="precision",
                value=options.precision,
                remedy="build with --precision fp32",
            )
        computed = f"int8 in {quantised} of {products} products, fp32"
    return OpenVinoCpu(compiled.create_infer_request(), signature, threads, computed)


def _in_int8(compiled: Any) -> tuple[int, int]:
    """(products that are computed in int8, all with weights) of a compiled model."""
    kinds = []
    for node in compiled.get_runtime_model().get_ops():
        told = node.get_rt_info()
        if "layerType" in told and told["layerType"].astype(str).startswith(PRODUCTS):
            kinds.append(told["primitiveType"].astype(str).lower())
    return sum("i8" in kind for kind in kinds), len(kinds)


def _shapes(compiled: Any) -> dict[str, tuple[int, ...] | None]:
    ports = (*compiled.inputs, *compiled.outputs)
    return {p.any_name: tuple(p.shape) if p.element_type.to_string() == "f32" else None for p in ports}
