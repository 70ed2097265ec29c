"""Bundles that are open: what was verified, its engine, and cubes restored with it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import Float32
from .board_names import refuse_other_board
from .bundle_files import TOP, Contents, stored_array, verified_bundle
from .closing import Closing
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
    refuse_unknown,
)
from .errors import BundleError, CubeError, MachineError
from .files.disk import available_memory
from .golden import Answer, check_golden_embedding, check_golden_metrics, proved
from .manifest import Manifest
from .meaning import Asked, Known, Meaning, meaning_of, words
from .metrics import prepare
from .plausible import Range
from .prompts import Condition, Given, Prompts
from .restore import Progress, Restored, check_fits, restore_cube
from .signature import Signature
from .stated import NOTHING, Stated
from .trust import Trust

Loaded = TypeVar("Loaded")


class Bundle(Closing):
    """A verified bundle with its engine loaded. A context manager.

    Attributes:
        path: the folder.
        contents: what was verified; of its files the golden ones and those of the instrument.
        manifest, choice: of `contents`: what the ground says of it, and what runs.
        engine: what restores a frame.
        prompts: what makes what it takes beside the frame.
        answers: to the golden frames, of the last self-test.
        again: opens it anew as it was opened, every byte verified.
    """

    def __init__(
        self, path: Path, contents: Contents, engine: Engine, prompts: Prompts, again: Callable[[], Bundle]
    ) -> None:
        self.again = again
        self.path, self.contents, self.engine, self.prompts = path, contents, engine, prompts
        self.manifest, self.choice = contents.manifest, contents.choice
        self.answers: tuple[Answer, ...] = ()

    @property
    def instrument(self) -> dict[str, Float32]:
        """{name: array} of the instrument whose frames it restores, such as its mask. Raises BundleError."""
        files = self.contents.files
        return {n: stored_array(files[of], self.path / of, None) for n, of in self.manifest.instrument.items()}

    @cached_property
    def restored_range(self) -> Range:
        """Of the values in the unit range that its golden frames become. Raises BundleError."""
        restored = self.manifest.signature.restored
        files = [proof[restored.name] for proof in self.manifest.proofs]
        arrays = [stored_array(self.contents.files[file], self.path / file, restored.shape) for file in files]
        return min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)

    @property
    def options(self) -> dict[str, Any]:
        """That its network was loaded with; files that became arrays of the instrument are the bundle's own."""
        own = self.manifest.instrument
        return {n: str(self.path / own[n]) if n in own else v for n, v in self.manifest.network.options.items()}

    def meaning(self, cube: NDArray[Any], stated: Stated = NOTHING, asked: Asked | None = None) -> Meaning:
        """What the numbers of a cube mean to this bundle; see `runtime.meaning.meaning_of`. Raises CubeError."""
        return meaning_for(self.manifest, cube, stated, asked)

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
        in_place: bool = False,
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
            in_place: put what is given in the input's type and numbers into `cube` itself, an array that can be written
                to: large cubes take less memory.
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
        holes = None
        if m.signature.fills:
            meaning, holes = meaning.holed(array)
        restored = restore_cube(
            meaning.unit(array, holes),
            self.engine.infer,
            m.signature,
            overlap=m.overlap,
            prompts=self.prompts if prompt is None else self.prompts.of(prompt),
            given=prompts,
            progress=progress,
            known=self.restored_range,
            missing=None if holes is None else meaning.ordered(holes),
            wavelengths=meaning.centres,
        )
        used = None if meaning.scale_from is None else meaning.conversion.scale
        told = replace(
            restored,
            scale=used,
            meaning=meaning,
            unit=unit or not m.signature.alike,
            missing=int(meaning.missing.sum()),
            made_up=0
            if holes is None
            else int((holes & ~meaning.missing).sum() - len(meaning.bad) * (~meaning.missing).sum()),
        )
        made = np.asarray(restored.cube, np.float32)
        if not m.signature.alike:
            return replace(told, cube=np.clip(made, 0, 1) if clip else made)
        out, saturated, moved = meaning.given_back(made, array, clip=clip, unit=unit, in_place=in_place)
        return replace(told, cube=out, saturated=saturated, moved=moved)

    def self_test(self, seconds: float = math.inf) -> float:
        """Run the golden frame through the engine, and through the graphs of its prompts where there are such.

        Args:
            seconds: after so long no further proof is begun; `answers` has those that were. One always is.

        Returns:
            largest difference from the recorded output, see `runtime.parity.apart`.

        Raises:
            BundleError: the golden arrays are damaged, not finite or of other shapes than the engine's.
            GateError: the difference is above the choice's tolerance, other experts were chosen, or the graph's
                metrics are not NumPy's within `runtime.prompts.TOLERANCES`, or its embedding is another.
        """
        ends, answers = time.monotonic() + seconds, [self.prove(0)]
        while len(answers) < len(self.manifest.proofs) and time.monotonic() < ends:
            answers.append(self.prove(len(answers)))
        self.answers = tuple(answers)
        return max(answer.difference for answer in answers)

    def prove(self, proof: int) -> Answer:
        """Run one of the proofs of `manifest.proofs`, with the first the graphs of the prompts too; see `self_test`."""
        if proof == 0:
            check_golden_metrics(self.prompts, self.contents, self.path)
            check_golden_embedding(self.prompts, self.contents, self.path)
        return proved(self.engine, self.contents, proof, self.choice.precision, self.path)

    def close(self) -> None:
        """Give back the engine, and the metrics' graph."""
        try:
            self.engine.close()
        finally:
            self.prompts.close()


def load_bundle(
    path: str | Path,
    *,
    threads: int | None = None,
    engine: str | None = None,
    prompt: str | None = None,
    trust: Trust | None = None,
) -> Bundle:
    """Open a bundle: check the manifest and the hash of every file, then load the very bytes that were hashed.

    Args:
        path: the bundle's folder.
        threads: CPU threads of the engine instead of the target's.
        engine: run the bundle's graph in this engine instead of the target's; never done unasked. Where it computes
            no metrics, NumPy does (`Bundle.prompts.told`).
        prompt: name of the prompt, where the bundle holds several (`manifest.prompts`).
        trust: whose signature is needed (`runtime.trust.read_keyring`); None is this computer's keyring.

    Raises:
        InputError: there is no such engine or prompt, or the keyring cannot be used.
        BundleError: something is missing, damaged, altered, of an unknown version, or not signed as it must be.
        MachineError: the engine is not installed, was not built yet or cannot run here; or it is for another board.
    """
    if engine is not None:
        refuse_unknown(engine)
    folder = Path(path)
    contents = verified_bundle(folder, trust)
    manifest, choice, files = contents.manifest, contents.choice, contents.files
    refuse_other_board(manifest, folder)
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
    options = EngineOptions(threads or manifest.target.threads, choice.precision, built, manifest.cost)
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

    def loaded(load: Callable[[str, bytes, Signature, EngineOptions], Loaded], by: str, file: str) -> Loaded:
        try:
            return load(by, files[file], signature, options)
        except BundleError as error:
            error.file = error.file or str(folder / file)
            raise

    if signature.metrics is not None:
        Thread(target=prepare, name="metrics").start()
    try:
        with ExitStack() as undo:
            opened = undo.enter_context(loaded(open_engine, name, program))
            graph = extractor = None
            if of_metrics is not None:
                graph = undo.enter_context(loaded(open_metrics, name, of_metrics))
            if manifest.extractor_graph is not None:
                by = name if name in METRICS_ENGINES else PORTABLE
                extractor = loaded(open_extractor, by, manifest.extractor_graph)
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
    # The graphs are the engine's now.
    needed = [*manifest.proving, *manifest.instrument.values(), *(name for name in TOP if name in files)]
    kept = replace(contents, files={name: files[name] for name in needed})

    def again() -> Bundle:
        return load_bundle(path, threads=threads, engine=engine, prompt=prompt, trust=trust)

    return Bundle(folder, kept, opened, Prompts(signature, constants, graph, conditions, prompt, extractor), again)


def meaning_for(
    manifest: Manifest,
    cube: NDArray[Any],
    stated: Stated = NOTHING,
    asked: Asked | None = None,
    *,
    bad: Mapping[int, str] | None = None,
) -> Meaning:
    """What the numbers of a cube mean to the bundle of a manifest; see `meaning_of`. Raises CubeError."""
    signature = manifest.signature
    known = Known("bundle", manifest.scale, manifest.wavelengths, signature.measured.bands, signature.fills)
    if manifest.signature.alike:
        found = meaning_of(cube, stated, asked, known, bad=bad)
    else:
        # Before anything is asked of their mark: they are missing, whatever it is.
        _refuse_missing(~np.isfinite(cube).all(axis=0) if cube.dtype.kind == "f" else np.empty(0))
        found = meaning_of(cube, stated, replace(asked or Asked(), constant_bands="restore"), known)
        seen = [words.number(mark.value) for mark in found.marks if mark.whence == "data"]
        _refuse_missing(found.missing, found.bad, seen)
    told = found.wavelengths
    if manifest.signature.measured.kind == "rgb" and told and not told[0] > told[1] > told[2]:
        doubt = f"its bands lie at {', '.join(f'{nm:g}' for nm in told)} nm, the network takes red, green and blue"
        found = replace(found, doubts=(*found.doubts, doubt))
    return found


def _refuse_missing(missing: NDArray[Any], bad: Collection[int] = (), seen: Sequence[str] = ()) -> None:
    """Raise CubeError where pixels are missing or bands bad of a frame from which another plane is restored.

    `seen` are values that are taken for marks of missing pixels though nobody said so.
    """
    count = int(missing.sum())
    if not count and not bad:
        return
    raise CubeError(
        f"what is restored from this frame has no place for its {'missing pixels' if count else 'bad bands'}",
        key="cube",
        value=count or len(bad),
        remedy=(f"if {', '.join(seen)} is measured and no mark, say --ignore-value none; else " if seen else "")
        + ("replace them in the file, or name them to a stream: stream.radiometry.bad_pixels"
           if count else "give frames without them"),
    )  # fmt: skip
