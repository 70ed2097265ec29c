"""Recognise an MST by its state-dict keys and read its hyper-parameters off their shapes."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError

from ..cassi import PRIOR, STORED, give_mask
from ..loading import configured, count, fill, hyper_parameters, shape
from .config import MstConfig
from .network import Mst

OWN = re.compile(r"(?:encoder_layers\.\d+\.0|bottleneck|decoder_layers\.\d+\.2)\.blocks\.\d+\.0\.mm\.")
"""Keys of a mask's branch, which no other network has."""
REAL, BLOCKS = "fution.weight", "encoder_layers.0.0.blocks.0.0.to_q."
"""Keys of the MST for real measurements, which has no such branch."""


def recognises(keys: Collection[str]) -> bool:
    """Whether these are the state-dict keys of an MST, complete or not; of the one for real measurements too."""
    return PRIOR not in keys and (any(map(OWN.match, keys)) or _real(keys))


def _real(keys: Collection[str]) -> bool:
    return REAL in keys and any(key.startswith(BLOCKS) for key in keys)


def build(state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path) -> Mst:
    """An MST with these weights, and with the mask of the option or of a checkpoint of ours.

    Args:
        state: {key: tensor}, in our own files with the mask.
        given: configuration that came with the weights; may be empty.
        options: of `cassi.OPTIONS`.
        file: named in errors.

    Raises:
        CheckpointError: see `export.networks.load_checkpoint`.
    """
    if _real(state):
        raise CheckpointError(
            "an MST for real measurements, which takes no mask, is not supported",
            file=file,
            key=REAL,
            remedy="give the weights of an MST for the simulated instrument (keys with `.mm.`)",
        )
    weights = {key: value for key, value in state.items() if key != STORED}
    levels = count(weights, "encoder_layers.")
    read = {
        "blocks": (
            *(count(weights, f"encoder_layers.{level}.0.blocks.") for level in range(levels)),
            count(weights, "bottleneck.blocks."),
        ),
        "dim": shape(weights, file, "embedding.weight", 4)[0],
    }
    config = configured(MstConfig, read, hyper_parameters(given, MstConfig, file), file)
    with torch.device("meta"):
        net = Mst(config)
    fill(net, weights, file)
    give_mask(net, state.get(STORED), options, file)
    return net
