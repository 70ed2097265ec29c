"""CF NetCDF-4 that h5py alone writes, as netCDF4, xarray, GDAL and our own reader see it."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray

from runtime.errors import CubeFileError
from runtime.products import open_writer
from runtime.products.cf_writer import holds
from runtime.products.contract import CubeReader, Description, Grid, Place, Quality, Result
from runtime.products.crs import wkt_of
from runtime.stated import Stated

from .hdf5_written import open_hdf5, result_of, write_all

UTM = (
    'PROJCS["WGS 84 / UTM zone 32N",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,'
    'AUTHORITY["EPSG","7030"]],AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
    'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]],'
    'PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",9],'
    'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],'
    'UNIT["metre",1,AUTHORITY["EPSG","9001"]],AXIS["Easting",EAST],AXIS["Northing",NORTH],AUTHORITY["EPSG","32632"]]'
)
DEGREES = UTM[UTM.index("GEOGCS") : UTM.index(",PROJECTION")]
WAVES = (400.0, 410.5, 420.0, 431.0, 440.0, 450.25)
SHAPE = (6, 11, 9)
CUBE = np.random.default_rng(5).integers(1, 9000, SHAPE).astype(np.int16)
CUBE[:, 3, 4] = -999


def result(cube: np.ndarray = CUBE, **said: Any) -> Result:
    source = Description("envi", Path("scene.img"), (), SHAPE, cube.dtype)
    said = {"stated": Stated(wavelengths=WAVES), "quantity": "reflectance", "fwhm": (5.5,) * 6, "mark": -999, **said}
    return Result(source, cube.shape, cube.dtype, **said)


def written(out: Path, asked: Result, cube: np.ndarray = CUBE, block: int = 4) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert write_all(open_writer(out, asked, "netcdf"), cube, block, version="1.2", text="ä\n") == (out,)
        # Whoever opens it is not warned of anything.
        with xarray.open_dataset(out, engine="netcdf4") as opened:
            opened.load()
    return out


def test_what_people_see(tmp_path: Path) -> None:
    stated = Stated(gains=(1e-4,) * 6, offsets=(0.25,) * 6, wavelengths=WAVES, bad=(1, 4))
    out = written(tmp_path / "o.nc", result(stated=stated))
    with xarray.open_dataset(out) as opened:
        cube = opened["reflectance"]
        assert cube.dims == ("wavelength", "y", "x")
        missing = (CUBE == -999).all(0)
        assert np.allclose(cube.values[:, ~missing], CUBE[:, ~missing] * 1e-4 + 0.25, atol=1e-12)
        assert np.isnan(cube.values[:, missing]).all()
        assert cube.attrs["units"] == "1"
        assert opened["wavelength"].values.tolist() == list(WAVES)
        assert opened["wavelength"].attrs["standard_name"] == "radiation_wavelength"
        assert opened["wavelength"].attrs["units"] == "nm"
        assert {"fwhm", "good_wavelengths"} <= set(cube.coords)
        assert opened["good_wavelengths"].values.tolist() == [1, 0, 1, 1, 0, 1]
        assert opened["damp_deploy_seen"].attrs["flag_masks"].tolist() == [1, 2, 4, 8, 16]
        assert opened["damp_deploy_seen"].attrs["flag_meanings"] == "restored passed missing saturated suspect"
        assert opened["damp_deploy_seen"].values[:, 0].tolist() == list(range(11))
        assert opened["damp_deploy_expert"].values.tolist() == [[3] * 9] * 11
        assert opened.attrs["Conventions"] == "CF-1.11"
        assert opened.attrs["damp_deploy"] == '{"version": "1.2", "text": "\\u00e4\\n"}'
        assert opened.attrs["history"] == "damp-deploy 1.2: see damp_deploy"
    with netCDF4.Dataset(out) as file:
        assert list(file.dimensions) == ["wavelength", "y", "x"]
        assert set(file.variables) == {
            "wavelength",
            "fwhm",
            "good_wavelengths",
            "reflectance",
            "damp_deploy_seen",
            "damp_deploy_expert",
        }
        cube = file["reflectance"]
        assert (cube.dtype, cube._FillValue.dtype) == (np.int16, np.int16)
        assert cube.filters()["complevel"] == 4
        assert cube.filters()["shuffle"]
        cube.set_auto_maskandscale(False)
        assert np.array_equal(cube[:], CUBE)
    with netCDF4.Dataset(out, "a") as file:
        file.createVariable("more", "f4", ("y",))[:] = 1
    with h5py.File(out) as file:
        assert file.attrs["_NCProperties"].startswith(b"version=2,h5py=")


@pytest.mark.parametrize("crs", [UTM, DEGREES])
def test_a_map_as_gdal_sees_it(crs: str, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    step = 30.0 if crs is UTM else 1e-3
    grid = Grid(crs, (5e5 if crs is UTM else 8.0, step, 0.0, 59e5 if crs is UTM else 50.0, 0.0, -step), 11, 9)
    out = written(tmp_path / "o.nc", result(place=Place(grid=grid), stated=Stated(scale=1e4, wavelengths=WAVES)))
    with rasterio.open(f'NETCDF:"{out}":reflectance') as opened:
        assert opened.crs == rasterio.crs.CRS.from_wkt(crs)
        assert np.allclose(opened.transform.to_gdal(), grid.transform, rtol=1e-12)
        assert (opened.count, opened.nodata, opened.scales[0]) == (6, -999, 1e-4)
        assert np.array_equal(opened.read(), CUBE)
    with xarray.open_dataset(out, decode_coords="all") as opened:
        assert opened["reflectance"].encoding["grid_mapping"] == "spatial_ref"
        assert opened["x"].values[0] == pytest.approx(grid.transform[0] + step / 2)
        assert opened["y"].values[-1] == pytest.approx(grid.transform[3] - 10.5 * step)
        names = {opened[axis].attrs["standard_name"] for axis in "xy"}
        assert names == ({"longitude", "latitude"} if crs is DEGREES else {f"projection_{a}_coordinate" for a in "xy"})
        told = opened["spatial_ref"].attrs
        assert told["grid_mapping_name"] == ("latitude_longitude" if crs is DEGREES else "transverse_mercator")
        assert told.get("longitude_of_central_meridian") == (None if crs is DEGREES else 9)
    with open_hdf5(out) as reader:
        assert reader.description.place.grid == grid


def test_a_grid_that_is_turned(tmp_path: Path) -> None:
    grid = Grid(UTM, (5e5, 20.0, 10.0, 59e5, 10.0, -20.0), 11, 9)
    out = written(tmp_path / "o.nc", result(place=Place(grid=grid)))
    with xarray.open_dataset(out) as opened:
        assert not {"x", "y"} & set(opened.coords)
    with open_hdf5(out) as reader:
        assert reader.description.place.grid == grid


class Located(CubeReader):
    """Places of a sensor's grid that is 11 lines high."""

    def read_lines(self, start: int, stop: int) -> Any:
        raise NotImplementedError

    def located(self, start: int, stop: int) -> Any:
        lines, samples = np.mgrid[start:stop, 0:9].astype(float)
        place = 10 + samples * 0.1, 50 - lines * 0.1
        place[0][lines == 2] = np.nan
        return place

    def close(self) -> None:
        pass


def test_places_on_a_sensor_s_grid(tmp_path: Path) -> None:
    out = written(tmp_path / "o.nc", result(reader=Located()))
    with xarray.open_dataset(out) as opened:
        for name in ("reflectance", "damp_deploy_seen"):
            assert {"lat", "lon"} <= set(opened[name].coords)
        assert opened["lat"].dims == ("y", "x")
        assert np.allclose(opened["lat"].values[:, 0], 50 - np.arange(11) * 0.1)
        assert np.isnan(opened["lon"].values[2]).all()
        assert opened["lon"].attrs == {"standard_name": "longitude", "units": "degrees_east"}
    with open_hdf5(out) as reader:
        longitudes, latitudes = reader.located(4, 6) or (None, None)
        assert np.allclose(longitudes, Located().located(4, 6)[0])
        assert np.allclose(latitudes, Located().located(4, 6)[1])


MEANINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one pair": (
        {"stated": Stated(gains=(0.5,) * 6, offsets=(-3.0,) * 6, wavelengths=WAVES), "quantity": "radiance"},
        {"gains": (0.5,) * 6, "offsets": (-3.0,) * 6},
    ),
    "a pair for each band": (
        {
            "stated": Stated(gains=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), offsets=(0.0, 1.0) * 3, wavelengths=WAVES),
            "quantity": "radiance",
            "unit": "W m-2 sr-1 nm-1",
        },
        {"gains": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), "offsets": (0.0, 1.0) * 3},
    ),
    "offsets alone": (
        {"stated": Stated(offsets=(1.0, 2.0) * 3, wavelengths=WAVES)},
        {"gains": (1.0,) * 6, "offsets": (1.0, 2.0) * 3},
    ),
    "a scale": (
        {"stated": Stated(scale=10000.0, wavelengths=WAVES)},
        {"gains": (1e-4,) * 6, "offsets": (0.0,) * 6},
    ),
    "no scale": ({}, {"gains": None, "offsets": None}),
    "wavelengths that fall": ({"stated": Stated(wavelengths=WAVES[::-1])}, {"wavelengths": WAVES[::-1]}),
    "wavelengths in no order": (
        {"stated": Stated(wavelengths=(WAVES[2], *WAVES[:2], *WAVES[3:]), bad=(0,))},
        {"wavelengths": (WAVES[2], *WAVES[:2], *WAVES[3:]), "bad": (0,)},
    ),
    "no wavelengths": ({"stated": Stated(), "fwhm": None, "quantity": "counts"}, {"wavelengths": None}),
    "reflectance in the unit range": ({"quantity": "reflectance", "unit_range": True}, {"gains": None}),
    "no mark, nor quantity": ({"mark": None, "quantity": None}, {"marks": ()}),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_our_reader_sees_what_was_meant(name: str, tmp_path: Path) -> None:
    said, seen = MEANINGS[name]
    asked = result(**said)
    out = written(tmp_path / "o.nc", asked)
    with open_hdf5(out) as reader:
        about = reader.description
        assert np.array_equal(reader.read_lines(0, 11), CUBE)
        assert {key: getattr(about.stated, key) for key in seen} == seen
        assert about.stated.marks == (() if asked.mark is None else (asked.mark,))
        assert (about.fwhm, about.quantity) == (asked.fwhm, asked.quantity)
        assert about.unit == asked.unit or asked.unit is None
    with xarray.open_dataset(out) as opened:
        assert ("band" in opened.sizes) is (name in ("wavelengths in no order", "no wavelengths"))


def test_radiance_in_the_unit_range_is_none(tmp_path: Path) -> None:
    asked = result(CUBE / np.float32(9000), quantity="radiance", unit="W m-2", unit_range=True)
    with open_hdf5(written(tmp_path / "o.nc", asked, CUBE / np.float32(9000))) as reader:
        about = reader.description
        assert (about.title, about.quantity, about.unit) == ("/cube", None, None)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i4", "f2", "f4", "f8", ">f4", ">i2", "?"])
def test_types(kind: str, tmp_path: Path) -> None:
    cube = (CUBE % 2 if kind == "?" else CUBE % 100).astype(kind)
    mark = np.nan if np.dtype(kind).kind == "f" else None
    out = written(tmp_path / "o.nc", result(cube, mark=mark), cube)
    with netCDF4.Dataset(out) as file:
        file.set_auto_maskandscale(False)
        assert np.array_equal(file["reflectance"][:], cube)
        assert file["reflectance"].dtype == {"f2": "f4", "?": "u1"}.get(kind, np.dtype(kind).newbyteorder("="))


@pytest.mark.data
def test_products_become_netcdf(data_dir: Path, tmp_path: Path) -> None:
    for name in ("prisma/PRS_L2D*.he5", "emit/EMIT_L1B*.nc", "aviris/*ORT.nc"):
        path = next((data_dir / "products").glob(name))
        with open_hdf5(path) as reader:
            about = reader.description
            cube = reader.read_lines(0, about.shape[1])
            out = written(tmp_path / f"{path.stem}.nc", result_of(reader), cube)
            place = reader.located(0, 3)
        with open_hdf5(out) as reader:
            again = reader.description
            assert np.array_equal(reader.read_lines(0, about.shape[1]), cube)
            assert (again.stated.wavelengths, again.stated.bad) == (about.stated.wavelengths, about.stated.bad)
            assert again.stated.gains == about.stated.gains
            assert again.stated.offsets == about.stated.offsets
            assert again.stated.marks == about.stated.marks[:1]
            assert (again.unit, again.quantity, again.fwhm) == (about.unit or "1", about.quantity, about.fwhm)
            grid = about.place.grid
            assert again.place.grid == (grid and replace(grid, crs=wkt_of(grid.crs)))
            if grid is None:
                assert np.array_equal(reader.located(0, 3), place, equal_nan=True)  # type: ignore[arg-type]


def test_bytes_are_the_same_whatever_the_time_and_the_blocks(tmp_path: Path) -> None:
    asked = result(reader=Located())
    first = written(tmp_path / "1.nc", asked).read_bytes()
    # HDF5 counts whole seconds.
    time.sleep(1.1)
    assert written(tmp_path / "2.nc", asked, block=11).read_bytes() == first


def test_absent_without_its_end(tmp_path: Path) -> None:
    out = tmp_path / "o.nc"
    with open_writer(out, result(quality=False), "netcdf") as writer:
        writer.write_lines(CUBE[:, :3])
    with (
        pytest.raises(CubeFileError, match="only 3 of its 11 lines"),
        open_writer(out, result(), "netcdf") as writer,
    ):
        writer.write_lines(CUBE[:, :3], Quality(np.zeros((3, 9), np.uint8), np.zeros((3, 9), np.uint8)))
        writer.finish({})
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(CubeFileError, match="a folder of that name is in the way"):
        open_writer(out, result(), "netcdf")
    source = tmp_path / "source.img"
    source.write_bytes(b"1")
    asked = result()
    asked = replace(asked, source=replace(asked.source, files=(source,)))
    with pytest.raises(CubeFileError, match="would overwrite the input"):
        open_writer(source, asked, "netcdf")


def test_chunks_hold_all_bands_of_few_lines(tmp_path: Path) -> None:
    shape = (285, 40, 1242)
    cube = np.zeros(shape, np.float32)
    asked = replace(result(cube, stated=Stated(), fwhm=None, quality=False), source=result().source)
    with open_writer(tmp_path / "o.nc", asked, "netcdf") as writer:
        writer.write_lines(cube)
        writer.finish({})
    with h5py.File(tmp_path / "o.nc") as file:
        assert file["reflectance"].chunks == (285, 1, 1242)
    assert 1 << 20 < holds(asked) < 64 << 20
