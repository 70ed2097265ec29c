"""What every network's loading does: read a configuration and shapes, refuse what contradicts them, fill the module."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError, plain

LARGEST = {int: 1 << 20, float: 1024, bool: 1}
KINDS = {int: "a whole number from 0 on", float: f"a number from 0 to {LARGEST[float]}", bool: "true or false"}
WHOLE = "give the whole state dict"
DAMAGED = "the weights are damaged or of another network"
Config = TypeVar("Config")


def hyper_parameters(
    given: Mapping[str, Any], config: type[Any], file: Path, names: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Those hyper-parameters that came with the weights or as options; others and nulls are left out.

    Args:
        given: {name: plain value}.
        config: a dataclass; its annotations (int, float, bool, Literal, tuple of whole numbers) say what is allowed.
        file: named in errors, as in all of this module.
        names: what others call our hyper-parameters.

    Raises:
        CheckpointError: a value is not of its kind, or out of range.
    """
    hints, found = get_type_hints(config), {}
    for name, value in given.items():
        key = names.get(name, name)
        if key not in hints or value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if expected := _lacking(value, hints[key]):
            raise CheckpointError(
                f"{expected} expected", file=file, key=name, value=value, remedy="mend it, or move config.json away"
            )
        found[key] = value
    return found


def _lacking(value: Any, hint: Any) -> str:
    """What is expected where a value is not that."""
    if get_origin(hint) is Literal:
        return "" if value in get_args(hint) else " or ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return "whole numbers" if not isinstance(value, tuple) or any(_lacking(v, int) for v in value) else ""
    fits = type(value) in ((int, float) if hint is float else (hint,)) and 0 <= value <= LARGEST[hint]
    return "" if fits else KINDS[hint]


def shape(state: Mapping[str, Tensor], file: Path, key: str, axes: int) -> tuple[int, ...]:
    """Shape of a tensor. Raises CheckpointError where it is missing, empty or has another number of axes."""
    if key not in state:
        raise CheckpointError("a key is missing", file=file, key=key, remedy=WHOLE)
    found = tuple(state[key].shape)
    if len(found) != axes or min(found, default=1) < 1:
        raise CheckpointError(f"wrong shape, {axes} axes expected", file=file, key=key, value=found, remedy=DAMAGED)
    return found


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbers follow a prefix in the keys."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    return len({m.group(1) for m in map(pattern.match, state) if m})


def factor(wide: int, width: int) -> float:
    """The factor by which a width is multiplied, and rounded down, to the wide one."""
    found = wide / width
    if int(width * found) < wide:
        found = math.nextafter(found, math.inf)
    return int(found) if found == int(found) else found


def configured(
    config: type[Config], read: Mapping[str, Any], told: Mapping[str, Any], file: Path,
    factors: Mapping[str, int] = MappingProxyType({}), options: Collection[str] = (),
) -> Config:  # fmt: skip
    """The configuration that weights have.

    Args:
        config: a dataclass that raises ValueError where it is impossible.
        read: hyper-parameters that shapes tell.
        told: those that came with the weights or as options (`hyper_parameters`), which decide what shapes do not tell.
        file: named in errors.
        factors: {hyper-parameter that shapes tell only up to rounding: the width that it multiplies}.
        options: those of `told` that may be chosen otherwise.

    Raises:
        CheckpointError: what is told contradicts the weights, or no such network is possible.
    """
    # A wrong width makes its factors wrong as well: it is named first.
    for key in sorted(told, key=factors.__contains__):
        found, value, width = read.get(key, told[key]), told[key], factors.get(key)
        if found != value if width is None else int(width * found) != int(width * value):
            raise CheckpointError(
                f"the options say {plain(value)}, the weights say {plain(found)}",
                file=file,
                key=key,
                remedy="give the options that these weights were trained with, or move config.json away",
            )
    try:
        return config(**{**read, **told})
    except (ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError) as error:
        chosen = next((name for name in options if f"{error}".startswith(name)), None)
        raise CheckpointError(
            f"the weights describe no possible network: {error}",
            file=file,
            key=chosen,
            remedy="choose another option" if chosen else DAMAGED,
        ) from error


def fill(net: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Give a module, made on the meta device, copies of its weights in its own types.

    Raises:
        CheckpointError: a key is missing, extra, misshapen or of another type.
    """
    expected = net.state_dict()
    for problem, keys, remedy in (
        ("missing", [k for k in expected if k not in state], WHOLE),
        (
            "extra",
            [k for k in state if k not in expected],
            "these weights belong to another network, or to what is beside it: leave them out",
        ),
    ):
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(f"{problem} key{others}", file=file, key=keys[0], remedy=remedy)
    net.load_state_dict({k: _fitted(k, state[k], blank, file) for k, blank in expected.items()}, assign=True)


def _fitted(key: str, value: Tensor, blank: Tensor, file: Path) -> Tensor:
    if value.shape != blank.shape:
        problem = f"wrong shape, {list(blank.shape)} expected"
        raise CheckpointError(problem, file=file, key=key, value=list(value.shape), remedy=DAMAGED)
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
