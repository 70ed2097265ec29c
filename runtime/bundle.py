"""Bundles: the folder that leaves the ground. Written whole, read with every byte checked before it is used."""

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import Float32
from .closing import Closing
from .durable import fill_folder, swap, sync_folder, write_bytes
from .engines import (
    CPU_ENGINES,
    GPU_ENGINES,
    METRICS_ENGINES,
    PORTABLE,
    Built,
    Engine,
    EngineOptions,
    open_engine,
    open_extractor,
    open_metrics,
)
from .errors import BundleError, CubeError, GateError, MachineError
from .files.disk import available_memory
from .made import MADE, Choice, Made, parse_made
from .manifest import LARGEST, MANIFEST, FileRecord, Manifest, dump, parse
from .meaning import Asked, Known, Meaning, meaning_of
from .metrics import prompt_metrics
from .prompts import TOLERANCES, Condition, Given, Prompts, beyond, differences
from .restore import Progress, Restored, check_fits, restore_cube
from .stated import NOTHING, Stated
from .untrusted import IrregularError, TooLargeError, read_untrusted

MEND = "copy or build the bundle again"
EMBEDDING_TOLERANCE = 1e-3
"""Of a golden embedding, in float32: twenty times what other processors' sums leave."""


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


class Bundle(Closing):
    """A verified bundle with its engine loaded. A context manager.

    Attributes:
        path: the folder.
        contents: what was verified; of its files the golden ones.
        manifest, choice: of `contents`: what the ground says of it, and what runs.
        engine: what restores a frame.
        prompts: what makes what it takes beside the frame.
    """

    def __init__(self, path: Path, contents: Contents, engine: Engine, prompts: Prompts) -> None:
        self.path, self.contents, self.engine, self.prompts = path, contents, engine, prompts
        self.manifest, self.choice = contents.manifest, contents.choice

    def meaning(self, cube: NDArray[Any], stated: Stated = NOTHING, asked: Asked | None = None) -> Meaning:
        """What the numbers of a cube mean to this bundle; see `runtime.meaning.meaning_of`. Raises CubeError."""
        m = self.manifest
        known = Known("bundle", m.scale, m.wavelengths, m.signature.measured.bands)
        if not m.signature.alike:
            asked = replace(asked or Asked(), constant_bands="restore")
        found = meaning_of(cube, stated, asked, known)
        missing = int(found.missing.sum())
        if not m.signature.alike and (missing or found.bad):
            raise CubeError(
                f"what is restored from this frame has no place for its {'missing pixels' if missing else 'bad bands'}",
                key="ignore_value",
                value=missing or len(found.bad),
                remedy="give frames without missing pixels and bad bands",
            )
        told = found.wavelengths
        if m.signature.measured.kind == "rgb" and told and not told[0] > told[1] > told[2]:
            doubt = f"its bands lie at {', '.join(f'{nm:g}' for nm in told)} nm, the network takes red, green and blue"
            found = replace(found, doubts=(*found.doubts, doubt))
        return found

    def restore(
        self,
        cube: ArrayLike,
        prompts: Given | None = None,
        *,
        prompt: str | None = None,
        scale: float | None = None,
        ignore_value: float | None = None,
        meaning: Meaning | None = None,
        clip: bool = False,
        unit: bool = False,
        progress: Progress | None = None,
    ) -> Restored:
        """Restore a cube of any size.

        Args:
            cube: [bands, lines, samples]; at least as many bands as the network. Floats are taken as they are
                (nominally [0, 1]) unless there is a scale; integers are divided by one. It comes back in its own type
                and numbers.
            prompts: {name: array} to use in place of the cube's own; or metrics alone, [M] or [1, M]; with band groups
                also [groups, M].
            prompt: name of the prompt to use in place of the one that was chosen at the opening.
            scale: number that stands for 1.0, instead of the bundle's.
            ignore_value: pixels that hold it in any band are missing: kept from the network and left as they are.
            meaning: of the cube's numbers, from `meaning`, in place of both; without it, doubts are warnings too.
            clip: clip the restored cube to [0, 1] in the unit range.
            unit: give float32 in the unit range, whatever the input's type.
            progress: called with (frames done, frames in all).

        Raises:
            CubeError: the cube, the prompts or the scale cannot be used.
            InputError: there is no such prompt, or several and none was chosen.
            MachineError: the engine failed.
        """
        try:
            array = np.asarray(cube)
        except ValueError as error:
            raise CubeError("not an array of numbers", key="cube", remedy="[bands, lines, samples]") from error
        if array.ndim != 3 or array.size == 0:
            raise CubeError("a cube has three axes", key="cube", value=array.shape, remedy="[bands, lines, samples]")
        m = self.manifest
        check_fits(array.shape, m.signature)
        if meaning is None:
            marks = None if ignore_value is None else (ignore_value,)
            meaning = self.meaning(array, asked=Asked(scale, marks))
            for doubt in meaning.doubts:
                warnings.warn(doubt, stacklevel=2)
        restored = restore_cube(
            meaning.unit(array),
            self.engine.infer,
            m.signature,
            overlap=m.overlap,
            prompts=self.prompts if prompt is None else self.prompts.of(prompt),
            given=prompts,
            progress=progress,
        )
        used = None if meaning.scale_from is None else meaning.conversion.scale
        told = replace(
            restored,
            scale=used,
            meaning=meaning,
            unit=unit or not m.signature.alike,
            missing=int(meaning.missing.sum()),
        )
        made = np.asarray(restored.cube, np.float32)
        if not m.signature.alike:
            return replace(told, cube=np.clip(made, 0, 1) if clip else made)
        out, saturated, moved = meaning.given_back(made, array, clip=clip, unit=unit)
        return replace(told, cube=out, saturated=saturated, moved=moved)

    def self_test(self) -> float:
        """Run the golden frame through the engine, and through the graphs of its prompts where there are such.

        Returns:
            largest difference from the recorded output, as a share of its range.

        Raises:
            BundleError: the golden arrays are damaged, not finite or of other shapes than the engine's.
            GateError: the difference is above the choice's tolerance, other experts were chosen, or the graph's
                metrics are not NumPy's within `runtime.prompts.TOLERANCES`, or its embedding is another.
        """
        check_golden_metrics(self.prompts, self.contents, self.path)
        check_golden_embedding(self.prompts, self.contents, self.path)
        return golden_difference(self.engine, self.contents, self.choice.tolerance, self.path)

    def close(self) -> None:
        """Give back the engine, and the metrics' graph."""
        try:
            self.engine.close()
        finally:
            self.prompts.close()


def golden_difference(engine: Engine, contents: Contents, tolerance: float, path: Path) -> float:
    """Run the golden frame of a bundle through an engine; see `Bundle.self_test`.

    Args:
        engine: what is to be proved.
        contents, path: the bundle with its golden files, and its folder.
        tolerance: largest difference, as a share of the recorded output's range.
    """
    signature = engine.signature
    arrays = {name: _golden(contents, name, shape, path) for name, shape in signature.ports.shapes.items()}
    made = engine.infer({name: arrays[name] for name in signature.ports.inputs})
    restored, expected = made[signature.restored.name], arrays[signature.restored.name]
    span = float(np.ptp(expected)) or 1.0
    difference = float(np.abs(restored - expected).max()) / span
    same = all(np.array_equal(made[side.name] > 0, arrays[side.name] > 0) for side in signature.side)
    if difference > tolerance or not same:
        raise GateError(
            "this machine does not restore the golden frame as it was recorded",
            file=path,
            key="golden",
            value=difference,
            remedy=f"at most {tolerance:g} of the range and the same experts; do not fly this bundle here",
        )
    return difference


def _golden(contents: Contents, name: str, shape: tuple[int, ...], path: Path) -> Float32:
    file = contents.manifest.golden.arrays[name]
    return stored_array(contents.files[file], path / file, shape)


def check_golden_metrics(prompts: Prompts, contents: Contents, path: Path) -> None:
    """Hold the metrics that the graph computes of the golden frame against NumPy's, of this machine.

    The golden metrics are not always the frame's own: a build may take others that choose other experts.

    Args:
        prompts: what makes metrics; without a graph there is nothing to hold.
        contents, path: as of `golden_difference`.

    Raises:
        GateError: they differ by more than `TOLERANCES` allows.
    """
    measured, metrics = contents.manifest.signature.measured, contents.manifest.signature.metrics
    frame = _golden(contents, measured.name, measured.shape, path)[0]
    if metrics is None or prompts.by(frame.shape) == "host":
        return
    apart = differences(prompts.metrics(frame), prompt_metrics(frame, metrics.of), metrics.of)
    for name, value in beyond(apart).items():
        raise GateError(
            "this machine does not compute the golden frame's metrics as NumPy does",
            file=path,
            key=name,
            value=value,
            remedy=f"at most {TOLERANCES[name]:g}; do not fly this bundle here, or build it with --metrics host",
        )


def check_golden_embedding(prompts: Prompts, contents: Contents, path: Path) -> None:
    """Hold the embedding that the graph computes of the golden frame against the recorded one. Raises GateError."""
    signature = contents.manifest.signature
    if signature.embedding is None:
        return
    frame = _golden(contents, signature.measured.name, signature.measured.shape, path)[0]
    expected = _golden(contents, signature.embedding.name, signature.embedding.shape, path)
    apart = float(np.abs(prompts.embedding(frame) - expected).max()) / (float(np.abs(expected).max()) or 1.0)
    if not apart <= EMBEDDING_TOLERANCE:
        raise GateError(
            "this machine does not compute the golden frame's embedding as it was recorded",
            file=path,
            key=signature.embedding.name,
            value=apart,
            remedy=f"at most {EMBEDDING_TOLERANCE:g} of its largest number; do not fly this bundle here",
        )


def load_bundle(
    path: str | Path, *, threads: int | None = None, engine: str | None = None, prompt: str | None = None
) -> Bundle:
    """Open a bundle: check the manifest and the hash of every file, then load the very bytes that were hashed.

    Args:
        path: the bundle's folder.
        threads: CPU threads of the engine instead of the target's.
        engine: run the bundle's graph in this engine instead of the target's; never done unasked. Where it computes
            no metrics, NumPy does (`Bundle.prompts.told`).
        prompt: name of the prompt, where the bundle holds several (`manifest.prompts`).

    Raises:
        InputError: there is no such prompt.
        BundleError: something is missing, damaged, altered or of an unknown version.
        MachineError: the engine is not installed, was not built yet or cannot run here.
    """
    folder = Path(path)
    contents = verified_bundle(folder)
    manifest, choice, files = contents.manifest, contents.choice, contents.files
    name, program, built = manifest.target.engine, str(manifest.graphs[choice.precision]), None
    if engine is not None and engine != name:
        name = engine
    elif choice.engine is not None:
        program, made = choice.engine.path, choice.engine
        built = Built(made.builder, made.version, made.sm, made.gpu)
    elif manifest.deferred is not None:
        raise MachineError(
            "the bundle's engine is not built yet",
            file=folder,
            value=manifest.deferred,
            remedy="run `deploy finalize` on the target, or ask for --engine onnxruntime to run the graph here",
        )
    options = EngineOptions(threads or manifest.target.threads, choice.precision, built)
    if name in CPU_ENGINES and (manifest.memory or 0) > available_memory():
        raise MachineError(
            f"the network takes about {(manifest.memory or 0) / 2**30:.1f} GiB of memory, "
            f"{available_memory() / 2**30:.1f} are free",
            file=folder,
            key="memory",
            remedy="build it with a smaller --size, or end what else runs here",
        )
    signature, of_metrics = manifest.signature, manifest.metrics_graph if name in METRICS_ENGINES else None
    shapes = {p.name: p.shape for p in signature.constants}

    def stored(arrays: Mapping[str, str]) -> dict[str, Float32]:
        return {name: stored_array(files[of], folder / of, shapes[name]) for name, of in arrays.items()}

    constants = stored({p.name: p.of for p in signature.constants})
    conditions = {n: Condition(stored(p.arrays), tuple(p.tasks), p.about) for n, p in manifest.prompts.items()}
    if prompt is not None:
        # Before anything is opened.
        Prompts(signature, constants, None, conditions).of(prompt)
    try:
        with ExitStack() as undo:
            opened = undo.enter_context(open_engine(name, files[program], signature, options))
            graph = extractor = None
            if of_metrics is not None:
                graph = undo.enter_context(open_metrics(name, files[of_metrics], signature, options))
            if manifest.extractor_graph is not None:
                by = name if name in METRICS_ENGINES else PORTABLE
                extractor = open_extractor(by, files[manifest.extractor_graph], signature, options)
            undo.pop_all()
    except MachineError as error:
        if name != manifest.target.engine or name not in GPU_ENGINES:
            raise
        raise MachineError(
            f"the bundle's engine for {manifest.target.name} does not run here: {error.problem}",
            file=folder,
            key=error.key,
            value=error.value,
            remedy=f"{error.remedy}; or ask for --engine onnxruntime to run the graph here",
        ) from error
    # The graphs are the engine's now; only the golden arrays are kept.
    kept = replace(contents, files={name: files[name] for name in manifest.golden.arrays.values()})
    return Bundle(folder, kept, opened, Prompts(signature, constants, graph, conditions, prompt, extractor))


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
    needed += [*manifest.golden.arrays.values(), *(p.of for p in manifest.signature.constants)]
    needed += [of for named in manifest.prompts.values() for of in named.arrays.values()]
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

    Where `out` is a link to a bundle, that bundle is replaced and the link stays.

    Raises:
        BundleError: the system refused, or something is at `out` and may not be replaced.
    """
    with _writing(out):
        if os.path.lexists(out) and not replace:
            raise BundleError("exists already", file=out, remedy="give another place, or allow it to be replaced")
        place = out.resolve() if out.is_symlink() else out
        if not place.exists():
            folder.rename(place)
        elif swap(folder, place):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _replace(folder, place)
        sync_folder(place.parent)


def _replace(folder: Path, out: Path) -> None:
    """For file systems that cannot swap: the old bundle is put back where the new one cannot take its place."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


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


def stored_array(data: bytes, file: Path, shape: tuple[int, ...]) -> Float32:
    """An array of a bundle, which must be finite, float32 and of that shape. Raises BundleError."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    # A header that is not what it should be makes NumPy raise almost anything.
    except Exception as error:
        raise BundleError("the array is damaged", file=file, value=error, remedy=MEND) from error
    known = isinstance(array, np.ndarray) and array.dtype == np.float32 and array.shape == shape
    if not known or not np.isfinite(array).all():
        raise BundleError(
            "the array is not what the manifest describes", file=file, remedy=f"finite float32 {shape}; {MEND}"
        )
    return np.asarray(array, np.float32)
