"""The files of a bundle: written whole, read with every byte checked before it is used."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .durable import alone_in, fill_folder, swap, sync_folder, write_bytes
from .errors import BundleError, UntrustedError
from .made import MADE, Choice, Made, parse_made
from .manifest import LARGEST, MANIFEST, FileRecord, Manifest, dump, parse
from .secret_key import SecretKey, comment_on
from .signing import LARGEST_MINISIG, MINISIG, key_name
from .trust import NO_KEYRING, Signed, Trust, trust_here
from .untrusted import IrregularError, open_regular
from .versions import PROGRAM, within

MEND, GIVE = "copy or build the bundle again", "give the folder that `deploy build` wrote"
MANIFEST_SIGNED, MADE_SIGNED = MANIFEST + MINISIG, MADE + MINISIG
TOP = (MANIFEST, MANIFEST_SIGNED, MADE, MADE_SIGNED)
"""The files that say what a bundle is; they list all others."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Head:
    """What a bundle says of itself, whose signatures were checked; none of the files that it lists was read.

    Attributes:
        manifest: what the ground wrote.
        made: what was made of it where it flies; None where nothing was.
        files: name -> bytes of those of `TOP` that are there.
        signed, made_signed: who signed manifest and made; None where nobody did.
    """

    manifest: Manifest
    made: Made | None
    files: dict[str, bytes]
    signed: Signed | None = None
    made_signed: Signed | None = None

    @property
    def records(self) -> dict[str, FileRecord]:
        """Size and hash of every file that is listed."""
        return {**self.manifest.files, **(self.made.files if self.made else {})}


@dataclass(frozen=True)
class Contents(Head):
    """A bundle whose every byte was checked.

    Attributes:
        files: inner path -> bytes of every file, those of `TOP` among them.
    """

    @property
    def whole(self) -> dict[str, FileRecord]:
        """Size and hash of every file, those of `TOP` among them."""
        return self.records | _records({name: self.files[name] for name in TOP if name in self.files})

    @property
    def choice(self) -> Choice:
        """What runs, and why."""
        if self.made is not None:
            return self.made.choice
        told, golden = self.manifest.precision, self.manifest.golden
        return Choice(precision=told.chosen, why=told.why, tolerance=golden.tolerance)


def verified_bundle(path: str | Path, trust: Trust | None = None, *, made: bool = True) -> Contents:
    """Every file that the manifest and the record of the engine list, all hashes checked; no engine is loaded.

    Args:
        path: the bundle's folder.
        trust: whose signature is needed; the keyring of this computer where it is None.
        made: read what was made of it, too; else it is as it came from the ground.

    Raises:
        BundleError: something is missing, damaged, altered, of an unknown version, or not signed as it must be.
        InputError: the keyring cannot be used.
    """
    folder = Path(path)
    head = head_of(folder, trust, made=made)
    files = {name: _verified(folder, name, record) for name, record in head.records.items()}
    return Contents(head.manifest, head.made, {**head.files, **files}, head.signed, head.made_signed)


def replaceable_bundle(folder: Path, trust: Trust | None = None) -> Contents:
    """The same where its engine is to be replaced: one that is damaged, or not signed as it must be, is none."""
    try:
        return verified_bundle(folder, trust)
    except BundleError:
        return verified_bundle(folder, trust, made=False)


Read = Callable[[str, int], bytes | None]
"""(inner path, most bytes) -> what is there, or None."""


def head_of(folder: Path, trust: Trust | None = None, *, made: bool = True) -> Head:
    """What a bundle says of itself, and who signed it; no other file is read. Raises as `verified_bundle`."""
    refuse_no_bundle(folder)

    def read(name: str, limit: int) -> bytes | None:
        return _read_if_there(folder, name, limit) if made or name not in (MADE, MADE_SIGNED) else None

    return read_head(read, folder, trust)


def read_head(read: Read, place: Path, trust: Trust | None = None) -> Head:
    """The same of files that lie anywhere; errors name them below `place`."""
    trust = trust_here() if trust is None else trust
    files, signed = _signed_file(read, place, MANIFEST, trust)
    manifest = _parse_manifest(files[MANIFEST], place)
    needed = [*map(manifest.graphs.get, manifest.tolerances), *manifest.graphs.values()]
    needed += [graph for graph in (manifest.metrics_graph, manifest.extractor_graph) if graph is not None]
    needed += [*manifest.proving, *manifest.instrument.values()]
    for name in needed:
        if name is None or name not in manifest.files:
            raise BundleError("the manifest does not list a file it needs", file=place, key=name, remedy=MEND)
    try:
        of_made, made_signed = _signed_file(read, place, MADE, trust)
    except UntrustedError as error:
        error.remedy += "; or build the engine again: `deploy finalize --rebuild`"
        raise
    made = None
    if MADE in of_made:
        made = parse_made(of_made[MADE], manifest, digest(files[MANIFEST]), file=place / MADE)
    head = Head(manifest, made, {**files, **of_made}, signed, made_signed)
    if own := sorted(head.records.keys() & set(TOP)):
        raise BundleError("is listed like one of the files that it lists", file=place / own[0], remedy=MEND)
    return head


def _signed_file(read: Read, place: Path, name: str, trust: Trust) -> tuple[dict[str, bytes], Signed | None]:
    """A file of `TOP` and the one that signs it, where they are there, and who did: before anybody looks into it."""
    data = read(name, LARGEST)
    if data is None:
        if name == MANIFEST:
            raise BundleError(f"is not a bundle, it has no {MANIFEST}", file=place, remedy=GIVE)
        return {}, None
    minisig = read(name + MINISIG, LARGEST_MINISIG)
    # While an engine takes another one's place, both signatures are there.
    signed = trust.signed(data, minisig, file=place / name, most=1 if name == MANIFEST else 2)
    return {name: data, **({} if minisig is None else {name + MINISIG: minisig})}, signed


def _parse_manifest(data: bytes, place: Path) -> Manifest:
    manifest = parse(data, Manifest, file=place / MANIFEST)
    oldest = manifest.minimum_runtime
    if oldest is not None and not within(PROGRAM, f">={oldest}"):
        raise BundleError(
            f"needs a newer version of this program, which is {PROGRAM}",
            file=place / MANIFEST,
            key="minimum_runtime",
            value=oldest,
            remedy="update it, or build the bundle for this version",
        )
    return manifest


def unlisted_files(folder: str | Path, bundle: Contents) -> tuple[str, ...]:
    """Files in a bundle's folder that nothing in it lists; nothing ever opens them."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    inner = (path.relative_to(folder).as_posix() for path in found)
    return tuple(sorted(set(inner) - bundle.files.keys()))


def read_manifest(folder: str | Path, trust: Trust | None = None) -> Manifest:
    """The manifest of a bundle, checked; no other file is read. Raises as `verified_bundle`."""
    place = Path(folder)
    refuse_no_bundle(place)
    trust = trust_here() if trust is None else trust
    files, _ = _signed_file(partial(_read_if_there, place), place, MANIFEST, trust)
    return _parse_manifest(files[MANIFEST], place)


def refuse_no_bundle(folder: Path) -> None:
    """Raise BundleError where nothing of a bundle lies there, be it whole or damaged."""
    bring_back(folder)
    if folder.is_file():
        raise BundleError(
            "no such bundle, this is a file", file=folder, remedy=f"{GIVE}, or `deploy unpack` an archive"
        )
    if not folder.is_dir():
        raise BundleError("no such bundle", file=folder, remedy=GIVE)
    if not any((folder / name).exists() for name in (*TOP, "graphs")):
        raise BundleError(f"is not a bundle, it has no {MANIFEST}", file=folder, remedy=GIVE)


def write_bundle(folder: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
    """Write the files and the manifest of a bundle into an empty folder that is not yet in its place.

    Args:
        folder: where to; put it in its place with `install_bundle`.
        files: inner path -> content.
        manifest: its `files` are filled in here.
    """
    complete = dump(manifest.model_copy(update={"files": _records(files)}))
    with writing(folder):
        fill_folder(folder, {**files, MANIFEST: complete})


def install_engine(
    folder: Path,
    begun: Head,
    choice: Choice,
    proof: dict[str, Any],
    files: Mapping[str, bytes],
    *,
    trust: Trust | None = None,
    key: SecretKey | None = None,
) -> None:
    """Give a bundle that is in use another engine, with a `made.json` that says so and is signed with the key, if any.

    Raises as `install_made`.
    """
    data = dump(
        Made(
            schema_version=Made.version,
            manifest_sha256=digest(begun.files[MANIFEST]),
            choice=choice,
            proof=proof,
            files=_records(files),
        )
    )
    minisig = None if key is None else key.minisig(data, comment_on(MADE, begun.manifest))
    install_made(folder, begun, data, minisig, files, trust)


def install_made(
    folder: Path,
    begun: Head,
    made: bytes,
    minisig: bytes | None,
    files: Mapping[str, bytes],
    trust: Trust | None = None,
) -> None:
    """Give a bundle that is in use another engine: its files first, the `made.json` that lists them last and at once.

    The files of the engine before, which have other names, go after the `made.json` that listed them. Raises
    DeployError where the system refuses, and where the bundle is not the one that it was when the engine was `begun`.
    """
    trust = trust_here() if trust is None else trust
    there = replaceable_bundle(folder, trust)
    if there.files[MANIFEST] != begun.files[MANIFEST]:
        raise BundleError("is another bundle than the one that the engine is for", file=folder, remedy="do it again")
    signed = folder / MADE_SIGNED
    with writing(folder):
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, content)
        if minisig is not None:
            # Until `made.json` is there, the one before is still signed too.
            write_bytes(signed, minisig + _signing(there, trust, folder))
        write_bytes(folder / MADE, made)
        if minisig is not None:
            write_bytes(signed, minisig)
        else:
            signed.unlink(missing_ok=True)
        for name in there.made.files.keys() - files.keys() if there.made else ():
            (folder / name).unlink(missing_ok=True)


def _signing(there: Head, trust: Trust, folder: Path) -> bytes:
    """The one signature of the engine that is there, of which a stop can have left two; or nothing."""
    lines = there.files.get(MADE_SIGNED, b"").splitlines(keepends=True)
    for start in range(0, len(lines), 4):
        one = b"".join(lines[start : start + 4])
        with suppress(BundleError):
            trust.signed(there.files[MADE], one, file=folder / MADE)
            return one
    return b""


def sign_bundle(folder: Path, key: SecretKey, told: str = "") -> Head:
    """Sign a bundle whose every byte was checked, whoever signed it before; and its `made.json` unless another key did.

    Returns:
        what it says of itself; `files` as they were.

    Raises DeployError.
    """
    refuse_no_bundle(folder)

    def unsigned(name: str, most: int) -> bytes | None:
        return None if name == MANIFEST_SIGNED else _read_if_there(folder, name, most)

    head = read_head(unsigned, folder, NO_KEYRING)
    _check_listed(folder, head)
    others = head.made_signed is not None and head.made_signed.key != key_name(key.id)
    names = [MANIFEST] if head.made is None or others else [MADE, MANIFEST]
    made = {name: key.minisig(head.files[name], comment_on(name, head.manifest, told)) for name in names}
    with writing(folder):
        for name, minisig in made.items():
            write_bytes(folder / (name + MINISIG), minisig)
    return head


def check_files(folder: Path, trust: Trust | None = None) -> Head:
    """Check a bundle as `verified_bundle` does, and keep none of its files in memory."""
    head = head_of(folder, trust)
    _check_listed(folder, head)
    return head


def _check_listed(folder: Path, head: Head) -> None:
    for name, record in head.records.items():
        copy_file(folder, name, record, lambda chunk: None)


def copy_file(folder: Path, name: str, record: FileRecord, write: Callable[[bytes], object]) -> None:
    """Hand on a file of a bundle in parts. Raises BundleError, in the end, where it is not the one that was built."""
    with _opened(folder, name, record.bytes) as file:
        copy_checked(file, record, write, folder / name)


def copy_checked(file: IO[bytes], record: FileRecord, write: Callable[[bytes], object], named: Path) -> None:
    """Hand on as many bytes as the record says; raises BundleError where they have another hash."""
    left, digest = record.bytes, hashlib.sha256()
    while left and (chunk := _taken(file, min(CHUNK, left), named)):
        digest.update(chunk)
        write(chunk)
        left -= len(chunk)
    if left or digest.hexdigest() != record.sha256:
        raise _other(named)


def install_bundle(folder: Path, out: Path, *, replace: bool) -> None:
    """Put a finished folder in its place; at no moment is `out` half there, or gone where the system can swap folders.

    Where it cannot, `out` is gone for a moment; if this is killed in it, `bring_back` finds what was there before.

    Where `out` is a link to a bundle, that bundle is replaced and the link stays.

    Raises:
        BundleError: the system refused, or something is at `out` and may not be replaced.
    """
    bring_back(out)
    with writing(out):
        if os.path.lexists(out) and not replace:
            raise BundleError("exists already", file=out, remedy="give another place, or allow it to be replaced")
        place, old = _place(out)
        if not place.exists():
            folder.rename(place)
        elif not swap(folder, place):
            with alone_in(place.parent):
                shutil.rmtree(old, ignore_errors=True)
                place.rename(old)
                try:
                    folder.rename(place)
                except OSError:
                    old.rename(place)
                    raise
                old.rename(folder)
        sync_folder(place.parent)
        # What was there before.
        shutil.rmtree(folder, ignore_errors=True)


def bring_back(out: Path) -> None:
    """Put back what was at `out` where an installation was killed that had moved it away."""
    with suppress(OSError):
        place, old = _place(out)
        if not place.exists() and old.is_dir():
            with alone_in(place.parent):
                if not place.exists():
                    old.rename(place)


def _place(out: Path) -> tuple[Path, Path]:
    """Where a bundle lies, be `out` a link to it, and where it is for the moment in which another takes its place."""
    place = out.resolve() if out.is_symlink() else out
    return place, place.parent / f".{place.name}.old"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"the bundle cannot be written: {error.strerror or error}",
            file=place,
            remedy="check the folder, its permissions and its free space",
        ) from error


def array_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _opened(folder: Path, name: str, limit: int) -> io.BufferedReader:
    """A regular file of a bundle that has at most `limit` bytes, none of its folders a link. Raises BundleError."""
    path = folder / name
    try:
        if any(folder.joinpath(inner).is_symlink() for inner in Path(name).parents if inner.name):
            raise BundleError("lies behind a link, which could lead out of the bundle", file=path, remedy=MEND)
        file, size = open_regular(path, links=False)
    except IrregularError as error:
        raise BundleError("is not a regular file", file=path, remedy=MEND) from error
    except OSError as error:
        raise _unread(path, error) from error
    if size > limit:
        file.close()
        raise BundleError("the file is larger than it can be", file=path, value=size, remedy=MEND)
    return io.BufferedReader(file)


def _taken(file: IO[bytes], most: int, path: Path) -> bytes:
    try:
        return file.read(most)
    except OSError as error:
        raise _unread(path, error) from error


def _unread(path: Path, error: OSError) -> BundleError:
    return BundleError(f"a file of the bundle cannot be read: {error.strerror or error}", file=path, remedy=MEND)


def _read_if_there(folder: Path, name: str, limit: int) -> bytes | None:
    if not os.path.lexists(folder / name):
        return None
    with _opened(folder, name, limit) as file:
        return _taken(file, limit, folder / name)


def _verified(folder: Path, name: str, record: FileRecord) -> bytes:
    with _opened(folder, name, record.bytes) as file:
        data = _taken(file, record.bytes, folder / name)
    if len(data) != record.bytes or digest(data) != record.sha256:
        raise _other(folder / name)
    return data


def _other(path: Path) -> BundleError:
    return BundleError("the file is not the one that was built: its SHA-256 differs", file=path, remedy=MEND)


def digest(data: bytes) -> str:
    """SHA-256 as a manifest has it."""
    return hashlib.sha256(data).hexdigest()


def _records(files: Mapping[str, bytes]) -> dict[str, FileRecord]:
    return {name: FileRecord(sha256=digest(data), bytes=len(data)) for name, data in files.items()}


def stored_array(data: bytes, file: Path, shape: tuple[int, ...] | None) -> Float32:
    """An array of a bundle, which must be finite, float32 and of that shape, if any. Raises BundleError."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    # A header that is not what it should be makes NumPy raise almost anything.
    except Exception as error:
        raise BundleError("the array is damaged", file=file, value=error, remedy=MEND) from error
    known = isinstance(array, np.ndarray) and array.dtype == np.float32 and shape in (None, array.shape)
    if not known or not np.isfinite(array).all():
        raise BundleError(
            "the array is not what the manifest describes", file=file, remedy=f"finite float32 {shape or ''}; {MEND}"
        )
    return np.asarray(array, np.float32)
