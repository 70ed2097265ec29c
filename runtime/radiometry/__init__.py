"""From raw lines to the network's unit range: dark, flat or white, time, bad pixels, saturation, smile and keystone.

`load_radiometry(settings, format, folder)` reads the files once; `Radiometry.apply_line(raw, out)` costs about two
passes over a line and allocates nothing.
"""

from runtime.radiometry.calibration import Calibration
from runtime.radiometry.loading import load_radiometry
from runtime.radiometry.model import Radiometry
from runtime.radiometry.settings import RadiometrySettings

__all__ = ["Calibration", "Radiometry", "RadiometrySettings", "load_radiometry"]
