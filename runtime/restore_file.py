"""A cube file restored with what its file says of scale and missing pixels, and what is doubtful about it."""

from collections.abc import Iterator

import numpy as np

from runtime.bundle import Bundle
from runtime.doubts import axis_doubt, scale_doubt, wavelength_doubt
from runtime.errors import CubeError
from runtime.files import CubeFile
from runtime.restore import Progress, Restored


def restore_file(
    bundle: Bundle,
    source: CubeFile,
    *,
    scale: float | None = None,
    clip: bool = False,
    unit: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Restore a cube file's cube.

    Args:
        bundle: an open bundle.
        source: what was read.
        scale: digital number that stands for 1.0; beats the file's, which beats the bundle's.
        clip: clip to [0, 1] in the unit range.
        unit: give float32 in the unit range, whatever the input's type.
        progress: called with (frames done, frames in all).

    Raises:
        CubeError, MachineError: as `Bundle.restore`; the first names the file.
    """
    told = said_scale(source, scale)
    try:
        return bundle.restore(
            source.cube, scale=told, ignore_value=source.ignore_value, clip=clip, unit=unit, progress=progress
        )
    except CubeError as error:
        error.file = error.file or str(source.path)
        raise


def said_scale(source: CubeFile, scale: float | None) -> float | None:
    """The scale that somebody said for this cube: who restores it, or its file; None leaves it to the bundle."""
    return source.scale if scale is None and source.cube.dtype.kind in "iu" else scale


def doubts(bundle: Bundle, source: CubeFile, scale: float | None = None) -> Iterator[str]:
    """What should be read before the result is trusted; `scale` as for `restore_file`."""
    yield from source.doubts
    manifest = bundle.manifest
    floats = source.cube.dtype.kind == "f"
    largest = float(np.max(source.cube, initial=0, where=np.isfinite(source.cube)))
    unsaid = manifest.scale if said_scale(source, scale) is None else None
    yield from filter(
        None,
        (
            axis_doubt(source.cube.shape, manifest.signature.measured.bands, told=source.format == "envi"),
            wavelength_doubt("the file's", source.wavelengths, manifest.wavelengths),
            scale_doubt(largest, unsaid, floats=floats),
        ),
    )
