"""Packing: the middle of every scene, together no larger than asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import CubeFileError, InputError
from training.data import load_scenes
from training.pack import coded, middle, pack, read_coded
from training.recipe import Data


def scene(folder: Path, name: str, lines: int, samples: int, seed: int) -> np.ndarray:
    cube = np.random.default_rng(seed).integers(0, 60000, (lines, samples, 3), np.uint16)
    np.savez(folder / f"{name}.npz", cube=cube, wavelength_nm=np.array([400.0, 500.0, 600.0]))
    return cube


def test_scenes_that_fit_are_packed_whole(tmp_path: Path) -> None:
    cube = scene(tmp_path, "one", 80, 90, 0)
    pack([tmp_path], tmp_path / "out", 10**7)
    with np.load(tmp_path / "out" / "one.npz") as archive:
        np.testing.assert_array_equal(archive["cube"], cube)
        assert archive["wavelength_nm"].tolist() == [400, 500, 600]


def test_scenes_that_do_not_fit_keep_their_middles(tmp_path: Path) -> None:
    cubes = {name: scene(tmp_path, name, 160, 200, seed) for seed, name in enumerate(("one", "two"))}
    limit = 200_000
    sizes = pack([tmp_path], tmp_path / "out", limit)
    files = sorted((tmp_path / "out").iterdir())
    assert sum(file.stat().st_size for file in files) == sum(sizes.values()) <= limit
    shapes = set()
    for name, cube in cubes.items():
        with np.load(tmp_path / "out" / f"{name}.npz") as archive:
            kept = archive["cube"]
        line, sample = (160 - kept.shape[0]) // 2, (200 - kept.shape[1]) // 2
        np.testing.assert_array_equal(kept, cube[line : line + kept.shape[0], sample : sample + kept.shape[1]])
        shapes.add(kept.shape)
    assert len(shapes) == 1 and min(next(iter(shapes))[:2]) >= 64


def test_a_scene_smaller_than_a_frame_stays_whole() -> None:
    assert middle(np.zeros((50, 300, 2)), 0.1).shape == (50, 64, 2)


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scenes"):
        pack([tmp_path], tmp_path / "out", 10**7)
    with pytest.raises(InputError) as caught:
        pack([tmp_path], tmp_path / "out", 10**7)
    assert caught.value.file == str(tmp_path)
    scene(tmp_path, "one", 80, 90, 0)
    with pytest.raises(InputError, match="not even a frame"):
        pack([tmp_path], tmp_path / "out", 1000)
    (tmp_path / "again").mkdir()
    scene(tmp_path / "again", "one", 80, 90, 0)
    with pytest.raises(InputError, match="two scenes of one name"):
        pack([tmp_path, tmp_path / "again"], tmp_path / "out", 10**7)
    with pytest.raises(InputError, match="holds scenes already"):
        pack([tmp_path], tmp_path / "again", 10**7)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"x\.npz.*is no scene"):
        pack([tmp_path / "broken"], tmp_path / "out", 10**7)


@pytest.mark.parametrize(("bits", "decibels"), [(8, 54), (12, 78)])
def test_coded_scenes_are_small_and_near(bits: int, decibels: float, tmp_path: Path) -> None:
    steps = np.random.default_rng(0).normal(0, 300, (12, 70, 80)).cumsum(0).cumsum(1)
    cube = np.clip(steps - steps.min(), 0, 60000).astype(np.uint16)
    np.savez_compressed(tmp_path / "one.npz", cube=cube.transpose(1, 2, 0))
    sizes = pack([tmp_path], tmp_path / "out", 10**7, bits)
    assert list(sizes) == ["one.scene"] and sizes["one.scene"] < (tmp_path / "one.npz").stat().st_size / 1.4
    found = read_coded(tmp_path / "out" / "one.scene")
    assert found.shape == cube.shape
    error = np.mean(np.square((found - cube) / cube.max()))
    assert -10 * np.log10(error) > decibels
    data = Data(name="d", scale="max", stored_scale=None, validation=())
    loaded = load_scenes(tmp_path / "out", data).cubes["one"]
    np.testing.assert_allclose(loaded, found / found.max(), rtol=1e-6)


@pytest.mark.parametrize("damage", [b"", b"PK and no more", None])
def test_a_damaged_coded_scene_is_refused(damage: bytes | None, tmp_path: Path) -> None:
    whole = coded(np.ones((3, 8, 8), np.float32), 8)
    file = tmp_path / "one.scene"
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(CubeFileError, match="no coded scene") as caught:
        read_coded(file)
    assert caught.value.file == str(file)


@pytest.mark.parametrize(
    "changed",
    [
        {"bits": np.array(200)},
        {"differences": np.zeros((8, 8), np.uint8)},
        {"differences": np.zeros((3, 8, 8), np.float64)},
        {"largest": np.array("x")},
    ],
)
def test_a_coded_scene_of_other_parts_is_refused(changed: dict[str, NDArray[np.generic]], tmp_path: Path) -> None:
    right = {"differences": np.zeros((3, 8, 8), np.uint8), "largest": np.array(1.0), "bits": np.array(8)}
    with (tmp_path / "one.scene").open("wb") as file:
        np.savez(file, **{**right, **changed})
    with pytest.raises(CubeFileError, match="no coded scene"):
        read_coded(tmp_path / "one.scene")
