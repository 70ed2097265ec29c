"""Calibration sets: frames to choose int8 ranges from, and others to judge by, drawn from cubes by a seed.

Two parts that share no cube. The frames to fit go through the training degradations and the undegraded cube in turn,
so that every expert is reached; those to judge go through all seven tasks of `calibration.measuring`, of which two
were never trained on. A frame follows from the cube, its place, its task and the seed. It is made when it is asked for,
one at a time, and kept in a folder from which an interrupted build takes it again.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from runtime.arrays import Float32
from runtime.durable import replacing
from runtime.errors import DeployError, InputError
from runtime.signature import Plane
from runtime.simulation.simulator import simulate_scene
from runtime.tiles import Tile, Tiling

from .cubes import Wanted, find_cubes, unit_cube
from .measuring import Measuring

AS_FLOWN = "as flown"
TRUTH, FED = "truth", "feed."
"""Names of a kept frame's arrays."""
SIMULATED = "simulated"
SIMULATED_SCENES = 6
FEWEST_CUBES = 2


@dataclass(frozen=True)
class Asked:
    """What a calibration set is to be.

    Attributes:
        source: folder of cubes, or `simulated` for scenes of the simulator.
        cubes: `clean` cubes are degraded; those `as_flown` are taken as they are for the ranges, and since their truth
            is not known, simulated scenes are judged by.
        samples: frames to fit.
        judged: cubes to judge by, each with every task.
        seed: of cubes, places and degradations.
        on_bad: `refuse` the folder when a cube of it cannot be used, or `skip` the cube.
        band_groups: cubes may have more bands than the network; a frame takes neighbouring ones.
    """

    source: str
    cubes: Literal["clean", "as_flown"] = "clean"
    samples: int = 24
    judged: int = 2
    seed: int = 0
    on_bad: Literal["refuse", "skip"] = "refuse"
    band_groups: bool = False


@dataclass(frozen=True)
class Origin:
    """Where a frame comes from: cube, task, and its first band, line and sample in the cube."""

    cube: str
    task: str
    band: int
    line: int
    sample: int


@dataclass(frozen=True, eq=False)
class Sample:
    """A frame for the engine.

    Attributes:
        origin: where it comes from.
        feeds: {tensor: array} that the engine is fed with.
        truth: float32 [bands, lines, samples], or None where it is not known.
        sha256: of the frame's bytes.
    """

    origin: Origin
    feeds: Mapping[str, Float32]
    truth: Float32 | None
    sha256: str


@dataclass(frozen=True)
class CubeRecord:
    """A cube that is used: the hash of its values in the unit range, and its shape [bands, lines, samples]."""

    sha256: str
    shape: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Frames to fit and frames to judge by.

    Attributes:
        asked: what it was made from.
        fit, judge: origins, in the order in which they are used.
        cubes: those of both parts by name.
        skipped: cube -> why it was left out.
        doubts: what a person should know before trusting figures from it.
        measuring: how frames come from the cubes.
        read: cube by name, float32 [bands, lines, samples].
    """

    asked: Asked
    fit: tuple[Origin, ...]
    judge: tuple[Origin, ...]
    cubes: Mapping[str, CubeRecord]
    skipped: Mapping[str, str]
    doubts: tuple[str, ...]
    measuring: Measuring
    read: Callable[[str], Float32]

    @property
    def size(self) -> tuple[int, int]:
        """Lines and samples of a frame."""
        return self.measuring.signature.measured.size

    @property
    def _shape(self) -> tuple[object, ...]:
        """What of the network decides a frame."""
        way, signature = self.measuring, self.measuring.signature
        planes = [(plane.name, plane.bands) for plane in (signature.measured, signature.restored)]
        told = {name: one.constants for name, one in way.prompts.conditions.items()} or {"": way.prompts.constants}
        constants = {name: _hashes(of) for name, of in told.items()}
        measure = (getattr(way.measure, "__qualname__", ""), _hashes(way.instrument))
        return (planes, [asdict(p) for p in signature.prompts], constants, way.tasks, measure, signature.fills)

    def digest(self) -> str:
        """Short hash of all that the frames follow from."""
        content = [
            asdict(self.asked) | {"source": ""}, [asdict(o) for o in (*self.fit, *self.judge)],
            {name: asdict(c) for name, c in self.cubes.items()}, self._shape, self.size,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def made_by(self, measuring: Measuring) -> CalibrationSet:
        """The same set in frames of another size; where a cube has no room for a frame at its place, it is moved."""

        def moved(origin: Origin) -> Origin:
            room = [
                max(0, have - want)
                for have, want in zip(self.cubes[origin.cube].shape[1:], _cut(measuring, origin.task).size, strict=True)
            ]
            return replace(origin, line=min(origin.line, room[0]), sample=min(origin.sample, room[1]))

        fit, judge = (tuple(map(moved, origins)) for origins in (self.fit, self.judge))
        return replace(self, fit=fit, judge=judge, measuring=measuring)

    def samples(self, origins: Sequence[Origin], kept: Path | None = None) -> Iterator[Sample]:
        """The frames of these origins, one after the other.

        Args:
            origins: of `fit` or `judge`.
            kept: folder in which frames are kept, and taken from when they are there.
        """
        name, cube = "", np.zeros(0, np.float32)
        for origin in origins:
            file = None if kept is None else kept / f"{self.key(origin)}.npz"
            sample = None if file is None else _kept(file, origin)
            if sample is None:
                if name != origin.cube:
                    name, cube = origin.cube, self.read(origin.cube)
                sample = self._made(origin, cube)
                if file is not None:
                    _keep(file, sample)
            yield sample

    def key(self, origin: Origin) -> str:
        """Short hash of all that one frame follows from."""
        record = asdict(self.cubes[origin.cube])
        content = [asdict(origin), record, self._shape, self.size, self.asked.seed]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def _made(self, origin: Origin, cube: Float32) -> Sample:
        plane = _cut(self.measuring, origin.task)
        part = cube[origin.band : origin.band + plane.bands]
        lines, samples = (min(a, b) for a, b in zip(plane.size, part.shape[1:], strict=True))
        tile = Tile(origin.line, origin.sample, lines, samples)
        clean = Tiling((part.shape[1], part.shape[2]), plane.size, 0).cut(part, tile)[0]
        rng = np.random.default_rng([self.asked.seed, zlib.crc32(repr(origin).encode())])
        flown = origin.task == AS_FLOWN
        feeds = self.measuring.feeds(clean if flown else self.measuring.measured(origin.task, clean, rng), origin.task)
        frame = feeds[self.measuring.signature.measured.name]
        return Sample(origin, feeds, None if flown else clean, hashlib.sha256(frame.tobytes()).hexdigest())


def _hashes(arrays: Mapping[str, Float32]) -> dict[str, str]:
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


def _cut(measuring: Measuring, task: str) -> Plane:
    """What is cut out of a cube for a frame: what the instrument measures of is as large as what is restored."""
    return measuring.signature.measured if task == AS_FLOWN else measuring.signature.restored


def calibration_set(
    asked: Asked,
    wanted: Wanted,
    measuring: Measuring,
    progress: Callable[[int, int], None] | None = None,
    *,
    scene_size: tuple[int, int] | None = None,
) -> CalibrationSet:
    """Look at every cube and draw the frames.

    Args:
        asked: what the set is to be.
        wanted: what the network asks of a cube.
        measuring: how frames come from cubes, and how large they are.
        progress: called with (cubes looked at, in all).
        scene_size: lines and samples of simulated scenes, as large as any frame that they are to fill.

    Raises:
        InputError: no such folder; a cube that cannot be used, unless such are skipped; fewer than two that can.
    """
    scene_size = scene_size or measuring.signature.restored.size
    known, skipped, doubts, read = _survey(asked, wanted, scene_size, progress)
    names = sorted(known)
    rng = np.random.default_rng([asked.seed, 1])
    order = [names[i] for i in rng.permutation(len(names))]
    judged = order[: max(1, min(asked.judged, len(order) // 2))]
    fitted = order[len(judged) :]
    tasks = measuring.fit
    if asked.cubes == "as_flown":
        fitted, tasks = order, (AS_FLOWN,)
        scenes = _simulated(wanted, scene_size)
        judged = [f"{SIMULATED}/{SIMULATED_SCENES + i}" for i in range(max(1, asked.judged))]
        known |= {name: _record(scenes(name)) for name in judged}
        flown = read

        def read(name: str) -> Float32:
            return scenes(name) if name in judged else flown(name)

    def drawn(name: str, task: str) -> Origin:
        shape = wanted.bands, *_cut(measuring, task).size
        room = [max(0, have - want) for have, want in zip(known[name].shape, shape, strict=True)]
        return Origin(name, task, *(int(rng.integers(0, most + 1)) for most in room))

    turns = len(fitted), len(tasks)
    fit = [drawn(fitted[i % turns[0]], tasks[(i + i // lcm(*turns)) % turns[1]]) for i in range(asked.samples)]
    judge = [drawn(name, task) for name in judged for task in measuring.tasks]
    # Frames of one cube one after the other: it is read once.
    fit.sort(key=lambda o: fitted.index(o.cube))
    used = {o.cube for o in (*fit, *judge)}
    return CalibrationSet(
        asked, tuple(fit), tuple(judge), {n: r for n, r in known.items() if n in used}, skipped, tuple(doubts),
        measuring, read,
    )  # fmt: skip


def _survey(
    asked: Asked, wanted: Wanted, size: tuple[int, int], progress: Callable[[int, int], None] | None
) -> tuple[dict[str, CubeRecord], dict[str, str], list[str], Callable[[str], Float32]]:
    """The cubes that can be used, why others cannot, doubts, and how to read one."""
    if asked.source == SIMULATED:
        scenes = _simulated(wanted, size)
        # No file has such a name.
        names = [f"{SIMULATED}/{i}" for i in range(SIMULATED_SCENES)]
        return {name: _record(scenes(name)) for name in names}, {}, [], scenes
    files = find_cubes(Path(asked.source), option="--calibration")
    known: dict[str, CubeRecord] = {}
    skipped: dict[str, str] = {}
    doubts: list[str] = []
    for number, (name, file) in enumerate(files.items()):
        try:
            found = unit_cube(file, wanted)
            _refuse_unfit(file, found.cube, wanted, asked)
        except DeployError as error:
            if asked.on_bad == "refuse":
                raise InputError(
                    f"cannot be calibrated with: {error.problem}",
                    file=file,
                    key=error.key,
                    value=error.value,
                    remedy=f"{error.remedy}; or say calibration.on_bad: skip",
                ) from error
            skipped[file.name] = error.problem
        else:
            record = _record(found.cube)
            twin = next((n for n, r in known.items() if r == record), None)
            if twin is None:
                known[name] = record
                doubts += found.doubts
            else:
                skipped[file.name] = f"is the same as {twin}"
        if progress is not None:
            progress(number + 1, len(files))
    if len(known) < FEWEST_CUBES:
        told = "".join(f"; {name} {why}" for name, why in list(skipped.items())[:3])
        raise InputError(
            f"holds {len(known)} cube{'s' * (len(known) != 1)} that can be used, {len(skipped)} skipped{told}",
            file=Path(asked.source),
            key="--calibration",
            remedy=f"give at least {FEWEST_CUBES}: ranges are not judged on the cubes that they were chosen from",
        )
    return known, skipped, doubts, lambda name: unit_cube(files[name], wanted).cube


def _refuse_unfit(file: Path, cube: Float32, wanted: Wanted, asked: Asked) -> None:
    if len(cube) != wanted.bands and not asked.band_groups:
        raise InputError(
            f"has {len(cube)} bands, the network restores {wanted.bands}",
            file=file,
            key="bands",
            remedy="say calibration.band_groups: true where the network restores groups of bands, or --layout where an "
            "array's axes are others",
        )
    if min(cube.shape[1:]) < 2 or float(np.ptp(cube)) == 0:
        raise InputError("holds no picture", file=file, key="cube", remedy="leave it out")


def _simulated(wanted: Wanted, size: tuple[int, int]) -> Callable[[str], Float32]:
    def read(name: str) -> Float32:
        # Seeds of their own: `deploy check` looks at scene 0 by default.
        seed = 1000 + int(name.rpartition("/")[2])
        return simulate_scene(seed, wanted.bands, *size, wanted.wavelengths).truth

    return read


def _record(cube: Float32) -> CubeRecord:
    bands, lines, samples = cube.shape
    return CubeRecord(hashlib.sha256(np.ascontiguousarray(cube).tobytes()).hexdigest(), (bands, lines, samples))


def _kept(file: Path, origin: Origin) -> Sample | None:
    try:
        with np.load(file, allow_pickle=False) as held:
            arrays: dict[str, Any] = {key: held[key] for key in held.files}
        truth = None if origin.task == AS_FLOWN else arrays[TRUTH]
        feeds = {name.removeprefix(FED): array for name, array in arrays.items() if name.startswith(FED)}
        sha256 = hashlib.sha256(np.ascontiguousarray(next(iter(feeds.values()))).tobytes()).hexdigest()
        return Sample(origin, feeds, truth, sha256)
    # Not there yet, or damaged: it is made again.
    except (OSError, ValueError, KeyError, StopIteration, EOFError, RuntimeError, BadZipFile):
        return None


def _keep(file: Path, sample: Sample) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{FED}{name}": array for name, array in sample.feeds.items()}
    if sample.truth is not None:
        arrays[TRUTH] = sample.truth
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
