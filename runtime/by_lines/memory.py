"""Memory that a process takes which restores a product, declared before anything is done; measured on CPUs."""

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from runtime.by_lines.survey import BLOCK_BYTES, SAMPLE_BYTES
from runtime.by_lines.ways import Ways, result_of
from runtime.errors import MachineError
from runtime.files.disk import available_memory
from runtime.manifest import Manifest
from runtime.meaning import Meaning
from runtime.products import holds
from runtime.products.contract import CubeReader, Description, Place
from runtime.products.ortho import BLOCK as MAP_BLOCK
from runtime.scaling import Conversion

BASE_BYTES = 96 << 20
"""Of Python, its libraries and an engine with nothing loaded: measured, as all that follows."""
ENGINE_FACTOR = 3.6
"""Times the tensors that a graph holds at once, weights included, which an engine on a CPU takes."""
LOOK_FACTOR, GROUP_FACTOR = 2, 20
"""Times the sample that judging it takes, and times the elements of a band group of a row that its metrics take."""
MAP_FACTOR = 20
"""Bytes of a pixel of a lookup table while it is read."""


def planned(manifest: Manifest, reader: CubeReader, ways: Ways) -> int:
    """Bytes of memory that a process takes at most which restores a product; docs/products.md tells what of."""
    description = reader.description
    bands, lines, samples = description.shape
    size = description.dtype.itemsize
    signature = manifest.signature
    rows = min(signature.measured.size[0], lines)
    row, group = bands * rows * samples, min(bands, signature.measured.bands) * rows * samples
    out = 4 if ways.unit else size
    sorted_ = description.stated.wavelengths is not None and list(description.stated.wavelengths) != sorted(
        description.stated.wavelengths
    )
    restoring = row * (size + 4 + max(4 * (1 + sorted_), size, out)) + GROUP_FACTOR * group
    engine = manifest.memory or (0 if manifest.cost is None else int(ENGINE_FACTOR * manifest.cost.peak_bytes))
    looking = LOOK_FACTOR * min(SAMPLE_BYTES, prod(description.shape) * size) + 2 * BLOCK_BYTES
    scene = prod(description.shape) * 4 + GROUP_FACTOR * group // rows * lines if ways.metrics == "scene" else 0
    written = result_of(description, reader, _unlooked(description), ways, 1)
    ortho = 0
    if ways.ortho and (grid := description.place.ortho) is not None:
        ortho = MAP_FACTOR * grid.lines * grid.samples + 3 * MAP_BLOCK
        written = replace(written, shape=(bands, grid.lines, grid.samples), place=Place(grid=grid), reader=None)
    writing = holds(written, ways.kind)
    return BASE_BYTES + engine + description.holds + writing + ortho + scene + max(restoring, looking)


def _unlooked(description: Description) -> Meaning:
    nothing = np.zeros((0, description.shape[2]), np.bool_)
    return Meaning(Conversion(), None, (), {}, nothing, description.stated.wavelengths)


def refuse_large(needed: int, path: Path) -> None:
    """Raise MachineError where this machine has not the memory that is declared."""
    there = available_memory()
    if needed > there:
        raise MachineError(
            f"restoring it takes {needed / 2**20:.0f} MiB of memory, {there / 2**20:.0f} are free",
            file=path,
            key="memory",
            remedy="build the bundle for frames of fewer lines, say --metrics frame, or free memory",
        )
