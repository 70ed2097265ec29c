"""Recognise a DFPIR by its state-dict keys and read its hyper-parameters off their shapes."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import loading
from ..architecture import Option
from ..loading import configured, count, fill, hyper_parameters
from .config import PERTURBED, DfpirConfig
from .network import Dfpir
from .prompts import OPTIONS, STORED, chosen_codes, stored_codes

OWN = ("latent_shuffle_channel.", "encoder_shuffle_channel1.")
"""How keys begin that no other network of this family (Restormer, PromptIR) has."""
BLOCKS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


def recognises(keys: Collection[str]) -> bool:
    """Whether these are the state-dict keys of a DFPIR, complete or not."""
    return any(key.startswith(OWN) for key in keys)


def stored_state(net: Dfpir) -> dict[str, Tensor]:
    """The state dict and the text codes of the network's prompts."""
    return {**net.state_dict(), **{STORED + name: torch.from_numpy(c.values) for name, c in net.prompts.items()}}


def told_configuration(net: Dfpir) -> dict[str, Any]:
    """Plain values that fix the network; prompts in their order."""
    return {
        **net.config.as_dict(),
        "prompts": [{"name": name, "sentence": code.sentence} for name, code in net.prompts.items()],
    }


def chosen(net: Dfpir) -> dict[str, Option]:
    """Options that the network was given; its prompts also where the checkpoint brought them."""
    return {**net.said, **({"prompt": ",".join(net.prompts)} if net.prompts else {})}


def build(state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path) -> Dfpir:
    """A DFPIR with these weights.

    Args:
        state: {key: tensor}, in our own files with the codes of prompts.
        given: configuration that came with the weights; may be empty.
        options: of `prompts.OPTIONS`.
        file: named in errors.

    Raises:
        CheckpointError: see `export.networks.load_checkpoint`.
    """
    weights = {key: value for key, value in state.items() if not key.startswith(STORED)}
    config = _from_shapes(weights, given, file)
    with torch.device("meta"):
        net = Dfpir(config)
    fill(net, weights, file)
    codes = {key: value for key, value in state.items() if key.startswith(STORED)}
    # A file beside a reference's weights may have prompts of its own kind.
    stored = stored_codes(codes, given.get("prompts"), config.text, file) if codes else {}
    net.prompts = chosen_codes(stored, options, config.text, file)
    net.said = {name: options[name] for name in OPTIONS if name in options}
    return net


def _from_shapes(state: Mapping[str, Tensor], given: Mapping[str, Any], file: Path) -> DfpirConfig:
    """Every level has a perturbation block, even where it has no other: it tells heads and hidden widths."""
    shape = partial(loading.shape, state, file)
    levels = sorted(PERTURBED, key=lambda name: PERTURBED[name])
    dim, bands = shape("patch_embed.proj.weight", 4)[:2]
    read = {
        "bands": bands,
        "dim": dim,
        "heads": tuple(shape(f"{name}.select_attn.temperature", 3)[0] for name in levels),
        "blocks": tuple(count(state, f"{name}.") for name in BLOCKS),
        "refinement_blocks": count(state, "refinement."),
        "hidden": tuple(shape(f"{name}.ffn.project_out.weight", 4)[1] for name in levels),
        "norm": "WithBias" if f"{levels[-1]}.norm1.body.bias" in state else "BiasFree",
        "conv_bias": "output.bias" in state,
        "text": shape(f"{levels[-1]}.linear_layer1.weight", 2)[1],
    }
    return configured(DfpirConfig, read, hyper_parameters(given, DfpirConfig, file), file)
