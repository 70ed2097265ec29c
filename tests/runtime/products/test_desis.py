"""DESIS by any of its names, held against `truth.json`; and what is refused."""

import shutil
from pathlib import Path

import pytest

from runtime.errors import CubeFileError
from runtime.products import desis
from runtime.products.contract import Reading
from runtime.products.tiff_cube import TiffCube
from tests.runtime.products.tiff_data import check_truth

pytestmark = pytest.mark.data


def opened(path: Path) -> TiffCube:
    assert desis.recognises(path)
    return desis.open_reader(path, Reading())


@pytest.fixture
def folder(data_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_dir / "products" / "desis", tmp_path / "desis"))


@pytest.mark.parametrize("suffix", ["", ".hdr", ".tif"])
def test_any_name_opens_what_an_independent_reader_saw(data_dir: Path, suffix: str) -> None:
    folder = data_dir / "products" / "desis"
    image = next(folder.glob("*SPECTRAL_IMAGE.tif"))
    with opened(image.with_suffix(suffix) if suffix else folder) as reader:
        check_truth(reader, data_dir, f"desis/{image.name}")
        said = reader.description
        assert (said.format, said.title, said.quantity) == ("desis", "L2A", "reflectance")
        assert said.fwhm == (3.5,) * 235
        assert said.files == (image, image.with_suffix(".hdr"))
        assert said.place.grid is not None
        assert [part.path for part in reader.images] == [image]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("bands   = 235", "bands   = 234", "wavelength"),
        ("lines   = 20", "lines   = 21", "bands, lines, samples"),
        ("data gain values = {0.0001,", "data gain values = {0,", "data gain values"),
        ("data gain values = {0.0001,", "data gain values = {", "data gain values"),
        ("data offset values = {0,", "data offset values = {nan,", "data offset values"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(folder: Path, old: str, new: str, key: str) -> None:
    header = next(folder.glob("*.hdr"))
    text = header.read_text()
    assert old in text
    header.write_text(text.replace(old, new))
    with pytest.raises(CubeFileError) as error:
        opened(folder)
    assert error.value.file == str(header)
    assert error.value.remedy
    assert error.value.key in (key, "data gain values")


def test_a_header_alone_or_none_is_told(folder: Path) -> None:
    image, header = next(folder.glob("*IMAGE.tif")), next(folder.glob("*.hdr"))
    moved = header.rename(folder.parent / header.name)
    for path, missing in ((image, ".hdr"), (folder, ".hdr"), (moved, ".tif")):
        with pytest.raises(CubeFileError, match="is missing") as error:
            opened(path)
        assert error.value.key == f"SPECTRAL_IMAGE{missing}"
