"""`deploy simulate --snapshot`: the measurement is the instrument's of the truth, through the mask beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.files import read_cube, write_cube
from runtime.simulation.cassi import WAVELENGTHS, measure, noisy, random_mask, resampled
from tests.contracts.command import assert_failed, assert_finite, assert_json_error, invoke

Capsys = pytest.CaptureFixture[str]
RANDOM = ("--mask", "random:3,8x12")
PLANE = "lines,samples"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def simulate(capsys: Capsys, out: str, *more: object) -> dict[str, object]:
    done = invoke(capsys, "simulate", "--snapshot", "--out", out, "--json", *more)
    assert done.code == 0, done.err
    assert_finite(done.json)
    return done.json


def test_the_measurement_is_that_of_the_truth_through_the_mask(capsys: Capsys) -> None:
    told = simulate(capsys, "m.npy", *RANDOM, "--seed", 4)
    plane, mask = np.load("m.npy"), np.load("m-mask.npy")
    truth = read_cube("m-truth.npy").cube
    assert plane.shape == (8, 12 + 54) and plane.dtype == truth.dtype == np.float32
    assert truth.shape == (28, 8, 12) and 0 <= truth.min() < truth.max() <= 1
    np.testing.assert_array_equal(mask, random_mask(3, 8, 12))
    np.testing.assert_array_equal(plane, measure(truth, mask))
    assert told == {
        "out": "m.npy", "truth": "m-truth.npy", "mask": "m-mask.npy", "scale": 1.0, "noise": None, "seed": 4,
        "warnings": [],
    }  # fmt: skip


def test_a_mask_from_a_file_gives_the_same_and_is_not_written_again(capsys: Capsys) -> None:
    simulate(capsys, "a.npy", *RANDOM)
    told = simulate(capsys, "b.hdr", "--mask", "a-mask.npy")
    found, truth = read_cube("b.hdr", layout=PLANE), read_cube("b-truth.hdr")
    np.testing.assert_array_equal(found.cube[0], np.load("a.npy"))
    assert truth.wavelengths == WAVELENGTHS and told["mask"] == "a-mask.npy"
    assert not Path("b-mask.npy").exists()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_have_16_bits_and_their_scale_is_told(capsys: Capsys, suffix: str) -> None:
    simulate(capsys, "a.npy", *RANDOM)
    told = simulate(capsys, f"b{suffix}", *RANDOM)
    numbers = read_cube(f"b{suffix}", layout=PLANE).cube
    assert numbers.dtype == np.uint16 and told["scale"] == 30000
    np.testing.assert_allclose(numbers[0] / 30000, np.load("a.npy"), atol=0.51 / 30000)
    assert read_cube("b-truth.hdr").cube.shape == (28, 8, 12)


def test_noise_is_of_electrons_and_the_same_for_the_same_seed(capsys: Capsys) -> None:
    simulate(capsys, "clean.npy", *RANDOM, "--seed", 7)
    for name in ("a.npy", "b.npy"):
        told = simulate(capsys, name, *RANDOM, "--seed", 7, "--noise", "2000,3.5")
    assert told["noise"] == [2000, 3.5]
    clean = np.load("clean.npy")
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
    np.testing.assert_array_equal(np.load("a.npy"), noisy(clean, np.random.default_rng([7, 1]), 2000, 3.5))


def test_a_cube_can_be_the_scene(capsys: Capsys) -> None:
    numbers = np.random.default_rng(0).integers(0, 4000, (31, 20, 30)).astype(np.uint16)
    centres = np.linspace(400, 700, 31)
    np.savez("scene.npz", cube=numbers.transpose(1, 2, 0), wavelength_nm=centres)
    simulate(capsys, "m.npy", *RANDOM, "--scene", "scene.npz", "--scale", 4000)
    seen = (numbers[:, :8, :12] / np.float32(4000)).astype(np.float32)
    np.testing.assert_allclose(read_cube("m-truth.npy").cube, resampled(seen, centres.tolist()), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("--mask", "has a mask", "random:1")),
        (("--mask", "nothing.npy"), ("nothing.npy",)),
        (("--mask", "random:x"), ("mask", "not a random mask", "random:1,256x256")),
        (("--mask", "random:1,8"), ("not a random mask",)),
        (("--mask", "random:1,9x12"), ("multiples of 4", "random:1,9x12")),
        (("--mask", "random:1,99999x8"), ("not a random mask",)),
        ((*RANDOM, "--noise", "1000"), ("--noise", "10000,5")),
        ((*RANDOM, "--noise", "0,1"), ("--noise",)),
        ((*RANDOM, "--noise", "10,nan"), ("--noise",)),
        ((*RANDOM, "--noise", "1e20,5"), ("--noise", "1e+09")),
        ((*RANDOM, "--scene", "holes.hdr", "--scale", "100"), ("--scene", "holes.hdr", "missing pixels")),
        ((*RANDOM, "--scale", "4000"), ("--scale", "--scene")),
        ((*RANDOM, "--scene", "small.hdr"), ("--scene", "smaller than the mask, 8x12", "8x8")),
        ((*RANDOM, "--scene", "bare.npy"), ("--scene", "wavelengths")),
        ((*RANDOM, "--scene", "red.hdr"), ("453.5 to 648 nm",)),
        ((*RANDOM, "--size", "64x64"), ("--size", "line-scan sensor alone")),
        ((*RANDOM, "--bands", "31"), ("--bands", "line-scan sensor alone")),
        ((*RANDOM, "--wavelengths", "400-700"), ("--wavelengths", "line-scan sensor alone")),
        ((*RANDOM, "--degradation", "noise"), ("--degradation", "line-scan sensor alone")),
    ],
)
def test_wrong_options_are_told_in_one_line(
    capsys: Capsys, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    told = {"wavelength units": "Nanometers", "wavelength": "{450, 550, 650}"}
    write_cube("small.hdr", np.full((3, 8, 8), 0.5, np.float32), fields=told)
    write_cube("red.hdr", np.full((3, 8, 12), 0.5, np.float32), fields={**told, "wavelength": "{600, 650, 700}"})
    holes = np.random.default_rng(0).integers(1, 99, (3, 8, 12)).astype(np.int16)
    holes[:, 2, 3] = -9999
    write_cube("holes.hdr", holes, fields={**told, "wavelength": "{450, 550, 650}", "data ignore value": "-9999"})
    np.save("bare.npy", np.full((8, 12, 3), 0.5, np.float32))
    before = sorted(tmp_path.iterdir())
    assert_failed(invoke(capsys, "simulate", "--snapshot", "--out", "m.npy", *arguments), 2, *parts)
    assert_json_error(invoke(capsys, "simulate", "--json", "--snapshot", "--out", "m.npy", *arguments), 2)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", [("--mask", "a.npy"), ("--noise", "1,1"), ("--scene", "a.hdr"), ("--scale", "2")])
def test_options_of_a_snapshot_are_refused_without_it(capsys: Capsys, option: tuple[str, str]) -> None:
    assert_failed(
        invoke(capsys, "simulate", "--out", "m.npy", *option), 2, option[0], "snapshot spectrometer alone", "--snapshot"
    )


@pytest.mark.parametrize("taken", ["m.npy", "m-truth.npy", "m-mask.npy"])
def test_nothing_is_replaced_unasked(capsys: Capsys, tmp_path: Path, taken: str) -> None:
    Path(taken).write_text("mine")
    arguments = ("simulate", "--snapshot", "--out", "m.npy", *RANDOM)
    assert_failed(invoke(capsys, *arguments), 2, taken, "exists already", "--replace")
    assert [path.name for path in tmp_path.iterdir()] == [taken] and Path(taken).read_text() == "mine"
    assert invoke(capsys, *arguments, "--replace").code == 0


@pytest.mark.parametrize("read", ["m.npy", "m-truth.npy"])
def test_what_it_reads_is_never_replaced(capsys: Capsys, read: str) -> None:
    simulate(capsys, "a.npy", *RANDOM)
    Path("a-mask.npy").rename(read)
    before = Path(read).read_bytes()
    done = invoke(capsys, "simulate", "--snapshot", "--mask", read, "--out", "m.npy", "--replace")
    assert_failed(done, 2, read, "would overwrite the input")
    assert Path(read).read_bytes() == before
