"""The clean cubes of a folder, read strictly and in the unit range: what networks are measured and calibrated on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.arrays import Float32
from runtime.errors import CubeError, InputError, plain
from runtime.files import READERS, read_cube
from runtime.files.disk import complete_pairs
from runtime.files.foreign import refuse_foreign
from runtime.files.photographs import SUFFIXES as PHOTOGRAPHS
from runtime.meaning import Asked, Known, meaning_of
from runtime.meaning.words import bands, number, pixels
from runtime.simulation.cassi import resampled

FAR = 100.0
"""No clean cube in the unit range reaches that: it holds marks, or numbers of another scale."""
SUFFIXES = (".hdr", ".npy", ".npz", ".mat")


WITHOUT = "cut them away, or name the other cubes (--scenes)"


@dataclass(frozen=True)
class Wanted:
    """What a network asks of a cube, and how files are to be read.

    Attributes:
        bands: of the network; a cube may have more.
        scale: number that stands for 1.0 in cubes of integers, above all others; None if nobody said.
        model_scale: the same as the model tells it, below the file's own.
        wavelengths: of the network's bands in nm, None if not told.
        layout: axes of .npy, .npz and .mat files; None if nobody said.
        key: name of the array in .npz and .mat files.
        marks: of missing pixels, above what the file says; None if nobody said.
        measured: an instrument with these wavelengths is simulated on the cubes: those that tell theirs are brought to
            them.
    """

    bands: int
    scale: float | None = None
    model_scale: float | None = None
    wavelengths: tuple[float, ...] | None = None
    layout: str | None = None
    key: str | None = None
    marks: tuple[float, ...] | None = None
    measured: bool = False


@dataclass(frozen=True, eq=False)
class UnitCube:
    """A cube that may be used.

    Attributes:
        cube: float32 [bands, lines, samples], finite.
        wavelengths: of its bands in nm, the model's where the file tells none, or None.
        doubts: what a person should know before trusting figures from it.
    """

    cube: Float32
    wavelengths: tuple[float, ...] | None
    doubts: tuple[str, ...]


def find_cubes(folder: Path, scenes: Sequence[str] | None = None, *, option: str = "--data") -> dict[str, Path]:
    """The cubes of a folder by name, or its photographs; an ENVI pair is its header. Raises InputError without any."""
    if not folder.is_dir():
        raise InputError("no such folder", file=folder, key=option, remedy="give a folder of clean cubes")
    found: dict[str, Path] = {}
    complete_pairs(folder)
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", file=folder, key=option, remedy="check its permissions"
        ) from error
    seen = [file for file in inside if not file.name.startswith(".")]
    # Beside cubes pictures are those that somebody made of them.
    for file in _ending(seen, SUFFIXES) or _ending(seen, PHOTOGRAPHS):
        if file.stem in found:
            raise InputError("two cubes of one name", file=file, key=option, remedy=f"move {found[file.stem].name}")
        found[file.stem] = file
    if not found:
        for file in inside:
            refuse_foreign(file)
        known = ", ".join(s for s in READERS if s in SUFFIXES)
        raise InputError(
            "no cubes there",
            file=folder,
            key=option,
            remedy=f"cubes end in {known}, photographs in {', '.join(PHOTOGRAPHS)}",
        )
    if scenes is None:
        return found
    for name in scenes:
        if name not in found:
            raise InputError(
                "no such cube", file=folder, key="--scenes", value=name, remedy=f"has {plain(', '.join(found))}"
            )
    return {name: found[name] for name in scenes}


def _ending(files: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in suffixes]


def unit_cube(file: Path, wanted: Wanted) -> UnitCube:
    """Read a cube and refuse what is no clean cube for this network.

    Raises:
        DeployError: it cannot be read, has no scale, missing pixels, fewer bands than the network, or values far
            outside the unit range.
    """
    named = file.suffix.lower() in (".npz", ".mat")
    source = read_cube(file, layout=wanted.layout, key=wanted.key if named else None)
    centres = wanted.wavelengths if wanted.wavelengths and len(wanted.wavelengths) == len(source.cube) else None
    targets = wanted.wavelengths if wanted.measured and source.wavelengths else None
    try:
        meaning = meaning_of(
            source.cube,
            source.stated,
            Asked(wanted.scale, wanted.marks),
            Known("model", wanted.model_scale, centres, len(source.wavelengths or ()) if targets else wanted.bands),
        )
    except CubeError as error:
        error.file = error.file or str(file)
        if error.key == "cube" and "--ignore-value" in error.remedy:
            error.remedy = WITHOUT
        raise
    if meaning.missing.any():
        raise InputError(
            f"has {pixels(int(meaning.missing.sum()))} missing, so there is no truth to compare with",
            file=file,
            key="--ignore-value",
            value=", ".join(number(mark.low) for mark in meaning.marks),
            remedy=f"{WITHOUT}; --ignore-value none where they are measurements",
        )
    if meaning.bad:
        raise InputError(
            f"has {len(meaning.bad)} bad band{'s' * (len(meaning.bad) > 1)}, so there is no truth to compare with",
            file=file,
            key="bands",
            value=bands(meaning.bad),
            remedy=WITHOUT,
        )
    cube = meaning.unit(source.cube)
    own = source.wavelengths or centres
    if targets and own and own != targets:
        try:
            cube, own = resampled(cube, own, targets), targets
        except CubeError as error:
            error.file = str(file)
            raise
    if len(cube) < wanted.bands:
        raise InputError(
            f"has {len(cube)} bands, the network restores {wanted.bands}",
            file=file,
            key="bands",
            remedy="leave it out",
        )
    largest = float(np.abs(cube).max())
    if largest > FAR:
        raise InputError(
            "holds values far outside [0, 1]", file=file, value=f"{largest:.3g}", remedy="give a larger --scale"
        )
    doubts = [f"{file.name}: {doubt}" for doubt in (*meaning.doubts, *_brightness(cube))]
    return UnitCube(cube, own, tuple(doubts))


def _brightness(cube: Float32) -> Iterator[str]:
    brightest = float(np.quantile(cube, 0.999))
    if not 0.02 <= brightest <= 4:
        yield f"1.0 should be about the brightest, but 99.9 % lie at or below {brightest:.3g}; see --scale"
