"""TensorRT and TensorRT for RTX as Python modules, wherever their libraries lie; nothing is loaded before it is asked.

TensorRT for RTX comes as two wheels: libraries inside ONNX Runtime's plug-in, bindings that look for them by name. They
are loaded first, so that the bindings find them in the process.
"""

import ctypes
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from runtime.errors import MachineError

KINDS = ("tensorrt", "tensorrt-rtx")
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
RTX_BINDINGS = "tensorrt_rtx_bindings"
RTX_MODULE = "tensorrt_rtx"
RTX_LIBRARIES = ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")
REMEDIES = {
    "tensorrt": 'JetPack brings it (python3-libnvinfer); elsewhere: pip install "damp-deploy[tensorrt]"',
    "tensorrt-rtx": 'pip install "damp-deploy[rtx]"',
}


def load_tensorrt(kind: str) -> ModuleType:
    """The module `tensorrt`, or `tensorrt_rtx` under that very name, for Polygraphy too.

    Args:
        kind: `tensorrt` or `tensorrt-rtx`.

    Raises:
        MachineError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        return import_module("tensorrt") if kind == "tensorrt" else _load_rtx()
    except ModuleNotFoundError as error:
        raise MachineError(
            f"{_name(kind)} is not installed", key="engine", value=error.name, remedy=REMEDIES[kind]
        ) from error
    except (ImportError, OSError) as error:
        raise MachineError(
            f"{_name(kind)} is installed but cannot be loaded", key="engine", value=error, remedy=REMEDIES[kind]
        ) from error


def tensorrt_version(kind: str) -> str | None:
    """Version of the builder and runtime, or None where they are not installed or cannot be loaded."""
    try:
        return str(load_tensorrt(kind).__version__)
    except MachineError:
        return None


def _load_rtx() -> ModuleType:
    if RTX_MODULE in sys.modules:
        return sys.modules[RTX_MODULE]
    if find_spec(RTX_BINDINGS) is None:
        # The full SDK installs itself under its own name, with libraries that it finds itself.
        return import_module(RTX_MODULE)
    plugin = find_spec(RTX_PLUGIN)
    if plugin is not None and plugin.origin is not None:
        folder = Path(plugin.origin).parent
        for pattern in RTX_LIBRARIES:
            for library in sorted(folder.glob(pattern)):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    module = import_module(RTX_BINDINGS)
    sys.modules[RTX_MODULE] = module
    return module


def _name(kind: str) -> str:
    return "TensorRT" if kind == "tensorrt" else "TensorRT for RTX"
