"""Files of one band: two axes where the layout has two, pictures and ENVI files as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import CubeFileError
from runtime.files import read_cube, write_cube
from tests.runtime.files_data import as_matlab, sample, write_pair

PLANE = sample("f4", (1, 4, 5))
AS_PLANE, AS_CUBE = "--layout lines,samples$", "--layout lines,samples,bands$"


def in_mat(path: Path, **arrays: Any) -> Path:
    scipy.io.savemat(path, arrays)
    return path


def in_hdf5(path: Path, array: NDArray[Any]) -> Path:
    with h5py.File(path, "w") as file:
        file["mask"] = array.T
    return path


@pytest.mark.parametrize("layout", ["lines,samples", " Samples, lines"])
def test_two_axes_are_a_cube_of_one_band(tmp_path: Path, layout: str) -> None:
    array = PLANE[0] if layout == "lines,samples" else PLANE[0].T
    write_cube(tmp_path / "a.npy", PLANE, layout=layout)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(array))
    np.savez(tmp_path / "a.npz", cube=array, wavelength_nm=[550.0])
    # Scalars, texts and vectors have two axes in MATLAB, too.
    in_mat(tmp_path / "a.mat", mask=array, scale=2.0, name="a mask", rows=np.arange(9.0), open=array > 3)
    in_hdf5(tmp_path / "b.mat", array)
    for name in ("a.npy", "fortran.npy", "a.npz", "a.mat", "b.mat"):
        found = read_cube(tmp_path / name, layout=layout)
        np.testing.assert_array_equal(found.cube, PLANE)
        assert (found.cube.flags.c_contiguous, found.stated.axes, found.doubts) == (True, True, ())
    assert read_cube(tmp_path / "a.npz", layout=layout).wavelengths == (550.0,)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.mat", "b.mat"])
def test_each_number_of_axes_is_refused_with_the_layout_of_the_other(tmp_path: Path, name: str) -> None:
    def put(array: NDArray[Any]) -> Path:
        path = tmp_path / name
        if name == "a.npz":
            np.savez(path, cube=array)
        elif name == "a.npy":
            np.save(path, array)
        elif name == "a.mat":
            in_mat(path, mask=array)
        else:
            in_hdf5(path, array)
        return path

    for layout in (None, "bands,lines,samples"):
        with pytest.raises(CubeFileError, match=r"--layout lines,samples(,? or |, |$)"):
            read_cube(put(PLANE[0]), layout=layout)
    for layout in ("lines,samples", "samples,lines"):
        with pytest.raises(CubeFileError, match=AS_CUBE):
            read_cube(put(as_matlab(sample("f4"))), layout=layout)


def test_which_array_of_a_matlab_file_is_the_plane(tmp_path: Path) -> None:
    array = PLANE[0]
    path = in_mat(tmp_path / "a.mat", mask=array, other=array + 1, row=array[:1], s={"mask": array}, cube=sample("f4"))
    with pytest.raises(CubeFileError, match=r"3 2-D numeric arrays: .* name one of them, as in --key mask$"):
        read_cube(path, layout="lines,samples")
    for key in ("mask", "s.mask"):
        np.testing.assert_array_equal(read_cube(path, layout="lines,samples", key=key).cube, PLANE)
    # By its name a vector may be one, and pixels along one axis whose size is told.
    np.testing.assert_array_equal(read_cube(path, layout="lines,samples", key="row").cube, PLANE[:, :1])
    assert read_cube(path, layout="lines,samples", key="row:1x5").cube.shape == (1, 1, 5)
    with pytest.raises(CubeFileError, match=r"is not a 2-D array of real numbers.*" + AS_CUBE):
        read_cube(path, layout="lines,samples", key="cube")
    with pytest.raises(CubeFileError, match=r"one band is expected .*found 5.*" + AS_CUBE):
        read_cube(path, layout="lines,samples", key="mask:2x2")
    only = in_mat(tmp_path / "b.mat", scale=2.0, rows=np.arange(9.0))
    with pytest.raises(CubeFileError, match=r"no 2-D numeric array among: .*; save the cube as a 2-D array$"):
        read_cube(only, layout="lines,samples")


def test_pictures_and_envi_files_of_one_band(tmp_path: Path) -> None:
    grey = sample("u2", (1, 4, 5))
    Image.fromarray(grey[0]).save(tmp_path / "grey.png")
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "envi").mkdir()
    envi = write_pair(tmp_path / "envi", grey, 12)
    for path in (tmp_path / "grey.png", envi):
        np.testing.assert_array_equal(read_cube(path, layout="lines,samples").cube, grey)
    assert len(read_cube(tmp_path / "grey.png").cube) == 3
    for path in (tmp_path / "colour.png", write_pair(tmp_path, sample("u2"), 12)):
        with pytest.raises(CubeFileError, match=r"one band is expected .*found 3.*" + AS_CUBE):
            read_cube(path, layout="lines,samples")


def test_what_came_from_a_grey_picture_is_written_as_one(tmp_path: Path) -> None:
    grey = sample("u2", (1, 4, 5))
    Image.fromarray(grey[0]).save(tmp_path / "grey.png")
    source = read_cube(tmp_path / "grey.png", layout="lines,samples")
    write_cube(tmp_path / "out.png", source.cube, like=source)
    np.testing.assert_array_equal(read_cube(tmp_path / "out.png", layout="lines,samples").cube, grey)


def test_more_bands_are_not_written_as_two_axes(tmp_path: Path) -> None:
    with pytest.raises(CubeFileError, match=r"one band is expected .*found 3"):
        write_cube(tmp_path / "a.npy", sample("u1"), layout="lines,samples")
    assert not list(tmp_path.iterdir())
