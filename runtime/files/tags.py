"""Directories of tags, as TIFF and EXIF (which is one) have them: looked at within bounds, and copied as they are."""

import struct
from collections.abc import Mapping, Set
from contextlib import suppress
from typing import NamedTuple, Union

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Kind of a value -> its bytes."""
BYTE, SHORT, LONG, UNDEFINED = 1, 3, 4, 7
_WHOLE = {BYTE: "B", SHORT: "H", LONG: "I", 13: "I", 16: "Q", 18: "Q"}
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
"""Tags that point to directories of their own."""
ORIENTATION = 274
NO_DATA = 42113
"""GDAL's: the number of pixels that hold nothing, as text."""
KEPT = frozenset({
    270, 271, 272, ORIENTATION, 282, 283, 296, 305, 306, 315, 316, 33432, 33723, 40091, 40092, 40093, 40094, 40095,
    EXIF, GPS, NO_DATA,
})  # fmt: skip
"""Of the first directory: what says who, when, where and how, whatever becomes of the numbers."""
PLACED = frozenset({33550, 33922, 34264, 34735, 34736, 34737})
"""Of the first directory: where on Earth it lies (GeoTIFF)."""
MOST_BYTES = 16 << 20
"""Of values that are copied."""
_BELOW: "_Nests" = {EXIF: {INTEROPERABILITY: {}}, GPS: {}}
_Nests = Mapping[int, "_Nests"]


class Entry(NamedTuple):
    """A tag: the kind of its values, how many, their bytes in the order of the file, and where in it the tag stands."""

    kind: int
    values: int
    data: bytes | memoryview
    at: int = 0


Tree = Mapping[int, Union[Entry, "Tree"]]
"""Tag -> its values, or the directory that it points to."""


class Tags:
    """A file of directories: TIFF, BigTIFF, or EXIF without `Exif` before it.

    Attributes:
        order: of bytes, `<` or `>`.
        first: where the first directory is.

    Raises:
        ValueError: it is no such file.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.order = {b"II": "<", b"MM": ">"}.get(bytes(self.data[:2]), "")
        version = self._number("H", 2) if self.order else 0
        if version not in (42, 43):
            raise ValueError("it does not begin as a TIFF file does")
        self._wide = version == 43
        self.first = self._number("Q", 8) if self._wide else self._number("I", 4)

    def directory(self, at: int) -> tuple[dict[int, Entry], int]:
        """The tags of the directory at `at`, and where it says where the next one is.

        Tags of unknown kinds, or whose values lie outside the file, are left out.

        Raises:
            ValueError: the file ends within the directory.
        """
        size, offset, step = (8, "Q", 20) if self._wide else (2, "I", 12)
        start = at + size
        end = start + step * self._number("Q" if self._wide else "H", at)
        inline = struct.calcsize(offset)
        self._number(offset, end)
        found: dict[int, Entry] = {}
        for row in range(start, end, step):
            tag, kind, count = self._number("H", row), self._number("H", row + 2), self._number(offset, row + 4)
            length = count * SIZES.get(kind, 0)
            place = row + step - inline
            place = place if length <= inline else self._number(offset, place)
            if length and place + length <= len(self.data):
                found.setdefault(tag, Entry(kind, count, self.data[place : place + length], row))
        return found, end

    def next_of(self, end: int) -> int:
        """Where the next directory is, 0 where there is none; `end` is what `directory` told."""
        return self._number("Q" if self._wide else "I", end)

    def numbers(self, entry: Entry | None, most: int = 8) -> tuple[int, ...]:
        """The first whole numbers of a tag; none where it is of another kind."""
        if entry is None or entry.kind not in _WHOLE:
            return ()
        count = min(entry.values, most)
        return struct.unpack(f"{self.order}{count}{_WHOLE[entry.kind]}", entry.data[: count * SIZES[entry.kind]])

    def orientation(self) -> int:
        """How the picture is to be turned, 1 to 8; 1 where nothing valid says so. Raises ValueError."""
        found = self.numbers(self.directory(self.first)[0].get(ORIENTATION))
        return found[0] if found and 1 <= found[0] <= 8 else 1

    def tree(self) -> Tree:
        """What of the first directory is kept, with all that lies below EXIF and GPS. Raises ValueError."""
        left = MOST_BYTES

        def branch(at: int, nests: _Nests, kept: Set[int] | None = None) -> Tree:
            nonlocal left
            made: dict[int, Entry | Tree] = {}
            for tag, entry in self.directory(at)[0].items():
                if kept is not None and tag not in kept:
                    continue
                if tag in nests:
                    with suppress(ValueError):
                        made[tag] = branch(sum(self.numbers(entry, 1)), nests[tag])
                elif tag not in (EXIF, GPS, INTEROPERABILITY) and entry.kind <= 13 and len(entry.data) <= left:
                    left -= len(entry.data)
                    made[tag] = entry
            return made

        return branch(self.first, _BELOW, KEPT | PLACED)

    def _number(self, kind: str, at: int) -> int:
        try:
            return int(struct.unpack_from(self.order + kind, self.data, at)[0])
        except (struct.error, OverflowError) as error:
            raise ValueError("it ends too early") from error


def packed(order: str, tree: Tree, at: int) -> bytes:
    """The bytes of a directory, the last of its file, for offset `at` of one in this order of bytes."""
    rows, body = [], bytearray()
    start = at + 2 + 12 * len(tree) + 4
    for tag, value in sorted(tree.items()):
        place = struct.pack(f"{order}I", start + len(body))
        if not isinstance(value, Entry):
            body += packed(order, value, start + len(body))
            rows.append(struct.pack(f"{order}HHI", tag, LONG, 1) + place)
            continue
        rows.append(struct.pack(f"{order}HHI", tag, value.kind, value.values))
        if len(value.data) <= 4:
            rows[-1] += bytes(value.data).ljust(4, b"\0")
        else:
            rows[-1] += place
            body += value.data
        body += bytes(len(body) % 2)
    return struct.pack(f"{order}H", len(tree)) + b"".join(rows) + bytes(4) + bytes(body)


def header(order: str, first: int) -> bytes:
    """The first eight bytes of a file whose first directory is at `first`."""
    return {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, first)
