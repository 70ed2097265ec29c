"""`deploy run`: cubes of every format in, restored cubes out, with what their files say of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from runtime.bundle import load_bundle
from runtime.bundle_files import array_bytes
from runtime.files import read_cube, write_cube
from runtime.metrics import METRIC_SETS
from tests.contracts.bundles import WAVELENGTHS, known_bundle, swap
from tests.contracts.command import (
    assert_failed,
    assert_finite,
    assert_json_error,
    assert_plain,
    command_line,
    invoke,
    start,
)

Capsys = pytest.CaptureFixture[str]
MAP_INFO = "{UTM, 1, 1, 600000.0, 7400000.0, 2.5, 2.5, 17, South, WGS-84, units=Meters}"
FIELDS: dict[str, str | None] = {
    "description": "{a flight}",
    "wavelength units": "Nanometers",
    "wavelength": "{500, 600, 700}",
    "fwhm": "{5, 5, 6}",
    "map info": MAP_INFO,
    "sensor serial": "K-17",
}


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that gives cubes back as they are; it tells no scale. To be read."""
    return known_bundle(tmp_path_factory.mktemp("identity") / "bundle")


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that doubles, made for integers with a scale of 100. To be read."""
    return known_bundle(tmp_path_factory.mktemp("doubling") / "bundle", gain=2, scale=100)


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def numbers(
    low: int = 0, high: int = 5000, dtype: Any = np.int16, shape: tuple[int, ...] = (3, 20, 30)
) -> NDArray[Any]:
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def flight(cube: NDArray[Any], **more: str | None) -> Path:
    """An ENVI pair with everything that is to survive."""
    fields = {**FIELDS, **{name.replace("_", " "): text for name, text in more.items()}}
    return write_cube("scene.hdr", cube, fields=fields)


def restored(capsys: Capsys, *arguments: object) -> dict[str, Any]:
    done = invoke(capsys, "run", *arguments, "--json")
    assert done.code == 0, done.err
    assert_finite(done.json)
    return done.json


# ENVI


def test_integers_come_back_in_their_type_scale_and_place(capsys: Capsys, identity: Path) -> None:
    cube = numbers()
    flight(cube, reflectance_scale_factor="10000", data_ignore_value="-9999")
    told = restored(capsys, identity, "scene.hdr", "--out", "out.hdr")
    out = read_cube("out.hdr")
    assert out.cube.dtype == np.int16
    np.testing.assert_array_equal(out.cube, cube)
    assert (out.scale, out.ignore_value, out.wavelengths) == (10000, -9999, tuple(WAVELENGTHS))
    for name, text in FIELDS.items():
        if name not in ("wavelength", "wavelength units", "fwhm"):
            assert out.fields[name] == text
    assert out.fields["fwhm"].replace(" ", "") == "{5,5,6}"
    assert told["scale"] == 10000 and told["saturated"] == told["missing_pixels"] == 0 and told["warnings"] == []


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
def test_an_interleave_is_kept_unless_the_suffix_names_another(capsys: Capsys, identity: Path, interleave: str) -> None:
    write_cube(f"scene.{interleave}", numbers())
    restored(capsys, identity, f"scene.{interleave}", "--scale", 5000, "--out", "out.hdr")
    assert read_cube("out.hdr").fields["interleave"] == interleave
    restored(capsys, identity, f"scene.{interleave}", "--scale", 5000, "--out", "other.bsq")
    assert read_cube("other.hdr").fields["interleave"] == "bsq"
    np.testing.assert_array_equal(read_cube("other.bsq").cube, numbers())


def test_missing_pixels_stay_and_are_kept_from_the_network(capsys: Capsys, doubling: Path) -> None:
    cube = numbers(0, 40)
    cube[:, 3, 4] = cube[1, 10, 11] = -99
    flight(cube, data_ignore_value="-99")
    told = restored(capsys, doubling, "scene.hdr", "--out", "out.hdr")
    out = read_cube("out.hdr")
    missing = (cube == -99).any(axis=0)
    assert told["missing_pixels"] == 2 == missing.sum()
    np.testing.assert_array_equal(out.cube[:, missing], cube[:, missing])
    np.testing.assert_array_equal(out.cube[:, ~missing], 2 * cube[:, ~missing])
    assert out.ignore_value == -99
    # The mark is far below all data: had the network seen it, the metrics would tell.
    calm = np.where(missing, cube.mean(axis=(1, 2), where=~missing)[:, None, None], cube).astype(np.int16)
    write_cube("calm.hdr", calm)
    metrics = restored(capsys, doubling, "calm.hdr", "--out", "calm-out.hdr")["metrics"]
    assert told["metrics"]["gradient_std"] == pytest.approx(metrics["gradient_std"], rel=0.05)


def test_missing_pixels_stay_in_float32_too(capsys: Capsys, doubling: Path) -> None:
    cube = numbers(1, 40)
    cube[:, 3, 4] = 0
    flight(cube, data_ignore_value="0")
    restored(capsys, doubling, "scene.hdr", "--out", "out.hdr", "--output-type", "float32")
    out = read_cube("out.hdr")
    assert out.ignore_value == 0 and not out.cube[:, 3, 4].any()
    kept = (cube != 0).all(axis=0)
    np.testing.assert_allclose(out.cube[:, kept], cube[:, kept] / 50, rtol=1e-6)


def test_nan_can_mark_missing_pixels(capsys: Capsys, doubling: Path) -> None:
    cube = numbers(1, 40).astype(np.float32) / 50
    cube[:, 3, 4] = np.nan
    flight(cube, data_ignore_value="nan")
    told = restored(capsys, doubling, "scene.hdr", "--out", "out.hdr")
    out = read_cube("out.hdr").cube
    assert told["missing_pixels"] == 1 and np.isnan(out[:, 3, 4]).all() and np.isfinite(out).sum() == out.size - 3


def test_float32_asked_for_is_in_the_unit_range_without_a_scale(capsys: Capsys, identity: Path) -> None:
    cube = numbers()
    flight(cube, reflectance_scale_factor="10000")
    told = restored(capsys, identity, "scene.hdr", "--out", "out.hdr", "--output-type", "float32")
    out = read_cube("out.hdr")
    assert out.cube.dtype == np.float32 and out.scale is None and told["scale"] == 10000
    np.testing.assert_allclose(out.cube, cube / 10000, rtol=1e-6)
    assert out.fields["map info"] == MAP_INFO and out.wavelengths == tuple(WAVELENGTHS)


def test_floats_pass_as_they_are(capsys: Capsys, doubling: Path) -> None:
    cube = (np.random.default_rng(0).random((3, 20, 30)) - 0.5).astype(np.float64)
    flight(cube)
    told = restored(capsys, doubling, "scene.hdr", "--out", "out.hdr")
    out = read_cube("out.hdr")
    assert out.cube.dtype == np.float64 and told["scale"] is None
    np.testing.assert_allclose(out.cube, 2 * cube, atol=1e-6)


def test_nothing_is_clipped_unless_asked(capsys: Capsys, doubling: Path) -> None:
    cube = np.array([-0.25, 0.25, 0.75], np.float32)[:, None, None] * np.ones((3, 8, 16), np.float32)
    flight(cube)
    restored(capsys, doubling, "scene.hdr", "--out", "plain.hdr")
    restored(capsys, doubling, "scene.hdr", "--out", "clipped.hdr", "--clip")
    assert np.unique(read_cube("plain.hdr").cube).tolist() == [-0.5, 0.5, 1.5]
    assert np.unique(read_cube("clipped.hdr").cube).tolist() == [0, 0.5, 1]


def test_integers_are_clipped_to_the_scale(capsys: Capsys, doubling: Path) -> None:
    flight(np.array([-20, 20, 80], np.int16)[:, None, None] * np.ones((3, 8, 16), np.int16))
    restored(capsys, doubling, "scene.hdr", "--out", "plain.hdr")
    restored(capsys, doubling, "scene.hdr", "--out", "clipped.hdr", "--clip")
    restored(capsys, doubling, "scene.hdr", "--out", "unit.hdr", "--clip", "--output-type", "float32")
    assert np.unique(read_cube("plain.hdr").cube).tolist() == [-40, 40, 160]
    clipped = read_cube("clipped.hdr").cube
    assert clipped.dtype == np.int16 and np.unique(clipped).tolist() == [0, 40, 100]
    assert np.unique(read_cube("unit.hdr").cube).tolist() == [0, np.float32(0.4), 1]


def test_values_that_do_not_fit_are_counted_and_warned_of(capsys: Capsys, doubling: Path) -> None:
    cube = numbers(0, 256, np.uint8)
    flight(cube)
    done = invoke(capsys, "run", doubling, "scene.hdr", "--out", "out.hdr", "--json")
    count = int((cube >= 128).sum())
    assert done.json["saturated"] == count > 0
    scale, beyond, counted = done.json["warnings"]
    assert "values reach 2.55 where 1.0 is expected" in scale
    assert "many values come out far beyond the range" in beyond, "as a network's should not"
    assert counted == f"{count} values do not fit uint8 and were set to its limit"
    assert f"warning: {count} values do not fit uint8" in done.err
    np.testing.assert_array_equal(read_cube("out.hdr").cube, np.minimum(2 * cube.astype(int), 255))


# Scale


def test_the_flag_beats_the_file_which_beats_the_bundle(capsys: Capsys, doubling: Path, identity: Path) -> None:
    write_cube("bare.hdr", numbers(0, 300))
    flight(numbers(), reflectance_scale_factor="5000")
    for file, bundle, flag, expected, origin in (
        ("scene.hdr", doubling, (), 5000, "file"),
        ("bare.hdr", doubling, (), 100, "bundle"),
        ("scene.hdr", doubling, ("--scale", 4095), 4095, "flag"),
        ("bare.hdr", identity, ("--scale", "1e4"), 10000, "flag"),
    ):
        done = invoke(capsys, "run", bundle, file, *flag, "--out", "out.hdr", "--replace")
        assert done.code == 0 and f"{expected} stands for 1.0 (from the {origin})" in done.out
        told = restored(capsys, bundle, file, *flag, "--out", "out.hdr", "--replace")
        assert told["scale"] == expected


def test_integers_without_any_scale_are_refused(capsys: Capsys, identity: Path, tmp_path: Path) -> None:
    write_cube("bare.hdr", numbers())
    done = invoke(capsys, "run", identity, "bare.hdr", "--out", "out.hdr")
    assert_failed(done, 2, "bare.hdr", "needs a scale", "--scale 4095")
    assert not (tmp_path / "out.hdr").exists()


@pytest.mark.parametrize("scale", ["0", "-5", "nan", "inf"])
@pytest.mark.parametrize("more", [(), ("--output-type", "float32"), ("--clip",)])
def test_a_scale_that_is_no_scale_is_refused(capsys: Capsys, identity: Path, scale: str, more: tuple[str, ...]) -> None:
    write_cube("bare.hdr", numbers())
    done = invoke(capsys, "run", identity, "bare.hdr", "--out", "out.hdr", "--scale", scale, *more)
    assert_failed(done, 2, "--scale", "not a positive number")


def test_floats_come_back_in_the_scale_that_was_said(capsys: Capsys, identity: Path) -> None:
    cube = numbers().astype(np.float32)
    write_cube("bare.hdr", cube)
    done = invoke(capsys, "run", identity, "bare.hdr", "--out", "out.hdr")
    assert_failed(done, 2, "bare.hdr", "as they are", "--scale")
    told = restored(capsys, identity, "bare.hdr", "--out", "out.hdr", "--scale", 5000)
    assert told["scale"] == 5000 and told["doubts"] == []
    np.testing.assert_allclose(read_cube("out.hdr").cube, cube, rtol=1e-6)
    restored(capsys, identity, "bare.hdr", "--out", "unit.hdr", "--scale", 5000, "--output-type", "float32")
    np.testing.assert_allclose(read_cube("unit.hdr").cube, cube / 5000, rtol=1e-6)


# Other formats


@pytest.mark.parametrize("layout", ["lines,samples,bands", "bands,lines,samples", "samples,bands,lines"])
def test_arrays_are_read_and_written_as_the_layout_says(capsys: Capsys, doubling: Path, layout: str) -> None:
    cube = numbers().astype(np.float32) / 5000
    write_cube("scene.npy", cube, layout=layout)
    arguments = () if layout == "lines,samples,bands" else ("--layout", layout)
    restored(capsys, doubling, "scene.npy", *arguments, "--out", "out.npy")
    assert np.load("out.npy").shape == np.load("scene.npy").shape
    np.testing.assert_allclose(np.load("out.npy"), 2 * np.load("scene.npy"), rtol=1e-6)
    np.testing.assert_allclose(read_cube("out.npy", layout=layout).cube, 2 * cube, rtol=1e-6)


def test_npz_files_hand_their_wavelengths_on(capsys: Capsys, doubling: Path) -> None:
    cube = numbers(0, 40)
    np.savez("scene.npz", cube=cube.transpose(1, 2, 0), other=np.zeros(3), wavelength_nm=np.array(WAVELENGTHS))
    restored(capsys, doubling, "scene.npz", "--out", "out.hdr")
    out = read_cube("out.hdr")
    np.testing.assert_array_equal(out.cube, 2 * cube)
    assert out.wavelengths == tuple(WAVELENGTHS)


def test_mat_files_are_read_by_key(capsys: Capsys, doubling: Path) -> None:
    cube = numbers(0, 40)
    scipy.io.savemat("scene.mat", {"rad": cube.transpose(1, 2, 0), "other": cube.transpose(1, 2, 0) + 1})
    restored(capsys, doubling, "scene.mat", "--key", "rad", "--out", "out.npy")
    np.testing.assert_array_equal(np.load("out.npy"), 2 * cube.transpose(1, 2, 0))
    done = invoke(capsys, "run", doubling, "scene.mat", "--out", "again.npy")
    assert_failed(done, 2, "scene.mat", "rad", "other")
    scipy.io.savemat("scene.mat", {"hsi": {"Data": cube.transpose(1, 2, 0), "info": {"unit": "W"}}})
    restored(capsys, doubling, "scene.mat", "--key", "hsi.Data", "--out", "field.npy")
    np.testing.assert_array_equal(np.load("field.npy"), 2 * cube.transpose(1, 2, 0))
    done = invoke(capsys, "run", doubling, "scene.mat", "--out", "again.npy")
    assert_failed(done, 2, "scene.mat", f"hsi.Data ({'x'.join(map(str, cube.transpose(1, 2, 0).shape))} ")


# The network


def test_a_networks_cube_is_restored_as_the_library_does(capsys: Capsys, tiny_bundle: Path) -> None:
    cube = np.random.default_rng(0).random((31, 65, 64), np.float32)
    write_cube("scene.npy", cube)
    told = restored(capsys, tiny_bundle, "scene.npy", "--out", "out.npy")
    with load_bundle(tiny_bundle) as bundle:
        expected = bundle.restore(cube)
    np.testing.assert_array_equal(read_cube("out.npy").cube, expected.cube)
    assert list(told["metrics"]) == list(METRIC_SETS["paper6"])
    assert list(told["metrics"].values()) == expected.metrics.tolist()
    assert told["frames"] == 2 and told["precision"] == "fp32"
    assert len(told["experts"]) == 4 and sum(told["experts"]) == pytest.approx(1, abs=1e-5)


def test_more_bands_give_metrics_per_group(capsys: Capsys, identity: Path) -> None:
    cube = np.random.default_rng(0).random((5, 8, 16), np.float32)
    write_cube("scene.npy", cube)
    told = restored(capsys, identity, "scene.npy", "--out", "out.npy")
    assert all(len(values) == 2 for values in told["metrics"].values()) and told["frames"] == 2
    np.testing.assert_allclose(read_cube("out.npy").cube, cube, atol=1e-6)


def test_bands_far_from_those_of_training_are_warned_of(capsys: Capsys, doubling: Path) -> None:
    write_cube("far.hdr", numbers(0, 40), fields={"wavelength units": "nm", "wavelength": "{510, 640, 700}"})
    done = invoke(capsys, "run", doubling, "far.hdr", "--out", "out.hdr", "--json")
    assert done.code == 0 and "up to 40 nm" in done.json["warnings"][0] and "warning: " in done.err
    write_cube("near.hdr", numbers(0, 40), fields={"wavelength units": "nm", "wavelength": "{503, 600, 698}"})
    assert restored(capsys, doubling, "near.hdr", "--out", "near-out.hdr")["warnings"] == []


def test_people_are_told_what_ran(capsys: Capsys, doubling: Path) -> None:
    flight(numbers(0, 40))
    done = invoke(capsys, "run", doubling, "scene.hdr", "--out", "out.hdr", "--threads", 1)
    assert done.code == 0 and done.err == ""
    for part in ("onnxruntime", "CPU, 1 threads", "golden frame restored", "100 stands for 1.0", "wrote", "out.hdr"):
        assert part in done.out
    assert "golden" not in invoke(capsys, "run", doubling, "scene.hdr", "--out", "b.hdr", "--no-self-test").out


# As a process


def test_a_process_prints_one_object_and_nothing_else(tiny_bundle: Path, tmp_path: Path) -> None:
    cube = numbers(0, 10000, np.int16, (31, 40, 50))
    write_cube("scene.hdr", cube, fields={"reflectance scale factor": "10000", "map info": MAP_INFO})
    done = start("run", tiny_bundle, "scene.hdr", "--out", "out.hdr", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["out"] == "out.hdr" and done.json["frames"] == 1 and done.json["scale"] == 10000
    assert_finite(done.json)
    assert "self-test" in done.err and "\x1b" not in done.err
    out = read_cube("out.hdr")
    assert out.cube.shape == cube.shape and out.cube.dtype == np.int16 and out.fields["map info"] == MAP_INFO
    assert not np.array_equal(out.cube, cube)


def test_a_process_fails_with_the_exit_code_and_one_object(identity: Path, tmp_path: Path) -> None:
    write_cube("bare.hdr", numbers())
    done = start("run", identity, "bare.hdr", "--out", "out.hdr", "--json", cwd=tmp_path)
    error = assert_json_error(done, 2)
    assert error["file"] == "bare.hdr" and "scale" in error["key"] and "--scale" in error["remedy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_130_and_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    write_cube("scene.npy", np.zeros((31, 900, 900), np.float32))
    with subprocess.Popen(
        command_line("run", tiny_bundle, "scene.npy", "--out", "out.npy", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        # A shell's background job hands down an ignored SIGINT, which Python keeps ignoring.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout and process.stderr
        # The self-test is over and hundreds of frames are ahead.
        while "self-test" not in (line := process.stderr.readline()):
            assert line, "it ended too early"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "deploy: interrupted" and "Traceback" not in err
    assert '"code": 130' in out and out.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["scene.npy"]


# What goes wrong


def damaged(bundle: Path, to: Path) -> Path:
    copy = shutil.copytree(bundle, to)
    with (copy / "graphs" / "fp32.onnx").open("r+b") as file:
        file.seek(40)
        file.write(b"\xff")
    return Path(copy)


def test_wrong_input_is_told_in_one_line_and_nothing_is_written(
    capsys: Capsys, identity: Path, doubling: Path, tmp_path: Path
) -> None:
    flight(numbers(0, 40))
    write_cube("two.npy", np.zeros((2, 8, 16), np.float32))
    holes = numbers(0, 40).astype(np.float32) / 50
    holes[1, 2, 3] = np.nan
    write_cube("holes.npy", holes)
    write_cube("lost.hdr", np.zeros((3, 8, 16), np.float32), fields={"data ignore value": "0"})
    np.save("flat.npy", np.zeros((8, 16), np.float32))
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty").mkdir()
    broken = damaged(doubling, tmp_path / "broken")
    before = sorted(path.name for path in tmp_path.iterdir())
    good = (doubling, "scene.hdr", "--out", "out.hdr")
    cases: list[tuple[tuple[object, ...], tuple[str, ...]]] = [
        ((doubling, "nothing.hdr", "--out", "out.hdr"), ("nothing.hdr", "no such file", "check the path")),
        (("nothing", "scene.hdr", "--out", "out.hdr"), ("nothing", "no such bundle", "deploy build")),
        (("empty", "scene.hdr", "--out", "out.hdr"), ("empty", "manifest.json", "deploy build")),
        (("scene.hdr", "scene.hdr", "--out", "out.hdr"), ("no such bundle",)),
        ((broken, "scene.hdr", "--out", "out.hdr"), ("graphs/fp32.onnx", "SHA-256 differs", "again")),
        ((doubling, "two.npy", "--out", "out.hdr"), ("bands", "fewer bands", "at least")),
        ((identity, "holes.npy", "--out", "out.hdr"), ("not finite", "--ignore-value nan")),
        ((identity, "lost.hdr", "--out", "out.hdr"), ("every pixel is marked as missing",)),
        ((doubling, "flat.npy", "--out", "out.hdr"), ("flat.npy", "three axes")),
        ((doubling, "text.npy", "--out", "out.hdr"), ("text.npy",)),
        ((doubling, "empty", "--out", "out.hdr"), ("empty",)),
        ((doubling, "scene.hdr", "--out", "out.tif"), ("out.tif", ".hdr", ".npy")),
        ((doubling, "scene.hdr", "--out", "no/out.hdr"), ("no such folder", "make the folder first")),
        ((doubling, "scene.hdr", "--out", "empty"), ("empty",)),
        ((doubling, "scene.hdr"), ("Missing option '--out'", "deploy run --help")),
        ((doubling,), ("Missing argument", "CUBE")),
        ((*good, "--layout", "lines,lines,bands"), ("layout", "order of the three axes")),
        ((*good, "--key", "rad"), ("key", "leave the key out")),
        ((*good, "--threads", 0), ("--threads",)),
        ((*good, "--output-type", "float16"), ("--output-type", "float32")),
        ((*good, "--scale", "many"), ("--scale", "many")),
        ((*good, "--gain", 2), ("--gain",)),
    ]
    for arguments, parts in cases:
        assert_failed(invoke(capsys, "run", *arguments), 2, *parts)
        assert_json_error(invoke(capsys, "run", *arguments, "--json"), 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == before, arguments


def test_an_older_result_is_replaced_only_when_asked(capsys: Capsys, doubling: Path, tmp_path: Path) -> None:
    flight(numbers(0, 40))
    for taken in ("out.hdr", "out.img"):
        (tmp_path / taken).write_text("mine")
        done = invoke(capsys, "run", doubling, "scene.hdr", "--out", "out.hdr")
        assert_failed(done, 2, taken, "exists already", "--replace")
        assert (tmp_path / taken).read_text() == "mine"
        (tmp_path / taken).unlink()
    for _ in range(2):
        restored(capsys, doubling, "scene.hdr", "--out", "out.hdr", "--replace")
    np.testing.assert_array_equal(read_cube("out.hdr").cube, 2 * numbers(0, 40))


@pytest.mark.parametrize("name", ["scene.hdr", "scene.img"])
def test_the_input_is_never_overwritten(capsys: Capsys, doubling: Path, tmp_path: Path, name: str) -> None:
    flight(numbers(0, 40))
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = invoke(capsys, "run", doubling, "scene.hdr", "--out", name, "--replace")
    assert_failed(done, 2, "would overwrite the input file")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_a_machine_that_restores_otherwise_is_told_with_exit_1(capsys: Capsys, doubling: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(doubling, tmp_path / "other"))
    swap(other, "golden/restored.npy", array_bytes(np.load(other / "golden/restored.npy") * np.float32(1.01)))
    flight(numbers(0, 40))
    done = invoke(capsys, "run", other, "scene.hdr", "--out", "out.hdr", "--json")
    assert assert_json_error(done, 1)["kind"] == "GateError"
    assert not (tmp_path / "out.hdr").exists()
    assert invoke(capsys, "run", other, "scene.hdr", "--out", "out.hdr", "--no-self-test").code == 0


@pytest.mark.parametrize(
    "name", ["evil\x1b[31m", "two\nlines", "[bold]red", "a:skull:b", "left\u202eright", "bad\udcff"]
)
def test_names_of_files_reach_the_terminal_harmless(capsys: Capsys, doubling: Path, tmp_path: Path, name: str) -> None:
    write_cube(f"{name}.npy", numbers(0, 40))
    done = invoke(capsys, "run", doubling, f"{name}.npy", "--out", f"{name}-out.npy")
    assert done.code == 0 and done.out.splitlines()[-1].startswith("wrote ")
    if name.isprintable():
        assert f"{name}-out.npy" in done.out
    done = invoke(capsys, "run", doubling, f"{name}.npy", "--out", f"{name}-out.npy")
    assert_failed(done, 2, "exists already")
    assert (tmp_path / f"{name}-out.npy").is_file()


def test_text_of_a_header_reaches_the_terminal_harmless(capsys: Capsys, doubling: Path, tmp_path: Path) -> None:
    flight(numbers(0, 40))
    header = (tmp_path / "scene.hdr").read_text()
    for bad in ("wavelength = {\x1b]0,owned\x07, 2}", "interleave = \x1b[2Jbil", "data type = \x9b31m"):
        key = bad.partition(" =")[0]
        lines = [bad if line.startswith(f"{key} =") else line for line in header.splitlines()]
        assert bad in lines
        (tmp_path / "scene.hdr").write_text("\n".join(lines) + "\n")
        done = invoke(capsys, "run", doubling, "scene.hdr", "--out", f"{key}.hdr")
        if key == "wavelength":
            assert done.code == 0 and "entry 1 is not a finite number" in done.err
        else:
            assert_failed(done, 2, "scene.hdr")
        assert_plain(done)
