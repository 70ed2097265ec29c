"""A cube file restored with what its file says of its numbers."""

from runtime.bundle import Bundle
from runtime.errors import CubeError
from runtime.files import CubeFile
from runtime.meaning import Asked, Meaning
from runtime.restore import Progress, Restored


def meaning_of_file(bundle: Bundle, source: CubeFile, asked: Asked | None = None) -> Meaning:
    """What the numbers of a file mean to a bundle. Raises CubeError, naming the file."""
    try:
        return bundle.meaning(source.cube, source.stated, asked)
    except CubeError as error:
        error.file = error.file or str(source.path)
        raise


def restore_file(
    bundle: Bundle,
    source: CubeFile,
    meaning: Meaning,
    *,
    clip: bool = False,
    unit: bool = False,
    in_place: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Restore a cube file's cube; see `Bundle.restore`. Raises CubeError, naming the file, and MachineError."""
    try:
        return bundle.restore(source.cube, meaning=meaning, clip=clip, unit=unit, in_place=in_place, progress=progress)
    except CubeError as error:
        error.file = error.file or str(source.path)
        raise
