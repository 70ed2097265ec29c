"""Zarr stores read strictly: values against xarray and zarr, and what a stranger's store may not have."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("zarr")

import zarr

from runtime.errors import CubeFileError, DeployError, MachineError
from runtime.products import zarr_store, zarr_tree
from runtime.products.contract import CubeReader, Reading
from runtime.products.zarr_store import open_reader, recognises
from tests.runtime.products.zarr_data import (
    NEWEST,
    SHAPE,
    bare,
    chunk_of,
    dataset,
    needs_3,
    numbers,
    plain,
    versions,
    xr,
)

FILL = Reading(missing_chunks="fill")


def whole(reader: CubeReader) -> NDArray[Any]:
    return reader.read_lines(0, reader.description.shape[1])


def edited(path: Path, change: Callable[[dict[str, Any]], Any], name: str = "reflectance/zarr.json") -> Path:
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))
    return path


def refusal(path: Path, reading: Reading | None = None) -> str:
    with pytest.raises(CubeFileError) as error, open_reader(path, reading or Reading()) as reader:
        whole(reader)
    assert error.value.file is not None and error.value.remedy
    return error.value.one_line()


@pytest.mark.data
@pytest.mark.parametrize("name", ["v2", *(pytest.param(name, marks=needs_3) for name in ("v3", "scattered"))])
def test_miniatures_are_what_an_independent_reader_sees(data_dir: Path, name: str) -> None:
    folder = data_dir / "products"
    truth = json.loads((folder / "truth.json").read_text())[f"zarr/{name}.zarr"]
    with open_reader(folder / "zarr" / f"{name}.zarr", FILL) as reader:
        told, cube = reader.description, whole(reader)
    stated = told.stated
    missing = np.isnan(cube) if np.isnan(stated.marks[0]) else cube == stated.marks[0]
    values = cube * np.array(stated.gains or (1,))[:, None, None]
    assert list(told.shape) == truth["shape"] and told.dtype == truth["stored"] and told.quantity == truth["unit"]
    assert int(missing.all(0).sum()) == truth["missing_pixels"]
    assert values[~missing].min() == pytest.approx(truth["min"]) and values[~missing].max() == pytest.approx(
        truth["max"]
    )
    assert stated.wavelengths is not None and np.round(stated.wavelengths[:3], 4).tolist() == truth["wavelengths_nm"]
    spectrum = values[:: max(1, len(cube) // 6), 9, 11]
    assert spectrum.tolist() == pytest.approx(truth["line9_sample11"], abs=1e-6)
    assert stated.bad == (0,) and told.fwhm == (6.0,) * 40
    grid = told.place.grid
    assert (
        grid is not None and grid.transform == (500000, 4, 0, 5200000, 0, -4) and (grid.lines, grid.samples) == (64, 48)
    )


@versions
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_every_type_reads_as_xarray_has_it(tmp_path: Path, version: int, dtype: str) -> None:
    cube = numbers(dtype)
    with open_reader(plain(tmp_path, version, cube), Reading()) as reader:
        found = whole(reader)
        assert found.dtype == cube.dtype and found.flags.c_contiguous
        assert np.array_equal(found, cube)
        assert reader.description.block == 4


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (3, 5), (4, 8), (9, 10), (0, 10), (1, 9)], ids=lambda value: str(value)
)
def test_any_lines_are_those_of_the_whole(tmp_path: Path, start: int, stop: int) -> None:
    with open_reader(plain(tmp_path), Reading()) as reader:
        assert np.array_equal(reader.read_lines(start, stop), numbers()[:, start:stop])
        assert np.array_equal(reader.read_lines(0, 2), numbers()[:, :2])


COMPRESSORS = {
    2: ["zstd", "gzip", "zlib", "lz4", "blosc-lz4", "blosc-zstd", "none"],
    3: ["zstd", "gzip", "blosc-lz4", "blosc-zstd", "crc32c", "none"],
}


def compressor(version: int, name: str) -> Any:
    import numcodecs

    if name == "none":
        return None
    if version == 2:
        made = {
            "zstd": numcodecs.Zstd(3), "gzip": numcodecs.GZip(5), "zlib": numcodecs.Zlib(5), "lz4": numcodecs.LZ4(),
            "blosc-lz4": numcodecs.Blosc("lz4"), "blosc-zstd": numcodecs.Blosc("zstd", shuffle=2),
        }  # fmt: skip
        return made[name]
    from zarr import codecs

    new = {
        "zstd": [codecs.ZstdCodec(level=3, checksum=True)], "gzip": [codecs.GzipCodec()],
        "blosc-lz4": [codecs.BloscCodec(cname="lz4")],
        "blosc-zstd": [codecs.BloscCodec(cname="zstd", shuffle="bitshuffle")],
        "crc32c": [codecs.GzipCodec(), codecs.Crc32cCodec()],
    }  # fmt: skip
    return new[name]


@pytest.mark.parametrize(
    ("version", "name"),
    [
        pytest.param(version, name, marks=needs_3 if version == 3 else ())
        for version, names in COMPRESSORS.items()
        for name in names
    ],
)
def test_every_codec_reads_as_zarr_has_it(tmp_path: Path, version: int, name: str) -> None:
    path, cube = tmp_path / "a.zarr", numbers("i2")
    bare(path, cube, version, chunks=(4, 3, 5), compressors=compressor(version, name))
    with open_reader(path, Reading(layout="bands,lines,samples")) as reader:
        assert np.array_equal(whole(reader), zarr.open_array(str(path), mode="r")[...])
        assert reader.description.stated.axes is True


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_orders_of_bytes_and_axes_read_as_zarr_has_them(tmp_path: Path, order: Any, byte_order: str) -> None:
    path = tmp_path / "a.zarr"
    cube = numbers(f"{byte_order}i4")
    bare(path, cube, 2, chunks=(4, 3, 5), order=order, separator="/")
    with open_reader(path, Reading()) as reader:
        assert np.array_equal(whole(reader), cube.transpose(2, 0, 1)), "lines, samples, bands where nobody says"
        assert reader.description.stated.axes is False and reader.description.stated.doubts


@needs_3
@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 2, 0)])
def test_axes_that_are_stored_in_another_order_read_as_they_are_named(tmp_path: Path, axes: tuple[int, ...]) -> None:
    names = [("wavelength", "y", "x")[axis] for axis in axes]
    codecs = [zarr.codecs.TransposeCodec(order=(1, 2, 0))]
    new = bare(
        tmp_path / f"{names[0]}.zarr",
        numbers().transpose(axes),
        chunks=(4, 3, 5),
        dimension_names=names,
        filters=codecs,
    )
    with open_reader(new, Reading()) as reader:
        assert np.array_equal(whole(reader), numbers())


@needs_3
def test_shards_are_read_by_rows_of_their_chunks(tmp_path: Path) -> None:
    path = plain(tmp_path, chunks=(3, 2, 5), shards=(6, 4, 10))
    with open_reader(path, Reading()) as reader:
        assert reader.description.block == 2
        assert np.array_equal(whole(reader), numbers())
    assert len(list((path / "reflectance/c").rglob("*"))) < 10


def test_a_missing_file_is_counted_and_refused_or_is_fill(tmp_path: Path) -> None:
    path = plain(tmp_path, chunks=(3, 4, 5))
    chunk_of(path, 0, 1, 0).unlink()
    said = refusal(path)
    assert "1 of 12 chunks are missing" in said and "--missing-chunks fill" in said
    with open_reader(path, FILL) as reader:
        cube = whole(reader)
        assert "1 of 12" in " ".join(reader.description.notes)
    with xr.open_zarr(path, consolidated=False) as known:
        assert np.array_equal(np.isnan(cube), np.isnan(known.reflectance.values))
    assert np.isnan(cube[:3, 4:8, :5]).all() and np.isfinite(cube[3:]).all()
    for index in product(range(2), range(3), range(2)):
        chunk_of(path, *index).unlink(missing_ok=True)
    assert "not one of its chunks" in refusal(path, FILL)


@needs_3
def test_missing_chunks_of_a_shard_count_and_those_outside_do_not(tmp_path: Path) -> None:
    cube = numbers()
    path = tmp_path / "s.zarr"
    array = zarr.create_array(
        path, shape=cube.shape, dtype="f4", chunks=(3, 2, 5), shards=(6, 4, 10), fill_value=0,
        dimension_names=("band", "y", "x"),
    )  # fmt: skip
    cube[3:, 2:4, :5] = 0
    array[...] = cube
    assert "1 of 20 chunks are missing" in refusal(path)
    with open_reader(path, FILL) as reader:
        assert np.array_equal(whole(reader), cube)
        assert reader.description.stated.marks == (0.0,)


def test_scale_offset_and_fill_follow_cf(tmp_path: Path) -> None:
    values = numbers("f8") / 100
    path = plain(tmp_path, 2, values, dtype="int16", scale_factor=2e-5, add_offset=0.01, _FillValue=-99)
    with open_reader(path, Reading()) as reader:
        told, cube = reader.description, whole(reader)
    assert told.stated.gains == (2e-5,) * 6 and told.stated.offsets == (0.01,) * 6 and told.stated.marks == (-99.0,)
    with xr.open_zarr(path, consolidated=False) as known:
        assert np.allclose(cube * 2e-5 + 0.01, known.reflectance.values)


def test_gains_per_band_and_wavelengths_in_micrometres(tmp_path: Path) -> None:
    made = dataset(numbers("i2"))
    made["gain"] = ("wavelength", np.linspace(1e-4, 2e-4, 6))
    made["offset"] = ("wavelength", np.zeros(6))
    made = made.assign_coords(wavelength=("wavelength", np.linspace(0.4, 0.5, 6), {"units": "um"}))
    path = tmp_path / "a.zarr"
    made.to_zarr(path, consolidated=False)
    with open_reader(path, Reading()) as reader:
        stated = reader.description.stated
    assert stated.gains == tuple(np.linspace(1e-4, 2e-4, 6)) and stated.offsets == (0.0,) * 6
    assert stated.wavelengths == (400.0, 420.0, 440.0, 460.0, 480.0, 500.0)


def test_a_grid_without_transform_comes_from_even_coordinates(tmp_path: Path) -> None:
    made = dataset(numbers())
    del made.spatial_ref.attrs["GeoTransform"]
    made.to_zarr(tmp_path / "a.zarr", consolidated=False)
    with open_reader(tmp_path / "a.zarr", Reading()) as reader:
        grid = reader.description.place.grid
    assert grid is not None and grid.transform == (500000, 4, 0, 5200000, 0, -4)


def test_of_several_cubes_one_is_named(tmp_path: Path) -> None:
    made = dataset(numbers())
    made["radiance"] = made.reflectance * 2
    made.to_zarr(tmp_path / "a.zarr", consolidated=False)
    said = refusal(tmp_path / "a.zarr")
    assert "/radiance, /reflectance" in said and "--key" in said
    with open_reader(tmp_path / "a.zarr", Reading(key="radiance")) as reader:
        assert np.allclose(whole(reader), numbers() * 2) and reader.description.title == "/radiance"
    assert "no such array" in refusal(tmp_path / "a.zarr", Reading(key="rainfall"))


def test_a_cube_in_a_group_finds_its_coordinates(tmp_path: Path) -> None:
    dataset(numbers()).to_zarr(tmp_path / "a.zarr", group="deep/er", consolidated=False)
    with open_reader(tmp_path / "a.zarr", Reading(key="deep/er/reflectance")) as reader:
        assert reader.description.title == "/deep/er/reflectance" and reader.description.fwhm == (5.5,) * 6


def test_a_row_that_is_too_large_is_spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain(tmp_path, chunks=(4, 10, 5))
    with open_reader(path, Reading()) as reader:
        usual = reader.description
    monkeypatch.setattr(zarr_store, "LINE_OF_CHUNKS", 100)
    with open_reader(path, Reading()) as reader:
        assert reader.description.block == 1 and reader.description.holds < usual.holds
        assert np.array_equal(reader.read_lines(3, 5), numbers()[:, 3:5])
        assert np.array_equal(whole(reader), numbers())
    chunk_of(path, 1, 0, 1).unlink()
    with open_reader(path, FILL) as reader:
        assert np.isnan(whole(reader)[4:, :, 5:]).all()


def test_no_temporary_space_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain(tmp_path)
    monkeypatch.setattr(zarr_store, "LINE_OF_CHUNKS", 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with open_reader(path, Reading()) as reader, pytest.raises(MachineError, match="bytes, 0 are free"):
        reader.read_lines(0, 1)


def test_a_store_that_is_written_meanwhile_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path)
    with open_reader(path, Reading()) as reader:
        chunk = chunk_of(path, 0, 0, 0)
        chunk.write_bytes(chunk.read_bytes() + b"x")
        with pytest.raises(CubeFileError, match="changed while it was read"):
            reader.read_lines(0, 1)
        chunk_of(path, 0, 1, 0).unlink()
        with pytest.raises(CubeFileError, match="cannot be read"):
            reader.read_lines(4, 8)


@needs_3
@pytest.mark.data
def test_hostile_stores_are_refused(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "products"
    made = subprocess.run(
        [sys.executable, "make_hostile.py", tmp_path / "h"], cwd=folder, capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("the attack files need libraries that are not here")
    for name, why in (
        ("claims-much", "100 of 100 chunks"),
        ("chunk-too-long", "no cube"),
        ("pickle", "Python objects"),
        ("link-out", "link"),
    ):
        assert why in refusal(tmp_path / "h" / f"{name}.zarr")
        refusal(tmp_path / "h" / f"{name}.zarr", FILL)


def test_a_chunk_gives_neither_more_nor_less_than_it_says(tmp_path: Path) -> None:
    import numcodecs

    path = tmp_path / "a.zarr"
    for name, pack in (
        ("zlib", lambda data: zlib.compress(data, 9)),
        ("zstd", lambda data: bytes(numcodecs.Zstd(9).encode(data))),
        ("lz4", lambda data: bytes(numcodecs.LZ4().encode(data))),
        ("blosc-lz4", lambda data: bytes(numcodecs.Blosc("lz4").encode(data))),
    ):
        for size in (0, 100, 6 * 4 * 5 * 4 - 1, 6 * 4 * 5 * 4 + 1, 64 << 20):
            shutil.rmtree(path, ignore_errors=True)
            bare(path, numbers(), 2, chunks=(6, 4, 5), compressors=compressor(2, name))
            (path / "0.0.0").write_bytes(pack(bytes(size)) if size else b"")
            refusal(path, Reading(layout="bands,lines,samples"))


@needs_3
def test_a_shard_that_is_torn_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path, chunks=(3, 2, 5), shards=(6, 4, 10))
    shard = path / "reflectance/c/0/0/0"
    whole_shard = shard.read_bytes()
    for damaged in (whole_shard[:-5], whole_shard[:10], whole_shard[:-40] + b"\1" * 40):
        shard.write_bytes(damaged)
        assert "index" in refusal(path)


def wrong_shard(meta: dict[str, Any]) -> None:
    meta["codecs"] = [
        {
            "name": "sharding_indexed",
            "configuration": {"chunk_shape": [5, 4, 5], "codecs": meta["codecs"], "index_codecs": meta["codecs"]},
        }
    ]


@needs_3
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda meta: meta.update(data_type="string"), "no plain numbers"),
        (lambda meta: meta.update(data_type={"name": "numpy.datetime64", "configuration": {}}), "no plain numbers"),
        (lambda meta: meta.update(codecs=[{"name": "vlen-utf8"}]), "not known"),
        (lambda meta: meta["codecs"].append({"name": "numcodecs.pickle", "configuration": {}}), "not known"),
        (lambda meta: meta["codecs"].append({"name": "gzip", "configuration": {"level": 5}}), "compressed twice"),
        (lambda meta: meta.update(storage_transformers=[{"name": "remote"}]), "not known"),
        (lambda meta: meta.update(extension={"name": "x"}), "extension"),
        (lambda meta: meta.update(shape=[6, 10, 1 << 60]), "no size"),
        (lambda meta: meta.update(shape=[6, 10, True]), "no size"),
        (lambda meta: meta["chunk_grid"]["configuration"].update(chunk_shape=[6, 0, 5]), "no size"),
        (lambda meta: meta["chunk_grid"].update(name="rectangular"), "regular"),
        (lambda meta: meta.update(fill_value="what"), "fill_value"),
        (lambda meta: meta["chunk_key_encoding"]["configuration"].update(separator="/../"), "not known"),
        (lambda meta: meta["attributes"].update(scale_factor="0.1"), "scale_factor"),
        (lambda meta: meta["attributes"].update(scale_factor=0), "scale_factor"),
        (lambda meta: meta["attributes"].update(_FillValue="none"), "_FillValue"),
        (wrong_shard, "divide"),
    ],
)  # fmt: skip
def test_metadata_that_are_not_plain_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    said = refusal(edited(plain(tmp_path), change), Reading(key="reflectance"))
    assert why in said and "zarr.json" in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda meta: meta.update(filters=[{"id": "delta", "dtype": "<f4"}]), "filtered"),
        (lambda meta: meta.update(dtype="|O"), "Python objects"),
        (lambda meta: meta.update(dtype=[["a", "<f4"]]), "no plain numbers"),
        (lambda meta: meta.update(compressor={"id": "pickle"}), "not known"),
        (lambda meta: meta.update(compressor={"id": "zlib", "level": 99}), "level"),
    ],
)
def test_metadata_of_version_2_that_are_not_plain_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    path = edited(plain(tmp_path, 2), change, "reflectance/.zarray")
    assert why in refusal(path, Reading(key="reflectance"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "deeply"),
        ('{"zarr_format": 3, "zarr_format": 3, "node_type": "group"}', "twice"),
        ('{"zarr_format": 3, "node_type": "group", "attributes": {"a": 1e400}}', "too large"),
        ('{"zarr_format": 3, "node_type": "group", "attributes": {"a": ' + "9" * 5000 + "}}", "digits"),
        ('{"zarr_format": 3, "node_type": "group", "attributes": "' + "a" * (17 << 20) + '"}', "more than"),
        ("\xff", "no JSON"),
        ("[]", "no JSON object"),
        ("", "no JSON"),
    ],
    ids=["deep", "twice", "infinite", "digits", "huge", "binary", "list", "empty"],
)
def test_json_is_bounded(tmp_path: Path, text: str, why: str) -> None:
    path = plain(tmp_path)
    name = "zarr.json" if NEWEST == 3 else ".zgroup"
    (path / name).write_bytes(text.encode("latin-1"))
    assert why in refusal(path)


def test_links_and_pipes_inside_are_refused(tmp_path: Path) -> None:
    import os

    path = plain(tmp_path)
    chunk = chunk_of(path, 0, 0, 0)
    chunk.rename(tmp_path / "outside")
    chunk.symlink_to(tmp_path / "outside")
    assert "link" in refusal(path)
    chunk.unlink()
    os.mkfifo(chunk)
    assert "not a regular file" in refusal(path)
    chunk.unlink()
    (path / "fwhm" / "more").symlink_to("/etc")
    assert "link" in refusal(path)


@pytest.mark.parametrize(
    ("name", "values"), [("wavelength", [400, 500, np.nan, 600, 700, 800]), ("wavelength", [0] * 6), ("fwhm", [-1] * 6)]
)
def test_lists_of_bands_that_are_wrong_are_refused(tmp_path: Path, name: str, values: list[float]) -> None:
    made = dataset(numbers())
    made = made.assign_coords({name: ("wavelength", np.array(values, "f8"), {"units": "nm"})})
    made.to_zarr(tmp_path / "a.zarr", consolidated=False)
    assert name in refusal(tmp_path / "a.zarr")


def test_what_is_a_store_is_known_without_zarr(tmp_path: Path) -> None:
    (tmp_path / "file.zarr").write_text("no folder")
    (tmp_path / "empty.zarr").mkdir()
    assert recognises(plain(tmp_path)) and recognises(plain(tmp_path / "old", 2))
    assert not any(map(recognises, (tmp_path / "file.zarr", tmp_path / "empty.zarr", tmp_path / "nothing")))
    assert "no Zarr store" in refusal(tmp_path / "empty.zarr")
    code = (
        "import sys; sys.modules['numcodecs'] = sys.modules['zarr'] = None\n"
        "from pathlib import Path; from runtime.products.zarr_store import recognises\n"
        "assert recognises(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(plain(tmp_path / "other"))], check=True)


def test_zarr_2_says_what_version_3_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_tree, "version", lambda _: "2.18.3")
    store = tmp_path / "v3.zarr"
    store.mkdir()
    (store / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(MachineError, match="version 3") as error:
        open_reader(store, Reading())
    assert "Python 3.11" in error.value.remedy
    with open_reader(plain(tmp_path, 2), Reading()) as reader:
        assert np.array_equal(whole(reader), numbers())


@versions
def test_no_byte_of_a_store_ends_in_another_error(tmp_path: Path, version: int) -> None:
    """Some bytes of some file changed, cut or doubled: a cube of the right shape, or one of our errors."""
    chance = random.Random(version)
    store = plain(tmp_path, version, **({"shards": (6, 8, 10)} if version == 3 else {}))
    files = sorted(file for file in store.rglob("*") if file.is_file())
    outcomes = set()
    for _ in range(250):
        file = chance.choice(files)
        data = bytearray(before := file.read_bytes())
        where = chance.randrange(len(data))
        how = chance.randrange(3)
        if how == 0:
            data[where : where + chance.randint(1, 4)] = chance.randbytes(chance.randint(1, 4))
        elif how == 1:
            del data[where:]
        else:
            data[where:where] = data[where : where + 20]
        file.write_bytes(data)
        try:
            with open_reader(store, FILL) as reader:
                outcomes.add(whole(reader).ndim)
        except DeployError as error:
            outcomes.add(type(error).__name__)
        file.write_bytes(before)
    assert outcomes == {3, "CubeFileError"} or outcomes == {3, "CubeFileError", "MachineError"}
    assert numbers().shape == SHAPE
