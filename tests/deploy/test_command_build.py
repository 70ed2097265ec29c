"""`deploy build`: a bundle or nothing, going on after a kill, flags over configuration, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deploy.folders import ours_alone
from export.networks import load_checkpoint, network_of, save_checkpoint
from runtime.bundle import load_bundle
from runtime.bundle_files import read_manifest
from runtime.manifest import MANIFEST
from tests.contracts.bundles import known_bundle
from tests.contracts.command import Done, assert_failed, assert_finite, assert_json_error, command_line, invoke
from tests.export.checkpoints import SMALL, network

Capsys = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
RECIPE = ("--size", "64x64", "--overlap", "16", "--scale", "4095")
UNFINISHED = ".bundle.building-*"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build leaves behind that was killed after its export; the checkpoint `net.safetensors` lies there too."""
    folder = tmp_path_factory.mktemp("killed")
    config = dataclasses.replace(SMALL, encoder_blocks=(0, 0, 0, 0), experts=4, metric_set="paper6", gate="concat")
    save_checkpoint(network_of(network(config)), folder / "net.safetensors", scale=255, about="seeded")
    with subprocess.Popen(
        command_line("build", "--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list(folder.glob(f"{UNFINISHED}/graph.json")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    return folder


@pytest.fixture
def unfinished(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `killed` to go on in, the present folder."""
    folder = Path(shutil.copytree(killed, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def here(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the checkpoint and nothing else, the present folder."""
    shutil.copy(killed / "net.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Killed, and started again


def test_a_killed_build_leaves_no_half_bundle(killed: Path) -> None:
    assert not (killed / "bundle").exists()
    (work,) = killed.glob(UNFINISHED)
    assert names_in(work) == ["graph.json", "graph.onnx"] and names_in(killed) == [work.name, "net.safetensors"]


def test_a_build_goes_on_where_it_was_killed(capsys: Capsys, unfinished: Path) -> None:
    (work,) = unfinished.glob(UNFINISHED)
    graph = (work / "graph.onnx").read_bytes()
    done = invoke(capsys, "build", "--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle", "--json")
    assert done.code == 0, done.err
    assert "going on with an unfinished build" in done.err
    assert names_in(unfinished) == ["bundle", "net.safetensors"]
    assert names_in(unfinished / "bundle") == ["golden", "graphs", MANIFEST]
    assert (unfinished / "bundle" / "graphs" / "fp32.onnx").read_bytes() == graph
    told = done.json
    assert_finite(told)
    assert told["bundle"] == str(unfinished / "bundle") and told["target"] == "cpu" and told["warnings"] == []
    assert (told["scale"], told["scale_from"]) == (4095, "flag")
    assert told["precision"]["chosen"] == "fp32" and told["onnx"]["fp32"]["opset"] in (18, 19, 20)
    assert told["agreement"]["difference"] <= told["agreement"]["limit"] and told["agreement"]["choices"] >= 1
    with load_bundle("bundle") as bundle:
        bundle.self_test()
        assert bundle.manifest.network.checkpoint == "net.safetensors" and bundle.manifest.scale == 4095


@pytest.mark.parametrize("said", ["top_k: 4", "options: {top_k: 4}"])
@pytest.mark.parametrize("asked", [("--top-k", "1"), ("--option", "top_k=1")], ids=" ".join)
def test_flags_beat_the_configuration(capsys: Capsys, unfinished: Path, said: str, asked: tuple[str, str]) -> None:
    """The graph is used again only where the flags make the recipe what it was."""
    Path("other.yaml").write_text(
        f"model: {{checkpoint: nothing.pth, {said}}}\n"
        "input: {scale: 1, overlap: 3, frame: 128x192}\n"
        "output: {dir: elsewhere}\n"
    )
    flags = ("--checkpoint", "net.safetensors", *asked, *RECIPE, "--out", "bundle")
    done = invoke(capsys, "build", "--config", "other.yaml", *flags)
    assert done.code == 0 and "going on with an unfinished build" in done.out
    m = read_manifest("bundle")
    assert (*m.signature.measured.size, m.overlap, m.scale, m.scale_from) == (64, 64, 16, 4095, "flag")
    assert m.network.configuration["top_k"] == m.network.options["top_k"] == 1 and not Path("elsewhere").exists()


def test_the_configuration_beats_defaults_and_checkpoint(capsys: Capsys, unfinished: Path, tmp_path: Path) -> None:
    Path("deploy.yaml").write_text(
        "model: {checkpoint: net.safetensors}\ninput: {scale: 4095, overlap: 16, frame: 64x64}\noutput: {dir: bundle}\n"
    )
    done = invoke(capsys, "build")
    assert done.code == 0, done.err
    assert done.out.startswith("reading ./deploy.yaml\n") and "going on with an unfinished build" in done.out
    assert "4095 stands for 1.0 in cubes of integers (from the config)" in done.out
    assert read_manifest("bundle").scale_from == "config"


def test_what_is_not_the_unfinished_build_of_this_recipe_is_not_used(capsys: Capsys, unfinished: Path) -> None:
    """A damaged graph is exported anew; another recipe's remains are cleared away, and nobody else's."""
    (work,) = unfinished.glob(UNFINISHED)
    graph = (work / "graph.onnx").read_bytes()
    (work / "graph.onnx").write_bytes(graph[:-1])
    shutil.copytree(work, unfinished / ".bundle.building-0123456789abcdef")
    others = [".bundle", ".other.building-0123456789abcdef", "bundle.building-0123456789abcdef"]
    for other in others:
        (unfinished / other).mkdir()
    done = invoke(capsys, "build", "--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle")
    assert done.code == 0 and "unfinished" not in done.out
    assert names_in(unfinished) == sorted([*others, "bundle", "net.safetensors"])
    assert (unfinished / "bundle" / "graphs" / "fp32.onnx").read_bytes() == graph, "the same recipe, other bytes"


def test_two_builds_do_not_share_what_is_unfinished(capsys: Capsys, unfinished: Path) -> None:
    (work,) = unfinished.glob(UNFINISHED)
    other = Path(shutil.copytree(work, unfinished / ".bundle.building-0123456789abcdef"))
    with ours_alone(other):
        with ours_alone(work):
            done = invoke(capsys, "build", "--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle")
            assert_failed(done, 2, "another process is at the same work")
            assert names_in(work) == names_in(other) == ["graph.json", "graph.onnx"]
        done = invoke(capsys, "build", "--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle")
    assert done.code == 0 and "going on with an unfinished build" in done.out
    assert names_in(unfinished) == [other.name, "bundle", "net.safetensors"]


@pytest.mark.parametrize("made", ["writable", "link", "another's"])
def test_what_somebody_else_may_have_made_is_not_gone_on_with(capsys: Capsys, unfinished: Path, made: str) -> None:
    (work,) = unfinished.glob(UNFINISHED)
    assert stat.S_IMODE(work.stat().st_mode) == 0o700
    if made == "link":
        work.symlink_to(work.rename(unfinished / "elsewhere"))
    elif made == "writable":
        work.chmod(0o777)
    elif os.geteuid() != 0:
        pytest.skip("only root gives files away")
    else:
        os.chown(work, 1, 1)
    done = invoke(capsys, "build", "--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle")
    assert_failed(done, 2, work.name)
    assert (work / "graph.onnx").is_file()


# A graph that fails


def tampered(folder: Path) -> None:
    """Double the last weights of the unfinished build's graph, as if the exporter had got them wrong."""
    (work,) = folder.glob(UNFINISHED)
    model = onnx.load(work / "graph.onnx")
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.shape == (SMALL.bands, SMALL.dim, 3, 3):
            tensor.CopyFrom(numpy_helper.from_array(2 * value, tensor.name))
    data = model.SerializeToString()
    assert data != (work / "graph.onnx").read_bytes()
    (work / "graph.onnx").write_bytes(data)
    facts = json.loads((work / "graph.json").read_bytes())
    (work / "graph.json").write_text(json.dumps({**facts, "sha256": hashlib.sha256(data).hexdigest()}))


def test_a_graph_that_does_not_compute_what_pytorch_does_is_exit_1_and_no_bundle(
    capsys: Capsys, unfinished: Path
) -> None:
    tampered(unfinished)
    done = invoke(capsys, "build", "--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle", "--json")
    error = assert_json_error(done, 1)
    assert error["kind"] == "GateError" and error["key"] == "difference"
    # Starting again must not find the wrong graph.
    assert names_in(unfinished) == ["net.safetensors"]


def test_an_older_bundle_stays_when_its_replacement_fails(capsys: Capsys, unfinished: Path) -> None:
    tampered(unfinished)
    known_bundle(unfinished / "bundle")
    kept = (unfinished / "bundle" / MANIFEST).read_bytes()
    done = invoke(capsys, "build", "--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle", "--replace")
    assert_failed(done, 1, "does not compute in onnxruntime what PyTorch does", "nothing was written")
    assert names_in(unfinished) == ["bundle", "net.safetensors"]
    assert (unfinished / "bundle" / MANIFEST).read_bytes() == kept
    load_bundle("bundle").close()


# What is there already


def test_an_older_bundle_is_replaced_when_asked(capsys: Capsys, unfinished: Path) -> None:
    known_bundle(unfinished / "bundle")
    arguments = ("--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle")
    assert_failed(invoke(capsys, "build", *arguments), 2, "bundle, --out: exists already", "--replace")
    assert read_manifest("bundle").network.architecture == "known"
    assert invoke(capsys, "build", *arguments, "--replace").code == 0
    assert read_manifest("bundle").network.architecture == "damp"
    assert names_in(unfinished) == ["bundle", "net.safetensors"]


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def make_link(path: Path) -> None:
    known_bundle(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


MINE = {
    "a folder of mine": make_folder,
    "a file": lambda path: path.write_text("mine"),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a link to a bundle": make_link,
}


@pytest.mark.parametrize("what", MINE)
def test_what_is_no_bundle_is_never_replaced(capsys: Capsys, here: Path, what: str) -> None:
    MINE[what](here / "bundle")
    before = {path: path.is_symlink() or path.is_dir() or path.read_bytes() for path in here.rglob("*")}
    arguments = ("--checkpoint", "net.safetensors", *RECIPE, "--out", "bundle")
    assert_failed(invoke(capsys, "build", *arguments), 2, "bundle, --out: exists already")
    assert_failed(invoke(capsys, "build", *arguments, "--replace"), 2, "is not a bundle and is not replaced")
    assert {path: path.is_symlink() or path.is_dir() or path.read_bytes() for path in here.rglob("*")} == before


# Configuration


def test_the_folders_configuration_is_read_only_when_nothing_else_is_given(capsys: Capsys, here: Path) -> None:
    Path("deploy.yaml").write_text("colour: red\n")
    done = invoke(capsys, "build")
    assert done.out == "reading ./deploy.yaml\n"
    assert_failed(done, 2, "deploy.yaml, line 1, colour")
    done = invoke(capsys, "build", "--checkpoint", "nothing.pth")
    assert done.out == ""
    assert_failed(done, 2, "nothing.pth: no such checkpoint")
    Path("other.yaml").write_text("model: {checkpoint: lost.pth}\n")
    done = invoke(capsys, "build", "--config", "other.yaml")
    assert done.out == ""
    assert_failed(done, 2, "lost.pth: no such checkpoint")
    done = invoke(capsys, "build", "--json")
    assert done.json["error"]["file"] == "deploy.yaml" and done.err.startswith("reading ./deploy.yaml\n")


def test_without_any_word_on_a_checkpoint_it_is_asked_for(capsys: Capsys, here: Path) -> None:
    assert_failed(invoke(capsys, "build"), 2, "no checkpoint is given", "--checkpoint", "deploy.yaml")
    Path("deploy.yaml").write_text("target: cpu\n")
    assert_failed(invoke(capsys, "build"), 2, "model.checkpoint: no checkpoint is given")


def test_wrong_input_is_told_in_one_line_and_nothing_is_written(capsys: Capsys, here: Path) -> None:
    (here / "cut.safetensors").write_bytes((here / "net.safetensors").read_bytes()[:-100])
    (here / "text.pth").write_text("weights")
    (here / "file").write_text("mine")
    for name, text in {
        "bands": "input: {bands: 4}",
        "waves": "input: {wavelengths: [400, 500]}",
        "yaml": "input: {scale: [}",
        "scale": "input: {scale: -1}",
        "typo": "input: {scael: 1}",
        "option": "model: {top_k: 1,\n  options: {top_k: 2}}",
        "engine": "target: x\ntargets: {x: {engine: magic}}",
        "int8": "target: x\ntargets: {x: {precisions: [fp32, int8], default_precision: int8}}",
    }.items():
        (here / f"{name}.yaml").write_text(text + "\n")
    before = names_in(here)
    good = ("--checkpoint", "net.safetensors", *RECIPE)
    cases: list[tuple[tuple[object, ...], int, tuple[str, ...]]] = [
        ((*good, "--size", "100x64"), 2, ("size", "multiples of 64", "128x64")),
        ((*good, "--size", "64"), 2, ("not a size", "256x320")),
        ((*good, "--size", "0x0"), 2, ("not a size",)),
        ((*good, "--overlap", "64"), 2, ("error: --overlap", "shorter side", "a larger --size")),
        ((*good, "--overlap", "-1"), 2, ("overlap",)),
        ((*good, "--scale", "0"), 2, ("Invalid value for '--scale'", "not a positive number")),
        ((*good, "--scale", "nan"), 2, ("scale",)),
        ((*good, "--scale", "x"), 2, ("--scale", "'x'")),
        ((*good, "--top-k", "5"), 2, ("top", "1 to 4")),
        ((*good, "--top-k", "0"), 2, ("top",)),
        ((*good, "--option", "top_k=5"), 2, ("top", "1 to 4")),
        ((*good, "--option", "top_k=x"), 2, ("model.top_k", "whole number")),
        ((*good, "--option", "path=x"), 2, ("net.safetensors", "no such option", "path", "it has top_k")),
        ((*good, "--option", "top_k"), 2, ("--option", "'top_k'", "KEY=VALUE")),
        ((*good, "--option", "top_k=1", "--top-k", "2"), 2, ("--option", "two values with --top-k", "2 and 1")),
        ((*good, "--option", "top_k=1", "--option", "top_k=2"), 2, ("--option", "two values", "1 and 2")),
        ((*good, "--config", "option.yaml"), 2, ("option.yaml", "line 2", "model.options", "model.top_k, 1")),
        ((*good, "--target", "jetson"), 2, ("unknown target", "cpu")),
        ((*good, "--target", "cqu"), 2, ("did you mean cpu?",)),
        ((*good, "--precision", "fp16"), 2, ("does not run this precision", "fp32")),
        ((*good, "--precision", "fp17"), 2, ("error: --precision", "fp16", "fp32")),
        ((*good, "--config", "nothing.yaml"), 2, ("nothing.yaml",)),
        ((*good, "--config", "yaml.yaml"), 2, ("yaml.yaml", "line 1")),
        ((*good, "--config", "scale.yaml"), 2, ("scale.yaml", "input.scale")),
        ((*good, "--config", "typo.yaml"), 2, ("typo.yaml", "did you mean", "scale")),
        ((*good, "--config", "engine.yaml"), 2, ("engine.yaml", "magic", "onnxruntime")),
        ((*good, "--config", "bands.yaml"), 2, ("input.bands", "4", "3")),
        ((*good, "--config", "waves.yaml"), 2, ("input.wavelengths", "2", "3")),
        ((*good, "--config", "int8.yaml"), 2, ("--calibration", "int8", "simulated")),
        ((*good, "--precision", "int8", "--calibration", "nowhere"), 2, ("nowhere, --calibration: no such folder",)),
        (("--checkpoint", "lost.pth"), 2, ("lost.pth: no such checkpoint", "packaged model")),
        (("--checkpoint", "cut.safetensors"), 2, ("cut.safetensors", "damaged or truncated")),
        (("--checkpoint", "text.pth"), 2, ("text.pth",)),
        (("--checkpoint", "."), 2, ("is not a file",)),
        ((*good, "--out", "file/bundle"), 2, ("file/bundle", "cannot be written")),
        ((*good, "--out", "/"), 2, ("--out", "exists already")),
        ((*good, "bundle"), 2, ("unexpected extra argument",)),
    ]
    for arguments, code, parts in cases:
        out = () if "--out" in arguments else ("--out", "out")
        assert_failed(invoke(capsys, "build", *arguments, *out), code, *parts)
        assert_json_error(invoke(capsys, "build", "--json", *arguments, *out), code)
        assert names_in(here) == before, arguments


def test_top_k_is_asked_for_where_the_checkpoint_does_not_tell(capsys: Capsys, here: Path) -> None:
    torch.save(network(SMALL).state_dict(), "bare.pth")
    line = assert_failed(
        invoke(capsys, "build", "--checkpoint", "bare.pth", "--out", "out"), 2, "bare.pth", "--top-k 1 to 2"
    )
    assert "config.json" in line


def test_without_pytorch_it_says_what_to_install(here: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from deploy.cli import run; sys.exit(run(sys.argv[1:]))"
    ran = subprocess.run(
        [sys.executable, "-c", program, "build", "--checkpoint", "net.safetensors", "--out", "out", "--json"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    error = assert_json_error(Done(ran.returncode, ran.stdout, ran.stderr), 3)
    assert "torch is not installed" in error["message"] and "damp-deploy[export]" in error["remedy"]
    assert names_in(here) == ["net.safetensors"]


# The tiny bundle, built by the library


def test_the_tiny_bundle_restores_what_pytorch_restores(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    assert names_in(tiny_checkpoint.parent) == ["tiny", tiny_checkpoint.name]
    with load_bundle(tiny_bundle) as bundle:
        ports = bundle.manifest.signature.ports
        assert list(ports.shapes) == ["frame", "metrics", "restored", "routing"]
        golden = {name: np.load(tiny_bundle / f"golden/{name}.npy") for name in ports.shapes}
        made = bundle.engine.infer({name: golden[name] for name in ports.inputs})
    assert np.abs(made["restored"] - golden["restored"]).max() < 2e-4 * np.ptp(golden["restored"])
    np.testing.assert_allclose(made["routing"], golden["routing"], atol=1e-5)
    assert np.abs(golden["restored"] - golden["frame"]).max() > 1e-3


def test_golden_frames_call_every_expert_that_metrics_can_call(
    capsys: Capsys, in_a_folder_of_its_own: None, graphs_once: None
) -> None:
    done = invoke(capsys, "build", "--checkpoint", "damp-nano", "--size", "64x64", "--target", "cpu", "--out", "bundle")
    assert done.code == 0 and "4 frames, which call 4 of 4 experts" in done.out
    proofs = read_manifest(Path("bundle")).proofs
    called = [np.load(Path("bundle") / proof["routing"]) > 0 for proof in proofs]
    assert len(proofs) == 4 and np.any(called, axis=0).all()
    with load_bundle(Path("bundle")) as bundle:
        assert bundle.self_test() <= bundle.manifest.golden.tolerance


def test_golden_frames_call_an_expert_that_metrics_call_on_another_frame_alone(
    capsys: Capsys, in_a_folder_of_its_own: None, graphs_once: None
) -> None:
    net = load_checkpoint("damp-base-rs")
    for name, module in net.module.named_modules():
        if name.endswith("routing.mix"):  # heeds its metrics too little to call all experts on one frame
            assert isinstance(module, torch.nn.Linear)
            with torch.no_grad():
                module.weight[:, module.out_features :] *= 0.02
    save_checkpoint(net, Path("deaf.safetensors"), fills=True)
    made = ("build", "--checkpoint", "deaf.safetensors", "--size", "64x64", "--target", "cpu", "--out", "bundle")
    done = invoke(capsys, *made)
    assert done.code == 0 and "which call 3 of 4 experts" in done.out
    golden, *others = (np.load(Path("bundle") / p["frame"]) for p in read_manifest(Path("bundle")).proofs)
    assert sum(not np.array_equal(golden, other) for other in others) == 1
    with load_bundle(Path("bundle")) as bundle:
        assert bundle.self_test() <= bundle.manifest.golden.tolerance


# Weights among others in a file


@pytest.mark.slow
def test_of_raw_and_averaged_weights_it_says_which_it_took_and_the_bundle_keeps_it(here: Path, capsys: Capsys) -> None:
    raw = load_checkpoint("net.safetensors").state_dict()
    averaged = {key: value if "sobel" in key or "index" in key else value * 0.9 for key, value in raw.items()}
    torch.save({"model_state_dict": {f"_orig_mod.module.{k}": v for k, v in raw.items()}, "epoch": 3}, "nested.pth")
    torch.save({"params": raw, "params_ema": averaged, "critic": {"w": torch.ones(1)}}, "both.pth")

    def built(checkpoint: str, *words: str) -> tuple[Done, str]:
        made = ("build", "--checkpoint", checkpoint, *RECIPE, "--replace", "--out", "bundle", *words)
        done = invoke(capsys, *made)
        assert done.code == 0, done.err
        return done, hashlib.sha256(Path("bundle/graphs/fp32.onnx").read_bytes()).hexdigest()

    plain = built("net.safetensors")[1]
    done, graph = built("nested.pth", "--top-k", "1")
    assert graph == plain and "weights under model_state_dict._orig_mod.module" in done.out and not done.err
    done, graph = built("both.pth", "--top-k", "1")
    assert graph != plain and "warning: the file holds several sets of weights: params_ema is taken" in done.err
    assert "weights under params_ema; not used: params, critic (1 tensor)" in done.out
    assert read_manifest(Path("bundle")).network.options == {"top_k": 1, "weights": "params_ema"}
    done = invoke(capsys, "check", "bundle", "--checkpoint", "both.pth")
    assert done.code == 0 and "several sets" not in done.err
    done, graph = built("both.pth", "--top-k", "1", "--option", "weights=params")
    assert graph == plain and "several sets" not in done.err
    torch.save({"params": raw, "best": averaged}, "both.pth")
    assert_failed(
        invoke(capsys, "build", "--checkpoint", "both.pth", "--top-k", "1", *RECIPE, "--out", "other"),
        2, "several networks: best, params", "--option weights=",
    )  # fmt: skip
