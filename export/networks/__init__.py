"""One package per architecture, and the loading of their checkpoints.

A package offers `ARCHITECTURE` (its name), `SIZE_MULTIPLE`, `recognises(keys)`, `build(state, given, top_k, file)`,
`is_network(net)`, `stored_state(net)`, `deployment_form(net)`, `module_name(part)` (the network's module that a part of
its static form stands for), `probabilities(net)` (what its routers said while it ran) and `balances(net)`; adding one
means adding its line to `ARCHITECTURES`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from runtime.errors import CheckpointError, plain

from . import damp
from .reading import CheckpointFacts, read_checkpoint, write_safetensors

ARCHITECTURES: dict[str, ModuleType] = {damp.ARCHITECTURE: damp}
PACKAGED = Path(__file__).resolve().parent.parent / "models"

__all__ = [
    "ARCHITECTURES",
    "CheckpointFacts",
    "find_checkpoint",
    "load_checkpoint",
    "packaged_models",
    "save_checkpoint",
]


def packaged_models() -> tuple[str, ...]:
    """Names of the models that come with this distribution."""
    return tuple(sorted(p.stem for p in PACKAGED.glob("*.safetensors")))


def find_checkpoint(name: str | Path) -> Path:
    """The file that `name` means: a path, or a packaged model where no such path exists.

    Raises:
        CheckpointError: neither.
    """
    path = Path(name)
    try:
        exists = path.exists()
    except OSError as error:
        raise CheckpointError(
            f"no such checkpoint: {error.strerror}", file=plain(path), remedy="check the path and its permissions"
        ) from error
    if not exists and str(name) in packaged_models():
        return PACKAGED / f"{name}.safetensors"
    if not exists:
        models = ", ".join(packaged_models()) or "none"
        raise CheckpointError("no such checkpoint", file=path, remedy=f"give a path or a packaged model ({models})")
    return path


def load_checkpoint(path: str | Path, top_k: int | None = None) -> nn.Module:
    """Load a trained network; nothing in the file is ever executed.

    Args:
        path: a reference `.pth` (bare state dict, or under `state_dict` or `params`, keys with or without `module.`;
            `config.json` beside it is read), one of our `.safetensors`, or the name of a packaged model.
        top_k: experts that run for a frame; needed where neither the file nor `config.json` says it, wins over both.

    Returns:
        the network in eval mode: `net(frame [B, C, H, W], metrics [B, M]) -> (restored [B, C, H, W],
        gates [B, layers, experts])`, with `net.config` (its configuration) and `net.facts` (`CheckpointFacts`).

    Raises:
        CheckpointError: unknown architecture, top-k missing or out of range, missing or extra keys, wrong shapes,
            weights that are not finite, a file that is damaged, truncated or holds more than tensors.
    """
    file = find_checkpoint(path)
    content = read_checkpoint(file)
    for name, package in ARCHITECTURES.items():
        if content.architecture in (None, name) and package.recognises(content.state):
            net: nn.Module = package.build(content.state, content.given, top_k, file)
            net.facts = content.facts
            _check_wavelengths(content.facts, net.config.bands)
            return net.eval()
    raise CheckpointError(
        "no architecture that we know has these weights",
        file=file,
        key=next(iter(content.state), None),
        value=content.architecture,
        remedy=f"known architectures: {', '.join(ARCHITECTURES)}",
    )


def _check_wavelengths(facts: CheckpointFacts, bands: int) -> None:
    told = facts.wavelengths
    if told and (len(told) != bands or any(b <= a for a, b in pairwise(told))):
        raise CheckpointError(
            f"{bands} wavelengths in increasing order are expected, or none",
            file=facts.file,
            key="wavelengths",
            value=len(told),
            remedy="save it again with the wavelengths of its bands",
        )


def architecture_of(net: nn.Module) -> ModuleType:
    """The package that a network belongs to."""
    for package in ARCHITECTURES.values():
        if package.is_network(net):
            return package
    raise TypeError(f"{type(net).__name__} belongs to no known architecture")


def save_checkpoint(
    net: nn.Module, path: Path, *, scale: float | None = None, wavelengths: tuple[float, ...] = (), about: str = ""
) -> Path:
    """Write a network as `.safetensors` with its configuration in the metadata, without tables that can be rebuilt.

    Args:
        net: a network of `ARCHITECTURES`.
        path: where to.
        scale: DN per 1.0 of the training data, for integer cubes.
        wavelengths: band centres in nanometres.
        about: one line on data and recipe.
    """
    package = architecture_of(net)
    metadata: dict[str, Any] = {
        "architecture": package.ARCHITECTURE,
        "configuration": net.config.as_dict(),
        "scale": scale,
        "wavelengths": list(wavelengths),
        "about": about,
    }
    return write_safetensors(path, package.stored_state(net), metadata)
