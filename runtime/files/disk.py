"""Bytes in and out of cube files: regular files only, bounded memory, and writes that are whole or absent."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from runtime.closing import Closing
from runtime.durable import TOKEN, alone_in, part_of, sync_folder
from runtime.errors import CubeFileError, MachineError
from runtime.untrusted import open_regular

try:
    import resource
except ImportError:  # Not a POSIX system.
    resource = None  # type: ignore[assignment]

NO_LIMIT = 1 << 46

PIECE = 1 << 24
"""Bytes moved at a time between a file and an array."""

MOST_HELD = 2000
"""Arrays that a file may hold beside each other: each takes up to a millisecond to look at."""

MOST_PIECES = 1024
"""IOV_MAX: pieces that Linux writes at a time."""

SMALL_EXPANSION = 64 << 20
"""Bytes any compressed file may expand to: no flight computer runs out of memory over them."""

EXPANSION_RATIO = 100
"""Largest expansion above SMALL_EXPANSION. Sensor noise keeps real cubes below 10; deflate itself reaches 1032."""

_READY = f".?*.{TOKEN}.ready"
"""Names of headers whose pairs are whole, and not yet in their places."""


def reason(error: BaseException) -> str:
    """What an OSError or another library's exception says, without its path: at most one clause."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading, unbuffered.

    A symbolic link is followed (data managers keep cubes behind links), and its end must be a regular file.

    Yields:
        the file and its size in bytes, both of the same open file.

    Raises:
        CubeFileError: it is missing, empty, unreadable, a folder, a device or a pipe, or reading fails in the block.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CubeFileError("is a folder, not a cube file", file=path, remedy="give the file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise CubeFileError("is not a regular file", file=path, remedy="give a file, not a device, pipe or socket")
        if status.st_size == 0:
            raise CubeFileError("the file is empty", file=path, remedy="copy it again")
        file, size = open_regular(path)
    except FileNotFoundError as error:
        raise CubeFileError("no such file", file=path, remedy="check the path") from error
    except (OSError, ValueError) as error:
        raise CubeFileError(
            f"cannot be opened: {reason(error)}", file=path, remedy="check the path and the permissions"
        ) from error
    with file:
        try:
            yield file, size
        except OSError as error:
            raise CubeFileError(f"cannot be read: {reason(error)}", file=path, remedy="check the disk") from error


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Raise CubeFileError where one of the files was written to, or replaced, while they were read in the block."""
    before = list(map(mark_of, paths))
    yield
    for path, mark in zip(paths, before, strict=True):
        if mark_of(path) != mark:
            raise CubeFileError(
                "was changed while it was read", file=path, remedy="read it again when nothing writes to it"
            )


def mark_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; empty where there is none."""
    with suppress(OSError, ValueError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def available_memory(system: Path = Path("/")) -> int:
    """Bytes of memory a new array may take on this machine, swap not counted.

    What the kernel calls available, or all there is; never more than what the control groups of this process, those of
    its container among them, and the limit of its own address space have left.

    Args:
        system: the folder that holds `proc` and `sys`.
    """
    return min(_machine_memory(system), *_group_memory(system), _own_limit(system), NO_LIMIT)


def _own_limit(system: Path) -> int:
    """What the limit of this process's address space (`ulimit -v`) leaves."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource is not None else -1
    with suppress(OSError, ValueError, IndexError):
        pages = int((system / "proc/self/statm").read_text(encoding="ascii").split()[0])
        return NO_LIMIT if limit < 0 else max(0, limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return NO_LIMIT


def _machine_memory(system: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (system / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return NO_LIMIT


def _group_memory(system: Path) -> Iterator[int]:
    """What each control group that bounds this process has left, of version 2 or 1 of the kernel's interface."""
    with suppress(OSError, ValueError):
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        for _, controllers, path in (line.split(":", 2) for line in lines):
            if not controllers:
                mount, names, prefix = system / "sys/fs/cgroup", ("memory.max", "memory.current"), ""
            elif "memory" in controllers.split(","):
                mount, prefix = system / "sys/fs/cgroup/memory", "total_"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            # A container may name a group of its host's that it cannot see: then the mount's own root bounds it.
            group = mount / path.lstrip("/")
            for folder in (group, *group.parents):
                # Without a limit the file is not there, or says `max`.
                with suppress(OSError, ValueError):
                    limit, used = (int((folder / name).read_text(encoding="ascii")) for name in names)
                    yield max(0, limit - used + _file_caches(folder, prefix))
                if folder == mount:
                    break


def _file_caches(group: Path, prefix: str) -> int:
    """Bytes that a control group counts as used, and that the kernel gives up before it refuses memory."""
    with suppress(OSError, ValueError):
        rows = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return sum(int(rows.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return 0


def allocated(path: Path, shape: Sequence[int], dtype: np.dtype[Any], *, copies: int = 1) -> NDArray[Any]:
    """An uninitialised C-ordered array for the contents of `path`.

    Args:
        copies: how many arrays of this size will be alive at once while it is read.

    Raises:
        MachineError: this machine's memory does not hold them.
    """
    needed = prod(shape) * dtype.itemsize * copies
    available = available_memory()
    try:
        if needed > available:
            raise MemoryError
        return np.empty(tuple(shape), dtype)
    except (MemoryError, ValueError) as error:
        raise MachineError(
            f"reading it takes {needed} bytes of memory, {available} are available",
            file=path,
            remedy="cut the cube, or restore it by lines: `deploy run --metrics frame`",
        ) from error


def check_expansion(path: Path, expanded: int, stored: int, *, key: str | None = None) -> None:
    """Refuse `expanded` bytes of array from `stored` bytes of compressed file: CubeFileError."""
    bound = max(SMALL_EXPANSION, EXPANSION_RATIO * stored)
    if expanded > bound:
        raise CubeFileError(
            f"{stored} compressed bytes claim to hold {expanded} bytes, more than the {bound} accepted",
            file=path,
            key=key,
            remedy="write it without compression if it is genuine",
        )


def check_held(path: Path, held: int) -> None:
    """Refuse a file that holds too many arrays: CubeFileError."""
    if held > MOST_HELD:
        raise CubeFileError(
            f"holds more than {MOST_HELD} arrays", file=path, remedy="save the cube in a file of its own"
        )


def fill(array: NDArray[Any], read: Callable[[int], bytes]) -> int:
    """Fill a C-contiguous `array` from `read(n)`, which gives 1..n bytes, or none at the end.

    Returns:
        the bytes read; fewer than `array.nbytes` where the source ended early.
    """
    target = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(target):
        piece = read(min(PIECE, len(target) - done))
        if not piece:
            break
        target[done : done + len(piece)] = piece
        done += len(piece)
    return done


def read_at(file: BinaryIO, path: Path, offset: int, array: NDArray[Any]) -> int:
    """Fill a C-contiguous array from byte `offset`, by plain reads; a memory map would not survive a file cut short.

    Returns:
        the bytes read; fewer than `array.nbytes` where the file ends before.

    Raises:
        CubeFileError: the system cannot read the file.
    """
    try:
        return read_from(file.fileno(), array.reshape(-1).view(np.uint8).data, offset)
    except OSError as error:
        raise CubeFileError(f"cannot be read: {reason(error)}", file=path, remedy="check the disk") from error


def read_from(descriptor: int, target: memoryview, position: int) -> int:
    """Fill it as far as the file goes; the bytes that were read. Raises OSError."""
    done, most = 0, 1 << 30
    while done < len(target) and (count := os.preadv(descriptor, [target[done : done + most]], position + done)):
        done += count
    return done


def write_at(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of it, however often the system takes a part only. Raises OSError."""
    while data:
        count = os.pwrite(descriptor, data, position)
        if count == 0:
            raise OSError(errno.EIO, "the system takes no more bytes")
        data, position = data[count:], position + count


def write_all_at(descriptor: int, pieces: Sequence[memoryview], position: int) -> None:
    """Write pieces of bytes one behind the other, as `write_at`."""
    left = list(pieces)
    while len(left) > 1:
        count = os.pwritev(descriptor, left[:MOST_PIECES], position)
        if count == 0:
            raise OSError(errno.EIO, "the system takes no more bytes")
        position += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]
    for piece in left:
        write_at(descriptor, piece, position)


def write_together(targets: Sequence[tuple[Path, Callable[[BinaryIO], None]]]) -> None:
    """Write files of one folder as `Together` does, each at once by a function that writes its contents.

    Raises:
        CubeFileError: the system refused (no space, no permission, a folder in the way).
    """
    with Together([path for path, _ in targets]) as together:
        for path, write in targets:
            with together.writing(path) as file:
                write(file)
        together.finish()


class Together(Closing):
    """Files of one folder that are written in any order, by any blocks, and become whole together, or not at all.

    All have temporary names, and are synced before one gets its own. A single file replaces its predecessor in one
    step. Several cannot: the last of them, a header, is renamed to say that all are ready, from where on any reader or
    writer would complete what is left to do, if this one is killed (`complete_pairs`).

    Args:
        targets: the header comes last.
        size: bytes that will be written in all, where that is known.

    Raises:
        CubeFileError: the system refused (no space, no permission, a folder in the way); nothing has changed then.
    """

    def __init__(self, targets: Sequence[Path], size: int = 0) -> None:
        self._folder, self._token = targets[0].parent, secrets.token_hex(6) if len(targets) > 1 else ""
        self._parts: dict[Path, tuple[Path, BinaryIO]] = {}
        with ExitStack() as stack:
            for path in targets:
                with _refused(path):
                    if path.is_dir():
                        raise IsADirectoryError(0, "a folder of that name is in the way")
                    part = stack.enter_context(part_of(path, self._token))
                    self._parts[path] = part, stack.enter_context(part.open("wb"))
            with _refused(targets[0]):
                check_space(self._folder, size)
            self._stack = stack.pop_all()

    @contextmanager
    def writing(self, path: Path) -> Iterator[BinaryIO]:
        """The file that will be at `path`, whose OSErrors in the block become CubeFileError."""
        with _refused(path):
            yield self._parts[path][1]
            self._parts[path][1].flush()

    def finish(self) -> None:
        """Put the files in their places. Raises CubeFileError as the class does."""
        for path, (_, file) in self._parts.items():
            with _refused(path):
                file.flush()
                os.fsync(file.fileno())
                file.close()
        current, (part, _) = list(self._parts.items())[-1]
        with _refused(current), self._stack:
            if not self._token:
                os.replace(part, current)  # noqa: PTH105
                sync_folder(self._folder)
                return
            with alone_in(self._folder):
                _complete(self._folder)
                ready = part.with_suffix(".ready")
                try:
                    os.replace(part, ready)  # noqa: PTH105
                    sync_folder(self._folder)
                except OSError:
                    ready.unlink(missing_ok=True)
                    raise
                _complete(self._folder)

    def close(self) -> None:
        # What could not be written cannot be flushed either.
        with suppress(OSError):
            self._stack.close()


def check_space(folder: Path, size: int) -> None:
    """Raise OSError where a folder's file system has not so many bytes free."""
    if size and (free := shutil.disk_usage(folder).free) < size:
        raise OSError(errno.ENOSPC, f"it takes {size} bytes, {free} are free")


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CubeFileError(
            f"cannot be written: {reason(error)}",
            file=path,
            remedy="check the folder, its permissions and its free space",
        ) from error


def complete_pairs(folder: Path) -> list[str]:
    """Put in their places the pairs of a folder that were ready when their writers were killed.

    Returns:
        the names that lie in it; none where it cannot be read.
    """
    with suppress(OSError):
        # Folders of archives hold thousands.
        names = os.listdir(folder)  # noqa: PTH208
        if not any(name.endswith(".ready") for name in names) or not any(folder.glob(_READY)):
            return names
        with alone_in(folder):
            _complete(folder)
        return os.listdir(folder)  # noqa: PTH208
    return []


def _complete(folder: Path) -> None:
    """The same for a caller that is `alone_in` it: no header ever stands beside data that it does not describe."""
    # In a folder that all may write to, strangers may have made what looks like a pair.
    owners = (os.geteuid(), folder.stat().st_uid)
    for ready in list(folder.glob(_READY)):
        header, end = folder / ready.name[1:-19], f"{ready.suffixes[-2]}.part"
        parts = {folder / part.name[1:].removesuffix(end): part for part in folder.glob(f".*{end}")}
        if all(file.lstat().st_uid in owners for file in (ready, *parts.values())):
            # Headers go first and come last, those of other pairs among the parts too.
            headers = [path for path in parts if path.suffix.lower() == ".hdr"]
            for path in (header, *headers):
                path.unlink(missing_ok=True)
            for path in sorted(parts, key=headers.count):
                os.replace(parts[path], path)  # noqa: PTH105
            sync_folder(folder)
            os.replace(ready, header)  # noqa: PTH105
            sync_folder(folder)


def refuse_inputs(path: Path, inputs: Sequence[Path]) -> None:
    """Raise CubeFileError where `path` is one of the files in `inputs`, by whatever name."""
    for other in inputs:
        with suppress(OSError):
            if path.samefile(other):
                raise CubeFileError(
                    "would overwrite the input file", file=path, remedy="write to another name or folder"
                )
