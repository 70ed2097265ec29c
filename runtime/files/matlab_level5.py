"""MATLAB files of version 5 ("MAT-File Level 5", MathWorks' "MAT-File Format").

They are walked here tag by tag, not by `scipy.io.loadmat`, which allocates what a tag claims and instantiates objects.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError
from runtime.files.disk import EXPANSION_RATIO, SMALL_EXPANSION, allocated, check_expansion, check_held, fill, reason
from runtime.files.layout import Order
from runtime.files.matlab_variables import DEEPEST, NUMERIC, Variable, damaged

HEADER_BYTES = 128

_MATRIX, _COMPRESSED = 14, 15
_STORED_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = dict(enumerate(("cell", "struct", "object", "char", "sparse", *NUMERIC, "function", "opaque"), start=1))
_COMPLEX, _LOGICAL = 0x0800, 0x0200

_NAME_BYTES = 4096
_FIELD_NAMES_BYTES = 1 << 20
_MOST_DIMENSIONS = 32
_PIECE = 1 << 16


@dataclass(frozen=True)
class _Place:
    """The bytes of a top-level variable in the file; inflated, a field of it is those from `begin` to `end`."""

    start: int
    length: int
    compressed: bool
    begin: int = 0
    end: int = 0


class Level5:
    """The variables of a version 5 file.

    Args:
        file, size, path: the file, open, its bytes and its path.
        head: its first 128 bytes, or all there are.

    Raises:
        CubeFileError: it is of another version, or damaged.
    """

    def __init__(self, file: BinaryIO, size: int, path: Path, head: bytes) -> None:
        endian: Literal["little", "big"] | None = {b"IM": "little", b"MI": "big"}.get(head[126:128])  # type: ignore[assignment]
        if endian is None:
            firsts = [[int.from_bytes(head[at : at + 4], order) for at in (0, 4)] for order in ("little", "big")]
            if len(head) >= 20 and any(kind < 5000 and rows > 0 for kind, rows in firsts):
                raise CubeFileError(
                    "MATLAB 4 files hold no 3-D arrays", file=path, remedy="save the cube again with save -v7 or -v7.3"
                )
            raise damaged(path, "neither version 5 nor HDF5")
        version = int.from_bytes(head[124:126], endian)
        if version != 0x0100:
            raise damaged(path, f"version {version:#06x} in the header")
        self._file, self._size, self._path, self._endian = file, size, path, endian
        self._by_numpy = re.search(rb"Platform: (posix|nt|java),", head) is not None
        self._to_inflate = max(SMALL_EXPANSION, EXPANSION_RATIO * size)

    def top(self) -> list[Variable]:
        """By the tag of each variable and the first bytes behind it: linear in the number of variables."""
        found, offset, elements = [], HEADER_BYTES, 0
        while offset < self._size:
            check_held(self._path, elements := elements + 1)
            if offset + 8 > self._size:
                raise damaged(self._path, f"a tag is cut off at byte {offset}")
            kind, length, _ = _Bytes(self._file, _Place(offset, 8, False), self._path, self._endian).tag(small=False)
            start = offset + 8
            if kind not in (_MATRIX, _COMPRESSED):
                raise damaged(self._path, f"an element of type {kind} at byte {offset} where a variable is expected")
            if start + length > self._size:
                left = self._size - start
                raise damaged(self._path, f"the variable at byte {offset} claims {length} bytes, {left} are left")
            # An element of no bytes is what MATLAB writes for an empty array inside another one.
            if length:
                place = _Place(start, length, kind == _COMPRESSED)
                name, what, shape = self._opened(place)[0].described()
                found.append(Variable((name,), what, shape, place))
            offset = start + length
        return found

    def inside(self, variable: Variable) -> Iterator[Variable]:
        """As `Contents` says; what it inflates for all structs together is bounded by the size of the file."""
        if (variable.kind, prod(variable.shape)) != ("struct", 1):
            return
        place = variable.place
        data, end = self._opened(place)
        if place.compressed:
            self._to_inflate -= end
            if self._to_inflate < 0:
                problem = "its structs claim to hold more than is accepted of compressed bytes"
                remedy = "write it without compression if it is genuine"
                raise CubeFileError(problem, file=self._path, key=variable.name, remedy=remedy)
        data.described()
        yield from self._fields(data, end, variable)

    def _fields(self, data: "_Bytes", end: int, struct: Variable) -> Iterator[Variable]:
        """The fields of a struct of 1x1 whose head was read; its bytes go to `end`."""
        width = int.from_bytes(data.element((5,), 4), self._endian)
        table = data.element((1, 2), _FIELD_NAMES_BYTES)
        names = [_text(table[at : at + width]) for at in range(0, len(table), width)] if width else []
        for name in names:
            kind, length, _ = data.tag(small=False)
            begin, after = data.position, data.position + length
            if kind != _MATRIX or after > end:
                raise damaged(self._path, f"a field of type {kind} and {length} bytes", struct.name)
            what, shape = data.described()[1:] if length else ("empty", ())
            field = Variable((*struct.path, name), what, shape, replace(struct.place, begin=begin, end=after))
            yield field
            if (what, prod(shape)) == ("struct", 1) and len(field.path) < DEEPEST:
                yield from self._fields(data, after, field)
            data.skip(after - data.position)

    def values(self, variable: Variable) -> tuple[NDArray[Any], np.dtype[Any]]:
        """As `Contents` says; CubeFileError also where they expand beyond a bound or do not fit into memory."""
        path, name, shape, place = self._path, variable.name, variable.shape, variable.place
        data, end = self._opened(place)
        dtype = np.dtype(NUMERIC[variable.kind])
        check_expansion(path, prod(shape) * dtype.itemsize, place.length, key=name)
        check_expansion(path, end, place.length, key=name)
        data.skip(place.begin - data.position if place.begin else 0)
        data.described()
        kind, length, inline = data.tag()
        if kind not in _STORED_TYPES:
            raise damaged(path, f"values of type {kind}", name)
        stored = np.dtype(("<" if self._endian == "little" else ">") + _STORED_TYPES[kind])
        if length != prod(shape) * stored.itemsize or (inline is None and length > (place.end or end) - data.position):
            raise damaged(path, f"{length} bytes for {list(shape)} of {stored}", name)
        array = allocated(path, shape[::-1], stored, copies=1 + -(-dtype.itemsize // stored.itemsize))
        if fill(array, data.read if inline is None else BytesIO(inline).read) != array.nbytes:
            raise damaged(path, "it ends before its last element", name)
        if place.compressed:
            # The checksum of the compressed stream is verified where its end is read.
            data.finish(max(end - data.position, -length % 8), name)
        return array.T, dtype

    def doubt(self, variable: Variable, order: Order, *, unfolded: bool) -> str | None:
        if not unfolded or not self._by_numpy or order.index("samples") < order.index("lines"):
            return None
        turned = ",".join({"lines": "samples", "samples": "lines"}.get(axis, axis) for axis in order)
        return (
            f"Python wrote {variable.name}, whose pixels are taken to be counted down the columns, as MATLAB does: "
            f"if they are counted along the lines, as NumPy does, --layout {turned} takes them so"
        )

    def _opened(self, place: _Place) -> tuple["_Bytes", int]:
        """The bytes of a variable behind its tag, and where they end."""
        data = _Bytes(self._file, place, self._path, self._endian)
        if not place.compressed:
            return data, place.length
        kind, length, _ = data.tag(small=False)
        if kind != _MATRIX:
            raise damaged(self._path, f"the compressed element at byte {place.start - 8} is no variable")
        return data, data.position + length


class _Bytes:
    """The bytes of a variable in order, inflated where they are compressed; `position` counts those given."""

    def __init__(self, file: BinaryIO, place: _Place, path: Path, endian: Literal["little", "big"]) -> None:
        self._file, self._place, self._path, self._endian = file, place, path, endian
        self._at = place.start
        self._inflater = zlib.decompressobj() if place.compressed else None
        self.position = 0

    def read(self, count: int) -> bytes:
        """1 to `count` bytes, or none at the end."""
        piece = self._stored(count) if self._inflater is None else self._inflated(self._inflater, count)
        self.position += len(piece)
        return piece

    def _stored(self, count: int) -> bytes:
        count = min(count, self._place.start + self._place.length - self._at)
        if count <= 0:
            return b""
        self._file.seek(self._at)
        piece = self._file.read(count)
        self._at += len(piece)
        return piece

    def _inflated(self, inflater: Any, count: int) -> bytes:
        variable = f"the variable at byte {self._place.start - 8}"
        while count > 0 and not inflater.eof:
            source = inflater.unconsumed_tail or self._stored(min(max(count, 512), _PIECE))
            try:
                piece: bytes = inflater.decompress(source, count)
            except zlib.error as error:
                raise damaged(self._path, f"{variable} does not decompress ({reason(error)})") from error
            if piece:
                return piece
            if not source:
                raise damaged(self._path, f"{variable} is cut short")
        return b""

    def take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.read(count - len(data))
            if not piece:
                raise damaged(self._path, "a variable ends too early")
            data += piece
        return data

    def skip(self, count: int) -> None:
        if count < 0:
            raise damaged(self._path, "an element is longer than what it is in")
        if self._inflater is None:
            self._at += count
            self.position += count
            return
        while count:
            count -= len(self.take(min(count, _PIECE)))

    def finish(self, most: int, name: str) -> None:
        """Read to the end, which must come within `most` bytes."""
        while piece := self.read(_PIECE):
            most -= len(piece)
            if most < 0:
                raise damaged(self._path, "more values than its dimensions ask for", name)

    def tag(self, *, small: bool = True) -> tuple[int, int, bytes | None]:
        """Type and length of the next element, and its data where the tag itself holds them (1 to 4 bytes)."""
        data = self.take(8)
        first = int.from_bytes(data[:4], self._endian)
        if small and first >> 16:
            length = first >> 16
            if length > 4:
                raise damaged(self._path, "a small element of more than 4 bytes")
            return first & 0xFFFF, length, data[4 : 4 + length]
        return first, int.from_bytes(data[4:], self._endian), None

    def element(self, kinds: tuple[int, ...], most: int) -> bytes:
        """The data of the next element, one of `kinds`, at most `most` bytes long."""
        kind, length, data = self.tag()
        if kind not in kinds or length > most:
            raise damaged(self._path, f"an element of type {kind} and {length} bytes in the head of a variable")
        return self.take(length + -length % 8)[:length] if data is None else data

    def described(self) -> tuple[str, str, tuple[int, ...]]:
        """Name, class and dimensions of the variable whose head comes next; its data come after it."""
        flags = self.element((5, 6), 8)
        if len(flags) != 8:
            raise damaged(self._path, "array flags of a wrong length")
        word = int.from_bytes(flags[:4], self._endian)
        kind = _CLASSES.get(word & 0xFF, f"class {word & 0xFF}")
        if kind in ("opaque", "function"):
            # These have no dimensions and their names are followed by what is never looked at.
            return _text(self.element((1, 2, 16), _NAME_BYTES) if kind == "opaque" else b""), kind, ()
        raw = self.element((5, 6), 4 * _MOST_DIMENSIONS)
        shape = tuple(int.from_bytes(raw[i : i + 4], self._endian, signed=True) for i in range(0, len(raw) - 3, 4))
        if len(shape) < 2 or min(shape) < 0:
            raise damaged(self._path, f"dimensions {list(shape)}")
        name = self.element((1, 2, 16), _NAME_BYTES)
        if word & _COMPLEX:
            kind = f"complex {kind}"
        elif word & _LOGICAL:
            kind = "logical"
        return _text(name), kind, shape


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "replace")
