"""`deploy inspect`: what a bundle says of itself, and no word of one that was damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.bundle_files import read_manifest, verified_bundle
from tests.contracts.bundles import for_a_board, give_engine, known_bundle, reseal
from tests.contracts.command import assert_failed, assert_finite, assert_json_error, invoke, start

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return known_bundle(tmp_path / "bundle")


def test_people_see_what_a_bundle_is(capsys: Capsys, tiny_bundle: Path) -> None:
    done = invoke(capsys, "inspect", tiny_bundle)
    assert done.code == 0 and done.err.startswith("warning: no keyring") and done.err.count("\n") == 1
    m = read_manifest(tiny_bundle)
    for part in (
        "damp, 0.1",
        "tiny.safetensors",
        m.network.checkpoint_sha256[:12],
        "seeded weights",
        "target        cpu, engine onnxruntime",
        "fp32 (the default of target cpu)",
        "31 bands x 64 lines x 64 samples, overlap 16",
        "400 to 700 nm",
        "65535 (from the model)",
        "paper6, 6 values",
        "2 layers of 4",
        "nodes in CPUExecutionProvider",
        "all intact",
    ):
        assert part in done.out, part
    for name, record in m.files.items():
        assert name in done.out and record.sha256[:12] in done.out and f"{record.bytes:,}" in done.out


def test_machines_get_the_whole_manifest(capsys: Capsys, tiny_bundle: Path) -> None:
    done = invoke(capsys, "inspect", tiny_bundle, "--json")
    told = done.json
    assert done.code == 0 and told["intact"] is True and told["bundle"] == str(tiny_bundle)
    assert told["manifest"] == read_manifest(tiny_bundle).model_dump(mode="json")
    assert told["engine"]["engine"] == "onnxruntime" and told["made"] is None
    assert_finite(told)
    assert "all intact" in done.err


def test_what_was_made_is_shown_beside_what_the_ground_wrote(capsys: Capsys, tmp_path: Path) -> None:
    bundle = give_engine(for_a_board(tmp_path / "bundle"))
    (bundle / "stranger").write_text("mine")
    told = invoke(capsys, "inspect", bundle, "--json").json
    made = verified_bundle(bundle).made
    assert made is not None and told["made"] == made.model_dump(mode="json")
    assert told["manifest"]["deferred"] == "built on the board" and told["unlisted"] == ["stranger"]
    shown = invoke(capsys, "inspect", bundle).out
    for part in ("engine/1.plan, tensorrt 10.3.0 for SM 8.7", "engine/1.log", "fp32 (asked for)"):
        assert part in shown, part


def test_another_engine_is_asked_what_it_says(capsys: Capsys, tiny_bundle: Path) -> None:
    told = invoke(capsys, "inspect", tiny_bundle, "--engine", "openvino", "--json").json
    assert told["engine"]["engine"] == "openvino" and told["refusal"] is None
    told = invoke(capsys, "inspect", tiny_bundle, "--engine", "onnxruntime-cuda", "--json").json
    assert told["engine"] is None and "onnxruntime-cuda" in told["refusal"]


def test_a_bundle_that_tells_little_is_shown(capsys: Capsys, bundle: Path) -> None:
    reseal(bundle, lambda content: content.update(wavelengths=None, evidence={}, tools={}))
    done = invoke(capsys, "inspect", bundle)
    assert done.code == 0 and "not told" in done.out and "none" in done.out


def test_a_process_inspects_too(bundle: Path, tmp_path: Path) -> None:
    done = start("inspect", "bundle", "--json", cwd=tmp_path)
    assert done.code == 0 and done.json["manifest"]["signature"]["measured"]["bands"] == 3


@pytest.mark.parametrize("name", ["manifest.json", "graphs/fp32.onnx", "golden/frame.npy"])
def test_a_damaged_bundle_is_not_shown(capsys: Capsys, bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    done = invoke(capsys, "inspect", bundle)
    assert_failed(done, 2, name, "again")
    assert done.out == ""
    error = assert_json_error(invoke(capsys, "inspect", bundle, "--json"), 2)
    assert error["kind"] == "BundleError" and error["file"] == str(bundle / name)


def test_what_is_no_bundle_is_told(capsys: Capsys, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, parts in (
        ((tmp_path / "nothing",), ("nothing", "no such bundle", "deploy build")),
        ((tmp_path / "empty",), ("empty", "no manifest.json")),
        ((bundle / "manifest.json",), ("no such bundle",)),
        ((), ("Missing argument", "BUNDLE", "deploy inspect --help")),
        ((bundle, bundle), ("unexpected extra argument",)),
        ((bundle, "--verbose"), ("--verbose",)),
    ):
        assert_failed(invoke(capsys, "inspect", *arguments), 2, *parts)
        assert_json_error(invoke(capsys, "inspect", *arguments, "--json"), 2)


def test_text_of_a_stranger_reaches_the_terminal_harmless(capsys: Capsys, bundle: Path) -> None:
    hostile = "\x1b]0;owned\x07\x1b[31m\nfiles, all intact\r\u202e[bold]:skull:"

    def change(content: dict) -> None:
        content["network"].update(about=hostile, architecture=hostile, checkpoint=hostile)
        content.update(created=hostile, scale=2.0, scale_from=hostile, tools={"damp-deploy": hostile})
        content["target"]["name"] = content["precision"]["why"] = hostile
        content["evidence"] = {"export": {hostile: hostile}}

    reseal(bundle, change)
    done = invoke(capsys, "inspect", bundle)
    assert done.code == 0 and "\\x1b]0;owned" in done.out and "[bold]:skull:" in done.out
    # The forged line is part of another.
    assert [line for line in done.out.splitlines() if line.startswith("files, all intact")] == [
        "files, all intact"
    ] or (sum(line.strip() == "files, all intact" for line in done.out.splitlines()) == 1)
    told = invoke(capsys, "inspect", bundle, "--json")
    assert told.json["manifest"]["network"]["about"] == hostile


def test_a_bundle_is_left_as_it_is(capsys: Capsys, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    invoke(capsys, "inspect", bundle)
    for path in copy.rglob("*"):
        if path.is_file():
            assert (bundle / path.relative_to(copy)).read_bytes() == path.read_bytes()
    assert len(list(bundle.rglob("*"))) == len(list(copy.rglob("*")))
