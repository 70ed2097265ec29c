"""What looks wrong in the numbers of a cube, for people to judge: nothing is refused for it, nothing changed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools
from runtime.meaning import words
from runtime.meaning.bands import FEWEST, FULL, clipped
from runtime.meaning.marks import Mark, marked, measured
from runtime.meaning.numbers import Asked, Values

CLIPPED = 0.25
"""With this share of its values at its largest one, a band is doubted."""
EDGE = 1.0
"""So many ranges of a band's values beyond them, what lies beside a mark and towards it is doubted."""
BESIDE = 2
"""Pixels around a mark that resampling reaches."""
FEWEST_BANDS = 4
"""In so many bands no measured spectrum is one and the same value."""


def doubtful(
    cube: NDArray[Any], marks: Sequence[Mark], bad: Mapping[int, str], missing: Bools, values: Values, asked: Asked
) -> list[str]:
    """Sentences on a cube [bands, lines, samples], each with the flag that ends it where there is one."""
    return list(
        filter(
            None,
            (
                _clipped(cube, marks, bad) if asked.constant_bands is None else None,
                _edges(cube, marks, values),
                _flat_spectra(cube, bad, missing) if asked.marks != () else None,
            ),
        )
    )


def _clipped(cube: NDArray[Any], marks: Sequence[Mark], bad: Mapping[int, str]) -> str | None:
    """Bands that hold their largest value in so many pixels that a detector's limit is likely."""
    found = {n: clipped(measured(band, marks)) for n, band in enumerate(cube) if n not in bad}
    found = {number: share for number, share in found.items() if share <= FULL}
    much = [number for number, share in found.items() if share > CLIPPED]
    # A scene that is dark in all bands has many values alike.
    if not much or len(much) == len(found):
        return None
    share = 100 * max(found[number] for number in much)
    many, are = ("hold their largest value in up to", "are") if len(much) > 1 else ("holds its largest value in", "is")
    return (
        f"{words.bands(much)} {many} {share:.0f} % of the pixels, as a saturated detector does, and {are} restored; "
        "say --constant-bands leave or restore if that is right"
    )


def _edges(cube: NDArray[Any], marks: Sequence[Mark], values: Values) -> str | None:
    """Pixels beside marked ones with values between the mark and all others, as interpolation makes them."""
    if not marks:
        return None
    # It takes a tenth of a second to import, and few cubes need it.
    from scipy.ndimage import binary_dilation

    found = np.zeros(cube.shape[1:], np.bool_)
    of: Mark | None = None
    for mark in marks:
        for number, some in values.bands.items() if math.isfinite(mark.low) else ():
            band = cube[number]
            low, high = np.percentile(some[np.isfinite(some)], (5, 95))
            below, above = low - EDGE * (high - low), high + EDGE * (high - low)
            if below <= mark.value <= above or not (inside := mark.found(band)).any():
                continue
            towards = (band < below) & (band > mark.high) if mark.value < below else (band > above) & (band < mark.low)
            towards &= ~marked(band, marks)
            if towards.any() and (beside := towards & binary_dilation(inside, np.ones((3, 3)), BESIDE)).any():
                found |= beside
                of = of or mark
    if of is None:
        return None
    return (
        f"{words.pixels(int(found.sum()))} beside the mark {words.number(of.value)} hold values between it and all "
        "others, as resampling makes them, and are restored: resample with the mark masked, or by the nearest pixel"
    )


def _flat_spectra(cube: NDArray[Any], bad: Mapping[int, str], missing: Bools) -> str | None:
    """Pixels that are one and the same value in every good band, which nobody called missing."""
    good = [band for number, band in enumerate(cube) if number not in bad]
    if len(good) < FEWEST_BANDS:
        return None
    flat = ~missing
    for band in good[1:]:
        flat &= band == good[0]
    if flat.all():
        return None
    values, counts = np.unique(good[0][flat], return_counts=True)
    if not len(counts) or counts.max() < max(FEWEST, 0.9 * counts.sum()):
        return None
    value = values[counts.argmax()]
    somewhere = int(np.count_nonzero(np.logical_or.reduce([band == value for band in good])))
    more = "" if somewhere == counts.max() else f" ({words.pixels(somewhere)} hold it in some band)"
    told = words.number(float(value), cube.dtype)
    return (
        f"{words.pixels(int(counts.max()))} hold {told} in every band, and are restored: if they are missing, say "
        f"--ignore-value {told}{more}"
    )
