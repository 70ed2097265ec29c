"""Names of what is restored."""

from pathlib import Path

from runtime.products import WRITERS, suffix_of
from runtime.products.contract import Description

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


def kind_of(out: Path, description: Description) -> str:
    """The format of `WRITERS` that a name asks for, `like` where it is that of its source."""
    own = restored_name(description, "like")
    if Path(own).suffix.lower() == out.suffix.lower():
        return "like"
    suffix = out.suffix.lower()
    known = {suffix_of(kind): kind for kind in WRITERS}
    return known.get(SAME.get(suffix, suffix), "like")
