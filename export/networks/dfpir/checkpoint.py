"""Recognise a DFPIR by its state-dict keys and read its hyper-parameters off their shapes."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError, plain

from ..architecture import Option
from .config import PERTURBED, DfpirConfig
from .network import Dfpir
from .prompts import OPTIONS, STORED, chosen_codes, stored_codes

OWN = ("latent_shuffle_channel.", "encoder_shuffle_channel1.")
"""How keys begin that no other network of this family (Restormer, PromptIR) has."""
BLOCKS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
WHOLE = "give the whole state dict"
DAMAGED = "the weights are damaged or of another network"


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
    config = _from_shapes(weights, file)
    _check_told(config, given, file)
    with torch.device("meta"):
        net = Dfpir(config)
    expected = net.state_dict()
    _check_keys(weights, expected, file)
    net.load_state_dict({k: _checked(k, weights[k], blank, file) for k, blank in expected.items()}, assign=True)
    codes = {key: value for key, value in state.items() if key.startswith(STORED)}
    # A file beside a reference's weights may have prompts of its own kind.
    stored = stored_codes(codes, given.get("prompts"), config.text, file) if codes else {}
    net.prompts = chosen_codes(stored, options, config.text, file)
    net.said = {name: options[name] for name in OPTIONS if name in options}
    return net


def _from_shapes(state: Mapping[str, Tensor], file: Path) -> DfpirConfig:
    """Every level has a perturbation block, even where it has no other: it tells heads and hidden widths."""

    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in state:
            raise CheckpointError("a key is missing", file=file, key=key, remedy=WHOLE)
        found = tuple(state[key].shape)
        if len(found) != axes or min(found, default=1) < 1:
            raise CheckpointError(
                f"wrong shape, {axes} axes expected", file=file, key=key, value=found, remedy=DAMAGED
            )  # fmt: skip
        return found

    def count(prefix: str) -> int:
        found = map(re.compile(rf"{prefix}\.(\d{{1,4}})\.").match, state)
        return len({m.group(1) for m in found if m})

    levels = sorted(PERTURBED, key=lambda name: PERTURBED[name])
    dim, bands = shape("patch_embed.proj.weight", 4)[:2]
    try:
        return DfpirConfig(
            bands=bands,
            dim=dim,
            heads=tuple(shape(f"{name}.select_attn.temperature", 3)[0] for name in levels),  # type: ignore[arg-type]
            blocks=tuple(map(count, BLOCKS)),  # type: ignore[arg-type]
            refinement_blocks=count("refinement"),
            hidden=tuple(shape(f"{name}.ffn.project_out.weight", 4)[1] for name in levels),  # type: ignore[arg-type]
            norm="WithBias" if f"{levels[-1]}.norm1.body.bias" in state else "BiasFree",
            conv_bias="output.bias" in state,
            text=shape(f"{levels[-1]}.linear_layer1.weight", 2)[1],
        )
    except ValueError as error:
        raise CheckpointError(
            f"the weights describe no possible network: {error}", file=file, remedy="the file is damaged or not a DFPIR"
        ) from error


def _check_told(config: DfpirConfig, given: Mapping[str, Any], file: Path) -> None:
    for key, found in config.as_dict().items():
        told = given.get(key, found)
        if (tuple(told) if isinstance(told, list) else told) != found:
            raise CheckpointError(
                f"the options say {plain(told)}, the weights say {found}",
                file=file,
                key=key,
                remedy="give the options that these weights were trained with, or move config.json away",
            )


def _check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    for problem, keys, remedy in (
        ("missing", [k for k in expected if k not in state], WHOLE),
        ("extra", [k for k in state if k not in expected], "these weights belong to another network: leave them out"),
    ):
        if keys:
            others = f"s and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(f"{problem} key{others}", file=file, key=keys[0], remedy=remedy)


def _checked(key: str, value: Tensor, blank: Tensor, file: Path) -> Tensor:
    if value.shape != blank.shape:
        raise CheckpointError(
            f"wrong shape, {list(blank.shape)} expected",
            file=file,
            key=key,
            value=list(value.shape),
            remedy=DAMAGED,
        )
    if not value.is_floating_point():
        raise CheckpointError(
            f"wrong type, {blank.dtype} expected",
            file=file,
            key=key,
            value=value.dtype,
            remedy="give the float weights, not a quantised form",
        )
    # A state dict may hold views of one storage; ours must not write through to another key.
    return value.detach().to(blank.dtype).contiguous().clone()
