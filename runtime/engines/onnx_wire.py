"""The protobuf wire format (protobuf.dev/programming-guides/encoding), as far as ONNX files use it.

Nothing is copied, and what is long is skipped by its length. What is no message raises ValueError or IndexError.
"""

from collections.abc import Iterator

import numpy as np

Value = int | memoryview | bytes
"""A number, what has a length, or the bytes of a number of fixed length."""
MOST_FIELDS = 1 << 20
"""Fields that are looked at of one file, a second's work; 6,000 nodes of ours have 55,000."""
MOST_NUMBERS = 64
"""Of a list that is read."""


class Message(dict[int, list[Value]]):
    """Fields of a message by number; a field that may come once and comes again is refused, not joined."""

    def number(self, field: int, default: int = 0) -> int:
        """A signed integer."""
        value = self._one(field, default)
        if not isinstance(value, int):
            raise ValueError("not a number")
        return _signed(value)

    def text(self, field: int) -> str:
        """A string, empty where there is none."""
        return _text(self._one(field, memoryview(b"")))

    def texts(self, field: int) -> tuple[str, ...]:
        """Strings."""
        return tuple(map(_text, self.get(field, ())))

    def part(self, field: int) -> memoryview:
        """A message, or bytes."""
        return _part(self._one(field, memoryview(b"")))

    def parts(self, field: int) -> list[memoryview]:
        """Messages."""
        return [_part(value) for value in self.get(field, ())]

    def numbers(self, field: int) -> tuple[int, ...]:
        """At most MOST_NUMBERS signed integers, packed or not."""
        found = []
        for value in self.get(field, ()):
            if isinstance(value, int):
                found.append(_signed(value))
                continue
            packed, at = _part(value), 0
            while at < len(packed) and len(found) <= MOST_NUMBERS:
                number, at = varint(packed, at)
                found.append(_signed(number))
        if len(found) > MOST_NUMBERS:
            raise ValueError("a list is too long")
        return tuple(found)

    def count(self, field: int) -> int:
        """How many integers `numbers` would have, however many."""
        return sum(
            1 if isinstance(v, int) else int((np.frombuffer(_part(v), np.uint8) < 0x80).sum())
            for v in self.get(field, ())
        )

    def _one(self, field: int, default: Value) -> Value:
        values = self.get(field, (default,))
        if len(values) != 1:
            raise ValueError("a field comes twice")
        return values[0]


class Reader:
    """Reads messages, together of at most MOST_FIELDS fields."""

    def __init__(self) -> None:
        self._left = MOST_FIELDS

    def message(self, view: memoryview) -> Message:
        """All fields of a message."""
        found = Message()
        for number, value in self.fields(view):
            found.setdefault(number, []).append(value)
        return found

    def fields(self, view: memoryview) -> Iterator[tuple[int, Value]]:
        """(number, value) of a message's fields, in order."""
        at, end = 0, len(view)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError("too many fields")
            tag, at = varint(view, at)
            # Other parsers keep 32 bits of a tag: a longer one would be another field to them than to us.
            if not 8 <= tag < 1 << 32:
                raise ValueError("not a field")
            kind = tag & 7
            if kind == 0:
                value, at = varint(view, at)
                yield tag >> 3, value
                continue
            if kind == 2:
                length, at = varint(view, at)
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise ValueError("unknown wire type")
            if at + length > end:
                raise ValueError("truncated")
            content = view[at : at + length]
            yield tag >> 3, content if kind == 2 else bytes(content)
            at += length


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = view[at]
    if value < 0x80:
        return value, at + 1
    value = 0
    for shift in range(0, 70, 7):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                raise ValueError("a number longer than it need be")
            return value, at
    raise ValueError("varint too long")


def _signed(value: int) -> int:
    if value >> 64:
        raise ValueError("a number has more than 64 bits")
    return value - (1 << 64) if value >> 63 else value


def _part(value: Value) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("not a part with a length")
    return value


def _text(value: Value) -> str:
    return str(_part(value), "utf-8")
