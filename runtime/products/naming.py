"""Names of what is restored."""

from pathlib import Path

from runtime.errors import CubeFileError
from runtime.products import WRITERS, suffix_of
from runtime.products.contract import PROVENANCE, Description

RESTORED = "_restored"
FOLDERS = ("enmap", "desis", "hyperion", "pictures")
"""Formats whose product is a folder."""
PACKED = {".mat": ".npz", ".gz": ""}
"""Suffixes that are not written, and what is in their place."""
SAME = {".tiff": ".tif", **dict.fromkeys((".hdr", ".bil", ".bip", ".bsq", ".dat", ".raw"), ".img")}
"""Other suffixes of what is written."""


def restored_name(description: Description, kind: str) -> str:
    """The file or folder name of a restored product, of the format `kind` of `WRITERS`, or `like` its source.

    It is the source's with `_restored` before the suffix: no agency's name stands for what it did not make.
    """
    path, image = description.path, description.files[0]
    own = description.format
    if own in FOLDERS:
        stem = image.name.split("-SPECTRAL_IMAGE")[0] if "-SPECTRAL_IMAGE" in image.name else image.parent.name
        suffix = ""
    elif own == "zarr":
        stem, suffix = path.name.removesuffix(".zarr"), ".zarr"
    else:
        plain = Path(image.name.removesuffix(".gz"))
        stem, suffix = plain.stem, PACKED.get(plain.suffix.lower(), plain.suffix)
        if own == "envi" and not suffix:
            suffix = ".img"
    if kind != "like":
        suffix = suffix_of(kind)
    return f"{stem}{RESTORED}{suffix}"


def kind_of(out: Path, description: Description, asked: str | None = None, *, ortho: bool = False) -> str:
    """The format of `WRITERS` that a name asks for, `like` where it is that of its source.

    Args:
        out: file or folder that is going to be written.
        description: of the source.
        asked: what somebody says it is.
        ortho: it is put on a map, which is never like the source.

    Raises:
        CubeFileError: the name has the suffix of another format, or of none.
    """
    own, suffix = Path(restored_name(description, "like")).suffix.lower(), out.suffix.lower()
    suffix = SAME.get(suffix, suffix)
    known = {"like": SAME.get(own, own)} | {kind: suffix_of(kind) for kind in WRITERS}
    # A folder may have any name but that of a file.
    fits = [kind for kind, of in known.items() if of == suffix or (not of and suffix not in known.values())]
    if asked in fits or (asked is None and fits):
        return asked or fits[-1 if ortho else 0]
    said = f"is no name of what --format {asked} writes" if asked else "is not a format products are written in"
    of = {known[asked]} if asked else set(known.values())
    remedy = (
        f"give a name that ends in {', '.join(sorted(filter(None, of)))}" if any(of) else "give the name of a folder"
    )
    raise CubeFileError(said, file=out, key="--out", value=out.suffix or None, remedy=remedy)


def claimed(out: Path) -> tuple[Path, ...]:
    """What is there of the files that an output of this name may have: itself, its header, quality and provenance."""
    names = (out.name, f"{out.stem}.hdr", f"{out.stem}.{PROVENANCE}.json")
    try:
        there = sorted(out.absolute().parent.iterdir())
    except OSError:
        return ()
    return tuple(path for path in there if path.name in names or path.stem == f"{out.stem}_quality")
