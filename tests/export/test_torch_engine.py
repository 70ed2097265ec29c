"""PyTorch's forms and precisions keep the engine's contract and agree; what needs a GPU is left out without one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.networks import load_checkpoint
from export.torch_engine import AUTOCAST, TorchEngine
from runtime.engines import Engine
from runtime.errors import InputError, MachineError
from runtime.precisions import PRECISIONS
from tests.contracts.engine import EngineContract, inputs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


class TestDeployment(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tiny_checkpoint: Path) -> Iterator[Engine]:
        with TorchEngine(load_checkpoint(tiny_checkpoint), 64, 64, form="deployment", precision="bf16") as engine:
            yield engine


@pytest.mark.slow
@needs_compiler
class TestCompiled(EngineContract):
    """Of the smallest packaged network, which has the fewest kernels to compile."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Engine]:
        with TorchEngine(load_checkpoint("damp-nano"), 64, 64, form="compiled") as engine:
            yield engine

    def test_it_computes_what_the_reference_does(self, engine: Engine) -> None:
        assert_close(engine, TorchEngine(load_checkpoint("damp-nano"), 64, 64), "fp32")


@needs_gpu
@pytest.mark.parametrize("form", ["reference", "deployment", pytest.param("compiled", marks=pytest.mark.slow), "graph"])
@pytest.mark.parametrize("precision", AUTOCAST)
def test_a_gpu_computes_what_the_cpu_does(tiny_checkpoint: Path, form: str, precision: str) -> None:
    net = load_checkpoint(tiny_checkpoint)
    with TorchEngine(net, 64, 64, "cuda", form, precision) as engine:
        assert_close(engine, TorchEngine(net, 64, 64), precision)
        assert engine.describe()["device"].startswith("GPU 0, ")


@pytest.mark.parametrize("form", ["reference", "deployment"])
@pytest.mark.parametrize("precision", AUTOCAST)
def test_forms_and_precisions_agree(tiny_checkpoint: Path, form: str, precision: str) -> None:
    net = load_checkpoint(tiny_checkpoint)
    engine, reference = TorchEngine(net, 64, 64, "cpu", form, precision), TorchEngine(net, 64, 64)
    difference = assert_close(engine, reference, precision)
    # A cast is farther off than float32 in another order can be.
    assert (difference > PRECISIONS["fp32"].limit / 4) is (precision != "fp32")
    told = engine.describe()
    assert told["form"] == form and told["computes in"].startswith(precision)


def assert_close(engine: Engine, reference: Engine, precision: str) -> float:
    """Differences are below the precision's limit, and the same experts are chosen; the largest, of the range."""
    largest = 0.0
    for seed in range(3):
        given = inputs(engine.signature, seed)
        found, expected = engine.infer(given), reference.infer(given)
        apart = np.abs(found["restored"] - expected["restored"]).max() / np.ptp(expected["restored"])
        largest = max(largest, float(apart))
        np.testing.assert_array_equal(found["routing"] > 0, expected["routing"] > 0)
    assert largest < PRECISIONS[precision].limit
    return largest


def test_tensors_of_the_device_go_through_as_arrays_do(tiny_checkpoint: Path) -> None:
    engine = TorchEngine(load_checkpoint(tiny_checkpoint), 64, 64, form="deployment")
    given = inputs(engine.signature, 0)
    made = engine.infer(given)
    assert list(made) == list(engine.signature.ports.outputs)
    for there, here in zip(engine.on_device(*map(torch.from_numpy, given.values())), made.values(), strict=True):
        assert not there.requires_grad
        np.testing.assert_array_equal(there.numpy(), here)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"form": "graph"}, MachineError, "only a GPU has CUDA graphs"),
        ({"form": "eager"}, InputError, "one of reference, deployment, compiled, graph"),
        ({"precision": "int8"}, InputError, "one of fp32, fp16, bf16"),
        ({"device": "tpu"}, InputError, "choose cpu or cuda"),
        ({"device": "meta"}, InputError, "choose cpu or cuda"),
        ({"device": "cuda:63"}, MachineError, "cannot use the device"),
    ],
)
def test_what_cannot_be_is_refused(tiny_checkpoint: Path, options: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told) as caught:
        TorchEngine(load_checkpoint(tiny_checkpoint), 64, 64, **options)
    line = str(caught.value)
    assert "\n" not in line and next(iter(options.values())) in line


@pytest.mark.slow
def test_without_a_compiler_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What another test compiled is not taken.
    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-compiler"),))
    with pytest.raises(MachineError, match="compiling needs a C\\+\\+ compiler") as caught:
        TorchEngine(load_checkpoint("damp-nano"), 64, 64, form="compiled")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_memory_that_runs_out_is_the_machines_fault(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(load_checkpoint(tiny_checkpoint), 64, 64)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "on_device", full)
    with pytest.raises(MachineError, match="no memory left"):
        engine.infer(inputs(engine.signature, 0))
