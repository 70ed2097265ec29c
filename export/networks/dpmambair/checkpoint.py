"""Recognise a DPMambaIR of ours by its state-dict keys and read its hyper-parameters off their shapes."""

import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError, plain

from .. import loading
from ..loading import configured, factor, fill, hyper_parameters
from .config import LEVELS, DPMambaConfig
from .extractor import merged
from .network import DPMambaIR

SCAN = re.compile(r"(?:encoder\.\d+|latent|decoder\.\d+|refinement)\.blocks\.\d+\.ssm\.A_log$")
"""Keys of our blocks; MambaIR's are `self_attention.A_logs`, of four directions."""
EXTRACTOR, BRANCHES = "extractor.", "extractor.branches."
CENTRAL, PLAIN = f"{BRANCHES}central.", f"{BRANCHES}plain.weight"
ENTER = "extractor.enter.weight"


def recognises(keys: Collection[str]) -> bool:
    """Whether these are the state-dict keys of a DPMambaIR of ours, complete or not."""
    return any(map(SCAN.match, keys)) and any(key.startswith(EXTRACTOR) for key in keys)


def build(state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path) -> DPMambaIR:
    """A DPMambaIR with these weights; branches of its extractor are merged.

    Args:
        state: {key: tensor}.
        given: the configuration that came with the weights; may be empty.
        options: what shapes do not tell (`delta`, `discretisation`, `order`, `theta`), where `given` does not say it.
        file: named in errors.

    Raises:
        CheckpointError: see `export.networks.load_checkpoint`.
    """
    config = configuration(state, given, options, file)
    with torch.device("meta"):
        net = DPMambaIR(config, _branched(state))
    fill(net, state, file)
    net.extractor = merged(net.extractor, config)
    return net


def configuration(
    state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path
) -> DPMambaConfig:
    """Hyper-parameters from shapes; `given` and `options` tell what shapes do not, and contradict nothing."""
    own, chosen = (hyper_parameters(each, DPMambaConfig, file) for each in (given, options))
    if not _branched(state):
        # What merged branches were made with cannot be chosen any more.
        own = {"theta": DPMambaConfig().theta, **own}
    for key in own.keys() & chosen.keys():
        if own[key] != chosen[key]:
            raise CheckpointError(
                f"the weights were trained with {plain(own[key])}",
                file=file,
                key=key,
                value=chosen[key],
                remedy="leave the option out",
            )
    told = own | chosen
    shape, count = partial(loading.shape, state, file), partial(loading.count, state)
    dim, bands = shape("embed.weight", 4)[:2]
    places = [(f"encoder.{i}", i) for i in range(LEVELS - 1)] + [("latent", LEVELS - 1)]
    places += [(f"decoder.{i}", max(i, 1)) for i in range(LEVELS - 1)] + [("refinement", 1)]
    blocks = [count(f"{place}.blocks.") for place, _ in places]
    (block, level) = max(
        (p for p, number in zip(places, blocks, strict=True) if number),
        key=lambda place: place[1],
        default=places[LEVELS - 1],
    )
    block, width = f"{block}.blocks.0", dim * 2**level
    inner, states = shape(f"{block}.ssm.A_log", 2)
    hidden = shape(f"{block}.ffn.project_out.weight", 4)[1]
    modulated, embedding = shape(f"{block}.ssm.modulation.weight", 2)
    rank = shape(f"{block}.ssm.dt_proj.weight", 4)[1]
    enhanced = [name for name in ("before_ffn", "after_ssm") if f"{block}.{name}.gain" in state]
    widths = [shape(PLAIN if _branched(state) else ENTER, 4)[0]]
    widths += [shape(f"extractor.stages.{i}.0.weight", 4)[0] for i in range(count("extractor.stages."))]
    read = {
        "bands": bands,
        "dim": dim,
        "encoder_blocks": tuple(blocks[:LEVELS]),
        "decoder_blocks": tuple(blocks[LEVELS:-1]),
        "refinement_blocks": blocks[-1],
        "expand": factor(inner, width),
        "states": states,
        "expansion": factor(hidden, width),
        "high_frequency": enhanced[0] if enhanced else "none",
        "modulation": "rank" if modulated == rank + 2 * states else "full",
        "embedding": embedding,
        "extractor_widths": tuple(widths),
        **_kernels(told, shape, count(CENTRAL), merged=not _branched(state)),
    }
    factors = {"expand": width, "expansion": width}
    return configured(DPMambaConfig, read, told, file, factors, options)


def _branched(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(BRANCHES) for key in state)


def _kernels(told: Mapping[str, Any], shape: Any, central: int, merged: bool) -> dict[str, Any]:
    """Sizes of the extractor's first convolutions; of a merged one only the largest can be told."""
    if not merged:
        sizes = tuple(shape(f"{CENTRAL}{i}.weight", 4)[-1] for i in range(central))
        return {"cdc_kernels": sizes, "plain_kernel": shape(PLAIN, 4)[-1]}
    size, usual = shape(ENTER, 4)[-1], DPMambaConfig()
    said = {name: told.get(name, getattr(usual, name)) for name in ("cdc_kernels", "plain_kernel")}
    if max((*said["cdc_kernels"], said["plain_kernel"])) == size:
        return said
    return {"cdc_kernels": (), "plain_kernel": size}
