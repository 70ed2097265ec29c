"""What is doubtful about a cube's numbers and axes, in the words that people read; nothing is refused here."""

from collections.abc import Sequence

import numpy as np

FAR_NANOMETRES = 5.0
UNIT_LIMIT = 4.0
"""In the unit range values reach this at most, or somebody took another scale."""
DIM_SHARE = 0.1
"""Below this share of a scale that nobody said for these numbers, it may be another sensor's."""


def far_bands(found: Sequence[float] | None, trained: Sequence[float] | None) -> float | None:
    """By how many nm bands lie beside those of the network at most, where that is far; of unlike counts nothing."""
    if not found or not trained or len(found) != len(trained):
        return None
    apart = float(np.abs(np.asarray(found) - np.asarray(trained)).max())
    return apart if apart > FAR_NANOMETRES else None


def wavelength_doubt(whose: str, found: Sequence[float] | None, trained: Sequence[float] | None) -> str | None:
    """Bands that are not those the network was made for."""
    apart = far_bands(found, trained)
    if apart is None or not trained:
        return None
    return (
        f"{whose} bands lie up to {apart:.0f} nm from those that the network was made for "
        f"({trained[0]:g} to {trained[-1]:g} nm)"
    )


def scale_doubt(largest: float, scale: float | None, *, floats: bool) -> str | None:
    """Numbers that do not look like the scale that will be used.

    Args:
        largest: of the cube, as it is stored.
        scale: that is taken though nobody said it for this cube; None where somebody did.
        floats: the cube holds floats, which are taken as they are.
    """
    if floats and largest > UNIT_LIMIT:
        return f"values reach {largest:g}; floats are taken as they are, nominally 0 to 1: divide them first"
    if not floats and scale is not None and largest < DIM_SHARE * scale:
        return (
            f"the largest number is {largest:g}, {100 * largest / scale:.1g} % of the bundle's scale {scale:g}; "
            "if this sensor has another scale, say it: --scale"
        )
    return None


def axis_doubt(shape: Sequence[int], bands: int, *, told: bool) -> str | None:
    """Another axis than the first has the network's bands; `told` where the file itself says which axis is which."""
    if not told and shape[0] != bands and bands in shape[1:]:
        return f"another axis has the network's {bands} bands: is --layout right?"
    return None
