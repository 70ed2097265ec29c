"""From numbers to the unit range: which scale or gains hold, and whether they fit what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeError
from runtime.meaning.marks import SAMPLED, Mark, measured
from runtime.scaling import Conversion, Doubles
from runtime.stated import Stated

UNIT_LIMIT = 4.0
"""In the unit range values reach this at most, or somebody took another scale."""
OFTEN = 2.0
"""Where one in a hundred lies beyond, it is no glint: a sensor of more bits than somebody said."""
DIM_SHARE = 0.1
"""Below this share of a scale that nobody said for these numbers, it may be another sensor's."""
USUAL = (100, 255, 1000, 4095, 10000, 65535)
"""What stands for 1.0 in most cubes."""
BRIGHT = 99
"""Percentile of a band's values that is taken for its brightest."""
BRIGHTEST = "brightest band"
"""What tells the scale of radiance that nobody said one for."""
DARK = 0.01
"""What reaches no more than this behind a factor, and more before it, has gone through it already."""


@dataclass(frozen=True)
class Asked:
    """What somebody asks for, above what the file states.

    Attributes:
        scale: number that stands for 1.0.
        marks: values that mark missing pixels, possibly NaN; none at all where it is empty.
        constant_bands: bands of one value are left out, which is told unless it is asked for, or `restore`d.
        by_wavelength: the network sees bands in the order of their wavelengths, where these are known.
    """

    scale: float | None = None
    marks: tuple[float, ...] | None = None
    constant_bands: Literal["leave", "restore"] | None = None
    by_wavelength: bool = False


@dataclass(frozen=True)
class Known:
    """What the network's side knows.

    Attributes:
        whose: `bundle` or `model`, for people.
        scale: number that stands for 1.0 in integers that nobody else tells of.
        wavelengths: of its bands in nm.
        bands: that it takes.
        fills: it is to be given no holes, see `runtime.signature`.
    """

    whose: str = "bundle"
    scale: float | None = None
    wavelengths: Sequence[float] | None = None
    bands: int | None = None
    fills: bool = False


@dataclass(frozen=True, eq=False)
class Values:
    """Measured values of a cube, from which its scale is judged.

    Attributes:
        bands: {band: float64, some of its values, its smallest and its largest one}.
        floats: the cube holds floats.
    """

    bands: Mapping[int, Doubles]
    floats: bool

    @classmethod
    def of(cls, cube: NDArray[Any], marks: Sequence[Mark], bad: Mapping[int, str]) -> "Values":
        """Of a cube [bands, lines, samples]."""
        step = max(1, cube.size // SAMPLED)
        taken = {}
        for number, band in enumerate(cube):
            values = measured(band, marks) if number not in bad else np.empty(0)
            if values.size:
                some = values[number % step :: step]
                taken[number] = np.concatenate([some, [values.min(), values.max()]]).astype(np.float64)
        return cls(taken, cube.dtype.kind == "f")

    def reach(self, conversion: Conversion) -> "Reach":
        """How far they reach in the unit range."""
        units = []
        for band, values in self.bands.items():
            out = np.empty(values.shape)
            conversion.band_to_unit(band, values, out)
            units.append(out)
        every = np.concatenate(units)
        middle, bright = np.percentile(np.abs(every), (50, 99))
        return Reach(float(every.min()), float(middle), float(bright), float(every.max()))


class Reach(NamedTuple):
    """Smallest value, median and 99 % of the amounts, largest value."""

    low: float
    middle: float
    bright: float
    high: float


def of_numbers(
    dtype: np.dtype[Any], bands: int, stated: Stated, asked: Asked, known: Known
) -> tuple[str | None, Conversion, list[str]]:
    """Who tells the scale, what it is, and what is to be said of it.

    Raises:
        CubeError: nobody tells one for integers, or the file contradicts itself.
    """
    key, gains, offsets = _gains(stated)
    if stated.radiance and asked.scale is None:
        return BRIGHTEST, Conversion(1.0, gains, offsets), []
    linear = gains is not None or offsets is not None
    alike = Conversion(1.0, gains, offsets).alike
    if asked.scale is not None:
        if not linear or alike:
            told = (
                [] if gains is None or np.isclose(gains[0] * asked.scale, 1) else [f"the file's {key} are not applied"]
            )
            return "flag", Conversion(asked.scale), told
        return (
            "flag",
            Conversion(asked.scale, gains, offsets),
            [f"{asked.scale:g} stands for 1.0 behind the file's {key}"],
        )
    if linear:
        agrees = alike and offsets is None and gains is not None
        if stated.scale is not None and not (agrees and gains is not None and np.isclose(gains[0] * stated.scale, 1)):
            raise CubeError(
                f"the file states {key} and a reflectance scale factor, which are not one and the same",
                key=key,
                value=f"{stated.scale:g}",
                remedy="delete the one that is not meant from the header, or say --scale",
            )
        return "file", Conversion(1.0, gains, offsets), [f"numbers are converted by the file's {key}"]
    if stated.scale is not None:
        return "file", Conversion(stated.scale), []
    if dtype.kind == "f":
        return None, Conversion(), []
    if known.scale is None:
        raise CubeError(
            f"a cube of integers needs a scale, and neither flag, file nor {known.whose} tells one",
            key="scale",
            remedy="say which digital number stands for 1.0, for example --scale 4095",
        )
    return known.whose, Conversion(known.scale), []


def _gains(stated: Stated) -> tuple[str, Doubles | None, Doubles | None]:
    """The header key, gains and offsets that do something. Raises CubeError where there are two pairs of them."""
    pairs = {
        "data gain values": (stated.gains, stated.offsets),
        "data reflectance gain values": (stated.reflectance_gains, stated.reflectance_offsets),
    }
    found = []
    for key, (gains, offsets) in pairs.items():
        does = [
            None if values is None or all(v == nothing for v in values) else np.array(values, np.float64)
            for values, nothing in ((gains, 1), (offsets, 0))
        ]
        if any(values is not None for values in does):
            found.append((key if does[0] is not None else key.replace("gain", "offset"), does[0], does[1]))
    if len(found) > 1:
        raise CubeError(
            "the file states two sets of gains",
            key=" and ".join(key for key, _, _ in found),
            remedy="delete the one that is not meant from the header",
        )
    return found[0] if found else ("", None, None)


def by_brightest(conversion: Conversion, values: Values) -> Conversion:
    """Radiance by what its brightest band reaches, to three digits. Raises CubeError where nothing is bright."""
    reached = []
    for band, some in values.bands.items():
        out = np.empty(max(1, len(some) - 2))
        conversion.band_to_unit(band, some[: len(out)], out)
        reached.append(float(np.percentile(out, BRIGHT)))
    return replace(conversion, scale=float(f"{max(reached):.3g}"))


def judged(
    whose: str | None, conversion: Conversion, values: Values, stated: Stated, known: Known
) -> tuple[Conversion, str | None]:
    """The conversion that fits the numbers, and a doubt.

    Raises:
        CubeError: they lie far outside the unit range, or seem to have been converted already.
    """
    if whose == BRIGHTEST:
        return conversion, None
    found, plain = values.reach(conversion), values.reach(Conversion())
    often = min(found.bright, found.high) > OFTEN
    linear = conversion.gains is not None or conversion.offsets is not None
    key = _gains(stated)[0] if linear else "reflectance scale factor" if whose == "file" else "scale"
    low = f"values reach down to {found.low:.4g}: if they mark missing pixels, say --ignore-value"
    if whose == "flag":
        if conversion.scale == 1 and not linear:
            # They are to be taken as they are.
            return conversion, None
        if often or found.bright < DARK:
            return conversion, f"values reach {found.high:.2g} times what --scale says stands for 1.0"
        return conversion, low if found.low < -UNIT_LIMIT else None
    value = None if linear else f"{conversion.scale:g}"
    fits = values.floats and DARK < plain.bright <= UNIT_LIMIT
    if whose == "file" and fits and not plain.bright / 10 < found.bright <= UNIT_LIMIT:
        raise CubeError(
            f"the numbers reach {plain.high:.4g}, and by the file's {key} {found.high:.2g}: they seem to be converted "
            "already",
            key=key,
            value=value,
            remedy=f"delete {key} from the header, if they are"
            if linear
            else f"say --scale 1 if they are, --scale {value} if not",
        )
    if whose == "file" and not linear and conversion.scale < 1 and found.middle > UNIT_LIMIT:
        turned = Conversion(1 / conversion.scale)
        if values.reach(turned).high <= UNIT_LIMIT:
            return turned, (
                f"the file's reflectance scale factor {conversion.scale:g} is taken as a multiplier; say --scale "
                f"{turned.scale:g} if that is right"
            )
    if found.middle > UNIT_LIMIT:
        whole = f"by the file's {key}" if whose == "file" else f"by the {whose}'s scale" if whose else "as they are"
        # In place of one gain for all bands a flag is of the numbers as they stand.
        high = plain.high if linear and conversion.alike else found.high
        example = next((f"{usual}" for usual in USUAL if high <= 1.3 * usual), f"{high:.4g}")
        raise CubeError(
            f"the numbers reach {found.high:.4g} where 1.0 is expected, {whole}",
            key=key,
            value=value,
            remedy=f"say which number stands for 1.0, such as --scale {example}, or --scale 1 to take them as they are",
        )
    if found.high > UNIT_LIMIT or often:
        return conversion, (
            f"values reach {found.high:.4g} where 1.0 is expected: if another number stands for it, say --scale"
        )
    if found.low < -UNIT_LIMIT:
        return conversion, low
    # Cameras of 12 bits write files of 16.
    if found.high < DIM_SHARE and (
        whose == known.whose or (stated.photograph and conversion.scale > 255 and found.high > 0)
    ):
        return conversion, (
            f"the largest number is {plain.high:g}, {100 * found.high:.2g} % of the {whose}'s scale "
            f"{conversion.scale:g}; if this sensor has another scale, say it: --scale"
        )
    return conversion, None
