"""Calibration files: one number per detector element, per band or per sample, in ENVI or .npy."""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.envi import read_header, read_lines
from runtime.files.envi_header import EnviHeader, wavelengths_nm
from runtime.lines import LineFormat
from runtime.radiometry.bad_pixels import Doubles, is_plateau
from runtime.radiometry.settings import SECTION

Axis = Literal["bands", "samples"]

NPY_HEADER = 10_000
BLOCK = 16 << 20
"""Bytes of a recording that are read at once."""
FAR = 0.05
"""Share of the spectral range by which a file's wavelengths may differ from the lines': a calibration moves them by
less, another camera or a flipped axis by more."""


@dataclass(frozen=True, eq=False)
class DetectorImage:
    """One number per detector element.

    Attributes:
        values: [bands, samples]; NaN where there is no number, or the file says so (`data ignore value`).
        saturated: [bands, samples], share of the lines in which it is at the detector's limit.
        scatter: [bands, samples], standard deviation from line to line; NaN where it is not known, 0 for a single line.
        lines: how many lines they are the mean of.
        levels: [lines], mean of each of them.
        listed: bands that its file calls bad, from 0.
    """

    values: Doubles
    saturated: Doubles
    scatter: Doubles
    lines: int
    levels: Doubles
    listed: tuple[int, ...] = ()

    @property
    def noise(self) -> float | None:
        """Median of the scatter over the elements, None for a single line."""
        known = self.scatter[np.isfinite(self.scatter)]
        return float(np.median(known)) if self.lines > 1 and known.size else None

    @property
    def noise_of_mean(self) -> Doubles:
        """That of the values, [bands, 1]: the median over the samples."""
        noise: Doubles = np.median(np.nan_to_num(self.scatter), axis=1, keepdims=True) / math.sqrt(self.lines)
        return noise


def read_detector_image(
    path: Path, format: LineFormat, key: str, *, averaged: bool = False, limit: float | None = None
) -> DetectorImage:
    """Read what belongs to the detector, in one of three layouts.

    ENVI of `bands` bands and `samples` samples: lines as the camera records them. ENVI of one band, with `bands` lines
    and `samples` samples: an image of the detector, or several below each other. `.npy` [bands, samples].

    Args:
        format: of the lines.
        key: of the configuration, for errors.
        averaged: a recording of several lines or images is averaged; otherwise it must have one.
        limit: at which the detector saturates; that of the file's own type holds in any case, and so does a plateau.

    Raises:
        CubeFileError: the file is damaged, of another shape, or from a camera with other wavelengths.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        values = _read_npy(path, format, key)
        if values.shape != format.shape:
            turned = values.shape == format.shape[::-1]
            problem = "is [samples, bands]" if turned else "has not the shape of the detector"
            raise refused(problem, path, key, _what_fits(format, averaged), list(values.shape))
        return _mean([values], 1, limit, None)
    if suffix in (".npz", ".mat"):
        raise refused("is not a format of calibration files", path, key, _what_fits(format, averaged), suffix)
    header = read_header(path)
    gains, offsets = (header.gains, header.reflectance_gains), (header.offsets, header.reflectance_offsets)
    if any(set(values or ()) - {nothing} for both, nothing in ((gains, 1.0), (offsets, 0.0)) for values in both):
        remedy = "write it with its gains applied, or delete them where the numbers have them already"
        raise refused("states gains or offsets, which are not applied here", path, key, remedy)
    if header.reflectance_scale_factor not in (None, 1.0, format.scale):
        remedy = "delete it from the header if the numbers are counts as the camera gives them"
        factor = f"{header.reflectance_scale_factor:g}"
        raise refused("states a reflectance scale factor, which is not applied here", path, key, remedy, factor)
    listed = tuple(band for band, good in enumerate(header.bbl or ()) if good == 0)
    if (header.bands, header.samples) == format.shape and (averaged or header.lines == 1):
        _check_wavelengths(header, format, path, key)
        return replace(_mean(_lines(header), header.lines, limit, header.data_ignore_value), listed=listed)
    images, rest = divmod(header.lines, format.bands)
    if (header.bands, header.samples, rest) == (1, format.samples, 0) and (images == 1 or (averaged and images)):
        each = (read_lines(header, at * format.bands, (at + 1) * format.bands)[0] for at in range(images))
        return _mean(each, images, limit, header.data_ignore_value)
    found = f"{header.bands} bands x {header.lines} lines x {header.samples} samples"
    raise refused("has not the shape of the detector", path, key, _what_fits(format, averaged), found)


def read_profile(path: Path, format: LineFormat, key: str, axis: Axis) -> Doubles:
    """Values per band or per sample, or per detector element, as an array that broadcasts to [bands, samples].

    A `.npy` file may hold one value per band or sample (`axis`); what else fits is as in `read_detector_image`.
    """
    if path.suffix.lower() == ".npy":
        values = _read_npy(path, format, key)
        if values.ndim == 1:
            return along(values, format, key, axis, file=path)
    return read_detector_image(path, format, key).values


def along(
    values: tuple[float, ...] | NDArray[Any], format: LineFormat, key: str, axis: Axis, file: Path | None = None
) -> Doubles:
    """One value per band as [bands, 1], one per sample as [1, samples].

    Raises:
        CubeFileError: there are more or fewer.
    """
    wanted = format.bands if axis == "bands" else format.samples
    if len(values) != wanted:
        raise refused(f"has {len(values)} values for {wanted} {axis}", file, key, f"give {wanted}")
    return np.array(values, np.float64).reshape((-1, 1) if axis == "bands" else (1, -1))


def _read_npy(path: Path, format: LineFormat, key: str) -> NDArray[Any]:
    largest = NPY_HEADER + format.bands * format.samples * 8
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except FileNotFoundError as error:
        raise refused("no such file", path, key, "check the path") from error
    except OSError as error:
        raise refused(f"cannot be read: {error.strerror or error}", path, key, "check the file") from error
    if len(data) > largest:
        raise refused("is larger than a number per detector element", path, key, _what_fits(format, False))
    try:
        array: NDArray[Any] = npy.read_array(io.BytesIO(data), allow_pickle=False, max_header_size=NPY_HEADER)
    except (ValueError, EOFError, MemoryError, OverflowError, SyntaxError, TypeError) as error:
        raise refused("is not a whole NumPy array file", path, key, "write it with numpy.save") from error
    if array.dtype.kind not in "iufb" or array.itemsize > 8 or array.ndim not in (1, 2) or array.size == 0:
        found = f"{array.dtype} {list(array.shape)}"
        raise refused("is not an array of real numbers", path, key, _what_fits(format, False), found)
    return array


def _lines(header: EnviHeader) -> Iterator[NDArray[Any]]:
    """Line after line [bands, samples], in bounded memory."""
    step = max(1, BLOCK // header.line_bytes)
    for first in range(0, header.lines, step):
        yield from np.moveaxis(read_lines(header, first, min(first + step, header.lines)), 1, 0)


def _mean(lines: Iterable[NDArray[Any]], count: int, limit: float | None, ignored: float | None) -> DetectorImage:
    """Mean and scatter of the lines, by Welford's running sums (Technometrics 4, 1962), and what is at their limit."""
    mean: Doubles | None = None
    top, levels = -math.inf, list[float]()
    for line in lines:
        values = line.astype(np.float64)
        values[~np.isfinite(values)] = np.nan
        if ignored is not None:
            values[values == ignored] = np.nan
        if mean is None:
            own = float(np.iinfo(line.dtype).max) if line.dtype.kind in "iu" else math.inf
            lowest = own if limit is None else min(own, limit)
            mean, squares = np.zeros(line.shape), np.zeros(line.shape)
            limited, topmost, taken = (np.zeros(line.shape, np.int64) for _ in range(3))
        at_limit = values >= lowest
        limited += at_limit
        # A value at the limit is no measurement; what is not a number is to be seen in the mean.
        taken += ~at_limit
        levels.append(float(np.nanmean(values)) if not np.isnan(values).all() else math.nan)
        highest = float(np.fmax.reduce(values, axis=None))
        if highest > top:
            top = highest
            topmost[:] = 0
        topmost += values == top
        difference = np.where(at_limit, 0, values - mean)
        mean += difference / np.maximum(taken, 1)
        squares += difference * np.where(at_limit, 0, values - mean)
    assert mean is not None, "a recording has lines"
    mean[taken == 0] = lowest
    scatter = np.sqrt(squares / np.maximum(taken - 1, 1))
    found = DetectorImage(mean, limited / count, scatter, count, np.array(levels))
    if is_plateau(topmost == count, mean, squares > 0, found.noise or 0.0, count):
        return replace(found, saturated=np.maximum(limited, topmost) / count)
    return found


def _check_wavelengths(header: EnviHeader, format: LineFormat, path: Path, key: str) -> None:
    own = wavelengths_nm(header)
    if own is None or format.wavelengths is None or len(own) != len(format.wavelengths):
        return
    there, here = np.array(own), np.array(format.wavelengths)
    furthest = float(np.abs(there - here).max())
    if furthest > FAR * max(float(np.ptp(here)), 1.0):
        raise refused(
            f"its wavelengths are up to {furthest:.1f} nm from those of the lines",
            path,
            key,
            "give the file of this camera, with its spectral axis the same way round",
            f"{own[0]:g} to {own[-1]:g} nm, the lines' are {here[0]:g} to {here[-1]:g} nm",
        )


def _what_fits(format: LineFormat, averaged: bool) -> str:
    bands, samples = format.shape
    lines = "any number of lines" if averaged else "1 line"
    return (
        f"what fits: ENVI of {bands} bands x {lines} x {samples} samples, "
        f"ENVI of 1 band x {bands} lines x {samples} samples{', or several below each other' * averaged}, "
        f"or .npy [{bands}, {samples}]"
    )


def refused(problem: str, path: Path | None, key: str, remedy: str, found: object = None) -> CubeFileError:
    """The file, or the list in its place, that the settings name under `key` cannot be taken."""
    return CubeFileError(problem, file=path, key=f"{SECTION}.{key}", value=found, remedy=remedy)
