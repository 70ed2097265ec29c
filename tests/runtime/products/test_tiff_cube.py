"""Cubes of several images, of pieces too large to read by lines, and of more files than may be open."""

import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import CubeFileError, MachineError
from runtime.products import tiff_cube
from runtime.products.gdal import Tiff
from runtime.products.tiff_cube import Images, open_images
from tests.runtime.products.tiff_data import cube, tiff


def images_of(paths: list[Path]) -> Images:
    images = open_images(paths)
    return Images(images, [range(1, image.layout.shape[0] + 1) for image in images])


TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
LAYOUTS = [
    {"interleave": "band", **TILED},
    {"interleave": "pixel", **TILED},
    {"interleave": "band", "blockysize": 70, "compress": "lzw"},
    {"interleave": "pixel", "blockysize": 16, "compress": "lzw"},
]


@pytest.mark.parametrize("profile", LAYOUTS)
def test_large_pieces_are_spooled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: dict[str, object]
) -> None:
    monkeypatch.setattr(tiff_cube, "LINE_OF_CHUNKS", 1000)
    monkeypatch.setattr(tiff_cube, "PIECE", 5000)
    path, numbers = tmp_path / "a.tif", cube(7, 70, 45)
    tiff(path, numbers, **profile).close()
    asked: list[tuple[int, int]] = []
    read_into = Tiff.read_into

    def counting(self: Tiff, out: np.ndarray, bands: range, start: int, left: int = 0) -> None:  # type: ignore[type-arg]
        asked.extend((band, line) for band in bands for line in range(start, start + out.shape[1]) if left == 0)
        read_into(self, out, bands, start, left)

    monkeypatch.setattr(Tiff, "read_into", counting)
    with images_of([path]) as images:
        assert images.block == 1
        for start, stop in ((60, 70), (0, 3), (3, 40), (0, 70)):
            found = images.read_lines(start, stop)
            assert np.array_equal(found, numbers[:, start:stop])
            assert found.flags.c_contiguous
            assert found.flags.writeable
    assert len(asked) == len(set(asked)) == 7 * 70


def test_no_room_for_a_spool_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_cube, "LINE_OF_CHUNKS", 1000)
    path = tmp_path / "a.tif"
    tiff(path, cube(7, 70, 45), **LAYOUTS[0]).close()
    with images_of([path]) as images:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        with pytest.raises(MachineError, match="temporary file failed") as error:
            images.read_lines(0, 1)
    assert error.value.key == "TMPDIR"


def test_lines_of_long_plain_strips_are_read_alone(tmp_path: Path) -> None:
    path, numbers = tmp_path / "a.tif", cube(7, 70, 45)
    tiff(path, numbers, interleave="band", blockysize=70).close()
    with images_of([path]) as images:
        assert images.block == 1
        assert np.array_equal(images.read_lines(33, 35), numbers[:, 33:35])


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    numbers = cube(60)
    paths = [tmp_path / f"{band:02d}.tif" for band in range(60)]
    for path, band in zip(paths, numbers, strict=True):
        tiff(path, band[None]).close()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, limits[1]))
    try:
        with images_of(paths) as images:
            for start in (0, 6):
                assert np.array_equal(images.read_lines(start, start + 6), numbers[:, start : start + 6])
            assert len(list(Path("/proc/self/fd").iterdir())) <= used + 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_images_that_differ_are_refused(tmp_path: Path) -> None:
    for name, numbers in (("a", cube(2)), ("b", cube(2, 11))):
        tiff(tmp_path / f"{name}.tif", numbers).close()
    with pytest.raises(CubeFileError, match=r"differs in size or type from a\.tif"):
        images_of([tmp_path / "a.tif", tmp_path / "b.tif"])
