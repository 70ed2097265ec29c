"""Zarr stores written: what xarray and zarr see in new ones and in copies of the source."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("zarr")

import zarr

from runtime.errors import CubeFileError
from runtime.products import zarr_like, zarr_rows, zarr_writer
from runtime.products.contract import CubeWriter, Description, Grid, Place, Quality, Reading, Result
from runtime.products.zarr_store import open_reader
from runtime.stated import Stated
from tests.runtime.products.zarr_data import bare, chunk_of, dataset, needs_3, numbers, plain, xr

Opens = Callable[[Path, Result], CubeWriter]
WKT = 'PROJCS["WGS 84 / UTM zone 32N",GEOGCS["WGS 84"],PROJECTION["Transverse_Mercator"],UNIT["metre",1]]'
WAVES = (400.0, 420.0, 440.0, 460.0, 480.0, 500.0)


source_versions = pytest.mark.parametrize("source_version", [2, pytest.param(3, marks=needs_3)])


def result_of(path: Path, **more: Any) -> Result:
    with open_reader(path, Reading()) as reader:
        told = reader.description
    mark = told.stated.marks[0] if told.stated.marks else None
    result = Result(
        told, told.shape, told.dtype, told.stated, told.fwhm, told.quantity, told.unit, told.place, mark=mark
    )
    return replace(result, **more)


def made_of(cube: NDArray[Any], **more: Any) -> Result:
    """Of a source of another format, on a grid."""
    source = Description("envi", Path("in.img"), (Path("in.img"),), cube.shape, cube.dtype)  # type: ignore[arg-type]
    grid = Grid(WKT, (500000, 4, 0, 5200000, 0, -4), *cube.shape[1:])
    stated = Stated(wavelengths=WAVES[: len(cube)], bad=(1,))
    result = Result(source, source.shape, cube.dtype, stated, (5.5,) * len(cube), "reflectance", "1", Place(grid=grid))
    return replace(result, **more)


def written(opens: Opens, out: Path, result: Result, cube: NDArray[Any], step: int = 3) -> tuple[Path, ...]:
    with opens(out, result) as writer:
        for start in range(0, cube.shape[1], step):
            part = cube[:, start : start + step]
            seen = np.full(part.shape[1:], 1 + start % 2, np.uint8)
            writer.write_lines(part, Quality(seen, seen + 1) if result.quality else None)
        return writer.finish({"bundle": "a seal", "experts": np.arange(2), "psnr": float("nan")})


def opened(path: Path, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.load_dataset(path, engine="zarr", **more)


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(params=[2, pytest.param(3, marks=needs_3)])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the stores that are written, as the zarr that is installed has it."""
    number: int = request.param
    monkeypatch.setattr(zarr_writer, "zarr_version", lambda: number)
    return number


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4", "f8", "u1"])
def test_xarray_opens_a_new_store_with_its_values_and_no_warning(tmp_path: Path, version: int, dtype: str) -> None:
    cube, out = numbers(dtype), tmp_path / "out.zarr"
    assert written(zarr_writer.open_writer, out, made_of(cube), cube) == (out,)
    for consolidated in (None, True, False):
        found = opened(out, consolidated=consolidated)
        assert found.reflectance.dims == ("wavelength", "y", "x") and found.reflectance.dtype == cube.dtype
        assert np.array_equal(found.reflectance.values, cube)
        assert found.wavelength.values.tolist() == list(WAVES) and found.wavelength.attrs["units"] == "nm"
        assert found.fwhm.values.tolist() == [5.5] * 6 and found.good_wavelengths.values.tolist() == [1, 0, 1, 1, 1, 1]
        assert found.x.values[:2].tolist() == [500002, 500006] and found.y.values[:2].tolist() == [5199998, 5199994]
        assert found.spatial_ref.attrs["crs_wkt"] == WKT and found.reflectance.attrs["grid_mapping"] == "spatial_ref"
        assert found.damp_deploy_seen.dtype == np.uint8 and found.damp_deploy_seen.values[:, 0].tolist() == [
            1, 1, 1, 2, 2, 2, 1, 1, 1, 2,
        ]  # fmt: skip
        assert np.array_equal(found.damp_deploy_expert, found.damp_deploy_seen + 1)
        assert json.loads(found.attrs["damp_deploy"]) == {"bundle": "a seal", "experts": [0, 1], "psnr": None}
    assert [name for name in (".zgroup", "zarr.json") if (out / name).exists()] == [
        {2: ".zgroup", 3: "zarr.json"}[version]
    ]
    assert list(tmp_path.iterdir()) == [out], "no part is left"


def test_scale_offset_and_fill_are_said_so_that_xarray_undoes_them(tmp_path: Path, version: int) -> None:
    cube = numbers("i2")
    cube[:, 2, 3] = -999
    stated = Stated(gains=(2e-4,) * 6, offsets=(0.5,) * 6, wavelengths=WAVES, marks=(-999,))
    written(zarr_writer.open_writer, tmp_path / "a.zarr", made_of(cube, stated=stated, mark=-999), cube)
    found = opened(tmp_path / "a.zarr").reflectance.values
    assert np.isnan(found[:, 2, 3]).all() and np.isnan(found).sum() == 6
    assert np.allclose(np.delete(found.reshape(6, -1), 21, 1), np.delete((cube * 2e-4 + 0.5).reshape(6, -1), 21, 1))
    gains = tuple(np.linspace(1e-4, 2e-4, 6))
    stated = replace(stated, gains=gains, offsets=None)
    written(zarr_writer.open_writer, tmp_path / "b.zarr", made_of(cube, stated=stated, mark=-999), cube)
    assert "scale_factor" not in opened(tmp_path / "b.zarr").reflectance.encoding
    with open_reader(tmp_path / "b.zarr", Reading()) as reader:
        told = reader.description
        assert told.stated.gains == gains and told.stated.marks == (-999.0,)
        assert np.array_equal(reader.read_lines(0, 10), cube)


def test_what_is_written_reads_back_as_it_was_described(tmp_path: Path, version: int) -> None:
    cube = numbers("f4")
    cube[:, 0, 0] = np.nan
    stated = Stated(wavelengths=WAVES, bad=(1,), marks=(float("nan"),))
    result = made_of(cube, mark=float("nan"), stated=stated)
    written(zarr_writer.open_writer, tmp_path / "a.zarr", result, cube)
    with open_reader(tmp_path / "a.zarr", Reading()) as reader:
        told = reader.description
        assert np.array_equal(reader.read_lines(0, 10), cube, equal_nan=True)
    assert (told.fwhm, told.quantity, told.unit, told.place) == (result.fwhm, "reflectance", "1", result.place)
    assert (told.stated.wavelengths, told.stated.bad, str(told.stated.marks)) == (WAVES, (1,), "(nan,)")


def test_wavelengths_that_turn_back_are_no_dimension(tmp_path: Path, version: int) -> None:
    stated = Stated(wavelengths=(400.0, 500.0, 450.0, 550.0, 600.0, 700.0))
    written(zarr_writer.open_writer, tmp_path / "a.zarr", made_of(numbers(), stated=stated, quality=False), numbers())
    found = opened(tmp_path / "a.zarr")
    assert found.reflectance.dims[0] == "band" and found.wavelength.dims == ("band",)
    assert "damp_deploy_seen" not in found


def test_bytes_do_not_change_from_run_to_run(tmp_path: Path, version: int) -> None:
    cube = numbers("f4", (70, 40, 300))
    result = made_of(cube, stated=Stated(), fwhm=None)
    written(zarr_writer.open_writer, tmp_path / "a.zarr", result, cube, 3)
    written(zarr_writer.open_writer, tmp_path / "b.zarr", result, cube, 40)
    one, other = bytes_of(tmp_path / "a.zarr"), bytes_of(tmp_path / "b.zarr")
    seen = {name for name in one if name.startswith("damp_deploy_")}
    assert one.keys() == other.keys() and all(one[name] == other[name] for name in one.keys() - seen)
    assert np.array_equal(opened(tmp_path / "a.zarr").reflectance.values, cube)


@source_versions
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_a_copy_differs_from_its_source_in_the_cube_alone(tmp_path: Path, source_version: int, dtype: str) -> None:
    packed = {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -1} if dtype == "i2" else {}
    shards = {"chunks": (3, 2, 5), "shards": (6, 4, 10)} if source_version == 3 else {"chunks": (4, 3, 5)}
    path = plain(tmp_path, source_version, numbers("f4") / 10, **shards, **packed)
    (path / "wavelength" / "notes.txt").write_text("kept")
    before = bytes_of(path)
    with open_reader(path, Reading()) as reader:
        cube = reader.read_lines(0, 10) + np.asarray(1, dtype)
    out = tmp_path / "out.zarr"
    assert written(zarr_like.open_like, out, result_of(path), cube) == (out,)
    after = bytes_of(out)
    chunk = (lambda name: name.startswith("reflectance/c/")) if source_version == 3 else (
        lambda name: name.startswith("reflectance/") and "/." not in name
    )  # fmt: skip
    own = {name for name in after if name.startswith("damp_deploy_")}
    assert own and before.keys() == after.keys() - own - {".zattrs"} | (before.keys() & {".zattrs"})
    changed = {name for name in before if before[name] != after[name] and not chunk(name)}
    assert changed <= {"zarr.json", ".zattrs"}
    for name in changed:
        one, other = json.loads(before[name]), json.loads(after[name])
        (one.get("attributes", one)).pop("damp_deploy", None)
        (other.get("attributes", other)).pop("damp_deploy", None)
        assert one == other
    found, known = opened(out, consolidated=False), opened(path, consolidated=False)
    assert np.allclose(found.reflectance.values, known.reflectance.values + (1e-4 if dtype == "i2" else 1))
    assert found.reflectance.encoding["chunks"] == known.reflectance.encoding["chunks"]
    assert found.reflectance.encoding["dtype"] == known.reflectance.encoding["dtype"]
    assert bytes_of(path) == before


@source_versions
def test_a_copy_of_a_consolidated_store_says_the_new_arrays_there_too(tmp_path: Path, source_version: int) -> None:
    path = tmp_path / "in.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset(numbers()).to_zarr(path, zarr_format=source_version, consolidated=True)
    written(zarr_like.open_like, tmp_path / "out.zarr", result_of(path), numbers() * 2)
    found = opened(tmp_path / "out.zarr", consolidated=True)
    assert "damp_deploy" in found.attrs and np.array_equal(found.reflectance.values, numbers() * 2)
    assert found.damp_deploy_seen.values.shape == (10, 9)


@source_versions
def test_a_bare_array_gets_its_quality_beside_it(tmp_path: Path, source_version: int) -> None:
    path = bare(tmp_path / "in.zarr", numbers().transpose(1, 2, 0), source_version, chunks=(4, 5, 6))
    made = written(zarr_like.open_like, tmp_path / "out.zarr", result_of(path), numbers() + 1)
    assert made == (tmp_path / "out.zarr", tmp_path / "out_quality.zarr")
    array = zarr.open_array(str(made[0]), mode="r")
    assert np.array_equal(array[...], numbers().transpose(1, 2, 0) + 1) and "a seal" in array.attrs["damp_deploy"]
    assert zarr.open_group(str(made[1]), mode="r")["damp_deploy_seen"].shape == (10, 9)


@source_versions
def test_a_copy_in_the_unit_range_says_so(tmp_path: Path, source_version: int) -> None:
    made = dataset(numbers("f4") / 10)
    made.to_zarr(
        tmp_path / "in.zarr", zarr_format=source_version, consolidated=False,
        encoding={"reflectance": {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -1}},
    )  # fmt: skip
    cube = numbers("f4") / 1000
    cube[:, 1, 1] = -1
    result = result_of(tmp_path / "in.zarr", dtype=np.dtype("f4"), unit_range=True, stated=Stated(marks=(-1,)))
    written(zarr_like.open_like, tmp_path / "out.zarr", result, cube)
    found = opened(tmp_path / "out.zarr", consolidated=False).reflectance
    assert np.isnan(found.values[:, 1, 1]).all() and np.nanmax(np.abs(found.values - cube)) == 0
    assert "scale_factor" not in found.encoding and found.dtype == np.float32


def test_a_missing_chunk_of_the_source_is_written_as_fill(tmp_path: Path) -> None:
    path = plain(tmp_path, chunks=(6, 4, 5))
    chunk_of(path, 0, 1, 0).unlink()
    with open_reader(path, Reading(missing_chunks="fill")) as reader:
        told, cube = reader.description, reader.read_lines(0, 10)
    result = Result(told, told.shape, told.dtype, told.stated, mark=told.stated.marks[0])
    written(zarr_like.open_like, tmp_path / "out.zarr", result, cube)
    with open_reader(tmp_path / "out.zarr", Reading()) as reader:
        assert np.array_equal(reader.read_lines(0, 10), cube, equal_nan=True)


@pytest.mark.parametrize("opens", [zarr_writer.open_writer, zarr_like.open_like])
def test_rows_that_are_too_large_go_through_a_file(
    tmp_path: Path, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cube = plain(tmp_path, chunks=(4, 7, 5)), numbers() + 1
    usual = written(opens, tmp_path / "usual.zarr", result_of(path), cube)[0]
    holds = (zarr_writer.holds if opens is zarr_writer.open_writer else zarr_like.holds_like)(result_of(path))
    monkeypatch.setattr(zarr_rows, "LINE_OF_CHUNKS", 100)
    spooled = written(opens, tmp_path / "spooled.zarr", result_of(path), cube)[0]
    assert bytes_of(usual) == bytes_of(spooled)
    assert holds > (zarr_writer.holds if opens is zarr_writer.open_writer else zarr_like.holds_like)(result_of(path))


@pytest.mark.parametrize("opens", [zarr_writer.open_writer, zarr_like.open_like])
def test_nothing_is_there_without_finish(tmp_path: Path, opens: Opens) -> None:
    path = plain(tmp_path)
    out = tmp_path / "out.zarr"
    with opens(out, result_of(path, quality=False)) as writer:
        writer.write_lines(numbers()[:, :4])
        assert not out.exists()
        with pytest.raises(CubeFileError, match="only 4 of its 10 lines"):
            writer.finish({})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("opens", [zarr_writer.open_writer, zarr_like.open_like])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain(tmp_path)
    writer = opens(tmp_path / "out.zarr", result_of(path, quality=False))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with writer, pytest.raises(CubeFileError, match="No space left") as error:
        writer.write_lines(numbers())
    assert error.value.file == str(tmp_path / "out.zarr") and "free space" in error.value.remedy
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("opens", [zarr_writer.open_writer, zarr_like.open_like])
def test_targets_that_would_harm_are_refused(tmp_path: Path, opens: Opens) -> None:
    path = plain(tmp_path)
    result = result_of(path)
    before = bytes_of(path)
    for out in (path, path / "inside.zarr"):
        with pytest.raises(CubeFileError, match="overwrite the input"):
            opens(out, result)
    (tmp_path / "papers.zarr").mkdir()
    with pytest.raises(CubeFileError, match="no Zarr store"):
        opens(tmp_path / "papers.zarr", result)
    with pytest.raises(CubeFileError, match="cannot be written"):
        opens(tmp_path / "nowhere" / "out.zarr", result)
    assert bytes_of(path) == before


@pytest.mark.parametrize("opens", [zarr_writer.open_writer, zarr_like.open_like])
def test_a_store_that_was_there_is_replaced_at_the_end(tmp_path: Path, opens: Opens) -> None:
    path, out = plain(tmp_path), tmp_path / "out.zarr"
    written(opens, out, result_of(path), numbers())
    with opens(out, result_of(path, quality=False)) as writer:
        writer.write_lines(numbers() + 1)
        assert np.array_equal(opened(out, consolidated=False).reflectance.values, numbers())
        writer.finish({})
    assert np.array_equal(opened(out, consolidated=False).reflectance.values, numbers() + 1)
    assert sorted(tmp_path.iterdir()) == [out, path]


def test_a_copy_on_another_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CubeFileError, match="shape of the source") as error:
        zarr_like.open_like(tmp_path / "out.zarr", result_of(plain(tmp_path), shape=(6, 20, 20)))
    assert "zarr" in error.value.remedy
