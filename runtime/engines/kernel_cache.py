"""The kernels that TensorRT for RTX compiles when it opens an engine, kept for the next time.

RTX's runtime cache holds what was compiled. It lies in the user's cache folder under the engine's hash, not in the
bundle, which may be signed or read-only. It is machine code that the driver will run, so RTX is given only a file of
this user's that nobody else may write, whose head names this engine, RTX, GPU and driver, and the SHA-256 of the rest.
Anything else is ignored, told, and written anew. The hash finds damage; it is no signature against this same user.

Without a GPU files were read, refused and written; what RTX makes of them was not run.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.durable import replacing
from runtime.errors import InputError, printable
from runtime.machine import cache_folder

from .cuda import Cuda, Device

LARGEST = 1 << 28
"""Bytes of a file that is read or written."""
DRIVER = Path("/sys/module/nvidia/version")
_END = b"\n\n"


def kernel_cache(kind: str, version: str, program: bytes, device: Device, cuda: Cuda) -> KernelCache | None:
    """The cache of an engine file for this version of RTX, GPU and driver; None for TensorRT, which needs none."""
    if kind != "tensorrt-rtx":
        return None
    driver = f"for CUDA {cuda.driver_version}"
    with suppress(OSError):
        driver = DRIVER.read_text("utf-8", "replace").strip()
    engine = hashlib.sha256(program).hexdigest()
    belongs = {"engine": engine, "version": version, "gpu": device.model, "driver": driver}
    return KernelCache({name: printable(value) for name, value in belongs.items()})


def kernel_file(belongs: Mapping[str, str]) -> Path:
    """Where the kernels of an engine are kept: one file for each engine. Raises InputError where there is no place."""
    return cache_folder("kernels") / f"{belongs['engine']}.kernels"


def read_kernels(belongs: Mapping[str, str]) -> tuple[bytes, str]:
    """(kernels, "") where those of the file may be used, else (b"", why not)."""
    try:
        descriptor = os.open(kernel_file(belongs), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return b"", "what was kept is not a file of this user's alone"
            data = opened.read(LARGEST + 1)
    except InputError as error:
        return b"", error.problem
    except FileNotFoundError:
        return b"", "none were kept"
    except OSError as error:
        return b"", f"what was kept cannot be read, {error.strerror}"
    head, _, kernels = data.partition(_END)
    if len(data) > LARGEST or not kernels:
        return b"", "what was kept has no size of ours"
    lines = _head(belongs, kernels)
    if head == b"\n".join(lines.values()):
        return kernels, ""
    found = head.split(b"\n")
    other = [name for name, line in lines.items() if line not in found]
    return b"", f"what was kept has another {', '.join(other) or 'head'}"


def write_kernels(belongs: Mapping[str, str], kernels: bytes) -> None:
    """Write a file that `read_kernels` takes, whole or not at all. Raises InputError."""
    file, data = kernel_file(belongs), b"\n".join(_head(belongs, kernels).values()) + _END + kernels
    if not kernels or len(data) > LARGEST:
        raise InputError("TensorRT for RTX gives nothing that can be kept", value=f"{len(kernels)} bytes")
    with replacing(file, private=True) as temporary:
        temporary.write_bytes(data)


class KernelCache:
    """One engine's kernels: read for its context, kept when its first frames have run.

    Attributes:
        belongs: what the kernels belong to: engine, version, gpu and driver.
        told: where the kernels came from, and whether they are kept, for people.
    """

    def __init__(self, belongs: Mapping[str, str]) -> None:
        self.told = "compiled at each opening"
        self.belongs = belongs
        self._config: Any = None
        self._runtime_cache: Any = None
        self._new = False

    def new_context(self, engine: Any) -> Any:
        """An execution context with the kernels of the file, where they may be used. None where RTX makes none."""
        config = engine.create_runtime_config()
        runtime_cache = config and config.create_runtime_cache()
        kernels, why = read_kernels(self.belongs)
        if kernels and runtime_cache and not runtime_cache.deserialize(kernels):
            kernels, why = b"", "TensorRT for RTX refuses what was kept"
        if not (runtime_cache and config.set_runtime_cache(runtime_cache)):
            self.told += ": TensorRT for RTX gives no cache"
            return engine.create_execution_context()
        self._config, self._runtime_cache, self._new = config, runtime_cache, not kernels
        self.told = f"compiled here ({why})" if self._new else "taken from the user's cache folder"
        return engine.create_execution_context(runtime_config=config)

    def keep(self) -> None:
        """Write what was compiled, where it was; that it cannot be is only told."""
        if self._new:
            try:
                write_kernels(self.belongs, bytes(self._runtime_cache.serialize() or b""))
                self.told += ", kept in the user's cache folder"
            except InputError as error:
                self.told += f", not kept: {error.problem}"

    def close(self) -> None:
        """Let go of RTX's objects: after the context that uses them, before the engine that made them."""
        self._config = self._runtime_cache = None


def _head(belongs: Mapping[str, str], kernels: bytes) -> dict[str, bytes]:
    facts = {**belongs, "sha256": hashlib.sha256(kernels).hexdigest()}
    return {name: f"{name} {value}".encode() for name, value in facts.items()}
