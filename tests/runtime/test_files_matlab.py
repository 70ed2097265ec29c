"""MATLAB files: versions 5 and 7.3 as scipy and h5py write them, and files made to harm."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files import read_cube
from tests.runtime.files_data import as_matlab, sample

TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def write_hdf5(path: Path, array: NDArray[Any], name: str = "x", **options: Any) -> h5py.Dataset:
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset(name, data=array.T, **options)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_version_5(tmp_path: Path, dtype: str, compressed: bool) -> None:
    cube = sample(dtype)
    others = {
        "text": "abc",
        "table": {"a": np.zeros((2, 2, 2)), "b": [1, 2]},
        "cells": np.array([1, "a"], object),
        "flat": np.zeros((3, 4)),
        "mask": cube > 3,
        "phase": cube * 1j,
        "sparse": scipy.sparse.eye(4, format="csc"),
        "empty": np.zeros((0, 3, 4)),
    }
    scipy.io.savemat(tmp_path / "a.mat", others | {"scene": as_matlab(cube)}, do_compression=compressed)
    read = read_cube(tmp_path / "a.mat")
    assert (read.format, read.cube.dtype) == ("mat", np.dtype(dtype))
    np.testing.assert_array_equal(read.cube, cube)
    np.testing.assert_array_equal(
        read_cube(tmp_path / "a.mat", layout="samples,lines,bands").cube, cube.transpose(0, 2, 1)
    )
    assert read.cube.flags.c_contiguous


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 3, 2)}, {"compression": "gzip"}, {"maxshape": (None,) * 3}])
@pytest.mark.parametrize(
    "filters", [{}, {"shuffle": True}, {"shuffle": True, "fletcher32": True, "compression": "gzip"}]
)
@pytest.mark.parametrize("dtype", ["i1", ">i2", "<u2", "f4", ">f8"])
def test_version_73(tmp_path: Path, dtype: str, options: dict[str, Any], filters: dict[str, Any]) -> None:
    cube = sample(dtype)
    write_hdf5(tmp_path / "a.mat", as_matlab(cube), **(options | filters))
    read = read_cube(tmp_path / "a.mat")
    np.testing.assert_array_equal(read.cube, cube)
    assert read.cube.dtype == np.dtype(dtype).newbyteorder("=")
    assert read.cube.dtype.isnative


def test_a_chunk_larger_than_the_array(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.mat", as_matlab(sample("u2")), chunks=(64, 64, 64), maxshape=(None,) * 3, compression=4)
    np.testing.assert_array_equal(read_cube(tmp_path / "a.mat").cube, sample("u2"))


def test_values_stored_as_smaller_numbers_and_big_endian(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    def small(kind: int, data: bytes) -> bytes:
        return struct.pack(">HH", len(data), kind) + data.ljust(4, b"\0")

    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    body = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">iii", 1, 2, 2)) + small(1, b"x")
    (tmp_path / "a.mat").write_bytes(head + element(14, body + small(2, b"\x01\x02\x03\x04")))
    read = read_cube(tmp_path / "a.mat")
    assert read.cube.dtype == np.float64
    np.testing.assert_array_equal(read.cube, np.array([[[1, 2]], [[3, 4]]]))
    np.testing.assert_array_equal(scipy.io.loadmat(tmp_path / "a.mat")["x"], read.cube.transpose(1, 2, 0))
    shorts = np.arange(8, dtype=">i2").tobytes()
    body = element(6, struct.pack(">II", 7, 0)) + element(5, struct.pack(">iii", 2, 2, 2)) + element(1, b"a_long_name")
    packed = zlib.compress(element(14, body + element(3, shorts)))
    (tmp_path / "a.mat").write_bytes(head + struct.pack(">II", 15, len(packed)) + packed)
    read = read_cube(tmp_path / "a.mat", key="a_long_name")
    assert read.cube.dtype == np.float32
    np.testing.assert_array_equal(read.cube.transpose(1, 2, 0).ravel("F"), np.arange(8))


@pytest.mark.parametrize("hdf5", [False, True])
def test_choosing_the_variable(tmp_path: Path, hdf5: bool) -> None:
    cube = sample("u2")
    arrays = {"one": as_matlab(cube), "two": as_matlab(cube + 1), "flat": np.zeros((3, 4))}
    if hdf5:
        with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
            for name, array in arrays.items():
                file[name] = array.T
            file["logical"] = np.zeros((2, 2, 2), "u1")
            file["logical"].attrs["MATLAB_class"] = np.bytes_("logical")
            file.create_group("#refs#")
            file.create_group("table")
    else:
        scipy.io.savemat(tmp_path / "a.mat", arrays)
    np.testing.assert_array_equal(read_cube(tmp_path / "a.mat", key="two").cube, cube + 1)
    with pytest.raises(
        CubeFileError, match=r"2 3-D numeric arrays: one \(4x5x3 uint16\), two \(4x5x3 uint16\); name one"
    ):
        read_cube(tmp_path / "a.mat")
    with pytest.raises(CubeFileError, match=r"no such variable in the file .found 'three'.; choose one of: one"):
        read_cube(tmp_path / "a.mat", key="three")
    with pytest.raises(CubeFileError, match=r"flat: flat \(3x4 double\) is not a 3-D array of real numbers"):
        read_cube(tmp_path / "a.mat", key="flat")
    if hdf5:
        for key in ("logical", "table"):
            with pytest.raises(CubeFileError, match="is not a 3-D array of real numbers"):
                read_cube(tmp_path / "a.mat", key=key)


def test_no_cube_inside(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"row": np.zeros((1, 4)), "s": {"x": np.zeros((2, 2, 2)) > 0}})
    listed = r"row \(1x4 double\), s \(1x1 struct\), s.x \(2x2x2 logical\); save the cube as a 3-D array$"
    with pytest.raises(CubeFileError, match=f"no 3-D numeric array among: {listed}"):
        read_cube(tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "b.mat", {"flat": np.zeros((3, 4))}, format="4")
    with pytest.raises(CubeFileError, match="MATLAB 4 files hold no 3-D arrays"):
        read_cube(tmp_path / "b.mat")


def test_a_function_or_object_is_passed_by(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"x": as_matlab(sample("u2"))})
    opaque = element(6, struct.pack("<II", 17, 0)) + element(1, b"handle") + element(1, b"MCOS") + b"\xff" * 64
    function = element(6, struct.pack("<II", 16, 0)) + b"\xff" * 64
    path.write_bytes(path.read_bytes() + element(14, opaque) + element(14, function))
    np.testing.assert_array_equal(read_cube(path).cube, sample("u2"))
    with pytest.raises(CubeFileError, match=r"handle \(opaque\) is not a 3-D array"):
        read_cube(path, key="handle")


def matrix(shape: tuple[int, ...], data: bytes, *, kind: int = 9, stored: int = 2, claim: int | None = None) -> bytes:
    def element(number: int, content: bytes, length: int | None = None) -> bytes:
        return (
            struct.pack("<II", number, len(content) if length is None else length) + content + bytes(-len(content) % 8)
        )

    body = (
        element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, b"x")
    )
    return element(14, body + element(stored, data, claim))


HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def compressed(data: bytes) -> bytes:
    packed = zlib.compress(data, 9)
    return struct.pack("<II", 15, len(packed)) + packed


BAD = {
    "claims 4 GB": HEAD + matrix((1 << 16, 1 << 15, 2), b"x" * 8, claim=0xFFFFFFFF),
    "claims 8 EB": HEAD + matrix((2**31 - 1, 2**31 - 1, 2), b"x" * 8),
    "compressed, claims 4 GB": HEAD + compressed(matrix((1 << 16, 1 << 14, 4), b"x" * 8, claim=0xFFFFFFFF)),
    "negative axis": HEAD + matrix((-2, -2, 2), b"x" * 8),
    "too few values": HEAD + matrix((2, 2, 3), b"x" * 8),
    "too many values": HEAD + matrix((2, 2, 1, 1), b"x" * 8),
    "values of a wrong type": HEAD + matrix((2, 2, 2), b"x" * 8, stored=14),
    "top-level element too long": HEAD + struct.pack("<II", 14, 1000) + b"x" * 8,
    "no variable": HEAD + struct.pack("<II", 9, 8) + b"x" * 8,
    "cut tag": HEAD + b"\x0e\0\0",
    "not deflated": HEAD + struct.pack("<II", 15, 8) + b"x" * 8,
    "deflated, cut": HEAD + struct.pack("<II", 15, 20) + zlib.compress(matrix((2, 2, 2), b"x" * 8))[:20],
    "deflated, checksum cut": (lambda packed: HEAD + struct.pack("<II", 15, len(packed)) + packed)(
        zlib.compress(matrix((2, 2, 2), b"x" * 8))[:-2]
    ),
    "deflated, more behind": HEAD + compressed(matrix((2, 2, 2), b"x" * 8) + bytes(1 << 20)),
    "deflated nothing": HEAD + compressed(b""),
    "33 dimensions": HEAD + matrix((1,) * 33, b"x" * 8),
    "only a header": HEAD,
    "other version": HEAD[:124] + b"\x00\x05IM",
    "text": b"hello" * 50,
    "zeros": bytes(1000),
    "short": b"x",
    "HDF5 signature only": b"\x89HDF\r\n\x1a\n" + bytes(1000),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.mat").write_bytes(BAD[name])
    with pytest.raises(CubeFileError) as caught:
        read_cube(tmp_path / "a.mat")
    assert caught.value.remedy
    assert caught.value.file == str(tmp_path / "a.mat")


@pytest.mark.parametrize("hdf5", [False, True])
def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hdf5: bool) -> None:
    monkeypatch.setattr("runtime.files.disk.SMALL_EXPANSION", 1 << 20)
    array = np.zeros((128, 128, 128), "u1")
    if hdf5:
        write_hdf5(tmp_path / "a.mat", array, compression="gzip", compression_opts=9)
    else:
        scipy.io.savemat(tmp_path / "a.mat", {"x": array}, do_compression=True)
    with pytest.raises(
        CubeFileError, match="compressed bytes claim to hold 2097152 bytes, more than the 1048576 accepted"
    ):
        read_cube(tmp_path / "a.mat")
    # A bomb beside the cube is never inflated, only looked at.
    scipy.io.savemat(
        tmp_path / "b.mat", {"bomb": np.zeros((2048, 2048)), "x": as_matlab(sample("u2"))}, do_compression=True
    )
    np.testing.assert_array_equal(read_cube(tmp_path / "b.mat").cube, sample("u2"))


def test_a_chunk_that_inflates_beyond_its_size(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        dataset = file.create_dataset("x", (4, 4, 4), "u1", chunks=(4, 4, 4), compression="gzip")
        dataset.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(50_000_000)))
    with pytest.raises(CubeFileError, match="a chunk inflates beyond its 64 bytes"):
        read_cube(tmp_path / "a.mat")


def test_links_and_outside_values_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mat"
    write_hdf5(secret, as_matlab(sample("u2")))
    (tmp_path / "raw").write_bytes(bytes(120))
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["outside"] = h5py.ExternalLink(str(secret), "x")
        file["soft"] = h5py.SoftLink("/cube")
    for key in ("outside", "soft"):
        with pytest.raises(CubeFileError, match=f"{key}: is a link to another place"):
            read_cube(tmp_path / "a.mat", key=key)
    with pytest.raises(CubeFileError, match=r"no 3-D numeric array among: outside \(link\), soft \(link\)"):
        read_cube(tmp_path / "a.mat")
    for name in ("external", "virtual"):
        with h5py.File(tmp_path / "b.mat", "w") as file:
            if name == "external":
                file.create_dataset(name, (3, 4, 5), "u2", external=[(str(tmp_path / "raw"), 0, 120)])
            else:
                layout = h5py.VirtualLayout((3, 5, 4), "u2")
                layout[:] = h5py.VirtualSource(str(secret), "x", (3, 5, 4))
                file.create_virtual_dataset(name, layout)
        with pytest.raises(CubeFileError, match=f"{name}: its values lie in other files"):
            read_cube(tmp_path / "b.mat")


def test_hdf5_that_is_not_plain(tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with h5py.File(tmp_path / "a.mat", "w") as file:
            file.create_dataset("x", **options)
        with pytest.raises(CubeFileError, match=message):
            read_cube(tmp_path / "a.mat", key="x")

    cube = sample("u2")
    refused("compressed in a way that is not undone here .found 'LZF'.", data=cube, compression="lzf")
    refused("holds no values", shape=(4, 4, 4), dtype="u2")
    refused("holds no values", shape=(1 << 20, 1 << 20, 1 << 20), dtype="u2", chunks=(8, 8, 8))
    refused("is not a 3-D array", data=cube > 3)
    refused("is not a 3-D array", data=cube * 1j)
    refused("is not a 3-D array", shape=(2, 2, 2), dtype=h5py.ref_dtype)
    refused("is not a 3-D array", shape=(2, 2, 2), dtype=h5py.string_dtype())
    refused("is not a 3-D array", data=np.zeros((2, 2, 2), [("a", "f4")]))
    refused("is not a 3-D array", data=h5py.Empty("f4"))
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("x", (64, 64, 64), "u2", chunks=(8, 8, 8))[:8, :8, :8] = 1
    with pytest.raises(CubeFileError, match="some of its values were never written"):
        read_cube(tmp_path / "a.mat")


def test_an_hdf5_file_is_known_by_its_content(tmp_path: Path) -> None:
    for block in (0, 512, 1024, 4096):
        with h5py.File(tmp_path / "a.mat", "w", userblock_size=block) as file:
            file["x"] = as_matlab(sample("f4")).T
        np.testing.assert_array_equal(read_cube(tmp_path / "a.mat").cube, sample("f4"))


def _whole_files(folder: Path) -> list[bytes]:
    level5, level5_compressed = io.BytesIO(), io.BytesIO()
    scipy.io.savemat(level5, {"x": sample("u2"), "y": "abc"})
    scipy.io.savemat(level5_compressed, {"x": sample("u2"), "y": "abc"}, do_compression=True)
    write_hdf5(folder / "whole.mat", sample("u2"), compression="gzip")
    return [level5.getvalue(), level5_compressed.getvalue(), (folder / "whole.mat").read_bytes()]


@settings(max_examples=200, deadline=None)
@given(
    which=st.integers(0, 2),
    at=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    end=st.floats(0, 1),
)
def test_damaged_files_raise_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, which: int, at: list[tuple[float, int]], end: float
) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = bytearray(_whole_files(folder)[which])
    for where, byte in at:
        data[int(where * len(data))] = byte
    path = folder / "damaged.mat"
    path.write_bytes(data[: int(end * len(data)) if end < 0.5 else len(data)])
    try:
        assert read_cube(path).cube.ndim == 3
    except CubeFileError as error:
        assert str(error).isprintable()
    finally:
        path.unlink()
