"""Lines of a cube into a TIFF: an uncompressed draft takes them as they come, GDAL packs it, and it is read back.

A TIFF that is compressed must be written by whole blocks in one order, or what was written first stays in it as waste:
in the draft lines wait for the last ones of their block. GDAL may say in its log alone that a disk is full, so nothing
is believed that does not read back as the checksums of what was given.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError, DeployError, MachineError
from runtime.files.disk import reason
from runtime.products.cog_layout import COG, lay_out
from runtime.products.contract import Result
from runtime.products.gdal import strict
from runtime.products.written import check_lines

GATHERED = 16 << 20
"""Bytes of lines that are written to a draft, or read back, at once."""
MOST_ROWS = 256
CACHE = 16 << 20
"""Bytes of blocks that GDAL keeps while it packs."""
_OPTIONS = {"GDAL_TIFF_INTERNAL_MASK": "YES", "GTIFF_DIRECT_IO": "YES"}
REMEDY = "check the folder, its permissions and its free space"


@contextmanager
def writing(file: Path) -> Iterator[Any]:
    """Yield the module `rasterio` under the strict options.

    Raises:
        CubeFileError: the system or GDAL refused in the block; said of `file`.
        MachineError: there is not the memory.
        ModuleNotFoundError: rasterio is not installed.
    """
    try:
        with strict(**_OPTIONS) as rasterio, warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            yield rasterio
    except (DeployError, ModuleNotFoundError):
        raise
    except MemoryError as error:
        raise MachineError("there is not the memory to write it", file=file, remedy="write smaller cubes") from error
    except _refusals() as error:
        raise CubeFileError(f"cannot be written: {reason(error)}", file=file, remedy=REMEDY) from error


def _refusals() -> tuple[type[Exception], ...]:
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    # GDAL's own exceptions have no public base.
    return OSError, ValueError, RasterioError, CPLE_BaseError


@contextmanager
def bounded_cache(size: int) -> Iterator[None]:
    """Bound GDAL's cache, one for the process, otherwise for a while."""
    from rasterio.env import get_gdal_config, set_gdal_config

    before = get_gdal_config("GDAL_CACHEMAX")
    set_gdal_config("GDAL_CACHEMAX", size)
    try:
        yield
    finally:
        set_gdal_config("GDAL_CACHEMAX", before)


def rows_at_once(shape: tuple[int, int, int], itemsize: int) -> int:
    """Lines of a strip of drafts that hold [bands, lines, samples] together."""
    bands, lines, samples = shape
    return max(1, min(GATHERED // max(1, bands * samples * itemsize), MOST_ROWS, lines))


def packing(result: Result) -> int:
    """Bytes that a writer of drafts keeps: lines that wait, twice, GDAL itself, where its strips lie (measured)."""
    bands, lines, _ = result.shape
    rows = rows_at_once(result.shape, result.dtype.itemsize)
    return 2 * GATHERED + (24 << 20) + 48 * bands * -(-lines // rows)


@dataclass(frozen=True)
class Plan:
    """What a draft becomes.

    Attributes:
        options: GDAL's creation options; `copy_src_overviews` asks for the layout of a COG.
        bands: of the TIFF, from 1, that lines are given for, in their order.
        columns: samples that are read back at once: of pixel-interleaved ones a tile, else all.
        kept: checksums by column of other bands, which are in the draft from the beginning; of its mask as band 0.
        overviews: factors, each smaller copy by averages of what is not missing.
        nearest: or by taking every n-th pixel.
        tags: by band (0 for all) and domain, which GDAL does not copy.
        cache: bytes of blocks that GDAL keeps: of all bands that lie together.
    """

    options: Mapping[str, Any]
    bands: tuple[int, ...]
    columns: tuple[tuple[int, int], ...]
    kept: Mapping[int, list[int]] = field(default_factory=dict)
    overviews: tuple[int, ...] = ()
    nearest: bool = False
    tags: Mapping[tuple[int, str], Mapping[str, str]] = field(default_factory=dict)
    cache: int = CACHE


class Draft:
    """An uncompressed TIFF that exists, in strips of `rows` lines, and what is to become of it.

    Args:
        out: the name that errors tell.
        lines: of the image.
        waiting: buffer [bands, rows, samples] of the type of its numbers.
    """

    def __init__(self, path: Path, plan: Plan, lines: int, waiting: NDArray[Any], *, out: Path) -> None:
        self.path, self.plan, self.lines, self.out = path, plan, lines, out
        self._waiting = waiting
        self._held = self._done = 0
        self._sums = [[0] * len(plan.bands) for _ in plan.columns]

    def write(self, cube: NDArray[Any]) -> None:
        """Append lines [bands, n, samples]. Raises CubeFileError."""
        at = 0
        if self._done + self._held + cube.shape[1] > self.lines:
            raise ValueError(f"more than the {self.lines} lines of the cube")
        while at < cube.shape[1]:
            count = min(cube.shape[1] - at, self._waiting.shape[1] - self._held)
            self._waiting[:, self._held : self._held + count] = cube[:, at : at + count]
            self._held += count
            at += count
            if self._held == self._waiting.shape[1]:
                self._flush()

    def _flush(self) -> None:
        lines = self._waiting[:, : self._held]
        for sums, (first, last) in zip(self._sums, self.plan.columns, strict=True):
            sums[:] = [
                crc32(np.ascontiguousarray(band[:, first:last]).data, s) for band, s in zip(lines, sums, strict=True)
            ]
        with writing(self.out) as rasterio, rasterio.open(self.path, "r+", driver="GTiff") as dataset:
            window = ((self._done, self._done + self._held), (0, lines.shape[2]))
            dataset.write(lines, self.plan.bands, window=window)
        self._done, self._held = self._done + self._held, 0

    def pack(self, target: Path, tags: Mapping[str, str]) -> None:
        """Make the TIFF, with more tags, and sync it. The draft is removed.

        Raises:
            CubeFileError: lines are missing, or the system refused.
        """
        if self._held:
            self._flush()
        check_lines(self._done, self.lines, self.out)
        self._waiting = self._waiting[:0]
        with self._packing() as rasterio:
            from rasterio.shutil import copy

            self._complete(rasterio, tags)
            copy(self.path, target, driver="GTiff", **self.plan.options)
            self._lay_out(rasterio, target)
            self._check(rasterio, target)
            self.path.unlink()
            with target.open("rb") as file:
                os.fsync(file.fileno())

    @contextmanager
    def _packing(self) -> Iterator[Any]:
        tile = self.plan.options.get("blockxsize", 0)
        # Others than these GDAL does not take for overviews.
        tile = str(tile if tile in (64, 128, 256, 512, 1024, 2048, 4096) else 128)
        with writing(self.out) as rasterio, bounded_cache(self.plan.cache), rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=tile):
            yield rasterio

    def _complete(self, rasterio: Any, tags: Mapping[str, str]) -> None:
        from rasterio.enums import Resampling

        with rasterio.open(self.path, "r+", driver="GTiff") as dataset:
            dataset.clear_stats()
            dataset.update_tags(**tags)
            if self.plan.overviews:
                how = Resampling.nearest if self.plan.nearest else Resampling.average
                dataset.build_overviews(list(self.plan.overviews), how)

    def _lay_out(self, rasterio: Any, target: Path) -> None:
        """What GDAL left out: domains of tags, and the layout of a COG."""
        if self.plan.tags:
            with rasterio.open(target, "r+", driver="GTiff", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
                for (band, domain), tags in self.plan.tags.items():
                    dataset.update_tags(band, ns=domain, **tags)
        if "copy_src_overviews" in self.plan.options:
            with rasterio.open(target, driver="GTiff") as dataset:
                done = structure_of(dataset).get("LAYOUT") == COG and not self.plan.tags
            if not done:
                # In place of the draft, whose space it may need.
                os.replace(target, self.path)  # noqa: PTH105
                lay_out(self.path, target)

    def _check(self, rasterio: Any, target: Path) -> None:
        plan, kept = self.plan, self.plan.kept
        others = [band for band in kept if band]
        with rasterio.open(target, driver="GTiff") as dataset:
            found = sums_of(dataset, [*plan.bands, *others], plan.columns)
            expected = [sums + [kept[band][n] for band in others] for n, sums in enumerate(self._sums)]
            if found != expected or (0 in kept and [mask for [mask] in sums_of(dataset, [0], plan.columns)] != kept[0]):
                raise OSError(0, "what was written does not read back; the disk may be full")


def structure_of(dataset: Any) -> dict[str, str]:
    """How a TIFF is built: COMPRESSION, INTERLEAVE, LAYOUT, PREDICTOR."""
    tags: dict[str, str] = dataset.tags(ns="IMAGE_STRUCTURE")
    return tags


def sums_of(dataset: Any, bands: Sequence[int], columns: Sequence[tuple[int, int]]) -> list[list[int]]:
    """CRC-32 [columns][bands] of an open TIFF's numbers, line after line. Band 0 is its mask."""
    alone = structure_of(dataset).get("INTERLEAVE") != "PIXEL"
    groups = [[band] for band in bands] if alone or not bands else [list(bands)]
    return [[total for group in groups for total in _sums(dataset, group, column)] for column in columns]


def _sums(dataset: Any, bands: list[int], column: tuple[int, int]) -> list[int]:
    height = dataset.block_shapes[0][0]
    row = len(bands) * (column[1] - column[0]) * np.dtype(dataset.dtypes[0]).itemsize
    step = height * max(1, GATHERED // max(1, row * height))
    sums = [0] * len(bands)
    for first in range(0, dataset.height, step):
        window = ((first, min(first + step, dataset.height)), column)
        planes = dataset.read_masks(1, window=window)[None] if bands == [0] else dataset.read(bands, window=window)
        sums = [crc32(np.ascontiguousarray(plane).data, s) for plane, s in zip(planes, sums, strict=True)]
    return sums
