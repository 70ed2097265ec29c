"""A model to be evaluated: a packaged one, a checkpoint or a bundle."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.evaluation import Restore
from calibration.measuring import Measuring
from export import networks
from export.networks import Network
from export.torch_engine import TorchEngine
from runtime.arrays import Float32
from runtime.bundle import load_bundle
from runtime.errors import InputError
from runtime.restore import Restored, restore_cube

from .probes import measuring

LARGEST_FRAME = 512
FRAME_OVERLAP = 64


@dataclass(frozen=True)
class Model:
    """What is evaluated.

    Attributes:
        name: as it was given.
        about: one line on its training.
        restore: cube -> restored cube and experts' weights [layers, experts].
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


@contextmanager
def opened(model: str, options: Mapping[str, Any]) -> Iterator[Model]:
    """A packaged model, a checkpoint or a bundle, whose engine is closed in the end. Raises DeployError."""
    if not Path(model).is_dir():
        yield _from_checkpoint(model, options)
        return
    for name, value in options.items():
        asked = "--top-k" if name == "top_k" else "--option"
        raise InputError("a bundle's options are fixed", key=asked, value=f"{name}={value}", remedy="leave it out")
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
        way: Measuring = Measuring(bundle.prompts, architecture.tasks, architecture.measure)

        def restore(cube: Float32) -> tuple[Float32, Float32]:
            return _mean_routing(bundle.restore(cube))

        centres = tuple(m.wavelengths) if m.wavelengths else None
        yield Model(model, m.network.about, restore, way, m.scale, centres, None)


def _from_checkpoint(name: str, options: Mapping[str, Any]) -> Model:
    net: Network = networks.load_checkpoint(name, **options)
    architecture, facts = net.architecture, net.facts
    engine = TorchEngine
    multiple = architecture.multiple
    way = measuring(net, multiple, multiple)
    prompts = way.prompts

    def restore(cube: Float32) -> tuple[Float32, Float32]:
        lines, samples = (min(LARGEST_FRAME, -(-n // multiple) * multiple) for n in cube.shape[1:])
        opened = engine(net, lines, samples)
        overlap = FRAME_OVERLAP if max(cube.shape[1:]) > LARGEST_FRAME else 0
        return _mean_routing(restore_cube(cube, opened.infer, opened.signature, overlap=overlap, prompts=prompts))

    shares = architecture.routing.balances(net.module) if architecture.routing else None
    return Model(name, facts.about, restore, way, facts.scale, facts.wavelengths or None, shares)


def _mean_routing(restored: Restored) -> tuple[Float32, Float32]:
    """The cube, and the experts' weights averaged over tiles; these are empty without experts."""
    weights = next(iter(restored.side.values()), np.zeros((0, 0), np.float32))
    mean: Float32 = weights.mean(axis=tuple(range(weights.ndim - 2)))
    return np.asarray(restored.cube, np.float32), mean
