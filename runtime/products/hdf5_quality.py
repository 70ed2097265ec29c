"""The quality layer in an HDF5 file: two variables of CF flags beside the cube."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.products.contract import PROVENANCE
from runtime.products.written import LAYERS

NAMES = tuple(f"{PROVENANCE}_{name}" for name in LAYERS)
"""Of the variables beside a cube whose axes have NetCDF dimensions."""
GROUP = f"/{PROVENANCE}"
"""Of the variables of a cube without: `seen` and `expert`."""


def make_layers(group: Any, names: tuple[str, ...], lines: int, samples: int) -> tuple[Any, ...]:
    """Two empty data sets uint8 [lines, samples], `Quality.seen` and `Quality.expert`."""
    made = []
    for name, about in zip(names, LAYERS.values(), strict=True):
        layer = group.create_dataset(
            name,
            (lines, samples),
            np.uint8,
            chunks=(max(1, min(lines, (1 << 18) // samples)), samples),
            compression="gzip",
            compression_opts=4,
            track_times=False,
            track_order=True,
        )
        set_texts(layer, about)
        made.append(layer)
    return tuple(made)


def set_texts(held: Any, attributes: Mapping[str, Any]) -> None:
    """Attributes: lists of its type, texts of fixed length, as NetCDF's programs write them and every reader takes."""
    import h5py

    for name, value in attributes.items():
        if isinstance(value, str) and value:
            data = value.encode(errors="replace")
            held.attrs.create(name, np.array(data, f"S{len(data)}"), dtype=h5py.string_dtype("utf-8", len(data)))
        elif isinstance(value, list):
            held.attrs[name] = np.array(value, held.dtype)
        elif value is not None and not isinstance(value, str):
            held.attrs[name] = value
