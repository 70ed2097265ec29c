"""`deploy simulate`: a degraded cube and its truth, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.degradations import DEGRADATIONS
from calibration.quality import psnr
from runtime.files import read_cube
from tests.contracts.command import assert_failed, assert_finite, assert_json_error, invoke, start

Capsys = pytest.CaptureFixture[str]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def simulate(capsys: Capsys, out: str, *more: object) -> dict[str, object]:
    done = invoke(capsys, "simulate", "--out", out, "--size", "20x30", "--bands", "9", "--json", *more)
    assert done.code == 0, done.err
    assert_finite(done.json)
    return done.json


def test_the_cube_holds_reflectance_numbers_and_its_truth_lies_beside_it(capsys: Capsys) -> None:
    told = simulate(capsys, "scene.hdr", "--wavelengths", "500-900", "--seed", 4)
    cube, truth = read_cube("scene.hdr"), read_cube("scene-truth.hdr")
    assert cube.cube.shape == truth.cube.shape == (9, 20, 30)
    assert (cube.cube.dtype, truth.cube.dtype) == (np.int16, np.float32)
    assert cube.scale == 10000 and truth.scale is None
    assert cube.wavelengths == truth.wavelengths == tuple(np.linspace(500, 900, 9))
    assert 0 <= truth.cube.min() < truth.cube.max() <= 1
    unit = cube.cube.astype(np.float32) / 10000
    assert told["psnr"] == pytest.approx(psnr(unit, truth.cube), abs=0.01)
    assert {k: told[k] for k in ("out", "truth", "degradation", "seed")} == {
        "out": "scene.hdr",
        "truth": "scene-truth.hdr",
        "degradation": ["noise"],
        "seed": 4,
    }


def test_npy_files_hold_floats(capsys: Capsys) -> None:
    simulate(capsys, "scene.npy")
    cube, truth = np.load("scene.npy"), np.load("scene-truth.npy")
    assert cube.shape == truth.shape == (20, 30, 9) and cube.dtype == truth.dtype == np.float32
    assert np.isfinite(cube).all() and not np.array_equal(cube, truth)


def test_the_same_seed_gives_the_same_bytes(capsys: Capsys, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        simulate(capsys, f"{name}/scene.hdr", "--degradation", "noise,stripes", "--seed", seed)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["scene-truth.hdr", "scene-truth.img", "scene.hdr", "scene.img"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name in ("scene.img", "scene-truth.img"):
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_another_process_gives_the_same_bytes(capsys: Capsys, tmp_path: Path) -> None:
    simulate(capsys, "here.npy", "--seed", 9)
    done = start("simulate", "--out", "there.npy", "--size", "20x30", "--bands", 9, "--seed", 9, "--json", cwd=tmp_path)
    assert done.code == 0 and done.json["truth"] == "there-truth.npy"
    assert (tmp_path / "here.npy").read_bytes() == (tmp_path / "there.npy").read_bytes()


def test_none_is_the_sensor_alone(capsys: Capsys) -> None:
    bare = simulate(capsys, "bare.npy", "--degradation", "none")
    noisy = simulate(capsys, "noisy.npy", "--degradation", "noise")
    assert bare["degradation"] == [] and bare["psnr"] > noisy["psnr"] + 5
    np.testing.assert_array_equal(np.load("bare-truth.npy"), np.load("noisy-truth.npy"))


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_every_degradation_can_be_simulated(capsys: Capsys, name: str) -> None:
    told = simulate(capsys, "scene.npy", "--degradation", f" {name} ")
    assert told["degradation"] == [name]
    assert np.isfinite(np.load("scene.npy")).all()


@pytest.mark.parametrize(("wrong", "near"), [("noize", "noise"), ("Blur", "blur"), ("noise,strips", "stripes")])
def test_an_unknown_degradation_names_the_nearest(capsys: Capsys, tmp_path: Path, wrong: str, near: str) -> None:
    done = invoke(capsys, "simulate", "--out", "scene.hdr", "--degradation", wrong)
    assert_failed(done, 2, "unknown degradation", f"did you mean {near}?", "bandloss")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--size", "64"), ("not a size", "256x320")),
        (("--size", "0x64"), ("not a size", "'0x64'")),
        (("--size", "-1x64"), ("not a size",)),
        (("--bands", "0"), ("--bands",)),
        (("--bands", "many"), ("--bands",)),
        (("--wavelengths", "700-400"), ("--wavelengths", "400-700")),
        (("--wavelengths", "400"), ("--wavelengths",)),
        (("--wavelengths", "nan-700"), ("--wavelengths",)),
        (("--seed", "-1"), ("--seed",)),
        (("--degradation", ""), ("unknown degradation",)),
        (("--degradation", "noise,,blur"), ("unknown degradation",)),
        (("--out", "scene.bmp"), (".bmp", ".npy", ".hdr")),
        (("--out", "scene"), ("format", ".npy")),
        (("--out", "nowhere/scene.hdr"), ("no such folder", "make the folder first")),
        (("--out",), ("--out", "argument")),
        (("scene.hdr",), ("scene.hdr",)),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(
    capsys: Capsys, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_failed(invoke(capsys, "simulate", "--out", "a.hdr", *arguments), 2, *parts)
    assert_json_error(invoke(capsys, "simulate", "--json", "--out", "a.hdr", *arguments), 2)
    assert not list(tmp_path.iterdir())


def test_out_is_asked_for(capsys: Capsys) -> None:
    assert_failed(invoke(capsys, "simulate"), 2, "Missing option '--out'", "deploy simulate --help")


@pytest.mark.parametrize("taken", ["scene.hdr", "scene.img", "scene-truth.hdr", "scene-truth.img"])
def test_nothing_is_replaced_unasked(capsys: Capsys, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    done = invoke(capsys, "simulate", "--out", "scene.hdr", "--size", "8x8", "--bands", "3")
    assert_failed(done, 2, taken, "exists already", "--replace")
    assert [path.name for path in tmp_path.iterdir()] == [taken] and (tmp_path / taken).read_text() == "mine"
    assert invoke(capsys, "simulate", "--out", "scene.hdr", "--size", "8x8", "--bands", "3", "--replace").code == 0
    assert read_cube("scene.hdr").cube.shape == (3, 8, 8)


def test_people_are_told_what_was_written(capsys: Capsys) -> None:
    done = invoke(capsys, "simulate", "--out", "scene.hdr", "--size", "8x10", "--bands", "3")
    assert done.code == 0 and done.err == ""
    assert "scene.hdr: 3 bands x 8 lines x 10 samples" in done.out and "scene-truth.hdr" in done.out
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.out)


def test_words_for_people_go_to_standard_error_with_json(capsys: Capsys) -> None:
    done = invoke(capsys, "simulate", "--out", "scene.hdr", "--size", "8x10", "--bands", "3", "--json")
    assert done.json["warnings"] == [] and "scene-truth.hdr" in done.err


def test_a_picture_is_the_scene_in_colours_without_a_sensor(capsys: Capsys, tmp_path: Path) -> None:
    told = simulate(capsys, "rainy.png", "--degradation", "rain", "--seed", 7)
    bad, clean = (read_cube(tmp_path / name).cube.astype(int) for name in ("rainy.png", "rainy-truth.png"))
    assert bad.shape == (3, 20, 30) and told["psnr"] < 25
    # Screen blending only adds light; what no streak crosses is as it was.
    assert (bad >= clean).all() and 0.2 < (bad == clean).mean() < 0.9
    simulate(capsys, "bare.png", "--degradation", "none", "--seed", 7)
    assert np.array_equal(read_cube(tmp_path / "bare.png").cube, clean)
