"""NumPy files: layouts and types, and files made to run code or to exhaust memory."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CubeFileError, MachineError
from runtime.files import read_cube, write_cube
from tests.runtime.files_data import sample


@pytest.mark.parametrize("order", list(permutations(("bands", "lines", "samples"))))
def test_every_layout(tmp_path: Path, order: tuple[str, str, str]) -> None:
    cube = sample("u2")
    layout = ",".join(order)
    write_cube(tmp_path / "a.npy", cube, layout=layout)
    stored = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, cube.transpose([("bands", "lines", "samples").index(axis) for axis in order]))
    np.savez_compressed(tmp_path / "a.npz", cube=stored)
    for name in ("a.npy", "a.npz"):
        read = read_cube(tmp_path / name, layout=f" {layout.upper().replace(',', ' , ')}")
        np.testing.assert_array_equal(read.cube, cube)
        assert read.cube.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", ">u4", "<i8", ">u8", "<f2", ">f4", ">f8"])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_type_and_version(tmp_path: Path, dtype: str, fortran: bool, version: tuple[int, int]) -> None:
    array = sample(dtype, (4, 5, 3))
    if fortran:
        array = np.asfortranarray(array)
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    read = read_cube(tmp_path / "a.npy")
    np.testing.assert_array_equal(read.cube, array.transpose(2, 0, 1))
    assert read.cube.dtype.isnative
    assert read.cube.dtype == np.dtype(dtype).newbyteorder("=")
    assert (read.format, read.wavelengths, read.scale, read.ignore_value, dict(read.fields)) == (
        "npy",
        None,
        None,
        None,
        {},
    )


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2, 2), complex),
        np.zeros((2, 2, 2), bool),
        np.zeros((2, 2, 2), "U3"),
        np.zeros((2, 2, 2), "S3"),
        np.zeros((2, 2, 2), [("a", "f4")]),
        np.zeros((2, 2, 2), "M8[s]"),
        np.zeros((2, 2, 2), "g"),
        np.zeros((2, 2, 2), object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_types_that_are_no_spectra(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", cube=array, allow_pickle=True)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(
            CubeFileError, match=r"not real numbers of 1 to 8 bytes.*; save the cube as integers or floats"
        ):
            read_cube(tmp_path / name)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 2, 2, 2), (0, 2, 2)])
def test_shapes_that_are_no_cube(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(CubeFileError, match="a cube has three axes, none of them empty"):
        read_cube(tmp_path / "a.npy")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.empty((1, 1, 1), object)
    array[0, 0, 0] = Bomb()
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", cube=array, allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "a.npz", "b.npy", "b.npz"):
        with pytest.raises(CubeFileError):
            read_cube(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def described(shape: object, descr: object = "<u1") -> str:
    return repr({"descr": descr, "fortran_order": False, "shape": shape}) + "\n"


BAD = {
    "claims 64 GiB": npy(described((1 << 12, 1 << 12, 1 << 12)), b"x" * 100),
    "claims more than 64 bits": npy(described((2**31 - 1, 2**31 - 1, 2**31 - 1)), b"x" * 100),
    "huge axis": npy(described((10**30, 1, 1)), b"x"),
    "negative axis": npy(described((-1, -1, 8)), b"x" * 8),
    "axis of truth": npy(described((True, 2, 2)), b"x" * 2),
    "one byte short": npy(described((2, 2, 2)), b"x" * 7),
    "one byte long": npy(described((2, 2, 2)), b"x" * 9),
    "header longer than the file": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "header longer than allowed": npy(described((2, 2, 2)) + " " * 20_000, b"x" * 8, 2),
    "deep header": npy("(" * 9000, b"x" * 8, 2),
    "deep expression": npy("-" * 9000 + "1", b"x" * 8, 2),
    "calls in the header": npy("{'descr': exit(), 'fortran_order': False, 'shape': (1,1,1)}", b"x"),
    "no dictionary": npy("[]", b"x"),
    "shape is text": npy(described("222"), b"x" * 8),
    "subarray type": npy(described((2, 2, 2), ("<u1", (10**6,))), b"x" * 8),
    "record type": npy(described((2, 2, 2), [("a", "<u1")]), b"x" * 8),
    "type of nonsense": npy(described((2, 2, 2), "<q99"), b"x" * 8),
    "void of 2 GB": npy(described((2, 2, 2), "|V2000000000"), b"x" * 8),
    "version 9": npy(described((2, 2, 2)), b"x" * 8, 9),
    "magic only": b"\x93NUMPY",
    "text": b"hello",
    "null bytes": b"\0" * 1000,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_npy_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.npy").write_bytes(BAD[name])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("cube.npy", BAD[name])
    for file in ("a.npy", "a.npz"):
        with pytest.raises(CubeFileError) as caught:
            read_cube(tmp_path / file)
        assert caught.value.remedy


def test_names_in_npz(tmp_path: Path) -> None:
    cube = sample("u2")
    np.savez(
        tmp_path / "a.npz", scene=cube.transpose(1, 2, 0), other=[1], wavelength_nm=np.array([400, 500, 600], "f4")
    )
    read = read_cube(tmp_path / "a.npz", key="scene")
    assert (read.format, read.wavelengths) == ("npz", (400.0, 500.0, 600.0))
    np.testing.assert_array_equal(read.cube, cube)
    with pytest.raises(
        CubeFileError, match=r"key: no such array in the file \(found 'cube'\); choose one of other, scene, "
    ):
        read_cube(tmp_path / "a.npz")
    with pytest.raises(CubeFileError, match="three axes"):
        read_cube(tmp_path / "a.npz", key="wavelength_nm")


@pytest.mark.parametrize(
    ("values", "message"),
    [([400.0, 500.0], "has 2 values for 3 bands"), ([1.0, np.nan, 2.0], "not finite"), ([[1.0]], "must have 1 axis")],
)
def test_wavelengths_in_npz_that_are_wrong(tmp_path: Path, values: Any, message: str) -> None:
    np.savez(tmp_path / "a.npz", cube=sample("u1").transpose(1, 2, 0), wavelength_nm=values)
    with pytest.raises(CubeFileError, match="wavelength_nm: .*" + message):
        read_cube(tmp_path / "a.npz")


def zipped(path: Path, data: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "cube.npy") -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, data)
    return path.read_bytes()


def test_a_bomb_in_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.files.disk.SMALL_EXPANSION", 1 << 20)
    side = 128
    data = npy(described((side, side, side)), bytes(side**3))
    zipped(tmp_path / "a.npz", data)
    with pytest.raises(CubeFileError, match=r"compressed bytes claim to hold 2097.* more than the 1048576 accepted"):
        read_cube(tmp_path / "a.npz")
    zipped(tmp_path / "a.npz", data, zipfile.ZIP_STORED)
    assert read_cube(tmp_path / "a.npz").cube.shape == (side, side, side)


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    data = npy(described((8, 8, 8)), bytes(512))
    raw = zipped(tmp_path / "a.npz", data)
    size = struct.pack("<I", len(data))
    for other in (1 << 31, len(data) - 1, len(data) + 1, 0):
        (tmp_path / "a.npz").write_bytes(raw.replace(size, struct.pack("<I", other)))
        with pytest.raises(CubeFileError):
            read_cube(tmp_path / "a.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "a.npz", npy(described((2, 2, 2)), b"x" * 8), method)
    with pytest.raises(CubeFileError, match=r"is encrypted or compressed in an unusual way; write it with numpy.savez"):
        read_cube(tmp_path / "a.npz")


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("cube.npy", npy(described((2, 2, 2)), b"x" * 8))
    with pytest.raises(CubeFileError, match="two arrays have the same name"):
        read_cube(tmp_path / "a.npz")


def test_a_changed_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    raw = zipped(tmp_path / "a.npz", npy(described((2, 2, 2)), b"abcdefgh"), zipfile.ZIP_STORED)
    (tmp_path / "a.npz").write_bytes(raw.replace(b"abcdefgh", b"abcdefgi"))
    with pytest.raises(CubeFileError, match="is damaged: Bad CRC-32"):
        read_cube(tmp_path / "a.npz")


def test_more_than_the_memory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", sample("f8"))
    monkeypatch.setattr("runtime.files.disk.available_memory", lambda: 450)
    with pytest.raises(MachineError, match="reading it takes 480 bytes of memory, 450 are available"):
        read_cube(tmp_path / "a.npy")


def _whole_files() -> dict[str, bytes]:
    plain, compressed = io.BytesIO(), io.BytesIO()
    np.save(plain, sample("u2"))
    np.savez_compressed(compressed, cube=sample("u2"), wavelength_nm=[1.0, 2.0, 3.0, 4.0, 5.0])
    return {"npy": plain.getvalue(), "npz": compressed.getvalue()}


WHOLE = _whole_files()


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["npy", "npz"]),
    at=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    end=st.floats(0, 1),
)
def test_damaged_files_raise_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, at: list[tuple[float, int]], end: float
) -> None:
    data = bytearray(WHOLE[kind])
    for where, byte in at:
        data[int(where * len(data))] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(data[: int(end * len(data)) if end < 0.5 else len(data)])
    try:
        assert read_cube(path).cube.size == 60
    except CubeFileError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("most", [4, 5])
@pytest.mark.parametrize("name", ["a.npz", "a.mat", "a-7.3.mat"])
def test_a_file_of_very_many_arrays_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    arrays, path = {"cube": sample("u2"), **{f"v{i}": np.zeros(3) for i in range(4)}}, tmp_path / name
    if name == "a.npz":
        np.savez(path, **arrays)
    elif name == "a.mat":
        scipy.io.savemat(path, arrays)
    else:
        with h5py.File(path, "w") as file:
            file.update(arrays)
    monkeypatch.setattr("runtime.files.disk.MOST_HELD", most)
    if most == 5:
        assert read_cube(path).cube.ndim == 3
    else:
        with pytest.raises(CubeFileError, match=rf"{name}: holds more than 4 arrays; save the cube in a file"):
            read_cube(path)


def test_the_list_of_an_archive_is_not_read_however_long_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(10_000):
            archive.writestr(f"array-{number}.npy", b"")
    with pytest.raises(CubeFileError, match=r"a\.npz: .*its list of arrays takes \d+ bytes"):
        read_cube(tmp_path / "a.npz")
