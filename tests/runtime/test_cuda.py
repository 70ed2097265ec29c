"""CUDA's wrapper: which library is taken, and that every failure is one line. What needs a GPU is left out without."""

from __future__ import annotations

import ctypes.util
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.engines.cuda import (
    OLD_DRIVER,
    TO_DEVICE,
    TO_HOST,
    Cuda,
    CudaError,
    compute_capability,
    found_libraries,
    open_cuda,
)
from runtime.errors import MachineError
from tests.contracts.gpu import gpu_or_skip


def has_driver() -> bool:
    return ctypes.util.find_library("cuda") is not None


def loaded() -> Cuda:
    """Any library that can be loaded, with a GPU or without."""
    for library in found_libraries():
        with suppress(MachineError):
            return Cuda(library)
    pytest.skip("no libcudart is installed")


CALLS: dict[str, Callable[[Cuda], Any]] = {
    "cudaGetDeviceCount": lambda c: c.device_count(),
    "cudaGetDeviceProperties": lambda c: c.device(),
    "cudaMalloc": lambda c: c.allocate(64),
    "cudaHostAlloc": lambda c: c.allocate_host(64, mapped=True),
    "cudaHostGetDevicePointer": lambda c: c.device_pointer(0),
    "cudaStreamCreateWithFlags": lambda c: c.create_stream(),
    "cudaStreamSynchronize": lambda c: c.synchronize(0),
    "cudaStreamBeginCapture": lambda c: c.begin_capture(0),
    "cudaStreamEndCapture": lambda c: c.end_capture(0),
    "cudaGraphInstantiateWithFlags": lambda c: c.instantiate(0),
    "cudaGraphLaunch": lambda c: c.launch(0, 0),
    "cudaMemcpyAsync": lambda c: c.copy(0, 0, 4, TO_DEVICE, 0),
}


@pytest.mark.skipif(has_driver(), reason="this machine has NVIDIA's driver")
@pytest.mark.parametrize("name", CALLS)
def test_without_a_driver_every_call_fails_in_one_line(name: str) -> None:
    cuda = loaded()
    with pytest.raises(CudaError) as caught:
        CALLS[name](cuda)
    line = str(caught.value)
    assert caught.value.code == OLD_DRIVER and caught.value.exit_code == 3
    assert line.startswith(f"{name}: CUDA says cudaErrorInsufficientDriver: ") and "nvidia-smi" in line
    assert "\n" not in line and line.isprintable()
    assert caught.value.as_json()["key"] == name


@pytest.mark.skipif(has_driver(), reason="this machine has NVIDIA's driver")
def test_without_a_driver_opening_says_what_cuda_says() -> None:
    loaded()
    with pytest.raises(CudaError, match=r"cudaErrorInsufficientDriver.*install the NVIDIA driver"):
        open_cuda()
    assert compute_capability() is None


def test_versions_are_those_supported() -> None:
    cuda = loaded()
    assert cuda.version.split(".")[0] in ("12", "13") and cuda.version.split(".")[0] in cuda.library


def test_libraries_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    text = tmp_path / "libcudart.so.13"
    text.write_text("not a library")
    other = ctypes.util.find_library("m") or "libm.so.6"
    for library in (str(text), str(tmp_path / "absent.so"), other):
        with pytest.raises(MachineError, match="CUDA's runtime library cannot be used") as caught:
            Cuda(library)
        assert caught.value.file == library and "\n" not in str(caught.value)
    with pytest.raises(MachineError, match=r"no CUDA runtime library .*install CUDA 12 or 13"):
        open_cuda([str(text), other])
    with pytest.raises(MachineError, match=r"no CUDA runtime library .*install CUDA 12 or 13"):
        open_cuda([])


def test_a_library_that_fails_does_not_hide_what_the_next_one_says(tmp_path: Path) -> None:
    library = loaded().library
    try:
        assert open_cuda([str(tmp_path / "absent.so"), library]).library == library
    except CudaError as error:
        assert error.key == "cudaGetDeviceCount"


def test_libraries_are_searched_from_wheels_to_the_system() -> None:
    found = list(found_libraries())
    loader = found.index("libcudart.so.13")
    assert found[loader + 1] == "libcudart.so.12"
    assert all("site-packages" in path or "dist-packages" in path for path in found[:loader])
    assert all(path.startswith("/usr/local/cuda") for path in found[loader + 2 :])


# On a GPU


@pytest.mark.parametrize("size", [4, 4096, 1 << 20])
def test_memory_goes_to_the_gpu_and_back(size: int) -> None:
    cuda, _ = gpu_or_skip()
    stream, device = cuda.create_stream(), cuda.allocate(size)
    there, back = (cuda.allocate_host(size, mapped=False) for _ in range(2))
    try:
        given, taken = cuda.view(there, size // 4), cuda.view(back, size // 4)
        given[:], taken[:] = np.arange(size // 4), -1
        cuda.copy(device, there, size, TO_DEVICE, stream)
        cuda.copy(back, device, size, TO_HOST, stream)
        cuda.synchronize(stream)
        np.testing.assert_array_equal(taken, given)
    finally:
        cuda.free_host(there)
        cuda.free_host(back)
        cuda.free(device)
        cuda.destroy_stream(stream)


def test_mapped_memory_has_an_address_for_the_gpu() -> None:
    cuda, device = gpu_or_skip()
    if not device.maps_host:
        pytest.skip("this GPU maps no memory of the host")
    host = cuda.allocate_host(4096, mapped=True)
    assert cuda.device_pointer(host)
    cuda.free_host(host)


def test_a_captured_copy_runs_when_its_graph_is_launched() -> None:
    cuda, _ = gpu_or_skip()
    stream, device, host = cuda.create_stream(), cuda.allocate(64), cuda.allocate_host(64, mapped=False)
    values = cuda.view(host, 16)
    values[:] = 7
    cuda.copy(device, host, 64, TO_DEVICE, stream)
    cuda.synchronize(stream)
    cuda.begin_capture(stream)
    cuda.copy(host, device, 64, TO_HOST, stream)
    graph = cuda.end_capture(stream)
    executable = cuda.instantiate(graph)
    cuda.destroy_graph(graph)
    values[:] = 0
    for _ in range(2):
        cuda.launch(executable, stream)
        cuda.synchronize(stream)
        assert (values == 7).all()
    for give_back, what in (
        (cuda.destroy_executable, executable),
        (cuda.free, device),
        (cuda.free_host, host),
        (cuda.destroy_stream, stream),
    ):
        give_back(what)


def test_a_gpu_is_described() -> None:
    cuda, device = gpu_or_skip()
    assert cuda.device_count() >= 1
    assert device.name.isprintable() and device.name and compute_capability() == device.sm
    major, minor = map(int, device.sm.split("."))
    assert 5 <= major < 100 and 0 <= minor < 10


def test_errors_on_a_gpu_have_cudas_own_name() -> None:
    cuda, _ = gpu_or_skip()
    with pytest.raises(CudaError, match=r"cudaErrorMemoryAllocation.*close other programs"):
        cuda.allocate(1 << 60)
    cuda.forget_error()
    # A size that the device has must work after that: the error was no lasting one.
    for size in itertools.repeat(64, 2):
        cuda.free(cuda.allocate(size))
