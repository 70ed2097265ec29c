"""The frames that int8 is calibrated with and precisions are judged by."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from calibration import agreement, dataset
from calibration import cubes as cube_files
from calibration.agreement import Case
from calibration.dataset import CalibrationSet, Origin
from calibration.measuring import Measuring
from export.networks import Network
from export.torch_engine import TorchEngine
from runtime.arrays import Float32
from runtime.durable import replacing
from runtime.errors import InputError
from runtime.signature import Signature

from .. import console
from ..checking.probes import measuring
from ..config import SEARCHED_SIDE, SIMULATED, Config

MARGINS = "network.margins"
"""Name of the margins among what is kept of PyTorch's answer."""


def open_calibration(
    config: Config, net: Network, scale: float | None, *, whole: bool = False
) -> CalibrationSet | None:
    """The calibration set that the configuration asks for, at the size of the search, or None where it names none.

    Args:
        config: with its section `calibration`.
        net: the network.
        scale: number that stands for 1.0 in cubes of integers that tell none.
        whole: take frames of the configuration's size instead.

    Raises:
        InputError: the folder or a cube of it cannot be used.
    """
    told = config.calibration
    if told.dir is None:
        return None
    asked = dataset.Asked(told.dir, told.cubes, told.samples, told.judged, told.seed, told.on_bad, told.band_groups)
    wavelengths = tuple(config.input.wavelengths or net.wavelengths) or None
    # The scale of the build: the flag's or the configuration's beats the files', the model's does not.
    bands, said = net.smallest.restored.bands, config.input
    wanted = cube_files.Wanted(
        bands, said.scale, scale, wavelengths, said.layout, said.key, said.ignore_value, net.smallest.is_area
    )
    way, scene_size = _measured(config, net, whole=whole)
    if asked.cubes == "as_flown" and way.measure is not None:
        raise InputError(
            "this network is calibrated with clean cubes, which its instrument is simulated on",
            key="calibration.cubes",
            value=asked.cubes,
            remedy="give clean cubes, and say calibration.cubes: clean",
        )
    with console.progress("looking at the calibration cubes") as moved:
        found = dataset.calibration_set(asked, wanted, way, moved, scene_size=scene_size)
    for doubt in found.doubts:
        console.warn(doubt)
    if found.skipped:
        first = next(iter(found.skipped.items()))
        console.warn(f"{len(found.skipped)} calibration cubes were skipped, the first is {first[0]}: {first[1]}")
    if told.dir == SIMULATED:
        console.warn("int8 is calibrated on simulated scenes; give cubes of your own camera before you fly it")
    return found


def simulated_frames(config: Config, net: Network) -> CalibrationSet:
    """Simulated scenes to judge precisions by, where no calibration cubes are given."""
    wavelengths = tuple(config.input.wavelengths or net.wavelengths) or None
    way, scene_size = _measured(config, net)
    wanted = cube_files.Wanted(net.smallest.restored.bands, wavelengths=wavelengths)
    return dataset.calibration_set(dataset.Asked(SIMULATED), wanted, way, scene_size=scene_size)


def _measured(config: Config, net: Network, *, whole: bool = False) -> tuple[Measuring, tuple[int, int]]:
    """How frames are made, of the search unless `whole`; and what a scene needs to fill the configuration's frame."""
    frame = config.input.frame
    largest = measuring(net, frame.lines, frame.samples)
    searched = net.frame(min(SEARCHED_SIDE, frame.lines), min(SEARCHED_SIDE, frame.samples))
    way = largest if whole or largest.signature.tiling == "fixed" else measuring(net, *searched)
    return way, largest.signature.restored.size


def cases(net: Network, frames: CalibrationSet, origins: Sequence[Origin], kept: Path | None) -> Iterator[Case]:
    """What PyTorch makes of these frames, one after the other; kept beside them, it is asked once."""
    signature = net.signature(*frames.size)
    engine: TorchEngine | None = None
    for sample in frames.samples(origins, kept):
        file = None if kept is None else kept / f"{frames.key(sample.origin)}-network.npz"
        made = None if file is None else _kept(file, signature)
        if made is None:
            engine = engine or TorchEngine(net, *frames.size)
            given, margins = engine.infer_with_margins(sample.feeds)
            made = {**given, MARGINS: margins}
            if file is not None:
                with replacing(file) as temporary, temporary.open("wb") as stream:
                    np.savez(stream, **made)  # type: ignore[arg-type]
        yield agreement.case_of(sample, made, made[MARGINS], signature)


def _kept(file: Path, signature: Signature) -> dict[str, Float32] | None:
    try:
        with np.load(file, allow_pickle=False) as held:
            made = {name: held[name] for name in held.files}
    # Not there yet, or damaged: PyTorch is asked again.
    except (OSError, ValueError, EOFError, BadZipFile):
        return None
    return made if {MARGINS, *signature.ports.outputs} <= set(made) else None
