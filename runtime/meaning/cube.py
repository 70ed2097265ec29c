"""The meaning of one cube: what was asked for, stated, known and seen, put together."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools, Float32
from runtime.errors import CubeError
from runtime.files.envi_text import CONVERTING
from runtime.meaning import words
from runtime.meaning.bands import LISTED, bad_bands, bridged, stays
from runtime.meaning.doubtful import doubtful
from runtime.meaning.marks import Mark, marked, seen_marks, told_mark
from runtime.meaning.numbers import BRIGHTEST, Asked, Known, Values, by_brightest, judged, of_numbers
from runtime.scaling import Conversion, next_to
from runtime.stated import NOTHING, Stated

Number = TypeVar("Number", bound=np.generic)
BLOCK = 1 << 18
"""Numbers that are converted at a time: what they take on their way does not grow with the cube."""


@dataclass(frozen=True, eq=False)
class Meaning:
    """What the numbers of a cube mean.

    Attributes:
        conversion: to the unit range and back.
        scale_from: who told it: `flag`, `file`, `bundle` or `model`, of radiance its `brightest band`; None for floats
            that are taken as they are.
        marks: of missing values.
        bad: {band, from 0: why} of those that no network should see.
        missing: bool [lines, samples], pixels that are marked in a band that is not bad.
        wavelengths: nm, None where nobody tells them.
        order: bands in the order in which the network sees them; None for their own.
        means: float32 [bands], what the network sees in missing pixels; None for the mean of the others.
        lost: {band, from 0: why} of bad ones that are made up, see `holed`.
        constant: what somebody asks for bands of one value.
        notes: what was made of it, for people.
        doubts: what a person should read before trusting the result.
    """

    conversion: Conversion
    scale_from: str | None
    marks: tuple[Mark, ...]
    bad: Mapping[int, str]
    missing: Bools
    wavelengths: tuple[float, ...] | None
    order: tuple[int, ...] | None = None
    means: Float32 | None = None
    lost: Mapping[int, str] = field(default_factory=dict)
    constant: str | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def holed(self, cube: NDArray[Any], masked: Bools | None = None) -> "tuple[Meaning, Bools]":
        """The meaning to a network that is to be given no holes, and where these are.

        Pixels stay missing that are masked or of which nothing is known; of bad bands see `without_lost`.

        Args:
            cube: [bands, lines, samples].
            masked: bool [lines, samples], pixels that are missing whatever they hold.

        Returns:
            (the other meaning, bool [bands, lines, samples]: what no value stands for, bad bands throughout).
        """
        holes = np.zeros(cube.shape, np.bool_)
        gone = np.ones(cube.shape[1:], np.bool_)
        unseen = {**self.bad, **self.lost}
        for number, band in enumerate(cube):
            if number not in unseen:
                holes[number] = marked(band, self.marks)
                gone &= holes[number]
        if masked is not None:
            gone |= masked
        holes &= ~gone
        holes[list(unseen)] = True
        return replace(self.without_lost(), missing=gone), holes

    def without_lost(self) -> "Meaning":
        """The same, where bad bands that nobody wants left as they are (`bands.stays`) are lost."""
        unseen = {**self.bad, **self.lost}
        told = {band: why for band, why in unseen.items() if stays(why, self.constant)}
        return replace(self, bad=told, lost={band: why for band, why in unseen.items() if band not in told})

    def unit(self, cube: NDArray[Any], holes: Bools | None = None) -> Float32:
        """What the network sees of a cube [bands, lines, samples]: float32 in the unit range, nothing missing in it.

        Missing pixels hold the mean of the others, band by band; bad bands lie on a line over wavelength through the
        good ones beside them. Bands are in the network's `order`.

        Args:
            cube: the cube.
            holes: from `holed`; they hold zero, except in bands that stay bad.
        """
        unit, unseen = self.conversion.to_unit(cube), {*self.bad, *self.lost}
        some, means = self.missing.any(), self.means
        for number, band in enumerate(unit):
            if number in unseen:
                continue
            if holes is not None:
                band[holes[number]] = 0
            if some and means is None:
                there = ~self.missing if holes is None else ~(self.missing | holes[number])
                band[self.missing] = band[there].mean(dtype=np.float64) if there.any() else 0
            elif some and means is not None:
                band[self.missing] = means[number]
        seen, places = self.ordered(unit), self.order or range(len(unit))
        bridged(seen, {place for place, number in enumerate(places) if number in unseen}, self.centres)
        seen[[place for place, number in enumerate(places) if number in self.lost]] = 0
        return seen

    def ordered(self, array: NDArray[Number]) -> NDArray[Number]:
        """An array [bands, ...] as the network sees its bands."""
        return array if self.order is None else array[list(self.order)]

    @property
    def centres(self) -> tuple[float, ...] | None:
        """Wavelengths of the bands as the network sees them."""
        told = self.wavelengths
        return told if told is None or self.order is None else tuple(told[number] for number in self.order)

    def given_back(
        self, restored: Float32, source: NDArray[Any], *, clip: bool, unit: bool, in_place: bool = False
    ) -> tuple[NDArray[Any], int, int]:
        """A restored unit cube as its user gets it: in the source's type and numbers, what was missing as it was.

        Args:
            restored: float32 [bands, lines, samples] in the unit range, bands in the network's order.
            source: the cube that was restored.
            clip: clip to [0, 1] first.
            unit: stay in the unit range as float32; what is missing is converted too, but a mark stays itself.
            in_place: put it into `source`, unless it is to be in the unit range.

        Returns:
            (cube, values set to a limit of the type, values moved away from a mark that they happened to equal).
        """
        out = np.empty(restored.shape, np.float32) if unit else source if in_place else np.empty_like(source)
        back = Conversion() if unit else self.conversion
        saturated = moved = 0
        for number, values in zip(self.order or range(len(restored)), restored, strict=True):
            for lines in _blocks(values):
                block = out[number, lines]
                stays = np.ones(block.shape, np.bool_) if number in self.bad else self.missing[lines]
                kept = self.as_it_was(number, source[number, lines][stays], unit=unit)
                made = np.clip(values[lines], 0, 1) if clip else values[lines]
                saturated += back.band_to_numbers(number, made, block)
                moved += self._off_marks(block, ~stays)
                block[stays] = kept
        return out, saturated, moved

    def _off_marks(self, band: NDArray[Any], made: Bools) -> int:
        """Move what the network made away from the marks; how many there were."""
        moved = 0
        for mark in self.marks:
            if math.isnan(mark.low):
                continue
            equal = mark.found(band) & made
            if equal.any():
                moved += int(np.count_nonzero(equal))
                band[equal] = next_to(band.dtype.type(mark.high))
        return moved

    def as_it_was(self, number: int, values: NDArray[Any], *, unit: bool) -> NDArray[Any]:
        """Values of a band that no network saw, in the numbers that are given: a mark stays itself."""
        if not unit:
            return values
        converted = np.empty(values.shape, np.float32)
        self.conversion.band_to_unit(number, values, converted)
        found = marked(values, self.marks)
        converted[found] = values[found]
        return converted


def _blocks(band: NDArray[Any]) -> Iterator[slice]:
    """Lines of a band [lines, samples] that are worked on at a time."""
    step = max(1, BLOCK // band.shape[1])
    yield from (slice(first, first + step) for first in range(0, len(band), step))


def header_fields(meaning: Meaning, source: NDArray[Any], *, unit: bool) -> dict[str, str | None]:
    """ENVI header fields that say what restored numbers are, where the source's do not: None drops one.

    Args:
        meaning: of the source.
        source: its cube.
        unit: the numbers are in the unit range.
    """
    fields: dict[str, str | None] = dict.fromkeys(CONVERTING) if unit else {}
    made = meaning.conversion
    if not unit and made.gains is None and made.offsets is None and meaning.scale_from in ("flag", "file"):
        fields = {**dict.fromkeys(CONVERTING), CONVERTING[0]: None if made.scale == 1 else f"{made.scale:.15g}"}
    marks = [mark for mark in meaning.marks if any(bool(mark.found(band).any()) for band in source)]
    if marks:
        fields["data ignore value"] = repr(marks[0].value)
    if any(why != LISTED for why in meaning.bad.values()):
        fields["bbl"] = "{" + ", ".join(str(int(band not in meaning.bad)) for band in range(len(source))) + "}"
    return fields


def meaning_of(
    cube: NDArray[Any],
    stated: Stated = NOTHING,
    asked: Asked | None = None,
    known: Known | None = None,
    *,
    bad: Mapping[int, str] | None = None,
) -> Meaning:
    """What the numbers of a cube mean.

    Args:
        cube: [bands, lines, samples] of real numbers.
        stated: by its file.
        asked: by who wants it restored; above all else.
        known: by the network's side.
        bad: bad bands, where the cube is a sample of one whose every pixel was looked at for them.

    Raises:
        CubeError: there is no single reading, each with what to say: a scale is missing, or does not fit the numbers;
            values are not finite and nobody calls them missing; nothing is left.
    """
    asked, known = asked or Asked(), known or Known()
    if cube.dtype.kind not in "iuf":
        raise CubeError("not a cube of real numbers", key="cube", value=cube.dtype, remedy="give integers or floats")
    marks, looked = look(cube, stated, asked, fills=known.fills)
    bad = looked if bad is None else bad
    if len(bad) == len(cube):
        problem = "every pixel is marked as missing" if marks else "no band holds data"
        raise CubeError(problem, key="cube", value=words.bands(bad), remedy="give a cube with data")
    missing, counts = _missing(cube, marks, bad)
    if missing.all() and not (known.fills and _something(cube, marks, bad)):
        raise CubeError("every pixel is marked as missing", key="data ignore value", remedy="give a cube with data")
    of_bad, bad_doubts = words.of_bad(bad, constant=asked.constant_bands, fills=known.fills)
    whose, conversion, notes = of_numbers(cube.dtype, len(cube), stated, asked, known)
    values = Values.of(cube, marks, bad)
    if whose == BRIGHTEST:
        conversion = by_brightest(conversion, values)
    told = stated.wavelengths
    order = tuple(int(band) for band in np.argsort(told, kind="stable")) if told and asked.by_wavelength else None
    if order == tuple(range(len(cube))):
        order = None
    conversion, doubt = judged(whose, conversion, values, stated, known)
    return Meaning(
        conversion,
        whose,
        tuple(marks),
        bad,
        missing,
        told,
        order,
        constant=asked.constant_bands,
        notes=(*notes, *of_bad),
        doubts=tuple(
            filter(
                None,
                (
                    *stated.doubts,
                    *words.of_marks(marks, counts, cube.dtype),
                    *bad_doubts,
                    *([] if stated.photograph else doubtful(cube, marks, bad, missing, values, asked)),
                    doubt,
                    words.axis_doubt(cube.shape, known.bands, stated.axes) if known.bands else None,
                    words.wavelength_doubt("the file's", sorted(told) if told and order else told, known.wavelengths),
                ),
            )
        ),
    )


def _something(cube: NDArray[Any], marks: Sequence[Mark], bad: Collection[int]) -> bool:
    """Whether something of a good band is not marked."""
    return any(not marked(band, marks).all() for number, band in enumerate(cube) if number not in bad)


def look(cube: NDArray[Any], stated: Stated, asked: Asked, *, fills: bool = False) -> tuple[list[Mark], dict[int, str]]:
    """The marks of a cube [bands, lines, samples], told and seen, and its bad bands; for `fills` see `bad_bands`."""
    marks = _told_marks(cube, stated, asked)
    constant = asked.constant_bands == "leave" if stated.photograph else asked.constant_bands != "restore"
    wanted = asked.marks != () and not stated.photograph
    while True:
        # Bands first: one of a single far value is a bad band, not a mark. Then again, behind the marks.
        bad = bad_bands(cube, marks, stated.bad, constant=constant, fills=fills)
        looked = np.array([band not in bad for band in range(len(cube))])
        seen = seen_marks(cube, marks, looked) if looked.any() and wanted else []
        new = [mark for mark in seen if mark not in marks]
        if not new:
            return marks, bad
        marks += new


def _told_marks(cube: NDArray[Any], stated: Stated, asked: Asked) -> list[Mark]:
    if asked.marks is not None:
        return [told_mark(cube, mark, "flag", None) for mark in asked.marks]
    return [told_mark(cube, mark, "file", stated.scale) for mark in stated.marks]


def _missing(cube: NDArray[Any], marks: Sequence[Mark], bad: Mapping[int, str]) -> tuple[Bools, list[int]]:
    """Pixels that are marked in a good band, and how many hold each mark in any.

    Raises:
        CubeError: values are not finite, and nobody called them missing.
    """
    found = np.zeros((len(marks), *cube.shape[1:]), np.bool_)
    anywhere = np.zeros_like(found)
    wild = np.zeros(cube.shape[1:], np.bool_)
    first: tuple[int, float] | None = None
    for number, band in enumerate(cube):
        for mark, pixels in zip(marks, anywhere, strict=True):
            pixels |= mark.found(band)
        if number in bad:
            continue
        for mark, pixels in zip(marks, found, strict=True):
            pixels |= mark.found(band)
        if band.dtype.kind == "f":
            unknown = ~np.isfinite(band) & ~marked(band, marks)
            if unknown.any():
                wild |= unknown
                first = first or (number, float(band[unknown][0]))
    if first is not None:
        known = [mark.value for mark in marks]
        raise CubeError(
            f"values are not finite in {words.pixels(int(wild.sum()))}, the first in band {first[0] + 1}",
            key="cube",
            value=f"{first[1]:g}",
            remedy=f"where they are missing pixels say {words.flags([first[1], *known], cube.dtype)}, else leave those "
            "bands out",
        )
    missing: Bools = np.asarray(found.any(axis=0))
    return missing, [int(np.count_nonzero(pixels)) for pixels in anywhere]
