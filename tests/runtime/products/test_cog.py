"""COGs: what is written is what independent readers see, whole or absent, in bounded memory."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.products import open_writer
from runtime.products.contract import CubeReader, Doubles, Gcp, Grid, Place
from runtime.stated import Stated
from tests.runtime.products.tiff_data import whole
from tests.runtime.products.tiff_out import check_cog, like, of_array, opened, run, scene, write, written

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
GRID = Grid(rasterio.CRS.from_epsg(32632).to_wkt(), (500000.0, 30.0, 2.0, 5200000.0, 1.0, -30.0), 700, 530)
NM = (702.5, 451.125, 420.0)
STATED = Stated(gains=(0.5, 0.25, 0.0001), offsets=(1.0, 0.0, -2.0), wavelengths=NM, bad=(1,))


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "int32", "float32", "float64"])
def test_numbers_and_layout(tmp_path: Path, dtype: str) -> None:
    cube = scene(3, 700, 530, dtype)
    cube[:, :2, :3] = 7
    out = tmp_path / "restored.tif"
    assert written(out, of_array(cube, mark=7.0), cube) == (out, tmp_path / "restored_quality.tif")
    check_cog(out)
    with rasterio.open(out) as file:
        assert np.array_equal(file.read(), cube)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == ("3" if dtype[0] == "f" else "2")
        assert file.nodata == 7
        assert file.overviews(3) == [2]
    with rasterio.open(out, overview_level=0) as file:
        small = file.read()
    # The four numbers of a corner are missing, and of the next three some: what is not missing is averaged.
    assert small[0, 0, 0] == 7
    assert small[0, 0, 1] == pytest.approx(cube[0, :2, 3].mean(), abs=0.6)
    assert small[2, 10, 20] == pytest.approx(cube[2, 20:22, 40:42].mean(), abs=0.6)
    if dtype[0] != "f":  # tifffile alone knows no predictor of floats.
        assert np.array_equal(tifffile.imread(out), cube)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["restored.tif", "restored_quality.tif"]


def test_meaning_of_bands_in_both_forms(tmp_path: Path) -> None:
    cube = scene(3, 20, 30, "int16")
    written(tmp_path / "a.tif", of_array(cube, stated=STATED, fwhm=(6.5, 7.0, 8.0), unit="W m-2", mark=-9999.0), cube)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.scales == STATED.gains
        assert file.offsets == STATED.offsets
        assert file.units == ("W m-2",) * 3
        assert file.descriptions[1] == "band 2 (451.125 Nanometers)"
        assert file.tags(2) == {
            "wavelength": "451.125", "wavelength_units": "Nanometers", "fwhm": "7", "bbl": "0"
        }  # fmt: skip
        assert file.tags(1)["bbl"] == "1"
        assert file.tags(2, ns="IMAGERY") == {"CENTRAL_WAVELENGTH_UM": "0.451125", "FWHM_UM": "0.007"}
        assert "TIFFTAG_DATETIME" not in file.tags()
        assert json.loads(file.tags()["damp_deploy"]) == {"program": "damp-deploy", "scale": None, "name": "<&> é"}


@pytest.mark.parametrize(
    ("stated", "scale", "offset"),
    [
        (Stated(scale=10000.0), 0.0001, 0.0),
        (Stated(reflectance_gains=(0.5,) * 3, reflectance_offsets=(2.0,) * 3), 0.5, 2.0),
        (Stated(), 1, 0),
    ],
)
def test_scale_however_it_is_stated(tmp_path: Path, stated: Stated, scale: float, offset: float) -> None:
    cube = scene(3, 5, 6, "int16")
    written(tmp_path / "a.tif", of_array(cube, stated=stated), cube)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (file.scales, file.offsets) == ((scale,) * 3, (offset,) * 3)
        assert file.nodata is None


@pytest.mark.parametrize("area", [True, False])
def test_on_a_map(tmp_path: Path, area: bool) -> None:
    cube = scene(1, 700, 530, "uint8")
    written(tmp_path / "a.tif", of_array(cube, place=Place(grid=GRID, area=area)), cube)
    for name in ("a.tif", "a_quality.tif"):
        with rasterio.open(tmp_path / name) as file:
            assert file.transform.to_gdal() == pytest.approx(GRID.transform)
            assert file.crs.to_epsg() == 32632
            assert file.tags()["AREA_OR_POINT"] == ("Area" if area else "Point")


class Located(CubeReader):
    """A reader that knows where its pixels lie, but for one."""

    def __init__(self, cube: NDArray[Any]) -> None:
        self.description = of_array(cube).source

    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        raise NotImplementedError

    def located(self, start: int, stop: int) -> tuple[Doubles, Doubles]:
        lines, samples = np.mgrid[start:stop, : self.description.shape[2]].astype(float)
        longitudes = 8 + samples / 100
        longitudes[(lines == 0) & (samples == 0)] = np.nan
        return longitudes, 47 - lines / 100

    def close(self) -> None:
        pass


def test_on_a_sensors_grid_by_located_pixels(tmp_path: Path) -> None:
    cube = scene(2, 101, 51, "int16")
    written(tmp_path / "a.tif", of_array(cube, reader=Located(cube)), cube)
    for name in ("a.tif", "a_quality.tif"):
        with rasterio.open(tmp_path / name) as file:
            points, crs = file.gcps
            assert crs.to_epsg() == 4326
            assert len(points) == 11 * 11 - 1
            # A pixel's place is that of its centre.
            assert all(point.x == pytest.approx(8 + (point.col - 0.5) / 100) for point in points)
            assert all(point.y == pytest.approx(47 - (point.row - 0.5) / 100) for point in points)
            assert {point.row for point in points} == {10 * n + 0.5 for n in range(11)}


def test_on_a_sensors_grid_by_points_and_coefficients(tmp_path: Path) -> None:
    cube = scene(1, 9, 8, "int16")
    points = tuple(Gcp(line, sample, 8.0 + sample, 47.0 - line, 12.0) for line in (0, 9) for sample in (0, 8))
    names = ("LINE_NUM", "LINE_DEN", "SAMP_NUM", "SAMP_DEN")
    rpc = {f"{name}_COEFF": " ".join(["1"] + ["0.5"] * 19) for name in names}
    rpc |= {f"{name}_{what}": "2" for name in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT") for what in ("OFF", "SCALE")}
    place = Place(gcps=points, gcp_crs="EPSG:4258", rpc=rpc)
    written(tmp_path / "a.tif", of_array(cube, place=place), cube)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert [(p.row, p.col, p.x, p.y, p.z) for p in file.gcps[0]] == list(points)
        assert file.gcps[1].to_epsg() == 4258
        assert file.rpcs.samp_scale == 2
        assert file.rpcs.line_den_coeff[1] == 0.5


def test_quality_has_two_bands(tmp_path: Path) -> None:
    cube = scene(2, 20, 30, "int16")
    written(tmp_path / "a.tif", of_array(cube), cube)
    with rasterio.open(tmp_path / "a_quality.tif") as file:
        assert file.descriptions == ("seen", "expert")
        assert file.tags(1)["flag_masks"] == "1 2 4 8 16"
        assert file.tags(1)["flag_meanings"] == "restored passed missing saturated suspect"
        seen, expert = file.read()
        assert "damp_deploy" in file.tags()
    assert seen[:, 0].tolist() == [1] * 7 + [2] * 7 + [3] * 6
    assert np.array_equal(expert, seen + 10)
    written(tmp_path / "b.tif", of_array(cube, quality=False), cube)
    assert not (tmp_path / "b_quality.tif").exists()


def test_two_runs_are_equal_and_replace_each_other(tmp_path: Path) -> None:
    cube = scene(5, 600, 90, "float32")
    cube[0, 0, 0] = np.nan
    folder = tmp_path / "a !b:c?é %d"
    folder.mkdir()
    for out in (folder / "x.tif", tmp_path / "y.TIF"):
        for _ in range(2):
            written(out, of_array(cube, stated=Stated(wavelengths=(1.0, 2.0, 3.0, 4.0, 5.0)), mark=np.nan), cube)
    assert (folder / "x.tif").read_bytes() == (tmp_path / "y.TIF").read_bytes()
    assert (folder / "x_quality.tif").read_bytes() == (tmp_path / "y_quality.tif").read_bytes()
    assert len(list(folder.iterdir())) == 2


STOPPED = """
import os, sys
from pathlib import Path
from tests.runtime.products.tiff_out import of_array, scene, written
out, steps, real = Path(sys.argv[1]), int(sys.argv[2]), os.replace
def replace(one, other):
    global steps
    steps -= out.parent in (Path(one).parent, Path(other).parent)
    if steps < 0:
        os._exit(9)
    real(one, other)
os.replace = replace
written(out, of_array(scene(2, 20, 30, "int16") + 1), scene(2, 20, 30, "int16") + 1)
"""


def test_a_kill_leaves_no_quality_beside_an_image_that_is_not_its_own(tmp_path: Path) -> None:
    cube, out, quality = scene(2, 20, 30, "int16"), tmp_path / "a.tif", tmp_path / "a_quality.tif"
    seen = []
    for steps in range(4):
        written(out, of_array(cube), cube)
        old = quality.read_bytes()
        done = run(STOPPED, out, steps)
        with rasterio.open(out) as file:
            seen.append((done.returncode, bool(file.read(1)[0, 0]), quality.exists()))
        assert not quality.exists() or not done.returncode or (quality.read_bytes() == old and not seen[-1][1])
    assert seen == [(9, False, True), (9, False, False), (9, True, False), (0, True, True)]
    written(out, of_array(cube, quality=False), cube)
    assert not quality.exists()


def test_without_the_last_lines_nothing_is_there(tmp_path: Path) -> None:
    cube = scene(2, 30, 30, "int16")
    (tmp_path / "a.tif").write_text("before")
    with open_writer(tmp_path / "a.tif", of_array(cube), "cog") as writer:
        write(writer, cube, 14)
        with pytest.raises(CubeFileError, match="14 of 30 lines were written"):
            writer.finish({})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.tif", "before")]
    with open_writer(tmp_path / "a.tif", of_array(cube), "cog") as writer:
        write(writer, cube)
        with pytest.raises(ValueError, match="more than the 30 lines"):
            writer.write_lines(cube[:, :1])
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    cube = scene(2, 30, 30, "int16")
    source = tmp_path / "in.tif"
    source.write_bytes(b"II*\0")
    result = of_array(cube)
    result = replace(result, source=replace(result.source, files=(source,)))
    (tmp_path / "link_quality.tif").symlink_to(source)
    for name in ("in.tif", "link.tif"):
        with pytest.raises(CubeFileError, match="would overwrite the input"):
            open_writer(tmp_path / name, result, "cog")
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(CubeFileError, match="a folder of that name is in the way"):
        open_writer(tmp_path / "folder.tif", result, "cog")
    with pytest.raises(CubeFileError, match="No such file or directory") as error:
        open_writer(tmp_path / "none" / "a.tif", result, "cog")
    assert error.value.file == str(tmp_path / "none" / "a.tif")
    with pytest.raises(CubeFileError, match="no numbers of this type"):
        open_writer(tmp_path / "a.tif", replace(result, dtype=np.dtype(np.float16)), "cog")
    with pytest.raises(CubeFileError, match="cannot be written"):
        bad = Place(grid=replace(GRID, crs="no such system"))
        open_writer(tmp_path / "a.tif", replace(result, place=bad), "cog")
    assert source.read_bytes() == b"II*\0"
    assert len(list(tmp_path.iterdir())) == 3


LIMITED = """
import resource, sys
from pathlib import Path
from runtime.errors import CubeFileError
from tests.runtime.products.tiff_data import whole
from tests.runtime.products.tiff_out import of_array, scene, written
cube = scene(8, 600, 400, "int16")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    written(Path(sys.argv[1]), of_array(cube), cube)
except CubeFileError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 1000, 100_000, 3_000_000, 3_840_000, 5_000_000])
def test_a_full_disk_is_said_wherever_it_fills_up(tmp_path: Path, limit: int) -> None:
    done = run(LIMITED, tmp_path / "a.tif", limit)
    # The TIFF library itself prints what the system said, and no more than that.
    assert all(line.startswith("_tiff") for line in done.stderr.splitlines())
    assert done.stdout.startswith(f"{tmp_path / 'a.tif'}: cannot be written: ")
    assert "check the folder, its permissions and its free space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(CubeFileError, match="Permission denied"):
        open_writer(tmp_path / "a.tif", of_array(scene(1, 2, 2, "uint8")), "cog")


KILLED = """
import os, signal, sys
from pathlib import Path
from runtime.products import open_writer
from tests.runtime.products.tiff_data import whole
from tests.runtime.products.tiff_out import of_array, scene, write
cube = scene(2, 30, 30, "int16")
writer = open_writer(Path(sys.argv[1]), of_array(cube), "cog")
write(writer, cube)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    assert run(KILLED, tmp_path / "a.tif").returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".a.tif.")
    cube = scene(2, 30, 30, "int16")
    written(tmp_path / "a.tif", of_array(cube), cube)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "a_quality.tif"]


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from runtime.products import cog, open_writer
from runtime.products.contract import Quality
from tests.runtime.products.tiff_data import whole
from tests.runtime.products.tiff_out import of_array
bands, lines, samples = map(int, sys.argv[2].split(","))
block = np.full((bands, 4, samples), 0.25, np.float32)
seen = np.ones((4, samples), np.uint8)
def most():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10
before = most()
result = of_array(np.broadcast_to(block[:, :1], (bands, lines, samples)))
with open_writer(Path(sys.argv[1]), result, "cog") as writer:
    for start in range(0, lines, 4):
        writer.write_lines(block, Quality(seen, seen))
    writer.finish({})
print(most() - before, cog.holds(result))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("shape", ["285,60,500", "20,1200,1242"])
def test_memory_is_what_is_said_whatever_the_bands(tmp_path: Path, shape: str) -> None:
    done = run(MEASURED, tmp_path / "a.tif", shape)
    peak, said = map(int, done.stdout.split())
    assert 0.7 * said < peak < 1.15 * said


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    ["geotiff/tiled-pixel.tif", "geotiff/cog.tif", "geotiff/pixel-is-point.tif", "enmap/*_L1B*", "enmap/*_L2A*"],
)
def test_the_reader_finds_what_the_product_said(data_dir: Path, tmp_path: Path, name: str) -> None:
    [path] = (path for path in (data_dir / "products").glob(name) if path.suffix != ".gz")
    with opened(path) as reader:
        said = reader.description
        marks = said.stated.marks
        written(tmp_path / "a.tif", like(reader, mark=marks[0] if marks else None), numbers := whole(reader))
    with opened(tmp_path / "a.tif") as reader:
        found = reader.description
        assert np.array_equal(whole(reader), numbers)
        assert found.fwhm == said.fwhm
        assert (found.stated.bad, found.stated.marks) == (said.stated.bad, said.stated.marks)
        if said.stated.wavelengths is not None:
            np.testing.assert_allclose(found.stated.wavelengths, said.stated.wavelengths, rtol=1e-9)
        if said.stated.gains is not None:
            np.testing.assert_allclose(found.stated.gains, said.stated.gains, rtol=1e-12)
            np.testing.assert_allclose(found.stated.offsets or 0, said.stated.offsets or 0, rtol=1e-12)
        assert found.place.grid == said.place.grid
        assert found.place.gcps == said.place.gcps
