"""How an image of a camera becomes lines [bands, samples]; from configuration, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError

Kind = Literal["line-scan", "mosaic"]
Axis = Literal["rows", "columns"]


@dataclass(frozen=True)
class Geometry:
    """Where bands, samples and lines lie in an image [rows, columns].

    Attributes:
        kind: `line-scan`, an image behind a slit is one line; `mosaic`, a snapshot camera's filters repeat over its
            pixels, and an image is as many lines as patterns lie above each other.
        spectral_axis: of a line scan: along `rows` means that each row is a band.
        flip_bands: the last band of the image is the first of the line.
        flip_samples: the same across the slit.
        pattern: of a mosaic: rows and columns of filters; what is left over at the image's end is cut off.
        band_order: of a mosaic: places in the pattern, row by row from 0, in the order of their bands; None for the
            pattern's own order.
    """

    kind: Kind = "line-scan"
    spectral_axis: Axis = "rows"
    flip_bands: bool = False
    flip_samples: bool = False
    pattern: tuple[int, int] | None = None
    band_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            InputError: a mosaic without a pattern, keys of the other kind, or an order that is not a permutation.
        """
        if self.kind == "line-scan":
            for key in ("pattern", "band_order"):
                if getattr(self, key) is not None:
                    raise InputError(
                        f"{key} belongs to mosaics", key=f"camera.{key}", remedy="set camera.geometry to mosaic"
                    )
            return
        if self.pattern is None or min(self.pattern) < 1 or self.pattern == (1, 1):
            raise InputError(
                "a mosaic needs the rows and columns of its filters",
                key="camera.pattern",
                value=self.pattern,
                remedy="for example 4x4",
            )
        if self.spectral_axis != "rows":
            raise InputError("a mosaic has no spectral axis", key="camera.spectral_axis", remedy="leave it out")
        filters = self.pattern[0] * self.pattern[1]
        if self.band_order is not None and sorted(self.band_order) != list(range(filters)):
            raise InputError(
                f"the order must name each of the {filters} filters once, by its place from 0 to {filters - 1}",
                key="camera.band_order",
                value=list(self.band_order),
            )

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Lines, bands and samples of an image of that size.

        Raises:
            InputError: it does not hold the whole pattern once.
        """
        if self.pattern is None:
            return (1, height, width) if self.spectral_axis == "rows" else (1, width, height)
        rows, columns = self.pattern
        if height < rows or width < columns:
            raise InputError(
                f"the image of {height} x {width} is smaller than the pattern",
                key="camera.pattern",
                value=f"{rows}x{columns}",
            )
        return height // rows, rows * columns, width // columns

    @property
    def plain(self) -> bool:
        """An image is a line as it is."""
        return self == Geometry()

    def copy(self, image: NDArray[Any], index: int, line: NDArray[Any]) -> None:
        """Copy line `index` of an image [rows, columns] to `line`, [bands, samples] as `shape` says."""
        out = line[:: -1 if self.flip_bands else 1, :: -1 if self.flip_samples else 1]
        if self.pattern is None:
            np.copyto(out, image if self.spectral_axis == "rows" else image.T)
            return
        rows, columns = self.pattern
        stop = line.shape[1] * columns
        for band, place in enumerate(self.band_order or range(rows * columns)):
            row, column = divmod(place, columns)
            np.copyto(out[band], image[index * rows + row, column:stop:columns])
