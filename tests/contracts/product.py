"""A product in memory, read by lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.products.contract import CubeReader, Description
from runtime.stated import NOTHING, Stated


class Memory(CubeReader):
    """Gives the lines of a cube [bands, lines, samples], with a mask [lines, samples] of missing pixels."""

    def __init__(
        self, cube: NDArray[Any], stated: Stated = NOTHING, mask: NDArray[np.bool_] | None = None, **more: Any
    ) -> None:
        self.cube, self.mask = cube, mask
        shape = (cube.shape[0], cube.shape[1], cube.shape[2])
        self.description = Description(
            "envi", Path("memory.img"), (Path("memory.img"),), shape, cube.dtype, 1, 0, stated, **more
        )
        self.most = 0

    def read_lines(self, start: int, stop: int) -> NDArray[Any]:
        assert 0 <= start < stop <= self.cube.shape[1]
        self.most = max(self.most, stop - start)
        return np.ascontiguousarray(self.cube[:, start:stop])

    def missing(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        return None if self.mask is None else self.mask[start:stop]

    def close(self) -> None:
        pass
