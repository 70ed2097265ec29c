"""Arrays that nothing writes to: a bit that flips in one is found, and put back from a copy."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MachineError


class Tables:
    """Watches arrays in place, with a copy and a checksum of each."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = list(arrays)
        self._copies = [np.ascontiguousarray(array).copy() for array in arrays]
        self._sums = [_sum(copy) for copy in self._copies]

    def mend(self) -> int:
        """Put back what was altered; returns how many arrays were. Raises MachineError where a copy was, too."""
        altered = 0
        for array, copy, known in zip(self._arrays, self._copies, self._sums, strict=True):
            if _sum(array) == known:
                continue
            if _sum(copy) != known:
                raise MachineError(
                    "the radiometry's tables changed in memory, and their copies too", key="radiometry",
                    remedy="start the stream anew",
                )  # fmt: skip
            np.copyto(array, copy)
            altered += 1
        return altered


def _sum(array: NDArray[Any]) -> int:
    return crc32(np.ascontiguousarray(array).view(np.uint8).data)
