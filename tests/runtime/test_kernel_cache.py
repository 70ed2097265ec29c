"""Kernels that RTX compiled serve their engine, version, GPU and driver alone; whatever else lies there is not used.

What RTX and the driver make of them needs a GPU: `tests/runtime/test_engine_tensorrt.py` opens an engine twice there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.engines import kernel_cache as module
from runtime.engines.cuda import Cuda, Device, found_libraries
from runtime.engines.kernel_cache import KernelCache, kernel_cache, kernel_file, read_kernels, write_kernels
from runtime.errors import InputError, MachineError

BELONGS = {"engine": "e" * 64, "version": "1.7.1.116", "gpu": "RTX 4090, 128 multiprocessors", "driver": "580.65.06"}
KERNELS = bytes(range(256)) * 9 + b"\n\n" + b"end"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept: in a user's cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "damp-deploy" / "kernels"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0])
def test_what_is_kept_is_read_and_nobody_else_can_write_it(folder: Path, umask: int) -> None:
    assert read_kernels(BELONGS) == (b"", "none were kept")
    before = os.umask(umask)
    try:
        write_kernels(BELONGS, KERNELS)
    finally:
        os.umask(before)
    assert read_kernels(BELONGS) == (KERNELS, "")
    assert [file.name for file in folder.iterdir()] == [f"{BELONGS['engine']}.kernels"]
    assert folder.stat().st_mode & 0o777 == 0o700 and kernel_file(BELONGS).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("fact", BELONGS)
def test_kernels_of_something_else_are_not_used(fact: str) -> None:
    write_kernels(BELONGS, KERNELS)
    other = {**BELONGS, fact: "f" * 64}
    if fact == "engine":
        assert read_kernels(other) == (b"", "none were kept")
        kernel_file(BELONGS).rename(kernel_file(other))
    assert read_kernels(other) == (b"", f"what was kept has another {fact}")


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


def linked(file: Path) -> None:
    file.rename(file.with_suffix(".real"))
    file.symlink_to(file.with_suffix(".real"))


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (changed(lambda data: data[:-1] + b"D"), "another sha256"),
        (changed(lambda data: data[: len(data) // 2]), "another sha256"),
        (changed(lambda data: data + b"more"), "another sha256"),
        (changed(lambda data: b"engine x\n" + data), "another head"),
        (changed(lambda data: data.partition(b"\n\n")[0]), "no size of ours"),
        (changed(lambda data: data.partition(b"\n\n")[0] + b"\n\n"), "no size of ours"),
        (changed(lambda data: b""), "no size of ours"),
        (changed(lambda data: b"\xff" * 4000 + b"\n\nx"), "another engine, version, gpu, driver, sha256"),
        (changed(lambda data: data + bytes(4096)), "no size of ours"),
        (lambda file: file.chmod(0o620), "not a file of this user's alone"),
        (lambda file: file.chmod(0o602), "not a file of this user's alone"),
        (linked, "cannot be read"),
        (replaced(os.mkfifo), "not a file of this user's alone"),
        (replaced(Path.mkdir), "cannot be read"),
    ],
)
def test_what_is_not_as_it_was_written_is_not_used(
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], why: str
) -> None:
    monkeypatch.setattr(module, "LARGEST", 4096)
    write_kernels(BELONGS, KERNELS)
    damage(kernel_file(BELONGS))
    kernels, said = read_kernels(BELONGS)
    assert kernels == b"" and why in said


def test_a_file_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    write_kernels(BELONGS, KERNELS)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert read_kernels(BELONGS) == (b"", "what was kept is not a file of this user's alone")


@pytest.mark.parametrize("kernels", [b"", bytes(4096)])
def test_what_could_not_be_read_again_is_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kernels: bytes
) -> None:
    monkeypatch.setattr(module, "LARGEST", 4096)
    with pytest.raises(InputError, match="nothing that can be kept"):
        write_kernels(BELONGS, kernels)
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("driver", ["580.65.06\n", None])
def test_only_rtx_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, driver: str | None) -> None:
    try:
        cuda = next(Cuda(library) for library in found_libraries())
    except (StopIteration, MachineError):
        pytest.skip("no CUDA runtime library is installed")
    if driver is not None:
        (tmp_path / "version").write_text(driver)
    monkeypatch.setattr(module, "DRIVER", tmp_path / "version")
    device = Device("RTX\n4090", "8.9", False, True, 128)
    made = kernel_cache(kind, "1.7.1.116", b"engine", device, cuda)
    assert (made is not None) == (kind == "tensorrt-rtx")
    if made is not None:
        assert made.belongs == {
            "engine": hashlib.sha256(b"engine").hexdigest(),
            "version": "1.7.1.116",
            "gpu": "RTX\\n4090, 128 multiprocessors",
            "driver": driver.strip() if driver else f"for CUDA {cuda.driver_version}",
        }


class Rtx:
    """In place of RTX's engine, its runtime configuration and its runtime cache: what is called, and what it gives."""

    def __init__(self, *, takes: bool = True, caches: bool = True, compiled: bytes | None = KERNELS) -> None:
        self.takes, self.caches, self.compiled = takes, caches, compiled
        self.given: list[bytes] = []

    def create_runtime_config(self) -> Rtx:
        return self

    def create_runtime_cache(self) -> Rtx | None:
        return self if self.caches else None

    def deserialize(self, blob: bytes) -> bool:
        self.given.append(blob)
        return self.takes

    def set_runtime_cache(self, cache: Rtx) -> bool:
        return cache is self

    def create_execution_context(self, runtime_config: Rtx | None = None) -> str:
        return "plain" if runtime_config is None else "cached"

    def serialize(self) -> bytes | None:
        return self.compiled


def opened(rtx: Rtx, **belongs: str) -> tuple[Any, str]:
    """(context, what is told) of an engine that is opened, runs, and is closed."""
    kernels = KernelCache({**BELONGS, **belongs})
    context = kernels.new_context(rtx)
    kernels.keep()
    kernels.close()
    return context, kernels.told


def test_kernels_are_compiled_once() -> None:
    first, second = Rtx(), Rtx()
    kept = "kept in the user's cache folder"
    assert opened(first) == ("cached", f"compiled here (none were kept), {kept}") and first.given == []
    written = kernel_file(BELONGS).stat()
    assert opened(second) == ("cached", "taken from the user's cache folder") and second.given == [KERNELS]
    assert kernel_file(BELONGS).stat().st_ino == written.st_ino
    other = Rtx(compiled=b"newer")
    assert opened(other, driver="590.1") == ("cached", f"compiled here (what was kept has another driver), {kept}")
    assert other.given == [] and read_kernels({**BELONGS, "driver": "590.1"}) == (b"newer", "")


def test_kernels_that_rtx_refuses_are_written_anew() -> None:
    write_kernels(BELONGS, b"stale")
    context, told = opened(Rtx(takes=False))
    assert context == "cached" and told.startswith("compiled here (TensorRT for RTX refuses what was kept), kept")
    assert read_kernels(BELONGS) == (KERNELS, "")


def test_an_rtx_that_gives_no_cache_opens_as_before(folder: Path) -> None:
    assert opened(Rtx(caches=False)) == ("plain", "compiled at each opening: TensorRT for RTX gives no cache")
    assert not folder.exists()


def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)


def readonly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere but below a file.
    (tmp_path / "cache").touch()


@pytest.mark.parametrize(
    ("trouble", "rtx", "why"),
    [
        (homeless, Rtx(), "not kept: this user has no home"),
        (readonly, Rtx(), "not kept: cannot be written: Not a directory"),
        (lambda *_: None, Rtx(compiled=None), "not kept: TensorRT for RTX gives nothing that can be kept"),
    ],
)
def test_what_cannot_be_kept_is_told_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., None], rtx: Rtx, why: str
) -> None:
    trouble(tmp_path, monkeypatch)
    context, told = opened(rtx)
    assert context == "cached" and told.startswith("compiled here (") and why in told
