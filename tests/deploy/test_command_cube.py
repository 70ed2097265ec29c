"""What the commands say of a cube's numbers: `deploy inspect CUBE`, `run`, and their `doubts`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import spectral

from runtime.files import read_cube, write_cube
from tests.contracts.bundles import known_bundle
from tests.contracts.command import assert_failed, invoke

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return known_bundle(tmp_path_factory.mktemp("doubling") / "bundle", gain=2, scale=10000)


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def scene(bands: int = 31, dtype: Any = np.int16) -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :20]
    cube = 0.25 + 0.1 * np.sin(x / 5) * np.cos(y / 7) + rng.normal(0, 0.01, (bands, 24, 20))
    return np.rint(cube * 10000).astype(dtype) if np.dtype(dtype).kind in "iu" else cube.astype(dtype)


def test_a_cube_without_doubt_is_shown_on_one_screen(capsys: Capsys) -> None:
    cube = scene(200)
    cube[:, :2] = -9999
    cube[50:53] = -9999
    centres = ", ".join(f"{400 + 5 * band}" for band in range(200))
    fields = {"data ignore value": "-9999", "reflectance scale factor": "10000", "wavelength units": "nm"}
    write_cube("scene.hdr", cube, fields={**fields, "wavelength": f"{{{centres}}}"})
    done = invoke(capsys, "inspect", "scene.hdr")
    assert done.code == 0 and len(done.out.splitlines()) <= 30
    for part in (
        "200 bands x 24 lines x 20 samples", "400 to 1395 nm", "10000 stands for 1.0 (from the file)", "-9999",
        "40 pixels", "bands 51 to 53",
    ):  # fmt: skip
        assert part in done.out
    told = invoke(capsys, "inspect", "scene.hdr", "--json").json
    assert told["doubts"] == [] and told["missing_pixels"] == 40 and list(told["bad_bands"]) == ["51", "52", "53"]
    assert told["bands"][50] == {"band": 51, "min": None, "max": None, "missing": 1.0}
    assert told["bands"][0] == {
        "band": 1,
        "min": float(cube[0, 2:].min()),
        "max": float(cube[0].max()),
        "missing": 0.083333,
    }


def test_a_cube_with_a_doubt_ends_with_1_and_all_that_is_known(capsys: Capsys) -> None:
    cube = scene()
    cube[:, :, :3] = -9999
    write_cube("scene.hdr", cube)
    done = invoke(capsys, "inspect", "scene.hdr", "--json")
    assert done.code == 1 and len(done.json["doubts"]) == 1 and "72 pixels hold -9999" in done.json["doubts"][0]
    assert done.json["error"]["code"] == 1 and len(done.json["bands"]) == 31
    assert invoke(capsys, "inspect", "scene.hdr", "--ignore-value", "-9999").code == 0
    assert invoke(capsys, "inspect", "scene.hdr", "--ignore-value", "none").code == 0


def test_what_cannot_be_restored_is_shown_all_the_same(capsys: Capsys) -> None:
    np.save("scene.npy", (scene(dtype="f4") * 100).transpose(1, 2, 0))
    done = invoke(capsys, "inspect", "scene.npy", "--json")
    assert done.code == 1 and "--scale" in done.json["doubts"][0] and done.json["bands"][0]["max"] > 20
    assert invoke(capsys, "inspect", "scene.npy", "--scale", 100).code == 0
    assert_failed(invoke(capsys, "inspect", "lost.npy"), 2, "no such file")


def test_run_lists_its_doubts_and_bad_bands(capsys: Capsys, doubling: Path) -> None:
    cube = scene()
    cube[:, :, :3] = -9999
    cube[4] = 0
    write_cube("scene.hdr", cube)
    done = invoke(capsys, "run", doubling, "scene.hdr", "--out", "out.hdr", "--json")
    assert done.code == 0 and len(done.json["doubts"]) == 2 and list(done.json["bad_bands"]) == ["5"]
    assert set(done.json["doubts"]) <= set(done.json["warnings"])
    expected = 2 * cube
    expected[:, :, :3] = -9999
    expected[4] = cube[4]
    np.testing.assert_array_equal(read_cube("out.hdr").cube, expected)
    flags = ("--ignore-value", "-9999", "--constant-bands", "restore", "--json")
    again = invoke(capsys, "run", doubling, "scene.hdr", "--out", "o.hdr", *flags)
    assert again.json["doubts"] == [] and again.json["bad_bands"] == {}
    assert_failed(
        invoke(capsys, "run", doubling, "scene.hdr", "--out", "p.hdr", "--ignore-value", "x"), 2, "--ignore-value"
    )


@pytest.mark.parametrize(("dtype", "wider"), [("f2", "f4"), ("i1", "i2")])
def test_a_type_that_the_output_lacks_is_widened_and_told(
    capsys: Capsys, doubling: Path, dtype: str, wider: str
) -> None:
    cube = scene(3, "f4") if dtype == "f2" else np.rint(scene(3, "f4") * 100)
    np.save("scene.npy", cube.astype(dtype).transpose(1, 2, 0))
    scale = () if dtype == "f2" else ("--scale", 100)
    done = invoke(capsys, "run", doubling, "scene.npy", "--out", "out.hdr", *scale, "--json")
    assert done.code == 0 and read_cube("out.hdr").cube.dtype == np.dtype(wider)
    assert any(f"{np.dtype(wider)} is written" in told for told in done.json["warnings"])


def test_memory_and_disk_are_counted_before_anything_is_restored(
    capsys: Capsys, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cube("scene.hdr", scene())
    arguments = ("run", doubling, "scene.hdr", "--out", "out.hdr")
    with monkeypatch.context() as patch:
        patch.setattr("deploy.commands.run_cube.available_memory", lambda: 1 << 20)
        assert_failed(invoke(capsys, *arguments), 3, "memory", "GiB", "--metrics frame")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    assert_failed(invoke(capsys, *arguments), 3, "out.hdr", "--out", "free there")


GAINS = [0.5e-4, 1e-4, 1.5e-4]


@pytest.mark.parametrize("output", ["input", "float32"])
@pytest.mark.parametrize("meant", ["factor", "gains", "gains and offsets"])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_other_readers_see_the_values_that_were_written(
    capsys: Capsys, doubling: Path, dtype: str, meant: str, output: str
) -> None:
    truth = scene(3, "f8")
    offsets = [0.01, -0.02, 0.03] if "offsets" in meant else [0.0] * 3
    gains = [1e-4] * 3 if meant == "factor" else GAINS
    cube = np.rint((truth - np.array(offsets)[:, None, None]) / np.array(gains)[:, None, None]).astype(dtype)
    fields = {"data gain values": f"{{{', '.join(map(repr, gains))}}}"}
    fields |= {"data offset values": f"{{{', '.join(map(repr, offsets))}}}"} if "offsets" in meant else {}
    write_cube("scene.hdr", cube, fields={"reflectance scale factor": "10000"} if meant == "factor" else fields)
    assert invoke(capsys, "run", doubling, "scene.hdr", "--out", "out.hdr", "--output-type", output).code == 0
    with rasterio.open("out.img") as image:
        seen = image.read() * np.array(image.scales)[:, None, None] + np.array(image.offsets)[:, None, None]
    opened = spectral.open_image("out.hdr")
    other = np.asarray(opened.load()).transpose(2, 0, 1)
    if meant != "factor" or output == "float32":
        np.testing.assert_allclose(seen, 2 * truth, atol=5e-4)
    # Spectral Python divides by the factor, and leaves gains aside.
    if meant == "factor" or output == "float32":
        np.testing.assert_allclose(other, 2 * truth, atol=5e-4)


def test_what_was_said_and_seen_stands_in_the_header_of_what_comes_out(capsys: Capsys, doubling: Path) -> None:
    cube = scene(3)
    cube[:, :2] = -9999
    write_cube("scene.hdr", cube, fields={"reflectance scale factor": "123"})
    done = invoke(capsys, "run", doubling, "scene.hdr", "--out", "out.hdr", "--scale", 10000, "--ignore-value", "-9999")
    assert done.code == 0 and "(from the flag)" in done.out and "40 pixels are missing" in done.out
    made = read_cube("out.hdr")
    assert made.scale == 10000 and made.ignore_value == -9999
    # It is understood without a flag, and gives itself back.
    assert invoke(capsys, "inspect", "out.hdr").code == 0
    write_cube("wrong.hdr", cube, fields={"data ignore value": "-9998"})
    assert invoke(capsys, "run", doubling, "wrong.hdr", "--out", "mended.hdr").code == 0
    found = read_cube("mended.hdr")
    assert (found.cube[:, :2] == -9999).all() and found.ignore_value in (-9998, -9999)
    write_cube("floats.hdr", scene(3, "f4"), fields={"reflectance scale factor": "10000"})
    assert invoke(capsys, "run", doubling, "floats.hdr", "--out", "unit.hdr", "--scale", 1).code == 0
    assert read_cube("unit.hdr").scale is None


def test_every_doubt_names_a_flag_that_ends_it(capsys: Capsys) -> None:
    constant, border, clipped = scene(), scene(), scene()
    constant[4] = 0
    border[:, :2] = -9999
    clipped[7] = np.minimum(clipped[7], 2400)
    for name, cube, flags in (
        ("constant", constant, ("--constant-bands", "leave")), ("border", border, ("--ignore-value", "-9999")),
    ):  # fmt: skip
        write_cube(f"{name}.hdr", cube)
        doubted = invoke(capsys, "inspect", f"{name}.hdr", "--json")
        assert doubted.code == 1 and all(flags[0] in doubt for doubt in doubted.json["doubts"])
        assert invoke(capsys, "inspect", f"{name}.hdr", *flags).code == 0
    write_cube("clipped.hdr", clipped)
    done = invoke(capsys, "inspect", "clipped.hdr", "--json")
    assert done.code == 1 and "band 8 holds its largest value" in done.json["doubts"][0]
    # One that was said and is nowhere is told.
    done = invoke(capsys, "inspect", "border.hdr", "--ignore-value", "-7", "--json")
    assert any("no value is the -7" in doubt for doubt in done.json["doubts"])


def test_a_rounded_lowest_float_is_a_mark_without_noise(capsys: Capsys) -> None:
    cube = scene(5, "f4")
    cube[:, :2] = np.finfo(np.float32).min
    write_cube("scene.hdr", cube, fields={"data ignore value": "-3.40282e+38"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = invoke(capsys, "inspect", "scene.hdr", "--ignore-value", "-3.40282e+38", "--json")
    assert done.code == 0 and done.json["missing_pixels"] == 40


def test_a_cube_is_judged_for_a_bundle(capsys: Capsys, doubling: Path) -> None:
    dim = np.rint(scene() * 0.02).astype(np.int16)
    write_cube("dim.hdr", dim)
    assert invoke(capsys, "inspect", "dim.hdr").code == 0
    done = invoke(capsys, "inspect", "dim.hdr", "--bundle", doubling, "--json")
    assert done.code == 1 and "of the bundle's scale" in done.json["doubts"][0]
    write_cube("few.hdr", scene()[:2])
    assert "fewer bands than the network" in invoke(capsys, "inspect", "few.hdr", "--bundle", doubling).err
    np.save("first.npy", scene(dtype="f4"))
    told = invoke(capsys, "inspect", "first.npy", "--bundle", doubling)
    assert told.code == 1 and "say --layout" in told.err
    flags = ("--bundle", doubling, "--layout", "bands,lines,samples")
    assert invoke(capsys, "inspect", "first.npy", *flags).code == 0


def test_files_of_other_programs_are_named_with_what_reads_them(capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "scene.cdf").write_bytes(b"CDF\1" + bytes(100))
    assert_failed(invoke(capsys, "inspect", "scene.cdf"), 2, "scene.cdf", "python -c")


def test_a_stream_takes_what_deploy_yaml_says_is_missing(capsys: Capsys, doubling: Path, tmp_path: Path) -> None:
    cube = scene()
    cube[:, 2:5, :3] = 0
    cube[4] = 77
    write_cube("scene.bil", cube)
    (tmp_path / "deploy.yaml").write_text("input: {ignore_value: [0]}")
    stream = ("stream", doubling, "--source", "envi:scene.bil", "--config", "deploy.yaml", "--json")
    done = invoke(capsys, *stream, "--restored", "one")
    assert done.code == 0 and any("--constant-bands leave" in doubt for doubt in done.json["doubts"])
    found = read_cube("one/restored.hdr")
    assert found.ignore_value == 0 and (np.delete(found.cube, 4, axis=0)[:, 2:5, :3] == 0).all()
    assert (found.cube[4] == 77).all()
    done = invoke(capsys, *stream, "--restored", "two", "--constant-bands", "restore")
    assert done.code == 0 and done.json["doubts"] == []
    assert (read_cube("two/restored.hdr").cube[4, 10:] == 154).all()


def test_bands_that_were_left_out_are_bad_in_what_is_written(capsys: Capsys, doubling: Path) -> None:
    cube = scene()
    cube[4] = 77
    write_cube("scene.hdr", cube)
    assert invoke(capsys, "run", doubling, "scene.hdr", "--out", "out.hdr", "--constant-bands", "leave").code == 0
    assert read_cube("out.hdr").stated.bad == (4,)
    assert invoke(capsys, "inspect", "out.hdr").code == 0
