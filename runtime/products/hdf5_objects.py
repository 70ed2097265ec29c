"""What the objects of an HDF5 file are made of, and what of them a copy may hold."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 5: "n-bit", 6: "scale-offset", 32000: "LZF"}
"""Those that HDF5 and h5py have built in: for any other HDF5 looks for a library to load."""
_MOST_POINTERS = 1 << 16
"""Texts, lists or references that one data set or attribute may hold: each is moved by itself."""


def text_of(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def place_of(found: Any) -> Any:
    from h5py import h5o

    info = h5o.get_info(found)
    return info.fileno, info.addr


def index_of(found: Any, asked: str) -> Any:
    from h5py import h5, h5d, h5g, h5p

    if (
        isinstance(found, h5g.GroupID | h5d.DatasetID)
        and getattr(found.get_create_plist(), asked)() & h5p.CRT_ORDER_TRACKED
    ):
        return h5.INDEX_CRT_ORDER
    return h5.INDEX_NAME


def order_of(file: Any) -> tuple[int, int]:
    """What a file keeps of the order of links and attributes in its root."""
    made = file["/"].id.get_create_plist()
    return made.get_link_creation_order(), made.get_attr_creation_order()


def links_of(group: Any) -> list[bytes]:
    names: list[bytes] = []
    group.links.iterate(names.append, idx_type=index_of(group, "get_link_creation_order"))
    return names


def foreign(h5d: Any, made: Any) -> str | None:
    """Why the values of a data set are none of the file's own."""
    if made.get_layout() == h5d.VIRTUAL or made.get_external_count():
        return "its values lie in other files"
    unknown = {made.get_filter(index)[0] for index in range(made.get_nfilters())} - _FILTERS.keys()
    return f"it is compressed by filter {min(unknown)}, which a plug-in would have to undo" if unknown else None


def strange(kind: Any, shape: Sequence[int] | None) -> str | None:
    from h5py import h5t

    if any(isinstance(part, h5t.TypeReferenceID) and not part.equal(h5t.STD_REF_OBJ) for part in _parts(kind)):
        return "it refers to regions"
    if pointing(kind) and prod(shape or ()) > _MOST_POINTERS:
        return f"it holds more than {_MOST_POINTERS} texts, lists or references"
    return None


def pointing(kind: Any) -> bool:
    """Whether values of a type are addresses: they lie elsewhere in the file, or are what does."""
    from h5py import h5t

    return any(
        isinstance(part, h5t.TypeVlenID | h5t.TypeReferenceID)
        or (isinstance(part, h5t.TypeStringID) and part.is_variable_str())
        for part in _parts(kind)
    )


def _parts(kind: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    from h5py import h5t

    yield kind
    if isinstance(kind, h5t.TypeCompoundID):
        for index in range(kind.get_nmembers()):
            yield from _parts(kind.get_member_type(index))
    elif isinstance(kind, h5t.TypeVlenID | h5t.TypeArrayID):
        yield from _parts(kind.get_super())


def weight(values: Any) -> int:
    """Bytes that variable-length values take beside their array."""
    if isinstance(values, bytes | str):
        return len(values)
    if not isinstance(values, np.ndarray):
        return 0
    if values.dtype.names:
        return sum(weight(values[name]) for name in values.dtype.names)
    if values.dtype.kind != "O":
        return 0
    return sum(weight(value) + getattr(value, "nbytes", 0) for value in values.flat)


def boxes(shape: Sequence[int], most: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Start and extent of boxes that fill `shape`, none with more than `most` elements."""
    steps, room = [], most
    for length in reversed(shape):
        steps.append(max(1, min(length, room)))
        room //= steps[-1]
    ranges = (range(0, length, step) for length, step in zip(shape, reversed(steps), strict=True))
    for start in product(*ranges):
        yield start, tuple(min(step, length - at) for step, length, at in zip(steps[::-1], shape, start, strict=True))
