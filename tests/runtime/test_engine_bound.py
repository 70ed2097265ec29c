"""Sessions of ONNX Runtime on memory that stays: the engine contract, and that all is given back in the right order.

CUDA's calls are stood in for by ones on plain memory, and its provider by the CPU's; the last tests need a GPU.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from runtime.engines import Engine, EngineOptions, available_engines, open_engine, open_metrics
from runtime.engines.buffers import GpuMemory
from runtime.engines.cuda import CudaError, Device, wheel_folders
from runtime.engines.onnxruntime_gpu import CUDA_GRAPH, REFUSED, available, captured_or_plain
from runtime.engines.onnxruntime_libraries import loads_tensorrt, make_known, missing_library
from runtime.engines.onnxruntime_session import BoundSession, SessionEngine
from runtime.errors import BundleError, MachineError
from runtime.signature import Ports
from tests.contracts.engine import EngineContract, inputs
from tests.contracts.gpu import PlainCuda, gpu_or_skip
from tests.contracts.graphs import SMALL, known_graph, known_metrics, known_model

CPU = "CPUExecutionProvider"


def cpu_session(graph: bytes) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(graph, settings, providers=[CPU])


def bound(cuda: PlainCuda, graph: bytes | None = None, *, mapped: bool = False) -> SessionEngine:
    """An engine of the CPU on what it takes for a GPU's memory."""
    return SessionEngine(session_on(cuda, SMALL.ports, graph or known_graph(), mapped=mapped), SMALL)


def session_on(cuda: PlainCuda, ports: Ports, graph: bytes, *, mapped: bool = False) -> BoundSession:
    undo = ExitStack()
    memory = GpuMemory(cuda, Device("plain", "0.0", mapped, mapped, 1), ports, undo)
    memory.device_type = "cpu"
    told = {"engine": "bound", "version": "0", "device": "plain", "computes in": "fp32"}
    return BoundSession(cpu_session(graph), CPU, memory, told, undo)


class TestBoundSession(EngineContract):
    """On memory that host and GPU share, and on memory that is copied."""

    @pytest.fixture(scope="class", params=[False, True], ids=["copied", "mapped"])
    @classmethod
    def engine(cls, request: pytest.FixtureRequest) -> Iterator[Engine]:
        with bound(PlainCuda(), mapped=bool(request.param)) as engine:
            yield engine

    def test_frames_are_as_the_graph_says(self, engine: Engine) -> None:
        for seed in range(4):
            given = inputs(SMALL, seed)
            np.testing.assert_array_equal(engine.infer(given)["restored"], given["frame"])


def test_a_graph_of_other_ports_has_memory_for_those() -> None:
    cuda, frame = PlainCuda(), inputs(SMALL, 3)["frame"]
    with session_on(cuda, SMALL.metrics_ports, known_metrics(values=range(6))) as session:
        (metrics,) = session.compute(frame)
        np.testing.assert_allclose(metrics, frame.mean() + np.arange(6.0)[None], rtol=1e-6)
    assert cuda.given == ["device", "host"] * 2 + ["stream"] and not cuda.left()
    with pytest.raises(BundleError, match="not the one that the manifest describes"):
        session_on(cuda, SMALL.ports, known_metrics())


def test_what_a_session_held_goes_after_it_and_once() -> None:
    after: list[bool] = []

    class Watching(PlainCuda):
        def _give(self, kind: str, address: int) -> None:
            after.append(session() is None)
            super()._give(kind, address)

    cuda = Watching()
    engine = bound(cuda)
    session = weakref.ref(engine.session._session)
    engine.infer(inputs(SMALL, 0))
    assert session() is not None
    for _ in range(2):
        engine.close()
        with pytest.raises(MachineError, match=r"the engine is closed.*open it again"):
            engine.infer(inputs(SMALL, 0))
    assert after == [True] * 9 and not cuda.left()
    assert cuda.given == ["device", "host"] * 4 + ["stream"]


def test_an_error_of_the_gpu_is_told_and_not_the_ones_that_follow_from_it() -> None:
    cuda = PlainCuda()
    engine = bound(cuda)
    cuda.broken = True
    with pytest.raises(CudaError, match="illegal memory access"):
        engine.infer(inputs(SMALL, 0))
    engine.close()
    assert engine.session._session is None


def test_a_frame_that_fails_keeps_no_session_alive() -> None:
    model = known_model()
    # The index is a metric: what is out of range is found when a frame runs.
    model.graph.node.insert(0, helper.make_node("Cast", ["metrics"], ["index"], to=TensorProto.INT64))
    model.graph.node.insert(1, helper.make_node("Gather", ["frame", "index"], ["picked"], axis=3))
    model.graph.node.insert(2, helper.make_node("ReduceSum", ["picked"], ["sum"], keepdims=0))
    model.graph.node[3].input[1] = "sum"
    engine = bound(PlainCuda(), model.SerializeToString())
    given = inputs(SMALL, 0)
    engine.infer({**given, "metrics": np.zeros_like(given["metrics"])})
    with pytest.raises(MachineError, match="bound: ONNX Runtime failed on a frame") as caught:
        engine.infer({**given, "metrics": np.full_like(given["metrics"], 1e6)})
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    session = weakref.ref(engine.session._session)
    engine.close()
    gc.collect()
    assert session() is None


# A CUDA graph that is refused


SAID = [
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user",
    "Non-zero status code returned while running Conv node. Status Message: CUDA failure 900: operation not permitted",
    "CUDA failure 901: operation failed due to a previous error during capture ; GPU=0 ; hostname=h ; expr=f();\n\n",
    "CUDAGraph::CaptureEnd: graph_ is NULL",
]
SAID_OF_OTHER_THINGS = ["CUDA failure 2: out of memory", "CUDA failure 9001: unheard of", "CUDNN failure 900: graph"]


def opening(said: str, tried: list[str]) -> Any:
    """Opens an engine, but for a CUDA graph, where `said` is ONNX Runtime's answer."""

    def opened(launches: str) -> BoundSession:
        tried.append(launches)
        if launches == CUDA_GRAPH:
            raise MachineError("cannot", remedy="do without") from RuntimeError(said)
        return bound(PlainCuda()).session

    return opened


@pytest.mark.parametrize("said", SAID)
def test_where_a_cuda_graph_is_refused_frames_are_launched_plainly(said: str) -> None:
    tried: list[str] = []
    captured_or_plain(opening(said, tried)).close()
    assert tried[0] == CUDA_GRAPH and tried[1].startswith("plain, a CUDA graph was refused: ") and len(tried) == 2
    told = tried[1].rsplit("refused: ", 1)[1]
    assert told in said and told.isprintable() and not told.endswith(" ") and "hostname" not in told


@pytest.mark.parametrize("said", SAID_OF_OTHER_THINGS)
def test_nothing_else_is_taken_for_a_refusal(said: str) -> None:
    tried: list[str] = []
    with pytest.raises(MachineError, match="cannot"):
        captured_or_plain(opening(said, tried))
    assert tried == [CUDA_GRAPH]


def test_the_installed_version_refuses_in_these_words() -> None:
    libraries = list((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not libraries:
        pytest.skip("this ONNX Runtime has its core inside its Python module")
    words = libraries[0].read_bytes()
    assert b"cannot use the graph capture feature" in words and b"Graph capture did not complete" in words
    assert REFUSED.search("This session cannot use the graph capture feature")


# Libraries


def compiled(folder: Path, name: str, *options: str) -> Path:
    """A library that does nothing."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-x", "c", "/dev/null", "-o", str(library), f"-Wl,-soname,{name}"]
    subprocess.run([*command, "-x", "none", *options], check=True, timeout=60)
    return library


def test_a_library_that_is_missing_is_named(tmp_path: Path) -> None:
    needed = compiled(tmp_path, "libneeded-by-none.so.13")
    provider = compiled(tmp_path, "libprovider.so", "-Wl,--no-as-needed", str(needed))
    needed.unlink()
    told = missing_library(provider)
    assert told is not None and told.startswith("libneeded-by-none.so.13: cannot open shared object file")
    # Once it is in the process, wherever it came from, the loader finds it.
    assert missing_library(compiled(tmp_path / "elsewhere", "libneeded-by-none.so.13")) is None
    assert missing_library(provider) is None


def test_wheels_are_made_known_wherever_they_lie_and_nothing_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert folder in wheel_folders()
    asked: list[str | None] = []

    def preload_dlls(directory: str | None = None) -> None:
        asked.append(directory)
        print("Failed to load libcublas.so.13")

    fake = ModuleType("onnxruntime")
    make_known(fake)
    fake.preload_dlls = preload_dlls  # type: ignore[attr-defined]
    make_known(fake)
    make_known(ort)
    assert asked[0] is None and str(folder) in asked
    assert capsys.readouterr().out == ""


def test_tensorrt_must_be_the_one_that_the_provider_is_linked_to(tmp_path: Path) -> None:
    fake = ModuleType("onnxruntime")
    fake.__file__ = str(tmp_path / "__init__.py")
    assert not loads_tensorrt(fake)
    library = tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"
    library.parent.mkdir()
    library.write_bytes(b"\0libcudart.so.13\0")
    assert not loads_tensorrt(fake)
    library.write_bytes(b"\0libnvinfer.so.77\0")
    assert not loads_tensorrt(fake)
    assert missing_library(compiled(tmp_path, "libnvinfer.so.77")) is None
    assert loads_tensorrt(fake)


def test_a_provider_without_its_tensorrt_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
    monkeypatch.setattr("runtime.engines.onnxruntime_gpu.loads_tensorrt", lambda ort: False)
    assert available("onnxruntime-tensorrt") is None
    assert available("onnxruntime-cuda") == ort.__version__
    monkeypatch.setattr("runtime.engines.onnxruntime_gpu.loads_tensorrt", lambda ort: True)
    assert available("onnxruntime-tensorrt") == ort.__version__


# On a GPU


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[Engine]:
    gpu_or_skip()
    if available_engines()["onnxruntime-cuda"] is None:
        pytest.skip("onnxruntime-cuda is not installed")
    with open_engine("onnxruntime-cuda", known_graph(SMALL, 2.0, 0.5), SMALL) as engine:
        yield engine


def test_a_frame_is_one_graph_on_the_gpu(on_gpu: Engine) -> None:
    assert on_gpu.describe()["launches"] == CUDA_GRAPH


def test_every_frame_is_its_own_and_every_thread_may_run_one(on_gpu: Engine) -> None:
    def check() -> None:
        for seed in range(6):
            given = inputs(SMALL, seed)
            np.testing.assert_allclose(on_gpu.infer(given)["restored"], 2 * given["frame"] + 0.5, rtol=1e-6)
        done.append(True)

    done: list[bool] = []
    check()
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    check()
    assert len(done) == 3


def test_metrics_of_a_frame_are_computed_there_too(on_gpu: Engine) -> None:
    frame, other = inputs(SMALL, 0)["frame"], inputs(SMALL, 1)
    with open_metrics("onnxruntime-cuda", known_metrics(values=range(6)), SMALL) as session:
        np.testing.assert_allclose(session.compute(frame)[0], frame.mean() + np.arange(6.0)[None], rtol=1e-5)
        assert session.describe()["launches"] == CUDA_GRAPH
        np.testing.assert_allclose(on_gpu.infer(other)["restored"], 2 * other["frame"] + 0.5, rtol=1e-6)


def test_it_opens_again_after_it_was_closed_and_when_memory_ends(on_gpu: Engine) -> None:
    for _ in range(3):
        engine = open_engine("onnxruntime-cuda", known_graph(), SMALL, EngineOptions())
        given = inputs(SMALL, 0)
        np.testing.assert_array_equal(engine.infer(given)["restored"], given["frame"])
        engine.close()
        engine.close()
        with pytest.raises(MachineError, match="the engine is closed"):
            engine.infer(given)
