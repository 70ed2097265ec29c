"""Bundles for GPUs without TensorRT: complete where they are built, and run nowhere else unless somebody says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from deploy.building.engines import check_engine
from export.targets import BUILT_IN
from runtime.bundle_files import verified_bundle
from runtime.engines import ENGINE_FILES, ENGINES, GPU_ENGINES, available_engines
from runtime.engines.cuda import compute_capability
from runtime.engines.onnxruntime_gpu import PROVIDERS
from runtime.errors import InputError
from runtime.metrics import METRIC_SETS
from runtime.prompts import beyond
from tests.contracts.command import Done, assert_failed, invoke

Capsys = pytest.CaptureFixture[str]
ENGINE = "onnxruntime-cuda"
RUNS_HERE = available_engines()[ENGINE] is not None and compute_capability() is not None
not_here = pytest.mark.skipif(RUNS_HERE, reason="ONNX Runtime's CUDA provider runs here")


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, graphs_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For target `cuda`, with metrics in the engine. To be read."""
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    flags = {"model.checkpoint": str(tiny_checkpoint), "target": "cuda", "input.frame": "64x64", "input.overlap": 16}
    out = tmp_path_factory.mktemp("cuda") / "bundle"
    done = build(with_overrides(Config(), flags), out, metrics="graph")
    assert done["precision"]["chosen"] == "fp16" and done["runs_in"] == ENGINE
    assert done["deferred"] is None and done["engine"] is None and 0 < done["agreement"]["difference"] < 0.05
    return out


def test_the_bundle_is_complete_and_names_its_engine(bundle: Path) -> None:
    contents = verified_bundle(bundle)
    manifest, files = contents.manifest, contents.files
    assert manifest.target.engine == ENGINE and contents.made is None and manifest.deferred is None
    assert manifest.target.sm is None and set(manifest.graphs) == {"fp32", "fp16"}
    assert "FP16" in manifest.evidence["fp16"]["arithmetic"] and "graphs/fp16.onnx" in files
    # Metrics are float32 beside a network in FP16.
    of_metrics = onnx.load_model_from_string(files[str(manifest.metrics_graph)])
    assert TensorProto.FLOAT16 not in {t.data_type for t in of_metrics.graph.initializer}
    assert set(manifest.evidence["metrics_apart"]) == set(manifest.signature.metric_names) == set(METRIC_SETS["paper6"])


def run(capsys: Capsys, bundle: Path, folder: Path, *options: str) -> Done:
    np.save(folder / "cube.npy", np.random.default_rng(0).random((64, 64, 31), np.float32))
    return invoke(capsys, "run", bundle, folder / "cube.npy", "--out", folder / "out.npy", *options)


@not_here
def test_where_cuda_is_not_it_does_not_run_unless_another_engine_is_named(
    capsys: Capsys, bundle: Path, tmp_path: Path
) -> None:
    line = assert_failed(run(capsys, bundle, tmp_path), 3, "the bundle's engine for cuda does not run here")
    assert "--engine onnxruntime" in line and not (tmp_path / "out.npy").exists()
    assert run(capsys, bundle, tmp_path, "--engine", "onnxruntime", "--json").json["metrics_by"] == "graph"
    assert np.load(tmp_path / "out.npy").shape == (64, 64, 31)


@not_here
def test_other_commands_take_it_for_what_it_is(
    capsys: Capsys, bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    told = invoke(capsys, "inspect", bundle, "--json").json
    assert told["engine"] is None and "does not run here" in told["refusal"] and told["intact"]
    assert_failed(invoke(capsys, "finalize", bundle), 2, "its engine loads the graph")
    assert_failed(invoke(capsys, "finalize", bundle, "--rebuild"), 2, "its engine loads the graph")
    assert_failed(invoke(capsys, "bench", bundle), 3, "does not run here")
    assert_failed(invoke(capsys, "check", bundle, "--checkpoint", tiny_checkpoint), 3, "does not run here")
    assert invoke(capsys, "bench", bundle, "--frames", 1, "--engine", "onnxruntime").code == 0
    done = invoke(capsys, "export-triton", bundle, "--out", tmp_path / "models", "--json")
    served = done.json
    assert "NumPy's on the host: graphs/metrics.onnx is not served" in done.err
    assert served["engine"] == {"backend": "onnxruntime", "file": "model.onnx", "gpu": True}
    assert "cuda" in invoke(capsys, "targets", "--json").json["targets"]


def test_the_engine_that_flies_is_checked_in_fp16s_arithmetic_here(
    capsys: Capsys, bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = tmp_path / "deploy.yaml"
    config.write_text("check:\n  cube: 64x64\n  degradations: [noise]\n")
    options = ("--config", config, "--checkpoint", tiny_checkpoint, "--engine", "onnxruntime", "--json")
    done = invoke(capsys, "check", bundle, *options)
    told = done.json.get("result", done.json)
    assert done.code in (0, 1) and "FP16's arithmetic" in str(told), done.err
    assert set(told["metrics_apart"]) == set(METRIC_SETS["paper6"]) and not beyond(told["metrics_apart"])
    assert "the metrics' graph against NumPy" in done.err


def test_a_gpu_with_a_tensorrt_may_be_built_for_without_it(
    capsys: Capsys, tiny_checkpoint: Path, graphs_once: None, tmp_path: Path
) -> None:
    options = ("--checkpoint", tiny_checkpoint, "--size", "64x64", "--overlap", "16", "--out", tmp_path / "b", "--json")
    done = invoke(capsys, "build", "--target", "h200", "--engine", ENGINE, *options)
    assert done.code == 0 and done.json["deferred"] is None and done.json["precision"]["chosen"] == "fp16", done.err
    contents = verified_bundle(tmp_path / "b")
    manifest = contents.manifest
    assert manifest.target.name == "h200" and manifest.target.engine == ENGINE and contents.made is None
    # Any GPU runs the graph: only an engine file is locked to one.
    assert manifest.target.sm is None and manifest.target.tensorrt is None


# Which engine may take the place of a target's own


def test_engines_of_gpus_are_those_with_a_gpu() -> None:
    assert {*PROVIDERS, *ENGINE_FILES} == GPU_ENGINES < set(ENGINES)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_target_is_built_for_its_own_engine_or_one_that_loads_the_graph_in_the_same_place(name: str) -> None:
    own = BUILT_IN[name].engine
    on_gpu = own in GPU_ENGINES
    assert check_engine(None, own, "fp32") == own
    for engine in {*ENGINES, "auto"}:
        if engine == own or ((engine in GPU_ENGINES) == on_gpu and engine not in ENGINE_FILES):
            assert check_engine(engine, own, "fp32") == engine
        else:
            with pytest.raises(InputError, match="--engine: the target does not run this engine"):
                check_engine(engine, own, "fp32")


def test_other_names_are_unknown_and_the_remedy_names_the_known() -> None:
    for engine in ("cuda", ""):
        with pytest.raises(InputError, match=r"--engine: unknown engine.*onnxruntime-cuda"):
            check_engine(engine, "tensorrt", "fp16")
    with pytest.raises(InputError, match="does not compute in bfloat16"):
        check_engine("onnxruntime", "openvino", "bf16")
