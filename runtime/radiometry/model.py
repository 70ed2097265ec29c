"""Radiometry of one line at a time: everything that can be known beforehand is worked out once."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Bools, Float32
from runtime.errors import CubeError, InputError
from runtime.lines import LineFormat
from runtime.radiometry.bad_pixels import Replacements, replacements
from runtime.radiometry.calibration import Calibration
from runtime.radiometry.resampling import Resampling


class _Repair:
    """Replacements worked out from the raw line: sum over k of (raw[sources] - dark) * weights."""

    def __init__(
        self, made: Replacements, dtype: np.dtype[Any], dark: NDArray[Any] | None, factor: Float32 | float
    ) -> None:
        self.bands, self.samples, self.sources = made.bands, made.samples, made.sources
        self.dark = None if dark is None else dark.reshape(-1)[made.sources]
        by = factor.reshape(-1)[made.sources] if isinstance(factor, np.ndarray) else factor
        self.weights: Float32 = (made.weights * by).astype(np.float32)
        self.raw = np.empty(made.sources.shape, dtype)
        self.values: Float32 = np.empty(made.sources.shape, np.float32)
        self.total: Float32 = np.empty(made.bands.size, np.float32)


class Radiometry:
    """Raw lines to the network's unit range. It owns its scratch: one thread at a time.

    A line that is passed through unrestored has had the same radiometry: what `apply_line` gave is what is passed.

    Attributes:
        format: of the raw lines.
        scale: what was divided by; a result times `scale` is in the output's unit.
        saturation: DN, None where nobody knows.
        bad: bool [bands, samples], which elements are replaced.
        doubts: sentences on what in the files could not be taken as it stands.
    """

    def __init__(
        self,
        format: LineFormat,
        calibration: Calibration,
        facts: Mapping[str, str] | None = None,
        doubts: tuple[str, ...] = (),
    ) -> None:
        """Work out what can be worked out before the first line.

        Args:
            facts: what `describe` says.

        Raises:
            InputError: no element is good, or the saturation is beyond what the lines' type can hold.
        """
        self.format = format
        self.scale = calibration.scale
        self.saturation = calibration.saturation
        self.bad: Bools = np.zeros(format.shape, np.bool_) if calibration.bad is None else calibration.bad.copy()
        if self.bad.all():
            raise InputError("every pixel is bad", remedy="check the calibration files")
        self._facts = dict(facts or {})
        self.doubts = doubts
        self._digest = calibration.digest(format)
        # float32 holds every integer of 16 bits; wider ones would lose their last bits before the dark is gone.
        wide = format.dtype.kind in "iu" and format.dtype.itemsize > 2
        self._type: type[np.floating[Any]] = np.float64 if wide else np.float32
        factor = None if calibration.factor is None else np.broadcast_to(calibration.factor, format.shape)
        dark = None if calibration.dark is None else np.broadcast_to(calibration.dark, format.shape)
        self._dark = None if dark is None else np.where(self.bad, 0, dark).astype(self._type)
        # Divided rather than multiplied by 1 / scale, a plain line gets the very bits that `scaling.to_unit` gives.
        self._divisor = self._type(calibration.scale)
        self._factor = None if factor is None else np.where(self.bad, 1, factor / calibration.scale).astype(np.float32)
        self._line: Float32 = np.empty(format.shape, np.float32)
        self._limit = _limit(calibration.saturation, format.dtype)
        self._over: Bools = np.empty(format.shape, np.bool_)
        self._good: Bools = ~self.bad
        self._repair = None
        if self.bad.any():
            made = replacements(self.bad, calibration.method)
            by = 1 / float(self._divisor) if self._factor is None else self._factor
            self._repair = _Repair(made, format.dtype, self._dark, by)
        self._resampling = (
            None
            if calibration.smile is None and calibration.keystone is None
            else Resampling(format.shape, calibration.smile, calibration.keystone)
        )

    def apply_line(self, raw: NDArray[np.generic], out: Float32) -> None:
        """One line.

        Args:
            raw: C-contiguous [bands, samples] of the format's type; stays as it is.
            out: float32 [bands, samples], also a view into a frame, such as `frame[:, line]`.

        Raises:
            CubeError: an array is of another shape or type.
        """
        if raw.shape != self.format.shape or raw.dtype != self.format.dtype or not raw.flags.c_contiguous:
            raise _not_a_line("raw", raw, f"C-contiguous {self.format.dtype} {list(self.format.shape)}")
        if out.shape != self.format.shape or out.dtype != np.float32:
            raise _not_a_line("out", out, f"float32 {list(self.format.shape)}")
        # What floats hold beyond float32, or NaN and infinity, stays what it is; the line is flagged elsewhere.
        with np.errstate(over="ignore", invalid="ignore"):
            if self._resampling is None:
                self._straight(raw, out)
            else:
                self._straight(raw, self._line)
                self._resampling.apply(self._line, out)

    def _straight(self, raw: NDArray[Any], out: Float32) -> None:
        """All but smile and keystone; `out` may be the scratch line."""
        source: NDArray[Any] = raw
        if self._dark is not None:
            # Through the scratch line, since two passes over a strided `out` cost more than this.
            np.subtract(raw, self._dark, out=self._line, dtype=self._type, casting="same_kind")
            source = self._line
        if self._factor is None:
            np.divide(source, self._divisor, out=out, dtype=self._type, casting="same_kind")
        else:
            np.multiply(source, self._factor, out=out, dtype=self._type, casting="same_kind")
        if self._repair is not None:
            self._replace(raw, out, self._repair)

    def _replace(self, raw: NDArray[Any], out: Float32, repair: _Repair) -> None:
        # `clip` because any other mode has NumPy copy `out` first; all indices are within the line.
        np.take(raw.reshape(-1), repair.sources, out=repair.raw, mode="clip")
        values: Float32 = repair.values
        if repair.dark is None:
            np.multiply(repair.raw, repair.weights, out=values, dtype=self._type, casting="same_kind")
        else:
            np.subtract(repair.raw, repair.dark, out=values, dtype=self._type, casting="same_kind")
            np.multiply(values, repair.weights, out=values)
        np.sum(values, axis=0, out=repair.total)
        out[repair.bands, repair.samples] = repair.total

    def saturated(self, raw: NDArray[np.generic], mask: Bools | None = None) -> int:
        """How many good pixels of a raw line are at the detector's limit; 0 where nobody knows it.

        Args:
            raw: [bands, samples] of the format's type.
            mask: bool [bands, samples], filled where given: which values of the result draw on a saturated one, through
                the replacement of bad pixels, smile and keystone too.

        Raises:
            CubeError: an array is of another shape or type.
        """
        if raw.shape != self.format.shape or raw.dtype != self.format.dtype:
            raise _not_a_line("raw", raw, f"{self.format.dtype} {list(self.format.shape)}")
        if mask is not None and (mask.shape != self.format.shape or mask.dtype != np.bool_):
            raise _not_a_line("mask", mask, f"bool {list(self.format.shape)}")
        count = 0
        if self._limit is not None:
            np.greater_equal(raw, self._limit, out=self._over)
            if self._repair is not None:
                np.logical_and(self._over, self._good, out=self._over)
            count = int(np.count_nonzero(self._over))
        if mask is not None:
            if count:
                np.copyto(mask, self.drawn(self._over))
            else:
                mask.fill(False)
        return count

    def drawn(self, marked: Bools) -> Bools:
        """Which values of a result draw on marked elements of a line, by replacement, smile and keystone too.

        Args:
            marked: bool [bands, samples] of the line; bad elements do not count, and it may be written into.

        Returns:
            bool [bands, samples], perhaps `marked` itself.
        """
        if self._repair is not None:
            np.logical_and(marked, self._good, out=marked)
            of_bad = marked.reshape(-1)[self._repair.sources].any(axis=0)
            marked[self._repair.bands, self._repair.samples] = of_bad
        return marked if self._resampling is None else self._resampling.touched(marked)

    def needed(self, wanted: Bools) -> Bools:
        """Which elements of a line the `wanted` values of its result draw on, none of them bad.

        Args:
            wanted: bool [bands, samples].

        Returns:
            bool [bands, samples], a new array.
        """
        found = wanted.copy() if self._resampling is None else self._resampling.needed(wanted)
        if self._repair is not None:
            replaced = found[self._repair.bands, self._repair.samples]
            found &= self._good
            found.reshape(-1)[self._repair.sources[:, replaced]] = True
        return found

    def tables(self) -> list[NDArray[Any]]:
        """The arrays that lines are worked out with; nothing writes to them."""
        found = [self.bad, self._good, self._dark, self._factor]
        if (repair := self._repair) is not None:
            found += [repair.bands, repair.samples, repair.sources, repair.dark, repair.weights]
        if self._resampling is not None:
            found += [self._resampling.sources, self._resampling.weights]
        return [table for table in found if table is not None]

    def describe(self) -> dict[str, str]:
        """What is done and with which files, for people and logs."""
        return {**self._facts, "digest": self._digest}

    def digest(self) -> str:
        """SHA-256 of all that determines the result, see `Calibration.digest`."""
        return self._digest


def _limit(saturation: float | None, dtype: np.dtype[Any]) -> np.generic | None:
    """The lowest saturated value in the lines' own type, so that comparing converts nothing."""
    if saturation is None:
        return None
    if dtype.kind == "f":
        limit: np.generic = dtype.type(saturation)
        return limit
    bounds = np.iinfo(dtype)
    if not bounds.min < saturation <= bounds.max:
        raise InputError(
            f"no value of type {dtype} can be just below and at it",
            key="radiometry.saturation",
            value=saturation,
            remedy=f"give a number above {bounds.min} and up to {bounds.max}",
        )
    whole: np.generic = dtype.type(math.ceil(saturation))
    return whole


def _not_a_line(key: str, array: NDArray[Any], wanted: str) -> CubeError:
    found = f"{array.dtype} {list(array.shape)}" + ("" if array.flags.c_contiguous else ", not C-contiguous")
    return CubeError("is not the array it should be", key=key, value=found, remedy=f"give {wanted}")
