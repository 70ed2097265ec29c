"""One driver at an archive, and what dead ones left in it."""

import fcntl
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.durable import TOKEN
from runtime.errors import InputError

from .order import FOLDER

LOCK = "lock"
PART = re.compile(rf"\..+\.{TOKEN}\.part", re.DOTALL)
PARTS = re.compile(r"\..+\.([0-9a-f]{16})\.parts", re.DOTALL)
OTHERS_AGE_S = 3600.0
"""Of a temporary that another computer's worker may still be writing where its lock is not seen here."""


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Be the only driver at an archive.

    Raises:
        InputError: another one is, or was on a computer that cannot be asked; or the system refused.
    """
    file = out / FOLDER / LOCK
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", file=file, key="--out", remedy="give a folder that you may write to"
        ) from error
    try:
        owner = _owner(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(file, owner) from error
        except OSError as error:
            # A disk without locks: who wrote last is asked.
            host, pid = owner
            if host and (host != platform.node() or _lives(pid)):
                raise _taken(file, owner) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": platform.node(), "pid": os.getpid()}).encode(), 0)
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> tuple[str, int]:
    with suppress(ValueError, KeyError, TypeError, OSError):
        told = json.loads(os.pread(descriptor, 4096, 0))
        return str(told["host"]), int(told["pid"])
    return "", 0


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _taken(file: Path, owner: tuple[str, int]) -> InputError:
    host, pid = owner
    return InputError(
        "another driver is at this archive",
        file=file.parent.parent,
        key="--out",
        value=f"{host}, process {pid}" if host else None,
        remedy=f"wait until it ends, or end it; if it cannot be running, remove {file}",
    )


def sweep(out: Path, *, shared: bool, keys: Collection[str] = ()) -> int:
    """Remove what writers that are dead had not finished; returns how many.

    Args:
        keys: of restorations that go on; parts of others are removed too.
        shared: workers of other computers may be writing, whose locks are perhaps not seen here.
    """
    begun = {key[:16] for key in keys}
    swept, oldest = 0, time.time() - OTHERS_AGE_S
    for place, folders, files in os.walk(out):
        for name in [*files, *folders]:
            if not PART.fullmatch(name):
                continue
            part = Path(place, name)
            with suppress(OSError):
                descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if shared and os.fstat(descriptor).st_mtime > oldest:
                        continue
                    if part.is_dir():
                        shutil.rmtree(part)
                    else:
                        part.unlink()
                    swept += 1
                finally:
                    os.close(descriptor)
        for name in folders:
            if (parts := PARTS.fullmatch(name)) and parts[1] not in begun:
                shutil.rmtree(Path(place, name), ignore_errors=True)
                swept += 1
        folders[:] = [name for name in folders if name != FOLDER and not PART.fullmatch(name)]
    return swept
