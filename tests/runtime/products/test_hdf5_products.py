"""EMIT, AVIRIS, HYPSO, PRISMA and CF NetCDF: what an independent reader sees, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from runtime.products import Reading
from runtime.products.cf import recognises
from runtime.products.hdf5_reader import Hdf5Reader
from tests.conftest import DATA
from tests.runtime.products.hdf5_data import emit, opened, put, refused, values

TRUTH_FILE = DATA / "products" / "truth.json"
TRUTH: dict[str, Any] = json.loads(TRUTH_FILE.read_text()) if TRUTH_FILE.is_file() else {}
PRODUCTS = [name for name in TRUTH if name.endswith((".nc", ".he5"))]


def physical(reader: Hdf5Reader) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The cube in physical units, and which of its numbers are valid by mark or mask."""
    stated, cube = reader.description.stated, reader.read_lines(0, reader.description.shape[1])
    valid = ~np.isin(cube, stated.marks)
    missing = reader.missing(0, reader.description.shape[1])
    valid &= True if missing is None else ~missing
    found = cube.astype(np.float64)
    if stated.gains is not None and stated.offsets is not None:
        found = found * np.array(stated.gains)[:, None, None] + np.array(stated.offsets)[:, None, None]
    return found, valid


@pytest.mark.data
@pytest.mark.parametrize("name", PRODUCTS)
def test_what_an_independent_reader_sees(data_dir: Path, name: str) -> None:
    truth = TRUTH[name]
    with opened(data_dir / "products" / name) as reader:
        about, (cube, valid) = reader.description, physical(reader)
        glt = reader.glt()
    assert about.format == name.split("/")[0]
    assert about.shape == cube.shape == tuple(truth["shape"])
    assert about.dtype == np.dtype(truth["stored"])
    # A dark DN of 0 is a valid one of PRISMA's, but the truth leaves it out.
    seen = cube[valid & ((cube > 0) | (about.format != "prisma"))]
    np.testing.assert_allclose([seen.min(), seen.max()], [truth["min"], truth["max"]], rtol=1e-12)
    spectrum = [None if value is None else pytest.approx(value, abs=6e-7) for value in truth["line9_sample11"]]
    assert cube[:, 9, 11][:: max(1, len(cube) // 6)].tolist() == spectrum
    assert (~valid).all(0).sum() == truth["missing_pixels"]
    found = about.stated.wavelengths
    assert (None if found is None else [round(value, 4) for value in found[:3]]) == truth["wavelengths_nm"]
    assert len(about.stated.bad) == truth.get("bad_bands", 0)
    assert about.quantity == {
        "W m-2 sr-1 um-1": "radiance",
        "sr^-1": "reflectance",
        "counts, no unit said": "counts",
    }.get(truth["unit"], "reflectance" if truth["unit"] in ("unitless", "reflectance") else "radiance")
    if "glt" in truth:
        assert glt is not None
        assert list(glt.samples.shape) == truth["glt"]["shape"]
        assert (glt.samples >= 0).sum() == truth["glt"]["filled"]
        assert glt.samples[glt.samples >= 0][0] == truth["glt"]["first"] - 1


@pytest.mark.data
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_parts_of_a_cube_lie_where_they_say(data_dir: Path, name: str) -> None:
    path = data_dir / "products" / name
    with opened(path) as reader, h5py.File(path, locking=False) as file:
        parts = []
        for part in reader.cube_parts:
            order = [part.axes.index(axis) for axis in ("bands", "lines", "samples")]
            parts.append(file[part.path][()].transpose(order)[list(part.bands)])
        lines = reader.description.shape[1]
        np.testing.assert_array_equal(np.concatenate(parts), reader.read_lines(0, lines))


@pytest.mark.data
def test_places_of_emit_and_aviris(data_dir: Path) -> None:
    with opened(next((data_dir / "products/emit").glob("EMIT_L1B*.nc"))) as reader:
        place, located = reader.description.place, reader.located(3, 5)
        assert place.grid is None
        assert place.ortho is not None
        assert place.ortho.transform[:2] == (-116.5597, 0.000542232)
        assert located is not None
        np.testing.assert_allclose([located[0][1, 2], located[1][1, 2]], [-116.5494, 32.8578])
    with opened(next((data_dir / "products/aviris").glob("*RDN.nc"))) as reader:
        assert reader.description.place.grid is None
        assert reader.description.place.ortho is not None
        assert reader.description.place.ortho.transform == (400000.0, 5.0, 0.0, 3780000.0, 0.0, -5.0)
        assert reader.glt() is not None
        assert reader.located(0, 1) is not None
    with opened(next((data_dir / "products/aviris").glob("*ORT.nc"))) as reader:
        grid = reader.description.place.grid
        assert grid is not None
        assert (grid.lines, grid.samples) == (36, 32)
        assert grid.crs.startswith("PROJCS")
        assert reader.glt() is None


@pytest.mark.data
def test_prisma_by_what_snap_reads_from_real_ones(data_dir: Path) -> None:
    for path in sorted((data_dir / "products/prisma").glob("*.he5")):
        expected = json.loads(path.with_name(f"{path.stem}_he5.expected.json").read_text())["expectedContent"]["bands"]
        real = [
            [float(one["spectralWavelength"]) for one in expected if one["name"].startswith(f"HCO_{detector}_")]
            for detector in ("Vnir", "Swir")
        ]
        with opened(path) as reader:
            found = reader.description.stated.wavelengths
        # The miniature's are of another datatake: the same bands in the same order, some nm apart.
        assert found is not None
        assert [len(wavelengths) for wavelengths in real] == [63, 171]
        np.testing.assert_allclose(found, [*real[0], *real[1]], atol=12)
    with opened(next((data_dir / "products/prisma").glob("PRS_L1*.he5"))) as reader:
        assert reader.description.stated.gains == (0.01,) * 234
        assert reader.saturated(0, 32) is not None
        assert reader.missing(0, 32) is None


@pytest.mark.data
def test_prisma_l2d_lies_by_centres_of_corner_pixels(data_dir: Path) -> None:
    with opened(next((data_dir / "products/prisma").glob("PRS_L2D*.he5"))) as reader:
        grid = reader.description.place.grid
        assert grid is not None
        assert (grid.crs, grid.lines, grid.samples) == ("EPSG:32632", 30, 26)
        assert grid.transform == (553985.0, 30.0, 0.0, 5945015.0, 0.0, -30.0)
        missing = reader.missing(0, 30)
        assert missing is not None
        np.testing.assert_array_equal(np.concatenate([reader.missing(at, at + 1) for at in range(30)]), missing)


def test_emit_says_what_is_bad_and_refuses_what_is_no_cube(tmp_path: Path) -> None:
    good = np.array([1, 0, 1, 0, 1], "u1")
    with opened(emit(tmp_path / "a.nc", lambda f: put(f, "sensor_band_parameters/good_wavelengths", good))) as reader:
        assert reader.description.stated.bad == (1, 3)
        assert reader.description.stated.marks == (-9999.0,)
    refused(emit(tmp_path / "b.nc", lambda f: f.move("reflectance", "mask")), "holds no cube that is read")
    refused(
        emit(tmp_path / "c.nc", lambda f: put(f, "location/glt_y", np.zeros((6, 6), "i4"))),
        "/location/glt_y: is not of the shape 6 x 7",
    )
    refused(
        emit(tmp_path / "d.nc", lambda f: put(f, "location/glt_y", np.zeros((6, 7), "i4"))),
        "/location/glt_y: points outside the cube, where 1 to 4 are in it .found 0",
    )

    def other_places(file: h5py.File) -> None:
        for name in ("lon", "lat"):
            put(file, f"location/{name}", values((9, 3)))

    refused(emit(tmp_path / "e.nc", other_places), "/location/lon: is not of the shape 4 x 3")


def test_places_that_are_not_known_are_nan(tmp_path: Path) -> None:
    def place(file: h5py.File) -> None:
        put(file, "location/lon", np.array([[5, 6, -9999]] * 4, "f8"), _FillValue=-9999.0)
        put(file, "location/lat", np.array([[50, 95, 51]] * 4, "f8"), _FillValue=-9999.0)

    with opened(emit(tmp_path / "a.nc", place)) as reader:
        located = reader.located(1, 3)
    assert located is not None
    for found, first in zip(located, (5, 50), strict=True):
        np.testing.assert_array_equal(found, [[first, np.nan, np.nan]] * 2)


def test_negative_entries_of_a_lookup_table_are_filled_from_a_neighbour(tmp_path: Path) -> None:
    def table(file: h5py.File) -> None:
        put(file, "location/glt_x", np.array([[-3, 0, -1]], "i4"), _FillValue=np.int32(-1))
        put(file, "location/glt_y", np.array([[-2, 0, -1]], "i4"), _FillValue=np.int32(-1))

    with opened(emit(tmp_path / "a.nc", table)) as reader:
        glt = reader.glt()
    assert glt is not None
    assert glt.samples.tolist() == [[2, -1, -1]]
    assert glt.lines.tolist() == [[1, -1, -1]]


def prisma(path: Path, level: str = "L2D", swaths: tuple[str, ...] = ("HCO",), **attributes: object) -> Path:
    """A PRISMA product of 3 lines, 4 samples, 2 + 3 bands."""
    with h5py.File(path, "w") as file:
        for detector, wavelengths in (("Vnir", [0, 500]), ("Swir", [1000, 950, 0])):
            file.attrs[f"List_Cw_{detector}"] = file.attrs[f"List_Fwhm_{detector}"] = np.array(wavelengths, "f4")
            file.attrs[f"ScaleFactor_{detector}"], file.attrs[f"Offset_{detector}"] = 100.0, 0.0
            file.attrs[f"L2Scale{detector}Min"], file.attrs[f"L2Scale{detector}Max"] = 0.0, 1.0
            for swath in swaths:
                data = values((3, len(wavelengths), 4), "u2") + 1
                file[f"HDFEOS/SWATHS/PRS_{level}_{swath}/Data Fields/{detector.upper()}_Cube"] = data
        file.attrs["Epsg_Code"] = 32632
        for corner, x, y in (("UL", 0, 60), ("UR", 90, 60), ("LL", 0, 0), ("LR", 90, 0)):
            file.attrs[f"Product_{corner}corner_easting"] = float(x)
            file.attrs[f"Product_{corner}corner_northing"] = float(y)
        for name, value in attributes.items():
            file.attrs[name] = value
    return path


def test_prisma_takes_the_co_registered_cube_and_no_offset(tmp_path: Path) -> None:
    with opened(prisma(tmp_path / "a.he5", "L1", ("HRC", "HCO"))) as reader:
        assert reader.description.title == "/HDFEOS/SWATHS/PRS_L1_HCO"
        assert reader.description.stated.wavelengths == (500.0, 1000.0, 950.0)
        assert [part.bands for part in reader.cube_parts] == [(1,), (0, 1)]
        assert reader.description.place.grid is None
    with opened(tmp_path / "a.he5", Reading(key="PRS_L1_HRC")) as reader:
        assert reader.description.title == "/HDFEOS/SWATHS/PRS_L1_HRC"
    refused(prisma(tmp_path / "b.he5", "L1", ("HRC",)), "holds no co-registered cube")
    refused(prisma(tmp_path / "c.he5", "L1", Offset_Swir=5.0), "Offset_Swir: what an offset other than 0 means")
    refused(prisma(tmp_path / "d.he5", "L1", ScaleFactor_Vnir=0.0), "ScaleFactor_Vnir: is no factor")
    refused(prisma(tmp_path / "e.he5", L2ScaleVnirMax=np.nan), "L2ScaleVnirMax: is not finite")
    refused(prisma(tmp_path / "f.he5", L2ScaleSwirMax=-1.0), "L2ScaleSwirMax: is not above")
    refused(prisma(tmp_path / "g.he5", List_Cw_Vnir=[500.0]), "List_Cw_Vnir: 1 entries for 2 bands")
    refused(prisma(tmp_path / "h.he5", List_Cw_Swir=[np.nan, 900.0, 0.0]), "List_Cw_Swir: the entry of band 1")
    refused(prisma(tmp_path / "i.he5", List_Cw_Vnir=[0.0, 0.0]), "List_Cw_Vnir: says that no band exists")


def test_prisma_tells_missing_and_saturated_pixels(tmp_path: Path) -> None:
    def matrix(path: Path, name: str, value: int) -> Path:
        with h5py.File(path, "r+") as file:
            for detector, bands in (("VNIR", 2), ("SWIR", 3)):
                folder = next(iter(file["HDFEOS/SWATHS"].values()))["Data Fields"]
                errors = np.zeros((3, bands, 4), "u1")
                errors[1, 1, 1:3] = value
                folder[f"{detector}_PIXEL_{name}_ERR_MATRIX"] = errors
                cube = folder[f"{detector}_Cube"]
                cube[1, :, 1] = cube[2, :, 3] = 0
        return path

    with opened(matrix(prisma(tmp_path / "a.he5"), "L2", 1)) as reader:
        missing = reader.missing(0, 3)
        assert missing is not None
        # A mark without zeros, and zeros without a mark, are no missing pixels.
        assert np.argwhere(missing).tolist() == [[1, 1]]
        assert reader.saturated(0, 3) is None
    with opened(matrix(prisma(tmp_path / "b.he5", "L1"), "SAT", 2)) as reader:
        saturated = reader.saturated(0, 3)
        assert saturated is not None
        assert np.argwhere(saturated).tolist() == [[1, 1], [1, 2]]


def written(path: Path, encoding: dict[str, Any] | None = None, **change: Any) -> Path:
    """A CF NetCDF file as xarray writes it: [wavelength, y, x]."""
    cube = np.linspace(0, 0.5, 5 * 7 * 6).reshape(5, 7, 6)
    variables: dict[str, Any] = {"wavelength": ("wavelength", np.linspace(0.4, 0.9, 5), {"units": "um"})}
    variables |= {"y": ("y", 100.0 - 2 * np.arange(7)), "x": ("x", 3.0 * np.arange(6))}
    variables |= {"spatial_ref": ((), 0, {"crs_wkt": 'PROJCS["between 6°E and 12°E"]'})}
    variables |= {"fwhm": ("wavelength", np.full(5, 0.01), {"units": "um"})}
    variables |= {"good_wavelengths": ("wavelength", np.array([1, 1, 0, 1, 1], "u1"))} | change
    attributes = {"units": "1", "long_name": "surface reflectance", "grid_mapping": "spatial_ref"}
    coordinates = {name: value for name, value in variables.items() if value is not None}
    data = xarray.Dataset({"rfl": (("wavelength", "y", "x"), cube, attributes)}, coordinates)
    data.to_netcdf(path, encoding={"rfl": encoding or {}})
    return path


def test_cf_netcdf_as_xarray_writes_and_reads_it(tmp_path: Path) -> None:
    packing = {"dtype": "i2", "scale_factor": 1e-4, "add_offset": 0.1, "_FillValue": -9999, "zlib": True}
    path = written(tmp_path / "a.nc", packing)
    with opened(path) as reader:
        about, (cube, _) = reader.description, physical(reader)
    assert (about.format, about.title, about.quantity, about.unit) == ("netcdf", "/rfl", "reflectance", "1")
    assert about.dtype == np.int16
    assert about.stated.marks == (-9999.0,)
    assert about.stated.bad == (2,)
    assert about.fwhm == pytest.approx([10.0] * 5)
    assert about.stated.wavelengths == pytest.approx([400, 525, 650, 775, 900])
    assert about.place.grid is not None
    assert about.place.grid.transform == (-1.5, 3.0, 0.0, 101.0, 0.0, -2.0)
    assert about.place.grid.crs == 'PROJCS["between 6°E and 12°E"]'
    with xarray.open_dataset(path) as data:
        np.testing.assert_allclose(cube, data["rfl"].values, atol=1e-6)


def test_a_geotransform_wins_over_coordinates_and_uneven_ones_are_no_grid(tmp_path: Path) -> None:
    mapping = ((), 0, {"spatial_ref": "EPSG:32632", "GeoTransform": "1 2 0 3 0 -2"})
    with opened(written(tmp_path / "a.nc", spatial_ref=mapping)) as reader:
        assert reader.description.place.grid is not None
        assert reader.description.place.grid.transform == (1.0, 2.0, 0.0, 3.0, 0.0, -2.0)
    with opened(written(tmp_path / "b.nc", y=("y", np.arange(7.0) ** 2))) as reader:
        assert reader.description.place.grid is None
    wrong = ((), 0, {"spatial_ref": "EPSG:32632", "GeoTransform": "1 0 0 3 0 -2"})
    refused(written(tmp_path / "c.nc", spatial_ref=wrong), "/spatial_ref GeoTransform: is no geotransform")


def test_axes_are_known_by_names_of_dimensions(tmp_path: Path) -> None:
    orders = (("lines", "samples", "bands"), ("x", "band", "y"), ("wl", "lat", "lon"), ("a", "b", "bands"))
    for order in orders:
        with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
            for name, length in zip(order, (4, 5, 6), strict=True):
                file.createDimension(name, length)
            file.createGroup("inner").createVariable("cube", "f4", order)[...] = values((4, 5, 6))
        with opened(tmp_path / "a.nc") as reader:
            assert reader.description.title == "/inner/cube"
            assert reader.description.stated.wavelengths is None
            assert reader.description.notes == ("its wavelengths are not in the file",)
            axes = reader.cube_parts[0].axes
            lines = reader.read_lines(0, reader.description.shape[1])
        assert axes == {"x": ("samples", "bands", "lines"), "wl": ("bands", "lines", "samples")}.get(
            order[0], ("lines", "samples", "bands")
        )
        moved = values((4, 5, 6)).transpose([axes.index(axis) for axis in ("bands", "lines", "samples")])
        np.testing.assert_array_equal(lines, moved)


def test_wavelengths_of_no_known_unit_are_refused(tmp_path: Path) -> None:
    steps = np.linspace(400, 900, 5)
    with opened(written(tmp_path / "a.nc", wavelength=("wavelength", steps))) as reader:
        assert reader.description.stated.wavelengths == pytest.approx(steps)
    furlongs = ("wavelength", steps, {"units": "furlong"})
    refused(written(tmp_path / "b.nc", wavelength=furlongs), "/wavelength: the unit .* is not known .found 'furlong'")
    low = ("wavelength", [0.0, 1, 2, 3, 4], {"units": "nm"})
    refused(written(tmp_path / "c.nc", wavelength=low), "/wavelength: the entry of band 1")


def test_places_beside_a_cube_on_a_sensor_grid(tmp_path: Path) -> None:
    pair: dict[str, Any] = {name: (("y", "x"), np.full((7, 6), place)) for name, place in (("lon", 8.0), ("lat", 47.0))}
    with opened(written(tmp_path / "a.nc", spatial_ref=None, **pair)) as reader:
        located = reader.located(2, 5)
    assert located is not None
    assert located[0].shape == (3, 6)
    assert (located[0][0, 0], located[1][0, 0]) == (8.0, 47.0)


def test_netcdf_is_known_by_its_bytes_and_matlab_by_its_name(tmp_path: Path) -> None:
    path = written(tmp_path / "a.anything")
    assert recognises(path)
    assert not recognises(path.rename(tmp_path / "a.mat"))
    with netCDF4.Dataset(tmp_path / "b.nc", "w", format="NETCDF3_CLASSIC"):
        pass
    assert not recognises(tmp_path / "b.nc")
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "none.nc")
