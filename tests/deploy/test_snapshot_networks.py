"""MST, BiSRNet and a prior go the whole way with seeded weights and a mask: looked at, built, checked, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.networks import network_of, save_checkpoint
from export.networks.bisrnet import BisrnetConfig
from export.networks.mst import MstConfig
from export.networks.sdp import SdpConfig, noise, wrap
from runtime import load_bundle
from runtime.bundle_files import read_manifest
from runtime.files import write_cube
from runtime.simulation import cassi
from tests.contracts.command import assert_failed, invoke
from tests.export.snapshots import SIDE, mask_file, seeded, small_mask, snapshot_network

Capsys = pytest.CaptureFixture[str]
SIZE = ("--size", f"{SIDE}x{SIDE + cassi.DISPERSED}")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A state dict of an MST, without a mask."""
    torch.save(snapshot_network(MstConfig((1, 1))).state_dict(), tmp_path / "mst.pth")
    return tmp_path / "mst.pth"


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """A BiSRNet with its mask."""
    net = network_of(snapshot_network(BisrnetConfig(1, (0, 0, 0)), small_mask()))
    return save_checkpoint(net, tmp_path / "bisrnet.safetensors")


def test_a_network_goes_the_whole_way_with_the_mask_that_is_named(bare: Path, tmp_path: Path, capsys: Capsys) -> None:
    out, told = tmp_path / "bundle", ["--option", f"mask={mask_file(tmp_path)}"]
    done = invoke(capsys, "build", "--checkpoint", bare, *told, *SIZE, "--out", out, "--json")
    assert done.code == 0, done.err
    m = read_manifest(out)
    assert m.wavelengths == list(cassi.WAVELENGTHS) and m.network.configuration["mask"]["samples"] == SIDE
    assert m.signature.measured.size == (SIDE, SIDE + 54) and m.signature.restored.size == (SIDE, SIDE)
    clean = np.random.default_rng(0).random((28, SIDE, SIDE), np.float32)
    with load_bundle(out) as loaded:
        assert loaded.restore(cassi.measure(clean, small_mask())[None]).cube.shape == (28, SIDE, SIDE)
    done = invoke(capsys, "check", out, "--checkpoint", bare, "--json")
    assert done.code == 0, done.err
    assert set(done.json["tasks"]) == {"snapshot", "noisy"}
    np.save(tmp_path / "other.npy", small_mask(seed=6))
    done = invoke(capsys, "check", out, "--checkpoint", bare, "--option", f"mask={tmp_path / 'other.npy'}")
    assert_failed(done, 2, "mask", "another network")


def test_a_page_has_no_columns_that_say_nothing_and_one_section_of_a_task(binary: Path, tmp_path: Path) -> None:
    from deploy.building.build import build
    from deploy.checking.check import check
    from deploy.config import Config, with_overrides
    from deploy.reporting.check_report import assemble

    config = with_overrides(Config(), {"model.checkpoint": str(binary)})
    build(config, tmp_path / "bundle")
    with load_bundle(tmp_path / "bundle") as loaded:
        found = check(loaded, config, wanted=())
        case = found.cases[0]
        shown = case, None, found.variants["fp32"].tasks[case.task].engine
        report = assemble("title", loaded, found, [], (), shown=shown)
    assert [each.title for each in report.cases] == ["snapshot", "noisy"]
    heads = {head for table in report.tables for head in table.columns}
    assert heads >= {"PSNR out, dB", "PyTorch, dB", "RMS distance, share of range"}
    assert not heads & {"PSNR in, dB", "tiling costs, dB", "line", "sample"}


def test_what_is_told_of_a_check_has_no_such_columns_either(binary: Path, tmp_path: Path, capsys: Capsys) -> None:
    assert invoke(capsys, "build", "--checkpoint", binary, "--out", tmp_path / "bundle").code == 0
    done = invoke(capsys, "check", tmp_path / "bundle", "--checkpoint", binary)
    assert done.code == 0 and "engine" in done.out and "input" not in done.out and "tiling" not in done.out


@pytest.mark.parametrize("latent", ["input", 2])
def test_a_prior_goes_it_with_its_noise_inside_or_as_a_prompt(
    latent: str | int, tmp_path: Path, capsys: Capsys
) -> None:
    prior = SdpConfig(latent_dims=8, hfe_width=4, hfe_blocks=1, denoiser_layers=1)
    net = network_of(seeded(wrap(snapshot_network(MstConfig((1, 1)), small_mask()), prior)))
    file, out = save_checkpoint(net, tmp_path / "sdp.safetensors"), tmp_path / "bundle"
    done = invoke(capsys, "build", "--checkpoint", file, "--option", f"latent={latent}", *SIZE, "--out", out, "--json")
    assert done.code == 0, done.err
    m, place = read_manifest(out), out / "prompts" / "latent.npy"
    assert m.network.options == {"latent": latent} and m.network.configuration["backbone"] == "mst"
    assert [p.of for p in m.signature.prompts] == (["prompts/latent.npy"] if latent == "input" else [])
    if latent == "input":
        np.testing.assert_array_equal(np.load(place), noise(0, prior))
    clean = np.random.default_rng(0).random((28, SIDE, SIDE), np.float32)
    with load_bundle(out) as loaded:
        assert loaded.restore(cassi.measure(clean, small_mask())[None]).cube.shape == (28, SIDE, SIDE)
    done = invoke(capsys, "check", out, "--checkpoint", file, "--json")
    assert done.code == 0, done.err


def test_without_a_mask_it_is_inspected_and_not_built(bare: Path, tmp_path: Path, capsys: Capsys) -> None:
    told = invoke(capsys, "inspect", bare, "--json")
    assert told.code == 0, told.err
    assert told.json["wavelengths"] == list(cassi.WAVELENGTHS) and told.json["configuration"]["mask"] is None
    done = invoke(capsys, "build", "--checkpoint", bare, "--size", "256x310", "--out", tmp_path / "bundle")
    assert_failed(done, 2, "mask", "--option mask=FILE")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "asked",
    [
        ("--precision", "fp16", "--target", "cuda"),
        ("--precision", "bf16", "--target", "intel"),
        ("--precision", "int8", "--calibration", "simulated"),
        ("--precision", "int8"),
    ],
)
def test_a_binary_network_is_refused_in_lower_precisions(
    asked: tuple[str, ...], binary: Path, tmp_path: Path, capsys: Capsys
) -> None:
    done = invoke(capsys, "build", "--checkpoint", binary, *SIZE, *asked, "--out", tmp_path / "bundle")
    assert_failed(done, 2, "float32 only", "signs", asked[1])


def test_a_binary_network_is_built_in_float32_and_says_why(binary: Path, tmp_path: Path, capsys: Capsys) -> None:
    options = ["--precision", "auto", "--calibration", "simulated", "--out", tmp_path / "bundle", "--json"]
    done = invoke(capsys, "build", "--checkpoint", binary, *SIZE, *options)
    assert done.code == 0, done.err
    assert done.json["precision"]["chosen"] == "fp32" and "signs" in done.json["precision"]["why"]
    (tmp_path / "cubes").mkdir()
    write_cube(tmp_path / "cubes" / "one.hdr", np.random.default_rng(0).random((28, SIDE, SIDE), np.float32))
    # Bands of another camera are brought to the network's.
    told = {"wavelength units": "Nanometers", "wavelength": "{" + ", ".join(map(str, range(400, 701, 10))) + "}"}
    (tmp_path / "other").mkdir()
    dark = np.random.default_rng(1).random((31, SIDE, SIDE), np.float32)
    write_cube(tmp_path / "other" / "two.hdr", dark, fields=told)
    seen = cassi.resampled(dark, range(400, 701, 10))
    write_cube(
        tmp_path / "other" / "three.hdr",
        seen,
        fields={**told, "wavelength": "{" + ", ".join(map(str, cassi.WAVELENGTHS)) + "}"},
    )
    for command in ("evaluate", "check"):
        more = ("--checkpoint", binary) if command == "check" else ("--out", tmp_path / "two")
        done = invoke(capsys, command, tmp_path / "bundle", *more, "--data", tmp_path / "other", "--json")
        assert done.code == 0, done.err
        if command == "evaluate":
            two, three = (done.json["scenes"]["snapshot"][name]["model"]["psnr"] for name in ("two", "three"))
            assert two == pytest.approx(three, abs=1e-3)
    mask = tmp_path / "bundle" / "instrument" / "mask.npy"
    np.testing.assert_array_equal(np.load(mask), small_mask())
    assert "instrument/mask.npy" in invoke(capsys, "inspect", tmp_path / "bundle").out
    given = ["--data", tmp_path / "cubes", "--out", tmp_path / "out", "--json"]
    by_bundle, by_checkpoint = (invoke(capsys, "evaluate", model, *given) for model in (tmp_path / "bundle", binary))
    assert by_bundle.code == by_checkpoint.code == 0 and "GAP-TV: snapshot, noisy" in by_bundle.err, by_bundle.err
    assert set(by_bundle.json["tasks"]) == {"snapshot", "noisy"}
    for task, figures in by_bundle.json["tasks"].items():
        other = by_checkpoint.json["tasks"][task]
        assert figures["baseline"] == other["baseline"] and figures["input"] is None
        assert figures["model"]["psnr"] == pytest.approx(other["model"]["psnr"], abs=0.05)
