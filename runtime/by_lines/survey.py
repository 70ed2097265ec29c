"""What the numbers of a product mean, whatever its size: judged on a sample, then held against every pixel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools
from runtime.errors import CubeError
from runtime.meaning import Asked, Meaning, words
from runtime.meaning.bands import FEWEST, FULL, HARDLY, LISTED, ONE_VALUE
from runtime.meaning.marks import marked, measured
from runtime.products.contract import CubeReader
from runtime.stated import Stated

SAMPLE_BYTES = 32 << 20
"""Of the cube from which its meaning is judged; smaller ones are looked at whole."""
BLOCK_BYTES = 16 << 20
"""Of a look at every pixel, at a time."""
PLACES = 16
"""From which lines of the sample are taken, spread evenly."""
ROUNDS = 3
"""Looks at every pixel: what they find beyond the sample is added to it, and judged again."""


class Judge(Protocol):
    """`runtime.bundle.meaning_for` of a manifest."""

    def __call__(
        self, cube: NDArray[Any], stated: Stated, asked: Asked, *, bad: Mapping[int, str] | None = None
    ) -> Meaning:
        """The meaning of a cube [bands, lines, samples]. Raises CubeError."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What was made of a product.

    Attributes:
        meaning: of its numbers; its `missing` is empty, see `of_lines`.
        missing: pixels that are missing, in all.
        fills: the network is to be given no holes.
    """

    meaning: Meaning
    missing: int
    fills: bool = False

    def of_lines(self, numbers: NDArray[Any], masked: Bools | None) -> tuple[Meaning, Bools | None]:
        """The meaning of some lines [bands, n, samples], of which the product masks some pixels [n, samples].

        Beside it holes that are to be filled, see `Meaning.holed`; None where none are.
        """
        if self.fills:
            return self.meaning.holed(numbers, masked)
        return replace(self.meaning, missing=missing_in(numbers, self.meaning, masked)), None


def missing_in(numbers: NDArray[Any], meaning: Meaning, masked: Bools | None) -> Bools:
    """Pixels [n, samples] of lines that a mask calls missing, or that are marked in a band that is not bad."""
    missing = np.zeros(numbers.shape[1:], np.bool_) if masked is None else masked.copy()
    if meaning.marks:
        for number, band in enumerate(numbers):
            if number not in meaning.bad:
                missing |= marked(band, meaning.marks)
    return missing


def survey(
    reader: CubeReader,
    judge: Judge,
    asked: Asked,
    tell: Callable[[int, int], None] | None = None,
    *,
    fills: bool = False,
) -> Survey:
    """Look at every pixel of a product.

    Args:
        reader: of it.
        judge: what makes a meaning of a cube.
        asked: what somebody says of its numbers.
        tell: called with (lines done, lines in all).
        fills: the network is to be given no holes.

    Raises:
        CubeError: as `meaning_of`, naming the file.
        CubeFileError: it cannot be read.
    """
    description = reader.description
    stated = replace(description.stated, radiance=description.quantity == "radiance", axes=True)
    try:
        sample = _sample(reader)
        bad: Mapping[int, str] | None = None
        for _ in range(ROUNDS):
            meaning = judge(sample, stated, asked, bad=bad)
            ends = _ends(sample, meaning)
            seen = _looked(reader, meaning, ends, tell, fills)
            found = _bad(seen, meaning, ends, constant=asked.constant_bands != "restore")
            agreed = found.keys() == meaning.bad.keys() and not seen.beyond(sample, meaning.bad)
            bad = found
            if agreed:
                meaning = meaning if found == meaning.bad else judge(sample, stated, asked, bad=bad)
                break
            sample = np.concatenate([sample, *seen.extremes()], axis=2)
        _refuse(seen, meaning, prod(description.shape[1:]))
    except CubeError as error:
        error.file = error.file or str(description.path)
        raise
    means = np.empty(len(sample), np.float32)
    for band, mean in enumerate(seen.means()):
        meaning.conversion.band_to_unit(band, np.array([mean]), means[band : band + 1])
    nothing = np.zeros((0, description.shape[2]), np.bool_)
    meaning = replace(meaning, means=means, missing=nothing)
    return Survey(meaning.without_lost() if fills else meaning, seen.missing, fills)


def steps(reader: CubeReader, most: int) -> list[tuple[int, int]]:
    """Lines of a product in blocks of at most about `most` bytes, each a multiple of its own where that fits."""
    bands, lines, samples = reader.description.shape
    line = bands * samples * reader.description.dtype.itemsize
    block = min(reader.description.block, lines)
    count = max(1, most // line)
    count = count // block * block if count >= block else count
    return [(start, min(start + count, lines)) for start in range(0, lines, count)]


def _sample(reader: CubeReader) -> NDArray[Any]:
    """Pixels [bands, 1, pixels] from all over a product that its mask does not call missing; all of few."""
    blocks = steps(reader, SAMPLE_BYTES // PLACES)
    lines = reader.description.shape[1]
    bytes_ = prod(reader.description.shape) * reader.description.dtype.itemsize
    if bytes_ > SAMPLE_BYTES:
        blocks = [blocks[int(place)] for place in np.linspace(0, len(blocks) - 1, min(PLACES, len(blocks)))]
    taken = []
    for start, stop in blocks:
        numbers, masked = reader.read_lines(start, stop), reader.missing(start, stop)
        taken.append(numbers.reshape(len(numbers), -1) if masked is None else numbers[:, ~masked])
    pixels = np.concatenate(taken, axis=1)
    if not pixels.shape[1]:
        where = "in the lines that were looked at" if bytes_ > SAMPLE_BYTES else f"in {lines} lines"
        raise CubeError(f"the mask calls every pixel {where} missing", key="mask", remedy="give a cube with data")
    return pixels[:, None]


@dataclass(eq=False)
class _Looked:
    """What a look at every pixel finds, band by band.

    Attributes:
        counts: values that are neither marked nor infinite nor NaN. same: those [bands, 2] that are the
            smallest, or the largest, of the sample.
        sums: of good bands, over the `pixels` that are not `missing`; over their own `counts` where what is missing
            `fills`, so that a pixel is missing only where all of them are.
        smallest, largest: values of a band; low, high: pixels [bands] that hold them.
        inside: pixels with a value in some band. wild: pixels with one that is not finite and not marked, `first` of
            them as (band, value).
    """

    counts: NDArray[np.int64]
    same: NDArray[np.int64]
    sums: NDArray[np.float64]
    smallest: NDArray[np.float64]
    largest: NDArray[np.float64]
    low: list[NDArray[Any] | None]
    high: list[NDArray[Any] | None]
    fills: bool
    pixels: int = 0
    inside: int = 0
    missing: int = 0
    wild: int = 0
    first: tuple[int, float] | None = None

    def means(self) -> NDArray[np.float64]:
        return self.sums / np.maximum(1, self.counts if self.fills else self.pixels)

    def beyond(self, sample: NDArray[Any], bad: Mapping[int, str]) -> bool:
        """Whether good bands hold values beyond those of the sample."""
        good = [band for band in range(len(sample)) if band not in bad and self.counts[band]]
        flat = sample[:, 0]
        with np.errstate(invalid="ignore"):
            return any(
                self.smallest[band] < np.fmin.reduce(flat[band]) or self.largest[band] > np.fmax.reduce(flat[band])
                for band in good
            )

    def extremes(self) -> list[NDArray[Any]]:
        """Pixels [bands, 1, 1] that hold the smallest and the largest value of some band."""
        return [pixel[:, None, None] for pixel in (*self.low, *self.high) if pixel is not None]


def _ends(sample: NDArray[Any], meaning: Meaning) -> NDArray[Any]:
    """The smallest and the largest measured value [bands, 2] of a sample; zeros of a band without any."""
    ends = np.zeros((len(sample), 2), sample.dtype)
    for number, band in enumerate(sample):
        values = measured(band, meaning.marks)
        if values.size:
            ends[number] = values.min(), values.max()
    return ends


def _looked(
    reader: CubeReader, meaning: Meaning, ends: NDArray[Any], tell: Callable[[int, int], None] | None, fills: bool
) -> _Looked:
    bands, lines, _ = reader.description.shape
    zeros = np.zeros(bands, np.int64)
    seen = _Looked(
        zeros, np.zeros((bands, 2), np.int64), np.zeros(bands), np.full(bands, np.inf), np.full(bands, -np.inf),
        [None] * bands, [None] * bands, fills,
    )  # fmt: skip
    for start, stop in steps(reader, BLOCK_BYTES):
        _look_at(reader.read_lines(start, stop), reader.missing(start, stop), meaning, ends, seen)
        if tell is not None:
            tell(stop, lines)
    return seen


def _look_at(numbers: NDArray[Any], masked: Bools | None, meaning: Meaning, ends: NDArray[Any], seen: _Looked) -> None:
    flat = numbers.reshape(len(numbers), -1)
    none = np.zeros(flat.shape[1], np.bool_) if masked is None else masked.reshape(-1)
    missing = np.ones_like(none) if seen.fills else none.copy()
    inside, wild = np.zeros_like(none), np.zeros_like(none)
    for number, band in enumerate(flat):
        out = marked(band, meaning.marks) | none
        if number not in meaning.bad:
            missing = missing & out if seen.fills else missing | out
        if band.dtype.kind == "f":
            unknown = ~np.isfinite(band) & ~out
            if number not in meaning.bad and unknown.any():
                wild |= unknown
                seen.first = seen.first or (number, float(band[unknown][0]))
            out |= unknown
        there = ~out
        inside |= there
        values = band[there]
        seen.counts[number] += values.size
        if not values.size:
            continue
        if seen.fills and number not in meaning.bad:
            seen.sums[number] += values.sum(dtype=np.float64)
        seen.same[number] += [np.count_nonzero(values == end) for end in ends[number]]
        for extreme, better, kept, pixels in (
            (int(values.argmin()), np.less, seen.smallest, seen.low),
            (int(values.argmax()), np.greater, seen.largest, seen.high),
        ):
            if better(values[extreme], kept[number]):
                kept[number] = values[extreme]
                pixels[number] = flat[:, np.flatnonzero(there)[extreme]].copy()
    there = ~missing
    if not seen.fills and (meaning.marks or masked is not None):
        for number, band in enumerate(flat):
            if number not in meaning.bad:
                seen.sums[number] += band[there].sum(dtype=np.float64)
    seen.pixels += int(there.sum())
    seen.missing += int(missing.sum())
    seen.inside += int(inside.sum())
    seen.wild += int(wild.sum())


def _bad(seen: _Looked, meaning: Meaning, ends: NDArray[Any], *, constant: bool) -> dict[int, str]:
    """{band: what is wrong with it}, as `runtime.meaning.bands.bad_bands` has it of a whole cube."""
    found = {band: why for band, why in meaning.bad.items() if why == LISTED}
    single = (seen.counts >= FEWEST) & (seen.same.max(axis=1) > FULL * seen.counts)
    for number, count in enumerate(seen.counts.tolist()):
        if number in found:
            continue
        if not count:
            found[number] = "without a single value"
        elif count < HARDLY * seen.inside and not seen.fills:
            found[number] = f"without a value in {100 * (1 - count / seen.inside):.0f} % of the pixels"
        elif constant and single[number] and not single.all():
            found[number] = f"{ONE_VALUE}, {ends[number, seen.same[number].argmax()]:g}"
    return found


def _refuse(seen: _Looked, meaning: Meaning, pixels: int) -> None:
    """Raise CubeError where values are not finite and nobody calls them missing, or nothing is left."""
    if seen.first is not None:
        raise CubeError(
            f"values are not finite in {words.pixels(seen.wild)}, the first in band {seen.first[0] + 1}",
            key="cube",
            value=f"{seen.first[1]:g}",
            remedy=f"where they are missing pixels say --ignore-value {seen.first[1]:g}, else leave those bands out",
        )
    if seen.missing == pixels:
        raise CubeError("every pixel is marked as missing", key="data ignore value", remedy="give a cube with data")
