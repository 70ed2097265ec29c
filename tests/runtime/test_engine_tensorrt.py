"""TensorRT: names exist in every version, what does not fit is refused before it is opened, frames on a GPU if any."""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from runtime.engines import ENGINES, Built, Engine, EngineOptions, available_engines, open_engine
from runtime.engines.onnxruntime_gpu import NO_CPU, PROVIDERS, TF32, forbid_tf32
from runtime.engines.onnxruntime_session import check_placement
from runtime.engines.tensorrt import check_gpu, check_version, deserialize
from runtime.engines.tensorrt_libraries import KINDS
from runtime.errors import BundleError, DeployError, MachineError
from tests.contracts import tensorrt_api as api
from tests.contracts.engine import EngineContract, inputs
from tests.contracts.gpu import engine_file, gpu_or_skip, load_or_skip
from tests.contracts.graphs import SMALL, damp_like, known_graph

RTX, TRT = "tensorrt-rtx", "tensorrt"
without_driver = pytest.mark.skipif(
    ctypes.util.find_library("cuda") is not None, reason="this machine has NVIDIA's driver"
)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What RTX compiles here does not go into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def built_here(builder: str = RTX, version: str | None = None, sm: str = "8.9") -> EngineOptions:
    here = str(load_or_skip(builder).__version__)
    return EngineOptions(built=Built(builder, version or here, sm))


def refused(error: type[DeployError], match: str, *arguments: Any) -> str:
    """`open_engine` raises one line that names a remedy; nothing was deserialised, since no GPU was asked."""
    with pytest.raises(error, match=match) as caught:
        open_engine(*arguments)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable() and caught.value.remedy
    return line


# Names of the API, version by version


@pytest.mark.parametrize("version", api.VERSIONS)
def test_every_name_of_the_api_is_in_the_part_kept_here(version: str) -> None:
    missing = api.problems(api.sources(version), api.cut_listings()[version])
    assert not missing, "if the full listings have it: python -m tests.contracts.tensorrt_api"


@pytest.mark.parametrize("version", api.VERSIONS)
def test_every_name_of_the_api_is_in_the_full_listing(version: str) -> None:
    listings = api.full_listings()
    if not listings:
        pytest.skip(api.LEFT_OUT)
    assert not api.problems(api.sources(version), listings[version])


@pytest.mark.parametrize("version", api.VERSIONS)
def test_the_part_kept_here_is_a_part_of_the_full_listing(version: str) -> None:
    listings = api.full_listings()
    if not listings:
        pytest.skip(api.LEFT_OUT)
    full, kept = listings[version], api.cut_listings()[version]
    assert kept["version"] == full["version"]
    for name, members in kept["enums"].items():
        assert members.items() <= full["enums"][name].items()
    assert kept["functions"].items() <= full["functions"].items()
    for name, entry in kept["classes"].items():
        for part in ("methods", "properties", "attrs"):
            assert entry[part].items() <= full["classes"][name][part].items()


def test_the_installed_tensorrt_for_rtx_has_every_name() -> None:
    trt = load_or_skip(RTX)
    for name, entry in api.cut_listings()[api.VERSIONS[-1]]["classes"].items():
        for part in ("methods", "properties", "attrs"):
            assert all(hasattr(getattr(trt, name), member) for member in entry[part])


def test_what_is_rtxs_alone_is_followed_through_its_file() -> None:
    common, files = api.sources("10.3.0"), api.sources("rtx-1.7.1.116")
    own = [file for file in files if file not in common]
    assert [file.name for file in own] == ["kernel_cache.py"]
    for version in api.VERSIONS:
        missing = api.problems(own, api.cut_listings()[version])
        assert any("IRuntimeCache.deserialize" in line for line in missing) != version.startswith("rtx-")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("trt.Runtimes(1)", "trt.Runtimes"),
        ("trt.DataType.FLOATS", "trt.DataType.FLOATS"),
        ("trt.ILogger.FATAL", "ILogger.FATAL"),
        ("engine.get_tensor_names(0)", "ICudaEngine.get_tensor_names"),
        ("self._context.execute_async_v2(0)", "IExecutionContext.execute_async_v2"),
        ("self._context.execute_async_v3()", "IExecutionContext.execute_async_v3 with 0"),
        ("engine.get_tensor_name(index=0, of=1)", "['index', 'of']"),
        ("trt.Runtime(logger).deserialize_cuda_engine(b'').num_bindings", "ICudaEngine.num_bindings"),
        ("e = trt.Runtime(logger).deserialize_cuda_engine(b'')\ne.num_bindings", "ICudaEngine.num_bindings"),
        ("class L(trt.ILogger):\n    def log(self, severity): ...", "ILogger.log with 1"),
        ("class L(trt.ILogger):\n    def report(self, severity, text): ...", "ILogger.report"),
    ],
)
def test_a_name_that_is_not_there_is_found(line: str, problem: str) -> None:
    listing = api.cut_listings()["10.3.0"]
    found = api.read(line, "example.py", listing).problems
    assert len(found) == 1 and problem in found[0] and found[0].startswith("example.py:")


@pytest.mark.parametrize(
    ("signature", "positional", "keywords", "taken"),
    [
        ("f(self: A.B, x: int) -> int", 1, [], True),
        ("f(self: A.B, x: int) -> int", 0, ["x"], True),
        ("f(self: A.B, x: int) -> int", 0, [], False),
        ("f(self: A.B, x: int) -> int", 2, [], False),
        ("f(self: A.B, x: int) -> int", 1, ["x"], False),
        ("f(self: A.B, s: A.S = <S.STATIC: 0>, t: List[int] = [1, 2]) -> None", 0, [], True),
        ("f(self: A.B, s: A.S = <S.STATIC: 0>, t: List[int] = [1, 2]) -> None", 1, ["t"], True),
        ("f(self: A.B, s: Dict[str, int], t: int) -> None", 2, [], True),
        ("f() -> int", 0, [], True),
    ],
)
def test_signatures_are_understood(signature: str, positional: int, keywords: list[str], taken: bool) -> None:
    assert api.accepts(signature, positional, keywords) is taken


# Refusals, before anything is deserialised


def test_each_engine_has_its_own_version() -> None:
    found = available_engines()
    assert {TRT, RTX, *PROVIDERS} <= set(ENGINES) and set(found) == set(ENGINES)
    assert found[RTX] != found["onnxruntime"] and (found[RTX] or "1.").startswith("1.")


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_is_no_engine_file(kind: str) -> None:
    line = refused(BundleError, "loads engine files only", kind, known_graph(), SMALL)
    assert f"leave --engine out, or build for a target whose engine is {kind}" in line


@pytest.mark.parametrize(("kind", "builder"), [(TRT, RTX), (RTX, TRT), (TRT, "trtexec"), (RTX, "")])
def test_an_engine_of_another_builder_is_refused(kind: str, builder: str) -> None:
    options = EngineOptions(built=Built(builder, "10.3.0", "8.7"))
    line = refused(BundleError, "builder: the engine file was not built by", kind, b"engine", SMALL, options)
    assert f"{kind} is needed" in line and "deploy finalize" in line


@pytest.mark.parametrize("version", ["1.7.1.115", "1.7.0.116", "1.6.1.116", "2.7.1.116", "1.7", "10.3.0", "1.7.2"])
def test_an_engine_of_another_version_is_refused(version: str) -> None:
    options = built_here(version=version)
    line = refused(MachineError, "version: the engine was built by tensorrt-rtx", RTX, b"engine", SMALL, options)
    assert version in line and "deploy finalize" in line


@pytest.mark.parametrize(
    ("made", "here", "good"),
    [
        ("10.3.0", "10.3.0", True),
        ("10.3.0.26", "10.3.0.26", True),
        ("10.3.0", "10.3.0.26", True),
        ("10.3.0.26", "10.3.0", True),
        ("10.3.0.26", "10.3.0.30", False),
        ("10.3.0", "10.3.1", False),
        ("10.3", "10.3.0", False),
        ("10.13.3.9", "10.3.0", False),
        ("11.4.0.106", "11.4.1.1", False),
        ("10.3.0", "", False),
    ],
)
def test_only_the_version_that_built_an_engine_may_open_it(made: str, here: str, good: bool) -> None:
    built = Built(TRT, made, "8.7")
    if good:
        check_version(built, here)
    else:
        with pytest.raises(MachineError, match="another version than the one here"):
            check_version(built, here)


@pytest.mark.parametrize("sm", ["8.6", "8.9", "7.8", "87", "8.70", ""])
def test_only_the_gpu_that_an_engine_was_built_for_may_run_it(sm: str) -> None:
    check_gpu(Built(TRT, "10.3.0", "8.7"), "8.7", "Orin, 16 multiprocessors")
    with pytest.raises(MachineError, match=r"sm: .*compute capability 8\.7.*deploy finalize") as caught:
        check_gpu(Built(TRT, "10.3.0", "8.7"), sm, "Orin, 16 multiprocessors")
    assert "\n" not in str(caught.value)


def test_another_model_of_the_same_compute_capability_is_refused() -> None:
    built = Built(TRT, "10.3.0", "8.7", "Orin, 16 multiprocessors")
    check_gpu(built, "8.7", "Orin, 16 multiprocessors")
    with pytest.raises(MachineError, match=r"gpu: .*another model of GPU, Orin, 16.*deploy finalize"):
        check_gpu(built, "8.7", "Orin, 8 multiprocessors")


@pytest.mark.skipif(available_engines()[TRT] is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_remedy_is_to_install_it() -> None:
    options = EngineOptions(built=Built(TRT, "10.3.0", "8.7"))
    assert "JetPack" in refused(MachineError, "TensorRT is not installed", TRT, b"engine", SMALL, options)


@without_driver
def test_without_a_gpu_cuda_says_so() -> None:
    line = refused(MachineError, "cudaErrorInsufficientDriver", RTX, b"engine", SMALL, built_here())
    assert "install the NVIDIA driver" in line


# TensorRT's own errors


@pytest.fixture(scope="module")
def rtx_plan() -> bytes:
    """A real engine of TensorRT for RTX, of the graph whose results are known."""
    return engine_file(RTX, known_graph(), "8.9")


@without_driver
def test_an_engine_that_needs_a_gpu_fails_in_one_line(rtx_plan: bytes) -> None:
    assert len(rtx_plan) > 1000
    with pytest.raises(MachineError, match=r"TensorRT cannot load the engine file: .*cudaError 35") as caught:
        deserialize(load_or_skip(RTX), rtx_plan)
    assert "\n" not in str(caught.value) and "deploy finalize" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda plan: b"", "empty memory buffer"),
        (lambda plan: b"not an engine" * 100, "MAGIC_TAG"),
        (lambda plan: plan[: len(plan) // 2], "Serialization"),
        (lambda plan: plan[:16], ""),
    ],
)
def test_a_damaged_engine_fails_in_one_line(rtx_plan: bytes, damage: Any, said: str) -> None:
    with pytest.raises(MachineError, match="TensorRT cannot load the engine file") as caught:
        deserialize(load_or_skip(RTX), damage(rtx_plan))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_is_not_told_twice() -> None:
    trt = load_or_skip(RTX)
    for program, said in ((b"not an engine" * 100, "MAGIC_TAG"), (b"", "empty memory buffer")):
        with pytest.raises(MachineError, match=said):
            deserialize(trt, program)


# ONNX Runtime's GPU providers


@pytest.fixture
def same_environment() -> Iterator[None]:
    """TF32's variable is set for the process; the plug-in adds its folder to the loader's path."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.mark.parametrize("kind", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="onnxruntime-gpu is installed")
def test_an_onnxruntime_of_the_cpu_never_stands_in(kind: str) -> None:
    line = refused(MachineError, f"made without {PROVIDERS[kind].name}", kind, known_graph(), SMALL)
    assert "damp-deploy[gpu]" in line


@without_driver
@pytest.mark.usefixtures("same_environment")
def test_the_rtx_plug_in_needs_a_driver() -> None:
    if available_engines()["onnxruntime-rtx"] is None:
        pytest.skip("the plug-in is not installed")
    for _ in range(2):
        line = refused(MachineError, r"cannot load its plug-in.*libcuda", "onnxruntime-rtx", known_graph(), SMALL)
        assert "NVIDIA driver" in line and "site-packages" not in line


@pytest.mark.parametrize("kind", PROVIDERS)
def test_graphs_are_looked_at_before_a_provider_is(kind: str) -> None:
    refused(BundleError, "graph", kind, b"not a graph", SMALL)


@pytest.mark.usefixtures("same_environment")
def test_float32_stays_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for kept in ("0", None):
        monkeypatch.delenv(TF32, raising=False)
        if kept is not None:
            monkeypatch.setenv(TF32, kept)
        forbid_tf32("onnxruntime-rtx")
        assert os.environ[TF32] == "0"
    monkeypatch.setenv(TF32, "1")
    with pytest.raises(MachineError, match=rf"{TF32}: .*TF32 \(found '1'\); unset it"):
        forbid_tf32("onnxruntime-rtx")
    assert PROVIDERS["onnxruntime-cuda"].options()["use_tf32"] == "0"


def cpu_session(**entries: str) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return ort.InferenceSession(known_graph(), settings, providers=["CPUExecutionProvider"])


def test_a_session_of_the_cpu_is_refused() -> None:
    session = cpu_session(**{"session.record_ep_graph_assignment_info": "1"})
    with pytest.raises(MachineError, match=r"provider: ONNX Runtime chose another provider.*CPUExecutionProvider"):
        check_placement(session, "CUDAExecutionProvider")
    assert check_placement(session, "CPUExecutionProvider") == "all 5 nodes in CPUExecutionProvider"


def test_the_settings_forbid_the_cpu() -> None:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in NO_CPU.items():
        settings.add_session_config_entry(key, value)
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        ort.InferenceSession(known_graph(), settings, enable_fallback=0)


def test_an_engine_without_a_target_is_another_one(rtx_plan: bytes) -> None:
    """Its head, which RTX asks where an engine is valid, says so; what follows is not always the same, nor as long."""
    trt = load_or_skip(RTX)
    size = trt.Runtime(trt.Logger(trt.Logger.ERROR)).engine_header_size

    def head(plan: bytes) -> bytes:
        """Without the length of the file."""
        assert int.from_bytes(plan[16:24], "little") == len(plan) > size
        return plan[:16] + plan[24:size]

    same, everywhere = (head(engine_file(RTX, known_graph(), sm)) for sm in ("8.9", None))
    assert same == head(rtx_plan) != everywhere


# On a GPU


@pytest.fixture(scope="class", params=[(TRT, True), (RTX, True), (RTX, False)], ids=[*KINDS, "tensorrt-rtx-any-gpu"])
def on_gpu(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The second parameter: built for this GPU's compute capability, or for every GPU that RTX supports."""
    _, device = gpu_or_skip()
    kind, targeted = request.param
    plan = engine_file(kind, known_graph(), device.sm if targeted else None)
    with open_engine(kind, plan, SMALL, built_here(kind, sm=device.sm)) as engine:
        yield engine


class TestTensorRt(EngineContract):
    """The shared contract, and that a frame is what the graph says."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, on_gpu: Engine) -> Engine:
        return on_gpu

    def test_frames_are_as_the_cpu_computes_them(self, engine: Engine) -> None:
        with open_engine("onnxruntime", known_graph(), SMALL, EngineOptions(threads=1)) as cpu:
            for seed in range(4):
                given = inputs(SMALL, seed)
                found = engine.infer(given)
                for name, expected in cpu.infer(given).items():
                    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6)

    def test_a_frame_is_one_graph(self, engine: Engine) -> None:
        assert engine.describe()["launches"] == "CUDA graph"


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_can_be_closed_twice_and_is_then_closed(kind: str) -> None:
    _, device = gpu_or_skip()
    options = built_here(kind, sm=device.sm)
    plan = engine_file(kind, known_graph(), device.sm)
    for _ in range(3):
        engine = open_engine(kind, plan, SMALL, options)
        engine.infer(inputs(SMALL, 0))
        engine.close()
        engine.close()
        with pytest.raises(MachineError, match="the engine is closed"):
            engine.infer(inputs(SMALL, 0))
    other = damp_like(3, 9, 16)
    refused(BundleError, "not the one that the manifest describes", kind, plan, other, options)


def test_rtx_compiles_an_engine_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, device = gpu_or_skip()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan, told, restored = engine_file(RTX, known_graph(), device.sm), [], []
    for _ in range(2):
        with open_engine(RTX, plan, SMALL, built_here(sm=device.sm)) as engine:
            told.append(engine.describe()["kernels"])
            restored.append(engine.infer(inputs(SMALL, 0))["restored"])
    assert told == [
        "compiled here (none were kept), kept in the user's cache folder",
        "taken from the user's cache folder",
    ]
    np.testing.assert_array_equal(*restored)


class TestOnnxRuntimeGpu(EngineContract):
    """Whichever of ONNX Runtime's GPU providers are installed."""

    @pytest.fixture(scope="class", params=PROVIDERS)
    @classmethod
    def engine(cls, request: pytest.FixtureRequest) -> Iterator[Engine]:
        gpu_or_skip()
        if available_engines()[str(request.param)] is None:
            pytest.skip(f"{request.param} is not installed")
        with open_engine(str(request.param), known_graph(), SMALL) as engine:
            yield engine
