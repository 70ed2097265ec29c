"""Metrics computed by the engine, as an option of the target: asked for, refused, and told by every command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from deploy.building.engines import check_metrics
from export.networks import network_of, save_checkpoint
from export.targets import BUILT_IN
from runtime.bundle_files import read_manifest
from runtime.engines import ENGINES, METRICS_ENGINES
from runtime.errors import InputError
from runtime.files import write_cube
from runtime.prompts import beyond
from tests.contracts.command import assert_failed, assert_finite, assert_json_error, invoke
from tests.export.checkpoints import SMALL, network

Capsys = pytest.CaptureFixture[str]
GRAPH = "graphs/metrics.onnx"
RECIPE = ("--size", "64x64", "--overlap", "16")


def test_a_target_may_ask_for_it_and_a_flag_beats_the_target(
    capsys: Capsys, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = tmp_path / "deploy.yaml"
    config.write_text("target: payload\ntargets: {payload: {metrics: graph}}\n")
    options = ("--config", config, "--checkpoint", tiny_checkpoint, *RECIPE, "--json", "--out")
    done = invoke(capsys, "build", *options, tmp_path / "graph")
    assert done.code == 0, done.err
    told = done.json
    assert_finite(told)
    assert told["metrics_by"] == "graph" and told["metrics_apart"] and not beyond(told["metrics_apart"])
    assert "metrics    a graph of" in done.err
    manifest = read_manifest(tmp_path / "graph")
    assert manifest.metrics_graph == GRAPH in manifest.files
    assert manifest.evidence["metrics_apart"] == told["metrics_apart"]
    told = invoke(capsys, "build", *options, tmp_path / "host", "--metrics", "host").json
    assert told["metrics_by"] == "host" and told["metrics_apart"] is None
    manifest = read_manifest(tmp_path / "host")
    assert manifest.metrics_graph is None and GRAPH not in manifest.files
    listed = invoke(capsys, "targets", "--config", config, "--json").json["targets"]
    assert {name for name, target in listed.items() if target["metrics"] == "graph"} == {"payload"}


# Refusals


@pytest.mark.parametrize(
    "asked",
    [
        ("--target", "jetson-orin"),
        ("--target", "rtx-40"),
        ("--target", "intel"),
        ("--target", "cpu", "--engine", "openvino"),
        ("--target", "cpu", "--engine", "auto"),
        ("--target", "h200", "--engine", "onnxruntime-tensorrt"),
    ],
    ids=" ".join,
)
def test_engines_that_compute_none_are_refused_before_anything_is_read(
    capsys: Capsys, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    options = ("--checkpoint", tmp_path / "none.pth", "--metrics", "graph", "--out", tmp_path / "b", "--json")
    error = assert_json_error(invoke(capsys, "build", *asked, *options), 2)
    assert error["key"] == "--metrics" and "does not compute metrics from a graph" in error["message"]
    assert "--metrics host" in error["remedy"] and not any(tmp_path.iterdir())


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_engines_that_load_the_graph_in_onnx_runtime_compute_them(engine: str) -> None:
    check_metrics("host", engine)
    if engine in METRICS_ENGINES:
        check_metrics("graph", engine)
    else:
        with pytest.raises(InputError, match="--metrics"):
            check_metrics("graph", engine)


def test_no_built_in_target_asks_for_it() -> None:
    assert {target.metrics for target in BUILT_IN.values()} == {"host"}


def test_sets_that_numpy_alone_computes_are_refused_before_the_export(capsys: Capsys, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, metric_set="reference15")
    save_checkpoint(network_of(network(config)), tmp_path / "net.safetensors", scale=255, about="seeded")
    options = ("--checkpoint", tmp_path / "net.safetensors", *RECIPE, "--out", tmp_path / "b")
    line = assert_failed(invoke(capsys, "build", *options, "--metrics", "graph"), 2, "metric_set", "reference15")
    assert "curvature_max" in line and "host" in line
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


# What a bundle tells of it


def test_every_command_tells_what_computed_them(capsys: Capsys, metrics_bundle: Path, tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((64, 64, 31), np.float32)
    np.save(tmp_path / "frame.npy", cube)
    np.save(tmp_path / "larger.npy", np.concatenate([cube, cube]))
    for name, by in (("frame", "graph"), ("larger", "host")):
        done = invoke(capsys, "run", metrics_bundle, tmp_path / f"{name}.npy", "--out", tmp_path / f"{name}-out.npy")
        assert done.code == 0 and f"metrics by the {by}" in done.out, done.err
    assert f"by {GRAPH} of whole frames in onnxruntime" in invoke(capsys, "inspect", metrics_bundle).out
    done = invoke(capsys, "bench", metrics_bundle, "--frames", 2, "--json")
    assert done.json["metrics_by"] == "graph" and "metrics by the graph" in done.err
    done = invoke(capsys, "bench", metrics_bundle, "--frames", 1, "--engine", "openvino", "--json")
    assert done.json["metrics_by"] == "host"


def test_a_stream_tells_it_too(capsys: Capsys, metrics_bundle: Path, tmp_path: Path) -> None:
    cube = np.random.default_rng(0).integers(100, 9000, (31, 64, 64)).astype(np.int16)
    write_cube(tmp_path / "scene.hdr", cube, fields={"reflectance scale factor": "10000"})
    options = ("--source", f"envi:{tmp_path / 'scene.hdr'}", "--restored", tmp_path / "out")
    done = invoke(capsys, "stream", metrics_bundle, *options)
    assert done.code == 0 and "metrics     a graph in onnxruntime" in done.out, done.err
    told = [json.loads(row) for row in (tmp_path / "out" / "stream.jsonl").read_text().splitlines()]
    assert told[0]["describe"]["metrics"].startswith("a graph in onnxruntime")
    assert told[-1]["kind"] == "telemetry" and told[-1]["prompt_by"] == "graph"
