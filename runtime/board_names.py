"""What this computer is called, and whether a bundle is for it."""

import os
from contextlib import suppress
from pathlib import Path

from .errors import BundleError, MachineError
from .manifest import Manifest

BOARD = Path("/etc/damp-deploy/board")
"""Where the owner says what this computer is called, a name on a line."""
VARIABLE = "DAMP_DEPLOY_BOARD"
"""Says it in its place, names apart by semicolons, which no name holds."""
DEVICE_TREE = Path("/proc/device-tree/compatible")
MOST = 4096
"""Bytes of either file that are read."""


def board_names() -> tuple[str, ...]:
    """What this computer is called by its owner and by its device tree; nothing where nobody says.

    Raises:
        BundleError: what the owner says cannot be read.
    """
    told = os.environ.get(VARIABLE, "").replace(";", "\n") or _told(BOARD)
    # Not every computer has a device tree, or shows it.
    with suppress(BundleError):
        told += "\n" + _told(DEVICE_TREE).replace("\0", "\n")
    return tuple(dict.fromkeys(name.strip() for name in told.split("\n") if name.strip()))


def refuse_other_board(manifest: Manifest, file: Path) -> None:
    """Raise MachineError where a bundle is for other boards than this one; one that has no name takes any."""
    names = board_names() if manifest.compatible else ()
    if names and not set(names) & set(manifest.compatible):
        raise MachineError(
            "the bundle is for other boards than this one",
            file=file,
            key="compatible",
            value=", ".join(manifest.compatible),
            remedy=f"this is {', '.join(names)[:200]}: give it its own bundle, or name it in {BOARD}",
        )


def _told(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MOST).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        remedy = "let this user read what the board is called"
        raise BundleError(f"cannot be read: {error.strerror}", file=file, remedy=remedy) from error
