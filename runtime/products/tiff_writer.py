"""EnMAP, DESIS and Hyperion folders and single GeoTIFFs like their source: only the cube's numbers are new.

GDAL copies each TIFF with all that it knows of it; lines go into the copy, and what is packed from it has the source's
type, order, blocks, compression and overviews. Bands that are not the cube's, a mask and all tags are the source's.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.durable import place_folder
from runtime.errors import CubeFileError
from runtime.files.disk import refuse_inputs
from runtime.products.contract import PROVENANCE, CubeWriter, Result
from runtime.products.gdal import ImagePart, Tiff
from runtime.products.tiff_draft import (
    CACHE,
    Draft,
    Plan,
    bounded_cache,
    packing,
    rows_at_once,
    structure_of,
    sums_of,
    writing,
)
from runtime.products.tiff_folder import copy_others, refuse_within
from runtime.products.tiff_target import TiffTarget, put_packed, quality_path
from runtime.products.tiff_tree import Layout, layout_of

QUALITY = "QUALITY_RESTORED.TIF"
_FOLDERS = ("enmap", "desis", "hyperion")
_CLASSIC = 3 << 30
_ACROSS = 64 << 20
"""Bytes of tiles beside each other that are kept, so that each is unpacked once."""
_FORM = ("IMAGE_STRUCTURE", "DERIVED_SUBDATASETS", "SUBDATASETS", "COLOR_PROFILE", "RPC")


def open_like(out: Path, result: Result) -> CubeWriter:
    """A writer of a TIFF, or of a folder where the source is a product of several files.

    The quality of a TIFF lies beside it as NAME_quality.tif, that of a folder in it as `QUALITY`.

    Raises:
        CubeFileError: the result has another grid or type than the source, or the system refused.
        ModuleNotFoundError: rasterio is not installed.
    """
    source, images = result.source, images_of(result)
    if result.shape != source.shape:
        raise CubeFileError(
            "has another grid than its source, so that it cannot be written like it",
            file=out,
            value=" x ".join(map(str, result.shape)),
            remedy="write a COG: --out NAME.tif",
        )
    if result.dtype != source.dtype:
        raise CubeFileError(
            "has numbers of another type than its source, so that it cannot be written like it",
            file=out,
            value=result.dtype,
            remedy="write a COG: --out NAME.tif",
        )
    if sum(len(image.bands) for image in images) != source.shape[0]:
        raise CubeFileError(
            "is no TIFF, so that no TIFF can be written like it", file=source.path, remedy="write a COG: --out NAME.tif"
        )
    inputs = [*source.files, *(image.path for image in images)]
    if source.format in _FOLDERS or len(images) > 1:
        folder = source.path if source.path.is_dir() else images[0].path.parent
        refuse_within(out, folder)
        return _Folder(out, result, folder)
    if out.is_dir():
        raise CubeFileError("a folder of that name is in the way", file=out, remedy="give the name of a file")
    for path in (out, quality_path(out)):
        refuse_inputs(path, inputs)
    return _Single(out, result)


def holds_like(result: Result) -> int:
    """Bytes that such a writer keeps beside the block it is given."""
    layouts = [layout_of(image.path) for image in images_of(result)]
    # Measured: beside what it keeps, GDAL holds blocks of all bands once as numbers and once packed.
    return (
        packing(result)
        + CACHE // 2
        + max((_cache(one) - CACHE + one.piece * (5 if one.by_pixel else 0) // 2 for one in layouts), default=0)
    )


def _cache(layout: Layout) -> int:
    """Bytes of blocks that GDAL keeps of a TIFF: with less than two it packs and unpacks a block over and over."""
    across = layout.piece * -(-layout.shape[2] // layout.block[1]) if layout.by_pixel else 0
    return CACHE + max(2 * layout.piece, min(across, _ACROSS))


def images_of(result: Result) -> Sequence[ImagePart]:
    """The TIFFs that the bands of the source lie in."""
    images: Sequence[ImagePart] = getattr(result.reader, "images", ())
    return images


class _Single(TiffTarget):
    def _begin(self) -> Sequence[Draft]:
        return [_draft(images_of(self.result)[0], self.part / ".draft", self.result, self.out)]

    def _put(self, tags: Mapping[str, str], quality: Draft | None) -> tuple[Path, ...]:
        return put_packed(self, tags, quality)


class _Folder(TiffTarget):
    """The hidden folder becomes the product."""

    def __init__(self, out: Path, result: Result, folder: Path) -> None:
        self._folder = folder
        super().__init__(out, result)

    def _begin(self) -> Sequence[Draft]:
        self._images = images_of(self.result)
        self._names = [image.path.relative_to(self._folder) for image in self._images]
        copy_others(
            self._folder, self.part, {*self._names, Path(QUALITY), Path(f"{PROVENANCE}.json")}, self.result.source.files
        )
        drafts = []
        for image, name in zip(self._images, self._names, strict=True):
            (self.part / name).parent.mkdir(parents=True, exist_ok=True)
            drafts.append(_draft(image, self.part / name.with_name(f".{name.name}"), self.result, self.out))
        return drafts

    def _put(self, tags: Mapping[str, str], quality: Draft | None) -> tuple[Path, ...]:
        names = [*map(str, self._names), *([QUALITY] if quality else []), f"{PROVENANCE}.json"]
        for draft, name in zip([*self.drafts, *([quality] if quality else [])], names, strict=False):
            draft.pack(self.part / name, tags)
        with (self.part / names[-1]).open("w", encoding="ascii") as file:
            file.write(tags[PROVENANCE] + "\n")
            file.flush()
            os.fsync(file.fileno())
        place_folder(self.part, self.out)
        return (self.out, *(self.out / name for name in names))


def _draft(image: ImagePart, path: Path, result: Result, out: Path) -> Draft:
    """An uncompressed copy of a TIFF of the source."""
    _, lines, samples = result.shape
    rows = rows_at_once(result.shape, result.dtype.itemsize)
    with writing(out) as rasterio, Tiff(image.path) as source:
        from rasterio.shutil import copy

        with source.asking() as dataset:
            plan = _plan(source, dataset, image)
            said = _tags(dataset)
        options = {key: plan.options[key] for key in ("interleave", "photometric") if key in plan.options}
        options |= {"blockysize": rows, "tiled": "NO", "bigtiff": "YES"}
        with bounded_cache(plan.cache):
            copy(dataset, path, driver="GTiff", **options)
        with rasterio.open(path, driver="GTiff") as draft:
            copied = _tags(draft)
        plan = replace(plan, tags={key: tags for key, tags in said.items() if copied.get(key) != tags})
    return Draft(path, plan, lines, np.empty((len(image.bands), rows, samples), result.dtype), out=out)


def _tags(dataset: Any) -> dict[tuple[int, str], dict[str, str]]:
    """What a TIFF says in domains that are no part of its form, by band (0 for all) and domain."""
    return {
        (band, domain): dataset.tags(band, ns=domain)
        for band in (0, *dataset.indexes)
        for domain in dataset.tag_namespaces(band)
        if domain not in _FORM and not domain.startswith("xml:")
    }


def _plan(source: Tiff, dataset: Any, image: ImagePart) -> Plan:
    layout, structure = source.layout, structure_of(dataset)
    height, width = layout.block
    tiled = bool(dataset.profile["tiled"])
    with source.path.open("rb") as file:
        head = file.read(4)
    big = 43 in head
    options: dict[str, Any] = {
        "interleave": "pixel" if layout.by_pixel else "band",
        "tiled": "YES" if tiled else "NO",
        "blockysize": height,
        "compress": structure.get("COMPRESSION", "NONE"),
        # Compressed or not, what is below fits.
        "bigtiff": "YES" if big else "NO" if np.prod(layout.shape) * layout.dtype.itemsize < _CLASSIC else "IF_SAFER",
        "endianness": "LITTLE" if head[:2] == b"II" else "BIG",
    }
    if structure.get("MINISWHITE"):
        options["photometric"] = "MINISWHITE"
    if tiled:
        options["blockxsize"] = width
    if "PREDICTOR" in structure:
        options["predictor"] = structure["PREDICTOR"]
    overviews = tuple(dataset.overviews(1))
    if overviews or structure.get("LAYOUT"):
        options["copy_src_overviews"] = "YES"
    samples = layout.shape[2]
    step = width if layout.by_pixel and tiled else samples
    columns = tuple((first, min(first + step, samples)) for first in range(0, samples, step))
    others = [band for band in range(1, layout.shape[0] + 1) if band not in image.bands]
    kept = dict(zip(others, map(list, zip(*sums_of(dataset, others, columns), strict=True)), strict=True))
    if layout.mask:
        kept[0] = [mask for [mask] in sums_of(dataset, [0], columns)]
    nearest = dataset.tags().get("OVR_RESAMPLING_ALG") == "NEAREST"
    return Plan(options, image.bands, columns, kept, overviews, nearest, cache=_cache(layout))
