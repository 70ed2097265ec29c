"""Recognise a network with a spectral diffusion prior by its keys, and read its hyper-parameters off their shapes."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError

from .. import bisrnet, mst
from ..bisrnet.checkpoint import build as build_bisrnet
from ..cassi import PRIOR, STORED
from ..loading import configured, count, fill, hyper_parameters, shape
from ..mst.checkpoint import build as build_mst
from .config import SdpConfig
from .network import Sdp, blank

PARTS = ("hfe.", "diffusion.", "spim.")
INPUT, LATENT = "input", "a whole number from 0 on, the seed of what the prior's chain starts from, or `input`"


def recognises(keys: Collection[str]) -> bool:
    """Whether these are the state-dict keys of an MST or a BiSRNet with a prior."""
    return PRIOR in keys and any(a.recognises(_backbone(keys)) for a in (mst.ARCHITECTURE, bisrnet.ARCHITECTURE))


def _backbone(keys: Collection[str]) -> list[str]:
    return [key for key in keys if not key.startswith(PARTS)]


def build(state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path) -> Sdp:
    """A network with these weights, the mask of the option or of a checkpoint of ours, and its latent.

    Args:
        state: {key: tensor}, in our own files with the mask.
        given: configuration that came with the weights; may be empty.
        options: `mask` and `latent`.
        file: named in errors.

    Raises:
        CheckpointError: see `export.networks.load_checkpoint`.
    """
    seed = _seed(options.get("latent", given.get("latent", 0)), file)
    own = _backbone(state)
    build_backbone = build_mst if mst.ARCHITECTURE.recognises(own) else build_bisrnet
    masked = {key: value for key, value in options.items() if key == "mask"}
    backbone = build_backbone({key: state[key] for key in own}, given, masked, file)
    width, *_ = shape(state, file, PRIOR, 4)
    dims, _ = shape(state, file, "diffusion.net.first.weight", 2)
    read = {
        "latent_dims": dims, "hfe_width": width, "hfe_blocks": count(state, "hfe.blocks."),
        "denoiser_layers": count(state, "diffusion.net.rest."),
    }  # fmt: skip
    told = hyper_parameters(given, SdpConfig, file)
    config = configured(SdpConfig, read, told, file)
    blocks = SdpConfig(**{**config.as_dict(), "spim_sites": "block"})
    with torch.device("meta"):
        # Where nobody says it, the number of places tells which they are.
        nets = [blank(backbone.config, each) for each in ([config] if "spim_sites" in told else [config, blocks])]
    net = next((net for net in nets if len(net.spim) == count(state, "spim.")), nets[0])
    fill(net, {key: value for key, value in state.items() if key != STORED}, file)
    net.mask, net.said, net.seed = backbone.mask, dict(backbone.said), seed
    return net


def _seed(said: object, file: Path) -> int | None:
    if said == INPUT:
        return None
    if type(said) is not int or said < 0:
        raise CheckpointError("is no latent", file=file, key="latent", value=said, remedy=f"give {LATENT}")
    return said
