"""Hyperion L1T by any of its names, held against `truth.json`; and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import CubeFileError
from runtime.products import hyperion
from runtime.products.contract import Reading
from runtime.products.tiff_cube import TiffCube
from tests.runtime.products.tiff_data import check_truth, cube, tiff, whole

NAME = "EO1H1930282010105110KF"
SCALES = "    SCALING_FACTOR_VNIR = 40\n    SCALING_FACTOR_SWIR = 80\n"


def opened(path: Path) -> TiffCube:
    assert hyperion.recognises(path)
    return hyperion.open_reader(path, Reading())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three bands of a product."""
    made = tmp_path / f"{NAME}_1T"
    made.mkdir()
    for number, band in zip((9, 70, 71), cube(3), strict=True):
        tiff(made / f"{NAME}_B{number:03d}_L1T.TIF", band[None], crs="EPSG:32631").close()
    (made / f"{NAME}_MTL_L1T.TXT").write_text(f"GROUP = RADIANCE_SCALING\n{SCALES}END_GROUP = RADIANCE_SCALING\n")
    return made


@pytest.mark.data
def test_a_product_is_what_an_independent_reader_saw(data_dir: Path) -> None:
    with opened(data_dir / "products" / "hyperion" / f"{NAME}_1T") as reader:
        check_truth(reader, data_dir, f"hyperion/{NAME}_1T")
        said = reader.description
        assert (said.format, said.quantity, said.unit) == ("hyperion", "radiance", "W m-2 sr-1 um-1")
        assert said.stated.gains == (1 / 40,) * 70 + (1 / 80,) * 172
        assert len(said.files) == 243
        assert len(reader.images) == 242
        assert said.place.grid is not None


@pytest.mark.parametrize("name", ["", f"{NAME}_MTL_L1T.TXT", f"{NAME}_B070_L1T.TIF"])
def test_any_name_opens_the_bands_that_are_there(folder: Path, name: str) -> None:
    with opened(folder / name) as reader:
        assert np.array_equal(whole(reader), cube(3))
        assert reader.description.stated.gains == (1 / 40, 1 / 40, 1 / 80)
        assert reader.description.notes == ("239 of 242 bands are not there",)


@pytest.mark.data
def test_hdf4_is_refused(data_dir: Path) -> None:
    with pytest.raises(CubeFileError) as error:
        opened(data_dir / "products" / "hyperion" / f"{NAME}.L1R")
    assert "convert to GeoTIFF (L1T)" in str(error.value)


@pytest.mark.parametrize(
    "text", ["END\n", SCALES.replace("40", "0"), SCALES.replace("40", "nan"), SCALES + SCALES.replace("40", "41")]
)
def test_a_scale_that_is_not_told_is_refused(folder: Path, text: str) -> None:
    (folder / f"{NAME}_MTL_L1T.TXT").write_text(text)
    with pytest.raises(CubeFileError) as error:
        opened(folder)
    assert error.value.key == "SCALING_FACTOR_VNIR"
    assert error.value.remedy


def test_bands_that_do_not_fit_are_refused(folder: Path) -> None:
    band = folder / f"{NAME}_B009_L1T.TIF"
    for numbers, crs in ((cube(1, 11), "EPSG:32631"), (cube(2), "EPSG:32631"), (cube(1, dtype="f4"), "EPSG:32631")):
        tiff(band, numbers, crs=crs).close()
        with pytest.raises(CubeFileError, match="EO1H"):
            opened(folder)
    band.unlink()
    shutil.copy(folder / f"{NAME}_B070_L1T.TIF", folder / f"{NAME}_b070_l1t.tif")
    with pytest.raises(CubeFileError, match="one of two"):
        opened(folder)


def test_a_text_that_is_missing_is_told(folder: Path) -> None:
    (folder / f"{NAME}_MTL_L1T.TXT").unlink()
    with pytest.raises(CubeFileError) as error:
        opened(folder)
    assert error.value.key == "MTL"
