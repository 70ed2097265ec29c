"""Libraries of NVIDIA's that ONNX Runtime's providers are linked to: made known to the process, and missed by name."""

import ctypes
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

from .cuda import wheel_folders
from .tensorrt_libraries import tensorrt_version


def make_known(ort: ModuleType) -> None:
    """Load CUDA and cuDNN from NVIDIA's wheels, which no loader finds by itself; a system's own need nothing.

    ONNX Runtime looks for the wheels beside itself only, and prints what it misses: `missing_library` tells that.
    """
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        with redirect_stdout(io.StringIO()):
            for folder in (None, *map(str, wheel_folders())):
                preload(directory=folder)


def provider_library(ort: ModuleType, name: str) -> Path:
    """The library of a built-in provider, `cuda` or `tensorrt`."""
    return Path(ort.__file__ or "").parent / "capi" / f"libonnxruntime_providers_{name}.so"


def missing_library(library: Path | str) -> str | None:
    """The loader's own word on a library that cannot be loaded, such as `libcudart.so.13: cannot open ...`.

    A provider's library is to be asked for only after ONNX Runtime has tried to load it: one that comes first never
    finds its host.
    """
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None


def loads_tensorrt(ort: ModuleType) -> bool:
    """Load the libnvinfer that ONNX Runtime's TensorRT provider is linked to, if it is anywhere."""
    try:
        linked = re.search(rb"libnvinfer\.so\.\d+", provider_library(ort, "tensorrt").read_bytes())
    except OSError:
        return False
    # TensorRT's wheel brings its libraries into the process; a system's are the loader's to find.
    tensorrt_version("tensorrt")
    return linked is not None and missing_library(linked[0].decode()) is None
