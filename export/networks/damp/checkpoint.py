"""Recognise a DAMP by its state-dict keys and read its hyper-parameters off their shapes."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError, plain
from runtime.metrics import METRIC_SETS

from .config import LEVELS, DampConfig
from .network import Damp, frozen_tables

REBUILT = (".relative_position_index",)
"""Endings of tables that follow from the architecture; they may be missing, and must be equal where present."""
FROZEN = (".relative_position_index", ".sobel_x.weight", ".sobel_y.weight")
OWN = re.compile(r"dep\.feature_encoder\.|dec\.\d+\.2\.layers\.\d+\.DAMoE\.")
"""How keys begin that no other network has."""
EXPANSION_LIMIT = 1024
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
    expected = net.state_dict()
    _check_keys(state, expected, file)
    complete = {}
    rebuilt = frozen_tables(expected)
    for key, blank in expected.items():
        value = rebuilt[key] if key not in state else _checked(key, state[key], blank, file)
        if key.endswith(FROZEN) and not torch.equal(value, rebuilt[key]):
            raise CheckpointError(
                "a frozen table differs from the architecture's",
                file=file,
                key=key,
                remedy="these weights belong to another network",
            )
        complete[key] = value
    net.load_state_dict(complete, assign=True)
    return net


def configuration(state: Mapping[str, Tensor], given: Mapping[str, Any], top_k: object, file: Path) -> DampConfig:
    """Hyper-parameters from shapes; `given` must not contradict them, and tells what shapes do not."""
    told = _told(given, file)
    heads = told.get("heads")
    read = _from_shapes(state, heads if isinstance(heads, tuple) else (), told.get("metric_set"), file)
    width = read["dim"] * 2 ** (LEVELS - 1)
    for key, value in sorted(told.items(), key=lambda item: item[0] == "expansion"):
        found = read.get(key, value)
        # Shapes fix the expansion only up to rounding; the options know the factor itself.
        if found != value if key != "expansion" else int(width * found) != int(width * value):
            raise CheckpointError(
                f"the options say {plain(value)}, the weights say {found}",
                file=file,
                key=key,
                remedy="give the options that these weights were trained with, or move config.json away",
            )
    read["expansion"] = told.get("expansion", read["expansion"])
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
    try:
        return DampConfig(**read, top_k=chosen)
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the weights describe no possible network: {error}", file=file, remedy="the file is damaged or not a DAMP"
        ) from error


def _from_shapes(
    state: Mapping[str, Tensor], given_heads: tuple[int, ...], metric_set: object, file: Path
) -> dict[str, Any]:
    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in state:
            raise CheckpointError("a key is missing", file=file, key=key, remedy="give the whole state dict")
        found = tuple(state[key].shape)
        if len(found) != axes or min(found, default=1) < 1:
            raise CheckpointError(
                f"wrong shape, {axes} axes expected",
                file=file,
                key=key,
                value=found,
                remedy="the weights are damaged or of another network",
            )
        return found

    def count(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
        return len({m.group(1) for m in map(pattern.match, state) if m})

    encoder = (*(count(f"enc.{level}.0.layers.") for level in range(LEVELS - 1)), count("latent.layers."))
    decoder = tuple(count(f"dec.{LEVELS - 2 - level}.2.layers.") for level in range(LEVELS - 1))
    deepest = next((level for level in reversed(range(LEVELS - 1)) if decoder[level]), None)
    if deepest is None:
        raise CheckpointError(
            "there is no decoder block", file=file, key="dec.0.2.layers.0", remedy="give the whole state dict"
        )

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
    hidden = shape(f"{block}.ffn.project_in.weight", 4)[0] / 2
    if encoder[-1]:
        hidden, deepest = shape("latent.layers.0.ffn.project_in.weight", 4)[0] / 2, LEVELS - 1
    width = dim * 2**deepest
    expansion = hidden / width
    if int(width * expansion) < hidden:
        expansion = math.nextafter(expansion, math.inf)
    return {
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
        "expansion": int(expansion) if expansion == int(expansion) else expansion,
        "norm": "WithBias" if f"{block}.norms.0.body.bias" in state else "BiasFree",
        "experts": shape(f"{routing}.gate.2.weight", 2)[0],
        "embedding": embedding,
        "gate": "concat" if f"{routing}.mix.weight" in state else "additive",
        "metric_set": metric_set if metric_set in sets else sets[0],
    }


def _told(given: Mapping[str, Any], file: Path) -> dict[str, Any]:
    ours = set(DampConfig.__dataclass_fields__)
    told: dict[str, Any] = {}
    for name, value in given.items():
        key = REFERENCE_NAMES.get(name, name)
        if key not in ours or value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        numbers = value if isinstance(value, tuple) else (value,)
        if key == "expansion":
            known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= EXPANSION_LIMIT
            numbers = (value if known else None,)
        elif key not in ("norm", "gate", "metric_set"):
            numbers = tuple(v if isinstance(v, int) and not isinstance(v, bool) else None for v in numbers)
        if None in numbers:
            raise CheckpointError(
                "an option of the checkpoint is not a number in range",
                file=file,
                key=name,
                value=value,
                remedy="mend config.json or move it away",
            )
        told[key] = value
    return told


def _check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    missing = [k for k in expected if k not in state and not k.endswith(REBUILT)]
    extra = [k for k in state if k not in expected]
    for problem, keys, remedy in (
        ("missing", missing, "give the whole state dict"),
        ("extra", extra, "these weights belong to another network, or to what is beside it: leave them out"),
    ):
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(
                f"{problem} key{others}" if others else f"{problem} key", file=file, key=keys[0], remedy=remedy
            )


def _checked(key: str, value: Tensor, blank: Tensor, file: Path) -> Tensor:
    if value.shape != blank.shape:
        raise CheckpointError(
            f"wrong shape, {list(blank.shape)} expected",
            file=file,
            key=key,
            value=list(value.shape),
            remedy="the weights are damaged or of another network",
        )
    if value.layout != torch.strided or value.is_floating_point() != blank.is_floating_point() or value.is_complex():
        raise CheckpointError(
            f"wrong type, {blank.dtype} expected",
            file=file,
            key=key,
            value=value.dtype,
            remedy="give the float weights, not a quantised form",
        )
    # A state dict may hold views of one storage; ours must not write through to another key.
    return value.detach().to(blank.dtype).contiguous().clone()
