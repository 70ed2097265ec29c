"""A cube as a cloud-optimised GeoTIFF (COG), whatever its source was; its quality beside it as NAME_quality.tif.

Tiles of 512, or less where the cube is smaller, of one band each, so that it takes the memory of a tile and not of its
bands. Layout: https://gdal.org/en/stable/drivers/raster/cog.html; the domain IMAGERY:
https://gdal.org/en/stable/user/raster_data_model.html.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import CubeFileError
from runtime.files.disk import refuse_inputs
from runtime.products.contract import CubeReader, CubeWriter, Gcp, Place, Result
from runtime.products.tiff_draft import Draft, Plan, packing, rows_at_once, writing
from runtime.products.tiff_target import TiffTarget, put_packed, quality_path
from runtime.products.written import scale_of

SUFFIX = ".tif"
_BLOCK = 512
_CLASSIC = 3 << 30
"""Bytes of tiles before compression from which on a file is a BigTIFF."""
_ACROSS = 11
"""Points of known place along each side of a cube on a sensor's grid."""
_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def open_writer(out: Path, result: Result) -> CubeWriter:
    """A writer of a COG. Raises CubeFileError, ModuleNotFoundError without rasterio."""
    if result.dtype.str[1:] not in _TYPES:
        raise CubeFileError(
            "a TIFF has no numbers of this type", file=out, value=result.dtype, remedy="write float32 or integers"
        )
    if out.is_dir():
        raise CubeFileError("a folder of that name is in the way", file=out, remedy="give the name of a file")
    for path in (out, quality_path(out)):
        refuse_inputs(path, result.source.files)
    return _Cog(out, result)


def holds(result: Result) -> int:
    """Bytes that such a writer keeps beside the block it is given."""
    return packing(result)


class _Cog(TiffTarget):
    def _begin(self) -> Sequence[Draft]:
        result = self.result
        bands, lines, samples = result.shape
        rows = rows_at_once(result.shape, result.dtype.itemsize)
        shape = {"count": bands, "height": lines, "width": samples, "blockysize": rows, "interleave": "band"}
        place = _known(result.place, result.reader, lines, samples)
        path = self.part / ".draft"
        with writing(self.out) as rasterio:
            on_map = {}
            if place.grid:
                on_map = {"crs": place.grid.crs, "transform": rasterio.Affine.from_gdal(*place.grid.transform)}
            kind = {"driver": "GTiff", "dtype": result.dtype.name, "nodata": result.mark, "bigtiff": "YES"}
            with rasterio.open(path, "w", **kind, **shape, **on_map) as dataset:
                _locate(dataset, place)
                _describe(dataset, result)
        height, width = _block(lines), _block(samples)
        stored = bands * (lines + height) * (samples + width) * result.dtype.itemsize * 4 / 3
        options = {
            "copy_src_overviews": "YES",
            "interleave": "band",
            "tiled": "YES",
            "blockxsize": width,
            "blockysize": height,
            "compress": "deflate",
            "predictor": 3 if result.dtype.kind == "f" else 2,
            "bigtiff": "YES" if stored > _CLASSIC else "NO",
        }
        smaller = tuple(1 << n for n in range(1, 32) if max(lines, samples) > _BLOCK << (n - 1))
        plan = Plan(options, tuple(range(1, bands + 1)), ((0, samples),), overviews=smaller)
        return [Draft(path, plan, lines, np.empty((bands, rows, samples), result.dtype), out=self.out)]

    def _put(self, tags: Mapping[str, str], quality: Draft | None) -> tuple[Path, ...]:
        return put_packed(self, tags, quality)


def _block(size: int) -> int:
    """Lines or samples of a tile: no more of it is empty than there must be."""
    return next((block for block in (16, 32, 64, 128, 256) if size <= block), _BLOCK)


def _describe(dataset: Any, result: Result) -> None:
    """What the numbers of each band mean, in the tags that readers look for."""
    stated, bands = result.stated, result.shape[0]
    gains, offsets = scale_of(result)
    if gains:
        dataset.scales, dataset.offsets = gains, offsets
    # Radiance in the unit range is none any more; reflectance is.
    if result.quantity and (result.quantity != "radiance" or not result.unit_range or stated.gains):
        dataset.update_tags(quantity=result.quantity)
    if result.unit:
        dataset.units = (result.unit,) * bands
    for band in range(bands):
        name, imagery = f"band {band + 1}", {}
        tags = {"bbl": "0" if band in stated.bad else "1"}
        if stated.wavelengths is not None:
            center = stated.wavelengths[band]
            name += f" ({center:.10g} Nanometers)"
            tags |= {"wavelength": f"{center:.10g}", "wavelength_units": "Nanometers"}
            imagery["CENTRAL_WAVELENGTH_UM"] = f"{center / 1000:.10g}"
        if result.fwhm is not None:
            tags["fwhm"] = f"{result.fwhm[band]:.10g}"
            imagery["FWHM_UM"] = f"{result.fwhm[band] / 1000:.10g}"
        dataset.set_band_description(band + 1, name)
        dataset.update_tags(band + 1, **tags)
        dataset.update_tags(band + 1, ns="IMAGERY", **imagery)


def _locate(dataset: Any, place: Place) -> None:
    from rasterio.control import GroundControlPoint
    from rasterio.crs import CRS

    # GDAL moves points by half a pixel where pixels are points, once as it writes and once as it reads.
    dataset.update_tags(AREA_OR_POINT="Area" if place.area or place.grid is None else "Point")
    if place.grid is None and place.gcps:
        points = [GroundControlPoint(point.line, point.sample, point.x, point.y, point.z) for point in place.gcps]
        dataset.gcps = (points, CRS.from_user_input(place.gcp_crs or "EPSG:4326"))
    if place.rpc:
        dataset.update_tags(ns="RPC", **place.rpc)


def _known(place: Place, reader: CubeReader | None, lines: int, samples: int) -> Place:
    """The place itself, or one with points where the reader knows pixels of a sensor's grid to lie."""
    if place.grid or place.gcps or reader is None or reader.description.shape[1:] != (lines, samples):
        return place
    points = []
    for line in _spread(lines):
        if (located := reader.located(line, line + 1)) is None:
            return place
        for sample in _spread(samples):
            x, y = float(located[0][0, sample]), float(located[1][0, sample])
            if math.isfinite(x) and math.isfinite(y):
                points.append(Gcp(line + 0.5, sample + 0.5, x, y))
    return Place(gcps=tuple(points), rpc=place.rpc, area=place.area) if len(points) > 3 else place


def _spread(count: int) -> list[int]:
    """Places from the first to the last."""
    found: list[int] = np.unique(np.linspace(0, count - 1, _ACROSS).round().astype(int)).tolist()
    return found
