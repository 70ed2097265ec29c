"""Which files of a folder are cubes, whose scale counts, and what a person is told of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from calibration.cubes import Wanted, find_cubes, unit_cube
from runtime.errors import CubeError, InputError
from runtime.files import write_cube

WAVES = (450.0, 550.0, 650.0)


def scene(bands: int = 3) -> NDArray[np.float32]:
    """[bands, lines, samples] in [0.1, 0.9]."""
    return np.random.default_rng(0).uniform(0.1, 0.9, (bands, 12, 10)).astype(np.float32)


def envi(path: Path, cube: NDArray[np.generic], **fields: str) -> Path:
    return write_cube(path, cube, fields={name.replace("_", " "): value for name, value in fields.items()})


def test_cubes_are_found_by_suffix_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.npy", "a.MAT", "c.npz", "d.hdr", "d.img", "e.tif", ".f.npy", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_cubes(tmp_path) == {n[0]: tmp_path / n for n in ("a.MAT", "b.npy", "c.npz", "d.hdr")}
    assert list(find_cubes(tmp_path, ["c", "a"])) == ["c", "a"]


def test_two_cubes_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.npz.*two cubes of one name.*a\.npy"):
        find_cubes(tmp_path)


def test_the_option_that_named_the_folder_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError) as refused:
            find_cubes(folder, option="--calibration")
        assert refused.value.key == "--calibration"


def test_a_folder_of_other_formats_says_what_makes_cubes_of_them(tmp_path: Path) -> None:
    for name in ("notes.txt", "a.nc"):
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" if name == "a.nc" else b"")
    with pytest.raises(InputError, match=r"a\.nc: is .*no cube file that is read"):
        find_cubes(tmp_path)


def test_photographs_are_taken_where_there_are_no_cubes(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(tmp_path / name)
    found = find_cubes(tmp_path)
    assert list(found) == ["a", "b"]
    cube = unit_cube(found["a"], Wanted(3)).cube
    np.testing.assert_allclose(cube, picture.transpose(2, 0, 1) / 255, rtol=1e-6)
    np.save(tmp_path / "scene.npy", cube)
    assert list(find_cubes(tmp_path)) == ["scene"]


@pytest.mark.parametrize(
    ("said", "files", "models", "scale"),
    [(2000.0, "4000", 8000.0, 2000), (None, "4000", 8000.0, 4000), (None, None, 8000.0, 8000)],
)
def test_the_scale_is_the_one_said_then_the_files_then_the_models(
    tmp_path: Path, said: float | None, files: str | None, models: float, scale: float
) -> None:
    numbers = np.rint(scene() * 1000).astype(np.uint16)
    fields = {} if files is None else {"reflectance_scale_factor": files}
    found = unit_cube(envi(tmp_path / "a.hdr", numbers, **fields), Wanted(3, scale=said, model_scale=models))
    np.testing.assert_allclose(found.cube, numbers / scale, rtol=1e-6)
    assert found.cube.dtype == np.float32


def test_integers_that_nobody_gave_a_scale_are_refused(tmp_path: Path) -> None:
    path = envi(tmp_path / "a.hdr", np.ones((3, 4, 4), np.uint16))
    with pytest.raises(CubeError, match=r"a\.hdr, scale: .*flag, file nor model"):
        unit_cube(path, Wanted(3))


@pytest.mark.parametrize("ignored", ["0", "65535"])
def test_pixels_that_the_file_calls_missing_are_refused(tmp_path: Path, ignored: str) -> None:
    numbers = np.rint(scene() * 1000).astype(np.uint16)
    fields = {"data_ignore_value": ignored, "reflectance_scale_factor": "1000"}
    whole = envi(tmp_path / "whole.hdr", numbers, **fields)
    np.testing.assert_allclose(unit_cube(whole, Wanted(3)).cube, numbers / 1000, rtol=1e-6)
    numbers[1, 2, 3] = int(ignored)
    with pytest.raises(InputError, match=r"holes\.hdr, --ignore-value: has 1 pixel missing"):
        unit_cube(envi(tmp_path / "holes.hdr", numbers, **fields), Wanted(3))


def test_the_layout_is_that_of_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", scene())
    found = unit_cube(tmp_path / "a.npy", Wanted(3, layout="bands,lines,samples"))
    np.testing.assert_array_equal(found.cube, scene())


def test_a_cube_may_have_more_bands_and_then_has_no_wavelengths_of_the_model(tmp_path: Path) -> None:
    for bands, wavelengths in ((3, WAVES), (5, None)):
        np.save(tmp_path / "a.npy", scene(bands).transpose(1, 2, 0))
        found = unit_cube(tmp_path / "a.npy", Wanted(3, wavelengths=WAVES))
        assert found.cube.shape == (bands, 12, 10) and found.wavelengths == wavelengths


@pytest.mark.parametrize(("apart", "told"), [(4.0, False), (40.0, True)])
def test_bands_far_from_the_models_are_doubted(tmp_path: Path, apart: float, told: bool) -> None:
    centres = [WAVES[0], WAVES[1] + apart, WAVES[2]]
    fields = {"wavelength": "{" + ", ".join(map(str, centres)) + "}", "wavelength_units": "nm"}
    found = unit_cube(envi(tmp_path / "a.hdr", scene(), **fields), Wanted(3, wavelengths=WAVES))
    assert found.wavelengths == tuple(centres)
    assert [f"up to {apart:.0f} nm" in doubt for doubt in found.doubts] == [True] * told


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (0.01, True), (6.0, True)])
def test_a_scale_that_may_be_wrong_is_doubted(tmp_path: Path, factor: float, told: bool) -> None:
    np.save(tmp_path / "a.npy", (scene() * np.float32(factor)).transpose(1, 2, 0))
    doubts = unit_cube(tmp_path / "a.npy", Wanted(3)).doubts
    assert all("a.npy" in doubt and "--scale" in doubt for doubt in doubts) and bool(doubts) == told
    np.save(tmp_path / "a.npy", (scene() * np.float32(50)).transpose(1, 2, 0))
    with pytest.raises(CubeError, match=r"a\.npy, scale: the numbers reach .* as they are"):
        unit_cube(tmp_path / "a.npy", Wanted(3))
