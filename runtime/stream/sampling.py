"""What the numbers of a source mean, before its first line is taken: by what it states, and by some of its lines."""

from dataclasses import dataclass, replace

import numpy as np

from runtime.errors import CubeError
from runtime.meaning import Asked, Known, Mark, look, words
from runtime.meaning.bands import LISTED, stays
from runtime.meaning.doubtful import doubtful
from runtime.meaning.marks import marked
from runtime.meaning.numbers import BRIGHTEST, Values, by_brightest, judged, of_numbers
from runtime.scaling import Conversion
from runtime.sources import Source

DROPPED = "a frame that holds one is dropped, unless stream.radiometry.bad_pixels names it"


@dataclass(frozen=True, eq=False)
class SourceMeaning:
    """See `runtime.meaning.Meaning`; of a source that shows no line beforehand only what is stated is known."""

    conversion: Conversion
    scale_from: str | None
    marks: tuple[Mark, ...]
    bad: dict[int, str]
    lost: tuple[int, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]


def source_meaning(
    source: Source,
    asked: Asked,
    scale: float | None,
    *,
    converts: bool,
    keeps: bool = True,
    saturation: float | None = None,
    fills: bool = False,
) -> SourceMeaning:
    """What a source's numbers mean.

    Args:
        source: open.
        asked: above all else.
        scale: the bundle's.
        converts: its numbers go to the unit range as they are, by a scale or gains; else radiometry makes them others.
        keeps: missing values may stay in what is restored; else their frames are dropped.
        fills: the network is to be given no holes.
        saturation: digital number at which the detector is at its limit, which is no mark of missing values.

    Raises:
        CubeError: as `runtime.meaning.meaning_of`.
    """
    format = source.format
    told = () if format.ignore_value is None else (format.ignore_value,)
    stated = replace(source.stated, scale=format.scale, marks=told, wavelengths=format.wavelengths)
    known = Known("bundle", scale)
    sample = source.sample()
    doubts = list(stated.doubts)
    if sample is None:
        flagged = asked.marks is not None
        marks = [
            Mark(m, m, "flag" if flagged else "file") for m in (stated.marks if asked.marks is None else asked.marks)
        ]
        bad = dict.fromkeys(stated.bad, LISTED)
    else:
        marks, bad = look(sample, stated, asked, fills=fills)
        marks = [mark for mark in marks if not at_limit(mark, saturation)]
        found = [np.logical_or.reduce([mark.found(band) for band in sample]) for mark in marks]
        seen = words.of_marks(marks, [int(np.count_nonzero(pixels)) for pixels in found], sample.dtype)
        values = Values.of(sample, marks, bad)
        if values.bands and not stated.photograph:
            missing = np.logical_or.reduce([np.zeros(sample.shape[1:], np.bool_), *found])
            seen += doubtful(sample, marks, bad, missing, values, asked)
        doubts += [f"of {sample.shape[1]} lines looked at, {text}" for text in seen]
        if not keeps and any(pixels.any() for pixels in found):
            doubts.append(f"what is restored has no place for missing pixels: {DROPPED}")
        doubts += words.of_bad(bad, constant=asked.constant_bands, fills=fills)[1]
        good = np.setdiff1d(np.arange(format.bands), list(bad))
        wild = ~np.isfinite(sample[good]) & ~marked(sample[good], marks)
        if wild.any():
            doubts.append(
                f"{int(wild.any(axis=(0, 2)).sum())} of {sample.shape[1]} lines looked at hold values that are not "
                "finite: "
                + (
                    "they pass unrestored; where they are missing pixels, say "
                    + words.flags([float("nan"), *(mark.value for mark in marks)], sample.dtype)
                    if keeps
                    else DROPPED
                )
            )
        if len(bad) == format.bands:
            raise CubeError(
                "no band holds data", key="--source", value=words.bands(bad), remedy="give a source with data"
            )
    whose: str | None = None
    conversion, notes = Conversion(), list[str]()
    if converts:
        whose, conversion, notes = of_numbers(format.dtype, format.bands, stated, asked, known)
        if sample is not None and values.bands:
            if whose == BRIGHTEST:
                conversion = by_brightest(conversion, values)
            conversion, doubt = judged(whose, conversion, values, stated, known)
            doubts += [doubt] if doubt else []
    elif any((stated.gains, stated.offsets, stated.reflectance_gains, stated.reflectance_offsets)):
        doubts.append(
            "the source's gains and offsets are not applied: radiometry takes its numbers as they are recorded"
        )
    notes += words.of_bad(bad, constant=asked.constant_bands, fills=fills)[0]
    stay, lost = bad, tuple[int, ...]()
    if source.several:
        # What follows may have other bands; they are looked at frame by frame.
        stay = {band: why for band, why in bad.items() if why == LISTED}
    elif fills:
        stay = {band: why for band, why in bad.items() if stays(why, asked.constant_bands)}
        lost = tuple(bad.keys() - stay.keys())
    return SourceMeaning(conversion, whose, tuple(marks), stay, lost, tuple(notes), tuple(doubts))


def at_limit(mark: Mark, saturation: float | None) -> bool:
    """Whether a mark that nobody named is what the detector gives at its limit."""
    return mark.whence == "data" and saturation is not None and mark.low <= saturation <= mark.high
