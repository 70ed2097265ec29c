"""A cube whose bands lie in one or many images, side by side: TIFFs, or raw ones with an ENVI header."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools
from runtime.closing import Closing
from runtime.errors import CubeFileError
from runtime.files.disk import PIECE, allocated
from runtime.files.envi import read_header, read_lines
from runtime.products.contract import LINE_OF_CHUNKS, CubeReader, Description
from runtime.products.gdal import CACHE, ImagePart, Tiff
from runtime.products.spool import Spool, Tiles
from runtime.products.tiff_tree import Layout

try:
    import resource
except ImportError:  # Not a POSIX system.
    resource = None  # type: ignore[assignment]

SPARE_FILES = 128
"""Files that the rest of the process may open beside those of a cube that stay open."""


class Image(Protocol):
    """A file that bands are read from, as `Tiff` is one."""

    path: Path
    layout: Layout

    def read_into(self, out: NDArray[Any], bands: Sequence[int], start: int, left: int = 0) -> None: ...

    def rest(self) -> None: ...

    def close(self) -> None: ...


class RawImage(Closing):
    """A raw image with an ENVI header beside it. Raises CubeFileError as `read_header` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = header = read_header(path)
        self.layout = Layout(
            shape=(header.bands, header.lines, header.samples),
            dtype=header.dtype.newbyteorder("="),
            block=(1, header.samples),
            by_pixel=header.interleave != "bsq",
            loose=True,
        )

    def read_into(self, out: NDArray[Any], bands: Sequence[int], start: int, left: int = 0) -> None:
        """See `Tiff.read_into`."""
        cube = read_lines(self.header, start, start + out.shape[1])
        out[...] = cube[np.array(bands) - 1, :, left : left + out.shape[2]]

    def rest(self) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Nothing is open."""


class Images(Closing):
    """The images of a cube in the order of its bands; owns them.

    Attributes:
        parts: which bands of which file they are.
        shape, dtype, block, holds: as `Description` has them.

    Raises:
        CubeFileError: they differ in size or type.
    """

    def __init__(self, images: Sequence[Image], bands: Sequence[Sequence[int]]) -> None:
        self.images = images
        self.parts = tuple(ImagePart(image.path, tuple(some)) for image, some in zip(images, bands, strict=True))
        first = images[0].layout
        for image in images:
            if (image.layout.shape[1:], image.layout.dtype) != (first.shape[1:], first.dtype):
                raise CubeFileError(
                    f"differs in size or type from {images[0].path.name}",
                    file=image.path,
                    value=_sized(image.layout),
                    remedy=f"all images of a cube are alike, here {_sized(first)}: copy the product again",
                )
        self._counts = [len(some) for some in bands]
        self.shape = (sum(self._counts), *first.shape[1:])
        self.dtype = first.dtype
        rows = min(math.lcm(*{image.layout.rows for image in images}), self.shape[1])
        together = sum(_across(image.layout) * count for image, count in zip(images, self._counts, strict=True))
        self._spools = rows > 1 and rows * together * self.dtype.itemsize > LINE_OF_CHUNKS
        self._spooled: list[_Spooled] = []
        self.block = 1 if self._spools else rows
        # GDAL has a piece decoded and as it is stored; a spool is filled by a third.
        decoded = [image.layout.piece for image in images if not image.layout.loose]
        self.holds = CACHE + (3 * max(decoded) if self._spools else 2 * sum(decoded))
        self._turns = not _may_stay_open(len(images))
        for image in images if self._turns else ():
            image.rest()

    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        """See `CubeReader`."""
        out = allocated(self.parts[0].path, (self.shape[0], stop - start, self.shape[2]), self.dtype)
        if self._spools and not self._spooled:
            self._spooled = self._spool()
        band = 0
        for number, (image, count) in enumerate(zip(self.images, self._counts, strict=True)):
            here = out[band : band + count]
            if self._spools:
                self._spooled[number].read_into(here, start, stop)
            else:
                image.read_into(here, self.parts[number].bands, start)
            band += count
            if self._turns:
                image.rest()
        return out

    def close(self) -> None:
        for image in self.images:
            image.close()
        for spooled in self._spooled:
            spooled.close()

    def _spool(self) -> "list[_Spooled]":
        """Room in one file for the bands of each image."""
        sizes = [count * math.prod(self.shape[1:]) * self.dtype.itemsize for count in self._counts]
        spool = Spool(self.parts[0].path, sum(sizes))
        return [
            _Spooled(image, part.bands, spool, sum(sizes[:number]))
            for number, (image, part) in enumerate(zip(self.images, self.parts, strict=True))
        ]


class _Spooled(Closing):
    """Bands of an image in a temporary file, filled by rows of pieces when they are asked."""

    def __init__(self, image: Image, bands: Sequence[int], spool: Spool, offset: int) -> None:
        layout = image.layout
        self._image, self._bands = image, bands
        column = layout.rows * layout.block[1] * len(bands) * layout.dtype.itemsize
        self._wide = layout.block[1] * max(1, PIECE // column) if layout.by_pixel else layout.shape[2]
        self._tiles = Tiles(spool, (len(bands), *layout.shape[1:]), layout.dtype, self._wide, offset)
        self._there = np.zeros(-(-layout.shape[1] // layout.rows), np.bool_)

    def read_into(self, out: NDArray[Any], start: int, stop: int) -> None:
        """Lines `start` to `stop` into [bands, stop - start, samples]."""
        rows = self._image.layout.rows
        for row in range(start // rows, -(-stop // rows)):
            if not self._there[row]:
                self._fill(row * rows, min((row + 1) * rows, self._image.layout.shape[1]))
                self._there[row] = True
        self._tiles.lines(start, out)

    def _fill(self, start: int, stop: int) -> None:
        layout, count = self._image.layout, len(self._bands)
        # Some pieces hold all bands, or lines of several bands are read together.
        deep = count if layout.by_pixel else max(1, PIECE // ((stop - start) * self._wide * layout.dtype.itemsize))
        for left in range(0, layout.shape[2], self._wide):
            wide = min(self._wide, layout.shape[2] - left)
            for band in range(0, count, deep):
                some = self._bands[band : band + deep]
                read = allocated(self._image.path, (len(some), stop - start, wide), layout.dtype)
                self._image.read_into(read, some, start, left)
                self._tiles.put(band, start, left, read)

    def close(self) -> None:
        self._tiles.close()


class TiffCube(CubeReader):
    """An open cube of images.

    Attributes:
        images: which bands of which TIFF are the cube's, in order; none of a raw image.

    Args:
        opacity: a band of the only image, from 1, that is 0 where nothing is.
    """

    def __init__(self, description: Description, images: Images, opacity: int | None = None) -> None:
        self.description = description
        self.images = tuple(
            part for part, image in zip(images.parts, images.images, strict=True) if isinstance(image, Tiff)
        )
        self._images, self._opacity = images, opacity

    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        return self._images.read_lines(start, stop)

    def missing(self, start: int, stop: int) -> Bools | None:
        found: Bools | None = None
        for image in self._images.images:
            if isinstance(image, Tiff) and (image.layout.mask or self._opacity is not None):
                blank = image.blank(self._opacity, start, stop)
                if image.layout.mask and self._opacity is not None:
                    blank = blank | image.blank(None, start, stop)
                found = blank if found is None else found | blank
        return found

    def close(self) -> None:
        self._images.close()


def open_images(paths: Sequence[Path], opening: Callable[[Path], Image] = Tiff) -> list[Image]:
    """The images of one cube; those that the limit of open files leaves no room for rest. Raises as `opening` does."""
    found: list[Image] = []
    rest = not _may_stay_open(len(paths))
    try:
        for path in paths:
            found.append(opening(path))
            if rest:
                found[-1].rest()
    except BaseException:
        for image in found:
            image.close()
        raise
    return found


def names_in(folder: Path) -> list[str]:
    """Names in a folder, in order; none of one that cannot be listed."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []


def _may_stay_open(files: int) -> bool:
    limit = 256 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    used = len(names_in(Path("/proc/self/fd")))
    return files == 1 or limit < 0 or used + files + SPARE_FILES <= limit


def _across(layout: Layout) -> int:
    """Samples of a line as whole pieces hold them."""
    return layout.shape[2] if layout.loose else -(-layout.shape[2] // layout.block[1]) * layout.block[1]


def _sized(layout: Layout) -> str:
    return f"{layout.shape[1]} x {layout.shape[2]} of {layout.dtype}"
