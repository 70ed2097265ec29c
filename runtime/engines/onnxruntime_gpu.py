"""ONNX Runtime on an NVIDIA GPU through CUDA, TensorRT or TensorRT for RTX; no node ever runs on the CPU instead.

On a machine without a GPU only the refusals were run, and the session itself on memory of the CPU's.
"""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from runtime.errors import MachineError
from runtime.signature import Ports, Signature

from .buffers import GpuMemory
from .contract import EngineOptions
from .cuda import CAPTURE_REFUSED, open_cuda
from .onnxruntime_libraries import loads_tensorrt, make_known, missing_library, provider_library
from .onnxruntime_session import REINSTALL_GPU, TELL_PLACES, BoundSession, SessionEngine, cause, without_frames
from .tensorrt_libraries import REMEDIES, RTX_PLUGIN

NO_CPU = {"session.disable_cpu_ep_fallback": "1", **TELL_PLACES}
TF32 = "NVIDIA_TF32_OVERRIDE"
CUDA_GRAPH, PLAIN = "CUDA graph", "plain"
"""How a frame is launched."""
REFUSED = re.compile(
    r"(This session cannot use the (graph capture|CUDA Graph) feature|Graph capture did not complete|"
    rf"CaptureEnd: graph_ is NULL|CUDA failure ({'|'.join(map(str, CAPTURE_REFUSED))}):)[^;\n]*"
)
"""What ONNX Runtime 1.23 to 1.31 says where it cannot capture a graph, when it opens one or runs its first frame."""


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's providers.

    Attributes:
        name: ONNX Runtime's.
        library: its own, as `provider_library` knows it; None where it comes as a plug-in.
        tf32_option: an option turns TF32 off; the others read an environment variable.
        captures: ONNX Runtime can make a frame one CUDA graph.
    """

    name: str
    library: str | None = None
    tf32_option: bool = False
    captures: bool = False

    def options(self) -> dict[str, str]:
        """What the provider is told.

        TF32 keeps 10 bits of a float32, a precision that nobody asked for. Without a word on precision both TensorRT
        providers build strongly typed networks, which keep the graph's own types.
        """
        return {"device_id": "0", "use_tf32": "0"} if self.tf32_option else {}


PROVIDERS = {
    "onnxruntime-cuda": Provider("CUDAExecutionProvider", "cuda", tf32_option=True, captures=True),
    "onnxruntime-tensorrt": Provider("TensorrtExecutionProvider", "tensorrt"),
    "onnxruntime-rtx": Provider("NvTensorRTRTXExecutionProvider"),
}
EXTRAS = {"onnxruntime-cuda": "gpu", "onnxruntime-tensorrt": "gpu,tensorrt", "onnxruntime-rtx": "rtx"}


def available(kind: str) -> str | None:
    """Version of ONNX Runtime where it has this provider and its TensorRT, or None; says nothing of a GPU."""
    try:
        import onnxruntime
    except ImportError:
        return None
    provider = PROVIDERS[kind]
    if provider.library is None:
        has = find_spec(RTX_PLUGIN) is not None
    else:
        has = provider.name in onnxruntime.get_available_providers()
    if has and provider.library == "tensorrt":
        has = loads_tensorrt(onnxruntime)
    return str(onnxruntime.__version__) if has else None


def open_engine(graph: bytes, signature: Signature, options: EngineOptions, kind: str) -> SessionEngine:
    """See `runtime.engines.open_engine`; `kind` is one of PROVIDERS."""
    return SessionEngine(open_session(graph, signature.ports, options, kind), signature)


def open_session(graph: bytes, ports: Ports, options: EngineOptions, kind: str) -> BoundSession:
    """Load any graph; raises as `runtime.engines.open_engine`.

    Raises:
        MachineError: also where the provider would leave any node to the CPU.
    """
    provider = PROVIDERS[kind]
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MachineError("ONNX Runtime is not installed", key=kind, remedy=REINSTALL_GPU) from error
    # What fails is told by the error; its log would tell it again.
    ort.set_default_logger_severity(4)
    if not provider.tf32_option:
        forbid_tf32(kind)
    devices = _plugged_in(ort, kind) if provider.library is None else None
    if devices is None:
        _built_in(ort, kind)
    cuda = open_cuda()
    device = cuda.device()
    told = {
        "engine": kind,
        "version": str(ort.__version__),
        "device": f"{device.name or 'GPU'}, compute capability {device.sm}",
        "computes in": computes_in(kind, options.precision),
        "cuda": f"{cuda.version}, driver for {cuda.driver_version}",
    }

    def opened(launches: str) -> BoundSession:
        undo = ExitStack()
        try:
            memory = GpuMemory(cuda, device, ports, undo)
            asked = {**provider.options(), "user_compute_stream": str(memory.stream)}
            if launches == CUDA_GRAPH:
                asked["enable_cuda_graph"] = "1"
            how = {"launches": launches, "memory": memory.told}
            session = _session(ort, graph, kind, asked, devices)
            bound = BoundSession(session, provider.name, memory, told | how, undo)
            # Its alone: nothing else may keep it.
            del session
            # What is made once is made now, a CUDA graph too; ONNX Runtime captures one for each thread that asks.
            bound.run()
        except BaseException:
            # CUDA may refuse to free as well: why it could not be opened is the error to tell.
            with suppress(MachineError):
                undo.close()
            raise
        return bound

    return captured_or_plain(opened) if provider.captures else opened(PLAIN)


def captured_or_plain(opened: Callable[[str], BoundSession]) -> BoundSession:
    """A session whose frames are one CUDA graph. Where that is refused, and only then, they are launched plainly."""
    try:
        return opened(CUDA_GRAPH)
    except MachineError as error:
        refused = REFUSED.search(str(error.__cause__))
        if refused is None:
            raise
    return opened(f"{PLAIN}, a CUDA graph was refused: {refused[0].strip()}")


def computes_in(kind: str, precision: str) -> str:
    """Types in which a bundle of this precision is computed here, for people."""
    if precision == "int8" and kind == "onnxruntime-cuda":
        # It has no int8 convolutions or products: it computes them from dequantised values.
        return "floating point, from an int8 graph"
    # bfloat16 is another engine's arithmetic on the float32 graph.
    return "fp32" if precision == "bf16" else precision


def _built_in(ort: ModuleType, kind: str) -> None:
    """Make sure that there is such a provider, and that what it is linked to is known."""
    provider = PROVIDERS[kind]
    if provider.name not in ort.get_available_providers():
        raise MachineError(
            f"this ONNX Runtime was made without {provider.name}",
            key=kind,
            value=", ".join(ort.get_available_providers()),
            remedy=REINSTALL_GPU,
        )
    make_known(ort)
    if provider.library == "tensorrt":
        loads_tensorrt(ort)


def _plugged_in(ort: ModuleType, kind: str) -> list[Any]:
    """Devices of a provider that is a plug-in."""
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
            value=cause(error),
            remedy="install the NVIDIA driver, which brings libcuda; `nvidia-smi` tells whether it is there",
        ) from error
    if not devices:
        raise MachineError(
            "TensorRT for RTX finds no GPU that it supports", key=kind, remedy="`nvidia-smi` tells which GPUs are there"
        )
    return devices[:1]


def _session(ort: ModuleType, graph: bytes, kind: str, asked: Mapping[str, str], devices: list[Any] | None) -> Any:
    """A session of the provider alone, with these options; of a plug-in on these devices."""
    provider = PROVIDERS[kind]
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    for key, value in NO_CPU.items():
        settings.add_session_config_entry(key, value)
    try:
        if devices is None:
            chosen = {"providers": [(provider.name, dict(asked))]}
        else:
            settings.add_provider_for_devices(devices, {**asked, "has_user_compute_stream": "1"})
            chosen = {}
        # Its Python layer would try again with the CPU, when it opens and even after a failed frame.
        session = ort.InferenceSession(graph, settings, enable_fallback=0, **chosen)
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        missing = provider.library and missing_library(provider_library(ort, provider.library))
        if missing:
            raise MachineError(
                f"ONNX Runtime cannot load what {provider.name} needs",
                key=kind,
                value=missing,
                remedy='pip install "onnxruntime-gpu[cuda,cudnn]", or make the library known to the loader; '
                "libcuda comes with the NVIDIA driver, libnvinfer with TensorRT",
            ) from without_frames(error)
        raise MachineError(
            f"ONNX Runtime cannot run the whole graph with {provider.name}",
            key=kind,
            value=cause(error),
            remedy="check the GPU with `nvidia-smi`, and that CUDA, cuDNN and TensorRT are those it was made for",
        ) from without_frames(error)
    session.disable_fallback()
    return session


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
