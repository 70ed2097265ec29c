"""What this process may use of the machine."""

import os
from pathlib import Path

from .errors import InputError


def available_cores() -> int:
    """CPU cores that this process may run on, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity else os.cpu_count() or 1)


def cache_folder(inner: str) -> Path:
    """This user's folder `inner` for what can be made again, by the XDG base directory specification; not made here.

    Raises:
        InputError: the user has none.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "damp-deploy" / inner
    except RuntimeError as error:
        raise InputError("this user has no home", key="XDG_CACHE_HOME", remedy="set it to a folder") from error
