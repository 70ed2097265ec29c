"""Bands that say nothing: left out of what the network sees, and given back as they came."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Float32
from runtime.meaning.marks import Mark, marked

HARDLY = 0.5
"""Where fewer of the pixels have a value in a band, it is the band that is missing, not the pixels."""
FULL = 0.95
"""With this share of its values at its own limit, a band is dead or saturated."""
FEWEST = 16
"""Of so few values nobody can say that they should differ."""
LISTED, ONE_VALUE = "marked bad in the header", "of one value"
"""What is wrong with a band, for people."""


def bad_bands(
    cube: NDArray[Any], marks: Sequence[Mark], listed: Sequence[int], *, constant: bool, fills: bool = False
) -> dict[int, str]:
    """{band, from 0: what is wrong with it}.

    Args:
        cube: [bands, lines, samples].
        marks: of missing values.
        listed: bands that the file calls bad.
        constant: whether a band of one value is bad; never where all of them are.
        fills: what is missing is made up, for which few values of a band are better than none.
    """
    inside = np.zeros(cube.shape[1:], np.bool_)
    counts, single = list[int](), list[float | None]()
    for band in cube:
        out = marked(band, marks)
        out |= ~np.isfinite(band)
        inside |= ~out
        values = band[~out]
        counts.append(values.size)
        single.append(usual(values))
    found = dict.fromkeys(listed, LISTED)
    pixels = int(np.count_nonzero(inside))
    for number, count in enumerate(counts):
        if number in found:
            continue
        if not count:
            found[number] = "without a single value"
        elif count < HARDLY * pixels and not fills:
            found[number] = f"without a value in {100 * (1 - count / pixels):.0f} % of the pixels"
        elif constant and (value := single[number]) is not None and None in single:
            found[number] = f"{ONE_VALUE}, {value:g}"
    return found


def stays(why: str, constant: str | None) -> bool:
    """Whether a bad band is left as it is where what is missing is made up: its file, or somebody, wants it so.

    Args:
        why: it is bad.
        constant: what somebody asks for bands of one value.
    """
    return why == LISTED or (constant == "leave" and why.startswith(ONE_VALUE))


def clipped(values: NDArray[Any]) -> float:
    """Share of a band's values that are its largest; 0 of few."""
    return float(np.mean(values == values.max())) if values.size >= FEWEST else 0.0


def usual(values: NDArray[Any]) -> float | None:
    """The value that nearly all of a band's hold, its smallest or largest; None where they differ, or are few."""
    if values.size >= FEWEST:
        for value in (values.min(), values.max()):
            if np.count_nonzero(values == value) > FULL * values.size:
                return float(value)
    return None


def bridged(unit: Float32, bad: Collection[int], wavelengths: Sequence[float] | None) -> None:
    """Replace bad bands, in place, by a line over wavelength through the nearest good ones on both sides.

    Args:
        unit: [bands, ...].
        bad: bands, not all of them.
        wavelengths: in nm; without them, or where they do not rise, bands are evenly spaced.
    """
    good = np.setdiff1d(np.arange(len(unit)), list(bad))
    place = np.arange(len(unit), dtype=np.float64)
    if wavelengths is not None and (np.diff(wavelengths) > 0).all():
        place = np.asarray(wavelengths, np.float64)
    for band in bad:
        after = int(np.searchsorted(good, band))
        low, high = int(good[max(after - 1, 0)]), int(good[min(after, len(good) - 1)])
        share = np.float32(0 if low >= high else (place[band] - place[low]) / (place[high] - place[low]))
        unit[band] = (1 - share) * unit[low] + share * unit[high]
