"""What tests on a GPU need: the one that is there, and an engine file that is built for it with TensorRT's own API."""

from __future__ import annotations

from types import ModuleType

import pytest

from runtime.engines.cuda import Cuda, Device, open_cuda
from runtime.engines.tensorrt_libraries import load_tensorrt, tensorrt_version
from runtime.errors import MachineError


def gpu_or_skip() -> tuple[Cuda, Device]:
    """The first GPU; where there is none, the test is left out and says why."""
    try:
        cuda = open_cuda()
    except MachineError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error.problem}")
    return cuda, cuda.device()


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
