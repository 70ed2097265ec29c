"""Files that strangers made: only regular ones, opened without waiting, and no more of them read than is accepted."""

import errno
import io
import os
import stat
from pathlib import Path


class IrregularError(OSError):
    """A folder, a device or a pipe; `strerror` says so as a clause."""


class TooLargeError(Exception):
    """A file of more bytes than are accepted: `size` of them."""

    def __init__(self, size: int) -> None:
        self.size = size


def open_regular(path: Path, *, links: bool = True) -> tuple[io.FileIO, int]:
    """Open a file, unbuffered; returns it and its size in bytes, both of the same open file.

    Raises:
        IrregularError: it is no regular file.
        OSError, ValueError: it cannot be opened, or is a symbolic link and `links` are not followed.
    """
    # Opening a named pipe blocks until someone writes to it, so the opening must not wait.
    flags = ("O_NONBLOCK", "O_BINARY", *([] if links else ["O_NOFOLLOW"]))
    descriptor = os.open(path, sum((getattr(os, flag, 0) for flag in flags), os.O_RDONLY))
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise IrregularError(errno.EINVAL, "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
    return io.FileIO(descriptor), status.st_size


def read_untrusted(path: Path, limit: int, *, links: bool = True) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises what `open_regular` does, and TooLargeError."""
    file, size = open_regular(path, links=links)
    with io.BufferedReader(file) as reader:
        if size > limit:
            raise TooLargeError(size)
        return reader.read(size)
