"""What writers of all formats tell alike: how numbers are scaled, what the quality layer holds, which lines lack."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import CubeFileError
from runtime.products.contract import Result, Seen

LAYERS: Mapping[str, Mapping[str, Any]] = {
    "seen": {
        "long_name": "what became of the pixel",
        "flag_masks": [int(one) for one in Seen],
        "flag_meanings": " ".join(str(one.name).lower() for one in Seen),
    },
    "expert": {"long_name": "the network's expert that weighs most, from 1; 0 where none was asked"},
}
"""CF attributes of `Quality.seen` and `Quality.expert`; lists are of the layer's type."""


def check_lines(written: int, lines: int, out: Path) -> None:
    """Raise CubeFileError where lines were not written."""
    if written != lines:
        raise CubeFileError(
            f"only {written} of its {lines} lines were made",
            file=out,
            key="lines",
            value=written,
            remedy="run it again",
        )


def scale_of(result: Result) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gains and offsets to the physical value, one per band; empty where nobody says."""
    stated, bands = result.stated, result.shape[0]
    gains, offsets = stated.gains, stated.offsets
    if gains is None and offsets is None:
        gains, offsets = stated.reflectance_gains, stated.reflectance_offsets
    if gains is None and offsets is None and stated.scale:
        gains = (1 / stated.scale,) * bands
    if gains is None and offsets is None:
        return (), ()
    return gains or (1.0,) * bands, offsets or (0.0,) * bands
