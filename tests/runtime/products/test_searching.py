"""Products found among files and folders: nothing that is one is lost, nothing beside one is taken for it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from runtime.products import FORMATS, searching
from runtime.products.searching import found_in
from tests.runtime.files_data import write_pair

if missing := [one.module for one in FORMATS if find_spec(one.module) is None]:
    pytest.skip(f"formats are not there: {missing}", allow_module_level=True)

from runtime.errors import DeployError
from runtime.products import open_cube

TIFF, HDF5 = b"II*\0" + bytes(20), b"\x89HDF\r\n\x1a\n" + bytes(20)


def touch(folder: Path, *names: str, data: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def opens(path: Path) -> bool:
    """Whether it opens; if not, by an error that names a file."""
    try:
        open_cube(path).close()
    except DeployError as error:
        assert error.file is not None
        return False
    return True


def names(folder: Path, *paths: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in found_in(paths or (folder,)).products]


@pytest.mark.data
def test_the_miniatures_are_found_each_once(data_dir: Path) -> None:
    folder = data_dir / "products"
    found = found_in([folder])
    listed = {str(path.relative_to(folder)) for path in found.products}
    truth = set(json.loads((folder / "truth.json").read_text()))
    inside = {name for name in truth if any(name == one or name.startswith(f"{one}/") for one in listed)}
    assert truth == inside
    for left in ("_glt", "_igm", "darkReference", "WHITEREF", ".lcf", ".times", "QL_", "README", ".json", ".hdr"):
        assert not any(left in name for name in listed), left
    assert list(found.products) == sorted(found.products)
    assert sum(map(opens, found.products)) >= len(truth)


@pytest.mark.data
def test_stac_files_name_products(data_dir: Path) -> None:
    folder = data_dir / "products"
    paths = [folder / "stac" / f"item-{version}.json" for version in ("1.0.0", "1.1.0")]
    found = found_in([*paths, folder / "geotiff" / "cog.tif"], outside=True)
    assert [path.name for path in found.products] == ["cog.tif", "tiled-pixel.tif"]
    assert [path for path, _ in found_in(paths).refused] == paths


def test_what_claims_to_be_a_product_is_listed_and_fails_when_it_is_opened(tmp_path: Path) -> None:
    claiming = ["a.nc", "b.he5", "c.h5", "d.tif", "e.TIFF", "f.hdr", "g.npy", "h.npz", "i.mat", "k.img.gz"]
    touch(tmp_path, *claiming)
    (tmp_path / "j.zarr").mkdir()
    touch(tmp_path, "l", data=TIFF)
    touch(tmp_path, "m.data", data=HDF5)
    touch(tmp_path, "readme.txt", "notes", "n.png", "o.jpg", "p.xml.gz", "q.json", ".hidden.nc", ".git/r.nc")
    assert names(tmp_path) == [*claiming[:-1], "j.zarr", "k.img.gz", "l", "m.data"]
    for path in found_in([tmp_path]).products:
        with pytest.raises(DeployError):
            open_cube(path).close()


def test_what_is_known_and_not_read_is_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.cu3s", "b.jp2", "c.zip")
    touch(tmp_path, "d.dat.hdf", data=b"\x0e\x03\x13\x01" + bytes(20))
    found = found_in([tmp_path])
    assert not found.products and [path.name for path, _ in found.refused] == ["a.cu3s", "b.jp2", "c.zip", "d.dat.hdf"]
    told = [error.one_line() for _, error in found.refused]
    assert all(word in text for word, text in zip(("Cubert", "JPEG 2000", "archive", "HDF4"), told, strict=True))


def test_what_lies_beside_a_product_is_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path, "EMIT_L2A_MASK_001_20240101T000000_1_001.nc", "EMIT_L1B_OBS_001_20240101T000000_1_001.nc",
        "EMIT_L2A_RFLUNCERT_001_20240101T000000_1_001.nc", "scene_quality.tif", "scene_quality.img",
        "scene_quality.hdr", "x.damp_deploy.json",
        "AV320240101t000000_000_L1B_ORT_x_OBS.nc", "cube.tif.aux.xml", "ang_rdn_v2x1_loc",
        "ang_rdn_v2x1_loc.hdr", "WHITEREF_1.raw", "WHITEREF_1.hdr", "darkReference", "darkReference.hdr",
    )  # fmt: skip
    touch(tmp_path, "darkforest.tif", "obsidian.tif", "scene.tif", data=TIFF)
    assert names(tmp_path) == ["darkforest.tif", "obsidian.tif", "scene.tif"]


def test_an_envi_pair_is_one_product_by_whichever_name(tmp_path: Path) -> None:
    header = write_pair(tmp_path, np.ones((3, 4, 5), "f4"), 4)
    (tmp_path / "cube.img").rename(tmp_path / "cube")
    touch(tmp_path, "cube.lcf", "cube.txt")
    assert names(tmp_path) == names(tmp_path, header) == names(tmp_path, tmp_path / "cube") == ["cube"]
    assert names(tmp_path, header, tmp_path, tmp_path / "cube") == ["cube"]
    (tmp_path / "cube").unlink()
    (tmp_path / "cube.lcf").unlink()
    assert names(tmp_path) == ["cube.hdr"], "its data are missing: that is told when it is opened"


def test_a_header_of_a_tiff_is_no_product(tmp_path: Path) -> None:
    touch(tmp_path, "DESIS-1-SPECTRAL_IMAGE.hdr", "DESIS-1-METADATA.xml", "DESIS-1-QL_QUALITY.tif")
    touch(tmp_path, "DESIS-1-SPECTRAL_IMAGE.tif", data=TIFF)
    assert found_in([tmp_path]).products == (tmp_path,), "a folder that is one product"
    touch(tmp_path, "DESIS-2-SPECTRAL_IMAGE.tif", "DESIS-2-SPECTRAL_IMAGE.hdr", "other.nc")
    assert names(tmp_path) == ["DESIS-1-SPECTRAL_IMAGE.tif", "DESIS-2-SPECTRAL_IMAGE.tif", "other.nc"]


def test_pictures_of_bands_are_one_product_and_numbered_cubes_are_several(tmp_path: Path) -> None:
    from PIL import Image

    rasterio = pytest.importorskip("rasterio")
    bands, cubes, mixed = (tmp_path / name for name in ("bands", "cubes", "mixed"))
    for folder in (bands, cubes, mixed):
        folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((4, 5), number, np.uint8)).save(bands / f"b_{number}.png")
        Image.fromarray(np.full((4, 5), number, np.uint8)).save(mixed / f"preview_{number}.png")
        form = {"driver": "GTiff", "dtype": "int16", "count": 5, "height": 4, "width": 5}
        with rasterio.open(cubes / f"scene_{number}.tif", "w", **form) as file:
            file.write(np.ones((5, 4, 5), "i2"))
    touch(mixed, "scene.nc", data=HDF5)
    assert names(tmp_path) == ["bands", *(f"cubes/scene_{number}.tif" for number in range(3)), "mixed/scene.nc"]
    (bands / "b_1.png").write_bytes(b"damaged")
    assert names(tmp_path)[0] == "bands"


def test_folders_are_searched_within_bounds_and_links_to_them_are_not(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    touch(outside, "far.npy", "two.npy")
    inside.mkdir()
    (inside / "loop").symlink_to(inside)
    (inside / "away").symlink_to(outside)
    (inside / "file.npy").symlink_to(outside / "far.npy")
    touch(inside, "a/b/c.npy")
    assert names(inside) == ["a/b/c.npy", "file.npy"]
    deep = inside / Path(*["d"] * (searching.DEEPEST + 1))
    touch(deep, "x.npy")
    found = found_in([inside])
    assert len(found.products) == 2 and "folders deep" in found.refused[0][1].one_line()


def test_what_is_asked_for_and_is_none_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt", "x.json", "y.zip")
    paths = [tmp_path / name for name in ("readme.txt", "x.json", "y.zip", "nothing.tif")]
    found = found_in(paths)
    assert not found.products and {path for path, _ in found.refused} == set(paths)
    told = dict(found.refused)
    assert "no such file" in told[paths[3]].one_line() and "no product" in told[paths[0]].one_line()
    assert found_in([tmp_path / "empty"]).refused and not found_in([]).refused


def test_what_was_restored_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.npy", "out/a_restored.npy", "out/deeper/b_restored.npy", "old/.damp_deploy/archive.json")
    touch(tmp_path, "old/c_restored.npy")
    out = tmp_path / "out"
    found = found_in([tmp_path], out=out)
    assert found.products == (tmp_path / "a.npy",) and not found.refused
    # Another archive may be the input of this one.
    assert names(tmp_path, tmp_path / "old") == ["old/c_restored.npy"]
    (tmp_path / "link").symlink_to(out)
    for path in (out, out / "a_restored.npy", tmp_path / "link" / "deeper"):
        ((at, error),) = found_in([tmp_path / "a.npy", path], out=out).refused
        assert at == path and error.problem == "lies in the folder of what is restored" and error.key == "--out"
