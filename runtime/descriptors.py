"""File descriptors where there are none left: some are held back for what must go on, the record above all.

Others on the computer, or connections that strangers hold, can use up what a process or the system has. What is held
back is given up for one action at a time and taken again after it.
"""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

HELD = 8
"""More than any action that insists opens at a time."""
SHORTAGE = (errno.EMFILE, errno.ENFILE)

Result = TypeVar("Result")
_held: list[int] = []
_lock = threading.RLock()


def hold_back() -> None:
    """Take the descriptors that are held back, as far as there are so many; may be called again."""
    with _lock, suppress(OSError):
        while len(_held) < HELD:
            _held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def raise_limit() -> None:
    """Let this process open as many files as the system allows it to."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is of too few descriptors: later there may be some again."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in SHORTAGE:
            return True
        error = error.__cause__
    return False


def insisting(action: Callable[[], Result]) -> Result:
    """Do something that opens files; where no descriptor is left, once more with those that are held back."""
    try:
        return action()
    except Exception as error:
        if not is_shortage(error):
            raise
    with _lock:
        while _held:
            os.close(_held.pop())
        try:
            return action()
        finally:
            hold_back()
