"""The files of a product of several files that are handed on as they are."""

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from runtime.errors import CubeFileError
from runtime.products.contract import PROVENANCE
from runtime.untrusted import open_regular

MAIN = {
    "enmap": re.compile(r"(?i)(enmap.*)-metadata\.xml(?:\.gz)?"),
    "desis": re.compile(r"(?i)(desis.*)-spectral_image(?:_cog)?\.tiff?"),
    "hyperion": re.compile(r"(?i)(eo1h.*)_mtl_(?:l1t|l1gst)\.txt"),
}
"""Format of a folder -> name of the file that stands for a product in it, whose other files begin alike."""
MOST_FILES = 10_000
MOST_DEPTH = 4
"""Folders within folders."""


def refuse_within(out: Path, folder: Path) -> None:
    """Raise CubeFileError where a copy of a folder would lie in it, or something else than one is in its place."""
    place = Path(os.path.realpath(out))
    if Path(os.path.realpath(folder)) in (place, *place.parents):
        raise CubeFileError("would lie in the folder that it is made from", file=out, remedy="write to another folder")
    refuse_foreign_folder(out)


def refuse_foreign_folder(out: Path) -> None:
    """Raise CubeFileError where something is there that is no empty folder and none that a restoration wrote."""
    if not os.path.lexists(out):
        return
    ours = out.is_dir() and not out.is_symlink() and ((out / f"{PROVENANCE}.json").is_file() or not any(out.iterdir()))
    if not ours:
        raise CubeFileError(
            f"is there, and is no folder that was restored: it has no {PROVENANCE}.json",
            file=out,
            remedy="give the name of a new folder",
        )


def main_of(name: str) -> re.Match[str] | None:
    """Of the name of a file that stands for a product; its group 1 begins the names of the product's files."""
    return next((match for pattern in MAIN.values() if (match := pattern.fullmatch(name))), None)


def copy_others(folder: Path, target: Path, left_out: Collection[Path], files: Collection[Path]) -> None:
    """Copy and sync the plain files of a folder and its folders; links, devices and pipes are not followed.

    Of a folder with several products beside each other those of one are copied that begin as its `files` do; folders
    that hold another product are left out.

    Args:
        files: the product's own, of which one stands for it (`MAIN`).
        left_out: names within the folder. Overviews beside them (`NAME.ovr`) show old numbers and are left out as well.

    Raises:
        CubeFileError: there are too many files or folders.
        OSError: the system refused.
    """
    skipped = {*left_out, *(name.with_name(f"{name.name}.ovr") for name in left_out)}
    own = next((match[1].casefold() for file in files if (match := main_of(file.name))), "")
    count = 0
    for place, folders, names in os.walk(folder):
        inner = Path(place).relative_to(folder)
        stems = {match[1].casefold() for match in map(main_of, names) if match} - {own}
        if stems and inner.parts:
            folders.clear()
            continue
        if stems:
            folders.clear()
            names = [name for name in names if _stem(name, {own, *stems}) == own]
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


def _stem(name: str, stems: Collection[str]) -> str | None:
    """The longest of these that a name begins with."""
    return max((stem for stem in stems if stem and name.casefold().startswith(stem)), key=len, default=None)
