"""Recognise a DPMambaIR of ours by its state-dict keys and read its hyper-parameters off their shapes."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError, plain

from .config import CHOICES, LEVELS, DPMambaConfig
from .extractor import merged_state
from .network import DPMambaIR

SCAN = re.compile(r"(?:encoder\.\d+|latent|decoder\.\d+|refinement)\.blocks\.\d+\.ssm\.A_log$")
"""Keys of our blocks; MambaIR's are `self_attention.A_logs`, of four directions."""
EXTRACTOR, BRANCHES = "extractor.", "extractor.branches."
CENTRAL, PLAIN = f"{BRANCHES}central.", f"{BRANCHES}plain.weight"
ENTER = "extractor.enter.weight"
UNTOLD = ("delta", "discretisation", "order", "theta")
"""What shapes do not tell: an option, else what came with the weights, else our default."""
LIMIT = 1024


def recognises(keys: Collection[str]) -> bool:
    """Whether these are the state-dict keys of a DPMambaIR of ours, complete or not."""
    return any(map(SCAN.match, keys)) and any(key.startswith(EXTRACTOR) for key in keys)


def build(state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path) -> DPMambaIR:
    """A DPMambaIR with these weights; branches of its extractor are merged.

    Args:
        state: {key: tensor}.
        given: the configuration that came with the weights; may be empty.
        options: of `UNTOLD`, which win over `given`.
        file: named in errors.

    Raises:
        CheckpointError: see `export.networks.load_checkpoint`.
    """
    config = configuration(state, given, options, file)
    branched = _branched(state)
    with torch.device("meta"):
        net = DPMambaIR(config)
        expected = (DPMambaIR(config, branched=True) if branched else net).state_dict()
    _check_keys(state, expected, file)
    checked = {key: _checked(key, state[key], blank, file) for key, blank in expected.items()}
    net.load_state_dict(merged_state(checked, config.theta), assign=True)
    return net


def configuration(
    state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path
) -> DPMambaConfig:
    """Hyper-parameters from shapes; `given` must not contradict them, and it and `options` tell what shapes do not."""
    told = _told(given, file) | _told(options, file)
    try:
        read = _from_shapes(state, told, file)
        return DPMambaConfig(**{name: told[name] for name in UNTOLD if name in told}, **read)
    except (ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError) as error:
        chosen = next((name for name in UNTOLD if name in options and f"{error}".startswith(name)), None)
        raise CheckpointError(
            f"the weights describe no possible network: {error}",
            file=file,
            key=chosen,
            remedy="choose another option" if chosen else "the file is damaged or not a DPMambaIR of ours",
        ) from error


def _from_shapes(state: Mapping[str, Tensor], told: Mapping[str, Any], file: Path) -> dict[str, Any]:
    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in state:
            raise CheckpointError("missing key", file=file, key=key, remedy="give the whole state dict")
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
        "expand": _factor(inner, width),
        "states": states,
        "expansion": _factor(hidden, width),
        "high_frequency": enhanced[0] if enhanced else "none",
        "modulation": "rank" if modulated == rank + 2 * states else "full",
        "embedding": embedding,
        "extractor_widths": tuple(widths),
        **_kernels(told, shape, count(CENTRAL), merged=not _branched(state)),
    }
    for key, value in told.items():
        found = read.get(key, value)
        # Shapes fix a factor only up to rounding; the configuration knows the factor itself.
        factor = key in ("expand", "expansion")
        if int(width * found) != int(width * value) if factor else found != value:
            raise CheckpointError(
                f"the configuration says {plain(value)}, the weights say {plain(found)}",
                file=file,
                key=key,
                remedy="give the configuration that these weights were trained with, or move config.json away",
            )
        if factor:
            read[key] = value
    return read


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


def _factor(wide: int, width: int) -> float:
    factor = wide / width
    if int(width * factor) < wide:
        factor = math.nextafter(factor, math.inf)
    return int(factor) if factor == int(factor) else factor


def _told(given: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Those of our hyper-parameters that a configuration holds, each of its kind."""
    usual, told = DPMambaConfig().as_dict(), {}
    for name, value in given.items():
        if name not in usual or value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        if name in CHOICES:
            fits, expected = value in CHOICES[name], " or ".join(CHOICES[name])
        elif isinstance(usual[name], tuple):
            fits = isinstance(value, tuple) and all(type(v) is int and 0 <= v <= 1 << 20 for v in value)
            expected = "whole numbers"
        elif name in ("expand", "expansion", "theta"):
            fits, expected = type(value) in (int, float) and 0 <= value <= LIMIT, f"0 to {LIMIT}"
        else:
            fits, expected = type(value) is int and 0 <= value <= 1 << 20, "a whole number"
        if not fits:
            raise CheckpointError(
                "an option of the checkpoint is none that there is", file=file, key=name, value=value, remedy=expected
            )
        told[name] = value
    return told


def _check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    for problem, keys, remedy in (
        ("missing", [k for k in expected if k not in state], "give the whole state dict"),
        (
            "extra",
            [k for k in state if k not in expected],
            "these weights belong to another network, or to what is beside it: leave them out",
        ),
    ):
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(f"{problem} key{others}", file=file, key=keys[0], remedy=remedy)


def _checked(key: str, value: Tensor, blank: Tensor, file: Path) -> Tensor:
    if value.shape != blank.shape:
        raise CheckpointError(
            f"wrong shape, {list(blank.shape)} expected",
            file=file,
            key=key,
            value=list(value.shape),
            remedy="the weights are damaged or of another network",
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
