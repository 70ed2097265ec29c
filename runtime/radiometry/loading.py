"""From settings and files to a `Radiometry`: the equations, and what is refused on the way.

With times t of the lines, t_w of the white and dark(t) as in `darks.Darks`:
dn: (DN - dark(t)) / flat * gain; radiance: (DN - dark(t)) / flat * gain / t;
reflectance: (DN - dark(t)) / (white - dark(t_w)) * t_w / t * panel_reflectance.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.arrays import Bools
from runtime.errors import ConfigError
from runtime.lines import LineFormat
from runtime.meaning.words import bands
from runtime.radiometry.bad_pixels import Doubles, unlit, unusable
from runtime.radiometry.calibration import Calibration
from runtime.radiometry.darks import Darks
from runtime.radiometry.files import Axis, DetectorImage, along, read_detector_image, read_profile, refused
from runtime.radiometry.model import Radiometry
from runtime.radiometry.settings import SECTION, RadiometrySettings, checked_settings

LARGEST_UNUSABLE = 0.2
"""Share of the elements beyond which a file does not fit, rather than having bad pixels."""
OUTSIDE, PARTLY = "out of range", "saturated in some lines"
DOUBTFUL = ("saturated", PARTLY, "missing", "zero", "below the noise")
"""A fault of elements that do not respond as the others do, and those of a recording that could be better."""
LARGEST_LIMITED = 0.01
"""Share of the lines of a recording; the mean of an element that is saturated in more of them is too low."""
ALIKE, UNLIKE = 0.9, 0.5
"""Light of a white's darkest line, as a share of its brightest one's: below these it is doubted, and refused."""
LEAST_LIGHT = 5.0
"""What a white is above its dark at least, times the noise of their means in that band."""


def load_radiometry(
    settings: Mapping[str, Any] | RadiometrySettings, format: LineFormat, folder: str | Path = "."
) -> Radiometry:
    """Read the files once and work out everything that does not change.

    Args:
        settings: see `RadiometrySettings`.
        format: of the lines; its `scale` (for DN) and `saturation` hold where the settings have none.
        folder: what paths are relative to.

    Raises:
        ConfigError: the settings contradict themselves, or leave something open that must not be guessed.
        CubeFileError: a file is damaged, of another shape, or not what it is said to be.
        InputError: no good pixel is left, or the saturation is beyond the lines' type.
    """
    return _Loading(checked_settings(settings), format, Path(folder)).radiometry()


@dataclass(eq=False)
class _Loading:
    """One loading: what was read so far, and what there is to say of it."""

    settings: RadiometrySettings
    format: LineFormat
    folder: Path
    facts: dict[str, str] = field(default_factory=dict)
    bad: dict[str, Bools] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    noise: Doubles = field(default_factory=lambda: np.zeros((1, 1)))

    def radiometry(self) -> Radiometry:
        chosen, format = self.settings, self.format
        self.facts["output"] = chosen.output
        scale = self._scale()
        self.facts["scale"] = f"{scale:g}"
        darks = self._darks()
        dark = None if darks is None else darks.at("integration_time_ms")
        factor = self._reflectance(darks) if chosen.output == "reflectance" else self._gain()
        self._listed_bad_pixels()
        smile, keystone = self._shift("smile", "samples"), self._shift("keystone", "bands")
        limit = self._limit
        self.facts["saturation"] = "not known" if limit is None else f"{limit:g} DN"
        calibration = Calibration(
            scale=scale,
            dark=dark if dark is not None and dark.any() else None,
            factor=factor,
            bad=self._all_bad(),
            method=chosen.bad_pixel_method,
            smile=smile,
            keystone=keystone,
            saturation=limit,
        )
        return Radiometry(format, calibration, self.facts, tuple(self.doubts))

    @property
    def _limit(self) -> float | None:
        """DN at which the detector saturates, None where nobody knows."""
        return self.format.saturation if self.settings.saturation is None else self.settings.saturation

    def _scale(self) -> float:
        if self.settings.scale is not None:
            return self.settings.scale
        if self.settings.output == "reflectance":
            return 1.0
        if self.format.scale is not None:
            return self.format.scale
        if self.format.dtype.kind == "f":
            return 1.0
        raise ConfigError(
            "lines of integers need a scale, and neither the settings nor the source tell one",
            key=f"{SECTION}.scale",
            remedy="say which digital number stands for 1.0, for example 4095",
        )

    def _read(self, key: str, *, averaged: bool = False) -> DetectorImage:
        """The file that the settings name under `key`."""
        path = self.folder / getattr(self.settings, key)
        image = read_detector_image(path, self.format, key, averaged=averaged, limit=self._limit)
        said = str(path)
        if averaged:
            said += f", {image.lines} line{'s' * (image.lines > 1)}"
            said += "" if image.noise is None else f", noise {image.noise:.3g} DN"
            self.noise = np.hypot(self.noise, image.noise_of_mean)
        self.facts[key] = said
        return image

    def _dark(self, key: str) -> Doubles:
        """A recording with the shutter closed; elements of which nothing was recorded are bad pixels."""
        image = self._read(key, averaged=True)
        self._judge(key, image, {"zero": unlit(image.values)})
        return image.values

    def _values(self, key: str, axis: Axis = "bands") -> Doubles | None:
        """A number, a list or a file, as what broadcasts to [bands, samples]."""
        value = getattr(self.settings, key)
        if value is None:
            return None
        if isinstance(value, str):
            self.facts[key] = str(self.folder / value)
            return read_profile(self.folder / value, self.format, key, axis)
        if isinstance(value, tuple):
            self.facts[key] = f"{len(value)} values, {min(value):g} to {max(value):g}"
            return along(value, self.format, key, axis)
        self.facts[key] = f"{value:g}"
        return np.full((1, 1), float(value))

    def _darks(self) -> Darks | None:
        chosen = self.settings
        if chosen.dark is None:
            return None
        times = {
            key: self._values(key)
            for key in ("integration_time_ms", "dark_time_ms", "second_dark_time_ms", "white_time_ms")
        }
        if isinstance(chosen.dark, float):
            self.facts["dark"] = f"{chosen.dark:g} DN"
            return Darks(np.full(self.format.shape, chosen.dark), None, times, any_time=True)
        dark = self._dark("dark")
        second = None if chosen.second_dark is None else self._dark("second_dark")
        return Darks(dark, second, times, any_time=chosen.dark_scales == "bias")

    def _gain(self) -> Doubles | None:
        """Units of the output per DN, for DN and radiance."""
        factor: Doubles | None = None
        limits = self.settings.response_range
        if self.settings.flat is not None:
            image = self._read("flat")
            flat = image.values
            self._judge("flat", image, {"not above 0": flat <= 0, OUTSIDE: unusable(flat, limits, relative=True)})
            factor = _inverse(flat)
        gain = self._values("gain")
        if gain is not None:
            if isinstance(self.settings.gain, str):
                gain = np.broadcast_to(gain, self.format.shape)
                bad = unusable(_inverse(gain), limits, relative=False)
                self._judge("gain", None, {"missing": np.isnan(gain), "not above 0": gain <= 0, OUTSIDE: bad})
            factor = gain if factor is None else factor * gain
        if self.settings.output == "radiance":
            time, gained = self._values("integration_time_ms"), factor
            if time is not None and gained is not None:
                factor = gained / time
        return factor

    def _reflectance(self, darks: Darks | None) -> Doubles:
        panel = self._values("panel_reflectance")
        assert darks is not None and panel is not None, "checked_settings asks for both"
        image = self._read("white", averaged=True)
        dark = darks.at("white_time_ms")
        self._judge_levels(image.levels - float(np.nanmean(dark)))
        lit = image.values - dark
        dim = lit < LEAST_LIGHT * self.noise
        bad = unusable(np.where(dim, np.nan, lit), self.settings.response_range, relative=False)
        self._judge("white", image, {"not above 0": lit <= 0, "below the noise": dim, OUTSIDE: bad})
        factor = _inverse(lit) * panel
        own, lines = darks.times["white_time_ms"], darks.times["integration_time_ms"]
        return factor if own is None or lines is None else factor * own / lines

    def _judge_levels(self, levels: Doubles) -> None:
        """A white is one panel under one light: refuse or doubt lines that are darker than the others."""
        brightest = float(np.fmax.reduce(levels))
        # What has no light at all is judged element by element.
        share = float(np.fmin.reduce(levels)) / brightest if brightest > 0 else 1.0
        if share >= ALIKE:
            return
        path = self.folder / str(self.settings.white)
        few = int(np.count_nonzero(levels < ALIKE * brightest))
        told = f"{few} of its {len(levels)} lines are darker than the brightest, down to {100 * share:.0f} %"
        if share < UNLIKE:
            raise refused(told, path, "white", "cut it to the lines of the panel under the full light")
        self.doubts.append(f"{path}: {told}")

    def _judge(self, key: str, image: DetectorImage | None, faults: Mapping[str, Bools]) -> None:
        """Keep what cannot be believed as bad pixels, unless it is too much; of an element the first fault counts."""
        own: Mapping[str, Bools] = {}
        if image is not None and image.listed:
            named = self.folder / getattr(self.settings, key)
            self.doubts.append(f"{named}: its header calls {bands(image.listed)} bad; they are used")
        if image is not None:
            share = image.saturated
            own = {"saturated": share == 1, PARTLY: share > LARGEST_LIMITED, "missing": np.isnan(image.values)}
        bad: Bools = np.zeros(self.format.shape, np.bool_)
        earlier: Bools = np.logical_or.reduce([bad, *self.bad.values()])
        told = {}
        for name, fault in {**own, **faults}.items():
            told[name] = int(np.count_nonzero(fault & ~bad & ~earlier))
            bad |= fault
        count = int(np.count_nonzero(bad))
        said = " and ".join(f"{n} {name}" for name, n in told.items() if n)
        path, what = self.folder / getattr(self.settings, key), "white less dark" if key == "white" else key
        if count > LARGEST_UNUSABLE * bad.size:
            remedy = (
                "check that it is the right file, in the same orientation and of the same times as the others, "
                f"or widen {SECTION}.response_range"
            )
            if told.get("saturated", 0) + told.get(PARTLY, 0) > count / 2:
                remedy = f"record it again below the detector's limit, or correct {SECTION}.saturation"
            elif told.get("missing", 0) + told.get("zero", 0) > count / 2:
                remedy = "record it again"
            found = f"{count} of {bad.size} elements ({100 * count / bad.size:.0f} %)"
            why = " and ".join(f"{n} of them {name}" for name, n in told.items() if n)
            raise refused(f"{what} is unusable in {found}, {why}", path, key, remedy)
        if said:
            self.bad[key] = bad & ~earlier
            self.reasons[key] = said
        if image is not None and any(told.get(name) for name in DOUBTFUL):
            replaced = f"{sum(told.values())} of {bad.size} elements are replaced as bad pixels"
            self.doubts.append(f"{path}: {replaced} since the {key.replace('_', ' ')} has {said}")

    def _listed_bad_pixels(self) -> None:
        if self.settings.bad_pixels is None:
            return
        # A value that is not a number, or marked as missing, is not zero either.
        bad = self._read("bad_pixels").values != 0
        if np.count_nonzero(bad) > 0.5 * bad.size:
            raise refused(
                f"{np.count_nonzero(bad)} of {bad.size} elements are bad",
                self.folder / self.settings.bad_pixels,
                "bad_pixels",
                "nonzero means bad: is it the other way round?",
            )
        self.bad["bad_pixels"] = bad

    def _all_bad(self) -> Bools | None:
        total: Bools = np.zeros(self.format.shape, np.bool_)
        for bad in self.bad.values():
            total |= bad
        count = int(np.count_nonzero(total))
        origins = ", ".join(
            f"{np.count_nonzero(bad)} by {key}" + (f": {self.reasons[key]}" if key in self.reasons else "")
            for key, bad in self.bad.items()
        )
        self.facts["replaced"] = f"{count} of {total.size}" + (f" ({origins})" if origins else "")
        return total if count else None

    def _shift(self, key: str, axis: Axis) -> Doubles | None:
        shift = self._values(key, axis)
        if shift is None:
            return None
        limit = self.format.bands if key == "smile" else self.format.samples
        if not np.isfinite(shift).all() or np.abs(shift).max() >= limit / 2:
            named = getattr(self.settings, key)
            file = self.folder / named if isinstance(named, str) else None
            remedy = f"give shifts in {'bands' if key == 'smile' else 'samples'}"
            raise refused("a shift is not a number, or as large as half of the detector", file, key, remedy)
        return shift


def _inverse(values: Doubles) -> Doubles:
    """One over it; what is not a positive number has none and becomes NaN."""
    usable = np.isfinite(values) & (values > 0)
    inverse: Doubles = np.divide(1.0, values, out=np.full(values.shape, np.nan), where=usable)
    return inverse
