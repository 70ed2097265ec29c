"""ONNX Runtime on the CPU: the portable engine."""

import platform
from contextlib import ExitStack

from runtime.errors import BundleError, MachineError
from runtime.machine import available_cores
from runtime.signature import Ports, Signature

from .buffers import HostMemory
from .contract import EngineOptions
from .onnxruntime_session import TELL_PLACES, BoundSession, SessionEngine

EXTRAS = {"onnxruntime": "cpu"}
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


def open_engine(graph: bytes, signature: Signature, options: EngineOptions) -> SessionEngine:
    """See `runtime.engines.open_engine`."""
    return SessionEngine(open_session(graph, signature.ports, options), signature)


def open_session(graph: bytes, ports: Ports, options: EngineOptions) -> BoundSession:
    """Load any graph; raises as `runtime.engines.open_engine`."""
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
    # Buffers planned from the second frame on live beside those of the first: twice the memory, no faster (1.31).
    settings.enable_mem_pattern = False
    for key, value in TELL_PLACES.items():
        settings.add_session_config_entry(key, value)
    try:
        session = ort.InferenceSession(graph, settings, providers=[PROVIDER])
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise BundleError(
            "ONNX Runtime cannot load the graph", value=str(error), remedy="build the bundle again"
        ) from error
    told = {
        "engine": "onnxruntime",
        "version": str(ort.__version__),
        "device": f"CPU, {threads} threads",
        "computes in": computes_in(options.precision),
    }
    return BoundSession(session, PROVIDER, HostMemory(ports), told, ExitStack())
