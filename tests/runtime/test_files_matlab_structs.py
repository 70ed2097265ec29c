"""MATLAB files whose cube lies in a struct, in a 2-D array of pixels, or was written by another program."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from runtime.errors import CubeFileError
from runtime.files import read_cube
from runtime.files.layout import LAYOUTS, PLANE_LAYOUTS
from tests.runtime.files_data import as_matlab, sample

FORMATS = ("level 5", "level 5, compressed", "HDF5")
CUBE = sample("f4")
DEEP = sample("u2", seed=1)
CLASSES = {"float64": "double", "float32": "single", "bool": "logical"}

Tree = Mapping[str, Any]


def write_group(group: Any, tree: Tree) -> None:
    """As MATLAB writes its structs and arrays into HDF5."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            held = group.create_group(name)
            write_group(held, value)
            held.attrs["MATLAB_class"] = np.bytes_("struct")
        else:
            array = np.atleast_2d(value)
            stored = array.astype("u1") if array.dtype == bool else array
            compression = "gzip" if array.size > 1 else None
            group.create_dataset(name, data=stored.T, compression=compression).attrs["MATLAB_class"] = np.bytes_(
                CLASSES.get(str(array.dtype), str(array.dtype))
            )


def write(path: Path, format: str, tree: Tree) -> Path:
    if format != "HDF5":
        scipy.io.savemat(path, dict(tree), do_compression="compressed" in format)
        # As MATLAB signs, not as SciPy does.
        path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: PCWIN64".ljust(124) + path.read_bytes()[124:])
        return path
    with h5py.File(path, "w", userblock_size=512) as file:
        write_group(file, tree)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def refusal(path: Path, key: str | None = None, layout: str = "lines,samples,bands") -> str:
    with pytest.raises(CubeFileError) as caught:
        read_cube(path, key=key, layout=layout)
    assert caught.value.remedy
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{path}, ")


TREE = {
    "hsi": {
        "info": {"wavelength": np.linspace(400, 1000, 3), "deep": {"cube": as_matlab(DEEP)}},
        "Data": as_matlab(CUBE),
        "valid": as_matlab(CUBE) > 0,
    },
    "gt": np.ones((4, 5)),
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_cube_in_a_struct_is_named_through_it(tmp_path: Path, format: str) -> None:
    path = write(tmp_path / "a.mat", format, TREE)
    for key in ("hsi.Data", "hsi/Data", "/hsi/Data"):
        read = read_cube(path, key=key)
        np.testing.assert_array_equal(read.cube, CUBE)
        assert (read.cube.dtype, read.doubts) == (CUBE.dtype, ())
    np.testing.assert_array_equal(read_cube(path, key="hsi.info.deep.cube").cube, DEEP)
    turned = read_cube(path, key="hsi.Data", layout="samples,lines,bands").cube
    np.testing.assert_array_equal(turned, CUBE.transpose(0, 2, 1))


@pytest.mark.parametrize("format", FORMATS)
def test_structs_are_looked_into_for_choices(tmp_path: Path, format: str) -> None:
    one = write(tmp_path / "one.mat", format, {"hsi": {"Data": as_matlab(CUBE)}})
    assert refusal(one) == (
        "key: no 3-D numeric array but in structs or groups: hsi.Data (4x5x3 single); "
        "name one of them, as in --key hsi.Data"
    )
    path = write(tmp_path / "a.mat", format, TREE)
    choices = sorted(["hsi.Data (4x5x3 single)", "hsi.info.deep.cube (4x5x3 uint16)"])
    for told in (refusal(path), refusal(path, "Data"), refusal(path, "hsi.data"), refusal(path, "hsi")):
        assert all(choice in told for choice in choices), told
    assert refusal(path, "hsi").startswith("hsi: hsi (")
    assert refusal(path, "hsi.valid").startswith("hsi.valid: hsi.valid (4x5x3 logical) is not a 3-D array")
    assert "no such variable in the file (found 'hsi.Data.x')" in refusal(path, "hsi.Data.x")
    two = write(tmp_path / "two.mat", format, {**TREE, "a": as_matlab(CUBE), "b": as_matlab(DEEP)})
    assert refusal(two).startswith("key: 4 3-D numeric arrays: ")
    # An array by itself is the cube, whatever lies in structs.
    np.testing.assert_array_equal(read_cube(write(two, format, {**TREE, "a": as_matlab(DEEP)})).cube, DEEP)


def test_arrays_of_structs_are_named_as_such(tmp_path: Path) -> None:
    elements = np.zeros((1, 2), [("Data", object)])
    elements["Data"] = [[as_matlab(CUBE), as_matlab(DEEP)]]
    scipy.io.savemat(tmp_path / "a.mat", {"s": {"many": elements}})
    with h5py.File(tmp_path / "b.mat", "w") as file:
        file.create_group("#refs#")["a"] = CUBE
        file.create_group("s").create_group("many")["Data"] = np.full((2, 1), file["#refs#/a"].ref, h5py.ref_dtype)
    for name, found in (("a", "s.many (1x2 struct)"), ("b", "s.many.Data (1x2 struct array)")):
        told = refusal(tmp_path / f"{name}.mat", "s.many.Data")
        assert told == (
            f"key: is in an array of structs: {found} (found 's.many.Data'); save one by itself, as in one = s.many(1)"
        )
        assert found in refusal(tmp_path / f"{name}.mat")
        assert "no such variable in the file (found 's.more')" in refusal(tmp_path / f"{name}.mat", "s.more")


def element(number: int, content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<II", number, len(content) if length is None else length) + content + bytes(-len(content) % 8)


def head(kind: int, shape: tuple[int, ...], name: bytes = b"") -> bytes:
    flags = element(6, struct.pack("<II", kind, 0))
    return flags + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name)


def struct_of(fields: Mapping[str, bytes], name: bytes = b"s", width: int = 8) -> bytes:
    """The content of a struct's element, of the elements of its fields."""
    names = b"".join(field.encode().ljust(width, b"\0") for field in fields)
    return head(2, (1, 1), name) + struct.pack("<HHI", 5, 4, width) + element(1, names) + b"".join(fields.values())


HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
ARRAY = element(14, head(9, (2, 2, 2)) + element(2, bytes(range(8))))
OTHERS = {
    "handle": element(14, element(6, struct.pack("<II", 17, 0)) + element(1, b"") + element(1, b"MCOS") + b"\xff" * 64),
    "call": element(14, element(6, struct.pack("<II", 16, 0)) + b"\xff" * 64),
    "object": element(14, head(3, (1, 1)) + element(1, b"inline") + b"\xff" * 64),
    "cell": element(14, head(1, (1, 2)) + b"\xff" * 64),
    "nothing": element(14, b""),
}


def packed(data: bytes, level: int = 9) -> bytes:
    content = zlib.compress(data, level)
    return struct.pack("<II", 15, len(content)) + content


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_not_understood_lies_beside_the_cube(tmp_path: Path, compressed: bool) -> None:
    whole = element(14, struct_of(OTHERS | {"Data": ARRAY} | {f"{name}2": data for name, data in OTHERS.items()}))
    (tmp_path / "a.mat").write_bytes(HEAD + (packed(whole) if compressed else whole))
    np.testing.assert_array_equal(as_matlab(read_cube(tmp_path / "a.mat", key="s.Data").cube).ravel("F"), range(8))
    assert "s.call2 (function) is not" in refusal(tmp_path / "a.mat", "s.call2")


def test_what_hdf5_holds_beside_the_cube(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", "HDF5", {"hsi": {"Data": as_matlab(CUBE)}})
    with h5py.File(path, "r+") as file:
        for group in (file, file["hsi"]):
            group.create_dataset("cell", (2, 2, 2), h5py.ref_dtype)
            group.create_dataset("text", data="abc")
            group.create_dataset("phase", data=np.zeros((2, 2, 2), [("real", "f8"), ("imag", "f8")]))
            group.create_dataset("null", data=h5py.Empty("f4"))
            group.create_dataset("empty", data=np.array([3, 0, 4], "u8")).attrs["MATLAB_empty"] = np.uint8(1)
            group.create_dataset("table", data=np.zeros((6, 1), "u4")).attrs["MATLAB_object_decode"] = np.int32(3)
            group.create_group("sparse").attrs["MATLAB_sparse"] = np.uint64(4)
            group["sparse"]["data"] = np.zeros((2, 2, 2))
            group["type"] = np.dtype("f4")
            h5py.h5d.create(group.id, b"date", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2, 2, 2)))
            group["again"] = group
            group["away"] = h5py.ExternalLink("other.mat", "x")
            group["soft"] = h5py.SoftLink("/hsi/Data")
    np.testing.assert_array_equal(read_cube(path, key="hsi.Data").cube, CUBE)
    assert "key: no 3-D numeric array but in structs or groups: " in refusal(path)
    for key in ("soft", "hsi.soft", "hsi/away"):
        assert f"{key}: is a link to another place; save the array itself" in refusal(path, key)
    for name, kind in {
        "phase": "complex",
        "cell": "cell",
        "empty": "empty",
        "table": "opaque",
        "sparse": "sparse",
        "date": "unreadable",
    }.items():
        assert f"{kind}) is not a 3-D array of real numbers" in refusal(path, name)


def nested(levels: int, inner: bytes) -> bytes:
    for _ in range(levels):
        inner = element(14, struct_of({"s": inner}, b""))
    return inner


DAMAGED = {
    "field longer than its struct": struct_of({"Data": ARRAY[:4] + struct.pack("<I", 4000) + ARRAY[8:]}),
    "values longer than their field": struct_of(
        {"Data": element(14, head(9, (2, 2, 4)) + struct.pack("<II", 2, 16) + bytes(8)), "b": ARRAY}
    ),
    "field shorter than its head": struct_of({"Data": ARRAY[:4] + struct.pack("<I", 8) + ARRAY[8:]}),
    "no field": struct_of({"Data": element(9, bytes(8))}),
    "no names": head(2, (1, 1), b"s"),
    "names longer than the file": head(2, (1, 1), b"s") + struct.pack("<HHI", 5, 4, 8) + struct.pack("<II", 1, 1 << 19),
    "names of no width": struct_of({"Data": ARRAY}, width=0),
    "fewer fields than names": struct_of({"a": b"", "Data": ARRAY}),
    "deeper than is sane": struct_of({"s": nested(2000, ARRAY)}),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", DAMAGED)
def test_structs_made_to_harm(tmp_path: Path, name: str, compressed: bool) -> None:
    whole = element(14, DAMAGED[name])
    (tmp_path / "a.mat").write_bytes(HEAD + (packed(whole) if compressed else whole))
    for key in (None, "s.Data", "s" + ".s" * 2001):
        refusal(tmp_path / "a.mat", key)


def test_a_struct_that_expands_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = element(14, head(9, (1, 1 << 20)) + element(2, bytes(1 << 20)))
    bomb = packed(element(14, struct_of({"zeros": zeros, "Data": ARRAY})))
    path = tmp_path / "a.mat"
    path.write_bytes(HEAD + bomb)
    assert read_cube(path, key="s.Data").cube.size == 8
    for module in ("disk", "matlab_level5"):
        monkeypatch.setattr(f"runtime.files.{module}.SMALL_EXPANSION", 1 << 18)
    assert "its structs claim to hold more than is accepted of compressed bytes" in refusal(path, "s.Data")
    assert "s (1x1 unreadable struct)" in refusal(path)
    array = head(9, (2, 2, 2), b"x") + element(2, bytes(range(8)))
    path.write_bytes(HEAD + bomb + element(14, array))
    assert read_cube(path).cube.size == 8
    path.write_bytes(HEAD + packed(element(14, array + bytes(1 << 20))))
    assert "compressed bytes claim to hold" in refusal(path)


def test_of_endless_fields_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.files.matlab.MOST_HELD", 4)
    fields = struct_of({f"f{number}": OTHERS["nothing"] for number in range(9)} | {"Data": ARRAY})
    (tmp_path / "a.mat").write_bytes(HEAD + 2 * element(14, fields))
    assert ": s (1x1 struct), s.f0 (empty), s.f1 (empty), s.f2 (empty), s.f3 (empty), s (1x1 struct); " in refusal(
        tmp_path / "a.mat"
    )
    assert "no such variable in the file (found 's.Data')" in refusal(tmp_path / "a.mat", "s.Data")


def test_groups_that_hold_themselves_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        for name in "abc":
            file.create_group(name)
        for name in "abc":
            for other in "abc":
                file[name][other] = file[other]
    told = refusal(tmp_path / "a.mat")
    assert "no 3-D numeric array among: a (struct), a.a (struct), a.b (struct), a.b.a (struct)" in told
    assert "a.a.a" not in told
    assert "no such variable in the file" in refusal(tmp_path / "a.mat", "a.b.c.x")


def test_no_bit_of_a_compressed_struct_flips_unseen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", "level 5, compressed", {"s": {"Data": as_matlab(DEEP), "behind": np.zeros(5)}})
    whole = path.read_bytes()
    for at in range(136, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            np.testing.assert_array_equal(read_cube(path, key="s.Data").cube, DEEP)
        except CubeFileError:
            continue


# Who wrote it


def test_axes_that_another_program_wrote_are_doubtful(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        file["cube"] = CUBE
        file.create_group("group")["cube"] = CUBE
    for key, name in ((None, "cube"), ("group/cube", "group.cube")):
        (doubt,) = read_cube(path, key=key).doubts
        assert doubt == (
            f"nothing in the file says that MATLAB wrote {name}, so its axes may be reversed: "
            "--layout bands,samples,lines turns them"
        )
        # What was said is not doubted.
        assert not any(
            read_cube(path, layout=layout, key=key).doubts for layout in LAYOUTS if layout not in PLANE_LAYOUTS
        )
    np.testing.assert_array_equal(read_cube(path, layout="samples,lines,bands").cube, CUBE)


def test_what_says_that_matlab_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cube"] = as_matlab(CUBE).T
    assert read_cube(path).doubts
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    assert read_cube(path).doubts == ()
    with h5py.File(path, "r+") as file:
        file["other"] = np.zeros((2, 2))
        file["other"].attrs["MATLAB_class"] = np.bytes_("double")
    # Among arrays of MATLAB's one that has no class was added by another program.
    assert "MATLAB wrote cube" in read_cube(path).doubts[0]
    with h5py.File(path, "r+") as file:
        file["cube"].attrs["MATLAB_class"] = np.bytes_("single")
    read = read_cube(path)
    np.testing.assert_array_equal(read.cube, CUBE)
    assert read.doubts == ()


def test_scipys_cubes_are_in_matlabs_order(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"x": as_matlab(CUBE)})
    read = read_cube(tmp_path / "a.mat")
    np.testing.assert_array_equal(read.cube, CUBE)
    assert read.doubts == ()


# Pixels along one axis


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bands_first", [False, True])
def test_pixels_are_counted_as_matlab_counts_unless_told(tmp_path: Path, format: str, bands_first: bool) -> None:
    bands, lines, samples = CUBE.shape
    for layout, order in (("lines,samples,bands", "F"), ("samples,lines,bands", "C")):
        pixels = as_matlab(CUBE).reshape(lines * samples, bands, order=order)  # type: ignore[call-overload]
        array = pixels.T if bands_first else pixels
        path = write(tmp_path / "a.mat", format, {"Y": array, "s": {"Y": array, "end": 1.0}})
        for key in (f"Y:{lines}x{samples}", f"s.Y:{lines}x{samples}"):
            read = read_cube(path, key=key, layout=layout)
            np.testing.assert_array_equal(read.cube, CUBE)
            assert (read.doubts, read.cube.flags.c_contiguous) == ((), True)


def test_pixels_that_python_counted_are_doubtful(tmp_path: Path) -> None:
    bands, lines, samples = CUBE.shape
    scipy.io.savemat(tmp_path / "a.mat", {"Y": as_matlab(CUBE).reshape(-1, bands)})
    (doubt,) = read_cube(tmp_path / "a.mat", key=f"Y:{lines}x{samples}").doubts
    assert doubt.endswith("as NumPy does, --layout samples,lines,bands takes them so")
    read = read_cube(tmp_path / "a.mat", key=f"Y:{lines}x{samples}", layout="samples,lines,bands")
    np.testing.assert_array_equal(read.cube, CUBE)
    assert read.doubts == ()
    with h5py.File(tmp_path / "b.mat", "w") as file:
        file["Y"] = as_matlab(CUBE).reshape(-1, bands)
    (doubt,) = read_cube(tmp_path / "b.mat", key=f"Y:{lines}x{samples}").doubts
    assert "--layout bands,samples,lines turns them" in doubt
    read = read_cube(tmp_path / "b.mat", key=f"Y:{lines}x{samples}", layout="bands,samples,lines")
    np.testing.assert_array_equal(read.cube, CUBE)


@pytest.mark.parametrize("format", FORMATS)
def test_without_its_size_a_2d_array_is_refused_with_the_way_to_tell_it(tmp_path: Path, format: str) -> None:
    flat = np.zeros((3, 20), "u2")
    told = "if one axis of Y is all pixels of an image, name it with its lines and samples"
    path = write(tmp_path / "a.mat", format, {"Y": flat, "maxValue": 9.0})
    for key in (None, "Y"):
        assert refusal(path, key).endswith(f"{told}: --key Y:LINESxSAMPLES (3 or 20 pixels)")
    for names in (("nRow", "nCol"), ("n_rows", "n_cols"), ("H", "W"), ("lines", "samples"), ("height", "width")):
        path = write(tmp_path / "a.mat", format, {"Y": flat, names[0]: 4.0, names[1]: 5})
        for key in (None, "Y"):
            assert refusal(path, key).endswith(f"{told}, as {names[0]} and {names[1]} tell: --key Y:4x5")
    for rows in (0.0, -4.0, 3.0, np.nan, np.inf):
        path = write(tmp_path / "a.mat", format, {"Y": flat, "nRow": rows, "nCol": 5})
        assert refusal(path).endswith("Y:LINESxSAMPLES (3 or 20 pixels)")
    path = write(tmp_path / "a.mat", format, {"nRow": 4, "nCol": 5, "s": {"Y": flat, "rows": 2, "cols": 10}})
    assert refusal(path, "s.Y").endswith("as s.rows and s.cols tell: --key s.Y:2x10")


@pytest.mark.parametrize("format", FORMATS)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, format: str) -> None:
    path = write(
        tmp_path / "a.mat", format, {"Y": np.zeros((3, 20)), "x": as_matlab(CUBE), "mask": np.ones((3, 20)) > 0}
    )
    told = (
        "key: Y (3x20 double) has no axis of 4x6 = 24 pixels (found 'Y:4x6'); tell lines and samples whose product is "
    )
    assert refusal(path, "Y:4x6") == told + "3 or 20"
    for size in ("4", "4x", "0x20", "4x5x3", "-4x-5", "4 x 5", "", "٤x٥"):
        assert f"is not the size of an image (found '{size}'); tell lines and samples" in refusal(path, f"Y:{size}")
    assert "x (4x5x3 single) is not a 2-D array of real numbers; name it without a size: x" in refusal(path, "x:4x5")
    assert "mask (3x20 logical) is not a 2-D array of real numbers" in refusal(path, "mask:4x5")
    assert "no such variable in the file (found 'Z:4x5')" in refusal(path, "Z:4x5")


def test_where_either_axis_may_be_the_pixels_the_layout_says_which(tmp_path: Path) -> None:
    array = np.arange(36.0).reshape(6, 6)
    path = write(tmp_path / "a.mat", "level 5", {"Y": array})
    last, first = "lines,samples,bands", "bands,lines,samples"
    for layout, expected in ((None, array.T), (last, array.T), (first, array)):
        read = read_cube(path, key="Y:2x3", layout=layout)
        np.testing.assert_array_equal(read.cube, expected.reshape(6, 3, 2).transpose(0, 2, 1))
        doubt = f"either axis of Y may be its pixels: --layout {first} takes the other one"
        assert read.doubts == (() if layout else (doubt,))


# Damage


def test_damaged_structs_raise_one_kind_of_error(tmp_path: Path) -> None:
    tree = {**TREE, "Y": np.zeros((3, 20)), "nRow": 4, "nCol": 5}
    wholes = [write(tmp_path / "a.mat", format, tree).read_bytes() for format in FORMATS]
    keys = (None, "hsi.Data", "hsi/info/deep/cube", "hsi", "Y", "Y:4x5", "Y:4y5", "hsi.info.deep.x")
    for seed in range(300):
        random = np.random.default_rng(seed)
        data = bytearray(wholes[seed % len(wholes)])
        for at in random.integers(0, len(data), random.integers(1, 5)):
            data[at] = random.integers(256) if random.random() < 0.5 else data[at] ^ 1 << random.integers(8)
        path = tmp_path / "damaged.mat"
        path.write_bytes(data[: random.integers(len(data)) if random.random() < 0.1 else len(data)])
        try:
            assert read_cube(path, key=keys[random.integers(len(keys))]).cube.ndim == 3
        except CubeFileError as error:
            assert error.remedy
            assert str(error).isprintable()


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 6, 2)])
def test_a_checksum_that_is_stored_is_held(tmp_path: Path, shape: tuple[int, ...], compression: str | None) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("cube", data=values, chunks=shape, fletcher32=True, compression=compression)
    np.testing.assert_array_equal(read_cube(tmp_path / "a.mat", layout="samples,lines,bands").cube, values)
    with h5py.File(tmp_path / "a.mat") as file:
        info = file["cube"].id.get_chunk_info(0)
    whole = (tmp_path / "a.mat").read_bytes()
    for at in range(info.byte_offset, info.byte_offset + info.size):
        (tmp_path / "a.mat").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(CubeFileError):
            read_cube(tmp_path / "a.mat")


@pytest.mark.parametrize("dtype", ["<u2", ">f4", "<f8"])
@pytest.mark.parametrize("order", list(permutations(("fletcher32", "shuffle", "deflate"))))
def test_a_checksum_is_held_wherever_in_the_pipeline_it_stands(
    tmp_path: Path, order: tuple[str, ...], dtype: str
) -> None:
    values, path = np.random.default_rng(0).integers(0, 9, (3, 5, 7)).astype(dtype), tmp_path / "a.mat"

    def write() -> None:
        with h5py.File(path, "w") as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_chunk((2, 5, 3))
            for name in order:
                getattr(properties, f"set_{name}")(*([4] if name == "deflate" else []))
            kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(values.shape)
            h5py.h5d.create(file.id, b"cube", kind, space, properties).write(h5py.h5s.ALL, h5py.h5s.ALL, values)

    write()
    np.testing.assert_array_equal(read_cube(path, layout="samples,lines,bands").cube, values)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["cube"], values)
        info = file["cube"].id.get_chunk_info(0)
    if order[-1] == "fletcher32":
        whole = bytearray(path.read_bytes())
        whole[info.byte_offset + info.size - 1] ^= 1
        path.write_bytes(whole)
        with pytest.raises(CubeFileError, match=r"a\.mat, cube: .*checksum of a chunk"):
            read_cube(path, layout="samples,lines,bands")


def test_arrays_that_are_no_real_numbers_are_told_how_to_be_saved(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "half.mat", "w") as file:
        file["cube"] = np.zeros((3, 4, 5), np.float16)
    with pytest.raises(CubeFileError, match=r"cube = single\(real\(cube\)\)"):
        read_cube(tmp_path / "half.mat")
    scipy.io.savemat(tmp_path / "cell.mat", {"c": np.array([np.zeros((3, 4, 5)), "x"], object)})
    with pytest.raises(CubeFileError, match=r"cube = c\{1\}"):
        read_cube(tmp_path / "cell.mat")
