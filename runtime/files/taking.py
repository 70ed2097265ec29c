"""Some bands of a cube file, as a cube file of their own."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from runtime.errors import CubeError
from runtime.files import CubeFile
from runtime.files.envi_text import BAND_KEYS, Fields, normalised


def taking(source: CubeFile, bands: Sequence[int]) -> CubeFile:
    """A cube file's bands of these places, from 0, in this order, with what is said of each.

    Raises:
        CubeError: there is no such band, or it is named twice.
    """
    count = len(source.cube)
    for place in bands:
        if place >= count or list(bands).count(place) > 1:
            raise CubeError(
                f"there is no band {place}" if place >= count else f"band {place} is named twice",
                file=source.path,
                key="--bands",
                value=",".join(map(str, bands)),
                remedy=f"the places of its {count} bands go from 0 to {count - 1}",
            )

    def taken(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if values is None else tuple(values[place] for place in bands)

    told = source.stated
    stated = replace(
        told,
        gains=taken(told.gains),
        offsets=taken(told.offsets),
        reflectance_gains=taken(told.reflectance_gains),
        reflectance_offsets=taken(told.reflectance_offsets),
        wavelengths=taken(told.wavelengths),
        bad=tuple(new for new, old in enumerate(bands) if old in told.bad),
    )
    fields = {name: _listed(name, text, bands, count) for name, text in source.fields.items()}
    return replace(
        source,
        cube=np.ascontiguousarray(source.cube[list(bands)]),
        stated=stated,
        fields=Fields({name: text for name, text in fields.items() if text is not None}),
    )


def _listed(name: str, text: str, bands: Sequence[int], count: int) -> str | None:
    """What a header's field says of these bands; None where that is not known."""
    if normalised(name) == "default bands":
        return None
    if normalised(name) not in BAND_KEYS:
        return text
    items = [item.strip() for item in text.strip().strip("{}[]()").rstrip(", \n").split(",")]
    return "{" + ", ".join(items[place] for place in bands) + "}" if len(items) == count else None
