"""ONNX Runtime on an NVIDIA GPU through CUDA, TensorRT or TensorRT for RTX; no node ever runs on the CPU instead.

On a machine without a GPU only the refusals were run, and the check of where nodes run on a session of the CPU's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from runtime.errors import MachineError

from .contract import Engine, EngineOptions, EngineSpec, Float32, check_signature
from .onnx_guard import check_onnx
from .onnxruntime_session import REINSTALL_GPU, TELL_PLACES, check_placement, session_shapes
from .tensorrt_libraries import REMEDIES, RTX_PLUGIN

NO_CPU = {"session.disable_cpu_ep_fallback": "1", **TELL_PLACES}
TF32 = "NVIDIA_TF32_OVERRIDE"


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's providers.

    Attributes:
        name: ONNX Runtime's.
        plugin: it comes as a library of its own.
        tf32_option: an option turns TF32 off; the others read an environment variable.
    """

    name: str
    plugin: bool = False
    tf32_option: bool = False

    def options(self) -> dict[str, str]:
        """What the provider is told.

        TF32 keeps 10 bits of a float32, a precision that nobody asked for. Without a word on precision both TensorRT
        providers build strongly typed networks, which keep the graph's own types.
        """
        return {"device_id": "0", "use_tf32": "0"} if self.tf32_option else {}


PROVIDERS = {
    "onnxruntime-cuda": Provider("CUDAExecutionProvider", tf32_option=True),
    "onnxruntime-tensorrt": Provider("TensorrtExecutionProvider"),
    "onnxruntime-rtx": Provider("NvTensorRTRTXExecutionProvider", plugin=True),
}


def available(kind: str) -> str | None:
    """Version of ONNX Runtime where it has this provider, or None; says nothing of a GPU."""
    try:
        import onnxruntime
    except ImportError:
        return None
    provider = PROVIDERS[kind]
    has = find_spec(RTX_PLUGIN) if provider.plugin else provider.name in onnxruntime.get_available_providers()
    return str(onnxruntime.__version__) if has else None


class OnnxRuntimeGpu(Engine):
    """A session with one provider of the GPU."""

    def __init__(self, session: Any, spec: EngineSpec, kind: str, placement: str, precision: str) -> None:
        super().__init__(spec)
        self._session, self._kind, self._placement, self._precision = session, kind, placement, precision

    def infer_impl(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32]:
        if self._session is None:
            raise MachineError("the engine is closed", key="engine", value=self._kind, remedy="open it again")
        try:
            restored, gates = self._session.run(["restored", "gates"], {"frame": frame, "metrics": metrics})
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as error:
            raise MachineError(
                "ONNX Runtime failed on a frame",
                key=self._kind,
                value=_cause(error),
                remedy="free memory of the GPU, or check the bundle here",
            ) from error
        return restored, gates

    def describe(self) -> dict[str, str]:
        return {
            "engine": self._kind,
            "version": available(self._kind) or "",
            "device": f"GPU 0, {PROVIDERS[self._kind].name}",
            # bfloat16 is another engine's arithmetic on the float32 graph.
            "computes in": "fp32" if self._precision == "bf16" else self._precision,
            "placement": self._placement,
        }

    def close(self) -> None:
        self._session = None


def open_engine(graph: bytes, spec: EngineSpec, options: EngineOptions, kind: str) -> OnnxRuntimeGpu:
    """See `runtime.engines.open_engine`.

    Args:
        kind: one of PROVIDERS.

    Raises:
        MachineError: also where the provider would leave any node to the CPU.
    """
    check_onnx(graph)
    provider = PROVIDERS[kind]
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MachineError("ONNX Runtime is not installed", key=kind, remedy=REINSTALL_GPU) from error
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    for key, value in NO_CPU.items():
        settings.add_session_config_entry(key, value)
    chosen = _plugin(ort, settings, kind) if provider.plugin else _built_in(ort, kind)
    if not provider.tf32_option:
        forbid_tf32(kind)
    try:
        # Its Python layer would try again with the CPU, when it opens and even after a failed frame.
        session = ort.InferenceSession(graph, settings, enable_fallback=0, **chosen)
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise MachineError(
            f"ONNX Runtime cannot run the whole graph with {provider.name}",
            key=kind,
            value=_cause(error),
            remedy="check the GPU with `nvidia-smi`, and that CUDA, cuDNN and TensorRT are those it was made for",
        ) from error
    session.disable_fallback()
    placement = check_placement(session, provider.name)
    check_signature(session_shapes(session), spec)
    return OnnxRuntimeGpu(session, spec, kind, placement, options.precision)


def _built_in(ort: ModuleType, kind: str) -> dict[str, Any]:
    provider = PROVIDERS[kind]
    if provider.name not in ort.get_available_providers():
        raise MachineError(
            f"this ONNX Runtime was made without {provider.name}",
            key=kind,
            value=", ".join(ort.get_available_providers()),
            remedy=REINSTALL_GPU,
        )
    return {"providers": [(provider.name, provider.options())]}


def _plugin(ort: ModuleType, settings: Any, kind: str) -> dict[str, Any]:
    name = PROVIDERS[kind].name
    if find_spec(RTX_PLUGIN) is None:
        raise MachineError(
            "ONNX Runtime's plug-in for TensorRT for RTX is not installed", key=kind, remedy=REMEDIES["tensorrt-rtx"]
        )
    try:
        devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
        if not devices:
            # A library that is registered already would be an error.
            ort.register_execution_provider_library(name, import_module(RTX_PLUGIN).get_library_path())
            devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise MachineError(
            "ONNX Runtime cannot load its plug-in for TensorRT for RTX",
            key=kind,
            value=_cause(error),
            remedy="install the NVIDIA driver, which brings libcuda; `nvidia-smi` tells whether it is there",
        ) from error
    if not devices:
        raise MachineError(
            "TensorRT for RTX finds no GPU that it supports", key=kind, remedy="`nvidia-smi` tells which GPUs are there"
        )
    settings.add_provider_for_devices(devices[:1], PROVIDERS[kind].options())
    return {}


def forbid_tf32(kind: str) -> None:
    """Turn TF32 off for the process: these providers have no option, and NVIDIA's libraries read a variable once.

    Raises:
        MachineError: the environment says otherwise.
    """
    if os.environ.setdefault(TF32, "0") != "0":
        raise MachineError(
            "the environment lets the GPU compute float32 as TF32",
            key=TF32,
            value=os.environ[TF32],
            remedy=f"unset it for {kind}",
        )


def _cause(error: Exception) -> str:
    """The end of ONNX Runtime's message, without its code and the path of its library: there it says why."""
    return str(error).rsplit(" : ", 1)[-1].rsplit(" with error: ", 1)[-1]
