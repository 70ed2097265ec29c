"""What a file or a source states about its numbers, as it stands there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from pydantic_core import PydanticCustomError

Values = TypeVar("Values", bound=Sequence[float])


@dataclass(frozen=True)
class Stated:
    """None, or nothing, where it does not say.

    Attributes:
        scale: number that stands for 1.0 (ENVI `reflectance scale factor`).
        gains, offsets: one per band; a number x gain + offset is a physical value.
        reflectance_gains, reflectance_offsets: the same to reflectance.
        marks: values of missing pixels, possibly NaN.
        bad: bands that it calls bad, from 0.
        wavelengths: nm, one per band.
        axes: it, or who had it read, says which axis is which; None where there is no file.
        photograph: it is no measurement: black, white and one value all over are what the picture shows, not marks of
            missing pixels, bad bands or a saturated detector, which nobody looks for then.
        radiance: its physical values are radiance, for which no number stands for 1.0 by itself.
        doubts: what its reader could not take as it stands.
    """

    scale: float | None = None
    gains: tuple[float, ...] | None = None
    offsets: tuple[float, ...] | None = None
    reflectance_gains: tuple[float, ...] | None = None
    reflectance_offsets: tuple[float, ...] | None = None
    marks: tuple[float, ...] = ()
    bad: tuple[int, ...] = ()
    wavelengths: tuple[float, ...] | None = None
    axes: bool | None = None
    photograph: bool = False
    radiance: bool = False
    doubts: tuple[str, ...] = ()


NOTHING = Stated()
"""Of numbers that come without a file."""


def increasing(wavelengths: Values) -> Values:
    """Centres of a network's bands in nm, each finite and above the one before. Raises ValueError."""
    for entry, (left, right) in enumerate(pairwise((0.0, *wavelengths))):
        if not left < right < math.inf:
            raise PydanticCustomError(
                "not_increasing",
                "must increase strictly, but {right} nm follows {left} nm",
                {"left": f"{left:g}", "right": f"{right:g}", "entry": entry},
            )
    return wavelengths
