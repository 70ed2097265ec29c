"""Heaps of an HDF5 file, looked at before HDF5 does: it never ends reading one whose sizes are damaged.

"HDF5 File Format Specification 3.0", III.E: global heap collections hold all values of variable length.
"""

import os
from struct import unpack_from

from runtime.files.disk import PIECE

_SIGNATURE, _HEAD = b"GCOL", 16
_MOST = 1 << 28


def largest_object(descriptor: int, size: int) -> int:
    """Bytes of the largest object in any heap of a file of `size` bytes, which is read once from end to end.

    Raises:
        ValueError: a heap is damaged.
    """
    largest = offset = 0
    while offset < size:
        block = os.pread(descriptor, PIECE + len(_SIGNATURE), offset)
        at = block.find(_SIGNATURE)
        while at >= 0:
            largest = max(largest, _largest(descriptor, offset + at))
            at = block.find(_SIGNATURE, at + 1)
        offset += PIECE
    return largest


def _largest(descriptor: int, start: int) -> int:
    head = os.pread(descriptor, _HEAD, start)
    # HDF5 takes no other version.
    if len(head) < _HEAD or head[4] != 1:
        return 0
    (length,) = unpack_from("<Q", head, 8)
    heap = os.pread(descriptor, min(length, _MOST), start)
    if length < _HEAD or len(heap) != length:
        raise ValueError("a heap of its texts is damaged, or too large")
    largest, at = 0, _HEAD
    while at + _HEAD <= length:
        index, count = unpack_from("<H6xQ", heap, at)
        # Of free space, which has the number 0, the size is that of its head as well.
        step = _HEAD + -(-count // 8) * 8 if index else count
        if step < _HEAD or at + step > length:
            raise ValueError("a heap of its texts is damaged")
        if index:
            largest = max(largest, count)
        at += step
    return largest
