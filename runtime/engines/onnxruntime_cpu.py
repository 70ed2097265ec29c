"""ONNX Runtime on the CPU: the portable engine."""

from __future__ import annotations

from typing import Any

from runtime.errors import BundleError, MachineError
from runtime.machine import available_cores

from .contract import Engine, EngineOptions, EngineSpec, Float32
from .onnx_guard import check_onnx

PROVIDER = "CPUExecutionProvider"


def available() -> str | None:
    """Version of ONNX Runtime, or None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__)


class OnnxRuntimeCpu(Engine):
    """A session with the CPU provider and no other."""

    def __init__(self, session: Any, spec: EngineSpec, threads: int) -> None:
        super().__init__(spec)
        self._session, self._threads = session, threads

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
            "providers": ", ".join(self._session.get_providers()),
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
    try:
        session = ort.InferenceSession(graph, settings, providers=[PROVIDER])
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise BundleError(
            "ONNX Runtime cannot load the graph", value=str(error), remedy="build the bundle again"
        ) from error
    if session.get_providers() != [PROVIDER]:
        raise MachineError(
            "ONNX Runtime chose another provider than asked for",
            key="provider",
            value=session.get_providers(),
            remedy="reinstall onnxruntime",
        )
    _check_signature(session, spec)
    return OnnxRuntimeCpu(session, spec, threads)


def _check_signature(session: Any, spec: EngineSpec) -> None:
    expected = {
        "frame": spec.frame_shape,
        "metrics": spec.metrics_shape,
        "restored": spec.frame_shape,
        "gates": spec.gates_shape,
    }
    found = {a.name: (tuple(a.shape), a.type) for a in (*session.get_inputs(), *session.get_outputs())}
    for name, shape in expected.items():
        if found.get(name) != (shape, "tensor(float)"):
            raise BundleError(
                "the graph is not the one that the manifest describes",
                key=name,
                value=found.get(name),
                remedy=f"float32 {shape} expected; build the bundle again",
            )
    if set(found) != set(expected):
        raise BundleError(
            "the graph has other inputs or outputs than frame, metrics, restored and gates",
            value=sorted(found),
            remedy="build the bundle again",
        )
