"""`deploy export-triton`: configurations that Triton's schema reads, metrics that are ours, a chain that restores."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from numpy.typing import NDArray

from runtime.bundle import load_bundle
from runtime.bundle_files import read_manifest
from runtime.metrics import METRIC_SETS, prompt_metrics
from tests.contracts.bundles import for_a_board, give_engine, known_bundle, reseal
from tests.contracts.command import assert_failed, assert_json_error, invoke

Capsys = pytest.CaptureFixture[str]
NAME = "tiny"


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's published `model_config_pb2`, without the gRPC that its package would import."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.submodule_search_locations
    path = Path(next(iter(package.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    return loaded_module("model_config_pb2", path)


def loaded_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from deploy.cli import run

    out = tmp_path_factory.mktemp("triton") / "models"
    assert run(["export-triton", str(tiny_bundle), "--out", str(out)]) == 0
    return out


def config(repository: Path, model: str, schema: ModuleType) -> Any:
    """A model's configuration as Triton's schema reads it; an unknown field or value fails."""
    parsed = text_format.Parse((repository / model / "config.pbtxt").read_text(), schema.ModelConfig())
    assert parsed.name == model and parsed.max_batch_size == 0
    return parsed


def tensors(schema: ModuleType, listed: Any) -> dict[str, tuple[list[int], list[int]]]:
    """{name: (shape that callers see, shape inside)}; all are float32."""
    assert {tensor.data_type for tensor in listed} == {schema.TYPE_FP32}
    return {t.name: (list(t.dims), list(t.reshape.shape) or list(t.dims)) for t in listed}


def kinds(schema: ModuleType, parsed: Any) -> list[tuple[int, str]]:
    return [(g.count, schema.ModelInstanceGroup.Kind.Name(g.kind)) for g in parsed.instance_group]


def test_the_engine_has_the_graphs_own_shapes(repository: Path, tiny_bundle: Path, schema: ModuleType) -> None:
    engine = config(repository, "tiny_engine", schema)
    assert engine.backend == "onnxruntime" and engine.platform == "" and not engine.HasField("optimization")
    assert kinds(schema, engine) == [(1, "KIND_CPU")]
    program = repository / "tiny_engine/1/model.onnx"
    m = read_manifest(tiny_bundle)
    assert program.read_bytes() == (tiny_bundle / m.graphs["fp32"]).read_bytes()
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    inner = {a.name: list(a.shape) for a in (*session.get_inputs(), *session.get_outputs())}
    told = {**tensors(schema, engine.input), **tensors(schema, engine.output)}
    assert {name: shape for name, (_, shape) in told.items()} == inner
    for outer, inside in told.values():
        # Triton reshapes only what holds as many elements.
        assert np.prod(outer) == np.prod(inside)
    assert told["frame"][0] == told["restored"][0] == [31, 64, 64] and told["metrics"][0] == [6]
    assert told["routing"][0] == [2, 4]


def test_the_ensemble_joins_the_two(repository: Path, schema: ModuleType) -> None:
    ensemble = config(repository, NAME, schema)
    assert ensemble.platform == "ensemble" and not ensemble.instance_group
    assert [t.name for t in ensemble.input] == ["frame"] and [t.name for t in ensemble.output] == [
        "restored",
        "routing",
    ]
    known = {name: shape for name, (shape, _) in tensors(schema, ensemble.input).items()}
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["tiny_metrics", "tiny_engine"]
    for step in steps:
        part = config(repository, step.model_name, schema)
        inputs, outputs = tensors(schema, part.input), tensors(schema, part.output)
        # Every input of a step is there by then, in the shape that the step wants, and nothing is left over.
        assert set(step.input_map) == set(inputs) and set(step.output_map) == set(outputs)
        for name, tensor in step.input_map.items():
            assert known[tensor] == inputs[name][0]
        known |= {tensor: outputs[name][0] for name, tensor in step.output_map.items()}
        assert step.model_version == -1
    for name, (shape, _) in tensors(schema, ensemble.output).items():
        assert known[name] == shape
    for model in (NAME, "tiny_metrics", "tiny_engine"):
        assert (repository / model / "1").is_dir()


# A stand-in for the interface of the Python backend: what the server's module of that name gives.


@dataclass
class Tensor:
    given_name: str
    array: NDArray[Any]

    def name(self) -> str:
        return self.given_name

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass
class TritonError:
    text: str

    def message(self) -> str:
        return self.text


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: TritonError | None = None


@dataclass
class InferenceRequest:
    inputs: list[Tensor]


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs if tensor.name() == name), None)


@pytest.fixture
def metrics_model(repository: Path, schema: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`TritonPythonModel` of the repository, started as the server starts it."""
    backend = ModuleType("triton_python_backend_utils")
    for thing in (Tensor, TritonError, InferenceResponse, InferenceRequest, get_input_tensor_by_name):
        setattr(backend, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    module = loaded_module("tiny_metrics_model", repository / "tiny_metrics/1/model.py")
    model = module.TritonPythonModel()
    parsed = config(repository, "tiny_metrics", schema)
    assert parsed.backend == "python" and kinds(schema, parsed) == [(1, "KIND_CPU")]
    told = json_format.MessageToDict(parsed, preserving_proto_field_name=True)
    model.initialize({"model_config": json.dumps(told), "model_name": "tiny_metrics", "model_instance_kind": "CPU"})
    return model


def frames(count: int) -> list[NDArray[np.float32]]:
    return [np.random.default_rng(seed).random((31, 64, 64), np.float32) for seed in range(count)]


def test_the_metrics_are_the_runtimes(metrics_model: Any, tiny_bundle: Path) -> None:
    cubes = frames(3)
    responses = metrics_model.execute([InferenceRequest([Tensor("frame", cube)]) for cube in cubes])
    assert len(responses) == 3
    for cube, response in zip(cubes, responses, strict=True):
        assert response.error is None and [t.name() for t in response.output_tensors] == ["metrics"]
        metrics = response.output_tensors[0].as_numpy()
        assert metrics.dtype == np.float32 and metrics.shape == (len(METRIC_SETS["paper6"]),)
        np.testing.assert_array_equal(metrics, prompt_metrics(cube, metrics_of(tiny_bundle)))


def metrics_of(bundle: Path) -> str:
    asked = read_manifest(bundle).signature.metrics
    assert asked is not None
    return asked.of


def test_a_frame_that_cannot_be_used_fails_alone(metrics_model: Any) -> None:
    good, bad = frames(2)
    bad[3, 2, 1] = np.nan
    first, second, third = metrics_model.execute([InferenceRequest([Tensor("frame", c)]) for c in (good, bad, good)])
    assert first.error is None and third.error is None
    assert "not finite" in second.error.message() and second.output_tensors == []


def test_an_unknown_metric_set_does_not_start(metrics_model: Any) -> None:
    ports = {"input": [{"name": "frame"}], "output": [{"name": "metrics"}]}
    told = {**ports, "parameters": {"metric_set": {"string_value": "nope"}}}
    with pytest.raises(Exception, match="unknown metric set"):
        metrics_model.initialize({"model_config": json.dumps(told)})


def test_the_chain_restores_as_the_bundle_does(
    repository: Path, tiny_bundle: Path, metrics_model: Any, schema: ModuleType
) -> None:
    """Follow the ensemble's steps through the files that were written, as the server would."""
    (cube,) = frames(1)
    pool: dict[str, NDArray[Any]] = {"frame": cube}
    for step in config(repository, NAME, schema).ensemble_scheduling.step:
        part = config(repository, step.model_name, schema)
        given = {name: pool[tensor] for name, tensor in step.input_map.items()}
        if part.backend == "python":
            request = InferenceRequest([Tensor(name, array) for name, array in given.items()])
            made = {t.name(): t.as_numpy() for t in metrics_model.execute([request])[0].output_tensors}
        else:
            session = onnxruntime.InferenceSession(repository / part.name / "1/model.onnx", providers=PROVIDERS)
            inside = {t.name: given[t.name].reshape(tensors(schema, [t])[t.name][1]) for t in part.input}
            names = [t.name for t in part.output]
            arrays = session.run(names, inside)
            made = {t.name: a.reshape(list(t.dims)) for t, a in zip(part.output, arrays, strict=True)}
        pool |= {tensor: made[name] for name, tensor in step.output_map.items()}
    with load_bundle(tiny_bundle) as bundle:
        metrics = prompt_metrics(cube, metrics_of(tiny_bundle))
        made = bundle.engine.infer({"frame": cube[None], "metrics": metrics[None]})
    np.testing.assert_allclose(pool["restored"], made["restored"][0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(pool["routing"], made["routing"], rtol=0, atol=1e-5)
    assert not np.allclose(pool["restored"], cube, atol=1e-3)


PROVIDERS = ["CPUExecutionProvider"]


def test_the_readme_has_commands_for_these_models(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    assert "$" not in text.replace('"$PWD:', "") and "`tiny`" in text and "[31, 64, 64]" in text
    serve, query = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    words = shlex.split(serve)
    assert words[:2] == ["docker", "run"] and "--gpus=all" not in words
    assert "$PWD:/models:ro" in words and "tritonserver --model-repository=/models" in words[-1]
    # Nobody else's machine is let in.
    assert all(words[i + 1].startswith("127.0.0.1:") for i, word in enumerate(words) if word == "-p")
    program = query.partition("<<'END'\n")[2].partition("END\n")[0]
    compile(program, "query", "exec")
    assert '"tiny"' in program and '"restored"' in program and '"FP32"' in program


def test_no_file_names_a_place_on_this_machine(repository: Path, tiny_bundle: Path) -> None:
    places = {str(tiny_bundle), str(repository), str(Path.home()), str(Path(__file__).parents[2])}
    for path in repository.rglob("*"):
        if path.is_file():
            assert not [place for place in places if place.encode() in path.read_bytes()], path


def test_machines_are_told_what_was_written(capsys: Capsys, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    done = invoke(capsys, "export-triton", tiny_bundle, "--out", out, "--name", "on-board_2", "--json")
    assert done.code == 0, done.err
    told = done.json
    assert told["models"] == ["on-board_2", "on-board_2_metrics", "on-board_2_engine"]
    assert told["engine"] == {"backend": "onnxruntime", "file": "model.onnx", "gpu": False}
    assert told["precision"] == "fp32"
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert told["files"] == written and len(written) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_what_is_there_is_replaced_as_a_whole_and_only_when_asked(capsys: Capsys, tmp_path: Path) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "models"
    assert invoke(capsys, "export-triton", bundle, "--out", out).code == 0
    (out / "mine.txt").write_text("mine")
    assert_failed(invoke(capsys, "export-triton", bundle, "--out", out), 2, "exists already", "--replace")
    assert (out / "mine.txt").is_file()
    assert invoke(capsys, "export-triton", bundle, "--out", out, "--replace").code == 0
    assert not (out / "mine.txt").exists() and (out / "README.md").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "models"]


def test_a_write_that_fails_leaves_what_was_there(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "models"
    out.mkdir()
    (out / "mine.txt").write_text("mine")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert_failed(invoke(capsys, "export-triton", bundle, "--out", out, "--replace"), 2, "No space left")
    assert (out / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "models"]


def test_the_bundle_is_not_written_over(capsys: Capsys, tmp_path: Path) -> None:
    bundle = known_bundle(tmp_path / "place/bundle")
    for out in (bundle, tmp_path / "place", bundle / "models"):
        assert_failed(invoke(capsys, "export-triton", bundle, "--out", out, "--replace"), 2, "the bundle")
    link = tmp_path / "link"
    link.symlink_to(bundle)
    assert_failed(invoke(capsys, "export-triton", bundle, "--out", link, "--replace"), 2)
    file = tmp_path / "file"
    file.write_text("mine")
    assert_failed(invoke(capsys, "export-triton", bundle, "--out", file, "--replace"), 2, "no folder")
    assert file.read_text() == "mine" and read_manifest(bundle).signature.measured.bands == 3


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a b", "ä", "x" * 65, 'a"'])
def test_names_that_no_model_has(capsys: Capsys, tmp_path: Path, name: str) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    done = invoke(capsys, "export-triton", bundle, "--out", tmp_path / "models", "--name", name, "--json")
    assert assert_json_error(done, 2)["key"] == "--name"
    assert not (tmp_path / "models").exists()


def test_a_checkpoints_odd_name_becomes_a_models(capsys: Capsys, tmp_path: Path, schema: ModuleType) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "models"
    reseal(bundle, lambda content: content["network"].update(checkpoint='../-we"ird\nnäme } x: 1.pth'))
    done = invoke(capsys, "export-triton", bundle, "--out", out, "--json")
    name = done.json["name"]
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) and config(out, name, schema).name == name
    reseal(bundle, lambda content: content["network"].update(checkpoint="...."))
    assert invoke(capsys, "export-triton", bundle, "--out", out, "--replace", "--json").json["name"] == "known"


def test_an_engine_file_is_served_by_tensorrt(capsys: Capsys, tmp_path: Path, schema: ModuleType) -> None:
    bundle, out = give_engine(for_a_board(tmp_path / "bundle")), tmp_path / "models"
    done = invoke(capsys, "export-triton", bundle, "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.json["engine"] == {"backend": "tensorrt", "file": "model.plan", "gpu": True}
    engine = config(out, "known_engine", schema)
    assert engine.platform == "tensorrt_plan" and engine.backend == ""
    assert kinds(schema, engine) == [(1, "KIND_GPU")] and not engine.parameters
    assert (out / "known_engine/1/model.plan").read_bytes() == b"an engine"
    assert kinds(schema, config(out, "known_metrics", schema)) == [(1, "KIND_CPU")]
    text = (out / "README.md").read_text()
    assert "TensorRT 10.3.0" in text and "compute capability 8.7" in text and "--gpus=all" in text

    done = invoke(capsys, "export-triton", bundle, "--out", out, "--graph", "--replace", "--json")
    engine = config(out, "known_engine", schema)
    assert engine.backend == "onnxruntime" and kinds(schema, engine) == [(1, "KIND_GPU")]
    assert sorted(p.name for p in (out / "known_engine/1").iterdir()) == ["model.onnx"]


def served_by(bundle: Path, engine: str) -> None:
    reseal(bundle, lambda content: content["target"].update(engine=engine, sm=None))


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx", "tensorrt"])
def test_a_graph_on_a_gpu_keeps_its_float32(capsys: Capsys, tmp_path: Path, schema: ModuleType, name: str) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "models"
    served_by(bundle, name)
    done = invoke(capsys, "export-triton", bundle, "--out", out, "--graph", "--json")
    assert done.code == 0 and done.json["engine"]["gpu"] is True, done.err
    engine = config(out, "known_engine", schema)
    assert kinds(schema, engine) == [(1, "KIND_GPU")]
    (accelerator,) = engine.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda" and dict(accelerator.parameters) == {"use_tf32": "0"}
    text = (out / "README.md").read_text()
    assert "--gpus=all" in text and "cannot forbid" in text and "fall back to the CPU" in text
    assert not config(out, "known_metrics", schema).HasField("optimization")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_runs_on_the_cpu_is_served_there(capsys: Capsys, tmp_path: Path, schema: ModuleType, name: str) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "models"
    reseal(bundle, lambda content: content["target"].update(engine=name, sm="8.7"))
    asked = [] if name == "onnxruntime" else ["--graph"]
    if asked:
        assert_failed(invoke(capsys, "export-triton", bundle, "--out", out), 2, "openvino", "--graph")
    assert invoke(capsys, "export-triton", bundle, "--out", out, *asked).code == 0
    engine = config(out, "known_engine", schema)
    assert kinds(schema, engine) == [(1, "KIND_CPU")] and not engine.HasField("optimization")
    assert "fall back" not in (out / "README.md").read_text()


def test_bfloat16_is_served_as_what_it_becomes_and_only_when_asked(capsys: Capsys, tmp_path: Path) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "models"
    served_by(bundle, "openvino")

    def change(content: dict[str, Any]) -> None:
        content["graphs"]["bf16"] = content["graphs"]["fp32"]
        content["precision"]["chosen"] = "bf16"

    reseal(bundle, change)
    done = invoke(capsys, "export-triton", bundle, "--out", out, "--json")
    error = assert_json_error(done, 2)
    assert error["value"] == "openvino, bf16" and "--graph" in error["remedy"] and not out.exists()
    done = invoke(capsys, "export-triton", bundle, "--out", out, "--graph", "--json")
    assert done.code == 0 and done.json["precision"] == "fp32", done.err
    assert ["bf16" in warning and "fp32" in warning for warning in done.json["warnings"]] == [True]
    text = (out / "README.md").read_text()
    assert "the fp32 graph" in text and "computes in bf16, this repository in fp32" in text


def test_engines_that_triton_cannot_run_are_refused(capsys: Capsys, tmp_path: Path) -> None:
    out = tmp_path / "models"
    rtx = give_engine(for_a_board(tmp_path / "rtx", "tensorrt-rtx"))
    assert_failed(invoke(capsys, "export-triton", rtx, "--out", out), 3, "no backend", "tensorrt-rtx", "--graph")
    deferred = known_bundle(tmp_path / "deferred")
    reseal(deferred, lambda content: content.update(deferred="it is built on the board"))
    assert_failed(invoke(capsys, "export-triton", deferred, "--out", out), 3, "not built yet", "finalize", "--graph")
    assert not out.exists()
    for bundle in (rtx, deferred):
        assert invoke(capsys, "export-triton", bundle, "--out", out, "--graph", "--replace").code == 0


def test_threads_of_the_target_are_those_of_the_server(capsys: Capsys, tmp_path: Path, schema: ModuleType) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "models"
    assert invoke(capsys, "export-triton", bundle, "--out", out).code == 0
    assert config(out, "known_engine", schema).parameters["intra_op_thread_count"].string_value == "1"
    reseal(bundle, lambda content: content["target"].update(threads=None))
    assert invoke(capsys, "export-triton", bundle, "--out", out, "--replace").code == 0
    assert not config(out, "known_engine", schema).parameters


def test_a_damaged_bundle_is_not_served(capsys: Capsys, tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    graph = bundle / read_manifest(bundle).graphs["fp32"]
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert_failed(invoke(capsys, "export-triton", bundle, "--out", tmp_path / "models"), 2, "SHA-256")
    assert not (tmp_path / "models").exists()
