"""A cube file restored with what its file says, and what is doubtful about it."""

from __future__ import annotations

import numpy as np

from deploy import console
from runtime.bundle import Bundle
from runtime.errors import CubeError
from runtime.files import CubeFile
from runtime.restore import Restored

FAR_NANOMETRES = 5.0
UNIT_LIMIT = 4.0
DIM_SHARE = 0.1


def restore_file(
    bundle: Bundle, source: CubeFile, *, scale: float | None = None, clip: bool = False, unit: bool = False
) -> Restored:
    """Restore a cube file's cube with what the file says of scale and missing pixels.

    Args:
        bundle: an open bundle.
        source: what was read.
        scale: digital number that stands for 1.0; beats the file's, which beats the bundle's.
        clip: clip to [0, 1] in the unit range.
        unit: give float32 in the unit range, whatever the input's type.
    """
    told = source.scale if scale is None and source.cube.dtype.kind in "iu" else scale
    _tell_shape(bundle, source)
    _compare_wavelengths(bundle, source)
    _doubt_scale(bundle, source, told)
    try:
        with console.progress("restoring") as moved:
            restored = bundle.restore(
                source.cube, scale=told, ignore_value=source.ignore_value, clip=clip, unit=unit, progress=moved
            )
    except CubeError as error:
        error.file = error.file or str(source.path)
        raise
    if restored.scale is not None:
        origin = "flag" if scale is not None else "file" if told is not None else "bundle"
        console.say(f"scale      {restored.scale:g} stands for 1.0 (from the {origin})")
    return restored


def _tell_shape(bundle: Bundle, source: CubeFile) -> None:
    shape, bands = source.cube.shape, bundle.manifest.signature.measured.bands
    console.say(f"cube       {shape[0]} bands x {shape[1]} lines x {shape[2]} samples, {source.cube.dtype}")
    if source.format != "envi" and shape[0] != bands and bands in shape[1:]:
        console.warn(f"another axis has the network's {bands} bands: is --layout right?")
    elif shape[0] > bands:
        console.say(f"groups     {shape[0]} bands are restored in overlapping groups of the network's {bands}")


def _doubt_scale(bundle: Bundle, source: CubeFile, told: float | None) -> None:
    """Warn where nobody said a scale for this cube and its numbers do not look like the one that will be used."""
    largest = float(np.max(source.cube, initial=0, where=np.isfinite(source.cube)))
    if source.cube.dtype.kind == "f":
        if largest > UNIT_LIMIT:
            console.warn(f"values reach {largest:g}; floats are taken as they are, nominally 0 to 1: divide them first")
        return
    scale = bundle.manifest.scale if told is None else None
    if scale is not None and largest < DIM_SHARE * scale:
        console.warn(
            f"the largest number is {largest:g}, {100 * largest / scale:.1g} % of the bundle's scale {scale:g}; "
            "if this sensor has another scale, say it: --scale"
        )


def _compare_wavelengths(bundle: Bundle, source: CubeFile) -> None:
    trained, found = bundle.manifest.wavelengths, source.wavelengths
    if trained is None or found is None or len(found) != len(trained):
        return
    apart = float(np.abs(np.asarray(found) - np.asarray(trained)).max())
    if apart > FAR_NANOMETRES:
        console.warn(
            f"the file's bands lie up to {apart:.0f} nm from those the network was built for "
            f"({trained[0]:g} to {trained[-1]:g} nm)"
        )
