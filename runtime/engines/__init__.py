"""Engines by name; one file per backend, imported only when it is asked for."""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from runtime.errors import BundleError, InputError
from runtime.signature import Ports, Signature

from .contract import Built, Engine, EngineOptions
from .onnx_cost import Cost
from .onnx_guard import check_graph
from .onnxruntime_session import BoundSession

ENGINES: dict[str, str] = {
    "onnxruntime": "runtime.engines.onnxruntime_cpu",
    "openvino": "runtime.engines.openvino_cpu",
    "tensorrt": "runtime.engines.tensorrt:tensorrt",
    "tensorrt-rtx": "runtime.engines.tensorrt:tensorrt-rtx",
    "onnxruntime-cuda": "runtime.engines.onnxruntime_gpu:onnxruntime-cuda",
    "onnxruntime-tensorrt": "runtime.engines.onnxruntime_gpu:onnxruntime-tensorrt",
    "onnxruntime-rtx": "runtime.engines.onnxruntime_gpu:onnxruntime-rtx",
}
"""Engine name -> module with `open_engine(program, signature, options)`, `available()` and `EXTRAS`.

A module of several engines has `:kind` after it, which is given to both functions as their last argument. EXTRAS tells
which extra of this distribution brings each of them.
"""
GPU_ENGINES = frozenset({"tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx"})
"""Those that run on an NVIDIA GPU."""
ENGINE_FILES = ("tensorrt", "tensorrt-rtx")
"""Those that load a file built for one kind of GPU; the others load the graph itself."""
CPU_ENGINES = tuple(name for name in ENGINES if name not in GPU_ENGINES)
PORTABLE = "onnxruntime"
"""The one in which graphs are measured wherever they fly; it has no bfloat16."""
METRICS_ENGINES = ("onnxruntime", "onnxruntime-cuda")
"""Those that compute the metrics of a frame too, from a graph of their own: their modules have `open_session`."""

__all__ = [
    "CPU_ENGINES",
    "ENGINES",
    "ENGINE_FILES",
    "GPU_ENGINES",
    "METRICS_ENGINES",
    "PORTABLE",
    "Built",
    "Cost",
    "Engine",
    "EngineOptions",
    "available_engines",
    "extra_of",
    "open_engine",
    "open_extractor",
    "open_metrics",
    "refuse_unknown",
]


def refuse_unknown(name: str) -> None:
    """Raise InputError where no engine that somebody asks for has that name."""
    if name not in ENGINES:
        raise InputError("unknown engine", key="engine", value=name, remedy=f"one of {', '.join(ENGINES)}")


def open_engine(name: str, program: bytes, signature: Signature, options: EngineOptions | None = None) -> Engine:
    """Load a graph, or an engine file, into the named engine: the bytes that were hashed, never a path.

    A graph is judged before its engine's library is imported: see `check_graph`.

    Raises:
        BundleError: unknown engine, the graph is not what the specification says, or asks for too much.
        MachineError: the engine is not installed or cannot run here.
    """
    if name not in ENGINES:
        raise BundleError("unknown engine", key="engine", value=name, remedy=f"one of {', '.join(ENGINES)}")
    options = options or EngineOptions()
    if name not in ENGINE_FILES:
        check_graph(program, options.cost)
    module, kind = _backend(name)
    engine: Engine = module.open_engine(program, signature, options, *kind)
    return engine


def open_metrics(name: str, graph: bytes, signature: Signature, options: EngineOptions | None = None) -> BoundSession:
    """Load a graph `frame` -> `metrics` into the named engine, one of METRICS_ENGINES; it is computed in float32.

    Raises:
        BundleError: the graph is not what the specification says, or asks for too much.
        MachineError: the engine is not installed or cannot run here.
    """
    return _session(name, graph, signature.metrics_ports, options)


def open_extractor(name: str, graph: bytes, signature: Signature, options: EngineOptions | None = None) -> BoundSession:
    """Load a graph `frame` -> `embedding`; as `open_metrics`."""
    return _session(name, graph, signature.embedding_ports, options)


def _session(name: str, graph: bytes, ports: Ports, options: EngineOptions | None) -> BoundSession:
    options = options or EngineOptions()
    check_graph(graph, options.cost)
    module, kind = _backend(name)
    session: BoundSession = module.open_session(graph, ports, EngineOptions(options.threads), *kind)
    return session


def available_engines() -> dict[str, str | None]:
    """{engine: version, or None where it is not installed}."""
    backends = {name: _backend(name) for name in ENGINES}
    return {name: module.available(*kind) for name, (module, kind) in backends.items()}


def extra_of(name: str) -> str:
    """The extra of this distribution that brings an engine, or nothing for one that came another way."""
    extras: Mapping[str, str] = getattr(_backend(name)[0], "EXTRAS", {})
    return extras.get(name, "")


def _backend(name: str) -> tuple[ModuleType, tuple[str, ...]]:
    module, *kind = ENGINES[name].split(":")
    return import_module(module), tuple(kind)
