"""`deploy check`: figures against PyTorch, gates that fail, the page, and the demo's packaged model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploy.cli import run
from deploy.commands import demo
from export.networks import load_checkpoint, save_checkpoint
from runtime import trust
from tests.contracts.command import assert_failed, invoke
from tests.contracts.signed import write_keys

CHECKED = "check:\n  degradations: [noise, bandloss]\n  cube: 100x90\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "deploy.yaml"
    path.write_text(CHECKED)
    return path


def test_the_engine_restores_as_pytorch_does(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_checkpoint: Path, config: Path, tmp_path: Path
) -> None:
    page = tmp_path / "check.html"
    done = invoke(
        capsys, "check", tiny_bundle, "--checkpoint", tiny_checkpoint, "--config", config, "--report", page, "--json"
    )
    assert done.code == 0, done.err
    assert list(done.json["tasks"]) == ["noise", "bandloss"] and done.json["passed"] is True
    for task in done.json["tasks"].values():
        assert task["max_difference"] < 1e-3 and task["routing_agreement"] == 1
        assert abs(task["psnr_drop_db"]) < 0.01 and abs(task["sam_rise_deg"]) < 0.005
        # Four tiles of a random network are not one frame.
        assert task["tiling_drop_db"] != 0 and task["engine"]["psnr"] != task["input"]["psnr"]
    text = page.read_text()
    assert text.count("data:image/png;base64") >= 8 and "http" not in text.replace("http-equiv", "")
    assert f"deploy build --target cpu --checkpoint {tiny_checkpoint} --precision fp32 --size 64x64" in text


def test_a_gate_that_fails_is_exit_1_with_the_figures(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_checkpoint: Path, config: Path
) -> None:
    config.write_text(CHECKED + "gates:\n  max_difference: 0\n")
    arguments = ("check", tiny_bundle, "--checkpoint", tiny_checkpoint, "--config", config)
    done = invoke(capsys, *arguments, "--json")
    assert done.code == 1 and done.json["error"]["code"] == 1 and done.json["error"]["key"] == "gates.max_difference"
    measured = done.json["result"]["gates"]["max_difference"]
    assert done.json["result"]["variants"]["fp32"]["gates"]["max_difference"] == measured
    assert measured["passed"] is False and 0 < measured["measured"] < 1e-3
    config.write_text(CHECKED + "gates:\n  max_difference: null\n")
    assert invoke(capsys, *arguments).code == 0


@pytest.mark.slow
def test_other_weights_fail_the_gates(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_checkpoint: Path, config: Path, tmp_path: Path
) -> None:
    net = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        net.module.output.weight.mul_(1.05)
    other = save_checkpoint(net, tmp_path / "other.safetensors")
    done = invoke(capsys, "check", tiny_bundle, "--checkpoint", other, "--config", config)
    assert done.code == 1 and "is not the very file" in done.err


def test_another_network_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, config: Path, tmp_path: Path
) -> None:
    done = invoke(capsys, "check", tiny_bundle, "--checkpoint", "damp-tiny", "--config", config)
    assert_failed(done, 2, "the bundle was built from another network")
    done = invoke(capsys, "check", tiny_bundle, "--config", config)
    assert_failed(done, 2, "no checkpoint is given")


def test_a_task_that_the_network_is_not_measured_by_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_checkpoint: Path, config: Path
) -> None:
    config.write_text("check: {degradations: [noise, blurr]}\n")
    done = invoke(capsys, "check", tiny_bundle, "--checkpoint", tiny_checkpoint, "--config", config)
    known = "noise, blur, sr, inpaint, bandloss, poisson, motionblur"
    assert_failed(done, 2, "check.degradations", "'blurr'", f"choose from {known}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "least"),
    [("damp-tiny", 10), ("dfpir-tiny", 3), ("dpmambair-tiny", 3), ("mst-tiny", 1), ("mst-tiny-sdp", 1)],
)
def test_the_demo_gains_what_it_promises(
    network: str, least: float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    done = invoke(capsys, "demo", "--network", network, "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.json["restored_psnr"] > done.json["input_psnr"] + least
    assert (out / "report.html").stat().st_size > 100_000 and (out / "demo.json").is_file()
    assert run(["demo", "--out", str(out)]) == 2


def test_the_demo_opens_what_it_built_where_bundles_must_be_signed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_keys(tmp_path)
    # A small one, which is soon done.
    monkeypatch.setattr(demo, "SCENE", {"lines": 64, "samples": 64})
    monkeypatch.setitem(demo.SHOWN, "cube", replace(demo.SHOWN["cube"], side=64))
    monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "ground.pub"))
    done = invoke(capsys, "demo", "--network", "damp-nano", "--out", tmp_path / "demo", "--json")
    assert done.code == 0, done.err
    assert any("not signed" in one and "ground.pub" in one for one in done.json["warnings"])
    assert_failed(invoke(capsys, "verify", tmp_path / "demo/bundle"), 2, "is not signed")
