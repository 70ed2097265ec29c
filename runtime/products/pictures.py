"""A folder with one picture for each band, as CAVE has them: PNG, or TIFF of one band, of 8 or 16 bits."""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.errors import CubeFileError, DeployError
from runtime.files.disk import MOST_HELD, check_expansion, opened, reason
from runtime.files.envi_header import nanometres_per
from runtime.files.layout import AXES
from runtime.files.rows import Rows
from runtime.products.contract import Description, Reading
from runtime.products.flat import FlatReader
from runtime.products.spool import Spool
from runtime.stated import Stated
from runtime.untrusted import TooLargeError, read_untrusted

WAVELENGTHS = "wavelengths.txt"
_SUFFIXES = (".png", ".tif", ".tiff")
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_NANOMETRES = re.compile(r"(\d+(?:\.\d+)?) ?nm\b", re.ASCII | re.IGNORECASE)
_MODES = {"L": "u1", "I;16": "u2", "I;16L": "u2", "I;16B": "u2"}
_MOST_TEXT = 1 << 20


def recognises(path: Path) -> bool:
    """A folder with two pictures or more whose names differ by one number."""
    with suppress(OSError, ValueError):
        return path.is_dir() and len(_bands(path)[0]) > 1
    return False


def open_reader(path: Path, reading: Reading) -> FlatReader:
    """Raises CubeFileError: a picture is damaged, of several bands, or of another size or type than the first."""
    try:
        files, others = _bands(path)
    except OSError as error:
        raise CubeFileError(f"cannot be read: {reason(error)}", file=path, remedy="check the folder") from error
    first, rest = (_seen(files[0]), files[1:]) if files else (None, [])
    if first is None or others > 1 or len(files) > MOST_HELD:
        raise CubeFileError(
            f"holds {len(files)} pictures whose names differ by one number, and {others} others like that",
            file=path,
            remedy="put the pictures of one cube, one for each band, into a folder of their own",
        )
    for file in rest:
        if (seen := _seen(file)) != first:
            raise CubeFileError(
                f"is {seen}, {files[0].name} is {first}", file=file, remedy="give pictures of one size and type"
            )
    rows = Rows((len(files), first.lines, first.samples), AXES, np.dtype(first.type))
    wavelengths, told = _wavelengths(path, files)

    def unpack(spool: Spool) -> None:
        for file in files:
            with _open(file) as picture:
                plane = np.asarray(picture)
            if plane.shape != rows.shape[1:]:
                raise CubeFileError("was changed while it was read", file=file, remedy="read it again")
            spool.append(np.ascontiguousarray(plane, rows.dtype).reshape(-1).view(np.uint8).data)

    description = Description(
        format="pictures",
        path=path,
        files=(*files, *told),
        shape=rows.shape,
        dtype=rows.dtype,
        block=rows.best_lines,
        # A picture as it is decoded, and as it is handed on.
        holds=2 * first.lines * first.samples * 4,
        stated=Stated(wavelengths=wavelengths, axes=True),
        notes=(f"{len(files)} pictures, {files[0].name} to {files[-1].name}",),
    )
    return FlatReader(description, rows, unpack)


class _Seen(NamedTuple):
    lines: int
    samples: int
    type: str

    def __str__(self) -> str:
        return f"{self.lines} x {self.samples} of {8 * int(self.type[1])} bits"


def _bands(folder: Path) -> tuple[list[Path], int]:
    """The pictures of bands in the order of their numbers, and how many groups of names there are that are like that.

    Raises:
        OSError: the folder cannot be read.
    """
    groups = defaultdict[tuple[str, ...], dict[tuple[str, ...], Path]](dict)
    for file in folder.iterdir():
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."):
            key = (*_NUMBER.split(file.stem), file.suffix.lower())
            groups[key][tuple(_NUMBER.findall(file.stem))] = file
    found = []
    for group in groups.values():
        varying = [place for place, values in enumerate(zip(*group, strict=True)) if len(set(values)) > 1]
        if len(varying) == 1 and len({float(numbers[varying[0]]) for numbers in group}) == len(group):
            place = varying[0]
            found.append([file for _, file in sorted(group.items(), key=lambda item: float(item[0][place]))])
    found.sort(key=len, reverse=True)
    return (found[0], len(found)) if found else ([], 0)


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """A picture of one band; whatever Pillow finds wrong in the block is a CubeFileError."""
    from PIL import Image

    with opened(file) as (stream, size), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(stream, formats=("PNG", "TIFF")) as picture:
                mode = "I;16" if (picture.mode, picture.format) == ("I", "PNG") else picture.mode
                if mode not in _MODES or getattr(picture, "n_frames", 1) != 1:
                    raise CubeFileError(
                        "is no picture of one band of 8 or 16 bits",
                        file=file,
                        value=picture.mode,
                        remedy="save each band as a grey picture of its own",
                    )
                check_expansion(file, picture.width * picture.height * int(_MODES[mode][1]), size)
                yield picture
        except DeployError:
            raise
        # Pillow's decoders raise what they like for damaged files: SyntaxError, struct.error, MemoryError among others.
        except Exception as error:
            raise CubeFileError(
                f"is damaged, or no PNG or TIFF file: {reason(error)}", file=file, remedy="copy it again"
            ) from error


def _seen(file: Path) -> _Seen:
    with _open(file) as picture:
        mode = "I;16" if picture.mode == "I" else picture.mode
        return _Seen(picture.height, picture.width, _MODES[mode])


def _wavelengths(folder: Path, files: list[Path]) -> tuple[tuple[float, ...] | None, tuple[Path, ...]]:
    """Wavelengths in nm, by a file beside the pictures or by their names, and the file."""
    told = folder / WAVELENGTHS
    if not told.is_file():
        named = [_NANOMETRES.search(file.stem) for file in files]
        return (None if None in named else tuple(float(match[1]) for match in named if match)), ()
    try:
        words = read_untrusted(told, _MOST_TEXT).decode("utf-8-sig", "replace").replace(",", " ").split()
        values = tuple(float(word) for word in words if word.casefold() != "nm")
        factor = nanometres_per("", tuple(values)) if values and all(map(isfinite, values)) else None
        if len(values) != len(files) or factor is None:
            raise ValueError(f"has {len(values)} values for {len(files)} bands, or not in nanometres")
    except (OSError, ValueError, TooLargeError) as error:
        raise CubeFileError(
            f"is no list of one wavelength in nm for each picture: {reason(error)}",
            file=told,
            remedy="correct it, or move it elsewhere",
        ) from error
    return tuple(value * factor for value in values), (told,)
