"""What holds something that is given back at the end of a `with`."""

from abc import ABC, abstractmethod
from typing import TypeVar

Self_ = TypeVar("Self_", bound="Closing")


class Closing(ABC):
    """Open from its making on; a context manager that closes it."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""

    def __enter__(self: Self_) -> Self_:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
