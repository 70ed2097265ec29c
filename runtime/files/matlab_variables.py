"""What a MATLAB file holds, as the readers of both its formats tell it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import CubeFileError, plain
from runtime.files.layout import Order

NUMERIC = {"double": "f8", "single": "f4"} | {
    f"{sign}int{8 * n}": f"{sign or 'i'}{n}" for n in (1, 2, 4, 8) for sign in ("", "u")
}
"""MATLAB's classes of real numbers, and NumPy's types for them."""

DEEPEST = 16
"""Structs within structs that are looked into."""

MEND = "save it again with save -v7 or -v7.3"


def damaged(path: Path, why: str, key: str | None = None) -> CubeFileError:
    """The file, or its variable `key`, is not what it says."""
    return CubeFileError(f"is no valid MATLAB file: {why}", file=path, key=key, remedy=MEND)


@dataclass(frozen=True)
class Variable:
    """A variable of the file, or a field of a struct.

    Attributes:
        path: its name, behind the names of the structs that it is in.
        kind: its MATLAB class, where there is one.
        shape: in MATLAB's order of axes; empty where it has none.
        place: where its reader finds it.
    """

    path: tuple[str, ...]
    kind: str
    shape: tuple[int, ...] = ()
    place: Any = None

    @property
    def name(self) -> str:
        return ".".join(self.path)

    def has_axes(self, count: int) -> bool:
        """Whether it is an array of real numbers with so many axes, none of them empty."""
        return self.kind in NUMERIC and len(self.shape) == count and 0 not in self.shape

    def __str__(self) -> str:
        return f"{plain(self.name)} ({'x'.join(map(str, self.shape)) + ' ' if self.shape else ''}{self.kind})"


class Contents(Protocol):
    """A MATLAB file that is open. Its methods raise CubeFileError where the file is damaged."""

    def top(self) -> Sequence[Variable]:
        """The variables, what is in structs left out."""

    def inside(self, variable: Variable) -> Iterator[Variable]:
        """Everything in a struct, fields of its fields included; nothing in other variables."""

    def values(self, variable: Variable) -> tuple[NDArray[Any], np.dtype[Any]]:
        """The numbers of an array as stored, with axes in MATLAB's order, and the type they stand for."""

    def doubt(self, variable: Variable, order: Order, *, unfolded: bool) -> str | None:
        """Why its axes or pixels may be in another order than MATLAB's, and the layout that turns them."""
