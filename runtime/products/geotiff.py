"""GeoTIFF and COG: a cube's bands as the bands of one image.

GDAL's GTiff driver (https://gdal.org/en/stable/drivers/raster/gtiff.html) with its scale, offset, nodata, mask and tags
per band; OGC 19-008r4 (GeoTIFF), OGC 21-026 (COG).
"""

from pathlib import Path

from runtime.products.contract import Description, Reading
from runtime.products.gdal import Tiff
from runtime.products.tiff_cube import Images, TiffCube
from runtime.products.tiff_tags import told_by
from runtime.products.tiff_tree import begins_as_tiff


def recognises(path: Path) -> bool:
    """By its first bytes, or by its suffix."""
    return path.is_file() and (path.suffix.lower() in (".tif", ".tiff") or begins_as_tiff(path))


def open_reader(path: Path, reading: Reading) -> TiffCube:
    """Open a GeoTIFF.

    Raises:
        CubeFileError: see `runtime.products.gdal.Tiff` and `runtime.products.tiff_tags.told_by`.
        ModuleNotFoundError: rasterio is not installed.
    """
    tiff = Tiff(path)
    try:
        told = told_by(tiff)
        images = Images([tiff], [told.bands])
        description = Description(
            format="geotiff",
            path=path,
            files=(path,),
            shape=images.shape,
            dtype=images.dtype,
            block=images.block,
            holds=images.holds,
            stated=told.stated,
            fwhm=told.fwhm,
            quantity=told.quantity,
            unit=told.unit,
            place=told.place,
            notes=told.notes,
        )
        return TiffCube(description, images, told.opacity)
    except BaseException:
        tiff.close()
        raise
