"""Files that are whole or absent: written under a temporary name, synced, renamed."""

import ctypes
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from .errors import InputError

try:
    import fcntl
except ImportError:  # Not a POSIX system.
    fcntl = None  # type: ignore[assignment]

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE (linux/fcntl.h, linux/fs.h)."""
_PATIENCE_S = 10.0
TOKEN = "[0-9a-f]" * 12
"""Pattern of what tells the names of parts apart."""


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    with _opened(folder, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


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


def place_folder(part: Path, path: Path) -> None:
    """Sync the folders of a finished part and give it its name in one step; what was there is the part then.

    Raises:
        OSError: the system refused, or cannot exchange folders; `path` is as it was.
    """
    for folder, _, _ in os.walk(part):
        sync_folder(Path(folder))
    if not os.path.lexists(path):
        part.rename(path)
    elif not swap(part, path):
        raise OSError(errno.EEXIST, "is there, and cannot be replaced in one step on this file system: delete it first")
    sync_folder(path.parent)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold others off that ask for the same, for moments; nobody where the file system of `folder` has no locks.

    Raises:
        OSError: somebody holds this one off for seconds.
    """
    with _opened(folder, os.O_RDONLY) as descriptor:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise TimeoutError(errno.ETIMEDOUT, "another process keeps its folder locked") from error
                time.sleep(0.01)
            except OSError:
                break
        yield


@contextmanager
def part_of(path: Path, token: str = "", *, folder: bool = False, mode: int = 0o666) -> Iterator[Path]:
    """A new file or folder beside `path`, to be filled and renamed; removed at the end where it still has its name.

    It is locked as long as its writer lives: the next one for `path` removes what dead ones left.

    Args:
        token: that the files of a pair share; they stay where one of them is ready (`disk.write_together`).
    """
    name = path.name if token else os.fsencode(path.name)[:200].decode(errors="ignore")
    for left in path.parent.glob(f".{escape(name)}.{TOKEN}.part"):
        with suppress(OSError), _opened(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _discard(left)
    part = path.with_name(f".{name}.{token or secrets.token_hex(6)}.part")
    while True:
        if folder:
            part.mkdir()
        with _opened(part, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, mode) as held:
            with suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX)
            # Before it was locked, another writer may have taken it for a dead one's.
            if part.exists():
                try:
                    yield part
                finally:
                    with suppress(OSError):
                        _discard(part)
                return


@contextmanager
def _opened(path: Path, flags: int, mode: int = 0o666) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _discard(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    elif not any(part.parent.glob(f".*{part.suffixes[-2]}.ready")):
        part.unlink()


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on a clean exit it is synced and takes the place of `path`.

    Args:
        private: nobody else may read it, or its folder where that is made for it.

    Raises:
        InputError: the system refused (no space, no permission, no such folder); `path` is as it was.
    """
    try:
        if private:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with part_of(path, mode=0o600 if private else 0o666) as temporary:
            yield temporary
            with _opened(temporary, os.O_RDONLY) as written:
                os.fsync(written)
            temporary.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}",
            file=path,
            remedy="check the folder, its permissions and its free space",
        ) from error


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
