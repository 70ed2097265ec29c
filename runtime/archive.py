"""A bundle as one file: a plain tar of what it lists, made of its content alone, and read as a stranger's.

Every byte beside the content is fixed, so the same bundle gives the same archive, and whatever is not exactly what
`pack` writes is refused: links, devices, extensions, sparse files, other orders, anything behind the end.
"""

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .bundle_files import Head, check_files, copy_checked, copy_file, head_of, install_bundle, read_head, writing
from .durable import part_of, replacing, sync_folder
from .errors import BundleError
from .trust import Trust
from .untrusted import open_regular

BLOCK = 512
END = bytes(2 * BLOCK)
MOST_MEMBERS = 1 << 16
"""More than a manifest can list."""


@dataclass(frozen=True)
class _Member:
    """A file in an archive: where its bytes are."""

    offset: int
    size: int


def pack(bundle: Path, out: Path, trust: Trust | None = None) -> Head:
    """Write a bundle, every byte of which is checked, as one file; what is at `out` is replaced as a whole.

    Raises:
        BundleError: the bundle is damaged, or not signed as it must be.
        InputError: the archive cannot be written.
    """
    head = head_of(bundle, trust)
    records = head.records
    with replacing(out) as temporary, temporary.open("wb") as file:
        for name in sorted({*head.files, *records}):
            size = records[name].bytes if name in records else len(head.files[name])
            try:
                file.write(_header(name, size))
            except ValueError as error:
                raise BundleError("has a name that is too long for an archive", file=bundle / name) from error
            if name in records:
                copy_file(bundle, name, records[name], file.write)
            else:
                file.write(head.files[name])
            file.write(bytes(-size % BLOCK))
        file.write(END)
    return head


def unpack(archive: Path, out: Path, *, replace: bool, trust: Trust | None = None) -> Head:
    """Put the bundle of an archive in its place, whole, once every byte of it was checked.

    Raises:
        BundleError: it is no archive of a bundle, damaged, or not signed as it must be; or the system refused.
    """
    with _opened(archive) as file:
        members, head = _head(file, archive, trust)
        with writing(out), part_of(out.absolute(), folder=True) as work:
            for name, member in members.items():
                path = work / name
                with writing(out / name):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("xb") as copy:
                        if name in head.files:
                            copy.write(head.files[name])
                        else:
                            file.seek(member.offset)
                            copy_checked(file, head.records[name], copy.write, archive / name)
                        copy.flush()
                        os.fsync(copy.fileno())
            for place, _, _ in os.walk(work):
                sync_folder(Path(place))
            install_bundle(work, out, replace=replace)
    return head


def check_archive(archive: Path, trust: Trust | None = None) -> Head:
    """Check an archive as `unpack` does, and write nothing. Raises BundleError."""
    with _opened(archive) as file:
        members, head = _head(file, archive, trust)
        for name, record in head.records.items():
            file.seek(members[name].offset)
            copy_checked(file, record, lambda chunk: None, archive / name)
    return head


def check(place: Path, trust: Trust | None = None) -> Head:
    """Check a bundle, as a folder or an archive: its signatures and the hash of every file. Raises BundleError."""
    return check_files(place, trust) if place.is_dir() else check_archive(place, trust)


def _opened(archive: Path) -> io.BufferedReader:
    try:
        return io.BufferedReader(open_regular(archive)[0])
    except OSError as error:
        remedy = "give the file that `deploy pack` wrote"
        raise BundleError(f"cannot be read: {error.strerror or error}", file=archive, remedy=remedy) from error


def _head(file: IO[bytes], archive: Path, trust: Trust | None) -> tuple[dict[str, _Member], Head]:
    """Where an archive's files are, and what it says of itself: it holds the files that it lists, and no others."""
    members = _members(file, archive)

    def read(name: str, limit: int) -> bytes | None:
        if name not in members:
            return None
        if members[name].size > limit:
            raise _wrong(archive, "is larger than it can be", members[name].size, key=name)
        file.seek(members[name].offset)
        return _taken(file, members[name].size, archive, key=name)

    head = read_head(read, archive, trust)
    sizes = {name: record.bytes for name, record in head.records.items()}
    sizes |= {name: len(data) for name, data in head.files.items()}
    if strange := sorted(members.keys() - sizes.keys()):
        raise _wrong(archive, "is there, and nothing in it lists it", key=strange[0])
    if missing := sorted(sizes.keys() - members.keys()):
        raise _wrong(archive, "is listed, and not there", key=missing[0])
    for name, member in members.items():
        if member.size != sizes[name]:
            raise _wrong(archive, "has another size than was built", member.size, key=name)
    return members, head


def _members(file: IO[bytes], archive: Path) -> dict[str, _Member]:
    """The files of an archive, by headers alone. Raises BundleError where `pack` would not have written it."""
    size = file.seek(0, io.SEEK_END)
    found: dict[str, _Member] = {}
    offset, last = 0, ""
    while True:
        file.seek(offset)
        header = _taken(file, BLOCK, archive)
        if header == END[:BLOCK]:
            break
        name, length = _named(header)
        if not name:
            problem = f"at byte {offset} is something else than a plain file as `deploy pack` writes it"
            raise _wrong(archive, problem, key=_said(header))
        if name <= last or len(found) == MOST_MEMBERS:
            raise _wrong(archive, "comes in another order, twice, or as one too many", key=name)
        end = offset + BLOCK + length
        file.seek(end)
        if end > size or _taken(file, -length % BLOCK, archive) != bytes(-length % BLOCK):
            raise _wrong(archive, "is cut off, or has something between it and the next file", key=name)
        found[name], last = _Member(offset + BLOCK, length), name
        offset = end + -length % BLOCK
    file.seek(offset)
    if _taken(file, len(END) + 1, archive) != END:
        raise _wrong(archive, "has another end than `deploy pack` writes", offset)
    return found


def _named(header: bytes) -> tuple[str, int]:
    """Name and size of a file by its header; no name where `pack` would have written another one."""
    try:
        name, prefix = (part.rstrip(b"\0").decode("utf-8") for part in (header[:100], header[345:500]))
        path, size = f"{prefix}/{name}" if prefix else name, int(header[124:135], 8)
        if header == _header(path, size) and not path.startswith("/") and ".." not in path.split("/"):
            return path, size
    except ValueError:
        pass
    return "", 0


def _said(header: bytes) -> str | None:
    """What a header that is none of ours calls its member, for errors alone; None where it is no header at all."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "strict").name or None
    except (tarfile.HeaderError, ValueError):
        return None


def _header(name: str, size: int) -> bytes:
    """The 512 bytes before a file. Raises ValueError where the name is too long, or the size."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def _taken(file: IO[bytes], most: int, archive: Path, key: str | None = None) -> bytes:
    try:
        return file.read(most)
    except OSError as error:
        raise _wrong(archive, f"cannot be read: {error.strerror or error}", key=key) from error


def _wrong(archive: Path, problem: str, value: object = None, *, key: str | None = None) -> BundleError:
    """With the member that is concerned as `key`."""
    remedy = "pack the bundle again, or copy the archive again"
    return BundleError(problem, file=archive, key=key, value=value, remedy=remedy)
