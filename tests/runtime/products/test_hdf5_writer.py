"""HDF5 products written like the input: only the cube's numbers are new, and nothing comes from elsewhere."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray

from runtime.errors import CubeFileError, DeployError
from runtime.products import contract, hdf5_lines, open_writer
from runtime.products.hdf5_copy import Copy
from runtime.products.hdf5_writer import holds_like

from .hdf5_written import contents, open_hdf5, result_of, write_all

PRODUCTS = [
    "emit/EMIT_L1B_RAD_001_20240101T000000_2400001_001.nc",
    "emit/EMIT_L2A_RFL_001_20240101T000000_2400001_001.nc",
    "emit/EMIT_L2A_RFL_001_20241006T165148_2428011_003_crop.nc",
    "prisma/PRS_L1_STD_OFFL_20240402102837_20240402102842_0001.he5",
    "prisma/PRS_L2D_STD_20240402102837_20240402102842_0001.he5",
    "hypso/trondheim_2024-05-01_1030Z-l1a.nc",
    "hypso/trondheim_2024-05-01_1030Z-l1b.nc",
    "hypso/trondheim_2024-05-01_1030Z-l1d.nc",
    "aviris/AV320240101t000000_000_L1B_RDN_miniature_RDN.nc",
    "aviris/AV320240101t000000_000_L2A_OE_miniature_RFL_ORT.nc",
]


@pytest.mark.data
@pytest.mark.parametrize("name", PRODUCTS)
def test_all_but_the_cube_is_the_source_s(name: str, data_dir: Path, tmp_path: Path) -> None:
    path, out = data_dir / "products" / name, tmp_path / f"restored{Path(name).suffix}"
    with open_hdf5(path) as reader:
        old = reader.read_lines(0, reader.description.shape[1])
        # Backwards: every number of the cube moves, and stays one that the product can have.
        new = old[:, ::-1]
        assert write_all(open_writer(out, result_of(reader), "like"), new, about="x" * 200_000) == (out,)
        cubes = {part.path for part in reader.cube_parts}  # type: ignore[attr-defined]
        place = result_of(reader).place
    with open_hdf5(out) as reader:
        assert np.array_equal(reader.read_lines(0, old.shape[1]), new)
        assert reader.description.place == place
    before, after = contents(path), contents(out)
    changed = {key for key in before if before[key] != after.get(key)}
    assert {f"{cube}#" for cube in cubes} <= changed
    ours = ("/damp_deploy", "damp_deploy_seen", "damp_deploy_expert")
    added = {key for key in after.keys() - before.keys() if not any(name in key for name in ours)}
    assert added <= {"/@history", "/@damp_deploy"}
    # Dimensions list the layers that hang on them; groups list the layers.
    others = {key for key in changed if key.removesuffix("#") not in cubes}
    assert all(key.endswith("@REFERENCE_LIST") or before[key][0] == "group" or key == "/@history" for key in others)
    assert out.stat().st_size < path.stat().st_size + 250_000
    if out.suffix == ".nc":
        _look_as_netcdf(path, out, cubes)
    else:
        with h5py.File(out) as file:
            assert file["damp_deploy/seen"][:, 0].tolist() == list(range(old.shape[1]))
            assert len(file.attrs["damp_deploy"]) > 200_000


def _look_as_netcdf(path: Path, out: Path, cubes: set[str]) -> None:
    """What the two libraries that people use see: dimensions are attached, values are there, and nobody warns."""
    group, name = next(iter(cubes)).rsplit("/", 1)
    with warnings.catch_warnings(), netCDF4.Dataset(path) as source, netCDF4.Dataset(out) as copy:
        warnings.simplefilter("error")
        assert len(copy.damp_deploy) > 200_000
        assert copy.history.splitlines()[-1].startswith("damp-deploy")
        assert list(copy.dimensions) == list(source.dimensions)
        held = copy[group] if group else copy
        cube = held[name]
        assert cube.dimensions == (source[group] if group else source)[name].dimensions
        assert held["damp_deploy_seen"].dimensions == tuple(
            one for one in cube.dimensions if one not in ("bands", "wavelength")
        )
        with xarray.open_dataset(out, group=group or None) as opened:
            opened.load()
            assert (
                opened["damp_deploy_seen"][:, 0].values.tolist()
                == list(range(cube.shape[cube.ndim == 3 and 0]))[: opened["damp_deploy_seen"].shape[0]]
            )


@pytest.mark.data
def test_bands_of_wavelength_0_stay_as_they_were(data_dir: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "PRS_L1_odd.he5", tmp_path / "out.he5"
    path.write_bytes((data_dir / "products" / PRODUCTS[3]).read_bytes())
    cube = "HDFEOS/SWATHS/PRS_L1_HCO/Data Fields/VNIR_Cube"
    with h5py.File(path, "r+") as file:
        file[cube][:, :3] = 77
    with open_hdf5(path) as reader:
        write_all(open_writer(out, result_of(reader), "like"), np.full(reader.description.shape, 5, np.uint16))
    with h5py.File(out) as file:
        assert (file[cube][:, :3] == 77).all()
        assert (file[cube][:, 3:] == 5).all()


def emit(path: Path, lines: int = 9, **made: Any) -> Path:
    """A small EMIT frame [lines, 6, 5] that h5py wrote, without NetCDF's dimensions."""
    rng = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        file.attrs["instrument"] = "EMIT"
        cube = file.create_dataset("reflectance", data=rng.random((lines, 6, 5), np.float32), **made)
        cube.attrs["_FillValue"] = np.float32(-9999)
        file["sensor_band_parameters/wavelengths"] = np.linspace(400, 440, 5, dtype="f4")
    return path


def rewrite(path: Path, out: Path, block: int = 4) -> np.ndarray:
    """Write `path` like itself, backwards; returns the new cube."""
    with open_hdf5(path) as reader:
        new = reader.read_lines(0, reader.description.shape[1])[:, ::-1]
        write_all(open_writer(out, result_of(reader), "like"), new, block)
    return new


@pytest.mark.parametrize("kept", ["memory", "disk"])
@pytest.mark.parametrize("chunks", [None, (1, 6, 5), (4, 3, 2), (9, 6, 1), (9, 6, 5), (2, 4, 5)])
@pytest.mark.parametrize("type_", ["<f4", ">f4", "<i2"])
def test_any_chunks_and_blocks(
    kept: str, chunks: Any, type_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept == "disk":
        monkeypatch.setattr(contract, "LINE_OF_CHUNKS", 100)
        monkeypatch.setattr(hdf5_lines, "SPOOLED_AT_ONCE", 300)
    path = tmp_path / "EMIT.nc"
    with h5py.File(path, "w") as file:
        file.attrs["instrument"] = "EMIT"
        data = np.arange(270).reshape(9, 6, 5).astype(type_)
        compressed = {"compression": "gzip", "shuffle": True, "fletcher32": True} if chunks else {}
        file.create_dataset("radiance", data=data, chunks=chunks, **compressed)
    for block in (1, 4, 9):
        rewrite(path, tmp_path / f"{block}.nc", block)
    with h5py.File(tmp_path / "4.nc") as file:
        assert np.array_equal(file["radiance"][()], data[::-1])
        assert file["radiance"].dtype == np.dtype(type_)
        assert file["radiance"].chunks == chunks
        assert file["radiance"].fletcher32 is bool(chunks)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["1.nc", "4.nc", "9.nc", "EMIT.nc"]
    assert len({(tmp_path / f"{block}.nc").read_bytes() for block in (1, 4, 9)}) == 1


def test_whatever_a_file_may_hold_is_copied(tmp_path: Path) -> None:
    path, out = emit(tmp_path / "EMIT.nc", chunks=(3, 6, 5), compression="gzip"), tmp_path / "o.nc"
    with h5py.File(path, "r+") as file:
        group = file.create_group("many", track_order=True)
        for name in ("z", "a", "m"):
            group[name] = np.int8(1)
        for number in range(20):
            group.attrs[f"{20 - number}"] = number
        file["words"] = ["one", "zwölf", ""]
        file.create_dataset("packed words", data=["x" * 300] * 40, chunks=(7,), compression="gzip")
        file["kind"] = np.dtype([("a", "f8"), ("b", "i2", (2,)), ("word", h5py.string_dtype())])
        records = file.create_dataset("records", (2,), file["kind"])
        records[0] = (1.5, [1, 2], "here")
        file["flags"] = np.array([1, 0], h5py.enum_dtype({"OFF": 0, "ON": 1}, "i1"))
        ragged = file.create_dataset("ragged", (2,), h5py.vlen_dtype("f4"))
        ragged[1] = [1, 2, 3]
        references = file.create_dataset("references", (3,), h5py.ref_dtype)
        references[0], references[1] = file["flags"].ref, file["many"].ref
        file["empty"] = h5py.Empty("f4")
        file.create_dataset("never written", (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")
        file.create_dataset("grows", data=np.arange(5), maxshape=(None,), chunks=(2,), fillvalue=9)
        file.create_dataset("scale offset", data=np.arange(50) % 7, chunks=(20,), scaleoffset=True)
        file.create_dataset("opaque", data=np.array([b"ab", b"c\0"], "V2"))
        file["half"], file["bool"], file["complex"] = np.float16(0.1), np.array([True]), np.array([1 + 2j])
        file["sum"] = np.arange(100000).reshape(2, 50000)
        file["again"], file["itself"] = file["sum"], file["/"]
        file["soft"], file["nowhere"] = h5py.SoftLink("/many/a"), h5py.SoftLink("nothing")
        file.attrs["scalar"], file.attrs["list of words"] = "text", ["a", "b"]
        file["flags"].attrs.create("points", file["sum"].ref, dtype=h5py.ref_dtype)
        file["many"].attrs["nothing"] = h5py.Empty("f8")
    rewrite(path, out)
    before, after = contents(path), contents(out)
    different = {key for key in before if before[key] != after.get(key)}
    assert different == {"/reflectance#", "/"}
    with h5py.File(out) as file:
        assert set(file) - {"damp_deploy"} == set(h5py.File(path))
        assert "left_out" not in file.attrs["damp_deploy"]


def test_attributes_of_more_than_64_kib(tmp_path: Path) -> None:
    path = tmp_path / "EMIT.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts({"instrument": "EMIT", "long": "y" * 200_000, "history": "made"})
        for name, length in (("lines", 2), ("samples", 3), ("bands", 4)):
            file.createDimension(name, length)
        file.createVariable("radiance", "f4", ("lines", "samples", "bands"))[:] = 1
    rewrite(path, tmp_path / "o.nc")
    rewrite(tmp_path / "o.nc", tmp_path / "again.nc")
    with netCDF4.Dataset(tmp_path / "again.nc") as file:
        assert file.long == "y" * 200_000
        assert file.history.splitlines() == ["made", *["damp-deploy 1.2: see damp_deploy"] * 2]
        assert list(file.variables) == ["radiance", "damp_deploy_seen", "damp_deploy_expert"]
        assert file.data_model == "NETCDF4"
    with netCDF4.Dataset(tmp_path / "again.nc", "a") as file:
        file.createDimension("more", 2)


@pytest.mark.parametrize("told", [["one", "two"], np.bytes_(b"one\ntwo"), 5, h5py.Empty("f4"), None])
def test_a_history_goes_on(told: Any, tmp_path: Path) -> None:
    path = emit(tmp_path / "EMIT.nc")
    if told is not None:
        with h5py.File(path, "r+") as file:
            file.attrs["history"] = told
    rewrite(path, tmp_path / "o.nc")
    with h5py.File(tmp_path / "o.nc") as file:
        before = ["one", "two"] if isinstance(told, list | bytes) else []
        assert file.attrs["history"].splitlines() == [*before, "damp-deploy 1.2: see damp_deploy"]
        assert ("it is no text" in file.attrs["damp_deploy"]) is (told is not None and not before)


def test_nothing_comes_from_another_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.full(1000, 7.25)
    raw = tmp_path / "secret.raw"
    raw.write_bytes(b"secret-in-a-file" * 10)
    path, out = emit(tmp_path / "EMIT.nc"), tmp_path / "o.nc"
    with h5py.File(path, "r+") as file:
        file["linked"] = h5py.ExternalLink(str(secret), "/x")
        file["through"] = h5py.SoftLink("/linked")
        layout = h5py.VirtualLayout((1000,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "x", (1000,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (160,), "u1", external=[(str(raw), 0, 160)])
        file["points"] = file["virtual"].ref
        file["reflectance"].attrs["points"] = file["raw"].ref
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        properties.set_filter(32026, h5py.h5z.FLAG_OPTIONAL, (0,))
        h5py.h5d.create(file.id, b"plugin", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), properties)
        file.create_dataset("regions", (1,), h5py.regionref_dtype)
        file["texts"] = np.full(70000, "a", object)
    rewrite(path, out)
    with h5py.File(out) as file:
        assert set(file) == {"reflectance", "sensor_band_parameters", "points", "through", "damp_deploy"}
        assert file.get("through", getlink=True).path == "/linked"
        assert not file["points"][()]
        left = file.attrs["damp_deploy"]
    assert b"secret" not in out.read_bytes().replace(b"secret.", b"")
    assert np.full(2, 7.25).tobytes() not in out.read_bytes()
    for line in (
        "/linked is left out: it is a link to another file",
        "/virtual is left out: its values lie in other files",
        "/raw is left out: its values lie in other files",
        "/plugin is left out: it is compressed by filter 32026",
        "/regions is left out: it refers to regions",
        "/texts is left out: it holds more than 65536",
        "/reflectance@points is left out: it refers to something that is left out",
    ):
        assert line in left


def test_no_more_is_copied_than_a_file_has(tmp_path: Path) -> None:
    """Objects that say that their values are the same bytes would fill a disk."""
    path = emit(tmp_path / "EMIT.nc")
    with h5py.File(path, "r+") as file:
        for number in range(8):
            file[f"d{number}"] = np.full(1000, number, "u8")
    with h5py.File(path) as source, h5py.File(tmp_path / "new.h5", "w") as target:
        copy = Copy(path, 20_000, source, target, empty=[], without=[])
        with pytest.raises(
            CubeFileError, match=r"/d\d: cannot be copied: it says that it holds more than its 20000 bytes"
        ):
            copy.make(lambda: None, ())


def test_two_runs_are_byte_equal(tmp_path: Path) -> None:
    path = tmp_path / "EMIT.nc"
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["instrument"] = "EMIT"
        file.create_dataset("reflectance", data=np.ones((3, 4, 5), "f4"), chunks=(2, 4, 5), track_times=True)
        file.create_group("g").create_dataset("timed", data=[1], track_times=True)
    rewrite(path, tmp_path / "1.nc")
    # HDF5 counts whole seconds.
    time.sleep(1.1)
    rewrite(path, tmp_path / "2.nc")
    assert (tmp_path / "1.nc").read_bytes() == (tmp_path / "2.nc").read_bytes()


def test_what_is_no_cube_of_the_source_is_refused(tmp_path: Path) -> None:
    path = emit(tmp_path / "EMIT.nc")
    with open_hdf5(path) as reader:
        for changed in ({"dtype": np.dtype("i2")}, {"shape": (5, 8, 6)}, {"reader": None}):
            with pytest.raises(CubeFileError, match=r"cannot stand where float32 .* stood") as caught:
                open_writer(tmp_path / "o.nc", result_of(reader, **changed), "like")
            assert "--format netcdf" in str(caught.value)
        with pytest.raises(CubeFileError, match="would overwrite the input"):
            open_writer(path, result_of(reader), "like")
    assert [one.name for one in tmp_path.iterdir()] == ["EMIT.nc"]


def test_absent_without_its_end(tmp_path: Path) -> None:
    path, out = emit(tmp_path / "EMIT.nc", chunks=(4, 6, 5)), tmp_path / "o.nc"
    out.write_text("what was here")
    with open_hdf5(path) as reader:
        block = reader.read_lines(0, 5)
        with open_writer(out, result_of(reader, quality=False), "like") as writer:
            writer.write_lines(block)
        with (
            pytest.raises(CubeFileError, match="only 5 of its 9 lines"),
            open_writer(out, result_of(reader, quality=False), "like") as writer,
        ):
            writer.write_lines(block)
            writer.finish({})
        with pytest.raises(CubeFileError, match="No such file or directory"):
            open_writer(tmp_path / "no" / "o.nc", result_of(reader), "like")
        writer.close()
    assert out.read_text() == "what was here"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["EMIT.nc", "o.nc"]


def test_a_source_that_changes_is_refused(tmp_path: Path) -> None:
    path, out = emit(tmp_path / "EMIT.nc"), tmp_path / "o.nc"
    with open_hdf5(path) as reader:
        block = reader.read_lines(0, 9)
        with open_writer(out, result_of(reader, quality=False), "like") as writer:
            os.utime(path, (1, 1))
            with pytest.raises(CubeFileError, match="was changed since it was opened"):
                writer.write_lines(block)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["like", "netcdf"])
def test_a_full_disk(kind: str, tmp_path: Path) -> None:
    """At whatever byte the disk is full: one error, nothing left, and a process that ends as it should."""
    path = emit(tmp_path / "EMIT.nc", lines=300, chunks=(40, 6, 5), compression="gzip")
    code = f"""
import resource
import sys
from pathlib import Path
from runtime.errors import CubeFileError
from runtime.products import open_writer
from tests.runtime.products.hdf5_written import open_hdf5, result_of, write_all
told = 0
for limit in range(0, 60000, 1300):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with open_hdf5(Path({str(path)!r})) as reader:
        try:
            cube = reader.read_lines(0, 300)
            write_all(open_writer(Path({str(tmp_path / "out.nc")!r}), result_of(reader), {kind!r}), cube)
        except CubeFileError as error:
            assert "cannot be written: File too large" in str(error), error
            told += 1
print(told)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert (ran.returncode, ran.stderr[-2000:]) == (0, "")
    assert 10 < int(ran.stdout) < 47
    assert sorted(one.name for one in tmp_path.iterdir()) == ["EMIT.nc", "out.nc"]
    with open_hdf5(tmp_path / "out.nc") as made, open_hdf5(path) as source:
        assert np.array_equal(made.read_lines(0, 300), source.read_lines(0, 300))


def test_a_kill_leaves_nothing_to_be_seen(tmp_path: Path) -> None:
    path, out = emit(tmp_path / "EMIT.nc", chunks=(1, 6, 5)), tmp_path / "o.nc"
    code = f"""
import os, signal
from pathlib import Path
from runtime.products import open_writer
from tests.runtime.products.hdf5_written import open_hdf5, result_of
with open_hdf5(Path({str(path)!r})) as reader:
    writer = open_writer(Path({str(out)!r}), result_of(reader, quality=False), "like")
    writer.write_lines(reader.read_lines(0, 5))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert ran.returncode == -signal.SIGKILL
    assert [one.name for one in tmp_path.iterdir() if not one.name.startswith(".")] == ["EMIT.nc"]
    rewrite(path, out)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["EMIT.nc", "o.nc"]


def test_damage_is_one_error(tmp_path: Path) -> None:
    """Bytes of a file turned over, wherever: read and written, or refused in words."""
    path = emit(tmp_path / "EMIT.nc", chunks=(3, 6, 5), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["words"] = ["a", "b"]
        file["points"] = file["words"].ref
        file["reflectance"].dims[0].label = "lines"
        file["sum"] = np.arange(400)
    data = path.read_bytes()
    rng = np.random.default_rng(11)
    written = refused = 0
    for _ in range(150):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 6):
            broken[place] = int(rng.integers(0, 256))
        path.write_bytes(broken)
        try:
            rewrite(path, tmp_path / "o.nc")
            written += 1
        except DeployError as error:
            assert str(error)
            refused += 1
        assert {one.name for one in tmp_path.iterdir()} <= {"EMIT.nc", "o.nc"}
    assert written > 10
    assert refused > 10


def test_a_damaged_heap_is_refused_before_hdf5_reads_it(tmp_path: Path) -> None:
    """HDF5 2.0 reads free space of 0 bytes for ever."""
    path = emit(tmp_path / "EMIT.nc")
    with h5py.File(path, "r+") as file:
        file["sensor_band_parameters"].attrs["words"] = ["a", "b"]
    data = bytearray(path.read_bytes())
    heaps = [at for at in range(len(data)) if data[at : at + 4] == b"GCOL"]
    for heap in heaps:
        at = heap + 16
        while index := int.from_bytes(data[at : at + 2], "little"):
            at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
            assert index
        data[at + 8 : at + 16] = bytes(8)
    assert heaps
    path.write_bytes(data)
    code = f"""
from pathlib import Path
from runtime.errors import CubeFileError
from tests.runtime.products.test_hdf5_writer import rewrite
try:
    rewrite(Path({str(path)!r}), Path({str(tmp_path / "o.nc")!r}))
except CubeFileError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "a heap of its texts is damaged" in ran.stdout
    assert [one.name for one in tmp_path.iterdir()] == ["EMIT.nc"]


def test_texts_that_are_one_text_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = emit(tmp_path / "EMIT.nc")
    with h5py.File(path, "r+") as file:
        file.attrs["words"] = ["a" * 100_000, *["b"] * 3000]
    rewrite(path, tmp_path / "o.nc")
    with h5py.File(tmp_path / "o.nc") as file:
        assert "words" not in file.attrs
        assert "/@words is left out: it may be larger" in file.attrs["damp_deploy"]


def test_a_row_of_chunks_that_is_large_waits_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = emit(tmp_path / "EMIT.nc", chunks=(9, 6, 1))
    with open_hdf5(path) as reader:
        small = holds_like(result_of(reader))
        monkeypatch.setattr(contract, "LINE_OF_CHUNKS", 9 * 6 * 5 * 4 - 1)
        monkeypatch.setattr(hdf5_lines, "SPOOLED_AT_ONCE", 0)
        # Two chunks' worth of bands in place of the row.
        assert small - holds_like(result_of(reader)) == 9 * 6 * 4 * (5 - 2)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(path, tmp_path / "o.nc")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
