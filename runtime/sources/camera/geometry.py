"""How an image of a camera becomes lines [bands, samples]; from configuration, never guessed."""

import re
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictBool, StrictInt

from runtime.errors import InputError


def _pattern(value: object) -> object:
    if isinstance(value, str) and (found := re.fullmatch(r"\s*(\d{1,3})\s*[xX×]\s*(\d{1,3})\s*", value)):
        return int(found[1]), int(found[2])
    return value


class Geometry(BaseModel):
    """Where bands, samples and lines lie in an image [rows, columns].

    Attributes:
        geometry: `line-scan`, an image behind a slit is one line; `mosaic`, a snapshot camera's filters repeat over its
            pixels, and an image is as many lines as patterns lie above each other; `colour`, an area camera with a
            Bayer pattern or RGB: each row of an image is a line of red, green and blue; `area`, a grey area camera, as
            behind a coded aperture: each row of an image is a line of one band.
        spectral_axis: of a line scan: along `rows` means that each row is a band.
        flip_bands: the last band of the image is the first of the line.
        flip_samples: the same across the slit.
        pattern: of a mosaic: rows x columns of filters, as 4x4 or [4, 4]; what is left over at the end is cut off.
        band_order: of a mosaic: places in the pattern, row by row from 0, in the order of their bands; None for the
            pattern's own order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    geometry: Literal["line-scan", "mosaic", "colour", "area"] = "line-scan"
    spectral_axis: Literal["rows", "columns"] = "rows"
    flip_bands: StrictBool = False
    flip_samples: StrictBool = False
    pattern: Annotated[tuple[StrictInt, StrictInt] | None, BeforeValidator(_pattern)] = None
    band_order: tuple[StrictInt, ...] | None = None

    def check(self) -> None:
        """Check that the parts fit together.

        Raises:
            InputError: a mosaic without a pattern, keys of the other kind, or an order that is not a permutation.
        """
        if self.geometry in ("colour", "area") and self.spectral_axis != "rows":
            raise InputError("such an image has no spectral axis", key="camera.spectral_axis", remedy="leave it out")
        if self.geometry == "area" and self.flip_bands:
            raise InputError("such an image has one band", key="camera.flip_bands", remedy="leave it out")
        if self.geometry != "mosaic":
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
            InputError: it does not hold the whole pattern once, or colours cannot be made of so few pixels.
        """
        if self.geometry == "colour":
            if min(height, width) < 3:
                raise InputError("the image is too small for colours", key="camera", value=f"{height} x {width}")
            return height, 3, width
        if self.geometry == "area":
            return height, 1, width
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
        turned = self.flip_bands or self.flip_samples or self.spectral_axis != "rows"
        return self.geometry == "line-scan" and not turned

    def copy_line(self, image: NDArray[Any], index: int, line: NDArray[Any]) -> None:
        """Copy line `index` of an image to `line`, [bands, samples] as `shape` says.

        Args:
            image: [rows, columns]; of colours [3, rows, columns].
        """
        out = line[:: -1 if self.flip_bands else 1, :: -1 if self.flip_samples else 1]
        if self.geometry == "colour":
            np.copyto(out, image[:, index])
            return
        if self.geometry == "area":
            np.copyto(out[0], image[index])
            return
        if self.pattern is None:
            np.copyto(out, image if self.spectral_axis == "rows" else image.T)
            return
        rows, columns = self.pattern
        stop = line.shape[1] * columns
        for band, place in enumerate(self.band_order or range(rows * columns)):
            row, column = divmod(place, columns)
            np.copyto(out[band], image[index * rows + row, column:stop:columns])
