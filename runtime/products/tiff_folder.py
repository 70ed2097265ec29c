"""The files of a product's folder that are handed on as they are."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from runtime.errors import CubeFileError
from runtime.untrusted import open_regular

MOST_FILES = 10_000
MOST_DEPTH = 4
"""Folders within folders."""


def refuse_within(out: Path, folder: Path) -> None:
    """Raise CubeFileError where a copy of a folder would lie in it, or something is in its place."""
    place = Path(os.path.realpath(out))
    if Path(os.path.realpath(folder)) in (place, *place.parents):
        raise CubeFileError("would lie in the folder that it is made from", file=out, remedy="write to another folder")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CubeFileError("exists already", file=out, remedy="give the name of a new folder")


def copy_others(folder: Path, target: Path, left_out: Collection[Path]) -> None:
    """Copy and sync the plain files of a folder and its folders; links, devices and pipes are not followed.

    Args:
        left_out: names within the folder. Overviews beside them (`NAME.ovr`) show old numbers and are left out as well.

    Raises:
        CubeFileError: there are too many files or folders.
        OSError: the system refused.
    """
    skipped = {*left_out, *(name.with_name(f"{name.name}.ovr") for name in left_out)}
    count = 0
    for place, folders, names in os.walk(folder):
        inner = Path(place).relative_to(folder)
        folders[:] = sorted(name for name in folders if not Path(place, name).is_symlink())
        count += len(names) + len(folders)
        if count > MOST_FILES or (folders and len(inner.parts) >= MOST_DEPTH):
            raise CubeFileError(
                f"holds more than a product: over {MOST_FILES} files, or {MOST_DEPTH} folders in each other",
                file=folder,
                remedy="give the product a folder of its own",
            )
        for name in sorted(names):
            path = Path(place, name)
            if inner / name in skipped or path.is_symlink() or not path.is_file():
                continue
            (target / inner).mkdir(parents=True, exist_ok=True)
            file, _ = open_regular(path, links=False)
            with file, (target / inner / name).open("xb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
