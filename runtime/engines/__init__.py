"""Engines by name; one file per backend, imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module

from runtime.errors import BundleError

from .contract import Built, Engine, EngineOptions, EngineSpec

ENGINES: dict[str, str] = {
    "onnxruntime": "runtime.engines.onnxruntime_cpu",
    "openvino": "runtime.engines.openvino_cpu",
}
"""Engine name -> module with `open_engine(program, spec, options)` and `available()`."""

__all__ = ["ENGINES", "Built", "Engine", "EngineOptions", "EngineSpec", "available_engines", "open_engine"]


def open_engine(name: str, program: bytes, spec: EngineSpec, options: EngineOptions | None = None) -> Engine:
    """Load a graph, or an engine file, into the named engine: the bytes that were hashed, never a path.

    Raises:
        BundleError: unknown engine, or the graph is not what the specification says.
        MachineError: the engine is not installed or cannot run here.
    """
    if name not in ENGINES:
        raise BundleError("unknown engine", key="engine", value=name, remedy=f"one of {', '.join(ENGINES)}")
    engine: Engine = import_module(ENGINES[name]).open_engine(program, spec, options or EngineOptions())
    return engine


def available_engines() -> dict[str, str | None]:
    """{engine: version, or None where it is not installed}."""
    return {name: import_module(module).available() for name, module in ENGINES.items()}
