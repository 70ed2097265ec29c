"""What people read about the numbers and axes of a cube, in one place. Bands are counted from 1 for them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from runtime.meaning.bands import LISTED
from runtime.meaning.marks import NEAR, Mark, held

FAR_NANOMETRES = 5.0
BRIDGED = "interpolated for the network, given back as they came"


def bands(numbers: Iterable[int]) -> str:
    """`bands 3, 29 to 34` of numbers from 0."""
    ordered = sorted(numbers)
    runs = [[n for _, n in run] for _, run in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])]
    told = ", ".join(f"{run[0] + 1}" if len(run) == 1 else f"{run[0] + 1} to {run[-1] + 1}" for run in runs)
    return f"band{'s' * (len(ordered) > 1)} {told}"


def pixels(count: int) -> str:
    return f"{count} pixel{'s' * (count != 1)}"


def of_bad(bad: Mapping[int, str], *, seen: bool) -> list[str]:
    """What is said of bad bands: those that were `seen` in the data alone, or those that the file tells of."""
    told = []
    for why in dict.fromkeys(bad.values()):
        if (why != LISTED and "single value" not in why) == seen:
            which = [band for band, other in bad.items() if other == why]
            are = "is" if len(which) == 1 else "are"
            told.append(f"{bands(which)} {are} {why} ({len(which)} in all): {BRIDGED}")
    return told


def of_mark(mark: Mark, count: int, dtype: np.dtype[Any]) -> str | None:
    """What is said of a mark that `count` pixels hold; None where the file means just that."""
    value = f"{mark.low:g}" if mark.low == mark.high else ""
    if mark.whence == "data" and count:
        values = number(mark.low) if mark.low == mark.high else f"{number(mark.low)} to {number(mark.high)}"
        return (
            f"{pixels(count)} hold {values}, far from all other values, and nothing says what it means: "
            f"taken as missing; confirm it with --ignore-value {number(mark.low)}, or say --ignore-value none"
        )
    if mark.named is None or not count:
        return None
    unable = "" if held(mark.named, dtype) is not None else f", and {dtype} cannot hold it"
    lie = f"hold {number(mark.low)}" if value else f"lie within {100 * NEAR:g} % of it"
    return (
        f"the mark of missing pixels is said to be {number(mark.named)}, no value equals it{unable}; "
        f"{pixels(count)} {lie} and are taken as missing"
    )


def number(value: float) -> str:
    """A number with all that people need of it: whole ones in full."""
    return f"{value:.0f}" if np.isfinite(value) and value == int(value) and abs(value) < 1e15 else f"{value:.7g}"


def far_bands(found: Sequence[float] | None, trained: Sequence[float] | None) -> float | None:
    """By how many nm bands lie beside those of the network at most, where that is far; of unlike counts nothing."""
    if not found or not trained or len(found) != len(trained):
        return None
    apart = float(np.abs(np.asarray(found) - np.asarray(trained)).max())
    return apart if apart > FAR_NANOMETRES else None


def wavelength_doubt(whose: str, found: Sequence[float] | None, trained: Sequence[float] | None) -> str | None:
    """Bands that are not those the network was made for."""
    apart = far_bands(found, trained)
    if apart is None or not trained:
        return None
    return (
        f"{whose} bands lie up to {apart:.0f} nm from those that the network was made for "
        f"({trained[0]:g} to {trained[-1]:g} nm)"
    )


def axis_doubt(shape: Sequence[int], bands: int, *, told: bool) -> str | None:
    """Another axis than the first has the network's bands; `told` where the file itself says which axis is which."""
    if not told and shape[0] != bands and bands in shape[1:]:
        return f"another axis has the network's {bands} bands: is --layout right?"
    return None
