"""Files that are whole or absent: written under a temporary name, synced, renamed."""

import ctypes
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE (linux/fcntl.h, linux/fs.h)."""


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def swap(one: Path, other: Path) -> bool:
    """Exchange two folders or files at once (Linux: renameat2 with RENAME_EXCHANGE).

    Returns:
        False where this system or file system cannot; then nothing was done.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done: int = renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on a clean exit it is synced and takes the place of `path`.

    Raises:
        InputError: the system refused (no space, no permission, no such folder); `path` is as it was.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}",
            file=path,
            remedy="check the folder, its permissions and its free space",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def fill_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write and sync files, {inner path: content}, in a folder that is not yet in its place. Raises OSError."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    for place, _, _ in os.walk(folder):
        sync_folder(Path(place))


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a small file whole, with these permissions from the beginning, or not at all; never over another one.

    Raises:
        InputError: something is there, or the system refused.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _place_new(temporary, path)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise InputError("exists already", file=path, remedy="give another name") from error
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}",
            file=path,
            remedy="check the folder, its permissions and its free space",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _place_new(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:
        # Some file systems of memory cards know no second names.
        if os.path.lexists(path):
            raise
        temporary.rename(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all; raises InputError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
