"""Texts of variable length in attributes of HDF5 files, found byte by byte ("HDF5 File Format Specification 3.0").

HDF5 never ends reading the heap that holds them where its sizes are damaged (found in 2.0.0); texts of fixed length lie
in no heap. Whatever is not as the specification has it raises ValueError, IndexError or struct.error.
"""

from collections.abc import Callable, Iterator
from struct import unpack_from

Raw = Callable[[int, int], bytes]
"""Bytes of the file from an offset on, as many as asked for or fewer at its end."""
_CONTINUES, _ATTRIBUTE, _MANY = 0x10, 0x0C, 0x15
_MOST_BLOCKS, _MOST_BYTES, _MOST_ROWS = 64, 1 << 20, 32
_MOST_HEAP = 1 << 24
_NOWHERE = (1 << 64) - 1


def variable_text(raw: Raw, header: int, name: bytes) -> bytes | None:
    """The one text of an attribute, None where the object header has no such attribute.

    Args:
        raw: the file.
        header: the offset of the object header of what has the attribute.
        name: of the attribute.
    """
    for kind, data in _messages(raw, header):
        for attribute in [data] if kind == _ATTRIBUTE else _many(raw, data) if kind == _MANY else ():
            if (value := _value(attribute, name)) is not None:
                length, heap, index = unpack_from("<IQI", value)
                return _object(raw, heap, index)[:length]
    return None


def _messages(raw: Raw, header: int) -> Iterator[tuple[int, bytes]]:
    """Kind and bytes of every message of an object header, of version 1 or 2."""
    head = raw(header, 64)
    modern = head[:4] == b"OHDR"
    if modern:
        at = 6 + (16 if head[5] & 0x20 else 0) + (4 if head[5] & 0x10 else 0)
        width = 1 << (head[5] & 3)
        blocks = [(header + at + width, int.from_bytes(head[at : at + width], "little"))]
        lead = 6 if head[5] & 4 else 4
    else:
        blocks, lead = [(header + 16, unpack_from("<I", head, 8)[0])], 8
    for offset, length in blocks:
        if length > _MOST_BYTES or len(blocks) > _MOST_BLOCKS:
            raise ValueError("an object header is too long")
        block, at = raw(offset, length), 0
        while at + lead <= len(block):
            kind, size = unpack_from("<BH" if modern else "<HH", block, at)
            data = block[at + lead : at + lead + size]
            if kind == _CONTINUES:
                place, more = unpack_from("<QQ", data)
                blocks.append((place + 4, more - 8) if modern else (place, more))
            yield kind, data
            at += lead + size


def _many(raw: Raw, data: bytes) -> Iterator[bytes]:
    """Attribute messages in a heap of their own, where more than eight lie, as the tree over it lists them."""
    heap, tree = unpack_from("<QQ", data, 4 if data[1] & 1 else 2)
    if heap == _NOWHERE:
        return
    signature, kind, node, record, depth, root, count = unpack_from("<4sxBIHH2xQH", raw(tree, 32))
    if signature != b"BTHD" or kind != 8 or record != 17 or depth > 1 or node > _MOST_BYTES:
        raise ValueError("a list of attributes is damaged or too long")
    take = _heap(raw, heap)
    leaves = [(root, count)]
    if depth:
        between, leaves = _inner(raw(root, node), count, node)
        yield from map(take, between)
    for place, held in leaves:
        block = raw(place, node)
        yield from (take(block[at : at + 8]) for at in range(6, 6 + held * record, record))


def _inner(block: bytes, count: int, node: int) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Of an inner node: identifiers in its records, and place and count of the leaves between them."""
    width = -(-((node - 10) // 17).bit_length() // 8)
    between = [block[at : at + 8] for at in range(6, 6 + 17 * count, 17)]
    ends = [6 + 17 * count + child * (8 + width) for child in range(count + 1)]
    return between, [
        (unpack_from("<Q", block, at)[0], int.from_bytes(block[at + 8 : at + 8 + width], "little")) for at in ends
    ]


def _heap(raw: Raw, heap: int) -> Callable[[bytes], bytes]:
    """What gives the object of an identifier of a fractal heap."""
    head = raw(heap, 144)
    largest, (width, start, direct, bits) = unpack_from("<I", head, 10)[0], unpack_from("<HQQH", head, 110)
    root, rows = unpack_from("<QH", head, 132)
    if head[:4] != b"FRHP" or head[7:9] != b"\0\0" or rows > _MOST_ROWS or not 0 < width <= _MOST_BLOCKS:
        raise ValueError("a heap of attributes is damaged or filtered")
    offset_bytes, length_bytes = -(-bits // 8), -(-min(largest, direct).bit_length() // 8)
    blocks = [(start * (1 << max(0, row - 1)), 8 * (row * width + at)) for row in range(rows) for at in range(width)]
    places = raw(root + 13 + offset_bytes, 8 * width * rows)

    def take(identifier: bytes) -> bytes:
        if identifier[0] & 0xF0:
            raise ValueError("an attribute is too long")
        offset = int.from_bytes(identifier[1 : 1 + offset_bytes], "little")
        length = int.from_bytes(identifier[1 + offset_bytes : 1 + offset_bytes + length_bytes], "little")
        if not rows:
            return raw(root + offset, length)
        for size, at in blocks:
            if size > direct:
                break
            if offset < size:
                return raw(unpack_from("<Q", places, at)[0] + offset, length)
            offset -= size
        raise ValueError("an attribute lies outside its heap")

    return take


def _value(data: bytes, name: bytes) -> bytes | None:
    """The value of an attribute message of that name."""
    version, _, *sizes = unpack_from("<BBHHH", data)
    at = 9 if version == 3 else 8
    # Version 1 fills its parts up to 8 bytes.
    padded = [-(-size // 8) * 8 if version == 1 else size for size in sizes]
    found = data[at : at + sizes[0]].split(b"\0")[0]
    return data[at + sum(padded) :] if found == name else None


def _object(raw: Raw, heap: int, index: int) -> bytes:
    """An object of a global heap collection."""
    signature, length = unpack_from("<4s4xQ", raw(heap, 16))
    if signature != b"GCOL" or length > _MOST_HEAP:
        raise ValueError("a heap is damaged")
    block, at = raw(heap, length), 16
    while at + 16 <= len(block):
        number, size = unpack_from("<H6xQ", block, at)
        if number == index:
            return block[at + 16 : at + 16 + size]
        at += 16 + -(-size // 8) * 8
    raise ValueError("a heap lacks an object")
