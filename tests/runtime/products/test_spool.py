"""The file without a name that cubes wait in."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import MachineError
from runtime.products.spool import Spool, Tiles


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve")
def test_its_room_is_taken_when_it_is_made_and_it_has_no_name(tmp_path: Path) -> None:
    with Spool(Path("a.nc"), 1 << 20, tmp_path) as spool:
        status = os.fstat(spool.file.fileno())
        assert status.st_size == 1 << 20 <= 512 * status.st_blocks
        assert status.st_nlink == 0 and not list(tmp_path.iterdir())


def test_bytes_are_read_where_they_were_put_and_zero_elsewhere(tmp_path: Path) -> None:
    with Spool(Path("a.nc"), 12, tmp_path) as spool:
        spool.append(b"ab")
        spool.write(6, np.frombuffer(b"xyz", "u1"))
        spool.append(b"c")
        found = np.empty(12, "u1")
        spool.read(0, found)
        assert found.tobytes() == b"abc\0\0\0xyz\0\0\0"
        with pytest.raises(MachineError, match="shorter than it was"):
            spool.read(1, found)


def test_without_a_folder_for_temporary_files_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(MachineError) as error:
        Spool(Path("a.nc"), 12)
    said = error.value.as_json()
    assert (said["file"], said["key"], said["value"]) == ("a.nc", "TMPDIR", str(tmp_path / "none"))
    assert said["remedy"] == "set TMPDIR to a folder with more room"


def test_beside_what_is_written_tmpdir_is_not_to_blame(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"takes \d+ bytes, \d+ are free") as error:
        Spool(Path("a.nc"), 1 << 60, tmp_path)
    assert (error.value.key, error.value.value) == (None, str(tmp_path))
    assert error.value.remedy == "write to a folder with more room"


@pytest.mark.parametrize("width", [2, 5, 9])
def test_tiles_are_read_as_lines_of_some_bands(tmp_path: Path, width: int) -> None:
    cube = np.arange(3 * 4 * 5, dtype="i2").reshape(3, 4, 5)
    with Tiles(Spool(Path("a"), cube.nbytes + 7, tmp_path), (3, 4, 5), cube.dtype, width, 7) as tiles:
        for sample in range(0, 5, width):
            tiles.put(0, 0, sample, cube[:1, :, sample : sample + width])
            tiles.put(1, 0, sample, cube[1:, :, sample : sample + width].astype("f8"))
        some = np.empty((2, 3, 5), "i2")
        tiles.lines(1, some, [2, 0])
        np.testing.assert_array_equal(some, cube[[2, 0], 1:])
