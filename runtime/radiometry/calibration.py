"""All that determines what becomes of a line."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from runtime.arrays import Bools
from runtime.lines import LineFormat
from runtime.radiometry.bad_pixels import Doubles, Method


@dataclass(frozen=True, eq=False)
class Calibration:
    """A line becomes (DN - dark) * factor, then bad pixels, then smile and keystone.

    Attributes:
        scale: what stands for 1.0 afterwards; every value is divided by it.
        dark: DN [bands, samples], None for none.
        factor: units of the output per DN [bands, samples], None for 1.
        bad: elements that are replaced [bands, samples], None for none; dark and factor need no meaning there.
        method: of their replacement, see `bad_pixels.replacements`.
        smile: shift in bands, broadcasts to [bands, samples], None for none.
        keystone: shift in samples, the same.
        saturation: DN at which the detector is at its limit, None where nobody knows.
    """

    scale: float = 1.0
    dark: Doubles | None = None
    factor: Doubles | None = None
    bad: Bools | None = None
    method: Method = "linear"
    smile: Doubles | None = None
    keystone: Doubles | None = None
    saturation: float | None = None

    def digest(self, format: LineFormat) -> str:
        """SHA-256 of all of it: with the same digest the same line becomes the same."""
        plain = {
            "shape": list(format.shape),
            "dtype": format.dtype.name,
            "scale": float(self.scale),
            "method": self.method,
            "saturation": None if self.saturation is None else float(self.saturation),
        }
        sha = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        for name in ("dark", "factor", "bad", "smile", "keystone"):
            array = getattr(self, name)
            sha.update(f"{name}:".encode())
            if array is not None:
                little = np.uint8 if name == "bad" else np.dtype("<f8")
                sha.update(np.broadcast_to(array, format.shape).astype(little).tobytes())
        return sha.hexdigest()
