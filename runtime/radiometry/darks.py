"""The dark at the time at which something was taken."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from runtime.errors import ConfigError
from runtime.radiometry.bad_pixels import Doubles
from runtime.radiometry.settings import SECTION


@dataclass(frozen=True, eq=False)
class Darks:
    """The dark at any time.

    Attributes:
        first, second: DN [bands, samples]; with a second one the dark is the line through both, at any time.
        times: by key of the settings, in ms, as what broadcasts to [bands, samples]; None for that of the lines.
        any_time: the first holds at every time.
    """

    first: Doubles
    second: Doubles | None
    times: Mapping[str, Doubles | None]
    any_time: bool

    def at(self, key: str) -> Doubles:
        """The dark of what was taken at the time under `key`; without one, that is the lines' time.

        Raises:
            ConfigError: it was taken at another time, and nobody said how it depends on that.
        """
        lines = self.times["integration_time_ms"]
        time = self.times[key] if self.times[key] is not None else lines
        own = self.times["dark_time_ms"] if self.times["dark_time_ms"] is not None else lines
        if self.second is not None and time is not None and own is not None:
            other = self.times["second_dark_time_ms"]
            if other is None or np.any(other == own):
                raise ConfigError(
                    "both darks have the same integration time",
                    key=f"{SECTION}.second_dark_time_ms",
                    remedy="give the second one's own",
                )
            through: Doubles = self.first + (self.second - self.first) * ((time - own) / (other - own))
            return through
        if self.any_time or time is None or own is None or np.all(time == own):
            return self.first
        what = "the white" if key == "white_time_ms" else "the lines"
        raise ConfigError(
            f"the dark was taken at another integration time than {what}",
            key=f"{SECTION}.{'dark_time_ms' if self.times['dark_time_ms'] is not None else key}",
            value=f"{_said(own)} and {_said(time)} ms",
            remedy="record one at that time, give a second_dark, or say `dark_scales: bias` if time does not matter",
        )


def _said(time: Doubles) -> str:
    return f"{time.min():g}" if time.min() == time.max() else f"{time.min():g} to {time.max():g}"
