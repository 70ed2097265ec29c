"""Products among files and folders: what is one, what beside one is none, and what claims to be one."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import CubeFileError, MachineError
from runtime.files.disk import reason
from runtime.files.envi import may_hold_data, pair_of
from runtime.files.foreign import kind_of, refuse_foreign
from runtime.products import format_of, open_cube
from runtime.products.contract import PROVENANCE
from runtime.products.stac import Asked, is_stac, items
from runtime.products.tiff_folder import MAIN, main_of

DEEPEST = 32
"""Folders below the one that is searched."""
ARCHIVE = f".{PROVENANCE}"
"""The folder in a folder of restored products that tells it is one."""
_CLAIMS = (".nc", ".he5", ".h5", ".tif", ".tiff", ".hdr", ".npy", ".npz", ".mat", ".zarr", ".img.gz")
_BEGINS = ("a TIFF file", "an HDF5 file", "a NetCDF file")
_BESIDE = re.compile(
    r"(?i)_quality$|[_-](?:glt|igm|obs|loc|orb|unc|elc|sro)(?:_ort)?$|^emit_l\w+_(?:mask|obs|rfluncert)_"
    r"|[_-]ql_\w+(?:_cog)?$|^(?:dark|white)(?:$|_?ref)"
)
"""Names without suffixes of what lies beside a product: lookup tables, geometry, masks, quality, references."""
_LEFT_OUT = ("a picture", "a photograph of another kind", "a compressed file", "a Zarr folder")


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        products: files and folders to open, in one order whoever lists the folders; nobody has opened them.
        refused: what cannot be a product here, and why.
        asked: of products that STAC items name, what these say.
    """

    products: tuple[Path, ...]
    refused: tuple[tuple[Path, CubeFileError], ...]
    asked: Mapping[Path, Asked]


def found_in(paths: Sequence[Path], *, outside: bool = False, out: Path | None = None) -> Found:
    """All products at or below `paths`: products, folders and STAC files.

    Folders are searched, those behind links, hidden ones and archives of restored products not; one that is a product
    itself is not searched further.
    What is no product in a folder is left out without a word, but not what claims to be one by its suffix or its first
    bytes: it is among the products, and fails when it is opened.

    Args:
        outside: what STAC files name may lie anywhere on this computer.
        out: folder of what is restored; what lies in it is left out, and refused where somebody names it.
    """
    own = None if out is None else _real(out)

    def restored(path: Path) -> bool:
        return own is not None and _real(path).is_relative_to(own)

    products: dict[Path, Path] = {}
    refused: dict[Path, CubeFileError] = {}
    named: dict[Path, Asked] = {}
    for path in paths:
        inside = (path,) if restored(path) else ()
        for one in inside or _noting(path, refused, named, outside=outside):
            if not restored(one):
                products.setdefault(_real(one), one)
            elif inside or not path.is_dir():
                remedy = "give the inputs, or restore them into another folder"
                refused[one] = CubeFileError("lies in the folder of what is restored", file=one, key="--out", value=out,
                                             remedy=remedy)  # fmt: skip
    wanted = tuple(sorted((one for one in products.values() if one not in refused), key=_key))
    asked = {one: named[real] for real, one in products.items() if real in named}
    return Found(wanted, tuple(sorted(refused.items(), key=lambda pair: _key(pair[0]))), asked)


def _key(path: Path) -> tuple[str, ...]:
    return path.parts


def _real(path: Path) -> Path:
    with suppress(OSError, RuntimeError, ValueError):
        return path.resolve()
    return path


def _noting(
    path: Path, refused: dict[Path, CubeFileError], named: dict[Path, Asked], *, outside: bool
) -> Iterator[Path]:
    try:
        yield from _below(path, refused, named, outside=outside)
    except CubeFileError as error:
        refused[path] = error


def _below(
    path: Path, refused: dict[Path, CubeFileError], named: dict[Path, Asked], *, outside: bool
) -> Iterator[Path]:
    """What is asked for by name is a product, or is refused."""
    if is_stac(path) or path.suffix.lower() in (".json", ".geojson"):
        for asked in items(path, outside=outside):
            named.setdefault(_real(asked.path), asked)
            yield asked.path
    elif path.is_dir():
        yield from _folder(path, refused, 0)
    elif format_of(path) is not None or _claims(path):
        yield _one_of_pair(path)
    else:
        if not os.path.lexists(path):
            raise CubeFileError("no such file or folder", file=path, remedy="check the path")
        refuse_foreign(path)
        remedy = "docs/products.md has a list of them"
        raise CubeFileError("is no product that is read", file=path, value=path.suffix or None, remedy=remedy)


def _folder(path: Path, refused: dict[Path, CubeFileError], depth: int) -> Iterator[Path]:
    """The folder itself where it is one product, else what is in it."""
    found = format_of(path)
    kind = None if found is None else found.name
    if kind not in (*MAIN, "pictures", None) or (kind is None and _claims(path)):
        yield path
        return
    inside = list(_searched(path, refused, depth))
    if kind == "pictures":
        # Cubes whose names have numbers look like pictures of bands, and so do previews beside cubes.
        pictures = all(one.parent == path and one.suffix.lower() in (".tif", ".tiff") for one in inside)
        yield from [path] if pictures and (not inside or _opens(path)) else inside
    elif kind is not None and (not inside or (len(inside) == 1 and MAIN[kind].fullmatch(inside[0].name))):
        yield path
    else:
        yield from inside


def _opens(path: Path) -> bool:
    with suppress(CubeFileError, MachineError), open_cube(path):
        return True
    return False


def _searched(folder: Path, refused: dict[Path, CubeFileError], depth: int) -> Iterator[Path]:
    if depth > DEEPEST:
        problem, remedy = f"is more than {DEEPEST} folders deep", "name it itself"
        refused[folder] = CubeFileError(problem, file=folder, remedy=remedy)
        return
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        remedy = "check the permissions"
        refused[folder] = CubeFileError(f"cannot be read: {reason(error)}", file=folder, remedy=remedy)
        return
    mains = {name: match[1] for name in names if (match := main_of(name))}
    stems = tuple(mains.values())
    for name in names:
        path = folder / name
        if path.is_dir():
            if not path.is_symlink() and not (path / ARCHIVE).is_dir():
                yield from _folder(path, refused, depth + 1)
        elif name in mains:
            yield path
        elif path.is_file() and not (stems and name.startswith(stems)) and not _is_beside(path):
            yield from _file(path, refused)


def _file(path: Path, refused: dict[Path, CubeFileError]) -> Iterator[Path]:
    if format_of(path) is not None or _claims(path):
        if not _is_header_of_another(path):
            yield _one_of_pair(path)
        return
    kind = kind_of(path)
    if kind is not None and kind.name not in _LEFT_OUT:
        try:
            refuse_foreign(path)
        except CubeFileError as error:
            refused[path] = error


def _is_beside(path: Path) -> bool:
    name = path.name
    for _ in range(3):
        if _BESIDE.search(name):
            return True
        name, dot, _suffix = name.rpartition(".")
        if not dot:
            break
    return False


def _claims(path: Path) -> bool:
    """Whether the suffix or the first bytes say that it is a product."""
    if path.name.lower().endswith(_CLAIMS):
        return path.exists()
    kind = kind_of(path, by_suffix=False) if path.is_file() else None
    return kind is not None and kind.name in _BEGINS


def _is_header_of_another(path: Path) -> bool:
    """A header beside a file that is a product without it, such as a GeoTIFF."""
    if path.suffix.lower() != ".hdr":
        return False
    names = [path.with_suffix(suffix) for suffix in (".tif", ".TIF", ".tiff", ".TIFF")]
    return any(other.is_file() for other in (*names, path.with_suffix("")) if other.suffix.lower() in (".tif", ".tiff"))


def _one_of_pair(path: Path) -> Path:
    """Of an ENVI pair the data file, whichever file of it, or beside it, was found."""
    with suppress(CubeFileError):
        if path.suffix.lower() == ".hdr" or not path.name.lower().endswith(_CLAIMS):
            header, data = pair_of(path)
            if path != header:
                # Which file is the data says the header.
                data = pair_of(header)[1]
            return data if may_hold_data(data.name) else path
    return path
