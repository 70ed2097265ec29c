"""Engines built ahead of time, deferred to the target, finalised there: whole or not at all, and proved before use."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.building.build import build
from deploy.config import load_config, with_overrides
from deploy.finalizing.engine import DISTRUSTED
from deploy.finalizing.finalize import Device, finalize
from export.tensorrt.build import EngineMade, Request, build_engine
from export.tensorrt.known_bad import KnownBad
from runtime.bundle import load_bundle
from runtime.bundle_files import verified_bundle
from runtime.durable import write_bytes
from runtime.engines.tensorrt_libraries import tensorrt_version
from runtime.errors import BundleError, DeployError, GateError, MachineError
from tests.contracts.bundles import reseal
from tests.contracts.command import invoke
from tests.contracts.device import CONFIG, TARGET, stand_in

pytestmark = pytest.mark.skipif(tensorrt_version("tensorrt-rtx") is None, reason="the extra `rtx` is not installed")
SIZE = ("--size", "64x64", "--overlap", "16")


@pytest.fixture(scope="module")
def deferred(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for the stand-in, without its engine. To be read."""
    folder = tmp_path_factory.mktemp("deferred")
    (folder / "deploy.yaml").write_text(CONFIG)
    flags = {"model.checkpoint": str(tiny_checkpoint), "target": TARGET, "input.frame": "64x64", "input.overlap": 16}
    build(with_overrides(load_config(folder / "deploy.yaml"), flags), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(deferred: Path, tmp_path: Path) -> Path:
    """A copy of `deferred` to work on."""
    return Path(shutil.copytree(deferred, tmp_path / "bundle"))


_BUILT: dict[bytes, EngineMade] = {}


def device_of(folder: Path, **facts: Any) -> Device:
    """`stand_in`, whose real builder builds each graph once: what is tried here is what becomes of its engine."""
    device = stand_in(folder, **facts)

    def build(graph: bytes, request: Request, work: Path) -> EngineMade:
        if graph not in _BUILT:
            _BUILT[graph] = device.build(graph, request, work)
        return _BUILT[graph]

    return dataclasses.replace(device, build=build)


def another_engine(device: Device, end: bytes) -> Device:
    """A device whose engines end in other bytes."""

    def build(graph: bytes, request: Request, work: Path) -> EngineMade:
        made = device.build(graph, request, work)
        return dataclasses.replace(made, data=made.data + end)

    return dataclasses.replace(device, build=build)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_an_rtx_engine_is_built_without_a_gpu(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    done = invoke(capsys, "build", "--target", "rtx-40", "--checkpoint", tiny_checkpoint, *SIZE, "--out", out, "--json")
    assert done.code == 0 and done.json["deferred"] is None and done.json["precision"]["chosen"] == "fp16"
    assert (out / done.json["engine"]).stat().st_size > 10_000
    assert set(done.json["onnx"]) == {"fp32", "fp16"}
    for variant in done.json["onnx"].values():
        assert (out / variant["path"]).is_file() and variant["opset"] == 20 and variant["nodes"] > 100
    assert done.json["agreement"]["difference"] > 0
    contents = verified_bundle(out)
    made, files = contents.choice.engine, contents.files
    assert contents.made is not None and set(contents.made.proof) == {"seconds", "peak_mib", "bytes"}
    assert contents.manifest.deferred is None and contents.choice.why == contents.manifest.precision.why
    assert made is not None and made.sm == "8.9" and made.version == tensorrt_version("tensorrt-rtx")
    assert made.options["tf32"] is False and made.options["strongly_typed"] is True
    assert made.layers is not None and made.log is not None
    listed = json.loads(files[made.layers])
    assert {layer["type"] for layer in listed["layers"]} >= {"CONVOLUTION", "MATRIX_MULTIPLY", "SOFTMAX", "TOPK"}
    types = {t["type"] for layer in listed["layers"] for t in layer["outputs"]}
    assert {"HALF", "FLOAT"} <= types
    assert b"STRONGLY_TYPED" in files[made.log] and b"TF32" not in files[made.log]
    # It needs a GPU, and nothing else runs in its place unasked.
    with pytest.raises(MachineError, match=r"GPU|CUDA|cuda"):
        load_bundle(out)
    with load_bundle(out, engine="onnxruntime") as loaded:
        assert 0 < loaded.self_test() < 0.05


@pytest.mark.parametrize("options", [("--target", "intel"), ("--target", "cpu", "--engine", "auto")])
def test_openvino_restores_as_pytorch_does(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    pytest.importorskip("openvino")
    command = ("build", *options, "--checkpoint", tiny_checkpoint, *SIZE, "--out", tmp_path / "b", "--json")
    done = invoke(capsys, *command)
    assert done.code == 0 and done.json["agreement"]["difference"] < 1e-4
    assert done.json["runs_in"] == "openvino" or set(done.json["engine_choice_ms"]) == {"onnxruntime", "openvino"}


@pytest.mark.slow
def test_a_float32_engine_is_built_without_tf32(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--precision", "fp32", *SIZE, "--out", tmp_path / "b", "--json")
    done = invoke(capsys, "build", "--target", "rtx-30", "--checkpoint", tiny_checkpoint, *options)
    assert done.code == 0 and set(done.json["onnx"]) == {"fp32"}
    contents = verified_bundle(tmp_path / "b")
    engine = contents.choice.engine
    assert engine is not None and engine.sm == "8.6" and engine.log is not None
    assert b"TF32" not in contents.files[engine.log]


def test_a_jetsons_engine_is_deferred_and_the_bundle_complete(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "orin"
    command = ("build", "--target", "jetson-orin", "--checkpoint", tiny_checkpoint, *SIZE, "--out", out)
    done = invoke(capsys, *command, "--json")
    assert done.code == 0 and done.json["engine"] is None and "on the target" in done.json["deferred"]
    manifest = verified_bundle(out).manifest
    assert manifest.deferred == done.json["deferred"] and manifest.target.sm == "8.7"
    assert set(manifest.graphs) == {"fp32", "fp16"}
    inspected = invoke(capsys, "inspect", out, "--json")
    assert inspected.code == 0 and inspected.json["engine"] is None and "finalize" in inspected.json["refusal"]
    assert inspected.json["made"] is None
    with pytest.raises(MachineError, match=r"not built yet.*deploy finalize.*--engine onnxruntime"):
        load_bundle(out)
    config = tmp_path / "deploy.yaml"
    config.write_text("check:\n  cube: 64x64\n  degradations: [noise]\n")
    checked = invoke(
        capsys, "check", out, "--config", config, "--checkpoint", tiny_checkpoint, "--engine", "onnxruntime", "--json"
    )
    assert checked.code in (0, 1) and "max_difference" in (checked.json.get("gates") or checked.json["result"]["gates"])
    failed = invoke(capsys, "finalize", out, "--json")
    assert failed.code == 3 and "no GPU that CUDA can use" in failed.json["error"]["message"]


def test_finalising_builds_proves_and_installs(bundle: Path) -> None:
    before = contents(bundle)
    done = finalize(bundle, device=stand_in(bundle))
    assert (bundle / done["engine"]).is_file() and 0 < done["golden_difference"] < 0.05
    made = verified_bundle(bundle).made
    assert made is not None and made.choice.engine is not None and made.choice.engine.builder == "tensorrt-rtx"
    assert {**made.proof, "bundle": str(bundle)}.items() <= done.items() and "runs_on" in made.proof
    after, engine = contents(bundle), made.choice.engine
    assert {n: d for n, d in after.items() if n in before} == before
    assert set(after) - set(before) == {"made.json", engine.path, engine.layers, engine.log}
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]
    with pytest.raises(BundleError, match="built already"):
        finalize(bundle, device=stand_in(bundle))


@pytest.mark.slow
def test_a_rebuild_replaces_the_engine_and_its_files(bundle: Path) -> None:
    first = finalize(bundle, device=device_of(bundle))["engine"]
    shutil.copytree(bundle, bundle.with_name("before"))
    device = another_engine(device_of(bundle), b"1")
    second = finalize(bundle, rebuild=True, device=device)["engine"]
    assert second != first and not (bundle / first).exists()
    verified_bundle(bundle)
    assert len(contents(bundle)) == len(contents(bundle.with_name("before")))


@pytest.mark.parametrize("writes", range(4))
def test_a_rebuild_that_is_cut_off_leaves_the_engine_that_was_there(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    finalize(bundle, device=device_of(bundle))
    before = verified_bundle(bundle).made
    done: list[Path] = []

    def cut(path: Path, data: bytes) -> None:
        if bundle in path.parents and len(done) == writes:
            raise KeyboardInterrupt
        done.extend([path] if bundle in path.parents else [])
        write_bytes(path, data)

    monkeypatch.setattr("runtime.bundle_files.write_bytes", cut)
    with pytest.raises(KeyboardInterrupt):
        finalize(bundle, rebuild=True, device=another_engine(device_of(bundle), b"2"))
    monkeypatch.undo()
    assert verified_bundle(bundle).made == before
    assert finalize(bundle, rebuild=True, device=device_of(bundle))["engine"]
    verified_bundle(bundle)


@pytest.mark.slow
def test_an_engine_that_failed_its_proof_is_built_anew(bundle: Path) -> None:
    built: list[bool] = []

    def counting(device: Device) -> Device:
        def build(graph: bytes, request: Request, work: Path) -> EngineMade:
            built.append((work / DISTRUSTED).exists())
            made = device.build(graph, request, work)
            assert not made.again
            return made

        return dataclasses.replace(device, build=build)

    for _ in range(2):
        with pytest.raises(GateError):
            finalize(bundle, device=counting(stand_in(bundle, spoilt=True)))
    finalize(bundle, device=counting(stand_in(bundle)))
    assert built == [False, True, True]


def test_the_gpu_it_was_built_on_is_remembered(bundle: Path) -> None:
    finalize(bundle, device=dataclasses.replace(device_of(bundle), model=lambda: "Orin, 8 multiprocessors"))
    made = verified_bundle(bundle).choice.engine
    assert made is not None and made.gpu == "Orin, 8 multiprocessors"


def test_a_known_bad_builder_that_was_allowed_is_on_record(bundle: Path) -> None:
    report = KnownBad("tensorrt-rtx", ">=1.0", (), (), "computes wrongly", "https://example.org/1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.tensorrt.known_bad.TABLE", (report,))
        with pytest.raises(MachineError, match="computes wrongly"):
            finalize(bundle, device=device_of(bundle))
        finalize(bundle, allow_known_bad=True, device=device_of(bundle))
    made = verified_bundle(bundle).made
    assert made is not None and made.proof["known_bad_allowed"] == ["https://example.org/1"]


def on_the_target(
    tiny_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *, spoilt: bool = False
) -> dict[str, Any]:
    """Build for the stand-in on the stand-in itself."""
    configuration = out.with_name("deploy.yaml")
    configuration.write_text(CONFIG)
    flags = {"target": TARGET, "model.checkpoint": str(tiny_checkpoint), "input.frame": "64x64", "input.overlap": 16}
    monkeypatch.setattr("deploy.finalizing.engine.why_not_here", lambda request: None)

    def open_there(*given: Any) -> Any:
        (place,) = out.parent.glob(f".{out.name}.building-*/bundle")
        return stand_in(place, spoilt=spoilt).open(*given)

    device = dataclasses.replace(stand_in(out), open=open_there)
    return build(with_overrides(load_config(configuration), flags), out, device=device)


@pytest.mark.slow
def test_a_build_on_the_target_itself_is_proved_there(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    done = on_the_target(tiny_checkpoint, out, monkeypatch)
    made = verified_bundle(out).made
    assert made is not None and made.choice.engine is not None
    assert done["deferred"] is None and done["engine"] == made.choice.engine.path
    assert made.proof["golden_difference"] == done["proved"]["golden_difference"] > 0
    assert not list(tmp_path.glob(".bundle*"))


@pytest.mark.slow
def test_a_build_on_the_target_that_fails_its_proof_installs_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GateError, match="golden"):
        on_the_target(tiny_checkpoint, tmp_path / "bundle", monkeypatch, spoilt=True)
    assert not (tmp_path / "bundle").exists()


def test_an_engine_that_computes_something_else_is_never_installed(bundle: Path) -> None:
    before = contents(bundle)
    with pytest.raises(GateError, match="golden"):
        finalize(bundle, device=device_of(bundle, spoilt=True))
    assert contents(bundle) == before


@pytest.mark.parametrize(("sm", "match"), [(None, "no GPU"), ("8.7", r"SM 8.7, not 8.9")])
def test_another_gpu_than_the_targets_is_refused(bundle: Path, sm: str | None, match: str) -> None:
    before = contents(bundle)
    with pytest.raises(MachineError, match=match):
        finalize(bundle, device=stand_in(bundle, sm=sm))
    assert contents(bundle) == before


def test_versions_that_the_target_does_not_take_are_refused(bundle: Path) -> None:
    reseal(bundle, lambda content: content["target"].update(tensorrt=">=1.8"))
    with pytest.raises(MachineError, match=r"1\.7\..*install a version >=1\.8"):
        finalize(bundle, device=stand_in(bundle))


def test_a_changed_byte_is_refused_before_anything_is_built(bundle: Path) -> None:
    graph = bundle / "graphs" / "fp16.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        finalize(bundle, device=stand_in(bundle))


def test_an_engine_from_another_graph_is_refused(bundle: Path) -> None:
    finalize(bundle, device=device_of(bundle))
    reseal(bundle, lambda content: content["choice"]["engine"].update(graph_sha256="0" * 64), "made.json")
    with pytest.raises(BundleError, match="from another graph"):
        verified_bundle(bundle)


@pytest.mark.parametrize(
    "moments", [("engine.plan",), pytest.param(("graph.json", "engine.plan"), marks=pytest.mark.slow)], ids=len
)
@pytest.mark.slow
def test_a_build_killed_at_any_moment_leaves_no_half_bundle_and_goes_on(
    tiny_checkpoint: Path, tmp_path: Path, moments: tuple[str, ...]
) -> None:
    out = tmp_path / "bundle"
    command = [
        sys.executable, "-m", "deploy", "build", "--target", "rtx-40", "--checkpoint", str(tiny_checkpoint), *SIZE,
        "--out", str(out),
    ]  # fmt: skip
    killed = 0
    for wait in moments:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        end = time.monotonic() + 120
        while running.poll() is None and time.monotonic() < end:
            if list(tmp_path.glob(f".bundle.building-*/{wait}")):
                running.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        running.wait()
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL and not os.path.lexists(out)
        killed += 1
    assert killed
    if not out.exists():
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "going on with an unfinished build" in done.stdout
    verified_bundle(out)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_missing_builder_is_told_before_the_long_work(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.tensorrt.build.tensorrt_version", lambda kind: None)
    out = tmp_path / "b"
    done = invoke(capsys, "build", "--target", "rtx-40", "--checkpoint", tiny_checkpoint, *SIZE, "--out", out, "--json")
    assert done.code == 3 and "damp-deploy[rtx]" in done.json["error"]["remedy"] and not any(tmp_path.iterdir())


def test_known_bad_builders_are_refused_with_their_source() -> None:
    from export.tensorrt.known_bad import WATCHED, matching, refuse_known_bad

    with pytest.raises(MachineError, match=r"10\.13\.2.*issues/4820.*--allow-known-bad"):
        refuse_known_bad("tensorrt", "10.13.2.6", "11.0", "fp16")
    with pytest.raises(MachineError, match=r"no kernels for Orin"):
        refuse_known_bad("tensorrt", "10.13.3.9", "8.7", "fp32")
    refuse_known_bad("tensorrt", "10.13.2.6", "11.0", "fp32")
    refuse_known_bad("tensorrt", "10.3.0", "8.7", "fp16")
    assert matching(WATCHED, "tensorrt", "10.3.0", "8.7", "fp16")[0].source.endswith("4330")
    # JetPack 7.1 on a Thor, in float32: told, not refused. JetPack 7.2: nothing, on either board.
    refuse_known_bad("tensorrt", "10.13.3.9", "11.0", "fp32")
    assert [bad.source[-5:] for bad in matching(WATCHED, "tensorrt", "10.13.3.9", "11.0", "fp32")] == ["23499"]
    for sm in ("8.7", "11.0"):
        for precision in ("fp32", "fp16", "int8"):
            refuse_known_bad("tensorrt", "10.16.2.10", sm, precision)
            assert matching(WATCHED, "tensorrt", "10.16.2.10", sm, precision) == []


def test_too_little_memory_is_told_before_the_builder_starts(deferred: Path) -> None:
    from export.tensorrt.build import check_memory, needed_mib

    graph = (deferred / "graphs" / "fp16.onnx").read_bytes()
    needed = needed_mib(graph, 64)
    check_memory(graph, 64, needed << 20)
    with pytest.raises(DeployError, match=r"memory.*MiB free.*workspace_mib"):
        check_memory(graph, 64, (needed << 20) - 1)
    assert needed_mib(graph, 128) == needed + 64


def test_a_graph_that_the_builder_refuses_names_its_log(tmp_path: Path) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [s]) for n, s in (("frame", 5000), ("restored", 4000))]
    too_many = numpy_helper.from_array(np.array([4000]), "k")
    graph = helper.make_graph(
        [helper.make_node("TopK", ["frame", "k"], ["restored", "places"])], "g", ends[:1], ends[1:], [too_many]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(MachineError) as caught:
        build_engine(model.SerializeToString(), Request("tensorrt-rtx", "8.9", 64), tmp_path / "w")
    assert caught.value.file and Path(caught.value.file).is_file() and "builder.log" in str(caught.value)
