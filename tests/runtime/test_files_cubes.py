"""One pair of functions for every format: what they dispatch on, and what they say when they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

import runtime.files
from runtime.errors import CubeFileError
from runtime.files import READERS, WRITERS, read_cube, write_cube
from tests.runtime.files_data import sample, write_pair


@pytest.mark.parametrize("suffix", sorted({*READERS, *WRITERS}))
def test_what_is_no_file_to_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(CubeFileError, match="no such file; check the path"):
        read_cube(path)
    path.mkdir()
    with pytest.raises(CubeFileError, match="is a folder, not a cube file"):
        read_cube(path)
    path.rmdir()
    path.write_bytes(b"")
    with pytest.raises(CubeFileError, match="the file is empty"):
        read_cube(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CubeFileError, match="is not a regular file"):
        read_cube(path)


@pytest.mark.parametrize("how", ["overwritten", "longer", "replaced"])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.mat", "a.hdr", "a.img", "a.png"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    path, cube = tmp_path / name, sample("u1", (3, 5, 4))
    write = {".npz": lambda: np.savez(path, cube=cube), ".mat": lambda: scipy.io.savemat(path, {"cube": cube})}
    write.get(path.suffix, lambda: write_cube(path, cube))()
    data = path.with_suffix(".img") if name == "a.hdr" else path
    where = "read_envi" if data.suffix == ".img" else f"read_{'photograph' if name == 'a.png' else path.suffix[1:]}"
    read = getattr(runtime.files, where)

    def meanwhile(*arguments: Any) -> Any:
        found = read(*arguments)
        content = data.read_bytes()
        if how == "replaced":
            data.rename(tmp_path / "before")
        data.write_bytes(content + b" " * (how == "longer"))
        if how == "overwritten":
            os.utime(data, ns=(0, 1))
        return found

    assert read_cube(path).cube.size == cube.size
    monkeypatch.setattr(runtime.files, where, meanwhile)
    with pytest.raises(CubeFileError, match=rf"{data.name}: was changed while it was read"):
        read_cube(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", sample("u1"))
    (tmp_path / "a.npy").chmod(0)
    with pytest.raises(CubeFileError, match="cannot be opened: Permission denied"):
        read_cube(tmp_path / "a.npy")


@pytest.mark.parametrize("path", ["", ".", "..", "a\0b.npy", "/", "x" * 5000 + ".npy", "/dev/null", "/dev/null.hdr"])
def test_paths_that_are_no_file(path: str) -> None:
    with pytest.raises(CubeFileError) as caught:
        read_cube(path)
    assert str(caught.value).isprintable()


def test_unknown_formats(tmp_path: Path) -> None:
    for name in ("a.xyz", "a"):
        (tmp_path / name).write_bytes(b"abcd")
        with pytest.raises(CubeFileError, match=r"is not a known cube format.*suffixes: \.npy \.npz \.mat \.hdr \.img"):
            read_cube(tmp_path / name)


def test_envi_data_with_an_unusual_suffix(tmp_path: Path) -> None:
    cube = sample("f4")
    header = write_pair(tmp_path, cube, 4)
    for name in ("scan_rad_20200101", "scan.rad", "scan"):
        (tmp_path / "cube.img").rename(tmp_path / name)
        header.rename(tmp_path / f"{name}.hdr")
        np.testing.assert_array_equal(read_cube(tmp_path / name).cube, cube)
        header = (tmp_path / f"{name}.hdr").rename(header)
        (tmp_path / name).rename(tmp_path / "cube.img")


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    write_pair(tmp_path, sample("u1"), 1)
    (tmp_path / "cube.img").rename(tmp_path / "CUBE.IMG")
    (tmp_path / "cube.hdr").rename(tmp_path / "CUBE.HDR")
    for name in ("CUBE.IMG", "CUBE.HDR"):
        assert read_cube(tmp_path / name).format == "envi"


def test_what_a_cube_file_says(tmp_path: Path) -> None:
    more = {"wavelength_units": "Micrometers", "wavelength": "{0.5, 0.6, 0.7}", "data_ignore_value": "-9999"}
    path = write_pair(tmp_path, sample("i2"), 2, "bsq", 0, **more, reflectance_scale_factor="10000.0")
    read = read_cube(str(path))
    assert (read.path, read.format, read.scale, read.ignore_value) == (path, "envi", 10000.0, -9999.0)
    assert read.wavelengths == pytest.approx((500, 600, 700))
    assert list(read.fields)[:3] == ["samples", "lines", "bands"]


def test_keys_and_layouts_that_do_not_apply(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", sample("u1"))
    for path in (tmp_path / "a.npy", write_pair(tmp_path, sample("u1"), 1)):
        with pytest.raises(CubeFileError, match="holds one cube without a name"):
            read_cube(path, key="x")
    for layout in ("", "lines", "lines,samples,bands,lines", "lines,lines,bands", "x,y,z"):
        with pytest.raises(CubeFileError, match=r"layout: is not an order of the three axes.*bands,samples,lines"):
            read_cube(tmp_path / "a.npy", layout=layout)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, runtime.files; print(*[m for m in ('torch', 'h5py', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
