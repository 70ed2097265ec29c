"""EnMAP products as folders, by any of their names, held against `truth.json`; and what is refused."""

import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from runtime.errors import CubeFileError
from runtime.products import enmap
from runtime.products.contract import Reading
from runtime.products.gdal import ImagePart
from runtime.products.tiff_cube import TiffCube
from runtime.products.xml_tree import read_xml
from tests.runtime.products.tiff_data import check_truth, hostile, whole

pytestmark = pytest.mark.data


def opened(path: Path) -> TiffCube:
    assert enmap.recognises(path)
    return enmap.open_reader(path, Reading())


def product(data_dir: Path, level: str) -> Path:
    return next(path for path in (data_dir / "products" / "enmap").iterdir() if path.is_dir() and level in path.name)


def copied(data_dir: Path, tmp_path: Path, level: str) -> Path:
    return Path(shutil.copytree(product(data_dir, level), tmp_path / product(data_dir, level).name))


def refused(path: Path) -> CubeFileError:
    with pytest.raises(CubeFileError) as error:
        opened(path)
    assert error.value.remedy
    return error.value


@pytest.mark.parametrize("level", ["L1B", "L2A"])
def test_products_are_what_an_independent_reader_saw(data_dir: Path, level: str) -> None:
    folder = product(data_dir, level)
    with opened(folder) as reader:
        check_truth(reader, data_dir, f"enmap/{folder.name}")
        said = reader.description
        assert (said.format, said.title) == ("enmap", level)
        assert said.quantity == ("radiance" if level == "L1B" else "reflectance")
        assert said.unit == ("W m-2 sr-1 nm-1" if level == "L1B" else None)
        assert (said.place.grid is None) == (level == "L1B")
        assert said.fwhm is not None
        assert said.fwhm[0] == 6.93
        assert said.files[-1].name.endswith("METADATA.XML")


def test_detectors_keep_their_order(data_dir: Path) -> None:
    folder = product(data_dir, "L1B")
    with opened(folder) as reader:
        wavelengths = reader.description.stated.wavelengths
        assert wavelengths is not None
        assert wavelengths[87] > wavelengths[88]
        vnir, swir = (folder / f"{folder.name}-SPECTRAL_IMAGE_{part}.TIF" for part in ("VNIR", "SWIR"))
        assert reader.images == (ImagePart(vnir, tuple(range(1, 89))), ImagePart(swir, tuple(range(1, 131))))
        assert reader.description.files[:2] == (vnir, swir)


def test_any_name_of_a_product_opens_it(data_dir: Path) -> None:
    folder = product(data_dir, "L1B")
    with opened(folder) as reader:
        expected = whole(reader)
    for name in ("METADATA.XML", "SPECTRAL_IMAGE_VNIR.TIF", "SPECTRAL_IMAGE_SWIR.TIF"):
        path = folder / f"{folder.name}-{name}"
        with opened(path) as reader:
            assert np.array_equal(whole(reader), expected)
            assert reader.description.path == path


def test_a_scale_of_the_image_that_differs_is_told(data_dir: Path, tmp_path: Path) -> None:
    folder = copied(data_dir, tmp_path, "L2A")
    for scale, doubts in ((0.0001, 0), (0.01, 1)):
        with rasterio.open(folder / f"{folder.name}-SPECTRAL_IMAGE.TIF", "r+") as file:
            file.scales = (scale,) * 218
        with opened(folder) as reader:
            assert reader.description.stated.gains == (0.0001,) * 218
            assert len(reader.description.stated.doubts) == doubts


def test_lower_case_cog_and_gzipped_metadata(data_dir: Path, tmp_path: Path) -> None:
    folder = copied(data_dir, tmp_path, "L2A")
    metadata = folder / f"{folder.name}-METADATA.XML"
    metadata.with_name(f"{folder.name}-metadata.xml.gz").write_bytes(gzip.compress(metadata.read_bytes()))
    metadata.unlink()
    image = folder / f"{folder.name}-SPECTRAL_IMAGE.TIF"
    image.rename(image.with_name(f"{folder.name}-SPECTRAL_IMAGE_COG.tiff"))
    with opened(folder) as reader:
        check_truth(reader, data_dir, f"enmap/{folder.name}")


def test_the_real_metadata_is_read_whole_and_places_l1b(data_dir: Path, tmp_path: Path) -> None:
    folder = copied(data_dir, tmp_path, "L1B")
    (folder / f"{folder.name}-METADATA.XML").unlink()
    packed = data_dir / "products" / "enmap" / f"{folder.name}-METADATA.XML.gz"
    shutil.copy(packed, folder)
    with opened(folder) as reader:
        check_truth(reader, data_dir, f"enmap/{folder.name}")
        rpc = reader.description.place.rpc
    assert (rpc["LINE_OFF"], rpc["LONG_OFF"]) == ("512.0000000000", "10.9371050116")
    assert [len(rpc[f"{axis}_{part}_COEFF"].split()) for axis in ("LINE", "SAMP") for part in ("NUM", "DEN")] == [
        20
    ] * 4
    assert read_xml(packed).number("specific/backgroundValue", packed) == 0


def test_raw_images_are_read_with_their_header(data_dir: Path, tmp_path: Path) -> None:
    folder = copied(data_dir, tmp_path, "L2A")
    image = folder / f"{folder.name}-SPECTRAL_IMAGE.TIF"
    with rasterio.open(image) as file:
        numbers = file.read()
    image.unlink()
    numbers.transpose(1, 0, 2).astype(">i2").tofile(image.with_suffix(".BIL"))
    image.with_suffix(".hdr").write_text(
        "ENVI\nsamples = 20\nlines = 24\nbands = 218\ndata type = 2\ninterleave = bil\nbyte order = 1\n"
    )
    with opened(folder) as reader:
        check_truth(reader, data_dir, f"enmap/{folder.name}")
        assert reader.images == ()


def test_jpeg_2000_is_refused_by_name(data_dir: Path, tmp_path: Path) -> None:
    folder = copied(data_dir, tmp_path, "L2A")
    image = folder / f"{folder.name}-SPECTRAL_IMAGE.TIF"
    image.rename(image.with_suffix(".JP2"))
    error = refused(folder)
    assert "JPEG 2000" in error.problem
    assert error.file == str(image.with_suffix(".JP2"))


@pytest.mark.parametrize(("name", "key"), [("entities", "XML"), ("file", "XML"), ("name", "name")])
def test_hostile_metadata_is_refused(data_dir: Path, tmp_path: Path, name: str, key: str) -> None:
    hostile(data_dir, tmp_path, "text")
    error = refused(tmp_path / f"ENMAP01-{name}-METADATA.XML")
    assert error.key == key
    assert error.file is not None
    assert f"ENMAP01-{name}" in error.file


@pytest.mark.parametrize(
    ("pattern", "new", "key"),
    [
        (r"<GainOfBand>[^<]*<", "<GainOfBand>0<", "GainOfBand"),
        (r"<GainOfBand>[^<]*<", "<GainOfBand>nan<", "GainOfBand"),
        (r"<OffsetOfBand>[^<]*</OffsetOfBand>", "", "OffsetOfBand"),
        (r"<wavelengthCenterOfBand>[^<]*<", "<wavelengthCenterOfBand>-1<", "wavelengthCenterOfBand"),
        (r'<bandID number="1">', '<bandID number="2">', "bandCharacterisation"),
        (r'<bandID number="1">.*?</bandID>', "", "bandCharacterisation"),
        (r"<level>L2A</level>", "<level>L0</level>", "level"),
        (r"SPECTRAL_IMAGE\.TIF", "../SPECTRAL_IMAGE.TIF", "name"),
        (r"-SPECTRAL_IMAGE\.TIF", "-SPECTRAL_IMAGE_VNIR.TIF", "name"),
    ],
)  # fmt: skip
def test_metadata_that_does_not_fit_is_refused(
    data_dir: Path, tmp_path: Path, pattern: str, new: str, key: str
) -> None:
    folder = copied(data_dir, tmp_path, "L2A")
    metadata = folder / f"{folder.name}-METADATA.XML"
    table = metadata.read_text()
    changed, count = re.subn(pattern, new, table, count=0 if "IMAGE" in pattern else 1, flags=re.DOTALL)
    assert count
    metadata.write_text(changed)
    error = refused(folder)
    assert error.key == key
    assert error.file == str(metadata)


def test_what_is_missing_or_too_much_is_told(data_dir: Path, tmp_path: Path) -> None:
    assert "several products" in refused(data_dir / "products" / "enmap").problem
    folder = copied(data_dir, tmp_path, "L1B")
    image = folder / f"{folder.name}-SPECTRAL_IMAGE_SWIR.TIF"
    moved = image.rename(tmp_path / image.name)
    assert "this image is missing" in refused(folder).problem
    assert "not beside it" in refused(moved).problem
