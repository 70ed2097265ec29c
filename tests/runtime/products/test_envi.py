"""ENVI pairs by lines, in and out: values, places, what is carried, and that nothing is ever half there."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import spectral.io.envi as spy
from numpy.typing import NDArray

from runtime.errors import CubeFileError, MachineError
from runtime.files import read_cube
from runtime.files.envi import read_envi, read_header
from runtime.products import format_of, open_cube, open_writer
from runtime.products.contract import CubeReader, Description, Grid, Place, Quality, Reading, Result
from runtime.products.envi_place import grid_of, map_fields
from runtime.stated import Stated
from tests.contracts.killing import killed
from tests.runtime.files_data import CODES, REAL_HEADERS, edited, sample, write_pair
from tests.runtime.test_files_envi import by_gdal, by_spectral

MAKE = {"program": "deploy", "counts": {"moved": 3}, "text": "braces { } , = ;\n\u00e9"}


def in_blocks(reader: CubeReader, step: int) -> NDArray[Any]:
    lines = reader.description.shape[1]
    return np.concatenate(
        [reader.read_lines(first, min(first + step, lines)) for first in range(0, lines, step)], axis=1
    )


def result_of(source: Description, **other: Any) -> Result:
    """The result that is written of a source whose numbers stay what they are."""
    said = {name: getattr(source, name) for name in ("shape", "dtype", "stated", "fwhm", "quantity", "unit", "place")}
    return Result(source, **(said | {"mark": next(iter(source.stated.marks), None)} | other))


def layers(lines: int, samples: int, seed: int = 0) -> Quality:
    random = np.random.default_rng(seed)
    return Quality(*(random.integers(0, 9, (lines, samples), np.uint8) for _ in range(2)))


def written(out: Path, result: Result, cube: NDArray[Any], kind: str = "like", step: int = 3) -> tuple[Path, ...]:
    quality = layers(*cube.shape[1:])
    with open_writer(out, result, kind) as writer:
        for first in range(0, cube.shape[1], step):
            part = slice(first, first + step)
            writer.write_lines(cube[:, part], Quality(quality.seen[part], quality.expert[part]))
        return writer.finish(MAKE)


@pytest.mark.parametrize("byte_order", [0, 1])
@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
@pytest.mark.parametrize("code", CODES)
def test_every_layout_is_read_as_whole_files_are(tmp_path: Path, code: int, interleave: str, byte_order: int) -> None:
    cube = sample(CODES[code], (3, 7, 5))
    header = write_pair(tmp_path, cube, code, interleave, byte_order, header_offset=byte_order * 11)
    for path in (header, header.with_suffix(".img")):
        with open_cube(path) as reader:
            assert (reader.description.format, reader.description.shape) == ("envi", cube.shape)
            assert reader.description.dtype == np.dtype(CODES[code])
            assert reader.description.files == (header.with_suffix(".img"), header)
            for step in (1, 3, 7):
                lines = in_blocks(reader, step)
                assert lines.flags.c_contiguous
                np.testing.assert_array_equal(lines, read_cube(path).cube)


@pytest.mark.data
@pytest.mark.parametrize("name", REAL_HEADERS)
def test_real_pairs(data_dir: Path, name: str) -> None:
    whole = read_cube(data_dir / name)
    with open_cube(data_dir / name) as reader:
        assert repr(reader.description.stated) == repr(whole.stated)
        np.testing.assert_array_equal(in_blocks(reader, reader.description.block), whole.cube)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "marks", "bad"),
    [
        ("hyspex/baldur_01_raw.hyspex", (65535,), (0, 1)),
        ("specim/capture/2024-05-01_001.raw", (), ()),
        ("headwall/raw_0", (), ()),
        ("resonon/flight_Pika_L_1.bil", (), ()),
        ("resonon/flight_Pika_L_1.bil.hdr", (), ()),
    ],
)
def test_recorders_pairs(data_dir: Path, name: str, marks: tuple[int, ...], bad: tuple[int, ...]) -> None:
    path = data_dir / "products/envi-folders" / name
    with open_cube(path) as reader:
        told = reader.description
        assert (told.format, told.shape, told.dtype) == ("envi", (40, 30, 20), np.uint16)
        assert (told.stated.marks, told.stated.bad) == (marks, bad)
        assert told.stated.wavelengths is not None
        assert told.stated.wavelengths[0] == pytest.approx(379.9)
        np.testing.assert_array_equal(in_blocks(reader, 7), read_cube(path).cube)


@pytest.mark.data
def test_aviris_ng_by_an_independent_reader(data_dir: Path) -> None:
    name = "aviris/ang20200101t000000_rdn_v2x1_img"
    truth = json.loads((data_dir / "products/truth.json").read_text())[name]
    with open_cube(data_dir / "products" / name) as reader:
        told = reader.description
        assert (list(told.shape), told.dtype.name, told.unit) == (truth["shape"], truth["stored"], truth["unit"])
        assert told.quantity == "radiance"
        assert told.stated.wavelengths is not None
        assert told.stated.wavelengths[:3] == pytest.approx(truth["wavelengths_nm"])
        assert told.fwhm == (5.5,) * 85
        cube = in_blocks(reader, 5)
        valid = cube != -9999
        assert (cube[valid].min(), cube[valid].max()) == (truth["min"], truth["max"])
        assert int((~valid).all(axis=0).sum()) == truth["missing_pixels"]
        np.testing.assert_allclose(cube[:: 85 // 6, 9, 11], truth["line9_sample11"], rtol=1e-5)
        # Easting and northing are no longitude and latitude.
        assert reader.located(0, 2) is None
        glt, ortho = reader.glt(), told.place.ortho
        assert glt is not None
        assert glt.grid == ortho
        with rasterio.open(data_dir / "products/aviris/ang20200101t000000_rdn_v2x1_glt", driver="ENVI") as file:
            samples, lines = np.abs(file.read())
            assert glt.grid.transform == pytest.approx(file.transform.to_gdal())
            assert rasterio.crs.CRS.from_wkt(glt.grid.crs) == file.crs
        np.testing.assert_array_equal(glt.lines, np.where(lines > 0, lines - 1, -1))
        np.testing.assert_array_equal(glt.samples, np.where(samples > 0, samples - 1, -1))


def beside(folder: Path, name: str, table: NDArray[Any], code: int, *more: str) -> None:
    (folder / "made").mkdir(exist_ok=True)
    header = edited(write_pair(folder / "made", table, code, "bip"), *more)
    header.rename(folder / f"{name}.hdr")
    header.with_suffix(".img").rename(folder / name)


GLT_PLACE = "map info = {UTM, 1, 1, 400000, 3780000, 5, 5, 11, North, WGS-84, units=Meters, rotation=20}"


@pytest.mark.parametrize("value", [6, -6, -(2**31), 2**31 - 1])
def test_a_lookup_table_that_points_outside_is_refused(tmp_path: Path, value: int) -> None:
    write_pair(tmp_path, sample("u2", (3, 7, 5)), 12)
    table = np.ones((2, 4, 4), "i4")
    table[0, 1, 2] = value
    beside(tmp_path, "cube_glt", table, 3, GLT_PLACE)
    with open_cube(tmp_path / "cube.img") as reader:
        assert reader.description.place.ortho is not None
        assert tmp_path / "cube_glt" in reader.description.files
        with pytest.raises(
            CubeFileError, match=r"cube_glt, samples: .* outside the cube \(found -?\d+\); the cube has 5"
        ):
            reader.glt()


def test_a_table_that_is_none_is_said_and_left(tmp_path: Path) -> None:
    write_pair(tmp_path, sample("u2"), 12)
    beside(tmp_path, "cube_glt", np.ones((3, 4, 4), "i4"), 3, GLT_PLACE)
    with open_cube(tmp_path / "cube.img") as reader:
        assert reader.glt() is None
        assert any(
            "cube_glt.hdr beside it is not used: is no lookup table" in note for note in reader.description.notes
        )


def test_longitudes_and_latitudes(tmp_path: Path) -> None:
    write_pair(tmp_path, sample("u2", (3, 4, 5)), 12)
    table = np.stack([np.full((4, 5), -118.5), np.full((4, 5), 34.25), np.full((4, 5), 300.0)])
    table[:, 1, 2] = -9999
    beside(
        tmp_path, "cube_loc", table, 5, "band names = {Longitude (WGS-84), Latitude (WGS-84), Elevation (m)}",
        "data ignore value = -9999",
    )  # fmt: skip
    with open_cube(tmp_path / "cube.img") as reader:
        located = reader.located(1, 3)
        assert located is not None
        for found, wanted in zip(located, table[:2, 1:3], strict=True):
            np.testing.assert_array_equal(found, np.where(wanted == -9999, np.nan, wanted))


@pytest.mark.parametrize(
    "place",
    [
        "{UTM, 1, 1, 400000, 3780000, 5, 5, 11, North, WGS-84, units=Meters}",
        "{UTM, 1, 1, 400000, 3780000, 5, 5, 33, South, WGS-84, units=Meters, rotation=-66.5}",
        "{ UTM , 3.5 , 2.000 , 277811.628 , 4483607.425 , 3.1e+00 , 3.1e+00 , 13 , North , WGS-84 , units=Meters }",
        "{Geographic Lat/Lon, 1, 1, -118.5, 34.25, 0.001, 0.002, WGS-84, units=Degrees}",
    ],
)
def test_places_are_gdals(tmp_path: Path, place: str) -> None:
    header = write_pair(tmp_path, sample("u2"), 12, map_info=place)
    grid, why = grid_of(read_header(header))
    assert why is None
    assert grid is not None
    with rasterio.open(tmp_path / "cube.img", driver="ENVI") as file:
        assert grid.transform == pytest.approx(file.transform.to_gdal(), rel=1e-12)
        assert rasterio.crs.CRS.from_wkt(grid.crs) == file.crs
    # What is written of it is the same place.
    again, _ = grid_of(
        read_header(edited(header, *(f"{k} = {v}" for k, v in map_fields(grid).items()), drop=("map info",)))
    )
    assert again is not None
    assert again.transform == pytest.approx(grid.transform, rel=1e-12)
    assert rasterio.crs.CRS.from_wkt(again.crs) == rasterio.crs.CRS.from_wkt(grid.crs)


@pytest.mark.parametrize(
    "place",
    ["{Arbitrary, 1, 1, 0, 0, 1, 1, 0, North}", "{UTM, 1, 1, 4, 5, 0, 5, 11, North, WGS-84}", "{UTM, nan}", "{a}"],
)
def test_places_that_are_not_known_are_said(tmp_path: Path, place: str) -> None:
    with open_cube(write_pair(tmp_path, sample("u2"), 12, map_info=place)) as reader:
        assert reader.description.place == Place()
        assert any("its place is not known" in note for note in reader.description.notes)


def packed(tmp_path: Path, said: bool, name: str = "cube.img.gz") -> tuple[Path, NDArray[Any]]:
    cube = sample("i2", (3, 40, 5))
    header = write_pair(tmp_path, cube, 2, "bsq", 1, header_offset=3, **({"file compression": 1} if said else {}))
    data = header.with_suffix(".img")
    (tmp_path / name).write_bytes(gzip.compress(data.read_bytes()))
    if name != data.name:
        data.unlink()
    return tmp_path / name, cube


@pytest.mark.parametrize(
    ("said", "name"), [(False, "cube.img.gz"), (True, "cube.img"), (True, "cube.gz"), (True, "cube")]
)
def test_packed_by_gzip(tmp_path: Path, said: bool, name: str) -> None:
    data, cube = packed(tmp_path, said, name)
    for path in (data, tmp_path / "cube.hdr"):
        with open_cube(path) as reader:
            np.testing.assert_array_equal(in_blocks(reader, 7), cube)
            assert any("packed by gzip" in note for note in reader.description.notes)
            result = result_of(reader.description)
    (tmp_path / "out").mkdir()
    files = written(tmp_path / "out/again.img", result, cube)
    np.testing.assert_array_equal(read_envi(files[0]), cube)


def test_gzip_that_is_not_what_the_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = packed(tmp_path, True)
    whole = data.read_bytes()
    for bad, problem in (
        (gzip.compress(bytes(1100), mtime=0), "holds fewer bytes than the 1203 that its header asks for"),
        (gzip.compress(bytes(1204), mtime=0), "holds more bytes than the 1203"),
        (whole[:-20], "is damaged: "),
        (whole[:40] + b"\xff" * 40 + whole[80:], "is damaged: "),
    ):
        data.write_bytes(bad)
        with open_cube(data) as reader, pytest.raises(CubeFileError, match=problem):
            reader.read_lines(0, 1)
    data.write_bytes(bytes(1203))
    with pytest.raises(CubeFileError, match="says that it is compressed, and it is no gzip file"):
        open_cube(data)
    data.write_bytes(whole)
    edited(tmp_path / "cube.hdr", "lines = 40000000", drop=("lines",))
    with pytest.raises(CubeFileError, match="compressed bytes claim to hold"):
        open_cube(data)
    edited(tmp_path / "cube.hdr", "lines = 40", drop=("lines",))
    monkeypatch.setattr("runtime.files.disk.shutil.disk_usage", lambda _: _Full())
    with open_cube(data) as reader, pytest.raises(MachineError, match="set TMPDIR to a folder with more room"):
        reader.read_lines(0, 1)


class _Full:
    free = 5


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.bip").write_bytes(bytes(100))
    with pytest.raises(CubeFileError, match="its header is missing"):
        open_cube(tmp_path / "bare.bip")
    (tmp_path / "bare.hdr").write_text(
        "ENVI\nsamples = 5\nlines = 99999\nbands = 3\ndata type = 12\ninterleave = bil\n"
    )
    with pytest.raises(CubeFileError, match=r"has 100 bytes, its header asks for 2999970"):
        open_cube(tmp_path / "bare.bip")
    with pytest.raises(CubeFileError, match="leave the key out"):
        open_cube(write_pair(tmp_path, sample("u2"), 12), Reading(key="x"))
    # A photograph alone, and what another format's header lies beside.
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "cube.xml").write_text("<a/>")
    (tmp_path / "cube.tif").write_bytes(b"II*\0" + bytes(100))
    for name in ("a.png", "cube.xml", "cube.tif", "missing.img"):
        found = format_of(tmp_path / name)
        assert found is None or found.name != "envi"


@pytest.mark.parametrize("change", ["written", "cut"])
@pytest.mark.parametrize("interleave", ["bil", "bsq"])
def test_files_that_change_while_they_are_open(tmp_path: Path, interleave: str, change: str) -> None:
    header = write_pair(tmp_path, sample("u2", (3, 7, 5)), 12, interleave)
    data = header.with_suffix(".img")
    with open_cube(header) as reader:
        reader.read_lines(0, 3)
        with data.open("r+b") as file:
            if change == "cut":
                file.truncate(180)
            else:
                file.write(b"x")
        os.utime(data, ns=(1, 1))
        with pytest.raises(CubeFileError, match=r"was written to after it was opened|ends at byte 180"):
            reader.read_lines(5, 7)
    write_pair(tmp_path, cube := sample("u2", (3, 7, 5)), 12, interleave)
    with open_cube(header) as reader:
        # One that was replaced is read to its end.
        data.unlink()
        np.testing.assert_array_equal(in_blocks(reader, 3), cube)


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
@pytest.mark.parametrize("code", CODES)
def test_what_is_written_is_read_by_others(tmp_path: Path, code: int, interleave: str) -> None:
    cube = sample(CODES[code], (3, 7, 5))
    source = tmp_path / "in"
    source.mkdir()
    header = write_pair(source, cube[:, ::-1], code, interleave, 1)
    with open_cube(header) as reader:
        files = written(tmp_path / "out.img", result_of(reader.description), cube)
    assert [file.name for file in files] == [
        "out.img", "out.hdr", "out.damp_deploy.json", "out_quality.img", "out_quality.hdr",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in", *(file.name for file in files)])
    assert (read_header(files[1]).interleave, read_header(files[1]).dtype.str[0]) == (
        interleave,
        np.dtype(f"<{CODES[code]}").str[0],
    )
    np.testing.assert_array_equal(read_envi(files[1]), cube)
    np.testing.assert_array_equal(by_spectral(files[1], files[0], cube.dtype), cube)
    np.testing.assert_array_equal(by_gdal(files[0]), cube)
    quality = layers(7, 5)
    np.testing.assert_array_equal(by_gdal(files[3]), [quality.seen, quality.expert])
    told = files[2].read_bytes()
    assert json.loads(told) == MAKE
    said = f"sha256 {hashlib.sha256(told).hexdigest()} out.damp_deploy.json"
    assert read_header(files[1]).fields["damp_deploy"] == said
    assert spy.read_envi_header(str(files[1]))["damp_deploy"] == said


def test_the_headers_words_are_carried(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    more = {
        "map_info": "{UTM, 1, 1, 716737.4, 4322229.1, 14.9, 14.9, 10, North,WGS-84, rotation=71}",
        "wavelength_units": "Micrometers", "wavelength": "{0.4, 0.5, 0.6}", "fwhm": "{0.01, 0.01, 0.01}",
        "bbl": "{1, 0, 1}", "data_gain_values": "{0.1, 0.2, 0.3}", "data_offset_values": "{1, 2, 3}",
        "data_ignore_value": "-1", "sensor_type": "FX10", "band_names": "{one, two, three}",
    }  # fmt: skip
    source = write_pair(tmp_path / "in", sample("i2"), 2, "bip", 1, **more)
    with open_cube(source) as reader:
        told = reader.description
        assert told.fwhm == pytest.approx((10, 10, 10))
        assert (told.stated.gains, told.stated.offsets, told.stated.bad) == ((0.1, 0.2, 0.3), (1, 2, 3), (1,))
        files = written(tmp_path / "same.img", result_of(told, quality=False), sample("i2"))
        assert len(files) == 3
        fields = read_header(files[0]).fields
        for key in more:
            assert fields[key.replace("_", " ")].split() == read_header(source).fields[key.replace("_", " ")].split()
        # In the unit range: nothing that converts is true any more.
        stated = replace(told.stated, gains=None, offsets=None, marks=(), scale=1.0)
        unit = result_of(told, stated=stated, dtype=np.dtype("f4"), mark=float("nan"), unit_range=True, unit="1")
        fields = read_header(written(tmp_path / "unit.img", unit, sample("f4"))[0]).fields
        assert "data gain values" not in fields
        assert (fields["reflectance scale factor"], fields["data ignore value"], fields["data units"]) == (
            "1",
            "nan",
            "1",
        )
        assert fields["map info"].split() == more["map_info"].split()
        with open_cube(tmp_path / "unit.hdr") as again:
            assert again.description.place.grid == told.place.grid
            assert (again.description.quantity, again.description.unit) == ("reflectance", "1")
        # On another grid.
        grid = Grid(told.place.grid.crs if told.place.grid else "", (10.0, 2.0, 0.0, 20.0, 0.0, -2.0), 6, 8)
        ortho = result_of(told, shape=(3, 6, 8), place=Place(grid=grid))
        files = written(tmp_path / "ortho.img", ortho, sample("i2", (3, 6, 8)))
        with rasterio.open(files[0], driver="ENVI") as file:
            assert file.transform.to_gdal() == pytest.approx(grid.transform)
            assert file.crs == rasterio.crs.CRS.from_wkt(grid.crs)
        assert read_header(files[0]).wavelengths == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3035", "EPSG:25832", "EPSG:32755"])
@pytest.mark.parametrize("wkt", ["WKT1_GDAL", "WKT2_2019"])
def test_another_format_becomes_a_pair(tmp_path: Path, crs: str, wkt: str) -> None:
    grid = Grid(rasterio.crs.CRS.from_string(crs).to_wkt(version=wkt), (4e5, 30.0, 0.0, 5e6, 0.0, -30.0), 7, 5)
    stated = Stated(gains=(0.5, 0.25, 2.0), wavelengths=(400.5, 1 / 3e-3, 2500.0), bad=(2,), marks=(-32768.0,))
    source = Description("geotiff", tmp_path / "x.tif", (tmp_path / "x.tif",), (3, 7, 5), np.dtype("i2"))
    result = Result(
        source, (3, 7, 5), np.dtype("i2"), stated, (5.0, 6.0, 7.5), "radiance", "W m-2 sr-1 nm-1", Place(grid), -32768
    )
    cube = sample("i2", (3, 7, 5))
    files = written(tmp_path / "out.bsq", result, cube, "envi")
    assert files[0].name == "out.bsq"
    with rasterio.open(files[0], driver="ENVI") as file:
        np.testing.assert_array_equal(file.read(), cube)
        assert file.transform.to_gdal() == pytest.approx(grid.transform)
        assert file.crs == rasterio.crs.CRS.from_string(crs)
        assert file.nodata == -32768
        assert file.interleaving is rasterio.enums.Interleaving.band
    theirs = spy.open(str(files[1]), str(files[0]))
    assert theirs.bands.centers == list(stated.wavelengths or ())
    assert theirs.bands.bandwidths == [5.0, 6.0, 7.5]
    with open_cube(files[0]) as reader:
        told = reader.description
        assert replace(told.stated, axes=None) == stated
        assert (told.fwhm, told.quantity, told.unit) == (result.fwhm, "radiance", "W m-2 sr-1 nm-1")
        assert told.place.grid is not None
        assert told.place.grid.transform == pytest.approx(grid.transform)


def test_what_cannot_be_written_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = write_pair(tmp_path, sample("u2"), 12)
    with open_cube(header) as reader:
        result = result_of(reader.description)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for out, other, problem in (
        (tmp_path / "cube.img", {}, "would overwrite the input file"),
        (tmp_path / "cube.hdr", {}, "would overwrite the input file"),
        (tmp_path / "out.img", {"dtype": np.dtype("f2")}, "ENVI files are written of uint8, int16"),
        (tmp_path / "out.img.gz", {}, "leave .gz out of the name"),
        (tmp_path / "none/out.img", {}, "No such file or directory"),
    ):
        with pytest.raises(CubeFileError, match=problem):
            open_writer(out, replace(result, **other), "like")
    monkeypatch.setattr("runtime.files.disk.shutil.disk_usage", lambda _: _Full())
    with pytest.raises(CubeFileError, match=r"cannot be written: it takes \d+ bytes, 5 are free"):
        open_writer(tmp_path / "out.img", result, "like")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_not_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    cube = sample("u2", (3, 7, 5))
    with open_cube(write_pair(tmp_path / "in", cube, 12)) as reader:
        result = result_of(reader.description)
    with open_writer(tmp_path / "out.img", result, "like") as writer:
        writer.write_lines(cube[:, :3], layers(3, 5))
        with pytest.raises(CubeFileError, match="only 3 of its 7 lines were made"):
            writer.finish(MAKE)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_writer(tmp_path / "out.img", result, "like") as writer, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(CubeFileError, match=r"out\.img: cannot be written: No space left on device"):
            writer.write_lines(cube, layers(7, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_pair_is_whole_wherever_its_writer_was_killed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    old, new = sample("u2", (3, 7, 5), seed=1), sample("i4", (3, 9, 5), seed=2)
    with open_cube(write_pair(tmp_path / "in", old, 12, "bsq")) as reader:
        first = result_of(reader.description)
    second = replace(first, shape=new.shape, dtype=new.dtype)
    brought = 0
    for kill_at in range(100):
        folder = tmp_path / f"{kill_at}"
        folder.mkdir()
        written(folder / "out.img", first, old)
        code = killed(kill_at, partial(written, folder / "out.img", second, new))
        for name in ("out", "out_quality"):
            if (header := folder / f"{name}.hdr").exists():
                told = spy.read_envi_header(str(header))
                size = 2 * 3 if told["data type"] == "12" else 4 * 3 if told["data type"] == "3" else 2
                assert header.with_suffix(".img").stat().st_size == int(told["lines"]) * 5 * size
        brought += not (folder / "out.hdr").exists()
        found, seen = (read_envi(folder / f"{name}.hdr") for name in ("out", "out_quality"))
        assert np.array_equal(found, old) or np.array_equal(found, new)
        assert seen.shape == (2, found.shape[1], 5)
        quality = layers(found.shape[1], 5)
        np.testing.assert_array_equal(seen, [quality.seen, quality.expert])
        written(folder / "out.img", first, old)
        assert len(list(folder.iterdir())) == 5
        if code == 0:
            break
    assert code == 0
    assert brought > 5
