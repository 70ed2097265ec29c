"""`deploy evaluate`: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.measuring import TASKS
from deploy.checking import evaluation
from deploy.reporting.evaluation_report import COLUMNS, CONTENDERS
from export.networks import load_checkpoint, save_checkpoint
from runtime.files import write_cube
from runtime.restore import Restored
from runtime.simulation.simulator import simulate_scene
from tests.contracts.command import assert_failed, assert_finite, assert_json_error, invoke

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube of 16 bits as .npz, floats as .npy, and an ENVI pair with a scale of its own."""
    folder = tmp_path_factory.mktemp("cubes")
    truths = [simulate_scene(seed, 31, 64, 64).truth.transpose(1, 2, 0) for seed in range(3)]
    np.savez(folder / "digital.npz", cube=np.rint(truths[0] * 65535).astype(np.uint16))
    np.save(folder / "floats.npy", truths[1])
    fields = {"reflectance scale factor": "10000"}
    numbers = np.rint(truths[2].transpose(2, 0, 1) * 10000).astype(np.uint16)
    write_cube(folder / "envi.hdr", numbers, fields=fields)
    (folder / "notes.txt").write_text("not a cube")
    return folder


def test_every_task_is_measured_and_written(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", tiny_checkpoint, "--data", cubes, "--scenes", "digital", "--out", out)
    done = invoke(capsys, *arguments, "--json")
    assert done.code == 0, done.err
    assert list(done.json["tasks"]) == list(TASKS)
    assert_finite(done.json)
    for task in done.json["tasks"].values():
        assert set(task) == set(CONTENDERS)
        for figures in task.values():
            assert {"psnr", "ssim", "sam"} <= set(figures)
    with (out / "evaluation.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert tuple(header) == COLUMNS and {row[1] for row in rows} == {"digital", "mean"}
    noise = done.json["tasks"]["noise"]
    assert [float(v) for v in rows[0][2:5]] == pytest.approx([noise[who]["psnr"] for who in CONTENDERS], abs=0.006)
    text = (out / "evaluation.md").read_text()
    for name in ("gains.png", "experts.png", "spectra.png", *(f"{task}.png" for task in TASKS)):
        assert f"]({name})" in text and (out / name).read_bytes().startswith(PNG)
    page = (out / "evaluation.html").read_text()
    assert page.count("data:image/png;base64") >= 5 * len(TASKS) and "digital" in page
    again = invoke(capsys, *arguments, "--tasks", "noise,inpaint", "--json")
    assert again.json["tasks"] == {name: done.json["tasks"][name] for name in ("noise", "inpaint")}


def test_every_file_is_taken_at_its_scale(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", tiny_checkpoint, "--data", cubes, "--tasks", "inpaint", "--out", tmp_path / "out")
    done = invoke(capsys, *arguments, "--json")
    assert done.code == 0, done.err
    scenes = done.json["scenes"]["inpaint"]
    assert set(scenes) == {"digital", "floats", "envi"} and done.json["warnings"] == []
    for name, seed in (("digital", 0), ("floats", 1), ("envi", 2)):
        power = float(np.mean(simulate_scene(seed, 31, 64, 64).truth ** 2))
        # Seven or eight tenths of the elements are lost.
        expected = [-10 * np.log10(rate * power) for rate in (0.7, 0.8)]
        assert min(abs(scenes[name]["input"]["psnr"] - e) for e in expected) < 0.15


def test_a_bundle_is_measured_as_its_checkpoint(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tiny_bundle: Path, cubes: Path, tmp_path: Path
) -> None:
    figures = []
    for model in (tiny_checkpoint, tiny_bundle):
        arguments = ("--data", cubes, "--scenes", "floats", "--tasks", "noise,bandloss", "--out", tmp_path / "out")
        done = invoke(capsys, "evaluate", model, *arguments, "--json")
        assert done.code == 0, done.err
        figures.append(done.json["tasks"])
    for task in ("noise", "bandloss"):
        assert figures[0][task]["input"] == figures[1][task]["input"]
        assert figures[0][task]["model"]["psnr"] == pytest.approx(figures[1][task]["model"]["psnr"], abs=1e-3)


def test_mistakes_are_said_in_one_line(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tiny_bundle: Path, cubes: Path, tmp_path: Path
) -> None:
    def refused(*arguments: object, model: object = tiny_checkpoint, parts: tuple[str, ...]) -> None:
        done = invoke(capsys, "evaluate", model, "--out", tmp_path / "out", *arguments)
        assert_failed(done, 2, *parts)

    refused("--data", tmp_path / "nowhere", parts=("no such folder", "--data"))
    refused("--data", tmp_path, parts=("no cubes there",))
    refused("--data", cubes, "--tasks", "noise,fog", parts=("unknown task", "fog", "noise, blur"))
    refused("--data", cubes, "--scenes", "digitl", parts=("no such cube", "digitl", "digital"))
    refused("--data", cubes, model="damp-huge", parts=("no such checkpoint", "damp-tiny"))
    refused("--data", cubes, "--top-k", 1, model=tiny_bundle, parts=("options are fixed", "--top-k", "top_k=1"))
    refused("--data", cubes, "--option", "gain=2", model=tiny_bundle, parts=("options are fixed", "gain=2"))
    refused("--data", cubes, "--option", "gain=2", parts=("a damp network has no such option", "gain", "it has top_k"))
    refused("--data", cubes, "--option", "top_k=9", parts=("top-k is out of range", "1 to 4"))
    refused("--data", cubes, "--option", "gain", parts=("--option", "'gain'", "KEY=VALUE"))
    refused("--data", cubes, "--option", "top_k=2", "--top-k", 1, parts=("top_k is given two values", "1 and 2"))
    few = tmp_path / "few"
    few.mkdir()
    np.save(few / "grey.npy", np.zeros((64, 64, 3), np.float32))
    refused("--data", few, parts=("has 3 bands", "grey.npy"))
    holes = tmp_path / "holes"
    holes.mkdir()
    cube = np.load(cubes / "floats.npy")
    cube[:2] = -9999
    np.save(holes / "holes.npy", cube)
    refused("--data", holes, parts=("pixels missing", "holes.npy", "-9999", "--ignore-value none"))
    cube[:2] = np.nan
    np.save(holes / "holes.npy", cube)
    refused("--data", holes, parts=("not finite", "holes.npy", "cut them away", "--scenes"))
    cube = np.load(cubes / "floats.npy")
    cube[..., 4] = 0
    np.save(holes / "holes.npy", cube)
    refused("--data", holes, parts=("1 bad band", "holes.npy", "band 5"))
    (tmp_path / "file").write_text("")
    done = invoke(capsys, "evaluate", tiny_checkpoint, "--data", cubes, "--out", tmp_path / "file", "--json")
    assert assert_json_error(done, 2)["key"] == "--out"


def test_a_doubtful_scale_is_warned_of(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    arguments = ("--scenes", "digital", "--tasks", "bandloss", "--out", tmp_path / "out", "--scale", 1000, "--json")
    done = invoke(capsys, "evaluate", tiny_checkpoint, "--data", cubes, *arguments)
    assert done.code == 0 and any("digital.npz" in warning for warning in done.json["warnings"])


def test_floats_in_another_scale_are_refused_until_it_is_said(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "numbers.npy", (np.load(cubes / "floats.npy") * 6e4).astype(np.float32))
    arguments = ("--data", tmp_path, "--tasks", "bandloss", "--out", tmp_path / "out")
    assert_failed(invoke(capsys, "evaluate", tiny_checkpoint, *arguments), 2, "numbers.npy", "as they are", "--scale")
    assert invoke(capsys, "evaluate", tiny_checkpoint, *arguments, "--scale", 6e4).code == 0


def test_the_worst_cube_is_refused_before_any_is_restored(
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    cubes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("calibration.evaluation.evaluate", None)
    shutil.copy(cubes / "floats.npy", tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((64, 64, 31), np.complex64))
    done = invoke(capsys, "evaluate", tiny_checkpoint, "--data", tmp_path, "--out", tmp_path / "out")
    assert_failed(done, 2, "b.npy")
    done = invoke(capsys, "evaluate", tiny_checkpoint, "--data", cubes, "--scale", 0, "--out", tmp_path / "out")
    assert_failed(done, 2, "--scale", "not a positive number")


def test_without_matplotlib_it_says_so_before_any_work(
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    cubes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("calibration.evaluation.evaluate", None)
    done = invoke(capsys, "evaluate", tiny_checkpoint, "--data", cubes, "--out", tmp_path / "out")
    assert_failed(done, 3, "matplotlib", "damp-deploy[report]")


def test_a_key_is_for_the_files_that_name_their_arrays(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    arguments = ("--data", cubes, "--key", "cube", "--tasks", "bandloss", "--out", tmp_path / "out", "--json")
    done = invoke(capsys, "evaluate", tiny_checkpoint, *arguments)
    assert done.code == 0, done.err
    assert len(done.json["scenes"]["bandloss"]) == 3


def test_a_scene_may_be_called_mean_and_the_page_says_how_it_was_made(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    shutil.copy(cubes / "floats.npy", tmp_path / "mean.npy")
    out = tmp_path / "out"
    arguments = ("--data", tmp_path, "--tasks", "bandloss,inpaint", "--seed", 7, "--out", out)
    done = invoke(capsys, "evaluate", tiny_checkpoint, *arguments)
    assert done.code == 0, done.err
    head, *rest = (out / "evaluation.md").read_text().split("## ")
    assert "--data DIR --tasks bandloss,inpaint --seed 7" in head
    assert "--tasks bandloss,inpaint --seed 7" in (out / "evaluation.html").read_text()
    assert [part.count("| bandloss |") for part in rest] == [1, 1]
    assert len((out / "evaluation.csv").read_text().splitlines()) == 5


def test_the_table_fits_a_terminal(
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    cubes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("--data", cubes, "--scenes", "floats", "--out", tmp_path)
    done = invoke(capsys, "evaluate", tiny_checkpoint, *arguments)
    assert done.code == 0 and "…" not in done.out and "mean over 1 scene " in done.out
    for task in TASKS:
        (row,) = (line for line in done.out.splitlines() if line.startswith(f"│ {task} "))
        assert row.count("│") == 8
    assert "unsharp masking: blur, motionblur" in done.out


def test_bands_elsewhere_than_the_models_are_warned_of(
    capsys: pytest.CaptureFixture[str], cubes: Path, tmp_path: Path
) -> None:
    cube = np.load(cubes / "floats.npy")
    for first in (400, 500):
        np.savez(tmp_path / "cube.npz", cube=cube, wavelength_nm=np.linspace(first, first + 300, 31))
        arguments = ("--data", tmp_path, "--tasks", "bandloss", "--out", tmp_path / "out", "--json")
        done = invoke(capsys, "evaluate", "damp-tiny", *arguments)
        assert done.code == 0, done.err
        assert [("100 nm" in warning) for warning in done.json["warnings"]] == [True] * (first == 500)


def test_experts_weights_are_averaged_over_tiles_and_groups_and_may_be_none() -> None:
    def mean(side: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        cube, weights = evaluation._mean_routing(Restored(np.ones((1, 2, 3)), {}, side, "host"))
        assert cube.shape == (1, 2, 3) and cube.dtype == np.float32
        return weights

    weights = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    np.testing.assert_allclose(mean({"routing": weights}), weights.mean((0, 1)), rtol=1e-6)
    np.testing.assert_array_equal(mean({"routing": weights[0, 0]}), weights[0, 0])
    assert mean({"routing": np.zeros((2, 3, 0, 5), np.float32)}).shape == (0, 5)
    assert mean({}).shape == (0, 0)


def test_several_models_stand_in_one_table(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tiny_bundle: Path, cubes: Path, tmp_path: Path
) -> None:
    given = ("--data", cubes, "--scenes", "floats,envi", "--tasks", "noise,inpaint")
    models = ("damp-nano", tiny_checkpoint, tiny_bundle)
    names = ["damp-nano", tiny_checkpoint.name, tiny_bundle.name]
    done = invoke(capsys, "evaluate", *models, *given, "--out", tmp_path / "all", "--json")
    assert done.code == 0, done.err
    assert_finite(done.json)
    assert list(done.json["models"]) == names and done.json["best"]["mean"] in names
    alone = invoke(capsys, "evaluate", tiny_checkpoint, *given, "--out", tmp_path / "one", "--json").json
    for task in ("noise", "inpaint"):
        together = done.json["tasks"][task]
        assert together["input"] == alone["tasks"][task]["input"]
        assert together["baseline"] == alone["tasks"][task]["baseline"]
        assert together["models"][tiny_checkpoint.name] == alone["tasks"][task]["model"]
        best = max(names, key=lambda name: together["models"][name]["psnr"])
        assert done.json["best"]["tasks"][task] == best
        ahead = together["models"][best]["psnr"] - together["baseline"]["psnr"]
        assert (task in done.json["classical"]) == (ahead <= 0.1)
    with (tmp_path / "all" / "evaluation.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header == ["task", "scene", "by", "PSNR", "gain", "SSIM", "SAM", "CPU s"]
    by = ["input", "baseline", *names]
    tasks = ("noise", "inpaint")
    assert [row[:3] for row in rows] == [[t, s, who] for t in tasks for s in ("floats", "envi") for who in by]
    assert all(float(row[-1]) > 0 for row in rows if row[2] in names)
    text = (tmp_path / "all" / "evaluation.md").read_text()
    page = (tmp_path / "all" / "evaluation.html").read_text()
    # Inpainting by a network of random weights: the classical method is ahead.
    for told in (text, page, done.err):
        assert "Best in the mean: " in told and "linear interpolation over bands for inpaint" in told
        assert "s of CPU per scene" in told
    for name in ("gains.png", "spectra.png", "noise.png", "inpaint.png"):
        assert f"]({name})" in text and (tmp_path / "all" / name).read_bytes().startswith(PNG)
    assert "experts.png" not in text and page.count("data:image/png;base64") == 2 * 6 + 2


def test_models_that_do_not_take_the_same_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    def refused(*arguments: object, parts: tuple[str, ...]) -> None:
        done = invoke(capsys, "evaluate", *arguments, "--data", cubes, "--out", tmp_path / "out")
        assert_failed(done, 2, *parts)
        assert not (tmp_path / "out").exists()

    refused("damp-nano", "dpmambair-tiny", parts=("dpmambair-tiny", "photographs beside cubes", "a call of its own"))
    refused("damp-nano", "mst-tiny", parts=("mst-tiny", "coded frames beside cubes"))
    refused("dfpir-tiny", "dpmambair-tiny", parts=("tasks of dfpir-tiny", "--tasks", "haze"))
    refused("damp-nano", tiny_checkpoint, "damp-nano", parts=("damp-nano", "given twice"))
    refused("damp-nano", "damp-tiny", "--tasks", "fog", parts=("unknown task", "fog", "damp-nano has noise"))


def test_models_of_several_scales_need_one_said(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    other = save_checkpoint(load_checkpoint(str(tiny_checkpoint)), tmp_path / "other.safetensors", scale=1000)
    given = ("evaluate", tiny_checkpoint, other, "--data", cubes, "--scenes", "digital", "--tasks", "bandloss")
    done = invoke(capsys, *given, "--out", tmp_path / "out")
    assert_failed(done, 2, "several scales", "65535 (tiny.safetensors), 1000 (other.safetensors)", "--scale")
    done = invoke(capsys, *given, "--out", tmp_path / "out", "--scale", 65535, "--json")
    assert done.code == 0, done.err
    first, second = done.json["tasks"]["bandloss"]["models"].values()
    assert first == second


def test_one_model_is_told_where_a_classical_method_would_do(
    capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, cubes: Path, tmp_path: Path
) -> None:
    arguments = ("--data", cubes, "--scenes", "floats", "--tasks", "bandloss", "--out", tmp_path)
    done = invoke(capsys, "evaluate", tiny_checkpoint, *arguments)
    assert done.code == 0 and "Best" not in done.out
    for told in (done.out, (tmp_path / "evaluation.md").read_text(), (tmp_path / "evaluation.html").read_text()):
        assert "use linear interpolation over bands for bandloss" in told
