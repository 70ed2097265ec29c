"""What goes into a graph and comes out of it, in memory that is taken once: addresses stay, and no frame allocates.

What a GPU does with it was not run on a machine without one.
"""

from contextlib import ExitStack

import numpy as np

from runtime.arrays import Float32
from runtime.signature import Ports

from .cuda import TO_DEVICE, TO_HOST, Cuda, Device


class HostMemory:
    """Plain memory of the host, where the CPU computes in place.

    Attributes:
        ports: names and shapes of inputs and outputs.
        arrays: {name: float32 array} of every input and output, at home on the host.
        addresses: {name: address} where the engine reads and writes it.
        device_type: where that is, as ONNX Runtime calls it.
        told: what it is, for people.
    """

    device_type = "cpu"
    told = "the CPU's own"

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        self.arrays: dict[str, Float32] = {name: np.zeros(shape, np.float32) for name, shape in ports.shapes.items()}
        self.addresses = {name: array.ctypes.data for name, array in self.arrays.items()}

    def put(self, *inputs: Float32) -> None:
        """Copy the inputs of a frame in."""
        for name, array in zip(self.ports.inputs, inputs, strict=True):
            np.copyto(self.arrays[name], array)

    def outputs(self) -> tuple[Float32, ...]:
        """Copies of the outputs, which the next frame leaves alone."""
        return tuple(self.arrays[name].copy() for name in self.ports.outputs)

    def send(self) -> None:
        """Queue the inputs' way to the engine."""

    def fetch(self) -> None:
        """Queue the outputs' way back."""

    def wait(self) -> None:
        """Wait until all that was queued is done."""


class GpuMemory(HostMemory):
    """Pinned memory of the host, memory of the GPU, and the stream that copies between them.

    Where host and GPU share their memory, as on a Jetson, both use the same and nothing is copied.
    """

    device_type = "cuda"

    def __init__(self, cuda: Cuda, device: Device, ports: Ports, undo: ExitStack) -> None:
        """Take it; `undo` gives it back, the stream last. Raises CudaError."""
        self.ports = ports
        self._cuda = cuda
        self._hosts: dict[str, int] = {}
        self.arrays, self.addresses = {}, {}
        self.mapped = device.integrated and device.maps_host
        self.told = "shared with the CPU" if self.mapped else "copied"
        self.stream = cuda.create_stream()
        undo.callback(cuda.destroy_stream, self.stream)
        for name, shape in ports.shapes.items():
            self._take(name, shape, undo)
        undo.callback(self.arrays.clear)

    def _take(self, name: str, shape: tuple[int, ...], undo: ExitStack) -> None:
        cuda, count = self._cuda, int(np.prod(shape))
        size = count * np.dtype(np.float32).itemsize
        host = self._hosts[name] = cuda.allocate_host(size, mapped=self.mapped)
        undo.callback(cuda.free_host, host)
        if self.mapped:
            self.addresses[name] = cuda.device_pointer(host)
        else:
            self.addresses[name] = cuda.allocate(size)
            undo.callback(cuda.free, self.addresses[name])
        self.arrays[name] = cuda.view(host, count).reshape(shape)
        self.arrays[name][...] = 0

    def send(self) -> None:
        if not self.mapped:
            for name in self.ports.inputs:
                size = self.arrays[name].nbytes
                self._cuda.copy(self.addresses[name], self._hosts[name], size, TO_DEVICE, self.stream)

    def fetch(self) -> None:
        if not self.mapped:
            for name in self.ports.outputs:
                size = self.arrays[name].nbytes
                self._cuda.copy(self._hosts[name], self.addresses[name], size, TO_HOST, self.stream)

    def wait(self) -> None:
        self._cuda.synchronize(self.stream)
