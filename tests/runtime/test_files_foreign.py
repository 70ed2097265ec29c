"""Files of other programs: told by name with what makes a readable file of them, and headers that name them."""

from __future__ import annotations

import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from scipy.io import netcdf_file

from runtime.errors import CubeFileError
from runtime.files import read_cube
from runtime.files.foreign import KINDS
from runtime.sources import open_source
from tests.runtime.files_data import edited, sample, write_pair

GDAL = "gdal_translate -of ENVI"


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("a.tif", b"II*\0", f"a TIFF file.*{GDAL}"),
        ("a.TIFF", b"MM\0*", f"a TIFF file.*{GDAL}"),
        ("a", b"II+\0", f"a TIFF file.*{GDAL}"),
        ("a.h5", b"?", "an HDF5 file.*--layout.*h5py"),
        ("a.he5", b"\x89HDF\r\n\x1a\n", "an HDF5 file.*h5py"),
        ("a.hdf", b"\x89HDF\r\n\x1a\n", "an HDF5 file.*h5py"),
        ("a.nc", b"\x89HDF\r\n\x1a\n", "an HDF5 file.*h5py"),
        ("a.nc", b"CDF\1", "a NetCDF file.*scipy"),
        ("a.hdf", b"\x0e\x03\x13\x01", f"an HDF4 file.*gdalinfo.*{GDAL}"),
        ("a.hdf4", b"?", f"an HDF4 file.*{GDAL}"),
        ("a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", f"a JPEG 2000 file.*{GDAL}"),
        ("a.ntf", b"NITF02.10", f"a NITF file.*{GDAL}"),
        ("a.lan", b"HEAD74", f"an ERDAS LAN file.*{GDAL}"),
        ("a.pix", b"PCIDSK", f"a PCIDSK file.*{GDAL}"),
        ("a.img", b"EHFA_HEADER_TAG", f"a tiled ERDAS IMAGINE file.*{GDAL}"),
        ("a.spe", b"?", "a Princeton Instruments file.*imageio"),
        ("a.cu3s", b"SQLite format 3", "a Cubert file.*export ENVI from Cuvis"),
        ("a.HEIC", b"\0\0\0\x18ftypheic", "a photograph of another kind.*vips copy .*a.png"),
        ("a.webp", b"RIFF", "a photograph of another kind.*PNG or TIFF"),
        ("a.img.gz", b"\x1f\x8b\x08", "a compressed file.*gunzip"),
        ("scene.zip", b"PK\3\4", "an archive.*unzip"),
    ],
)
def test_what_a_file_is_and_what_makes_a_readable_one_of_it(tmp_path: Path, name: str, head: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(head + bytes(100))
    with pytest.raises(CubeFileError, match=rf"is {said}"):
        read_cube(tmp_path / name)
    with pytest.raises(CubeFileError, match=rf"is {said}"):
        open_source(f"envi:{tmp_path / name}")


def test_folders_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "zarr.json").write_text("{}")
    (tmp_path / "c").mkdir()
    for name, said in (("a.zarr", "is a Zarr folder.*zarr.open"), ("b", "is a Zarr folder"), ("c", "is a folder, not")):
        with pytest.raises(CubeFileError, match=said):
            read_cube(tmp_path / name)


def command(path: Path) -> list[str]:
    """The words of the command that the refusal of a file names."""
    with pytest.raises(CubeFileError) as refused:
        read_cube(path)
    return shlex.split(refused.value.remedy.partition(": ")[2])


def test_what_gdal_makes_of_a_tiff_is_read(tmp_path: Path) -> None:
    cube = sample("u2")
    path = tmp_path / "it's a scene.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", count=3, height=4, width=5, dtype="uint16") as file:
            file.write(cube)
        *words, source, target = command(path)
        assert words == GDAL.split()
        rasterio.shutil.copy(source, target, driver="ENVI")
    read = read_cube(target)
    np.testing.assert_array_equal(read.cube, cube)
    assert not read.doubts


def test_the_commands_for_arrays_save_them(tmp_path: Path) -> None:
    cube = sample("i2", (3, 4, 5))
    with h5py.File(tmp_path / "a b.h5", "w") as file:
        file["group/rfl"] = cube.transpose(1, 2, 0)
    with netcdf_file(tmp_path / "c.nc", "w") as other:
        for axis, size in zip("xyz", (4, 5, 3), strict=True):
            other.createDimension(axis, size)
        other.createVariable("rfl", "i2", ("x", "y", "z"))[:] = cube.transpose(1, 2, 0)
    for name, array in (("a b.h5", "group/rfl"), ("c.nc", "rfl")):
        words = [array if word == "NAME" else word for word in command(tmp_path / name)]
        assert words[0] == "python"
        subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
        np.testing.assert_array_equal(read_cube(Path(words[-1])).cube, cube)


def test_every_command_names_the_file_so_that_a_shell_takes_it() -> None:
    path = Path("a folder/$(x) 'y'.dat")
    for kind in KINDS:
        words = shlex.split(kind.remedy_for(path))
        assert "{" not in kind.remedy_for(path)
        assert str(path) in words or "{" not in kind.remedy


@pytest.mark.parametrize(
    "said", ["PCI", "pci", "ERDAS", "ERDAS 7.5", "ArcView Raster", "ENVISAT", "BIL", "NVI", "Unknown", "raw"]
)
def test_rows_of_another_program_are_read(tmp_path: Path, said: str) -> None:
    cube = sample("u2")
    header = edited(
        write_pair(tmp_path, cube, 12, "bip", 1, header_offset=77), f"file type = {said}", drop=("file type",)
    )
    for name in ("cube.hdr", "cube.img"):
        read = read_cube(tmp_path / name)
        np.testing.assert_array_equal(read.cube, cube)
        assert read.doubts == (
            f"line 9, file type: {said!r} is another program's, read as rows of numbers, as the other keys say",
        )
    for extra in (b"1", b"1" * 40):
        with (tmp_path / "cube.img").open("ab") as file:
            file.write(extra)
        with pytest.raises(CubeFileError, match=rf"accounts for only 197.*; {said} files may hold more.*{GDAL}"):
            read_cube(header)


@pytest.mark.parametrize("said", ["ENVI", "envi  standard", "", "Standard"])
def test_the_standards_own_type_is_read_without_a_word(tmp_path: Path, said: str) -> None:
    assert not read_cube(
        edited(write_pair(tmp_path, sample("u1"), 1), f"file type = {said}", drop=("file type",))
    ).doubts


@pytest.mark.parametrize(
    "said",
    [
        "TIFF",
        "GeoTIFF",
        "TIFF and GeoTIFF",
        "HDF Scientific Data",
        "HDF SD",
        "HDF5",
        "HDF-EOS5",
        "NetCDF",
        "NITF",
        "JPEG2000",
        "JPEG 2000",
        "MrSID",
        "BMP",
        "ENVI Virtual Mosaic",
        "ENVI Virtual Layer Stack",
        "ENVI Meta File",
        "Georeferenced Mosaic",
        "ENVI Classification",
        "ENVI Spectral Library",
        "ENVI FFT",
        "Compressed",
        "Tiled QuickBird",
        "Esri GRID",
    ],
)
def test_types_that_are_no_rows_of_numbers_are_refused_by_name(tmp_path: Path, said: str) -> None:
    header = edited(write_pair(tmp_path, sample("u1"), 1), f"file type = {said}", drop=("file type",))
    with pytest.raises(CubeFileError, match="not for a cube in rows of numbers") as refused:
        read_cube(header)
    assert (refused.value.key, refused.value.value, refused.value.line) == ("file type", said, 9)
    assert refused.value.remedy


@pytest.mark.parametrize("said", ["ERDAS IMAGINE", "ERDAS 8.X", "PCI", "something"])
def test_tiles_are_no_rows_whatever_the_header_says(tmp_path: Path, said: str) -> None:
    header = edited(write_pair(tmp_path, sample("u1"), 1), f"file type = {said}", drop=("file type",))
    with (tmp_path / "cube.img").open("r+b") as file:
        file.write(b"EHFA_HEADER_TAG\0")
    with pytest.raises(CubeFileError, match=f"is a tiled ERDAS IMAGINE file.*{GDAL}"):
        read_cube(header)


def test_a_size_that_does_not_fit_is_no_matter_of_offsets_where_the_file_is_of_another_kind(tmp_path: Path) -> None:
    header = write_pair(tmp_path, sample("u1"), 1)
    with (tmp_path / "cube.img").open("r+b") as file:
        file.write(b"II*\0")
    assert read_cube(header).cube.flat[0] == ord("I"), "numbers that fit may begin as they like"
    with (tmp_path / "cube.img").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CubeFileError, match=f"cube.img: is a TIFF file.*{GDAL}"):
        read_cube(header)


def test_a_header_behind_whose_offset_lie_rows_is_believed(tmp_path: Path) -> None:
    header = write_pair(tmp_path, sample("u1"), 1, header_offset=128)
    edited(header, "file type = ERDAS 7.5", drop=("file type",))
    (tmp_path / "cube.img").rename(tmp_path / "cube.lan")
    with (tmp_path / "cube.lan").open("r+b") as file:
        file.write(b"HEAD74")
    for name in ("cube.lan", "cube.hdr"):
        np.testing.assert_array_equal(read_cube(tmp_path / name).cube, sample("u1"))
