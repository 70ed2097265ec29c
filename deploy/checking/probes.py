"""What a network is fed with, and judged by: frames of clean cubes, simulated ones first."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calibration.measuring import Measuring
from export.networks import Network
from export.onnx import Probe
from runtime.arrays import Float32
from runtime.simulation.simulator import simulate_scene

PROBE_DEGRADATIONS = ("noise", "blur", "inpaint", "bandloss")


def measuring(net: Network, lines: int, samples: int) -> Measuring:
    """How frames of a size come from clean cubes for a network."""
    signature = net.signature(lines, samples)
    made: Measuring = Measuring(net.prompts(signature), net.tasks, net.architecture.measure, net.instrument)
    return made


def simulated_truth(net: Network, size: tuple[int, int], wavelengths: Sequence[float]) -> Float32:
    """The simulated scene [bands, lines, samples]; wavelengths in nm that are not one per band are left aside."""
    restored = net.signature(*size).restored
    centres = wavelengths if len(wavelengths) == restored.bands else None
    return simulate_scene(0, restored.bands, *restored.size, centres).truth


def simulated_probes(net: Network, size: tuple[int, int], wavelengths: Sequence[float]) -> list[Probe]:
    """What a network is fed with for `simulated_truth`, damaged or measured in several ways."""
    way, scene = measuring(net, *size), simulated_truth(net, size, wavelengths)
    tasks = PROBE_DEGRADATIONS if way.measure is None else way.tasks
    pairs = [(way.prompts, task) for task in tasks]
    if net.conditions:
        # Every one is held against PyTorch, whatever it shares its tasks with.
        pairs = [(way.prompts.of(name), (*one.tasks, *way.tasks)[0]) for name, one in net.conditions.items()]
    return [
        replace(way, prompts=prompts).feeds(way.measured(task, scene, np.random.default_rng([0, index])), task)
        for index, (prompts, task) in enumerate(pairs)
    ]
