"""What no restoration of a frame looks like: a look at what went in and what came out, which alters nothing."""

from collections import deque

import numpy as np

from .arrays import Float32

Range = tuple[float, float]
FLAT = 1e-3
"""A band is flat whose values span less than this share of what they spanned before."""
FLAT_BANDS = 0.5
WIDENED, OUTSIDE = 0.2, 0.01
"""Restored values may leave the range of what came by this share of it, and so many of them by more."""
ALIKE = 0.1
"""Correlation with what came; noise as strong as the scene leaves 0.7."""
SPARSE = 5
"""Lines and samples of which one is looked at where a share is enough."""
FRAMES, ENOUGH, SIGMAS = 256, 32, 6.0


def implausible(
    given: Float32,
    restored: Float32,
    *,
    alike: bool,
    known: Range | None = None,
    ends: tuple[Float32, Float32] | None = None,
) -> str:
    """What is odd about a restored frame, in words; empty where nothing is.

    Args:
        given: [bands, lines, samples] in the unit range, what the network was given.
        restored: [bands, lines, samples] likewise, finite.
        alike: what is restored is of the kind that was given, band for band.
        known: range of values that the network is known to give.
        ends: lowest and highest value of each band of what was given, where they are known.
    """
    first, last = ends or _ends(given)
    least, most = _ends(restored)
    before, after = last - first, most - least
    varied = before > 0
    if alike and varied.any() and np.mean(after[varied] <= FLAT * before[varied]) > FLAT_BANDS:
        return "most bands come out flat, of one value each, and did not come in so"
    if not alike and varied.any() and np.mean(after <= FLAT * before.max()) > FLAT_BANDS:
        return "most bands come out flat, of one value each, of a frame that is not"
    ranges = [(0.0, 1.0), *([] if known is None else [known])]
    ranges += [(float(first.min()), float(last.max()))] if alike else []
    low, high = min(one[0] for one in ranges), max(one[1] for one in ranges)
    room = WIDENED * (high - low)
    if not alike and known is None:
        return ""
    beyond = least.min() < low - room or most.max() > high + room
    # The second look, which costs more, is for frames that need it.
    if beyond and np.mean((restored < low - room) | (restored > high + room)) > OUTSIDE:
        return "many values come out far beyond the range of what came in"
    if alike and varied.any():
        bands = slice(None) if varied.all() else varied
        one, other = (cube[bands, ::SPARSE, ::SPARSE].ravel().astype(np.float64) for cube in (given, restored))
        one, other = one - one.mean(), other - other.mean()
        # Not by BLAS, whose threads wait for more in a loop, on the engine's time.
        squares, of_others, product = (
            float(np.einsum("i,i->", a, b)) for a, b in ((one, one), (other, other), (one, other))
        )
        norm = np.sqrt(squares * of_others)
        if norm and product < ALIKE * norm:
            return "what comes out has next to nothing in common with what came in"
    return ""


def _ends(cube: Float32) -> tuple[Float32, Float32]:
    """Lowest and highest value of each band."""
    return cube.min(axis=(1, 2)), cube.max(axis=(1, 2))


class Jumps:
    """Finds a frame that is changed far more than those before it."""

    def __init__(self) -> None:
        self._changes: deque[float] = deque(maxlen=FRAMES)

    def look(self, given: Float32, restored: Float32) -> str:
        """As `implausible`, of [bands, lines, samples] that are alike."""
        sparse = np.s_[:, ::SPARSE, ::SPARSE]
        change = float(np.abs(restored[sparse] - given[sparse]).mean())
        known = np.array(self._changes)
        self._changes.append(change)
        if len(known) < ENOUGH or change <= max(known.mean() + SIGMAS * known.std(), 2 * known.max()):
            return ""
        return f"it is changed by {change:.3g} on average, those before it by {known.mean():.3g}"
