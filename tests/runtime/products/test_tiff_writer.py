"""Products of TIFFs like their source: the numbers are new, all else is what independent readers saw before."""

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin

from runtime.errors import CubeFileError
from runtime.products import open_writer
from tests.runtime.products.tiff_data import tiff, whole
from tests.runtime.products.tiff_out import check_cog, like, opened, run, scene, write, written

pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning", "ignore::PendingDeprecationWarning"
)
SINGLE = [f"geotiff/{name}.tif" for name in (
    "alpha", "cog", "cog_band_tags", "image_with_offsets", "mask", "pixel-is-point", "striped-band", "tiled-pixel"
)] + ["enmap/enmap_potsdam_tile_128_0.tif"]  # fmt: skip
L1B = "enmap/ENMAP01-____L1B-DT0000326721_20170626T102020Z_001_V000204_20200406T154119Z"
L2A = "enmap/ENMAP01-____L2A-DT0000326721_20170626T102020Z_001_V000204_20200406T201930Z"
HYPERION = "hyperion/EO1H1930282010105110KF_1T"


def changed(cube: NDArray[Any]) -> NDArray[Any]:
    """Numbers that all differ, of the same type."""
    return cube + cube.dtype.type(3)


def restore(source: Path, out: Path, **changes: Any) -> tuple[tuple[Path, ...], NDArray[Any]]:
    """Write changed numbers like a source; the files, and the numbers."""
    with opened(source) as reader:
        cube = changed(whole(reader))
        return written(out, like(reader, **changes), cube, "like"), cube


def told(path: Path) -> dict[str, Any]:
    """All that rasterio says of a TIFF but its numbers."""
    with rasterio.open(path) as file:
        spaces = [name for name in (None, *file.tag_namespaces()) if name != "DERIVED_SUBDATASETS"]
        tags = {name: file.tags(ns=name) for name in spaces}
        tags[None].pop("damp_deploy", None)
        return {
            "profile": {**file.profile, "crs": file.crs and file.crs.to_wkt()},
            "tags": tags,
            "band tags": [
                {name: file.tags(band, ns=name) for name in (None, *file.tag_namespaces(band))} for band in file.indexes
            ],
            "bands": (file.descriptions, file.units, file.scales, file.offsets, file.colorinterp),
            "points": ([(p.row, p.col, p.x, p.y, p.z) for p in file.gcps[0]], str(file.gcps[1])),
            "rpc": file.rpcs and file.rpcs.to_gdal(),
            "masks": file.mask_flag_enums,
            "overviews": [file.overviews(band) for band in file.indexes],
        }


@pytest.mark.data
@pytest.mark.parametrize("name", SINGLE)
def test_a_tiff_like_its_source(data_dir: Path, tmp_path: Path, name: str) -> None:
    source, out = data_dir / "products" / name, tmp_path / "a_restored.tif"
    files, cube = restore(source, out)
    assert files == (out, tmp_path / "a_restored_quality.tif")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    before, after = told(source), told(out)
    for tags in before["band tags"]:
        # What was measured of other numbers is gone.
        tags[None] = {key: value for key, value in tags[None].items() if not key.startswith("STATISTICS_")}
    if name.endswith("cog_band_tags.tif"):
        after["tags"]["IMAGE_STRUCTURE"].pop("LAYOUT")
    assert after == before
    with rasterio.open(source) as old, rasterio.open(out) as new:
        bands = list(range(1, len(cube) + 1))
        assert np.array_equal(new.read(bands), cube, equal_nan=True)
        assert new.count == old.count
        for band in old.indexes[len(cube) :]:
            assert np.array_equal(new.read(band), old.read(band))
        assert np.array_equal(new.dataset_mask(), old.dataset_mask()) or old.nodata is not None
        assert json.loads(new.tags()["damp_deploy"])["program"] == "damp-deploy"
    with tifffile.TiffFile(source) as old, tifffile.TiffFile(out) as new:
        assert new.is_bigtiff == old.is_bigtiff
        old, new = old.pages[0], new.pages[0]
        for key in ("compression", "predictor", "planarconfig", "rowsperstrip", "tilewidth", "extrasamples", "shape"):
            assert getattr(new, key) == getattr(old, key), key
    with rasterio.open(source) as old, rasterio.open(files[1]) as quality:
        assert (quality.crs, quality.transform) == (old.crs, old.transform)
        assert [(p.row, p.col, p.x, p.y) for p in quality.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in old.gcps[0]]
        assert quality.read()[:, 0, 0].tolist() == [1, 11]
    if name.endswith("/cog.tif"):
        with rasterio.open(out, overview_level=0) as file:
            expected = cube[:, 40:42, 40:42].mean((1, 2))
            assert np.abs(file.read()[:, 20, 20] - expected).max() <= 0.6


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["geotiff/alpha.tif", "geotiff/cog.tif", "geotiff/mask.tif", "geotiff/tiled-pixel.tif"]
)
def test_two_runs_are_equal(data_dir: Path, tmp_path: Path, name: str) -> None:
    files = [restore(data_dir / "products" / name, tmp_path / one)[0] for one in ("a.tif", "b.tif")]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "of"),
    [(L1B, ""), (L1B, "*METADATA.XML"), (L2A, ""), (L2A, "*-SPECTRAL_IMAGE.TIF"), ("desis", "*-SPECTRAL_IMAGE.tif"),
     (HYPERION, "*_MTL_L1T.TXT")],
)  # fmt: skip
def test_a_folder_like_its_source(data_dir: Path, tmp_path: Path, name: str, of: str) -> None:
    folder, out = data_dir / "products" / name, tmp_path / "product_restored"
    source = next(folder.glob(of)) if of else folder
    files, cube = restore(source, out)
    assert files[0] == out
    assert all(path.exists() for path in files)
    images = [path.name for path in files if "SPECTRAL_IMAGE" in path.name or "_L1T.TIF" in path.name]
    assert len(images) == {L1B: 2, HYPERION: 242}.get(name, 1)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in out.iterdir()} == names | {"QUALITY_RESTORED.TIF", "damp_deploy.json"}
    for other in names - set(images):
        assert (out / other).read_bytes() == (folder / other).read_bytes()
    for image in images if len(images) < 9 else images[::40]:
        assert told(out / image) == told(folder / image)
    with opened(out / source.name if of else out) as reader, opened(source) as before:
        assert np.array_equal(whole(reader), cube)
        for key in ("format", "shape", "dtype", "stated", "fwhm", "unit", "quantity", "place"):
            assert getattr(reader.description, key) == getattr(before.description, key)
    with rasterio.open(out / "QUALITY_RESTORED.TIF") as quality, rasterio.open(folder / images[0]) as image:
        assert quality.descriptions == ("seen", "expert")
        assert (quality.shape, quality.transform, quality.crs) == (image.shape, image.transform, image.crs)
    assert json.loads((out / "damp_deploy.json").read_text())["program"] == "damp-deploy"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.data
def test_of_a_folder_only_its_plain_files_are_handed_on(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "product"
    (folder / "inner").mkdir(parents=True)
    for path in (data_dir / "products" / L2A).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    image = next(folder.glob("*SPECTRAL_IMAGE.TIF")).name
    (folder / "inner" / "read.me").write_text("inside")
    (folder / f"{image}.ovr").write_text("shows old numbers")
    (folder / "QUALITY_RESTORED.TIF").write_text("of another restoration")
    secret = tmp_path / "secret"
    secret.write_text("outside")
    (folder / "link").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    out = tmp_path / "out"
    out.mkdir()
    restore(folder, out)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    expected = {path.name for path in folder.iterdir()} - {"link", "linked", "pipe", f"{image}.ovr"}
    assert names == expected | {"inner/read.me", "damp_deploy.json"}
    with rasterio.open(out / "QUALITY_RESTORED.TIF") as file:
        assert file.count == 2
    (out / "of the first run").write_text("old")
    restore(folder, out)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*")} == names
    (out / "damp_deploy.json").unlink()
    with pytest.raises(CubeFileError, match="is no folder that was restored"):
        restore(folder, out)
    assert (out / image).is_file()
    for place in (folder, folder / "restored"):
        with pytest.raises(CubeFileError, match="would lie in the folder"):
            restore(folder, place)
    deep = folder / "a" / "b" / "c" / "d" / "e"
    deep.mkdir(parents=True)
    with pytest.raises(CubeFileError, match="holds more than a product"):
        restore(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "main"), [("desis", "*-SPECTRAL_IMAGE.tif"), (L2A, "*METADATA.XML"), (HYPERION, "*_MTL_L1T.TXT")]
)
def test_of_several_products_in_a_folder_one_is_copied(data_dir: Path, tmp_path: Path, name: str, main: str) -> None:
    folder, other = tmp_path / "flat", ("0212_025", "0212_0259") if name == "desis" else ("2017", "2018")
    (folder / "inner").mkdir(parents=True)
    names = [path.name for path in (data_dir / "products" / name).iterdir()]
    for one in names:
        content = (data_dir / "products" / name / one).read_bytes()
        (folder / one).write_bytes(content)
        (folder / "inner" / one.replace("EO1H1", "EO1H2").replace(*other)).write_bytes(content)
        (folder / one.replace("EO1H1", "EO1H2").replace(*other)).write_bytes(content)
    (folder / "read.me").write_text("of which?")
    restore(next(path for path in folder.glob(main) if path.name in names), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "QUALITY_RESTORED.TIF", "damp_deploy.json"}


@pytest.mark.parametrize(
    ("dtype", "profile"),
    [
        ("float32", {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "zstd", "interleave": "pixel"}),
        ("float64", {"compress": "lzma", "interleave": "band", "blockysize": 9}),
        ("uint16", {"compress": "packbits", "interleave": "pixel", "blockysize": 3}),
        ("int32", {"compress": "lzw", "predictor": 2, "tiled": True, "blockxsize": 16, "blockysize": 48}),
        ("uint8", {"compress": "lerc", "interleave": "band"}),
        ("int16", {"interleave": "pixel", "ENDIANNESS": "BIG"}),
        ("uint16", {"interleave": "band", "BIGTIFF": "YES", "photometric": "RGB"}),
        ("uint8", {"photometric": "MINISWHITE", "interleave": "pixel"}),
    ],
)
def test_profiles(tmp_path: Path, dtype: str, profile: dict[str, Any]) -> None:
    source, out = tmp_path / "in.tif", tmp_path / "out.tif"
    place = {"crs": "EPSG:32632", "transform": from_origin(500000, 5200000, 4, 4)}
    with tiff(source, scene(6, 50, 70, dtype), **place, **profile) as file:
        file.update_tags(ns="ENVI", wavelength_units="Nanometers")
        file.update_tags(2, ns="MINE", some="thing <é>")
        file.update_tags(TIFFTAG_DATETIME="2020:01:02 03:04:05", TIFFTAG_SOFTWARE="a tool")
    _, cube = restore(source, out)
    assert told(out) == told(source)
    with rasterio.open(out) as file:
        assert np.array_equal(file.read(), cube)
    assert out.read_bytes()[:4] == source.read_bytes()[:4]
    with tifffile.TiffFile(source) as old, tifffile.TiffFile(out) as new:
        assert new.pages[0].photometric == old.pages[0].photometric
        assert new.pages[0].compression == old.pages[0].compression


@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_overviews_and_masks_are_made_anew(tmp_path: Path, interleave: str) -> None:
    source, out = tmp_path / "in.tif", tmp_path / "out.tif"
    numbers = scene(5, 96, 80, "float32")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        file = tiff(
            source, numbers, interleave=interleave, compress="deflate", tiled=True, blockxsize=64, blockysize=64
        )
        with file:
            file.write_mask(np.indices((96, 80)).sum(0) > 20)
            file.build_overviews([2, 4], Resampling.nearest)
            file.update_tags(OVR_RESAMPLING_ALG="NEAREST")
            file.update_tags(2, ns="ENVI", one="thing")
            file.colorinterp = (*(ColorInterp.gray,) * 4, ColorInterp.undefined)
    _, cube = restore(source, out)
    before, after = told(source), told(out)
    assert after["tags"]["IMAGE_STRUCTURE"].pop("LAYOUT") == "COG"
    assert after == before
    if interleave == "band":
        check_cog(out, 64)
    with rasterio.open(out, overview_level=1) as file:
        assert np.array_equal(file.read(3)[8:, 8:], cube[2, ::4, ::4][8:, 8:])
    with rasterio.open(out) as new, rasterio.open(source) as old:
        assert np.array_equal(new.read(), cube)
        assert np.array_equal(new.dataset_mask(), old.dataset_mask())


def test_what_is_not_like_its_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.tif"
    tiff(source, scene(3, 20, 30, "int16")).close()
    before = source.read_bytes()
    with closing(opened(source)) as reader:
        result = like(reader)
        for other in (replace(result, shape=(3, 21, 30)), replace(result, dtype=np.dtype("f4"))):
            with pytest.raises(CubeFileError, match="cannot be written like it") as error:
                open_writer(tmp_path / "out.tif", other, "like")
            assert error.value.remedy == "write a COG: --out NAME.tif"
        (tmp_path / "link.tif").symlink_to(source)
        for name in ("in.tif", "link.tif"):
            with pytest.raises(CubeFileError, match="would overwrite the input"):
                open_writer(tmp_path / name, result, "like")
        with open_writer(tmp_path / "out.tif", result, "like") as writer:
            write(writer, scene(3, 20, 30, "int16"), 14)
        # Lines that were not written are the source's in the draft: they do not count.
        with open_writer(tmp_path / "out.tif", result, "like") as writer:
            write(writer, scene(3, 20, 30, "int16"), 14)
            with pytest.raises(CubeFileError, match="only 14 of its 20 lines"):
                writer.finish({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "link.tif"]
    assert source.read_bytes() == before


LIMITED = """
import resource, sys
from pathlib import Path
from runtime.errors import CubeFileError
from tests.runtime.products.test_tiff_writer import restore
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    restore(Path(sys.argv[1]), Path(sys.argv[2]))
except CubeFileError as error:
    print(error)
"""


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "limit"),
    [("geotiff/tiled-pixel.tif", 1000), ("geotiff/tiled-pixel.tif", 400_000), ("geotiff/mask.tif", 1_475_000),
     (L1B, 50_000), (L1B, 115_000)],
)  # fmt: skip
def test_a_full_disk_is_said(data_dir: Path, tmp_path: Path, name: str, limit: int) -> None:
    done = run(LIMITED, data_dir / "products" / name, tmp_path / "out", limit)
    assert all(line.startswith("_tiff") for line in done.stderr.splitlines())
    assert done.stdout.startswith(f"{tmp_path / 'out'}: cannot be written: ")
    assert list(tmp_path.iterdir()) == []


def test_a_product_of_raw_images_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.tif"
    tiff(source, scene(3, 20, 30, "int16")).close()
    with opened(source) as reader:
        reader.images = ()
        with pytest.raises(CubeFileError, match="is no TIFF, so that no TIFF can be written like it"):
            open_writer(tmp_path / "out.tif", like(reader), "like")


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from runtime.products import open_writer, tiff_writer
from tests.runtime.products.tiff_out import like, opened, write
def most():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10
with opened(Path(sys.argv[1])) as reader:
    result = like(reader)
    cube = np.ones(result.shape, result.dtype)
    before = most()
    with open_writer(Path(sys.argv[2]), result, "like") as writer:
        write(writer, cube)
        writer.finish({})
    print(most() - before, tiff_writer.holds_like(result))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("size", [256, 512])
def test_memory_is_what_is_said(tmp_path: Path, size: int) -> None:
    source = tmp_path / "in.tif"
    tiles = {"tiled": True, "blockxsize": size, "blockysize": size, "interleave": "pixel", "compress": "deflate"}
    noise = np.random.default_rng(0).integers(0, 9, (100, 520, 530), np.int16)
    tiff(source, noise, **tiles).close()
    done = run(MEASURED, source, tmp_path / "out.tif")
    assert done.stderr == ""
    peak, said = map(int, done.stdout.split())
    assert 0.5 * said < peak < 1.3 * said
