"""What a strict opening of HDF5 refuses, and what it finds: hostile, linked and damaged files, texts, lists."""

from __future__ import annotations

import importlib.util
import random
import struct
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from runtime.errors import CubeFileError, DeployError
from runtime.products import Reading
from runtime.products.hdf5_tree import Tree
from tests.runtime.products.hdf5_data import emit, opened, put, refused, values

HOSTILE = {
    "external-link.nc": "reflectance: is a link to another file",
    "external-link-on-the-way.nc": "location: is a link to another file",
    "external-storage.nc": "/reflectance: its values lie in other files",
    "virtual.nc": "/reflectance: its values lie in other files",
    "claims-4-terabytes.nc": "/reflectance: holds no values",
    "one-chunk-of-256-mib.nc": "/reflectance: 26.* compressed bytes claim to hold 268435456",
    "filter-of-a-plugin.nc": "/reflectance: is compressed .*Blosc2.*h5repack",
    "vlen.nc": "/reflectance: holds Python objects",
    "compound.nc": "/reflectance: holds records",
    "wavelengths-one-short.nc": "/sensor_band_parameters/wavelengths: 4 entries for 5 bands",
    "wavelengths-nan.nc": "/sensor_band_parameters/wavelengths: the entry of band 3 .*nan",
    "glt-points-outside.nc": "/location/glt_x: points outside the cube.*2000000",
    "scale-nan-fill-text.nc": "/reflectance scale_factor: .*nan",
    "two-cubes.nc": "key: holds 2 cubes: /radiance, /reflectance; say which, as in --key /radiance",
    "loop.h5": "/b: is a link, and no cube is in the file",
}


@pytest.fixture(scope="module")
def hostile(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("make_hostile", data_dir / "products" / "make_hostile.py")
    assert spec is not None
    assert spec.loader is not None
    made: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.OUT = tmp_path_factory.mktemp("hostile")
    made.hdf5()
    assert {name for name, _ in made.CASES} == set(HOSTILE)
    return Path(made.OUT)


@pytest.mark.data
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_file_key_and_remedy(hostile: Path, name: str) -> None:
    refused(hostile / name, HOSTILE[name])


@pytest.mark.data
def test_of_two_cubes_one_is_named(hostile: Path) -> None:
    for key in ("radiance", "/radiance"):
        with opened(hostile / "two-cubes.nc", Reading(key=key)) as reader:
            assert reader.description.title == "/radiance"
            assert reader.description.quantity == "radiance"
    refused(hostile / "two-cubes.nc", "no such cube in the file, which has: /radiance", Reading(key="mask"))


def test_soft_links_are_followed_in_the_file_and_no_further(tmp_path: Path) -> None:
    def link(file: h5py.File) -> None:
        file["kept/inside"] = file["reflectance"]
        del file["reflectance"]
        file["reflectance"] = h5py.SoftLink("/way/inside")
        file["way"] = h5py.SoftLink("kept")

    with opened(emit(tmp_path / "a.nc", link)) as reader:
        np.testing.assert_array_equal(reader.read_lines(0, 4), values((4, 3, 5)).transpose(2, 0, 1))

    def circle(file: h5py.File) -> None:
        del file["reflectance"]
        file["reflectance"] = h5py.SoftLink("/other")
        file["other"] = h5py.SoftLink("/reflectance")

    refused(emit(tmp_path / "b.nc", circle), "is a link that leads to itself")

    def outside(file: h5py.File) -> None:
        del file["reflectance"]
        file["reflectance"] = h5py.SoftLink("/door/reflectance")
        file["door"] = h5py.ExternalLink(str(tmp_path / "a.nc"), "/")

    refused(emit(tmp_path / "c.nc", outside), "door: is a link to another file")


def test_attributes_are_of_their_type_and_bounded(tmp_path: Path) -> None:
    def with_attribute(name: str, value: object) -> Path:
        return emit(tmp_path / "a.nc", lambda file: file["reflectance"].attrs.__setitem__(name, value))

    refused(with_attribute("units", 3.0), "/reflectance units: is no text")
    refused(with_attribute("units", ["a", "b"]), "/reflectance units: is no text")
    refused(with_attribute("units", h5py.Empty("S3")), "/reflectance units: is empty or too long")
    refused(with_attribute("units", "x" * 70_000), "/reflectance units: .*too long")
    refused(with_attribute("_FillValue", "none"), "/reflectance _FillValue: is no number.*none")
    refused(with_attribute("_FillValue", 1e300), "/reflectance _FillValue: is a mark that float32 does not hold")
    refused(with_attribute("scale_factor", 0.0), "/reflectance scale_factor")
    refused(with_attribute("add_offset", [1.0, 2.0]), "/reflectance add_offset: has 2 numbers instead of 1")
    with opened(with_attribute("_FillValue", np.float32(np.nan))) as reader:
        assert np.isnan(reader.description.stated.marks).all()


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("many", [1, 8, 9, 40, 200])
def test_texts_of_any_length_are_those_h5py_reads(tmp_path: Path, libver: str, ordered: bool, many: int) -> None:
    texts = {f"name{index}": "°" * (index % 50) + str(index) for index in range(many)}
    with h5py.File(tmp_path / "a.h5", "w", libver=libver, userblock_size=512 * ordered) as file:
        group = file.create_group("group", track_order=ordered)
        for name, text in texts.items():
            group.attrs[name] = text
    with Tree(tmp_path / "a.h5") as tree:
        assert {name: tree.text("/group", name) for name in texts} == texts
        assert tree.text("/group", "other") is None


def test_a_heap_that_hdf5_would_read_for_ever_is_refused(tmp_path: Path) -> None:
    whole = emit(tmp_path / "a.nc").read_bytes()
    at = whole.index(b"GCOL") + 16
    for size in (0, 1, 2**63, 2**64 - 1):
        for step in (0, 24):
            damaged = bytearray(whole)
            struct.pack_into("<Q", damaged, at + step + 8, size)
            (tmp_path / "b.nc").write_bytes(damaged)
            try:
                with Tree(tmp_path / "b.nc") as tree:
                    tree.text("/", "instrument")
            except CubeFileError as error:
                assert "is damaged" in str(error)


def test_groups_that_hold_each_other_and_crowds_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b"] = file["/"]
        file["a/c"] = file["a"]
    refused(tmp_path / "a.h5", "holds no cube that is read")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        for index in range(2001):
            file[f"{index}"] = h5py.SoftLink("/x")
    refused(tmp_path / "b.h5", "holds more than 2000 objects")


def test_names_that_are_no_text_are_no_hindrance(tmp_path: Path) -> None:
    with opened(emit(tmp_path / "a.nc", lambda file: file.create_dataset(b"PRS_\xff", data=1.0))) as reader:
        assert reader.description.format == "emit"
    with h5py.File(tmp_path / "b.nc", "w") as file:
        file.create_group("HDFEOS/SWATHS").create_dataset(b"PRS_\xff", data=1.0)
    refused(tmp_path / "b.nc", "holds no co-registered cube")
    with h5py.File(tmp_path / "c.nc", "w") as file:
        file.create_dataset(b"\xff", data=values((3, 4, 5)))
    with opened(tmp_path / "c.nc", Reading(layout="lines,samples,bands")) as reader:
        assert reader.description.shape == (5, 3, 4)


def test_files_that_are_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(b"CDF\1" + bytes(100))
    with pytest.raises(CubeFileError, match="is no HDF5 file"):
        Tree(tmp_path / "a.nc")
    with pytest.raises(CubeFileError, match="no such file"):
        Tree(tmp_path / "b.nc")
    (tmp_path / "c.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refused(tmp_path / "c.nc", "is damaged")


@pytest.mark.parametrize("seed", range(150))
def test_damage_raises_nothing_else_and_ends(tmp_path: Path, seed: int) -> None:
    def more(file: h5py.File) -> None:
        file["reflectance"].attrs["units"] = "unitless"
        del file["location/glt_x"]
        file.create_dataset("location/glt_x", data=np.ones((6, 7), "i4"), chunks=(2, 7), compression=4, fletcher32=True)
        put(file, "location/lon", values((4, 3), "f8"))
        put(file, "location/lat", values((4, 3), "f8"))
        for index in range(12):
            file.attrs[f"other{index}"] = "a text"

    chance, data = random.Random(seed), bytearray(emit(tmp_path / "a.nc", more).read_bytes())
    used = [at for at, byte in enumerate(data) if byte]
    for _ in range(chance.randrange(1, 6)):
        at = min(chance.choice(used) + chance.randrange(-4, 5), len(data) - 1)
        data[at] = chance.choice([0, 1, 127, 255, data[at] ^ 1 << chance.randrange(8)])
    (tmp_path / "a.nc").write_bytes(data[: chance.choice([len(data)] * 5 + [chance.randrange(len(data))])])
    start = time.process_time()
    try:
        with opened(tmp_path / "a.nc") as reader:
            reader.read_lines(0, reader.description.shape[1])
            reader.glt()
            reader.located(0, 1)
    except DeployError as error:
        assert str(error).isprintable()
    except StopIteration:
        assert data[:8] != b"\x89HDF\r\n\x1a\n"
    assert time.process_time() - start < 60
