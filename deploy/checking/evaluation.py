"""Models to be evaluated: packaged ones, checkpoints and bundles."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import evaluation
from calibration.baselines import baseline_of
from calibration.cubes import Wanted, unit_cube
from calibration.evaluation import Cubes, Restore, Restorer, Row
from calibration.measuring import Measuring, fitting
from export import networks
from export.networks import Network
from export.onnx import check_size
from export.torch_engine import TorchEngine
from runtime.arrays import Bools, Float32
from runtime.bundle import load_bundle
from runtime.errors import InputError
from runtime.prompts import Prompts, tasks_of
from runtime.restore import Restored, restore_cube
from runtime.signature import Signature

from .. import console
from ..config.sections import Frame
from .probes import measuring

LARGEST_FRAME = 512
FRAME_OVERLAP = 64
SAME_NM = 1.0


@dataclass(frozen=True)
class Model:
    """What is evaluated.

    Attributes:
        name: as it was given.
        about: one line on its training.
        restore: what restores a cube.
        measuring: how its frames come from clean cubes.
        scale: number that stands for 1.0 in cubes of integers, None if not told.
        wavelengths: band centres in nm, None if not told.
        balances: spatial share of every expert [layers, experts], None where the model does not tell.
    """

    name: str
    about: str
    restore: Restore
    measuring: Measuring
    scale: float | None
    wavelengths: tuple[float, ...] | None
    balances: NDArray[np.float64] | None

    @property
    def baselines(self) -> dict[str, str]:
        """{task: the classical method beside the model}, of those for which one is known."""
        found = {task: baseline_of(self.measuring, task) for task in self.measuring.tasks}
        return {task: each.name for task, each in found.items() if each is not None}

    @property
    def part(self) -> str:
        """What of a scene is judged."""
        restored = self.measuring.signature.restored
        whole = self.measuring.signature.tiling == "free"
        return "whole scenes" if whole else f"the middle {restored.lines}x{restored.samples} of every scene"


@contextmanager
def opened(model: str, options: Mapping[str, Any], size: Mapping[str, int] | None = None) -> Iterator[Model]:
    """A packaged model, a checkpoint or a bundle, whose engine is closed in the end. Raises DeployError.

    Args:
        model: its name or path.
        options: of the network.
        size: lines and samples of a checkpoint's frames, instead of those of `_from_checkpoint`.
    """
    if not Path(model).is_dir():
        yield _from_checkpoint(model, options, size)
        return
    for name, value in options.items():
        asked = "--top-k" if name == "top_k" else "--option"
        raise InputError("a bundle's options are fixed", key=asked, value=f"{name}={value}", remedy="leave it out")
    if size is not None:
        raise InputError("a bundle's frame is fixed", key="--size", remedy="leave it out")
    with load_bundle(Path(model)) as bundle:
        m = bundle.manifest
        architecture = networks.ARCHITECTURES.get(m.network.architecture)
        if architecture is None:
            raise InputError(
                "is of a network that is not known here",
                file=bundle.path,
                key="network.architecture",
                value=m.network.architecture,
                remedy=f"known: {', '.join(networks.ARCHITECTURES)}",
            )
        tasks = tasks_of(bundle.prompts.conditions) or architecture.tasks
        way: Measuring = Measuring(bundle.prompts, tasks, architecture.measure, bundle.instrument)

        def restore(cube: Float32, prompts: Prompts, missing: Bools | None) -> tuple[Float32, Float32]:
            # In the unit range, and damaged by us.
            infer, overlap = bundle.engine.infer, m.overlap
            return _mean_routing(
                restore_cube(cube, infer, m.signature, overlap=overlap, prompts=prompts, missing=missing)
            )

        centres = tuple(m.wavelengths) if m.wavelengths else None
        yield Model(model, m.network.about, restore, way, m.scale, centres, None)


def _from_checkpoint(name: str, options: Mapping[str, Any], size: Mapping[str, int] | None) -> Model:
    """Cubes are one frame where they may, or tiles; a network whose frames have one place takes those of a build."""
    net: Network = networks.load_checkpoint(name, **options)
    architecture, facts = net.architecture, net.facts
    for doubt in net.facts.doubts:
        console.warn(doubt)
    frame = (size["lines"], size["samples"]) if size else net.frame(Frame().lines, Frame().samples)
    check_size(net, *frame)
    way = measuring(net, *frame)

    def restore(cube: Float32, prompts: Prompts, missing: Bools | None) -> tuple[Float32, Float32]:
        lines, samples = cube.shape[1:]
        own = frame if size or way.signature.tiling == "fixed" else _largest(net, lines, samples)
        engine = TorchEngine(net, *own)
        alone = way.signature.tiling == "fixed" or (lines <= own[0] and samples <= own[1])
        overlap = 0 if alone else min(FRAME_OVERLAP, min(own) // 2)
        infer, signature = engine.infer, engine.signature
        return _mean_routing(restore_cube(cube, infer, signature, overlap=overlap, prompts=prompts, missing=missing))

    shares = architecture.routing.balances(net.module) if architecture.routing else None
    return Model(name, facts.about, restore, way, facts.scale, net.wavelengths or None, shares)


def _largest(net: Network, lines: int, samples: int) -> tuple[int, int]:
    return net.frame(min(LARGEST_FRAME, lines), min(LARGEST_FRAME, samples))


def _mean_routing(restored: Restored) -> tuple[Float32, Float32]:
    """The cube, and the experts' weights averaged over tiles; these are empty without experts."""
    weights = next(iter(restored.side.values()), np.zeros((0, 0), np.float32))
    mean: Float32 = weights.mean(axis=tuple(range(weights.ndim - 2)))
    return np.asarray(restored.cube, np.float32), mean


@dataclass(frozen=True)
class Evaluated:
    """What was measured.

    Attributes:
        rows: tasks in the order asked for, scenes within them, models within these.
        pictured: task -> a scene, another one for every task, and its cubes, one for each model.
        centres: scene -> band centres in nm, None where neither file nor model tells them.
        doubts: what a person should know before trusting figures from these scenes.
    """

    rows: list[Row]
    pictured: dict[str, tuple[str, list[Cubes]]]
    centres: dict[str, tuple[float, ...] | None]
    doubts: tuple[str, ...] = ()


def evaluated(
    models: Sequence[Model], files: Mapping[str, Path], wanted: Wanted, tasks: tuple[str, ...], seed: int
) -> Evaluated:
    """Measure models on clean cubes, by name; all are looked at before the first is restored. Raises DeployError."""
    centres, names, doubts = {}, list(files), list[str]()
    for name, file in files.items():
        looked = unit_cube(file, wanted)
        fitting(models[0].measuring.signature, looked.cube, file)
        centres[name] = looked.wavelengths
        doubts += looked.doubts
        for doubt in looked.doubts:
            console.warn(doubt)
    rows: list[Row] = []
    pictured: dict[str, tuple[str, list[Cubes]]] = {}
    restorers = [Restorer(model.name, model.restore, model.measuring) for model in models]
    with console.progress("evaluating") as moved:
        moved(0, len(files) * len(tasks))
        cubes = ((name, unit_cube(file, wanted).cube) for name, file in files.items())
        for found, kept in evaluation.compared(cubes, restorers, tasks=tasks, seed=seed):
            rows += found
            task, scene = found[0].task, found[0].scene
            if scene == names[tasks.index(task) % len(names)]:
                pictured[task] = (scene, kept)
            moved(len(rows) // len(models), len(files) * len(tasks))
    rows.sort(key=lambda r: tasks.index(r.task))
    return Evaluated(rows, {task: pictured[task] for task in tasks}, centres, tuple(doubts))


def named(models: Sequence[Model]) -> list[Model]:
    """Several models by the last part of their paths, where these differ."""
    short = [Path(model.name).resolve().name for model in models]
    alone = len(models) == 1 or len(set(short)) < len(short)
    return [model if alone else replace(model, name=name) for model, name in zip(models, short, strict=True)]


def refuse_unlike(models: Sequence[Model]) -> None:
    """Raise InputError unless all models take the same scenes, and can be given the same degraded cubes of them."""
    for place, model in enumerate(models):
        if model.name in [other.name for other in models[:place]]:
            raise InputError("is given twice", key="model", value=model.name, remedy="name it once")
        if (what := _unlike(models[0], model)) is not None:
            raise InputError(
                f"does not take what {models[0].name} takes: {what}",
                key="model",
                value=model.name,
                remedy="evaluate it in a call of its own",
            )


def _unlike(first: Model, other: Model) -> str | None:
    """What keeps two models from being given the same cubes."""
    one, two = first.measuring, other.measuring
    a, b = one.signature, two.signature
    if (a.measured.kind, a.restored.kind) != (b.measured.kind, b.restored.kind):
        return f"{_plane(b)} beside {_plane(a)}"
    if a.restored.bands != b.restored.bands:
        return f"{b.restored.bands} bands beside {a.restored.bands}"
    if first.wavelengths and other.wavelengths and not np.allclose(first.wavelengths, other.wavelengths, atol=SAME_NM):
        return f"bands from {other.wavelengths[0]:g} nm beside those from {first.wavelengths[0]:g} nm"
    where = [None if each.tiling == "free" else (each.measured.size, each.restored.size) for each in (a, b)]
    if where[0] != where[1]:
        return f"{other.part} beside {first.part}"
    same = one.instrument.keys() == two.instrument.keys() and all(
        np.array_equal(array, two.instrument[name]) for name, array in one.instrument.items()
    )
    return None if one.measure == two.measure and same else "what another instrument measures"


def _plane(signature: Signature) -> str:
    return {"cube": "cubes", "rgb": "photographs", "coded": "coded frames"}[signature.measured.kind]


def shared_tasks(models: Sequence[Model], asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """The tasks to measure: those that are asked for, all of the models' without a word. Raises InputError."""
    known = models[0].measuring.tasks
    for model in models:
        own = model.measuring.tasks
        for name in asked or ():
            if name not in own:
                whose = "" if len(models) == 1 else f"{model.name} has "
                remedy = f"choose from {whose}{', '.join(own)}"
                raise InputError("unknown task", key="--tasks", value=name, remedy=remedy)
        if asked is None and own != known:
            common = [name for name in known if name in own]
            remedy = f"--tasks {','.join(common)} is what both have" if common else "evaluate it in a call of its own"
            why = f"does not have the tasks of {models[0].name}"
            raise InputError(why, key="model", value=model.name, remedy=remedy)
    return asked or known


def shared_scale(models: Sequence[Model], asked: float | None) -> float | None:
    """What stands for 1.0 in integers, as the models tell it. Raises InputError for several where none is asked for."""
    told = {model.scale: model.name for model in reversed(models) if model.scale is not None}
    if len(told) > 1 and asked is not None:
        return None
    if len(told) > 1:
        text = ", ".join(f"{scale:g} ({name})" for scale, name in reversed(told.items()))
        raise InputError("the models tell several scales", key="--scale", value=text, remedy="say which with --scale")
    return next(iter(told), None)
