"""The variants of a bundle against PyTorch, on a simulated scene or a folder of cubes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from calibration import cubes as cube_files
from calibration.figures import figures
from calibration.measuring import fitting
from export import networks
from export.networks import Network
from runtime.arrays import Float32
from runtime.bundle import Bundle
from runtime.errors import InputError
from runtime.precisions import VARIANTS
from runtime.simulation.simulator import simulate_scene
from runtime.trust import Trust

from .. import console
from ..config import Config
from .comparison import Comparison, compare
from .gates import GateResult, judge


def check(
    bundle: Bundle,
    config: Config,
    *,
    data: Path | None = None,
    scenes: tuple[str, ...] | None = None,
    wanted: tuple[str, ...] = VARIANTS,
    pictured: bool = True,
    trust: Trust | None = None,
) -> Comparison:
    """Run the degradations of `config.check` through PyTorch and every wanted variant. Raises DeployError.

    Args:
        bundle: opened.
        config: what to run, and the checkpoint.
        data: folder of clean cubes, instead of a simulated scene.
        scenes: of `data`, by name; all where it is None.
        wanted: variants besides the one that flies.
        pictured: keep the first cube's results, for a page.
        trust: whose signature the bundle needs, as it did when it was opened.
    """
    if config.model.checkpoint is None:
        raise InputError(
            "no checkpoint is given", key="--checkpoint", remedy="give the checkpoint that the bundle was built from"
        )
    said = {**bundle.options, **config.model.said}
    net: Network = networks.load_checkpoint(config.model.checkpoint, **said)
    refuse_other_network(bundle, net)
    for doubt in net.facts.doubts:
        console.warn(doubt)
    # What it was told when it was built is in the bundle: codes lie elsewhere, and a checkpoint may bring more prompts.
    net = net.told(bundle.prompts.conditions) if bundle.prompts.conditions else net
    tasks = config.check.degradations or net.tasks
    for task in tasks:
        if task not in net.tasks:
            raise InputError(
                "the network is not measured by this task", key="check.degradations", value=task,
                remedy=f"choose from {', '.join(net.tasks)}",
            )  # fmt: skip
    console.say(f"checks     {len(tasks)} degradations, each by PyTorch and by every variant")
    doubts = list[str]()
    count, cubes = _simulated(bundle, config) if data is None else _read(bundle, config, data, scenes, doubts)
    seed, of_files = config.check.seed, data is not None
    found = compare(bundle, net, cubes, count, tasks, wanted, seed, of_files=of_files, pictured=pictured, trust=trust)
    return replace(found, doubts=tuple(doubts))


def _simulated(bundle: Bundle, config: Config) -> tuple[int, Iterator[tuple[str, Float32]]]:
    m, asked = bundle.manifest, config.check.cube
    restored = m.signature.restored
    size = (asked.lines, asked.samples) if m.signature.tiling == "free" else restored.size
    wavelengths = m.wavelengths if m.wavelengths and len(m.wavelengths) == restored.bands else None
    scene = simulate_scene(config.check.seed, restored.bands, *size, wavelengths).truth
    return 1, iter([("simulated scene", scene)])


def _read(
    bundle: Bundle,
    config: Config,
    data: Path,
    scenes: tuple[str, ...] | None,
    doubts: list[str],
) -> tuple[int, Iterator[tuple[str, Float32]]]:
    """The cubes of a folder; all are looked at before the first is restored, and `doubts` filled."""
    m = bundle.manifest
    bands = m.signature.restored.bands
    centres = tuple(m.wavelengths) if m.wavelengths else None
    told = config.input
    wanted = cube_files.Wanted(
        bands, told.scale, m.scale, centres, told.layout, told.key, told.ignore_value, m.signature.is_area
    )
    files = cube_files.find_cubes(data, scenes)
    for file in files.values():
        looked = cube_files.unit_cube(file, wanted)
        fitting(m.signature, looked.cube, file)
        doubts += looked.doubts
    for doubt in doubts:
        console.warn(doubt)
    return len(files), ((name, cube_files.unit_cube(file, wanted).cube) for name, file in files.items())


def judged(found: Comparison, config: Config) -> dict[str, list[GateResult]]:
    """{variant: its gates}."""
    return {name: judge(figures(variant), config.gates, name, found.parity) for name, variant in found.variants.items()}


def refuse_other_network(bundle: Bundle, net: Network) -> None:
    """Refuse a network of another configuration than the bundle's; other weights are warned of.

    Raises:
        InputError: naming the setting that differs.
    """
    made, given = bundle.manifest.network.configuration, net.configuration
    for key, value in given.items():
        value = list(value) if isinstance(value, tuple) else value
        if key not in net.architecture.kept and made.get(key) != value:
            raise InputError(
                f"the bundle was built from another network: it has {made.get(key)}, the checkpoint {value}",
                file=net.facts.file,
                key=key,
                remedy="give the checkpoint that the bundle was built from",
            )
    if net.facts.sha256 != bundle.manifest.network.checkpoint_sha256:
        console.warn(f"{net.facts.name} is not the very file that the bundle was built from")
