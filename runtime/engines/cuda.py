"""The little of CUDA's runtime library that an engine needs, through ctypes: CUDA 12 and 13 on Linux.

Every function here has had the same arguments from CUDA 11.4 on; `cudaGraphInstantiate`, which changed in CUDA 12, is
left out for `cudaGraphInstantiateWithFlags`. Addresses and handles are integers, sizes are bytes. On a machine without
a GPU no more was run than the search for the library, the versions and the errors.
"""

import ctypes
from collections.abc import Iterable, Iterator
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MachineError

from .tensorrt_libraries import RTX_PLUGIN

SUPPORTED = (13, 12)
"""Major versions of CUDA, the newer first."""
TO_DEVICE: Final = 1
TO_HOST: Final = 2
NO_MEMORY = 2
OLD_DRIVER = 35
NO_DEVICE = 100
CAPTURE_REFUSED = range(900, 909)
"""CUDA's errors that say that work cannot be captured into a graph (cudaErrorStreamCapture...)."""

_NAME_BYTES = 256
_PROPERTIES_BYTES = 1 << 14
_MAPPED = 2
_NON_BLOCKING = 1
# A capture that other threads of the process cannot spoil.
_THREAD_LOCAL = 1
_PROCESSORS, _INTEGRATED, _MAPS_HOST, _MAJOR, _MINOR = 16, 18, 19, 75, 76

_OUT = POINTER(c_void_p)
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaDriverGetVersion": (POINTER(c_int),),
    "cudaFree": (c_void_p,),
    "cudaFreeHost": (c_void_p,),
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaGetErrorName": (c_int,),
    "cudaGetErrorString": (c_int,),
    "cudaGetLastError": (),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphInstantiateWithFlags": (_OUT, c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaHostAlloc": (_OUT, c_size_t, c_uint),
    "cudaHostGetDevicePointer": (_OUT, c_void_p, c_uint),
    "cudaMalloc": (_OUT, c_size_t),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamCreateWithFlags": (_OUT, c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamEndCapture": (c_void_p, _OUT),
    "cudaStreamSynchronize": (c_void_p,),
}

_REMEDIES = {
    NO_MEMORY: "close other programs that use the GPU, or build for smaller frames",
    OLD_DRIVER: "install the NVIDIA driver, or a newer one; `nvidia-smi` tells what is there",
    NO_DEVICE: "run this on a machine with an NVIDIA GPU, and check CUDA_VISIBLE_DEVICES",
}


class CudaError(MachineError):
    """A call of CUDA's that failed. `code` is its number, `name` its name."""

    def __init__(self, call: str, code: int, name: str, meaning: str) -> None:
        self.code, self.name = code, name
        remedy = _REMEDIES.get(code, "open the bundle again; `dmesg` has what the driver says of it")
        super().__init__(f"CUDA says {name}: {meaning}", key=call, value=code, remedy=remedy)


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: such as Orin.
        sm: compute capability, such as 8.7.
        integrated: shares the CPU's memory.
        maps_host: can use pinned memory of the host in place.
        processors: streaming multiprocessors.
    """

    name: str
    sm: str
    integrated: bool
    maps_host: bool
    processors: int

    @property
    def model(self) -> str:
        """What tells models of one compute capability apart: every Jetson Orin is called Orin and has SM 8.7."""
        return f"{self.name or 'GPU'}, {self.processors} multiprocessors"


class Cuda:
    """One loaded libcudart; every call is checked and raises CudaError."""

    def __init__(self, library: str) -> None:
        """Load a library by path, or by name through the system's loader.

        Raises:
            MachineError: it cannot be loaded, or is not CUDA 12 or 13.
        """
        self.library = library
        try:
            self._functions = _typed(ctypes.CDLL(library))
        except (OSError, AttributeError) as error:
            raise MachineError(
                "CUDA's runtime library cannot be used", file=library, value=error, remedy="install CUDA 12 or 13"
            ) from error
        self.version = self._version("cudaRuntimeGetVersion")
        self.driver_version = self._version("cudaDriverGetVersion")
        if int(self.version.split(".")[0]) not in SUPPORTED:
            raise MachineError(
                "this version of CUDA is not supported", file=library, value=self.version, remedy="use CUDA 12 or 13"
            )

    def device_count(self) -> int:
        """Visible GPUs, at least one: CUDA calls it an error where there is none."""
        return self._number("cudaGetDeviceCount")

    def device(self) -> Device:
        """The first visible GPU."""
        # The name is the first field of cudaDeviceProp in every version, and none of them is as large as this.
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", properties, 0)
        name = properties.raw[:_NAME_BYTES].split(b"\0")[0].decode("utf-8", "replace")
        asked = (_MAJOR, _MINOR, _INTEGRATED, _MAPS_HOST, _PROCESSORS)
        major, minor, integrated, maps_host, processors = (
            self._number("cudaDeviceGetAttribute", attribute, 0) for attribute in asked
        )
        return Device(name, f"{major}.{minor}", bool(integrated), bool(maps_host), processors)

    def allocate(self, size: int) -> int:
        """Memory of the GPU; aligned as TensorRT wants it."""
        return self._made("cudaMalloc", size)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_host(self, size: int, *, mapped: bool) -> int:
        """Pinned memory of the host; `mapped` where the GPU is to use it in place."""
        return self._made("cudaHostAlloc", size, _MAPPED if mapped else 0)

    def free_host(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def device_pointer(self, address: int) -> int:
        """Where the GPU sees mapped memory of the host."""
        return self._made("cudaHostGetDevicePointer", address, 0)

    @staticmethod
    def view(address: int, count: int) -> NDArray[np.float32]:
        """Memory of the host as `count` float32, good until it is given back."""
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))

    def copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        """Queue a copy; `kind` is TO_DEVICE or TO_HOST."""
        self._call("cudaMemcpyAsync", to, source, size, kind, stream)

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        return self._made("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until all that was queued is done; errors of queued work show up here."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def begin_capture(self, stream: int) -> None:
        """Record what is queued from now on instead of running it."""
        self._call("cudaStreamBeginCapture", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The graph that was recorded."""
        graph = c_void_p()
        self._call("cudaStreamEndCapture", stream, graph)
        return graph.value or 0

    def instantiate(self, graph: int) -> int:
        """A graph made ready to launch."""
        return self._made("cudaGraphInstantiateWithFlags", graph, 0)

    def launch(self, executable: int, stream: int) -> None:
        """Queue a graph that `instantiate` gave."""
        self._call("cudaGraphLaunch", executable, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphDestroy", graph)

    def destroy_executable(self, executable: int) -> None:
        self._call("cudaGraphExecDestroy", executable)

    def forget_error(self) -> None:
        """Clear the error that a refused capture leaves behind, which the next call would be blamed for."""
        self._functions["cudaGetLastError"]()

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            error, meaning = (self._functions[f"cudaGetError{part}"](code) for part in ("Name", "String"))
            raise CudaError(name, code, error.decode("ascii", "replace"), meaning.decode("ascii", "replace"))

    def _made(self, name: str, *arguments: Any) -> int:
        made = c_void_p()
        self._call(name, made, *arguments)
        return made.value or 0

    def _number(self, name: str, *arguments: Any) -> int:
        value = c_int()
        self._call(name, value, *arguments)
        return value.value

    def _version(self, name: str) -> str:
        number = self._number(name)
        return f"{number // 1000}.{number % 1000 // 10}"


def open_cuda(libraries: Iterable[str] | None = None) -> Cuda:
    """The first CUDA runtime library that finds a GPU: a newer one than the driver knows finds none.

    Args:
        libraries: paths or names to try instead of `found_libraries()`.

    Raises:
        MachineError: no library, no driver or no GPU.
    """
    failures: list[MachineError] = []
    for library in found_libraries() if libraries is None else libraries:
        found = _tried(library)
        if isinstance(found, Cuda):
            return found
        failures.append(found)
    # CUDA's own word tells more than a library that could not be loaded, and a missing GPU more than an old driver.
    told = [error for error in failures if isinstance(error, CudaError)]
    if told:
        raise min(told, key=lambda error: error.code == OLD_DRIVER)
    raise MachineError(
        "no CUDA runtime library (libcudart) that can be used was found",
        value=failures[0].one_line() if failures else None,
        remedy="install CUDA 12 or 13, or one of their wheels such as nvidia-cuda-runtime",
    )


def compute_capability() -> str | None:
    """Of the first visible GPU, such as 8.7; None where there is none, or no CUDA to ask."""
    try:
        return open_cuda().device().sm
    except MachineError:
        return None


def gpu_model() -> str | None:
    """`Device.model` of the first visible GPU; None where there is none, or no CUDA to ask."""
    try:
        return open_cuda().device().model
    except MachineError:
        return None


def found_libraries() -> Iterator[str]:
    """Where libcudart may be, in the order of trying: NVIDIA's wheels, TensorRT for RTX's, the loader's, CUDA's own."""
    names = [f"libcudart.so.{major}" for major in SUPPORTED]
    for folder in (*wheel_folders(), *_package_folders(RTX_PLUGIN)):
        for name in names:
            yield from map(str, sorted(folder.glob(f"{name}*")))
    yield from names
    for name in names:
        yield from map(str, sorted(Path("/usr/local").glob(f"cuda*/lib64/{name}")))


def wheel_folders() -> list[Path]:
    """Folders in which NVIDIA's wheels keep their libraries, wherever on Python's path they lie."""
    return [folder for package in _package_folders("nvidia") for folder in sorted(package.glob("*/lib"))]


def _package_folders(package: str) -> list[Path]:
    spec = find_spec(package)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def _tried(library: str) -> Cuda | MachineError:
    try:
        cuda = Cuda(library)
        cuda.device_count()
    except MachineError as error:
        return error
    return cuda


def _typed(library: ctypes.CDLL) -> dict[str, Any]:
    functions = {}
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_char_p if name in ("cudaGetErrorName", "cudaGetErrorString") else c_int
        functions[name] = function
    return functions
