"""The files of a bundle: written whole, read with every byte checked before it is used."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .durable import alone_in, fill_folder, swap, sync_folder, write_bytes
from .errors import BundleError
from .made import MADE, Choice, Made, parse_made
from .manifest import LARGEST, MANIFEST, FileRecord, Manifest, dump, parse
from .untrusted import IrregularError, TooLargeError, read_untrusted

MEND = "copy or build the bundle again"


@dataclass(frozen=True)
class Contents:
    """A bundle whose every byte was checked.

    Attributes:
        manifest: what the ground wrote.
        made: what was made of it where it flies; None where nothing was.
        files: inner path -> bytes of every file, `manifest.json` and `made.json` among them.
    """

    manifest: Manifest
    made: Made | None
    files: dict[str, bytes]

    @property
    def choice(self) -> Choice:
        """What runs, and why."""
        if self.made is not None:
            return self.made.choice
        told, golden = self.manifest.precision, self.manifest.golden
        return Choice(precision=told.chosen, why=told.why, tolerance=golden.tolerance)


def verified_bundle(path: str | Path) -> Contents:
    """Every file that the manifest and the record of the engine list, all hashes checked; no engine is loaded.

    Raises:
        BundleError: something is missing, damaged, altered or of an unknown version.
    """
    folder = Path(path)
    data = _manifest(folder)
    manifest, made = parse(data, Manifest, file=folder / MANIFEST), None
    files = {MANIFEST: data, **{name: _verified(folder, name, record) for name, record in manifest.files.items()}}
    needed = [*map(manifest.graphs.get, manifest.tolerances), *manifest.graphs.values()]
    needed += [graph for graph in (manifest.metrics_graph, manifest.extractor_graph) if graph is not None]
    needed += [*manifest.proving, *manifest.instrument.values()]
    for name in needed:
        if name is None or name not in files:
            raise BundleError("the manifest does not list a file it needs", file=folder, key=name, remedy=MEND)
    if os.path.lexists(folder / MADE):
        record = _read(folder, MADE, LARGEST)
        made = parse_made(record, manifest, _sha256(data), file=folder / MADE)
        files |= {MADE: record, **{name: _verified(folder, name, record) for name, record in made.files.items()}}
    return Contents(manifest, made, files)


def unlisted_files(folder: str | Path, bundle: Contents) -> tuple[str, ...]:
    """Files in a bundle's folder that nothing in it lists; nothing ever opens them."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    inner = (path.relative_to(folder).as_posix() for path in found)
    return tuple(sorted(set(inner) - bundle.files.keys()))


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a bundle, checked; no other file is read. Raises BundleError."""
    return parse(_manifest(Path(folder)), Manifest, file=Path(folder) / MANIFEST)


def _manifest(folder: Path) -> bytes:
    remedy = "give the folder that `deploy build` wrote"
    bring_back(folder)
    if not folder.is_dir():
        raise BundleError("no such bundle" + ", this is a file" * folder.is_file(), file=folder, remedy=remedy)
    if not os.path.lexists(folder / MANIFEST):
        raise BundleError(f"is not a bundle, it has no {MANIFEST}", file=folder, remedy=remedy)
    return _read(folder, MANIFEST, LARGEST)


def write_bundle(folder: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
    """Write the files and the manifest of a bundle into an empty folder that is not yet in its place.

    Args:
        folder: where to; put it in its place with `install_bundle`.
        files: inner path -> content.
        manifest: its `files` are filled in here.
    """
    complete = dump(manifest.model_copy(update={"files": _records(files)}))
    with _writing(folder):
        fill_folder(folder, {**files, MANIFEST: complete})


def install_engine(
    folder: Path, begun: Contents, choice: Choice, proof: dict[str, Any], files: Mapping[str, bytes]
) -> None:
    """Give a bundle that is in use another engine: its files first, the `made.json` that lists them last and at once.

    The files of the engine before, which have other names, go after the `made.json` that listed them. Raises
    DeployError where the system refuses, and where the bundle is not the one that it was when the engine was `begun`.
    """
    there = verified_bundle(folder)
    data = there.files[MANIFEST]
    if data != begun.files[MANIFEST]:
        raise BundleError("is another bundle than the one that the engine is for", file=folder, remedy="do it again")
    made = Made(
        schema_version=Made.version, manifest_sha256=_sha256(data), choice=choice, proof=proof, files=_records(files)
    )
    with _writing(folder):
        for name, content in (*files.items(), (MADE, dump(made))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, content)
        for name in there.made.files.keys() - files.keys() if there.made else ():
            (folder / name).unlink(missing_ok=True)


def install_bundle(folder: Path, out: Path, *, replace: bool) -> None:
    """Put a finished folder in its place; at no moment is `out` half there, or gone where the system can swap folders.

    Where it cannot, `out` is gone for a moment; if this is killed in it, `bring_back` finds what was there before.

    Where `out` is a link to a bundle, that bundle is replaced and the link stays.

    Raises:
        BundleError: the system refused, or something is at `out` and may not be replaced.
    """
    bring_back(out)
    with _writing(out):
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
    return place, place.with_name(f".{place.name}.old")


@contextmanager
def _writing(place: Path) -> Iterator[None]:
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


def _read(folder: Path, name: str, limit: int) -> bytes:
    path = folder / name
    try:
        if any(folder.joinpath(inner).is_symlink() for inner in Path(name).parents if inner.name):
            raise BundleError("lies behind a link, which could lead out of the bundle", file=path, remedy=MEND)
        return read_untrusted(path, limit, links=False)
    except IrregularError as error:
        raise BundleError("is not a regular file", file=path, remedy=MEND) from error
    except TooLargeError as error:
        raise BundleError("the file is larger than it can be", file=path, value=error.size, remedy=MEND) from error
    except OSError as error:
        raise BundleError(
            f"a file of the bundle cannot be read: {error.strerror or error}", file=path, remedy=MEND
        ) from error


def _verified(folder: Path, name: str, record: FileRecord) -> bytes:
    data = _read(folder, name, record.bytes)
    if len(data) != record.bytes or _sha256(data) != record.sha256:
        raise BundleError(
            "the file is not the one that was built: its SHA-256 differs", file=folder / name, remedy=MEND
        )
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _records(files: Mapping[str, bytes]) -> dict[str, FileRecord]:
    return {name: FileRecord(sha256=_sha256(data), bytes=len(data)) for name, data in files.items()}


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
