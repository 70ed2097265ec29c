"""One package per architecture, and the loading of their checkpoints.

A package has an `Architecture` (see `architecture.py`); adding one means adding its line to `ARCHITECTURES`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError, plain
from runtime.stated import increasing

from . import bisrnet, damp, dfpir, dpmambair, mst, sdp
from .architecture import Architecture, Network, Option
from .places import Weights, find_weights
from .reading import CheckpointFacts, read_checkpoint, write_safetensors

ARCHITECTURES: dict[str, Architecture] = {
    a.ARCHITECTURE.id: a.ARCHITECTURE for a in (damp, dfpir, dpmambair, sdp, mst, bisrnet)
}
"""A network with a prior is its backbone's too: it stands before it."""
PACKAGED = Path(__file__).resolve().parent.parent / "models"
SUFFIX = ".safetensors.xz"
"""Of packaged models."""

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "CheckpointFacts",
    "Network",
    "find_checkpoint",
    "load_checkpoint",
    "network_of",
    "packaged_models",
    "save_checkpoint",
]


def packaged_models() -> tuple[str, ...]:
    """Names of the models that come with this distribution."""
    return tuple(sorted(p.name.removesuffix(SUFFIX) for p in PACKAGED.glob(f"*{SUFFIX}")))


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
        return PACKAGED / f"{name}{SUFFIX}"
    if not exists:
        models = ", ".join(packaged_models()) or "none"
        raise CheckpointError("no such checkpoint", file=path, remedy=f"give a path or a packaged model ({models})")
    return path


def load_checkpoint(
    path: str | Path, /, top_k: int | None = None, weights: str | None = None, **options: Option
) -> Network:
    """Load a trained network; nothing in the file is ever executed.

    Args:
        path: a reference `.pth` (a state dict, bare or within dictionaries, whatever all of its keys begin with;
            `config.json` beside it is read), one of our `.safetensors`, an .xz of either, or the name of a packaged
            model.
        top_k: the option of DAMP: experts that run for a frame; needed where neither the file nor `config.json` says
            it, wins over both.
        weights: what the keys of the weights begin with, dictionaries and dots alike, where the file holds several; of
            two the exponential moving average is taken without it. `.` for those that begin with nothing in common.
        options: others of the architecture's.

    Returns:
        the network in eval mode; a DAMP is called as `net(frame [B, C, H, W], metrics [B, M]) -> (restored
        [B, C, H, W], gates [B, layers, experts])`.

    Raises:
        CheckpointError: unknown architecture or option, top-k missing or out of range, several sets of weights, missing
            or extra keys, wrong shapes, weights that are not finite, a file that is damaged, truncated or holds more
            than tensors.
    """
    file = find_checkpoint(path)
    content = read_checkpoint(file)
    found = find_weights(content, ARCHITECTURES, weights)
    said = options if top_k is None else {"top_k": top_k, **options}
    found.architecture.check_options(said, file)
    with _placed(found):
        module = found.architecture.load(found.state, content.given, said, file).eval()
        _check_finite(module.state_dict(), file)
    doubts = (*found.facts.doubts, *found.architecture.doubts(found.state, module))
    net = Network(module, found.architecture, replace(found.facts, doubts=doubts))
    _check_wavelengths(net.facts, net.smallest.restored.bands)
    return net


@contextmanager
def _placed(found: Weights) -> Iterator[None]:
    """Where a file holds more than the weights that do not fit, say so."""
    facts = found.facts
    try:
        yield
    except CheckpointError as error:
        if error.key in found.architecture.options or not (facts.rivals or facts.beside):
            raise
        others = f", or take others of the file: --option weights={plain(facts.rivals[0])}" if facts.rivals else ""
        raise CheckpointError(
            f"{error.problem} ({facts.place})",
            file=error.file,
            key=error.key,
            value=error.value,
            remedy=f"{error.remedy}{others}",
        ) from None


def _check_finite(state: Mapping[str, Tensor], file: Path) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise CheckpointError(
                f"{bad} of {value.numel()} weights are NaN or infinite",
                file=file,
                key=key,
                remedy="take a checkpoint from before the training diverged",
            )


def _check_wavelengths(facts: CheckpointFacts, bands: int) -> None:
    told = facts.wavelengths
    with suppress(ValueError):
        if len(increasing(told)) in (0, bands):
            return
    raise CheckpointError(
        f"{bands} wavelengths in increasing order are expected, or none",
        file=facts.file,
        key="wavelengths",
        value=len(told),
        remedy="save it again with the wavelengths of its bands",
    )


def network_of(module: nn.Module) -> Network:
    """A module that was made here, as a network. Raises TypeError where no architecture has such modules."""
    for architecture in ARCHITECTURES.values():
        if isinstance(module, architecture.module):
            return Network(module.eval(), architecture)
    raise TypeError(f"{type(module).__name__} belongs to no known architecture")


def save_checkpoint(
    net: Network,
    path: Path,
    *,
    scale: float | None = None,
    wavelengths: tuple[float, ...] = (),
    about: str = "",
    half: bool = False,
    fills: bool = False,
) -> Path:
    """Write a network as `.safetensors` with its configuration in the metadata, without tables that can be rebuilt.

    Args:
        net: the network.
        path: where to; packed where it ends with `.xz`.
        scale: DN per 1.0 of the training data, for integer cubes.
        wavelengths: band centres in nanometres.
        about: one line on data and recipe.
        fills: holes of a frame are made up before it sees them, see `runtime.signature`.
        half: those weights in 16 bits that the architecture says, about half the bytes.

    Raises:
        CheckpointError: a weight is not finite, in 16 bits where those are asked for; nothing was written.
    """
    stored, own = net.architecture.stored(net.module), net.state_dict()
    if half:
        halved = {k for k, v in own.items() if v.is_floating_point() and net.architecture.halved(k, v)}
        stored = {k: v.half() if k in halved else v for k, v in stored.items()}
        _check_finite(stored, path)
    metadata: dict[str, Any] = {
        "architecture": net.architecture.id,
        "configuration": net.configuration,
        "scale": scale,
        "wavelengths": list(wavelengths),
        "about": about,
        **({"fills": True} if fills else {}),
    }
    return write_safetensors(path, stored, metadata)
