"""What every format of products promises: a cube described without its pixels, read and written by blocks of lines."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools
from runtime.closing import Closing
from runtime.stated import NOTHING, Stated

Quantity = Literal["reflectance", "radiance", "counts"]
Ints = NDArray[np.int32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """What somebody says of a product that it does not say itself.

    Attributes:
        layout: order of the axes in `.npy`, `.npz` and `.mat` files, see `runtime.files.read_cube`.
        key: name of the array, where a file holds several.
        missing_chunks: what a chunk of a Zarr array that is not there means: the file is refused, or it is fill.
    """

    layout: str | None = None
    key: str | None = None
    missing_chunks: Literal["refuse", "fill"] = "refuse"


@dataclass(frozen=True)
class Grid:
    """A grid on a map.

    Attributes:
        crs: its coordinate system as WKT, or as `EPSG:32632` where a product gives no more than the number.
        transform: GDAL's geotransform (x of the upper left corner, step along samples, along lines, y, ..., ...).
        lines, samples: its size.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]
    lines: int
    samples: int


class Gcp(NamedTuple):
    """A point of known place: line and sample count from the upper left corner of the first pixel."""

    line: float
    sample: float
    x: float
    y: float
    z: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a cube lies, as its product tells it.

    Attributes:
        grid: of the cube itself; None of a cube on a sensor's grid.
        gcps, gcp_crs: points of known place, and their coordinate system as WKT.
        rpc: rational polynomial coefficients, by GDAL's names.
        ortho: the map grid that the product's lookup table (`CubeReader.glt`) fills.
        area: the transform is of corners of pixels (`AREA_OR_POINT=Area`); False where the file says points.
    """

    grid: Grid | None = None
    gcps: tuple[Gcp, ...] = ()
    gcp_crs: str | None = None
    rpc: Mapping[str, str] = field(default_factory=dict)
    ortho: Grid | None = None
    area: bool = True


@dataclass(frozen=True, eq=False)
class Glt:
    """A lookup table from a map to a sensor's grid.

    Attributes:
        grid: the map grid.
        lines, samples: int32 [grid.lines, grid.samples], places in the cube from 0, -1 where nothing is. All inside it.
    """

    grid: Grid
    lines: Ints
    samples: Ints


@dataclass(frozen=True)
class Description:
    """A product without its pixels.

    Attributes:
        format: name of its format, as `runtime.products.FORMATS` has it.
        path: as it was named.
        files: those that its cube and its meaning are read from, in one order whoever lists the folder; the first holds
            numbers of the cube.
        shape: [bands, lines, samples], of bands that have data of their own: no alpha, none of wavelength 0.
        dtype: of its numbers, in native byte order.
        block: lines that are read best at once; a call of a multiple, beginning at one, reads nothing twice.
        holds: bytes that the reader keeps beside the block it gives (a row of chunks, a cache).
        stated: what it says of its numbers; bands in the file's order, gains and offsets to the physical value.
        fwhm: nm, one per band.
        quantity: what the physical value is; None where nobody says.
        unit: of the physical value, as the file spells it.
        place: where it lies.
        title: a name of the cube inside a file, such as `/reflectance`.
        notes: what its reader made of it, for people. Doubts are in `stated`.
    """

    format: str
    path: Path
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    block: int = 1
    holds: int = 0
    stated: Stated = NOTHING
    fwhm: tuple[float, ...] | None = None
    quantity: Quantity | None = None
    unit: str | None = None
    place: Place = field(default_factory=Place)
    title: str | None = None
    notes: tuple[str, ...] = ()


class CubeReader(Closing):
    """An open product, read from one thread. Opening it reads no pixels.

    Attributes:
        description: what it is.
    """

    description: Description

    @abstractmethod
    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        """Lines `start` to `stop` [bands, stop - start, samples] of the description's type, C-contiguous, all new.

        Raises:
            CubeFileError: they cannot be read: damaged, cut short, changed since it was opened.
            MachineError: there is not the memory.
        """

    def missing(self, start: int, stop: int) -> Bools | None:
        """Pixels [stop - start, samples] that the product calls missing by a mask; None of one without."""
        return None

    def saturated(self, start: int, stop: int) -> Bools | None:
        """Pixels [stop - start, samples] with a value that the product calls saturated; None where it does not say."""
        return None

    def located(self, start: int, stop: int) -> tuple[Doubles, Doubles] | None:
        """Longitudes and latitudes [stop - start, samples] of pixels on a sensor's grid, NaN where not known."""
        return None

    def glt(self) -> Glt | None:
        """The lookup table to `place.ortho`. Raises CubeFileError where it points outside the cube."""
        return None


class Seen(IntFlag):
    """What became of a pixel, in a quality layer (uint8)."""

    RESTORED = 1
    """The network's output in every band that is not bad."""
    PASSED = 2
    """Stays as it was though it has values: in no frame that could be restored."""
    MISSING = 4
    """It had no value, and has none."""
    SATURATED = 8
    """A value of it was at the detector's limit, or is at the limit of its type now."""
    SUSPECT = 16
    """Restored in a frame whose output does not look like a restoration."""


@dataclass(frozen=True, eq=False)
class Quality:
    """Of the pixels of some lines: uint8 [lines, samples] each.

    Attributes:
        seen: `Seen`.
        expert: the network's expert that weighs most there, from 1; 0 where none was asked.
    """

    seen: NDArray[np.uint8]
    expert: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Result:
    """What is going to be written.

    Attributes:
        source: that it was made from. A writer "like the input" finds all but the cube's numbers there.
        shape: [bands, lines, samples]; lines and samples differ from the source's where a map grid is filled.
        dtype: of its numbers.
        stated: what these numbers mean, as `Description.stated`.
        fwhm, quantity, unit, place: likewise.
        mark: what stands for a missing pixel, one that `dtype` holds; None where there is none.
        unit_range: numbers are float32 in the unit range, whatever the source's were.
        reader: the open source, for what is by line (`located`); None where there is none.
        quality: a layer of `Quality` is written with it.
    """

    source: Description
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    stated: Stated = NOTHING
    fwhm: tuple[float, ...] | None = None
    quantity: Quantity | None = None
    unit: str | None = None
    place: Place = field(default_factory=Place)
    mark: float | None = None
    unit_range: bool = False
    reader: CubeReader | None = None
    quality: bool = True


class CubeWriter(Closing):
    """Takes a cube by blocks of lines, from the first to the last; whole after `finish`, absent without it.

    It writes under temporary names beside the target, locked and synced (`runtime.durable.part_of`). `close` removes
    what is not finished, and is harmless after `finish`.
    """

    @abstractmethod
    def write_lines(self, cube: NDArray[Any], quality: Quality | None = None) -> None:
        """Append lines [bands, n, samples] of the result's type, with their quality where a layer is written.

        Raises:
            CubeFileError: the system refused: no space, no permission.
        """

    @abstractmethod
    def finish(self, provenance: Mapping[str, Any]) -> tuple[Path, ...]:
        """Put it in its place, with its provenance (JSON, under `PROVENANCE`) inside, or beside where it has no room.

        Returns:
            all files written, the one that was asked for first.

        Raises:
            CubeFileError: lines are missing, or the system refused; nothing is there then, or what was there before.
        """


PROVENANCE = "damp_deploy"
"""The attribute, tag or ENVI header key under which an output tells how it was made, as one JSON object."""
LINE_OF_CHUNKS = 256 << 20
"""Bytes of a row of chunks, all bands, above which a reader spools its cube to an unlinked file first."""
