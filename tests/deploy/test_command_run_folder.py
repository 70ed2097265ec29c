"""`deploy run` on folders of photographs, and on chosen bands of cubes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.commands import run_folder
from runtime.files import read_cube, write_cube
from tests.contracts.bundles import known_bundle, reseal
from tests.contracts.command import assert_failed, assert_json_error, invoke

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Three in the folder `in`, beside what is none; name -> [lines, samples, 3]."""
    monkeypatch.chdir(tmp_path)
    Path("in/deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 120, (20, 30, 3)).astype(np.uint8) for name in ("a.png", "b.JPG", "c.tif")}
    for name, array in arrays.items():
        Image.fromarray(array).save(f"in/{name}", **({"quality": 100} if "JPG" in name else {}))
    Path("in/notes.txt").write_text("none")
    Path("in/.a.png").write_bytes(b"half")
    Path("in/deeper/d.png").write_bytes(b"none")
    return arrays


def done(capsys: Capsys, *arguments: object) -> dict[str, Any]:
    ended = invoke(capsys, "run", *arguments, "--json")
    assert ended.code == 0, ended.err
    return ended.json


def test_each_photograph_is_restored_into_the_other_folder(
    capsys: Capsys, doubling: Path, photographs: dict[str, np.ndarray]
) -> None:
    told = done(capsys, doubling, "in", "--out", "out")
    assert (told["pictures"], told["restored"], told["skipped"], told["failed"]) == (3, 3, 0, {})
    assert sorted(path.name for path in Path("out").iterdir()) == [".restored-by", "a.png", "b.png", "c.tif"]
    for name in ("a.png", "c.tif"):
        np.testing.assert_array_equal(np.asarray(Image.open(f"out/{name}")), 2 * photographs[name])


def test_pictures_of_other_formats_are_told(capsys: Capsys, doubling: Path) -> None:
    for name in ("real.HEIC", "raw.dng", "notes.txt"):
        Path("in", name).write_bytes(b"something")
    ended = invoke(capsys, "run", doubling, "in", "--out", "out")
    assert ended.code == 0 and "2 pictures of other formats left out, first raw.dng: save as one of .png" in ended.err


def test_what_is_there_and_whole_is_left(capsys: Capsys, doubling: Path) -> None:
    done(capsys, doubling, "in", "--out", "out")
    before = Path("out/b.png").stat().st_ino
    Path("out/a.png").unlink()
    Path("out/c.tif").write_bytes(Path("out/c.tif").read_bytes()[:100])
    again = invoke(capsys, "run", doubling, "in", "--out", "out")
    assert again.code == 0 and "skipped     1 that are in out already; --replace" in again.out
    assert "c.tif" in again.err and "it is restored again" in again.err
    assert Path("out/b.png").stat().st_ino == before and read_cube("out/c.tif").cube.shape == (3, 20, 30)
    assert done(capsys, doubling, "in", "--out", "out", "--replace")["restored"] == 3


def test_one_that_cannot_be_read_is_told_and_the_rest_goes_on(capsys: Capsys, doubling: Path) -> None:
    Path("in/a.png").write_bytes(Path("in/a.png").read_bytes()[:-100])
    Path("in/b.JPG").write_bytes(b"no photograph")
    ended = invoke(capsys, "run", doubling, "in", "--out", "out", "--json")
    assert assert_json_error(ended, 2)["message"] == "2 of 3 photographs were not restored: a.png, b.JPG"
    assert ended.json["restored"] == 1 and list(ended.json["failed"]) == ["a.png", "b.JPG"]
    assert "in/a.png: is a PNG file that is damaged or cut short" in ended.err and Path("out/c.tif").exists()


def test_links_that_lead_nowhere_are_told(capsys: Capsys, doubling: Path) -> None:
    Path("in/d.png").symlink_to("nowhere.png")
    Path("in/e.png").mkdir()
    ended = invoke(capsys, "run", doubling, "in", "--out", "out", "--json")
    assert assert_json_error(ended, 2)["message"] == "1 of 4 photographs were not restored: d.png"
    assert "in/d.png: no such file" in ended.json["failed"]["d.png"] and ended.json["restored"] == 3


def test_one_that_is_too_large_is_no_reason_to_end(
    capsys: Capsys, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 64)).save("in/a.png")
    monkeypatch.setattr("deploy.commands.run_cube.ENGINE_BYTES", 0)
    monkeypatch.setattr("deploy.commands.run_cube.available_memory", lambda: 64 * 64 * 3 * 10)
    ended = invoke(capsys, "run", doubling, "in", "--out", "out", "--json")
    assert_failed(ended, 2, "1 of 3")
    assert "GiB of memory" in ended.json["failed"]["a.png"]


def test_an_interrupted_run_goes_on(capsys: Capsys, doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = run_folder.write

    def interrupted(*arguments: Any) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write", interrupted)
        ended = invoke(capsys, "run", doubling, "in", "--out", "out")
    assert ended.code == 130 and "of 3 are left; the same command goes on with them" in ended.err
    told = done(capsys, doubling, "in", "--out", "out")
    assert (told["restored"], told["skipped"]) == (2, 1)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["in", "--out", "in"], ("is the folder of the photographs itself",)),
        (["empty", "--out", "out"], ("holds no photographs", ".jpg")),
        (["in", "--out", "in/a.png"], ("in/a.png: cannot be used: File exists",)),
        (["twins", "--out", "out"], ("a.jpg and a.png would both become a.png", "rename one")),
        (["in", "--out", "out", "--bands", "0"], ("--bands: is of one cube or photograph, not of a folder",)),
        (["in", "--out", "out", "--output-type", "float32"], ("--output-type",)),
    ],
)
def test_refused_before_anything_is_restored(
    capsys: Capsys, doubling: Path, more: list[str], parts: tuple[str, ...]
) -> None:
    Path("empty").mkdir()
    Path("twins").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (9, 9)).save(f"twins/{name}")
    ended = invoke(capsys, "run", doubling, *more)
    assert_failed(ended, 2, *parts)
    assert "self-test" not in ended.out


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for an RGB network, which restores no groups."""
    bundle = known_bundle(tmp_path_factory.mktemp("colours") / "bundle", gain=2)
    reseal(bundle, lambda content: content["signature"].update(band_groups=False))
    return bundle


def test_named_bands_are_restored_and_written(capsys: Capsys, colours: Path) -> None:
    cube = np.random.default_rng(0).integers(0, 120, (6, 20, 30)).astype(np.uint8)
    fields = {"reflectance scale factor": "255", "wavelength units": "Nanometers", "default bands": "{1, 2, 3}"}
    fields |= {"wavelength": "{400, 500, 600, 700, 800, 900}", "band names": "{a, b, c, d, e, f}"}
    write_cube("scene.hdr", cube, fields=fields)
    refused = invoke(capsys, "run", colours, "scene.hdr", "--out", "out.hdr")
    assert_failed(refused, 2, "scene.hdr, bands: the cube has more bands", "found 6", "--bands names them")
    told = done(capsys, colours, "scene.hdr", "--out", "out.hdr", "--bands", "4, 0,2")
    out = read_cube("out.hdr")
    np.testing.assert_array_equal(out.cube, 2 * cube[[4, 0, 2]])
    assert told["bands"] == [4, 0, 2] and out.wavelengths == (800, 400, 600)
    assert out.fields["band names"] == "{e, a, c}" and "default bands" not in out.fields
    # As a picture, and of formats that say nothing of their bands.
    done(capsys, colours, "scene.hdr", "--out", "out.png", "--bands", "4,0,2")
    np.testing.assert_array_equal(read_cube("out.png").cube, out.cube)
    np.save("scene.npy", cube.transpose(1, 2, 0))
    done(capsys, colours, "scene.npy", "--out", "out.npy", "--scale", "255", "--bands", "5,1,0")
    np.testing.assert_array_equal(np.load("out.npy"), 2 * cube[[5, 1, 0]].transpose(1, 2, 0))


def test_bad_bands_and_gains_go_with_their_bands(tmp_path: Path) -> None:
    from runtime.files.taking import taking

    write_cube("scene.hdr", np.ones((4, 8, 8), np.float32), fields={"bbl": "{1, 0, 1, 0}"})
    source = read_cube("scene.hdr")
    source = replace(source, stated=replace(source.stated, gains=(1.0, 2.0, 3.0, 4.0)))
    taken = taking(source, (3, 0))
    assert taken.stated.bad == (0,) and taken.stated.gains == (4.0, 1.0) and taken.fields["bbl"] == "{0, 1}"


@pytest.mark.parametrize(
    ("bands", "parts"),
    [
        ("0,1,6", ("there is no band 6", "from 0 to 5")),
        ("0,1,0", ("band 0 is named twice",)),
        ("1,-2,3", ("not a list of bands", "24,17,10")),
        ("", ("not a list of bands",)),
        ("0,1", ("fewer bands than the network",)),
    ],
)
def test_bands_that_are_refused(capsys: Capsys, colours: Path, bands: str, parts: tuple[str, ...]) -> None:
    write_cube("scene.hdr", np.zeros((6, 20, 30), np.uint8), fields={"reflectance scale factor": "255"})
    flags = ["--constant-bands", "restore", "--bands", bands]
    assert_failed(invoke(capsys, "run", colours, "scene.hdr", "--out", "out.hdr", *flags), 2, *parts)


def test_a_folder_that_lies_in_the_way_of_one_stops_no_other(capsys: Capsys, doubling: Path) -> None:
    done(capsys, doubling, "in", "--out", "out")
    for name in ("a.png", "b.png"):
        Path("out", name).unlink()
    Path("out/a.png").mkdir()
    ended = invoke(capsys, "run", doubling, "in", "--out", "out", "--json")
    assert ended.code == 2 and list(ended.json["failed"]) == ["a.png"] and ended.json["restored"] == 1


def test_what_was_not_replaced_is_nobodys(capsys: Capsys, doubling: Path, tmp_path: Path) -> None:
    other = known_bundle(tmp_path / "other", gain=3)
    done(capsys, other, "in", "--out", "out")
    assert_failed(invoke(capsys, "run", doubling, "in", "--out", "out"), 2, "another bundle", "--replace")
    assert_failed(invoke(capsys, "run", other, "in", "--out", "out", "--clip"), 2, "option", "--replace")
    whole = Path("in/a.png").read_bytes()
    Path("in/a.png").write_bytes(whole[:-100])
    assert invoke(capsys, "run", doubling, "in", "--out", "out", "--replace").code == 2
    Path("in/a.png").write_bytes(whole)
    assert_failed(invoke(capsys, "run", doubling, "in", "--out", "out"), 2, "nobody knows", "--replace")
    assert done(capsys, doubling, "in", "--out", "out", "--replace")["restored"] == 3
    assert done(capsys, doubling, "in", "--out", "out")["skipped"] == 3
