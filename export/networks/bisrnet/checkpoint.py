"""Recognise a BiSRNet by its state-dict keys and read its hyper-parameters off them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cassi import PRIOR, STORED, give_mask
from ..loading import configured, count, fill, hyper_parameters
from .config import BisrnetConfig
from .network import Bisrnet

OWN = frozenset({"fution.weight", "body.0.embedding.binary_conv.weight"})
"""Keys that no other network has together."""


def recognises(keys: Collection[str]) -> bool:
    """Whether these are the state-dict keys of a BiSRNet."""
    return PRIOR not in keys and OWN.issubset(keys)


def build(state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path) -> Bisrnet:
    """A BiSRNet with these weights, and with the mask of the option or of a checkpoint of ours.

    Args:
        state: {key: tensor}, in our own files with the mask.
        given: configuration that came with the weights; may be empty.
        options: of `cassi.OPTIONS`.
        file: named in errors.

    Raises:
        CheckpointError: see `export.networks.load_checkpoint`.
    """
    weights = {key: value for key, value in state.items() if key != STORED}
    parts = "encoder_layers.0.0", "encoder_layers.1.0", "bottleneck"
    read = {
        "stages": count(weights, "body."),
        "blocks": tuple(count(weights, f"body.0.{part}.blocks.") for part in parts),
    }
    config = configured(BisrnetConfig, read, hyper_parameters(given, BisrnetConfig, file), file)
    with torch.device("meta"):
        net = Bisrnet(config)
    fill(net, weights, file)
    give_mask(net, state.get(STORED), options, file)
    return net
