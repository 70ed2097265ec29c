"""Recognise a DAMP by its state-dict keys and read its hyper-parameters off their shapes."""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError
from runtime.metrics import METRIC_SETS

from .. import loading
from ..loading import WHOLE, configured, factor, fill, hyper_parameters
from .config import LEVELS, DampConfig
from .network import Damp, frozen_tables

REBUILT = (".relative_position_index",)
"""Endings of tables that follow from the architecture; they may be missing, and must be equal where present."""
OWN = re.compile(r"dep\.feature_encoder\.|dec\.\d+\.2\.layers\.\d+\.DAMoE\.")
"""How keys begin that no other network has."""
UNTOLD_HEADS = 2

# What the public training script and its network call our hyper-parameters.
REFERENCE_NAMES = {
    "inp_channels": "bands",
    "dimention": "dim",
    "num_blocks": "encoder_blocks",
    "num_dec_blocks": "decoder_blocks",
    "num_exp_blocks": "experts",
    "num_experts": "experts",
    "num_refinement_blocks": "refinement_blocks",
    "topk": "top_k",
    "expansion_factor": "expansion",
    "ffn_expansion_factor": "expansion",
    "LayerNorm_type": "norm",
    "emb_dim": "embedding",
}


def recognises(keys: Iterable[str]) -> bool:
    """Whether these are the state-dict keys of a DAMP, complete or not."""
    return any(map(OWN.match, keys))


def stored_state(net: Damp) -> dict[str, Tensor]:
    """The state dict without tables that are rebuilt."""
    return {k: v for k, v in net.state_dict().items() if not k.endswith(REBUILT)}


def build(state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path) -> Damp:
    """A DAMP with these weights.

    Args:
        state: {key: tensor}.
        given: options that came with the weights, ours or the reference's names; may be empty.
        options: `top_k`, which wins over `given`.
        file: named in errors.

    Raises:
        CheckpointError: see `export.networks.load_checkpoint`.
    """
    config = configuration(state, given, options.get("top_k"), file)
    with torch.device("meta"):
        net = Damp(config)
    frozen = frozen_tables(net.state_dict())
    rebuilt = {key: table for key, table in frozen.items() if key.endswith(REBUILT)}
    fill(net, {**rebuilt, **state}, file)
    for key, value in net.state_dict().items():
        if key in frozen and not torch.equal(value, frozen[key]):
            raise CheckpointError(
                "a frozen table differs from the architecture's",
                file=file,
                key=key,
                remedy="these weights belong to another network",
            )
    return net


def configuration(state: Mapping[str, Tensor], given: Mapping[str, Any], top_k: object, file: Path) -> DampConfig:
    """Hyper-parameters from shapes; `given` must not contradict them, and tells what shapes do not."""
    told = hyper_parameters(given, DampConfig, file, REFERENCE_NAMES)
    read, width = _from_shapes(state, told, file)
    chosen = top_k if top_k is not None else told.get("top_k")
    if chosen is None:
        raise CheckpointError(
            "top-k is not in the weights and no config.json beside them tells it",
            file=file,
            key="top_k",
            remedy=f"say it: --top-k 1 to {read['experts']}, as the network was trained",
        )
    if isinstance(chosen, bool) or not isinstance(chosen, int) or not 1 <= chosen <= read["experts"]:
        raise CheckpointError(
            "top-k is out of range",
            file=file,
            key="top_k",
            value=chosen,
            remedy=f"1 to {read['experts']}, the number of experts",
        )
    return configured(DampConfig, read, {**told, "top_k": chosen}, file, {"expansion": width})


def _from_shapes(state: Mapping[str, Tensor], told: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], int]:
    """Hyper-parameters, and the width that the expansion multiplies."""
    shape, count = partial(loading.shape, state, file), partial(loading.count, state)
    encoder = (*(count(f"enc.{level}.0.layers.") for level in range(LEVELS - 1)), count("latent.layers."))
    decoder = tuple(count(f"dec.{LEVELS - 2 - level}.2.layers.") for level in range(LEVELS - 1))
    deepest = next((level for level in reversed(range(LEVELS - 1)) if decoder[level]), None)
    if deepest is None:
        raise CheckpointError("there is no decoder block", file=file, key="dec.0.2.layers.0", remedy=WHOLE)

    def heads(level: int) -> int | None:
        places = ["latent.layers.0.mixer"]
        if level < LEVELS - 1:
            places = [f"enc.{level}.0.layers.0.mixer", f"dec.{LEVELS - 2 - level}.2.layers.0.DAMoE.shared.body_spa"]
        if level == 0:
            places.append("refinement.layers.0.mixer")
        found = [key for place in places if (key := f"{place}.wa.attn.logit_scale") in state]
        return shape(found[0], 3)[0] if found else None

    dim, bands = shape("patch_embed.proj.weight", 4)[:2]
    embedding, _ = shape("dep.feature_encoder.encoder.6.weight", 2)
    _, metrics = shape("dep.feature_encoder.encoder.0.weight", 2)
    sets = [name for name, names in METRIC_SETS.items() if len(names) == metrics]
    if not sets:
        raise CheckpointError(
            "no metric set has this many metrics",
            file=file,
            key="dep.feature_encoder.encoder.0.weight",
            value=metrics,
            remedy=f"known sets: {', '.join(METRIC_SETS)}",
        )
    block = f"dec.{LEVELS - 2 - deepest}.2.layers.0"
    routing = f"{block}.DAMoE.adapter_spaspe.routing"
    # Of all widths the largest says most of the expansion.
    level = max([deepest, *(i for i, blocks in enumerate(encoder) if blocks)])
    deep = "latent.layers.0" if level == LEVELS - 1 else f"enc.{level}.0.layers.0"
    wide = block if level == deepest else deep
    hidden, width = shape(f"{wide}.ffn.project_in.weight", 4)[0] // 2, dim * 2**level
    given_heads = told.get("heads", ())
    read = {
        "bands": bands,
        "dim": dim,
        "heads": tuple(
            # A level without attention has no heads to tell; any even number describes it.
            heads(level) or (given_heads[level] if len(given_heads) == LEVELS else UNTOLD_HEADS)
            for level in range(LEVELS)
        ),
        "encoder_blocks": encoder,
        "decoder_blocks": decoder,
        "refinement_blocks": count("refinement.layers."),
        "expansion": factor(hidden, width),
        "norm": "WithBias" if f"{block}.norms.0.body.bias" in state else "BiasFree",
        "experts": shape(f"{routing}.gate.2.weight", 2)[0],
        "embedding": embedding,
        "gate": "concat" if f"{routing}.mix.weight" in state else "additive",
        "metric_set": told["metric_set"] if told.get("metric_set") in sets else sets[0],
    }
    return read, width
