"""Products restored by `deploy run`: the same bytes in one go and in parts, on a map, refused before and told."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from runtime.bundle import load_bundle
from runtime.by_lines.parts import join_parts, restore_part
from runtime.by_lines.product import judged, restore_product
from runtime.by_lines.ways import Ways
from runtime.errors import CubeFileError
from runtime.files import read_cube, write_cube
from runtime.products import open_cube
from runtime.products.contract import Seen
from runtime.products.provenance import provenance_of
from tests.contracts.bundles import known_bundle
from tests.contracts.coded import coded_bundle
from tests.contracts.command import assert_failed, invoke

Capsys = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
BANDS, LINES, SAMPLES = 7, 40, 21


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return known_bundle(tmp_path_factory.mktemp("doubling") / "bundle", gain=2)


def scene(seed: int = 0) -> NDArray[np.float32]:
    """[bands, lines, samples], so that twice of it is in the unit range."""
    return (0.05 + 0.4 * np.random.default_rng(seed).random((BANDS, LINES, SAMPLES))).astype("f4")


def emit(path: Path, cube: NDArray[Any]) -> Path:
    """An EMIT reflectance product with a lookup table that turns it upside down, and one bad band."""
    _, lines, samples = cube.shape
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (
            ("downtrack", lines),
            ("crosstrack", samples),
            ("bands", len(cube)),
            ("ortho_y", lines),
            ("ortho_x", samples),
        ):
            file.createDimension(name, size)
        file.title, file.instrument, file.spatial_ref = "made for a test", "EMIT", "EPSG:32632"
        file.geotransform = np.array([500000.0, 60, 0, 5200000, 0, -60])
        made = file.createVariable(
            "reflectance", "f4", ("downtrack", "crosstrack", "bands"), fill_value=-9999, zlib=True
        )
        made[:] = cube.transpose(1, 2, 0)
        made.units = "unitless"
        group = file.createGroup("sensor_band_parameters")
        group.createVariable("wavelengths", "f4", ("bands",))[:] = np.linspace(400, 1000, len(cube))
        group.createVariable("fwhm", "f4", ("bands",))[:] = 8
        group.createVariable("good_wavelengths", "f4", ("bands",))[:] = np.r_[np.ones(len(cube) - 1), 0]
        place = file.createGroup("location")
        y, x = np.mgrid[1 : lines + 1, 1 : samples + 1]
        place.createVariable("glt_y", "i4", ("ortho_y", "ortho_x"), fill_value=0)[:] = np.where(x == 1, 0, y[::-1])
        place.createVariable("glt_x", "i4", ("ortho_y", "ortho_x"), fill_value=0)[:] = np.where(x == 1, 0, x)
        for name in ("lon", "lat", "elev"):
            place.createVariable(name, "f8", ("downtrack", "crosstrack"))[:] = y + 0.001 * x
    return path


def product() -> tuple[Path, NDArray[np.float32]]:
    cube = scene()
    cube[:, 3:5, 2:6] = -9999
    cube[BANDS - 1] = -0.01
    return emit(Path("EMIT_L2A_RFL_001_20240101T000000_1_001.nc"), cube), cube


def expected(cube: NDArray[np.float32]) -> NDArray[np.float32]:
    gone = (cube == -9999) | (np.arange(BANDS) == BANDS - 1)[:, None, None]
    return np.where(gone, cube, 2 * cube)


def test_a_product_comes_back_like_the_input_with_its_provenance_and_quality(capsys: Capsys, doubling: Path) -> None:
    path, cube = product()
    done = invoke(capsys, "run", doubling, path, "--out", "out.nc", "--json")
    assert done.code == 0
    told = done.json
    assert (told["kind"], told["metrics_of"], told["missing"]) == ("like", "frame", 8)
    assert told["bad_bands"] == {"7": "marked bad in the header"} and told["files"] == ["out.nc"]
    with netCDF4.Dataset("out.nc") as made, netCDF4.Dataset(path) as given:
        made.set_auto_mask(False)
        given.set_auto_mask(False)
        np.testing.assert_allclose(made["reflectance"][:].transpose(2, 0, 1), expected(cube), atol=1e-6)
        assert made["location/glt_x"][:].tolist() == given["location/glt_x"][:].tolist()
        seen = made["damp_deploy_seen"][:]
        assert set(np.unique(seen)) == {Seen.RESTORED, Seen.MISSING} and (seen == Seen.MISSING).sum() == 8
    how = provenance_of(Path("out.nc"))
    assert how is not None
    assert (
        how["network"] == "known"
        and how["metrics_of"] == "frame"
        and how["bands_left_out"] == {"7": "marked bad in the header"}
    )
    assert how["rows"]["columns"][:2] == ["line", "expert"] and len(how["rows"]["values"]) > 5
    assert invoke(capsys, "inspect", "out.nc").out.count("restored    by damp-deploy") == 1


def test_again_gives_the_same_bytes_and_an_output_is_not_replaced_unasked(capsys: Capsys, doubling: Path) -> None:
    path, _ = product()
    first = invoke(capsys, "run", doubling, path, "--out", "out.nc", "--json").json["sha256"]
    assert_failed(invoke(capsys, "run", doubling, path, "--out", "out.nc"), 2, "out.nc", "--replace")
    assert invoke(capsys, "run", doubling, path, "--out", "out.nc", "--replace", "--json").json["sha256"] == first


@pytest.mark.parametrize(
    ("out", "kind"), [("o.tif", "cog"), ("o.zarr", "zarr"), ("o.img", "envi"), ("o2.nc", "netcdf")]
)
def test_every_format_holds_the_same_values_and_wavelengths(
    capsys: Capsys, doubling: Path, out: str, kind: str
) -> None:
    path, cube = product()
    assert invoke(capsys, "run", doubling, path, "--out", out, "--format", kind).code == 0
    with open_cube(out) as reader:
        made = reader.read_lines(0, LINES)
        described = reader.description
    np.testing.assert_allclose(made, expected(cube), atol=1e-6)
    assert described.stated.marks == (-9999.0,) and described.stated.bad == (BANDS - 1,)
    np.testing.assert_allclose(described.stated.wavelengths, np.linspace(400, 1000, BANDS), rtol=1e-5)
    np.testing.assert_allclose(described.fwhm, 8)
    how = provenance_of(Path(out))
    assert how is not None and how["options"] == {"kind": kind}


def test_what_was_restored_is_restored_again_like_itself(capsys: Capsys, doubling: Path) -> None:
    path, _ = product()
    assert invoke(capsys, "run", doubling, path, "--out", "once.nc").code == 0
    done = invoke(capsys, "run", doubling, "once.nc", "--out", "twice.nc")
    assert done.code == 0, done.err


def test_a_name_says_the_format_or_is_refused(capsys: Capsys, doubling: Path) -> None:
    path, _ = product()
    for out in ("o.npy", "o.png", "o", "o.foo"):
        assert_failed(invoke(capsys, "run", doubling, path, "--out", out), 2, out, "--out", ".img, .nc, .tif, .zarr")
    assert_failed(invoke(capsys, "run", doubling, path, "--out", "o.nc", "--format", "cog"), 2, "o.nc", ".tif")
    write_cube("scene.hdr", scene())
    assert invoke(capsys, "run", doubling, "scene.hdr", "--out", "o.nc").code == 0
    assert invoke(capsys, "run", doubling, "scene.hdr", "--out", "o.tif").code == 0


def test_what_lies_beside_an_output_is_not_replaced_unasked(capsys: Capsys, doubling: Path) -> None:
    path, _ = product()
    Path("o_quality.tif").write_text("mine")
    assert_failed(invoke(capsys, "run", doubling, path, "--out", "o.tif"), 2, "o_quality.tif", "--replace")
    assert Path("o_quality.tif").read_text() == "mine"


def test_what_means_nothing_to_a_format_is_refused(capsys: Capsys, doubling: Path) -> None:
    path, _ = product()
    for flags in (("--layout", "bands,lines,samples"), ("--missing-chunks", "fill")):
        assert_failed(invoke(capsys, "run", doubling, path, "--out", "o.nc", *flags), 2, flags[0], "leave it out")


def test_one_mark_stands_for_all_that_is_missing_in_another_format(capsys: Capsys, doubling: Path) -> None:
    cube = np.rint(scene() * 10000).astype("i2")
    cube[:, 3:5, 2:6], cube[:, 20:22, 9:14] = -9999, -32768
    cube[5] = np.where(cube[5] < 2000, 0, 3)
    write_cube(
        "s.hdr",
        cube,
        fields={"data ignore value": "-9999", "reflectance scale factor": "10000", "bbl": "{1,1,1,1,1,0,1}"},
    )
    assert invoke(capsys, "run", doubling, "s.hdr", "--out", "o.tif").code == 0
    with rasterio.open("o.tif") as image:
        made = image.read()
        assert image.nodata == -9999
    gone = np.isin(cube[0], (-9999, -32768))
    assert (made[np.arange(BANDS) != 5][:, gone] == -9999).all()
    assert (made[5][cube[5] >= 0] == cube[5][cube[5] >= 0]).all()


def test_float_output_keeps_marks_where_no_frame_was_restored(capsys: Capsys, doubling: Path) -> None:
    cube = np.rint(scene() * 10000).astype("i2")
    cube[:, :24] = -9999
    write_cube("s.hdr", cube, fields={"data ignore value": "-9999", "reflectance scale factor": "10000"})
    flags = ("--metrics", "frame", "--output-type", "float32")
    assert invoke(capsys, "run", doubling, "s.hdr", "--out", "o.hdr", *flags).code == 0
    made = read_cube("o.hdr").cube
    assert (made[:, :24] == -9999).all() and (np.abs(made[:, 24:]) < 2).all()


def test_nan_that_somebody_calls_missing_is_written_and_told(capsys: Capsys, doubling: Path) -> None:
    cube = scene()
    cube[:, 3:5, 2:6] = np.nan
    path = emit(Path("EMIT_L2A_RFL_001_20240101T000000_1_001.nc"), cube)
    done = invoke(capsys, "run", doubling, path, "--out", "o.nc", "--ignore-value", "nan", "--json")
    assert done.code == 0 and done.json["missing"] == 8, done.err
    how = provenance_of(Path("o.nc"))
    assert how is not None and how["options"] == {"marks": ["nan"]}


def test_a_copied_or_touched_input_gives_the_same_bytes(capsys: Capsys, doubling: Path) -> None:
    path, _ = product()
    first = invoke(capsys, "run", doubling, path, "--out", "a.nc", "--json").json["sha256"]
    os.utime(path, (1, 1))
    assert invoke(capsys, "run", doubling, path, "--out", "b.nc", "--json").json["sha256"] == first


def test_on_a_map_it_is_put_after_it_was_restored(capsys: Capsys, doubling: Path) -> None:
    path, cube = product()
    assert_failed(
        invoke(capsys, "run", doubling, path, "--out", "o.nc", "--ortho", "--format", "like"),
        2,
        "--ortho",
        "--format cog",
    )
    assert invoke(capsys, "run", doubling, path, "--out", "o.tif", "--ortho").code == 0
    with rasterio.open("o.tif") as image:
        made = image.read()
        assert image.crs.to_epsg() == 32632 and image.transform.to_gdal() == (500000, 60, 0, 5200000, 0, -60)
        assert image.nodata == -9999
    turned = expected(cube)[:, ::-1].copy()
    turned[:, :, 0] = -9999
    np.testing.assert_allclose(made, turned, atol=1e-6)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(capsys: Capsys, doubling: Path) -> None:
    path, _ = product()
    before = sorted(Path().iterdir())
    told = invoke(capsys, "run", doubling, path, "--out", "o.nc", "--dry-run", "--json").json
    assert told["shape"] == [BANDS, LINES, SAMPLES] and 100 << 20 < told["memory"] < 300 << 20
    assert sorted(Path().iterdir()) == before


def test_what_the_machine_has_no_memory_for_is_refused_with_the_figure(
    capsys: Capsys, doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = product()
    monkeypatch.setattr("runtime.by_lines.memory.available_memory", lambda: 50 << 20)
    assert_failed(invoke(capsys, "run", doubling, path, "--out", "o.nc"), 3, "memory", "MiB", "50 are free")
    assert not Path("o.nc").exists()


def test_an_envi_cube_is_the_same_by_frames_as_by_scene_to_a_network_that_does_not_listen(
    capsys: Capsys, doubling: Path
) -> None:
    write_cube("scene.hdr", scene())
    assert invoke(capsys, "run", doubling, "scene.hdr", "--out", "a.hdr", "--metrics", "scene").code == 0
    told = invoke(capsys, "run", doubling, "scene.hdr", "--out", "b.hdr", "--metrics", "frame", "--json").json
    assert told["metrics_of"] == "frame"
    np.testing.assert_allclose(read_cube("a.hdr").cube, read_cube("b.hdr").cube, atol=1e-6)


def test_a_product_by_scene_has_one_prompt_for_all_rows(capsys: Capsys, doubling: Path) -> None:
    path, cube = product()
    assert invoke(capsys, "run", doubling, path, "--out", "o.nc", "--metrics", "scene").code == 0
    how = provenance_of(Path("o.nc"))
    assert how is not None and how["metrics_of"] == "scene"
    assert len({tuple(row[2:]) for row in how["rows"]["values"]}) == 1
    with h5py.File("o.nc") as made:
        np.testing.assert_allclose(made["reflectance"][()].transpose(2, 0, 1), expected(cube), atol=1e-6)


@pytest.mark.parametrize("cuts", [(13,), (8, 16, 24, 32), (1, 39)])
def test_parts_joined_are_what_one_go_gives(doubling: Path, cuts: tuple[int, ...]) -> None:
    path, _ = product()
    ways = Ways()
    with load_bundle(doubling) as bundle:
        whole = restore_product(bundle, path, Path("whole.nc"), ways)
        with open_cube(path) as reader:
            found = judged(bundle.manifest, reader, ways.asked)
        ends = (0, *cuts, LINES)
        parts = []
        for number, (start, stop) in enumerate(pairwise(ends)):
            part = Path(f"part{number}")
            parts.append((part, restore_part(bundle, path, part, ways, found, start, stop)))
        joined = join_parts(bundle, path, parts, Path("joined.nc"), ways, found)
        assert joined.sha256 == whole.sha256 and Path("joined.nc").read_bytes() == Path("whole.nc").read_bytes()
        assert (joined.frames, joined.experts, joined.missing) == (whole.frames, whole.experts, whole.missing)
        data = bytearray(parts[0][0].read_bytes())
        data[200] ^= 1
        parts[0][0].write_bytes(data)
        with pytest.raises(CubeFileError, match="is not the part that was made"):
            join_parts(bundle, path, parts, Path("again.nc"), ways, found)
        assert not Path("again.nc").exists()


def test_an_input_that_changes_meanwhile_leaves_nothing(doubling: Path) -> None:
    path, _ = product()
    with load_bundle(doubling) as bundle:

        def touched(*_: object) -> None:
            with path.open("ab") as file:
                file.write(b"more")

        with pytest.raises(CubeFileError, match="changed"):
            restore_product(bundle, path, Path("o.nc"), Ways(), told=touched)
    assert not Path("o.nc").exists()


def test_enmap_as_delivered_restores_and_its_empty_bands_come_back(
    capsys: Capsys, doubling: Path, data_dir: Path, tmp_path: Path
) -> None:
    source = next((data_dir / "products/enmap").glob("*L2A*Z"))
    done = invoke(capsys, "run", doubling, source, "--out", "enmap_restored", "--json")
    assert done.code == 0, done.err
    made = next(Path("enmap_restored").glob("*SPECTRAL_IMAGE.TIF"))
    with rasterio.open(made) as image, rasterio.open(source / made.name) as given:
        new, old = image.read(), given.read()
        assert image.profile == given.profile
    empty = (old == -32768).all(axis=(1, 2))
    assert empty.sum() == 3 and (new[empty] == -32768).all()
    gone = (old == -32768)[~empty].any(axis=0)
    assert (new[~empty][:, gone] == old[~empty][:, gone]).all()
    ratio = new[~empty][:, ~gone].astype(float) / old[~empty][:, ~gone]
    assert abs(np.median(ratio) - 2) < 0.01
    assert (Path("enmap_restored") / f"{source.name}-METADATA.XML").read_bytes() == (
        source / f"{source.name}-METADATA.XML"
    ).read_bytes()
    assert json.loads(Path("enmap_restored/damp_deploy.json").read_text())["input"]["format"] == "enmap"


def test_a_product_streams_as_a_camera_would(capsys: Capsys, doubling: Path) -> None:
    path, cube = product()
    done = invoke(capsys, "stream", doubling, "--source", f"file:{path}", "--restored", "s", "--record", "r", "--json")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(read_cube("r/lines.hdr").cube, cube)
    made = read_cube("s/restored.hdr").cube
    inner = ~(cube == -9999).any(axis=0)
    np.testing.assert_allclose(made[:-1, inner], 2 * cube[:-1, inner], atol=1e-5)


def test_networks_that_do_not_go_line_by_line_say_so(capsys: Capsys, tmp_path: Path) -> None:
    path, _ = product()
    bundle = coded_bundle(tmp_path / "coded")
    assert_failed(invoke(capsys, "run", bundle, path, "--out", "o.nc"), 2, "line by line")
