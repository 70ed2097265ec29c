"""NumPy and MATLAB files, and folders of pictures, by lines, in and out."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import CubeFileError
from runtime.files import read_cube
from runtime.products import format_of, open_cube, open_writer
from runtime.products.contract import Reading
from tests.contracts.killing import killed
from tests.runtime.files_data import sample
from tests.runtime.products.test_envi import MAKE, in_blocks, layers, result_of, written

LAYOUTS = [",".join(order) for order in permutations(("lines", "samples", "bands"))]
AXES = ("bands", "lines", "samples")


def laid(cube: NDArray[Any], layout: str) -> NDArray[Any]:
    return cube.transpose([AXES.index(axis) for axis in layout.split(",")])


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<f4", ">f8", "f2"])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_npy_of_every_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, fortran: bool, dtype: str
) -> None:
    monkeypatch.setattr("runtime.files.rows.PIECE", 32)
    cube = sample(dtype, (4, 7, 5)) if dtype != "f2" else sample("f4", (4, 7, 5)).astype("f2")
    np.save(tmp_path / "a.npy", (np.asfortranarray if fortran else np.ascontiguousarray)(laid(cube, layout)))
    whole = read_cube(tmp_path / "a.npy", layout=layout)
    with open_cube(tmp_path / "a.npy", Reading(layout=layout)) as reader:
        told = reader.description
        assert (told.format, told.shape, told.stated) == ("array", (4, 7, 5), whole.stated)
        for step in (1, 3, 7):
            lines = in_blocks(reader, step)
            assert lines.dtype == whole.cube.dtype == told.dtype
            np.testing.assert_array_equal(lines, whole.cube)
    # And back in the layout that was read.
    files = written(tmp_path / "out.npy", result_of(told), whole.cube)
    assert [file.name for file in files] == ["out.npy", "out.damp_deploy.json", "out_quality.npy"]
    np.testing.assert_array_equal(np.load(files[0]), laid(whole.cube, layout))
    quality = layers(7, 5)
    np.testing.assert_array_equal(np.load(files[2]), laid(np.stack([quality.seen, quality.expert]), layout))
    assert json.loads(files[1].read_text()) == MAKE
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("layout", ["lines,samples", "samples,lines"])
def test_one_band(tmp_path: Path, layout: str) -> None:
    plane = sample("u2", (1, 7, 5))
    np.save(tmp_path / "a.npy", plane[0] if layout == "lines,samples" else plane[0].T)
    with open_cube(tmp_path / "a.npy", Reading(layout=layout)) as reader:
        np.testing.assert_array_equal(in_blocks(reader, 2), plane)
        files = written(tmp_path / "out.npy", result_of(reader.description), plane)
    np.testing.assert_array_equal(np.load(files[0]), np.load(tmp_path / "a.npy"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Callable[..., None]) -> None:
    cube = sample("u2", (3, 7, 5))
    save(
        tmp_path / "a.npz", scene=np.asfortranarray(laid(cube, "lines,samples,bands")), wavelength_nm=[400.5, 500, 600]
    )
    with open_cube(tmp_path / "a.npz", Reading(key="scene")) as reader:
        told = reader.description
        assert (told.stated.wavelengths, told.title, told.shape) == ((400.5, 500, 600), "scene", (3, 7, 5))
        np.testing.assert_array_equal(in_blocks(reader, 3), cube)
        files = written(tmp_path / "out.npz", result_of(told), cube)
    assert [file.name for file in files] == ["out.npz"]
    with np.load(files[0]) as arrays:
        np.testing.assert_array_equal(arrays["scene"], laid(cube, "lines,samples,bands"))
        np.testing.assert_array_equal(arrays["wavelength_nm"], [400.5, 500, 600])
        np.testing.assert_array_equal(arrays["quality"], layers(7, 5).seen)
        np.testing.assert_array_equal(arrays["expert"], layers(7, 5).expert)
        assert json.loads(str(arrays["damp_deploy"])) == MAKE
    with pytest.raises(CubeFileError, match=r"no such array in the file .*choose one of scene, wavelength_nm"):
        open_cube(tmp_path / "a.npz")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_npz_of_every_layout(tmp_path: Path, layout: str) -> None:
    cube = sample(">i4", (3, 7, 5))
    np.savez(tmp_path / "a.npz", cube=laid(cube, layout))
    with open_cube(tmp_path / "a.npz", Reading(layout=layout)) as reader:
        np.testing.assert_array_equal(in_blocks(reader, 3), cube)
        with np.load(written(tmp_path / "out.npz", result_of(reader.description), cube)[0]) as arrays:
            np.testing.assert_array_equal(arrays["cube"], laid(cube, layout))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("kind", ["5", "5z", "7.3"])
def test_mat(tmp_path: Path, kind: str, dtype: str) -> None:
    cube = sample(dtype, (3, 7, 5))
    path, array = tmp_path / "a.mat", laid(cube, "lines,samples,bands")
    if kind == "7.3":
        with h5py.File(path, "w") as file:
            file["scene"] = array.T
    else:
        scipy.io.savemat(path, {"scene": array, "name": "x"}, do_compression=kind == "5z")
    whole = read_cube(path)
    with open_cube(path) as reader:
        told = reader.description
        assert (told.shape, told.dtype, told.stated, told.title) == ((3, 7, 5), cube.dtype, whole.stated, "scene")
        np.testing.assert_array_equal(in_blocks(reader, 3), cube)
        np.testing.assert_array_equal(np.load(written(tmp_path / "out.npz", result_of(told), cube)[0])["cube"], array)
        with pytest.raises(CubeFileError, match=r"is not a format arrays are written in .*use \.npz or \.npy"):
            open_writer(tmp_path / "out.mat", result_of(told), "like")


@pytest.mark.data
def test_real_npz(data_dir: Path) -> None:
    for name in ("cave/balloons.npz", "noisy/salton_sea_roi.npz"):
        with open_cube(data_dir / name) as reader:
            whole = read_cube(data_dir / name)
            assert reader.description.stated.wavelengths == whole.wavelengths
            np.testing.assert_array_equal(in_blocks(reader, reader.description.block), whole.cube)


def npy(shape: tuple[int, ...], data: bytes = b"", descr: str = "<u2") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.npy", npy((10**6, 10**6, 200)), "its header asks for"),
        ("a.npy", npy((2, 2, 2), bytes(15)), "its header asks for"),
        ("a.npy", npy((2, 2, 2), b"\x80\x05N." * 16, "|O"), "holds Python objects"),
        ("a.npy", npy((2, 2), bytes(8)), "a cube has three axes"),
        ("a.npy", npy((2, 2, 0)), "none of them empty"),
        ("a.npy", b"\x93NUMPY" + bytes(100), "is not a NumPy array file"),
        ("a.npy", b"", "the file is empty"),
        ("a.npz", b"PK\3\4" + bytes(100), "is damaged"),
        ("a.mat", b"MATLAB 5.0" + bytes(200), "a.mat"),
    ],
)
def test_hostile_arrays(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CubeFileError, match=problem):
        open_cube(tmp_path / name)


def test_hostile_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cube.npy", npy((100, 1000, 1000), bytes(2 * 10**8)))
    with pytest.raises(CubeFileError, match="compressed bytes claim to hold"):
        open_cube(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cube.npy", npy((20, 30, 40), bytes(range(240)) * 200))
    path.write_bytes(path.read_bytes()[:30000] + b"x" + path.read_bytes()[30001:])
    with open_cube(path) as reader, pytest.raises(CubeFileError, match="is damaged: Bad CRC-32"):
        reader.read_lines(0, 1)


def test_arrays_that_change_while_they_are_open(tmp_path: Path) -> None:
    for name, save in (("a.npy", np.save), ("a.npz", np.savez), ("c.npy", np.save)):
        path, cube = tmp_path / name, sample("u2", (7, 5, 3))
        arguments = {"cube": cube} if name == "a.npz" else {"arr": cube}
        save(path, **arguments)  # type: ignore[operator]
        layout = "bands,samples,lines" if name == "c.npy" else None
        with open_cube(path, Reading(layout=layout)) as reader:
            with path.open("r+b") as file:
                file.seek(-2, 2)
                file.truncate()
            with pytest.raises(CubeFileError, match=r"was written to after|damaged|ends"):
                in_blocks(reader, 1)


def test_npy_and_what_lies_beside_it_are_whole_wherever_the_writer_was_killed(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", sample("u2", (7, 5, 3)))
    with open_cube(tmp_path / "in.npy") as reader:
        result, old = result_of(reader.description), reader.read_lines(0, 7)
    new, code = old[:, ::-1], -1
    for kill_at in range(100):
        out = tmp_path / f"{kill_at}/out.npy"
        out.parent.mkdir()
        written(out, result, old)
        code = killed(kill_at, partial(written, out, result, new))
        with open_cube(out) as reader:
            found = reader.read_lines(0, 7)
        assert np.array_equal(found, old) or np.array_equal(found, new)
        assert not list(out.parent.glob(".*.ready"))
        if code == 0:
            break
    assert code == 0


def pictures(folder: Path, cube: NDArray[Any], suffix: str = ".png", name: str = "x_ms_{}") -> Path:
    folder.mkdir()
    for band, plane in enumerate(cube, start=1):
        path = folder / (name.format(band) + suffix)
        if suffix == ".png":
            Image.fromarray(plane).save(path)
        else:
            tifffile.imwrite(path, plane, byteorder=">")
    return folder


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures(tmp_path: Path, suffix: str, dtype: str) -> None:
    cube = sample(dtype, (12, 7, 5))
    folder = pictures(tmp_path / "x_ms", cube, suffix)
    (folder / "Thumbs.db").touch()
    Image.fromarray(np.zeros((7, 5, 3), "u1")).save(folder / f"x_RGB{suffix}")
    (folder / "wavelengths.txt").write_text("\n".join(f"{400 + 10 * band} nm" for band in range(12)))
    found = format_of(folder)
    assert found is not None
    assert found.name == "pictures"
    with open_cube(folder) as reader:
        told = reader.description
        assert (told.shape, told.dtype) == ((12, 7, 5), np.dtype(dtype))
        assert told.stated.wavelengths == tuple(range(400, 520, 10))
        assert [file.stem for file in told.files[:3]] == ["x_ms_1", "x_ms_2", "x_ms_3"]
        np.testing.assert_array_equal(in_blocks(reader, 3), cube)
    out = tmp_path / "out"
    for values in (cube, cube[:, ::-1]):
        files = written(out, result_of(told), values)
        assert sorted(files[1:]) == sorted(out.iterdir())
        for band, plane in enumerate(values, start=1):
            np.testing.assert_array_equal(np.asarray(Image.open(out / f"x_ms_{band}.png")), plane)
        np.testing.assert_array_equal(np.asarray(Image.open(out / "quality.png")), layers(7, 5).seen)
        np.testing.assert_array_equal(np.asarray(Image.open(out / "quality_expert.png")), layers(7, 5).expert)
        assert json.loads((out / "damp_deploy.json").read_text()) == MAKE
    with open_cube(out) as reader:
        assert reader.description.stated == told.stated
        np.testing.assert_array_equal(in_blocks(reader, 7), cube[:, ::-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x_ms"]


def test_wavelengths_in_names(tmp_path: Path) -> None:
    with open_cube(pictures(tmp_path / "a", sample("u1", (3, 4, 5)), name="f2_{}00nm")) as reader:
        assert reader.description.stated.wavelengths == (100, 200, 300)


def test_pictures_that_are_no_cube(tmp_path: Path) -> None:
    cube = sample("u1", (3, 7, 5))

    def refused(problem: str, folder: Path) -> None:
        with pytest.raises(CubeFileError, match=problem):
            open_cube(folder).read_lines(0, 1)

    folder = pictures(tmp_path / "sizes", cube)
    Image.fromarray(cube[0, 1:]).save(folder / "x_ms_2.png")
    refused(r"x_ms_2\.png: is 6 x 5 of 8 bits, x_ms_1\.png is 7 x 5 of 8 bits", folder)
    Image.fromarray(cube[0].astype("u2")).save(folder / "x_ms_2.png")
    refused(r"x_ms_2\.png: is 7 x 5 of 16 bits", folder)
    Image.fromarray(np.moveaxis(cube, 0, 2)).save(folder / "x_ms_2.png")
    refused(r"x_ms_2\.png: is no picture of one band of 8 or 16 bits \(found 'RGB'\)", folder)
    (folder / "x_ms_2.png").write_bytes((folder / "x_ms_1.png").read_bytes()[:60])
    refused(r"x_ms_2\.png: is damaged, or no PNG or TIFF file", folder)
    folder = pictures(tmp_path / "huge", cube)
    data = (folder / "x_ms_2.png").read_bytes()
    (folder / "x_ms_2.png").write_bytes(data[:16] + struct.pack(">II", 10000, 10000) + data[24:])
    refused(r"x_ms_2\.png", folder)
    folder = pictures(tmp_path / "two", cube)
    for band in (1, 2):
        Image.fromarray(cube[0]).save(folder / f"other_{band}.png")
    refused("and 2 others like that|put the pictures of one cube", folder)
    folder = pictures(tmp_path / "list", cube)
    (folder / "wavelengths.txt").write_text("400 410")
    refused("has 2 values for 3 bands", folder)
    assert format_of(tmp_path) is None


def test_a_folder_of_pictures_is_written_whole_or_not(tmp_path: Path) -> None:
    cube = sample("u1", (3, 7, 5))
    folder = pictures(tmp_path / "in", cube)
    with open_cube(folder) as reader:
        told = reader.description
    for out, other, problem in (
        (folder, {}, "would overwrite the input"),
        (tmp_path / "out", {"dtype": np.dtype("f4")}, "uint8 and uint16 only"),
        (tmp_path / "none/out", {}, "No such file or directory"),
    ):
        with pytest.raises(CubeFileError, match=problem):
            open_writer(out, result_of(told, **other), "like")
    with open_writer(tmp_path / "out", result_of(told), "like") as writer:
        writer.write_lines(cube[:, :2], layers(2, 5))
        with pytest.raises(CubeFileError, match="only 2 of its 7 lines were made"):
            writer.finish(MAKE)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
