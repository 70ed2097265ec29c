"""What GeoTIFF and COG say of their cubes, held against independent readers; and what is refused."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.env
import tifffile
from rasterio.transform import from_origin

from runtime.errors import CubeFileError
from runtime.products import geotiff
from runtime.products.contract import Reading
from runtime.products.gdal import CACHE, ImagePart
from runtime.products.tiff_cube import TiffCube
from tests.runtime.products.tiff_data import check_truth, cube, hostile, tiff, whole

PLACE = {"crs": "EPSG:32632", "transform": from_origin(500000, 5200000, 4, 4)}


def opened(path: Path) -> TiffCube:
    assert geotiff.recognises(path)
    return geotiff.open_reader(path, Reading())


def refused(path: Path) -> CubeFileError:
    with pytest.raises(CubeFileError) as error:
        whole(opened(path))
    assert error.value.file == str(path)
    assert error.value.remedy
    return error.value


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [*(f"geotiff/{name}.tif" for name in ("striped-band", "tiled-pixel", "pixel-is-point", "cog", "mask")),
     "enmap/enmap_potsdam_tile_128_0.tif"],
)  # fmt: skip
def test_products_are_what_an_independent_reader_saw(data_dir: Path, name: str) -> None:
    with opened(data_dir / "products" / name) as reader:
        check_truth(reader, data_dir, name)
        assert reader.description.format == "geotiff"
        assert reader.images == (
            ImagePart(data_dir / "products" / name, tuple(range(1, reader.description.shape[0] + 1))),
        )


@pytest.mark.data
@pytest.mark.parametrize("name", ["cog_band_tags", "image_with_offsets"])
def test_an_offset_is_not_lost(data_dir: Path, name: str) -> None:
    path = data_dir / "products" / "geotiff" / f"{name}.tif"
    with opened(path) as reader:
        stated = reader.description.stated
        assert (stated.gains, stated.offsets, stated.marks) == ((0.0001,), (1000.0,), (-1000.0,))
        assert np.array_equal(whole(reader)[0], tifffile.imread(path, key=0))


@pytest.mark.data
def test_place_is_told(data_dir: Path) -> None:
    folder = data_dir / "products" / "geotiff"
    with opened(folder / "pixel-is-point.tif") as reader:
        place = reader.description.place
        assert place.grid is None
        assert not place.area
        with tifffile.TiffFile(folder / "pixel-is-point.tif") as file:
            ties = np.array(file.pages[0].tags["ModelTiepointTag"].value).reshape(-1, 6)
        # A whole number is the middle of a pixel there, and its corner here.
        expected = [(y + 0.5, x + 0.5, *where) for x, y, _, *where in ties.tolist()]
        assert [tuple(point) for point in place.gcps] == expected
        assert place.gcp_crs is not None
        assert "WGS 84" in place.gcp_crs
    with opened(folder / "cog.tif") as reader:
        grid = reader.description.place.grid
        assert grid is not None
        assert grid.transform == (500000, 4, 0, 5200000, 0, -4)
        assert (grid.lines, grid.samples) == (96, 80)
        assert "32632" in grid.crs


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "key"),
    [("vrt-in-disguise.tif", None), ("claims-much.tif", "TileByteCounts"), ("scale-zero.tif", "scale"),
     ("cut-short.tif", "StripOffsets"), ("nodata-differs.tif", "wavelength")],
)  # fmt: skip
def test_hostile_files_are_refused(data_dir: Path, tmp_path: Path, name: str, key: str | None) -> None:
    assert name in hostile(data_dir, tmp_path, "tiff")
    error = refused(tmp_path / name)
    assert key is None or error.key == key


def test_what_lies_beside_a_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, cube()).close()
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue><Scale>2</Scale></PAMRasterBand></PAMDataset>'
    )
    for suffix in (".msk", ".ovr"):
        tiff(Path(f"{path}{suffix}"), np.zeros((1, 12, 9), "u1")).close()
    path.with_suffix(".tfw").write_text("4\n0\n0\n-4\n100\n100\n")
    with opened(path) as reader:
        said = reader.description
        assert (said.stated.gains, said.stated.marks, said.place.grid) == (None, (), None)
        assert reader.missing(0, 4) is None
        assert np.array_equal(whole(reader), cube())


def metadata(path: Path, text: str) -> Path:
    """A TIFF with GDAL's metadata written by another hand."""
    extra = [(42112, 2, 0, f"<GDALMetadata>{text}</GDALMetadata>", True)]
    tifffile.imwrite(path, cube(), planarconfig="separate", photometric="minisblack", extratags=extra, metadata=None)
    return path


def test_metadata_that_names_files_is_refused(tmp_path: Path) -> None:
    tiff(tmp_path / "other.tif", cube()).close()
    item = f'<Item name="OVERVIEW_FILE" domain="OVERVIEWS">{tmp_path}/other.tif</Item>'
    assert refused(metadata(tmp_path / "a.tif", item)).key == "OVERVIEWS"


@pytest.mark.parametrize("some", [(2, 2, 2), (2, 2, 0, 2, 2), (2, "inf", 2, 2, 2)])
def test_scales_that_no_number_goes_through_are_refused(tmp_path: Path, some: tuple[Any, ...]) -> None:
    items = [f'<Item name="SCALE" sample="{band}" role="scale">{scale}</Item>' for band, scale in enumerate(some)]
    assert refused(metadata(tmp_path / "a.tif", "".join(items))).key == "scale"


def test_an_opacity_is_no_band(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    numbers = cube(5, dtype="u2")
    numbers[4] = 65535
    numbers[4, :3] = 0
    by_pixel = np.ascontiguousarray(numbers.transpose(1, 2, 0))
    tifffile.imwrite(path, by_pixel, planarconfig="contig", photometric="minisblack", extrasamples=(0, 0, 0, 2))
    with opened(path) as reader:
        assert reader.description.shape == (4, 12, 9)
        assert reader.images[0].bands == (1, 2, 3, 4)
        assert np.array_equal(whole(reader), numbers[:4])
        missing = reader.missing(2, 4)
        assert missing is not None
        assert missing.tolist() == [[True] * 9, [False] * 9]
        assert "opacity" in reader.description.notes[0]


WAYS = {
    "tags": lambda f, b, nm: f.update_tags(b, wavelength=f"{nm / 1e3:g}", wavelength_units="Micrometers", fwhm="0.006"),
    "imagery": lambda f, b, nm: f.update_tags(b, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{nm / 1e3:g}", FWHM_UM="0.006"),
    "name": lambda f, b, nm: f.set_band_description(b, f"band {b} ({nm:g} Nanometers)"),
    "short name": lambda f, b, nm: f.set_band_description(b, f"{nm:g} nm"),
}


@pytest.mark.parametrize("way", [*WAYS, "envi"])
def test_wavelengths_are_found_however_they_are_told(tmp_path: Path, way: str) -> None:
    path, wavelengths = tmp_path / "a.tif", [410.5, 450, 700, 900, 2400]
    with tiff(path, cube()) as file:
        for band, wavelength in enumerate(wavelengths, start=1):
            if way in WAYS:
                WAYS[way](file, band, wavelength)
        if way == "envi":
            text = "{" + ", ".join(map(str, wavelengths)) + "}"
            file.update_tags(ns="ENVI", wavelength=text, wavelength_units="Nanometers", bbl="{1, 1, 0, 1, 1}")
    with opened(path) as reader:
        stated = reader.description.stated
        assert stated.wavelengths == pytest.approx(wavelengths)
        assert reader.description.fwhm == (pytest.approx([6.0] * 5) if way in ("tags", "imagery") else None)
        assert stated.bad == ((2,) if way == "envi" else ())


def test_a_unit_of_wavelengths_that_is_not_known_is_told(tmp_path: Path) -> None:
    with tiff(tmp_path / "a.tif", cube(2)) as file:
        for band in (1, 2):
            file.update_tags(band, wavelength=str(band), wavelength_units="Index")
    with opened(tmp_path / "a.tif") as reader:
        stated = reader.description.stated
        assert stated.wavelengths is None
        assert "'Index' is not known" in stated.doubts[0]


def test_names_that_tell_metres_are_no_wavelengths(tmp_path: Path) -> None:
    with tiff(tmp_path / "a.tif", cube(2)) as file:
        file.descriptions = ("10 m", "20 m")
    with opened(tmp_path / "a.tif") as reader:
        assert reader.description.stated.wavelengths is None


@pytest.mark.parametrize(
    ("unit", "quantity"), [("W m-2 sr-1 um-1", "radiance"), ("reflectance", "reflectance"), ("1", None)]
)
def test_units_are_carried(tmp_path: Path, unit: str, quantity: str | None) -> None:
    with tiff(tmp_path / "a.tif", cube(2)) as file:
        file.units = (unit, unit)
    with opened(tmp_path / "a.tif") as reader:
        assert (reader.description.unit, reader.description.quantity) == (unit, quantity)


@pytest.mark.parametrize(
    ("dtype", "text", "held"),
    [("u2", "-9999", False), ("i2", "1.5", False), ("i2", "nan", False), ("u1", "elephant", False), ("f4", "nan", True),
     ("f4", "-3.4028234663852886e+38", True), ("u2", "65535", True)],
)  # fmt: skip
def test_only_a_mark_that_the_type_holds_is_taken(tmp_path: Path, dtype: str, text: str, held: bool) -> None:
    path = tmp_path / "a.tif"
    numbers = cube(3, dtype=dtype)
    tifffile.imwrite(
        path, numbers, planarconfig="separate", photometric="minisblack", extratags=[(42113, 2, 0, text, True)]
    )
    if held:
        with opened(path) as reader:
            assert str(reader.description.stated.marks) == str((float(text),))
            assert np.array_equal(whole(reader), numbers)
    else:
        assert refused(path).key == "GDAL_NODATA"


@pytest.mark.parametrize(
    ("profile", "dtype", "key"),
    [({}, "c8", "SampleFormat"), ({"NBITS": 12}, "u2", "BitsPerSample"), ({"compress": "jpeg"}, "u1", "Compression"),
     ({"photometric": "cmyk"}, "u1", "PhotometricInterpretation")],
)  # fmt: skip
def test_what_is_no_measurement_is_refused(tmp_path: Path, profile: dict[str, Any], dtype: str, key: str) -> None:
    tiff(tmp_path / "a.tif", cube(4, 16, 16, dtype), **profile).close()
    assert refused(tmp_path / "a.tif").key == key


def test_several_images_in_a_file_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", cube(), photometric="minisblack")
    assert "5 images" in refused(tmp_path / "a.tif").problem


def test_pieces_that_expand_beyond_measure_are_refused(tmp_path: Path) -> None:
    profile = {"tiled": True, "blockxsize": 4096, "blockysize": 4096, "compress": "deflate"}
    tiff(tmp_path / "a.tif", np.zeros((5, 4096, 4096), "u2"), **profile).close()
    error = refused(tmp_path / "a.tif")
    assert "claim to hold" in error.problem


def test_a_damaged_piece_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, cube(5, 40, 40), compress="deflate").close()
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[at : at + 2] = bytes(2)
    path.write_bytes(data)
    assert "GDAL cannot read it" in refused(path).problem


def test_a_file_that_changes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, cube()).close()
    with opened(path) as reader:
        reader.read_lines(0, 2)
        os.utime(path, ns=(1, 1))
        with pytest.raises(CubeFileError, match="was changed"):
            reader.read_lines(2, 4)


@pytest.mark.parametrize("name", ["a:b?x=1.tif", "zip!a.tif", "café\n.tif", "GTIFF_DIR:1:a.tif"])
def test_names_are_names(tmp_path: Path, name: str) -> None:
    tiff(tmp_path / "plain.tif", cube()).close()
    path = (tmp_path / "plain.tif").rename(tmp_path / name)
    with opened(path) as reader:
        assert np.array_equal(whole(reader), cube())


def test_a_relative_path_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiff(tmp_path / "a.tif", cube()).close()
    monkeypatch.chdir(tmp_path)
    with opened(Path("a.tif")) as reader:
        assert np.array_equal(whole(reader), cube())


def test_nothing_of_gdal_leaks(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, cube()).close()
    filters = list(warnings.filters)
    found: list[Any] = []

    def work() -> None:
        with opened(path) as reader:
            found.append(whole(reader, 1))

    with warnings.catch_warnings(), opened(path) as one, opened(path) as two:
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert np.array_equal(whole(one), whole(two))
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert all(np.array_equal(numbers, cube()) for numbers in found)
    assert rasterio.env.get_gdal_config("GDAL_PAM_ENABLED") is None
    assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == CACHE
    assert warnings.filters == filters


def test_it_is_recognised_without_rasterio(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, cube()).close()
    code = (
        "import sys; from pathlib import Path; sys.modules['rasterio'] = None\n"
        "from runtime.products import geotiff, enmap, desis, hyperion\nfrom runtime.products.contract import Reading\n"
        f"path = Path({str(path)!r}); print(geotiff.recognises(path), enmap.recognises(path))\n"
        "try: geotiff.open_reader(path, Reading())\nexcept ModuleNotFoundError as error: print(error.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "rasterio"]


def test_first_bytes_tell_it_where_the_suffix_does_not(tmp_path: Path) -> None:
    path = tmp_path / "cube.dat"
    tiff(path, cube(40)).close()
    assert geotiff.recognises(path)
    assert not geotiff.recognises(tmp_path)


DAMAGED = """
import sys
from pathlib import Path
from runtime.products import open_cube
hooks = sys.excepthook, sys.unraisablehook
with open_cube(Path(sys.argv[1])) as reader:
    print(reader.description.shape)
assert (sys.excepthook, sys.unraisablehook) == hooks
"""


def test_messages_that_quote_a_damaged_file_are_no_tracebacks(tmp_path: Path) -> None:
    path = tmp_path / "in.tif"
    with tiff(path, cube(), **PLACE) as file:
        file.update_tags(one="thing")
    before = path.read_bytes()
    assert b"<Item name" in before
    path.write_bytes(before.replace(b"<Item name", b"<Item \xe9ame"))
    done = subprocess.run([sys.executable, "-c", DAMAGED, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{cube().shape}\n"
    assert done.stderr == ""
