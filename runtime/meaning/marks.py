"""Values that are no measurements: those a file marks as missing, and those that give themselves away."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools

Whence = Literal["flag", "file", "data"]
NEAR = 0.005
"""Marks that were rounded, or went through a factor, lie this near to what the file names."""
APART = 10 * NEAR
"""Between `NEAR` and this, nothing lies about a mark: else the near values are measurements."""
CLOSE = 0.02
"""Marks that nobody named lie this near to the outermost of them."""
FILLS = (
    -9999, -999, -99, -99999, 99999, -9998, 1e20, -1e20, 1e30, -1e30, 1e34, -1e34, 1e38, -1e38, 9.969209968386869e36,
    -32768, -32767, 32767, 65535, -(2**31), -(2**31) + 1, 2**31 - 1, 2**32 - 1,
)  # fmt: skip
"""What instruments and programs fill with."""
SAMPLED = 200_000
"""Elements from which the body of the values is judged."""
BELOW, ABOVE, OF_FILL = 0.5, 2.0, 0.1
"""How far an extreme lies from all else, in ranges of the rest: below, above, and where it is one of `FILLS`."""
REPEATED = 16
"""An extreme that is no fill that programs use is a mark where so many hold it, and the rest has as many levels."""


@dataclass(frozen=True)
class Mark:
    """Values from `low` to `high` are missing; NaN is itself.

    Attributes:
        low, high: equal, where the mark is one number.
        whence: who said so.
        named: what the file names, where no value equals it.
    """

    low: float
    high: float
    whence: Whence
    named: float | None = None

    @property
    def value(self) -> float:
        """What stands for it in lines that are written anew."""
        return self.named if self.named is not None and self.low < self.high else self.low

    def found(self, values: NDArray[Any]) -> Bools:
        """Which values are it."""
        if math.isnan(self.low):
            return np.asarray(np.isnan(values)) if values.dtype.kind == "f" else np.zeros(values.shape, np.bool_)
        if self.low == self.high:
            mark = held(self.low, values.dtype)
            return np.zeros(values.shape, np.bool_) if mark is None else np.asarray(values == mark)
        with np.errstate(over="ignore"):
            return np.asarray((values >= self.low) & (values <= self.high))


def held(number: float, dtype: np.dtype[Any]) -> Any:
    """A number as an array of `dtype` holds it; None where it cannot."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(number)
    limits = np.iinfo(dtype)
    if not math.isfinite(number) or number != int(number):
        return None
    # As a float the largest number of 64 bits is the one behind it.
    whole = limits.max if number == float(limits.max) else int(number)
    return dtype.type(whole) if limits.min <= whole <= limits.max else None


def standing(marks: Iterable[Mark], dtype: np.dtype[Any]) -> float | None:
    """What stands for missing values in lines of a type: the first mark that it can hold; None without any."""
    return next((mark.value for mark in marks if held(mark.value, dtype) is not None), None)


def marked(values: NDArray[Any], marks: Iterable[Mark]) -> Bools:
    """Which values are one of the marks, bool of the same shape."""
    out = np.zeros(values.shape, np.bool_)
    for mark in marks:
        out |= mark.found(values)
    return out


def told_mark(cube: NDArray[Any], number: float, whence: Whence, factor: float | None) -> Mark:
    """The mark that somebody named, as the values hold it.

    Args:
        cube: [bands, lines, samples].
        number: that was named.
        whence: by whom.
        factor: that the file states for its numbers, which may stand between the mark and the values.
    """
    exact = Mark(number, number, whence)
    if not math.isfinite(number):
        return exact
    near = Mark(number - NEAR * abs(number), number + NEAR * abs(number), whence, number)
    if (close := _count(cube, near)) > _count(cube, exact):
        around = Mark(number - APART * abs(number), number + APART * abs(number), whence)
        # Where values lie all around it, they are measurements.
        return near if close == _count(cube, around) else exact
    if close:
        return exact
    for other in _turned(number, cube.dtype, factor):
        found = Mark(other, other, whence, number)
        if _count(cube, found) and _alone(cube, found):
            return found
    return exact


def _turned(number: float, dtype: np.dtype[Any], factor: float | None) -> Iterator[float]:
    """What became of a number on its way into a type: times a factor, wrapped, clamped, the type's lowest."""
    if factor is not None and factor != 1:
        yield from (held_number for by in (number * factor, number / factor) if (held_number := _whole(by, dtype)))
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        yield from (math.copysign(limit, number), math.copysign(math.inf, number)) if abs(number) > 1e30 else ()
        return
    limits = np.iinfo(dtype)
    if math.isfinite(number) and number == int(number):
        bits = 8 * dtype.itemsize
        wrapped = int(number) % (1 << bits)
        yield wrapped - (1 << bits) if limits.min < 0 and wrapped > limits.max else wrapped
    if not limits.min <= number <= limits.max:
        yield limits.min if number < 0 else limits.max


def _whole(number: float, dtype: np.dtype[Any]) -> float:
    return float(round(number)) if dtype.kind in "iu" else float(dtype.type(number))


def _count(cube: NDArray[Any], mark: Mark) -> int:
    return sum(int(np.count_nonzero(mark.found(band))) for band in cube)


def _alone(cube: NDArray[Any], mark: Mark) -> bool:
    """Whether a value that nobody named fills whole spectra and nothing else, or lies far from all else."""
    whole = np.ones(cube.shape[1:], np.bool_)
    some = np.zeros(cube.shape[1:], np.bool_)
    for band in cube:
        found = mark.found(band)
        whole &= found
        some |= found
    return bool((whole == some).all()) or far(list(cube), mark, [])


def seen_marks(cube: NDArray[Any], marks: Sequence[Mark], bands: Bools) -> list[Mark]:
    """Marks that nobody named: extreme values that lie close together, or are one, far from everything else.

    Args:
        cube: [bands, lines, samples].
        marks: that are known.
        bands: bool [bands], those that are looked at.
    """
    found: list[Mark] = []
    # Views: a cube is not copied for being looked at.
    looked = [cube[band] for band in np.flatnonzero(bands)]
    for _ in range(4):
        known = [*marks, *found]
        extremes = [e for band in looked if (e := _extremes(band, known)) is not None]
        if not extremes:
            break
        low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
        new = [mark for end, inwards in ((low, 1), (high, -1)) if (mark := _cluster(looked, end, inwards, known))]
        if not new:
            break
        found += new
    return found


def _cluster(cube: Sequence[NDArray[Any]], end: float, inwards: int, marks: Sequence[Mark]) -> Mark | None:
    """The mark at one end of the values, one number or those within `CLOSE` of it; None of measurements."""
    if not end:
        return None
    single = Mark(end, end, "data")
    if math.isinf(end) or abs(end) > 1e30:
        return single if far(cube, single, marks) else None
    other = end + inwards * CLOSE * abs(end)
    several = Mark(min(end, other), max(end, other), "data")
    if not far(cube, several, marks):
        return single if far(cube, single, marks) else None
    values = [band[several.found(band)] for band in cube]
    low, high = min(float(v.min()) for v in values if v.size), max(float(v.max()) for v in values if v.size)
    return Mark(low, high, "data")


def _extremes(band: NDArray[Any], marks: Sequence[Mark]) -> tuple[float, float] | None:
    values = measured(band, marks)
    return (float(values.min()), float(values.max())) if values.size else None


def measured(band: NDArray[Any], marks: Sequence[Mark]) -> NDArray[Any]:
    """The values of a band that are neither marked nor NaN, flat."""
    out = marked(band, marks)
    if band.dtype.kind == "f":
        out |= np.isnan(band)
    return band[~out] if out.any() else band.reshape(-1)


def far(cube: Sequence[NDArray[Any]], mark: Mark, marks: Sequence[Mark]) -> bool:
    """Whether extreme values lie so far from all the others that they are no measurements.

    They are compared with the nearest other value and with the range of the values' body; infinite ones always do.
    """
    others = [*marks, mark]
    count, filled, below, above = 0, False, -math.inf, math.inf
    for band in cube:
        values = measured(band, marks)
        found = int(np.count_nonzero(mark.found(values)))
        count, filled = count + found, filled or 0 < found == values.size
        under, over = values[values < mark.low], values[values > mark.high]
        below = max(below, float(under.max()) if under.size else -math.inf)
        above = min(above, float(over.min()) if over.size else math.inf)
    # What fills a band is no mark among measurements.
    if (
        count == 0
        or filled
        or (math.isinf(below) and math.isinf(above))
        or not (math.isinf(below) or math.isinf(above))
    ):
        return False
    if math.isinf(mark.low):
        return True
    gap = above - mark.high if math.isinf(below) else mark.low - below
    step, dtype = max(1, sum(band.size for band in cube) // SAMPLED), cube[0].dtype
    body = np.concatenate([measured(band.reshape(-1)[i % step :: step], others) for i, band in enumerate(cube)])
    body = body[np.isfinite(body)]
    if body.size < REPEATED:
        return False
    low, high = np.percentile(body.astype(np.float64), (0.1, 99.9))
    span = max(high - low, 1e-3 * abs(high))
    fills = [held(fill, dtype) for fill in (*FILLS, *_limits(dtype))]
    if any(fill is not None and mark.low <= fill <= mark.high for fill in fills):
        return bool(gap > OF_FILL * span)
    # Among few levels every one lies far from the next.
    several = len(np.unique(body)) >= REPEATED
    return bool(several and count >= REPEATED and gap > (BELOW if math.isinf(below) else ABOVE) * span)


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return float(limits.min), float(limits.max)
