"""What tests on a GPU need: the one that is there, and an engine file that is built for it with TensorRT's own API."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import pytest

from runtime.engines.cuda import TO_DEVICE, Cuda, CudaError, Device, open_cuda
from runtime.engines.tensorrt_libraries import load_tensorrt, tensorrt_version
from runtime.errors import MachineError


def gpu_or_skip() -> tuple[Cuda, Device]:
    """The first GPU; where there is none, the test is left out and says why."""
    try:
        cuda = open_cuda()
    except MachineError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error.problem}")
    return cuda, cuda.device()


class PlainCuda(Cuda):
    """CUDA's memory calls on plain memory, for what can be shown without a GPU; copies are done at once.

    Attributes:
        given: what was given back, in order: "device", "host" and "stream".
        broken: every call fails, as after an error on a real GPU.
    """

    def __init__(self) -> None:
        self.given: list[str] = []
        self.broken = False
        self._held: dict[int, tuple[str, Any]] = {}

    def _take(self, kind: str, size: int) -> int:
        memory = (ctypes.c_char * size)()
        self._held[ctypes.addressof(memory)] = kind, memory
        return ctypes.addressof(memory)

    def _give(self, kind: str, address: int) -> None:
        self._check()
        assert self._held.pop(address)[0] == kind
        self.given.append(kind)

    def _check(self) -> None:
        if self.broken:
            raise CudaError("cudaMemcpyAsync", 700, "cudaErrorIllegalAddress", "an illegal memory access")

    def left(self) -> list[str]:
        """Kinds of what was not given back."""
        return [kind for kind, _ in self._held.values()]

    def allocate(self, size: int) -> int:
        return self._take("device", size)

    def free(self, address: int) -> None:
        self._give("device", address)

    def allocate_host(self, size: int, *, mapped: bool) -> int:
        return self._take("host", size)

    def free_host(self, address: int) -> None:
        self._give("host", address)

    def device_pointer(self, address: int) -> int:
        return address

    def copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self._check()
        device, host = (to, source) if kind == TO_DEVICE else (source, to)
        for address, place in ((device, "device"), (host, "host"), (stream, "stream")):
            assert self._held[address][0] == place
        ctypes.memmove(to, source, size)

    def create_stream(self) -> int:
        return self._take("stream", 1)

    def synchronize(self, stream: int) -> None:
        self._check()

    def destroy_stream(self, stream: int) -> None:
        self._give("stream", stream)


def load_or_skip(kind: str) -> ModuleType:
    """`tensorrt` or `tensorrt-rtx`; where it is not installed, the test is left out."""
    if tensorrt_version(kind) is None:
        pytest.skip(f"{kind} is not installed")
    return load_tensorrt(kind)


def engine_file(kind: str, graph: bytes, sm: str | None) -> bytes:
    """Build an engine; for RTX no GPU is needed, and without `sm` it is for every GPU that RTX supports."""
    trt = load_or_skip(kind)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(graph), [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if kind == "tensorrt-rtx" and sm is not None:
        capability = getattr(trt.ComputeCapability, f"SM{sm.replace('.', '')}", None)
        if capability is None:
            pytest.skip(f"TensorRT for RTX builds nothing for compute capability {sm}")
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(capability, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)
