"""Places are carried into every format that is written, and read back as they were."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from runtime.errors import CubeFileError
from runtime.files.envi import read_header
from runtime.products import open_cube, open_writer
from runtime.products.contract import CubeReader, Gcp, Grid, Place, Result
from runtime.products.crs import wkt_of
from runtime.products.place_texts import KEYS, MOST_POINTS, texts_of, with_texts
from tests.runtime.products.tiff_out import of_array, scene, written

KINDS = {"envi": "o.img", "netcdf": "o.nc", "zarr": "o.zarr", "cog": "o.tif"}
CUBE = scene(4, 20, 30, "float32")
RPC = {"LINE_OFF": "10.5", "SAMP_SCALE": "1e3", "LINE_NUM_COEFF": " ".join(map(str, range(20)))}
POINTS = tuple(Gcp(line + 0.5, 1.5, 8 + line / 3, 50.25, 7.0) for line in range(12))


def read_back(folder: Path, kind: str, result: Result) -> tuple[Path, Any]:
    out = folder / KINDS[kind]
    written(out, result, CUBE, kind)
    with open_cube(out) as reader:
        return out, reader.description


@pytest.mark.parametrize("code", [32632, 32760, 4326, 3035])
@pytest.mark.parametrize("kind", KINDS)
def test_a_system_that_is_told_by_its_number_is_written_as_wkt(tmp_path: Path, kind: str, code: int) -> None:
    step = 1e-3 if code == 4326 else 30.0
    grid = Grid(f"EPSG:{code}", (8.0, step, 0.0, 50.0, 0.0, -step), 20, 30)
    out, told = read_back(tmp_path, kind, of_array(CUBE, place=Place(grid=grid)))
    assert told.place.grid.transform == pytest.approx(grid.transform)
    assert rasterio.crs.CRS.from_wkt(told.place.grid.crs) == rasterio.crs.CRS.from_epsg(code)
    if kind == "zarr":
        return
    with rasterio.open(f'NETCDF:"{out}":cube' if kind == "netcdf" else out) as file:
        assert file.crs == rasterio.crs.CRS.from_epsg(code)
        if kind == "netcdf":
            assert file.tags()["x#units"] == ("degrees_east" if code == 4326 else "m")
    if kind == "envi" and code != 3035:
        assert read_header(out).fields["map info"].startswith("{Geographic" if code == 4326 else "{UTM")


def test_utm_and_degrees_take_nothing_that_is_installed_and_others_keep_their_number(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["rasterio"] = None
from runtime.products.cf_place import mapping_of
from runtime.products.contract import Grid
from runtime.products.crs import wkt_of
from runtime.products.envi_place import map_fields
assert wkt_of("EPSG:32632").startswith('PROJCS["WGS 84 / UTM zone 32N"')
grid = Grid("EPSG:3035", (0, 1, 0, 0, 0, -1), 2, 2)
said = mapping_of(grid)
assert said["spatial_ref"] == "EPSG:3035" and "crs_wkt" not in said and "its number alone" in said["comment"]
assert map_fields(grid)["coordinate system string"] == "{EPSG:3035}"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    for number in (4326, 32601, 32660, 32701, 32760):
        assert rasterio.crs.CRS.from_wkt(wkt_of(f"EPSG:{number}")) == rasterio.crs.CRS.from_epsg(number)


@pytest.mark.parametrize("kind", KINDS)
def test_points_and_polynomials_are_read_back(tmp_path: Path, kind: str) -> None:
    place = Place(gcps=POINTS, gcp_crs="EPSG:4326", rpc={} if kind == "cog" else RPC)
    told = read_back(tmp_path, kind, of_array(CUBE, place=place))[1].place
    assert np.allclose(told.gcps, POINTS)
    assert rasterio.crs.CRS.from_wkt(told.gcp_crs) == rasterio.crs.CRS.from_epsg(4326)
    assert told.rpc == place.rpc


def test_very_many_points_are_thinned_and_fit_into_an_attribute(tmp_path: Path) -> None:
    points = tuple(Gcp(*np.random.default_rng(seed).normal(size=5) * 1e-100) for seed in range(1300))
    told = read_back(tmp_path, "netcdf", of_array(CUBE, place=Place(gcps=points)))[1].place
    assert told.gcps == points[::3] and len(told.gcps) <= MOST_POINTS


@pytest.mark.parametrize(
    "text", ["1 2 3 4", "1 2 3 4 x", "1 2 3 4 nan", "1 2 3 4 5 x", "1 2 3 4 5, ", "1 2 3 4 5 6", "9" * 70_000]
)
def test_texts_of_strangers_that_are_none_are_left_out(text: str) -> None:
    said = {"gcps": text, "gcp_crs": "EPSG:4326", "rpc": f"LINE_OFF=1, ELSE={text}"}
    assert with_texts(Place(), said.get) == Place()
    assert with_texts(Place(), lambda key: 7) == Place()
    assert set(texts_of(Place(gcps=POINTS, rpc=RPC))) == {*KEYS} - {"gcp_crs"}


class Located(CubeReader):
    def __init__(self) -> None:
        self.lon = np.linspace(8, 9, 600).reshape(20, 30)
        self.lon[3, 4] = np.nan

    def read_lines(self, start: int, stop: int) -> Any:
        return CUBE[:, start:stop]

    def located(self, start: int, stop: int) -> Any:
        return self.lon[start:stop], self.lon[start:stop] + 40

    def close(self) -> None:
        pass


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_longitudes_and_latitudes_are_read_back(tmp_path: Path, kind: str) -> None:
    reader, out = Located(), tmp_path / KINDS[kind]
    written(out, of_array(CUBE, reader=reader), CUBE, kind)
    with open_cube(out) as again:
        for start, stop in ((0, 20), (2, 5), (19, 20)):
            found = again.located(start, stop)
            assert found is not None
            for values, expected in zip(found, reader.located(start, stop), strict=True):
                np.testing.assert_array_equal(values, expected)


def test_a_cog_says_what_its_numbers_are(tmp_path: Path) -> None:
    for quantity in ("reflectance", "radiance", "counts"):
        assert read_back(tmp_path, "cog", of_array(CUBE, quantity=quantity))[1].quantity == quantity
    assert read_back(tmp_path, "cog", of_array(CUBE, quantity="radiance", unit_range=True))[1].quantity is None


def test_the_unit_range_cannot_be_like_an_hdf5_file(tmp_path: Path) -> None:
    source = tmp_path / "in.nc"
    written(source, of_array(CUBE), CUBE, "netcdf")
    with open_cube(source) as reader:
        about = reader.description
        result = Result(about, about.shape, about.dtype, unit_range=True, reader=reader)
        with pytest.raises(CubeFileError, match="float32 in the unit range is asked for") as error:
            open_writer(tmp_path / "out.nc", result, "like")
    assert error.value.remedy == "write another format: --format netcdf"
