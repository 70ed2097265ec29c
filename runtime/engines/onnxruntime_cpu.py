"""ONNX Runtime on the CPU: the portable engine."""

from __future__ import annotations

import platform
from typing import Any

from runtime.errors import BundleError, MachineError
from runtime.machine import available_cores

from .contract import Engine, EngineOptions, EngineSpec, Float32, check_signature
from .onnx_guard import check_onnx
from .onnxruntime_session import TELL_PLACES, check_placement, session_shapes

PROVIDER = "CPUExecutionProvider"


def available() -> str | None:
    """Version of ONNX Runtime, or None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__)


def computes_in(precision: str) -> str:
    """Types in which a bundle of this precision is computed here, for people.

    ONNX Runtime puts casts to float32 around FP16 nodes that it has no FP16 kernel for: on x86 around all that compute
    (seen in 1.31), on ARM not around convolutions and products (its issues 28487 and 29076).
    """
    if precision == "fp16":
        types = "fp32" if platform.machine().lower() in ("x86_64", "amd64") else "fp32 and fp16"
        return f"{types}, from an FP16 graph"
    if precision == "int8":
        # It has int8 kernels where outputs are int8 too, and computes the rest from dequantised values (seen in 1.31).
        return "fp32 and int8, from an int8 graph"
    # bfloat16 is another engine's arithmetic on the float32 graph.
    return "fp32" if precision == "bf16" else precision


class OnnxRuntimeCpu(Engine):
    """A session with the CPU provider and no other."""

    def __init__(self, session: Any, spec: EngineSpec, threads: int, placement: str, precision: str) -> None:
        super().__init__(spec)
        self._session, self._threads, self._placement, self._precision = session, threads, placement, precision

    def infer_impl(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32]:
        try:
            restored, gates = self._session.run(["restored", "gates"], {"frame": frame, "metrics": metrics})
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as error:
            raise MachineError(
                "ONNX Runtime failed on a frame", value=str(error), remedy="free memory, or check the bundle here"
            ) from error
        return restored, gates

    def describe(self) -> dict[str, str]:
        return {
            "engine": "onnxruntime",
            "version": available() or "",
            "device": f"CPU, {self._threads} threads",
            "computes in": computes_in(self._precision),
            "placement": self._placement,
        }


def open_engine(graph: bytes, spec: EngineSpec, options: EngineOptions) -> OnnxRuntimeCpu:
    """See `runtime.engines.open_engine`."""
    check_onnx(graph)
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MachineError(
            "ONNX Runtime is not installed", key="engine", remedy='pip install "damp-deploy[cpu]"'
        ) from error
    threads = options.threads or available_cores()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    for key, value in TELL_PLACES.items():
        settings.add_session_config_entry(key, value)
    try:
        session = ort.InferenceSession(graph, settings, providers=[PROVIDER])
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise BundleError(
            "ONNX Runtime cannot load the graph", value=str(error), remedy="build the bundle again"
        ) from error
    placement = check_placement(session, PROVIDER)
    check_signature(session_shapes(session), spec)
    return OnnxRuntimeCpu(session, spec, threads, placement, options.precision)
