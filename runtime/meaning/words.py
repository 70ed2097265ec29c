"""What people read about the numbers and axes of a cube, in one place. Bands are counted from 1 for them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from runtime.meaning.bands import ONE_VALUE, stays
from runtime.meaning.marks import NEAR, Mark, held

FAR_NANOMETRES = 5.0
DOUBLE = np.dtype(np.float64)
BRIDGED = "interpolated for the network, given back as they came"
MADE_UP = "made up of the others, and restored"


def bands(numbers: Iterable[int]) -> str:
    """`bands 3, 29 to 34` of numbers from 0."""
    ordered = sorted(numbers)
    runs = [[n for _, n in run] for _, run in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])]
    told = ", ".join(f"{run[0] + 1}" if len(run) == 1 else f"{run[0] + 1} to {run[-1] + 1}" for run in runs)
    return f"band{'s' * (len(ordered) > 1)} {told}"


def pixels(count: int) -> str:
    return f"{count} pixel{'s' * (count != 1)}"


def of_bad(bad: Mapping[int, str], *, constant: str | None, fills: bool = False) -> tuple[list[str], list[str]]:
    """What is said of bad bands: notes of those that somebody told of, doubts of those that nobody named.

    Args:
        bad: {band: why}.
        constant: what somebody asks for bands of one value; None where nobody does.
        fills: what is missing is made up.
    """
    notes, doubts = list[str](), list[str]()
    for why in dict.fromkeys(bad.values()):
        which = [band for band, other in bad.items() if other == why]
        many = f"are {why} ({len(which)} in all)" if len(which) > 1 else f"is {why}"
        told = f"{bands(which)} {many}: {MADE_UP if fills and not stays(why, constant) else BRIDGED}"
        if why.startswith(ONE_VALUE) and constant is None:
            doubts.append(f"{told}; say --constant-bands leave if that is right, or restore")
        else:
            notes.append(told)
    return notes, doubts


def flags(values: Iterable[float], dtype: np.dtype[Any]) -> str:
    """What names these values of a type as missing."""
    return " ".join(f"--ignore-value {number(value, dtype)}" for value in dict.fromkeys(values))


def of_marks(marks: Sequence[Mark], counts: Sequence[int], dtype: np.dtype[Any]) -> list[str]:
    """What is said of marks, each of which `counts` pixels hold; nothing of one that means just what was said."""
    every = flags((mark.value for mark in marks), dtype)
    told = (_of_mark(mark, count, dtype, every) for mark, count in zip(marks, counts, strict=True))
    return [text for text in told if text]


def _of_mark(mark: Mark, count: int, dtype: np.dtype[Any], every: str) -> str | None:
    if mark.whence == "data" and count:
        low, high = number(mark.low, dtype), number(mark.high, dtype)
        values = low if mark.low == mark.high else f"{low} to {high}"
        return (
            f"{pixels(count)} hold {values}, far from all other values, and nothing says what it means: "
            f"taken as missing; confirm it with {every}, or say --ignore-value none"
        )
    if mark.whence == "flag":
        return None if count else f"no value is the {number(mark.named or mark.low)} that --ignore-value says"
    if not np.isfinite(mark.low) and dtype.kind != "f":
        return (
            f"the mark of missing pixels is said to be {number(mark.low)}, which no {dtype} is: none is taken as "
            "missing by it; say --ignore-value with the right one, or none"
        )
    if mark.named is None or not count:
        return None
    if mark.low < mark.high:
        return (
            f"{pixels(count)} lie within {100 * NEAR:g} % of the mark of missing pixels, {number(mark.named)}, and are "
            f"taken as missing; confirm it with {every}"
        )
    unable = "" if held(mark.named, dtype) is not None else f", and {dtype} cannot hold it"
    return (
        f"the mark of missing pixels is said to be {number(mark.named)}, no value equals it{unable}; {pixels(count)} "
        f"hold {number(mark.low, dtype)} and are taken as missing; confirm it with {every}"
    )


def of_scale(whose: str | None, scale: float, *, linear: bool) -> str:
    """What stands for 1.0."""
    if whose is None:
        return "1: floats are taken as they are"
    return f"{scale:g} stands for 1.0{' behind its gains and offsets' * linear} (from the {whose})"


def number(value: float, dtype: np.dtype[Any] = DOUBLE) -> str:
    """A number that reads back as itself into a type: whole ones in full."""
    if np.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{value:.0f}"
    return str(dtype.type(value)) if dtype.kind == "f" else repr(float(value))


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
    if np.allclose(np.asarray(found)[::-1], trained, rtol=0, atol=FAR_NANOMETRES):
        return f"{whose} bands are those of the network in reverse order: turn the cube around"
    return (
        f"{whose} bands lie up to {apart:.0f} nm from those that the network was made for "
        f"({trained[0]:g} to {trained[-1]:g} nm)"
    )


def axis_doubt(shape: Sequence[int], bands: int, told: bool | None) -> str | None:
    """Another axis may be the bands; `told` is False of a file that does not say, None where there is no file."""
    if told or (shape[0] == bands and (told is None or bands not in shape[1:])):
        return None
    if bands in shape[1:]:
        return f"another axis has the network's {bands} bands: is --layout right?"
    if told is None:
        return None
    return (
        f"no axis has the network's {bands} bands, and the file does not say which one is which: "
        f"{shape[0]} bands of {shape[1]} lines x {shape[2]} samples are read; say --layout"
    )
