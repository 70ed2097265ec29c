"""`deploy run` and `deploy inspect` on photographs: what comes in, what comes out, and what is refused before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from runtime.files import read_cube, write_cube
from tests.contracts.command import assert_failed, assert_json_error, invoke

Capsys = pytest.CaptureFixture[str]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def photograph(name: str, bands: int = 3, **options: Any) -> NDArray[np.uint8]:
    """Save one of 20 lines x 30 samples; [lines, samples, bands], dark but for its transparency."""
    array = np.random.default_rng(0).integers(0, 120, (20, 30, bands)).astype(np.uint8)
    Image.fromarray(array if bands > 1 else array[..., 0]).save(name, **options)
    return array


def restored(capsys: Capsys, *arguments: object) -> dict[str, Any]:
    done = invoke(capsys, "run", *arguments, "--json")
    assert done.code == 0, done.err
    return done.json


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_photograph_comes_back_as_one(capsys: Capsys, doubling: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[274] = 8
    array = photograph("photo.png", 4, exif=exif)
    told = restored(capsys, doubling, "photo.png", "--out", f"out{suffix}")
    assert told["scale"] == 255 and not told["doubts"] and not told["warnings"] and not told["saturated"]
    with Image.open(f"out{suffix}") as out:
        assert out.getexif()[274] == 8
        stored = tifffile.imread("out.tif") if suffix == ".tif" else np.asarray(out)
    np.testing.assert_array_equal(stored[..., :3], 2 * array[..., :3])
    np.testing.assert_array_equal(stored[..., 3], array[..., 3])


def test_the_network_sees_it_upright(capsys: Capsys, doubling: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    photograph("photo.png", exif=exif)
    restored(capsys, doubling, "photo.png", "--out", "out.hdr")
    out = read_cube("out.hdr")
    upright = np.asarray(ImageOps.exif_transpose(Image.open("photo.png")))
    np.testing.assert_array_equal(out.cube, 2 * np.moveaxis(upright, 2, 0))
    assert out.scale == 255


def test_grey_floats_and_bright_skies(capsys: Capsys, doubling: Path) -> None:
    array = photograph("grey.jpg", 1, quality=100)
    restored(capsys, doubling, "grey.jpg", "--out", "grey.png")
    with Image.open("grey.png") as out:
        assert out.mode == "L" and np.abs(np.asarray(out) - 2.0 * array[..., 0]).max() < 8
    restored(capsys, doubling, "grey.png", "--out", "unit.tif", "--output-type", "float32", "--scale", "100")
    np.testing.assert_allclose(tifffile.imread("unit.tif"), np.asarray(Image.open("grey.png")) / 50, rtol=1e-5)
    sky = np.full((20, 30, 3), 255, np.uint8)
    sky[15:, :, 1] = 0
    Image.fromarray(sky).save("sky.png")
    told = restored(capsys, doubling, "sky.png", "--out", "sky.tif")
    assert told["saturated"] == np.count_nonzero(sky)
    assert all("far beyond the range" in warning for warning in told["warnings"])


def test_an_envi_cube_becomes_a_picture(capsys: Capsys, doubling: Path) -> None:
    cube = np.random.default_rng(0).integers(0, 30_000, (3, 20, 30)).astype(np.uint16)
    write_cube("scene.hdr", cube, fields={"reflectance scale factor": "65535"})
    restored(capsys, doubling, "scene.hdr", "--out", "out.png")
    np.testing.assert_array_equal(read_cube("out.png").cube, 2 * cube)
    write_cube("signed.hdr", cube.astype(np.int16), fields={"reflectance scale factor": "30000"})
    restored(capsys, doubling, "signed.hdr", "--out", "unit.tif", "--output-type", "float32")
    np.testing.assert_allclose(tifffile.imread("unit.tif"), np.moveaxis(cube / 15_000, 0, 2), rtol=1e-5)
    done = invoke(capsys, "run", doubling, "signed.hdr", "--out", "signed.png")
    assert_failed(done, 2, "signed.png, type: holds uint8 and uint16 only", "int16", "--output-type float32")
    assert "restored" not in done.out


@pytest.mark.parametrize(
    ("out", "more", "parts"),
    [
        ("out.jpg", [], ("JPEG would lose", ".png or .tif")),
        ("out.png", ["--output-type", "float32"], ("uint8 and uint16 only", "use a .tif file")),
        ("photo.png", ["--replace"], ("would overwrite the input",)),
    ],
)
def test_refused_before_anything_is_restored(
    capsys: Capsys, doubling: Path, out: str, more: list[str], parts: tuple[str, ...]
) -> None:
    photograph("photo.png")
    before = sorted(Path().iterdir())
    done = invoke(capsys, "run", doubling, "photo.png", "--out", out, *more)
    assert_failed(done, 2, *parts)
    assert "self-test" not in done.out and sorted(Path().iterdir()) == before


def test_cubes_of_more_bands_are_no_pictures(capsys: Capsys, doubling: Path) -> None:
    write_cube("scene.hdr", np.zeros((5, 20, 30), np.uint8), fields={"reflectance scale factor": "255"})
    assert_failed(
        invoke(capsys, "run", doubling, "scene.hdr", "--out", "out.png"), 2, "1 or 3 bands", "use .hdr or .npy"
    )


def test_what_is_left_behind_is_told(capsys: Capsys, doubling: Path) -> None:
    photograph("photo.png", 4)
    told = restored(capsys, doubling, "photo.png", "--out", "out.npy")
    assert told["warnings"] == [".npy does not hold the transparency of photo.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_damaged_photographs_are_one_line(capsys: Capsys, doubling: Path, suffix: str) -> None:
    photograph(f"photo{suffix}")
    path = Path(f"photo{suffix}")
    path.write_bytes(path.read_bytes()[:-100])
    for command in (("run", doubling, path, "--out", "out.png"), ("inspect", path)):
        assert_json_error(invoke(capsys, *command, "--json"), 2)
    assert not Path("out.png").exists()


def test_inspect_tells_what_a_photograph_holds(capsys: Capsys) -> None:
    exif = Image.Exif()
    exif[274] = 6
    photograph("photo.jpg", exif=exif)
    done = invoke(capsys, "inspect", "photo.jpg")
    assert done.code == 0
    for part in ("3 bands x 30 lines x 20 samples, uint8, photograph", "JPEG, turned upright by orientation 6, EXIF"):
        assert part in done.out
    Path("photo.jpg").rename("photo.jfif")
    told = invoke(capsys, "inspect", "photo.jfif", "--json").json
    assert told["format"] == "photograph" and told["scale"] == 255 and not told["doubts"]


def test_without_the_extra(capsys: Capsys, doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph("photo.png")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    done = invoke(capsys, "run", doubling, "photo.png", "--out", "out.png")
    assert_failed(done, 3, "pyvips is not installed", 'pip install "damp-deploy[photographs]"')
    # What is written needs nothing.
    write_cube("scene.hdr", np.zeros((3, 20, 30), np.uint8), fields={"reflectance scale factor": "255"})
    restored(capsys, doubling, "scene.hdr", "--out", "out.png")
