"""Folders of results: whole or absent, like everything that is written here."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runtime.bundle_files import bring_back, install_bundle
from runtime.durable import fill_folder, part_of
from runtime.errors import InputError
from runtime.files import written_files
from runtime.manifest import MANIFEST


def refuse_folder(out: Path, replace: bool) -> None:
    """Raise InputError where a folder could not be written to `out`, before any work is done for it.

    Something is there and may not be replaced or is no folder, or the folder that it would lie in is not there.
    """
    refuse_existing(out, replace)
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir()):
        raise InputError("is no folder, and is not replaced", file=out, key="--out", remedy="give another --out")
    if not out.absolute().parent.is_dir():
        raise InputError("no such folder", file=out.absolute().parent, key="--out", remedy="make the folder first")


def write_folder(out: Path, files: Mapping[str, bytes], *, replace: bool) -> None:
    """Write a folder under a temporary name, sync it, and put it in its place.

    Args:
        out: where to; what is there is replaced as a whole where `replace` says so.
        files: path inside the folder -> content.
        replace: whether something may be there.

    Raises:
        InputError: the system refused; `out` is as it was.
    """
    refuse_folder(out, replace)
    out = out.absolute()
    try:
        with part_of(out, folder=True) as work:
            fill_folder(work, files)
            install_bundle(work, out, replace=replace)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}",
            file=out,
            key="--out",
            remedy="check the folder, its permissions and its free space",
        ) from error


@contextmanager
def ours_alone(work: Path) -> Iterator[Path]:
    """A folder in which unfinished work waits to go on, made where it is not there; nobody else works in it meanwhile.

    Its name can be foreseen, so somebody else may have made it, to have his files taken for ours.

    Raises:
        InputError: somebody else did, or works in it now, or the system refused.
    """
    try:
        work.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror or error}", file=work, remedy="give a folder you may write"
        ) from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            problem = "belongs to somebody else, or others may write to it"
            raise InputError(problem, file=work, remedy="remove it, or give another --out")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it locked may have removed it.
            work.lstat()
        except (BlockingIOError, FileNotFoundError) as error:
            raise InputError("another process is at the same work", file=work, remedy="wait until it ends") from error
        except OSError:
            pass  # This file system has no locks.
        yield work
    finally:
        os.close(descriptor)


def refuse_existing(out: Path, replace: bool) -> None:
    """Raise InputError where `out` exists, be it as a broken link, and may not be replaced."""
    bring_back(out)
    if os.path.lexists(out) and not replace:
        raise InputError("exists already", file=out, key="--out", remedy="give another --out, or --replace")


def refuse_foreign(out: Path) -> None:
    """Raise InputError where what `--replace` would remove is neither a bundle nor an empty folder."""
    ours = not out.is_symlink() and out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))
    if os.path.lexists(out) and not ours:
        raise InputError(
            "is not a bundle and is not replaced", file=out, key="--out", remedy="give another --out, or move it away"
        )


def refuse_cube_output(out: Path, replace: bool) -> None:
    """Raise InputError where a cube could not be written to `out`, before any work is done for it.

    Something of that name or of its ENVI partner's exists and may not be replaced, the format is not known, or there
    is no such folder.
    """
    for file in written_files(out):
        refuse_existing(file, replace)
    if not out.absolute().parent.is_dir():
        raise InputError("no such folder", file=out, key="--out", remedy="make the folder first")
