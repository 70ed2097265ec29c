"""A Python function as a sink: it gets every block as arrays of its own, which it may keep but not write to."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MachineError, plain

from .contract import Block, Sink


def _kept(array: NDArray[Any]) -> NDArray[Any]:
    copy: NDArray[Any] = array.copy()
    copy.flags.writeable = False
    return copy


def owned(block: Block) -> Block:
    """A copy of `block` that stays true when the stream uses its arrays again; nothing in it can be written to."""
    arrays: dict[str, Any] = {
        name: _kept(value) for name, value in vars(block).items() if isinstance(value, np.ndarray)
    }
    return replace(block, **arrays, metrics=MappingProxyType(dict(block.metrics)), experts=tuple(block.experts))


class Callback(Sink):
    """Calls `function(block)` for every block, in order, from the sink's own thread.

    Args:
        function: takes a `Block` of read-only copies.
        name: for errors; by default the function's module and name.
    """

    def __init__(self, function: Callable[[Block], object], name: str | None = None) -> None:
        self._function = function
        self._name = name or _name_of(function)
        self._closed = False

    def write(self, block: Block) -> None:
        """Call the function.

        Raises:
            MachineError: the function raised an exception, which is the cause; or the sink is closed.
        """
        if self._closed:
            raise MachineError("the sink is closed", key="callback", value=self._name, remedy="open it again")
        try:
            self._function(owned(block))
        # The function is the user's: whatever it raises is his to mend, and the stream's to survive.
        except Exception as error:
            raise MachineError(
                f"{self._name} raised {type(error).__name__}: {plain(error)}",
                key="callback",
                remedy="mend the function; it gets no more lines in this run",
            ) from error

    def close(self) -> None:
        self._closed = True


def _name_of(function: object) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None) or '?'}.{getattr(named, '__qualname__', '?')}"
