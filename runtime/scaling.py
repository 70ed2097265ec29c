"""Between the numbers of a cube and the network's unit range, by a scale and gains that somebody said."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .errors import CubeError

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Conversion:
    """A number is (number x gain + offset) / scale in the unit range.

    Attributes:
        scale: what stands for 1.0, behind gains and offsets where there are any.
        gains, offsets: float64 [bands]; None for 1 and 0.
    """

    scale: float = 1.0
    gains: Doubles | None = None
    offsets: Doubles | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not math.isfinite(self.scale) or self.scale <= 0:
            raise CubeError(
                "the scale is not a positive number", key="scale", value=self.scale, remedy="for example 4095"
            )

    @property
    def alike(self) -> bool:
        """Gains and offsets are the same in all bands."""
        return all(values is None or bool((values == values[0]).all()) for values in (self.gains, self.offsets))

    @property
    def plain(self) -> bool:
        """Numbers are taken as they are."""
        return self.scale == 1 and self.gains is None and self.offsets is None

    def to_unit(self, cube: NDArray[Any]) -> Float32:
        """A new float32 cube for the network, of [bands, ...]."""
        unit: Float32 = np.empty(cube.shape, np.float32)
        for band, numbers in enumerate(cube):
            self.band_to_unit(band, numbers, unit[band])
        return unit

    def to_numbers(self, unit: Float32, dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
        """A unit cube [bands, ...] back in numbers of `dtype`; see `band_to_numbers`."""
        cube = np.empty(unit.shape, dtype)
        return cube, sum(self.band_to_numbers(band, values, cube[band]) for band, values in enumerate(unit))

    def band_to_unit(self, band: int, numbers: NDArray[Any], out: NDArray[Any]) -> None:
        """Of one band; what `out` cannot hold becomes infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.gains is not None or self.offsets is not None:
                numbers = numbers.astype(np.float64) * self._gain(band) + self._offset(band)
            if self.scale == 1:
                out[...] = numbers
            else:
                np.divide(numbers, np.float64(self.scale), out=out, dtype=np.float64, casting="same_kind")

    def band_to_numbers(self, band: int, values: Float32, out: NDArray[Any]) -> int:
        """Of one band, rounded where `out` holds integers; how many it cannot hold and were set to its limit."""
        numbers = values.astype(np.float64) * self.scale
        if self.gains is not None or self.offsets is not None:
            numbers = (numbers - self._offset(band)) / self._gain(band)
        outside = _rounded(numbers, out.dtype) if out.dtype.kind in "iu" else 0
        with np.errstate(over="ignore"):
            out[...] = numbers
        return outside

    def _gain(self, band: int) -> float:
        return 1.0 if self.gains is None else float(self.gains[band])

    def _offset(self, band: int) -> float:
        return 0.0 if self.offsets is None else float(self.offsets[band])


def _rounded(numbers: Doubles, dtype: np.dtype[Any]) -> int:
    """Round to whole numbers that the type holds, in place; how many it does not."""
    limits = np.iinfo(dtype)
    np.rint(numbers, out=numbers)
    outside = int(((numbers < limits.min) | (numbers > limits.max)).sum())
    # 2**63 is a float64 and no int64: clip below the largest float that fits.
    top = np.nextafter(float(limits.max), 0) if float(limits.max) > limits.max else float(limits.max)
    np.clip(numbers, float(limits.min), top, out=numbers)
    return outside


def next_to(mark: Any) -> Any:
    """The number of a type that is nearest to one of its numbers and is not it."""
    if mark.dtype.kind == "f":
        return np.nextafter(mark, mark.dtype.type(np.inf))
    return mark + 1 if mark < np.iinfo(mark.dtype).max else mark - 1
