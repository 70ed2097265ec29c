"""A network that is nothing like DAMP, for tests: five bands from three coded ones, with a constant beside the frame.

It has no metrics and no experts, its frames have one place only, and its instrument mixes five bands into three. What
the toolkit does for a network, it does for this one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.networks import Network
from export.networks.architecture import Architecture
from export.networks.loading import fill, shape
from runtime.arrays import Float32
from runtime.signature import Plane, Prompt, Signature

MEASURED, RESTORED, SIDE = 3, 5, 16
MIX = np.random.default_rng(7).dirichlet(np.ones(RESTORED), MEASURED).astype(np.float32)
"""[3, 5]: what the instrument sees of five bands."""
CODE = np.linspace(-1, 1, 4, dtype=np.float32)[None]


class Unmixer(nn.Module):
    """`forward(shot [B, 3, H, W], code [1, 4]) -> restored [B, 5, H, W]`."""

    def __init__(self, width: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.embed = nn.Conv2d(MEASURED, width, 3, padding=1)
        self.told = nn.Linear(CODE.shape[1], width)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, RESTORED, 3, padding=1)
        self.direct = nn.Conv2d(MEASURED, RESTORED, 1)

    def forward(self, shot: Tensor, code: Tensor) -> Tensor:
        x = F.relu(self.embed(shot) + self.told(code)[:, :, None, None])
        return self.gain * self.out(F.relu(self.body(x))) + self.direct(shot)


def unmixer(width: int = 16, seed: int = 0, gain: float = 1.0, kind: type[Unmixer] = Unmixer) -> Unmixer:
    """One that is near to the instrument's pseudo-inverse."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = kind(width, gain).eval()
    with torch.no_grad():
        net.direct.weight.copy_(torch.from_numpy(np.linalg.pinv(MIX).astype(np.float32))[:, :, None, None])
        net.direct.bias.zero_()
        net.out.weight.mul_(0.1)
    return net


def _load(
    state: Mapping[str, Tensor], given: Mapping[str, Any], options: Mapping[str, Any], file: Path,
    kind: type[Unmixer] = Unmixer,
) -> Unmixer:  # fmt: skip
    width = shape(state, file, "embed.weight", 4)[0]
    with torch.device("meta"):
        net = kind(width, float(options.get("gain", given.get("gain", 1.0))))
    fill(net, state, file)
    return net


def _signature(net: Unmixer, lines: int, samples: int) -> Signature:
    return Signature(
        Plane("shot", MEASURED, lines, samples, "coded"),
        Plane("restored", RESTORED, lines, samples),
        (Prompt("code", (1, CODE.shape[1]), "constant", "prompts/code.npy"),),
        tiling="fixed",
        band_groups=False,
    )


def _measure(instrument: Mapping[str, Float32], task: str, clean: Float32, rng: np.random.Generator) -> Float32:
    shot = np.einsum("mb,bls->mls", instrument["mix"], clean)
    sigma = {"still": 0.01, "dim": 0.05}[task]
    return np.asarray(shot + sigma * rng.standard_normal(shot.shape), np.float32)


STRANGER = Architecture(
    id="unmixer",
    module=Unmixer,
    multiple=SIDE,
    recognises=lambda keys: any(key.startswith("told.") for key in keys),
    load=_load,
    signature=_signature,
    static=lambda net: net,
    configuration=lambda net: {"width": net.embed.out_channels, "gain": net.gain},
    about=lambda net: f"{net.embed.out_channels} channels",
    options={"gain": "factor of what is learned"},
    chosen=lambda net: {"gain": net.gain},
    constants=lambda net: {"code": CODE},
    tasks=("still", "dim"),
    measure=_measure,
    instrument=lambda net: {"mix": MIX},
)


def stranger(width: int = 16, seed: int = 0) -> Network:
    """A network of it."""
    return Network(unmixer(width, seed), STRANGER)


SHOT, SHIFT = (32, 40), 8
"""The one frame of a disperser, and by how much what it restores is narrower."""


class Disperser(Unmixer):
    """`forward(shot [B, 3, 32, 40], code [1, 4]) -> restored [B, 5, 32, 32]`."""

    def forward(self, shot: Tensor, code: Tensor) -> Tensor:
        return super().forward(shot, code)[..., : SHOT[1] - SHIFT]


def _dispersed(net: Disperser, lines: int, samples: int) -> Signature:
    assert (lines, samples) == SHOT, "it is asked for its one frame only"
    said = _signature(net, lines, samples)
    return replace(said, restored=replace(said.restored, samples=samples - SHIFT))


def _disperse(instrument: Mapping[str, Float32], task: str, clean: Float32, rng: np.random.Generator) -> Float32:
    wide = np.zeros((RESTORED, clean.shape[1], clean.shape[2] + SHIFT), np.float32)
    for band, plane in enumerate(clean):
        wide[band, :, 2 * band : 2 * band + clean.shape[2]] = plane
    return _measure(instrument, task, wide, rng)


DISPERSER = replace(
    STRANGER, id="disperser", module=Disperser, load=partial(_load, kind=Disperser), signature=_dispersed,
    size=lambda net: SHOT, measure=_disperse,
)  # fmt: skip
"""One that takes a single frame size, and restores another size than was measured."""


def disperser(width: int = 16, seed: int = 0) -> Network:
    """A network of it."""
    return Network(unmixer(width, seed, kind=Disperser), DISPERSER)
