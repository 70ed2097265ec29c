"""`deploy build --precision int8|auto`: calibration, gates, what is chosen and why, and going on after a stop."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from calibration.products import int8_share
from deploy.building import int8 as quantize
from deploy.finalizing.finalize import Device, finalize
from export.networks import network_of, save_checkpoint
from export.networks.damp import Damp, DampConfig
from runtime.bundle_files import read_manifest, verified_bundle
from runtime.engines import Engine, EngineOptions
from runtime.engines.tensorrt_libraries import tensorrt_version
from runtime.signature import Signature
from tests.contracts.command import Done, assert_failed, invoke
from tests.contracts.device import CONFIG, TARGET, stand_in

Capsys = pytest.CaptureFixture[str]
OPEN = "gates: {psnr_drop_db: null, mean_psnr_drop_db: null, sam_rise_deg: null, mean_sam_rise_deg: null, "
LOOSE = """
calibration: {samples: 7, judged: 1, max_drop: {psnr_db: 5, worst_psnr_db: 9, sam_deg: 90, routing_percent: 0}}
"""
GATES_OFF = OPEN + "routing_agreement: null}\n"


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights of 31 bands and one block: what takes time here is the number of layers."""
    config = DampConfig(
        dim=8, heads=(2, 2, 2, 2), encoder_blocks=(0, 0, 0, 0), decoder_blocks=(1, 0, 0), refinement_blocks=0,
        expansion=1, embedding=16, gate="concat", metric_set="paper6",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Damp(config).eval()
        torch.nn.init.normal_(net.output.weight, 0, 0.02)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    made = network_of(net)
    return save_checkpoint(made, path, scale=65535, wavelengths=tuple(range(400, 701, 10)), about="seeded weights")


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clean cubes of 31 bands, 70 x 80."""
    from runtime.simulation.simulator import simulate_scene

    folder = tmp_path_factory.mktemp("cubes")
    for seed in range(3):
        scene = simulate_scene(seed, 31, 70, 80).truth
        np.save(folder / f"scene-{seed}.npy", np.moveaxis(scene, 0, -1))
    return folder


def built(capsys: Capsys, checkpoint: Path, out: Path, config: str, *options: object, precision: str = "int8") -> Done:
    file = out.with_name(f"{out.name}.yaml")
    file.write_text(config)
    return invoke(
        capsys, "build", "--checkpoint", checkpoint, "--size", "64x64", "--overlap", "16", "--config", file,
        "--precision", precision, "--out", out, *options, "--json",
    )  # fmt: skip


def test_int8_comes_with_all_that_led_to_it(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    done = built(capsys, small_checkpoint, out, LOOSE + GATES_OFF, "--calibration", cubes)
    assert done.code == 0, done.err
    assert done.json["precision"]["chosen"] == "int8" and "times the speed of fp32" in done.json["precision"]["why"]
    contents = verified_bundle(out)
    manifest, files = contents.manifest, contents.files
    assert set(manifest.graphs) == {"fp32", "int8"}
    facts: dict[str, Any] = manifest.evidence["quantisation"]
    share = int8_share(onnx.load_model_from_string(files["graphs/int8.onnx"]))
    assert facts["int8_mac_share"] == pytest.approx(share) and 0.3 < share < 1
    calibration = facts["calibration"]
    assert len(calibration["fit"]) == 7 and len(calibration["judged"]) == 7
    assert all(len(sample["sha256"]) == 64 for sample in (*calibration["fit"], *calibration["judged"]))
    assert {s["cube"] for s in calibration["fit"]}.isdisjoint({s["cube"] for s in calibration["judged"]})
    assert set(facts["methods"]) == {"minmax", "percentile", "entropy", "mse"} and facts["method"] in facts["methods"]
    assert np.shape(calibration["expert_coverage"]) == (1, 4)
    idle = np.count_nonzero(np.array(calibration["expert_coverage"]) == 0)
    assert calibration["experts_reached"] == [4 - idle, 4] and calibration["frames_steered"] == 3 * idle
    table = json.loads(files["report/sensitivity.json"])
    assert table["chosen"]["holds"] and {g["group"] for g in table["groups"]} >= {"patch_embed.proj convolution"}
    assert files["report/pareto.png"].startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*building*"))

    checked = invoke(
        capsys, "check", out, "--checkpoint", small_checkpoint, "--data", cubes, "--scenes", "scene-1",
        "--config", out.with_name("bundle.yaml"), "--report", tmp_path / "check.html", "--json",
    )  # fmt: skip
    assert checked.code == 0, checked.err
    assert checked.json["chosen"] == "int8" and checked.json["cubes"] == ["scene-1"]
    variants = checked.json["variants"]
    assert set(variants) == {"fp32", "fp16", "int8"}
    for name, variant in variants.items():
        assert len(variant["tasks"]) == 7
        for key in ("mean_psnr_drop_db", "mean_sam_rise_deg", "routing_agreement"):
            assert np.isfinite(variant[key])
        assert (variant["int8_mac_share"] > 0) == (name == "int8")
        assert all({"psnr_drop_db", "sam_rise_deg"} <= set(task) for task in variant["tasks"].values())
    assert abs(variants["fp32"]["mean_psnr_drop_db"]) < 1e-3 and variants["fp32"]["routing_agreement"] == 1
    assert "FP16's arithmetic" in variants["fp16"]["runs_in"]
    assert variants["int8"]["parts_first_in"] in {
        node.name for node in onnx.load_model_from_string(files["graphs/fp32.onnx"]).graph.node
    }
    page = (tmp_path / "check.html").read_text()
    for part in ("What int8 costs", "Where the variants part", "How clearly PyTorch chose", "The tiles least like"):
        assert part in page

    told = " ".join(invoke(capsys, "inspect", out).out.split())
    judge = calibration["judged"][0]["cube"]
    assert f"calibrated with 3 cubes (0 skipped), judged by 1 of them alone ({judge}): loses" in told


def test_a_gate_that_fails_sends_the_search_on_until_all_pass(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    done = built(capsys, small_checkpoint, tmp_path / "all", LOOSE + GATES_OFF, "--calibration", cubes)
    assert done.code == 0, done.err
    everything = done.json["calibration"]
    assert everything["kept_in_higher_precision"] == [] and len(everything["steps"]) == 1
    # A limit that int8 everywhere does not hold, and most of it does.
    limit = 0.7 * done.json["candidates"]["int8"]["gates"]["max_difference"]["measured"]
    gates = GATES_OFF.replace("routing_agreement: null", f"routing_agreement: null, max_difference: {limit}")
    done = built(capsys, small_checkpoint, tmp_path / "some", LOOSE + gates, "--calibration", cubes)
    assert done.code == 0, done.err
    facts = done.json["calibration"]
    assert 0 < facts["int8_mac_share"] < everything["int8_mac_share"] and facts["kept_in_higher_precision"]
    assert "misses max_difference" in facts["steps"][0] and any(line.endswith(": holds") for line in facts["steps"])
    judged = done.json["candidates"]["int8"]
    gate = judged["gates"]["max_difference"]
    assert gate["passed"] and gate["measured"] <= gate["limit"] == facts["gates"]["max_difference"] == limit
    assert (
        facts["on_judged_frames"]["mean_psnr_drop_db"] == judged["mean_psnr_drop_db"]
        and facts["judged_in"] == "onnxruntime"
    )
    for line in facts["steps"]:
        assert line in done.err.replace("\n", " ")


@pytest.mark.slow
def test_what_no_group_can_hold_is_exit_1_and_names_the_group_that_could_not_be_spared(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    config = LOOSE + "gates: {max_difference: 0}\n"
    done = built(capsys, small_checkpoint, tmp_path / "bundle", config, "--calibration", cubes)
    assert done.code == 1 and done.json["error"]["key"] == "int8"
    told = done.json["result"]["int8"]
    assert len(told["groups"]) == 1 and f"`{told['groups'][0]}` alone" in done.err
    assert any("max_difference" in missed for missed in told["missed"]) and len(told["tasks"]) == 7
    assert not (tmp_path / "bundle").exists()
    done = built(capsys, small_checkpoint, tmp_path / "auto", config, "--calibration", cubes, precision="auto")
    assert done.code in (0, 1) and "int8 is out: nothing of this network can run in int8" in done.err


@pytest.mark.slow
def test_where_nothing_fits_max_drop_auto_goes_without_int8_and_says_so(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A limit that no score can hold: to lose nothing is possible by chance.
    monkeypatch.setattr("calibration.sensitivity.MaxDrop.missed_by", lambda *_: ["everything"])
    done = built(capsys, small_checkpoint, tmp_path / "bundle", LOOSE, "--calibration", cubes, precision="auto")
    assert done.code == 0 and done.json["precision"]["chosen"] == "fp32", done.err
    assert "int8 is out: nothing of this network can run in int8" in done.json["precision"]["why"]


def test_auto_without_cubes_leaves_int8_out_and_says_so(capsys: Capsys, small_checkpoint: Path, tmp_path: Path) -> None:
    done = built(capsys, small_checkpoint, tmp_path / "bundle", "{}", precision="auto")
    assert done.code == 0, done.err
    assert done.json["precision"]["chosen"] == "fp32" and "no calibration cubes" in done.json["precision"]["why"]
    assert "without --calibration int8 is left out" in done.err


@pytest.mark.slow
def test_a_folder_with_a_bad_cube_is_refused_or_the_cube_skipped_with_a_count(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for file in cubes.iterdir():
        (mixed / file.name).write_bytes(file.read_bytes())
    (mixed / "broken.npy").write_bytes(b"no array")
    bad = np.full((70, 80, 31), 0.5, np.float32)
    bad[3, 4, 5] = np.nan
    np.save(mixed / "holes.npy", bad)
    np.save(mixed / "wide.npy", np.random.default_rng(0).random((70, 80, 40), np.float32))
    done = built(capsys, small_checkpoint, tmp_path / "bundle", LOOSE + GATES_OFF, "--calibration", mixed)
    assert_failed(done, 2, "broken.npy")
    skip = LOOSE.replace("samples: 7", "samples: 7, on_bad: skip")
    done = built(capsys, small_checkpoint, tmp_path / "bundle", skip + GATES_OFF, "--calibration", mixed)
    assert done.code == 0, done.err
    assert set(done.json["calibration"]["calibration"]["skipped"]) == {"broken.npy", "holes.npy", "wide.npy"}
    assert "3 calibration cubes were skipped" in done.err


@pytest.mark.slow
def test_a_build_that_was_stopped_does_not_score_again(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (capsys, small_checkpoint, tmp_path / "bundle", LOOSE + GATES_OFF, "--calibration", cubes)
    seen: list[bytes] = []
    real = quantize.score_graph

    def stopping(graph: bytes, *given: Any) -> Any:
        if len(seen) == 8:
            raise KeyboardInterrupt
        seen.append(graph)
        return real(graph, *given)

    def watched(graph: bytes, *given: Any) -> Any:
        assert graph not in seen
        return real(graph, *given)

    monkeypatch.setattr(quantize, "score_graph", stopping)
    assert built(*arguments).code == 130
    monkeypatch.setattr(quantize, "score_graph", watched)
    done = built(*arguments)
    assert done.code == 0, done.err
    assert "going on with an unfinished build" in done.err


BUILDER = pytest.mark.skipif(tensorrt_version("tensorrt-rtx") is None, reason="the extra `rtx` is not installed")


class Slowed(Engine):
    """An engine that takes its time."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        super().__init__(engine.signature)
        self._engine, self._seconds = engine, seconds

    def infer_impl(self, *inputs: Any) -> Any:
        time.sleep(self._seconds)
        return self._engine.infer_impl(*inputs)

    def describe(self) -> dict[str, str]:
        return self._engine.describe()


def slow_device(folder: Path, slow: str, wrong: str = "") -> Device:
    """The stand-in for a board, on which one precision is slow and another may restore something else."""
    device = stand_in(folder)

    def opened(name: str, program: bytes, signature: Signature, options: EngineOptions) -> Engine:
        if options.precision == wrong:
            return stand_in(folder, spoilt=True).open(name, program, signature, options)
        return Slowed(device.open(name, program, signature, options), 0.6 if options.precision == slow else 0.0)

    return dataclasses.replace(device, open=opened)


@pytest.mark.slow
@BUILDER
def test_the_target_times_what_passed_and_keeps_the_faster(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    config = CONFIG + LOOSE + GATES_OFF
    done = built(capsys, small_checkpoint, out, config, "--calibration", cubes, "--target", TARGET, precision="auto")
    assert done.code == 0, done.err
    assert done.json["precision"]["chosen"] == "fp16" and "builds both on the target" in done.json["precision"]["why"]
    assert list(read_manifest(out).precision.rivals) == ["int8"]
    for slow, wrong, chosen, told in (
        ("fp16", "", "int8", "times the speed of fp16"),
        ("int8", "", "fp16", "which is not faster: fp16 is kept"),
        ("fp16", "int8", "fp16", "int8 failed"),
    ):
        copy = Path(shutil.copytree(out, tmp_path / f"slow-{slow}-{wrong}" / "bundle"))
        finished = finalize(copy, device=slow_device(copy, slow, wrong))
        contents = verified_bundle(copy)
        choice = contents.choice
        assert finished["precision"]["chosen"] == choice.precision == chosen and told in choice.why
        assert choice.tolerance == contents.manifest.tolerances[chosen] and choice.engine is not None
        graph = contents.files[contents.manifest.graphs[chosen]]
        assert choice.engine.graph_sha256 == hashlib.sha256(graph).hexdigest()


@pytest.mark.slow
@BUILDER
def test_the_real_builder_takes_the_int8_graph_of_a_gpu(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    done = built(
        capsys, small_checkpoint, tmp_path / "bundle", LOOSE + GATES_OFF, "--calibration", cubes, "--target", "rtx-40"
    )
    assert done.code == 0, done.err
    contents = verified_bundle(tmp_path / "bundle")
    choice, files = contents.choice, contents.files
    assert choice.engine is not None and choice.precision == contents.manifest.precision.chosen == "int8"
    operators = {node.op_type for node in onnx.load_model_from_string(files["graphs/int8.onnx"]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Cast"} <= operators
    assert "its speed is measured on the target" in choice.why


@pytest.mark.slow
def test_int8_for_onnxruntimes_cuda_has_the_rest_in_fp16(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    done = built(
        capsys, small_checkpoint, tmp_path / "bundle", LOOSE + GATES_OFF, "--calibration", cubes, "--target", "cuda"
    )
    assert done.code == 0 and done.json["deferred"] is None and done.json["runs_in"] == "onnxruntime-cuda", done.err
    files = verified_bundle(tmp_path / "bundle").files
    graph = onnx.load_model_from_string(files["graphs/int8.onnx"]).graph
    scales = {value.data_type for value in graph.initializer if value.name in scale_names(graph)}
    assert onnx.TensorProto.FLOAT16 in scales


def scale_names(graph: onnx.GraphProto) -> set[str]:
    return {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}


@pytest.mark.slow
def test_sensitivity_measures_without_building(
    capsys: Capsys, small_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    (tmp_path / "loose.yaml").write_text(LOOSE)
    common = (
        "sensitivity", "--checkpoint", small_checkpoint, "--calibration", cubes, "--size", "64x64",
        "--config", tmp_path / "loose.yaml", "--json",
    )  # fmt: skip
    done = invoke(capsys, *common, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.json["chosen"]["share"] > 0.3 and done.json["groups"]
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"sensitivity.json", "pareto.png"}
    done = invoke(capsys, *common, "--precision", "fp16")
    assert done.code == 0, done.err
    blocks = done.json["blocks"]
    assert "all" in blocks and blocks["all"]["distortion_db"] >= max(
        b["distortion_db"] for name, b in blocks.items() if name in ("output", "patch_embed.proj")
    )
