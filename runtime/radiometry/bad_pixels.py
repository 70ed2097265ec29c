"""Which detector elements cannot be believed, and what stands in for them."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools

Doubles = NDArray[np.float64]
Indices = NDArray[np.intp]
Method = Literal["linear", "samples"]

EXTREME = (1e-3, 1e3)
"""No response of a lit element is that far from the detector's median."""
CLEAR, MANY = 10.0, 10
"""Times the noise, or the usual number, that a plateau is above the rest; and how many are no longer few."""


def unusable(response: Doubles, limits: tuple[float, float], *, relative: bool) -> Bools:
    """Elements whose response is no response.

    That is: not finite, not positive, outside `limits` times the median; and all of a band or of a sample's column in
    which that leaves less than half, since its median means nothing.

    Args:
        response: [bands, samples]: a flat field, white less dark, or one over a gain.
        limits: lowest and highest, in multiples of the median.
        relative: the response is about 1 everywhere and the median is the detector's; otherwise it differs from band to
            band by orders of magnitude and the median is the band's.
    """
    bad: Bools = ~(np.isfinite(response) & (response > 0))
    if bad.all():
        return bad
    known = np.where(bad, np.nan, response)
    share = known / np.nanmedian(known)
    low, high = limits if relative else EXTREME
    bad |= ~((share >= low) & (share <= high))
    if not relative:
        with warnings.catch_warnings():
            # A band without a good element has no median.
            warnings.simplefilter("ignore", RuntimeWarning)
            share = known / np.nanmedian(np.where(bad, np.nan, known), axis=1, keepdims=True)
        bad |= ~((share >= limits[0]) & (share <= limits[1]))
    poor_bands, poor_samples = bad.mean(axis=1) > 0.5, bad.mean(axis=0) > 0.5
    bad[poor_bands] = True
    bad[:, poor_samples] = True
    return bad


def is_plateau(topmost: Bools, mean: Doubles, varying: Bools, noise: float, lines: int) -> bool:
    """Whether elements at the highest value of a recording in each of its lines are there because it goes no further.

    That is: most others vary from line to line, lie far below, and not many more just below; or, where nothing varies,
    many more are there than at any other value. Of few lines one element may be there by chance.

    Args:
        topmost, varying: [bands, samples], at the highest value in every line, and not the same in all lines.
        mean: of the lines; NaN where it is not known.
        noise: from line to line, median over the elements.
        lines: of the recording.
    """
    count, rest = int(np.count_nonzero(topmost)), ~topmost & np.isfinite(mean)
    others = mean[rest]
    if count < (1 if lines >= MANY else 2) or not others.size:
        return False
    top = mean[topmost].max()
    if varying[rest].mean() > 0.5:
        near = int(np.count_nonzero(top - others < 3 * noise))
        return bool(np.median(top - others) > CLEAR * noise) and near <= 2 * count
    values, counts = np.unique(others, return_counts=True)
    upper = counts[values > top - 0.1 * (top - values[0])]
    usual = np.median(upper if upper.size else counts)
    return count < others.size and counts.size >= MANY and bool(count >= CLEAR * usual)


def unlit(dark: Doubles) -> Bools:
    """Elements of a dark that are exactly zero, where no others come near it: nothing is read there."""
    zero: Bools = dark == 0
    others = dark[~zero & np.isfinite(dark)]
    alone = others.size > 0 and np.percentile(others, 1) > 0.2 * np.median(others) > 0
    return zero if alone else np.zeros_like(zero)


@dataclass(frozen=True, eq=False)
class Replacements:
    """Bad elements as weighted sums of good ones.

    Attributes:
        bands, samples: [n], where the bad elements are.
        sources: [k, n], flat indices into [bands, samples]; all of them good, and all of weight.
        weights: [k, n], each column sums to 1.
    """

    bands: Indices
    samples: Indices
    sources: Indices
    weights: Doubles


def replacements(bad: Bools, method: Method) -> Replacements:
    """What stands in for each bad element.

    Linear in the band's number between the nearest good bands of the same sample; beyond the last good band that one is
    repeated. A sample without a good band takes the same mixture of its nearest neighbours that have one. With
    `samples` bands and samples change places.

    Args:
        bad: [bands, samples], not all True.
    """
    turned = bad if method == "linear" else bad.T
    low, high, share = _between(~turned)
    whole: Bools = np.asarray(turned.all(axis=0))
    left, right, across = (part[:, 0] for part in _between(~whole[:, None]))
    row, column = np.nonzero(turned)
    # For a column that has good elements, left and right are itself.
    sides = (left[column], right[column])
    sources, weights = [], []
    for side, side_weight in zip(sides, (1 - across[column], across[column]), strict=True):
        inner = share[row, side]
        for nearest, weight in ((low, 1 - inner), (high, inner)):
            sources.append((nearest[row, side], side))
            weights.append(side_weight * weight)
    used = slice(None) if whole.any() else slice(2)
    rows, columns = (np.array([source[axis] for source in sources[used]]) for axis in (0, 1))
    if method == "samples":
        row, column, rows, columns = column, row, columns, rows
    shares = np.array(weights[used])
    return Replacements(row, column, of_weight(rows * bad.shape[1] + columns, shares), shares)


def of_weight(sources: Indices, weights: NDArray[np.floating[Any]]) -> Indices:
    """`sources` [k, n] with each that has no weight moved to the one of its column that has most.

    Nothing times NaN is NaN: an element without weight must not be looked at.
    """
    heaviest = np.take_along_axis(sources, weights.argmax(axis=0)[None], axis=0)
    return np.where(weights == 0, heaviest, sources)


def _between(good: Bools) -> tuple[Indices, Indices, Doubles]:
    """For every element the nearest good rows before and after it in its column, and the share of the one after.

    A good element is its own; where there is none on one side, the other side's is both.
    """
    rows = np.arange(len(good))[:, None]
    before = np.maximum.accumulate(np.where(good, rows, -1), axis=0)
    after = np.minimum.accumulate(np.where(good, rows, len(good))[::-1], axis=0)[::-1]
    low = np.where(before < 0, after, before).clip(0, len(good) - 1)
    high = np.where(after == len(good), before, after).clip(0, len(good) - 1)
    share = np.divide(rows - low, high - low, out=np.zeros(good.shape), where=high > low)
    return low.astype(np.intp), high.astype(np.intp), share
