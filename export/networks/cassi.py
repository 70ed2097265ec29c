"""What networks of a coded-aperture snapshot spectrometer (CASSI) share: the mask, the frame, and what is measured.

A mask belongs to the weights. It is a part of the network beside its state dict, and our own checkpoints keep it.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.arrays import Float32
from runtime.errors import CheckpointError, CubeError, InputError
from runtime.signature import Plane, Signature
from runtime.simulation import cassi
from runtime.simulation.cassi import BANDS, DISPERSED, STEP

STORED = "mask"
"""Key of the mask in our own checkpoints."""
PRIOR = "hfe.first.weight"
"""Key of what estimates a prior, by which a network that has one is told from its backbone."""
NATIVE = (256, 256)
"""Lines and samples of the benchmark's mask."""
OPTIONS = {"mask": "file of the instrument's coded aperture, [lines, samples] from 0 to 1"}
WANTED = (
    "say --option mask=FILE: the aperture that the weights were trained with, [lines, samples] from 0 to 1, as .npy, "
    ".npz, .mat, ENVI or a picture"
)
"""What to do where there is no mask."""
TASKS = ("snapshot", "noisy")
"""What is measured without noise, as in the benchmark, and with that of a detector."""
ELECTRONS, READ = 1365.0, 3.0
"""Electrons where a measurement is 1, and rms of reading them.

The first gives the noise that the published weights for real measurements were trained with: a binomial of 2,048
levels and a quantum efficiency of 0.4 has the variance of 2048 * 0.4 / 0.6 electrons. The second is a camera's.
"""


Site = Callable[[Tensor, str], Tensor]
"""What is made of features [B, C, H, W] where a `group` of blocks begins, or before what a `block` adds to them."""


def untouched(x: Tensor, place: str) -> Tensor:
    """The features as they are, see `Site`."""
    return x


class Masked(nn.Module):
    """A network of a snapshot.

    Attributes:
        mask: float32 [lines, samples], no part of the state dict; None where none is known yet.
        said: the options that it was loaded with.
    """

    mask: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", None, persistent=False)
        self.said: dict[str, Any] = {}

    def bands(self, measurement: Tensor) -> Tensor:
        """`shift_back` of measurements [B, 1, H, W + 54] through the network's mask. Raises CubeError on others."""
        lines, samples = needed_mask(self).shape
        if measurement.shape[1:] != (1, lines, samples + DISPERSED):
            raise CubeError(
                "the measurement is not one through the network's mask",
                key="measurement",
                value=tuple(measurement.shape),
                remedy=f"[B, 1, {lines}, {samples + DISPERSED}] is expected",
            )
        return shift_back(measurement, samples)


def shift_back(measurement: Tensor, samples: int) -> Tensor:
    """The bands where the mask has them, [B, 28, lines, samples], of measurements [B, 1, lines, samples + 54]."""
    return torch.cat([measurement[..., STEP * i : STEP * i + samples] for i in range(BANDS)], dim=1)


def needed_mask(net: Masked) -> Tensor:
    """The network's mask. Raises CheckpointError without one."""
    if net.mask is None:
        raise _no_mask()
    return net.mask


def give_mask(net: Masked, stored: Tensor | None, options: Mapping[str, Any], file: Path) -> None:
    """Give a network the mask of the option, or else the stored one.

    Args:
        net: the network.
        stored: what its checkpoint keeps.
        options: of OPTIONS.
        file: the checkpoint, named in errors.

    Raises:
        CheckpointError: it is no mask, see `runtime.simulation.cassi.read_mask`.
        CubeFileError: the option's file cannot be read.
    """
    said = options.get("mask", "")
    if not isinstance(said, str) or "\0" in said or ("mask" in options and not said):
        raise CheckpointError("is no path", file=file, key="mask", value=said, remedy=WANTED)
    try:
        if said:
            net.mask = torch.from_numpy(cassi.read_mask(said))
        elif stored is not None:
            net.mask = torch.from_numpy(cassi.checked_mask(stored.double().numpy(), "the checkpoint's"))
    except InputError as error:
        if error.key != "mask":
            raise
        raise CheckpointError(error.problem, file=file, key="mask", value=error.value, remedy=error.remedy) from None
    net.said = {"mask": said} if said else {}


def stored_state(net: Masked) -> dict[str, Tensor]:
    """The state dict, and the mask where there is one."""
    return net.state_dict() | ({} if net.mask is None else {STORED: net.mask})


def mask_doubts(state: Mapping[str, Tensor], net: Masked) -> tuple[str, ...]:
    """That another mask was taken than the one that the checkpoint keeps."""
    stored = state.get(STORED)
    if stored is None or net.mask is None or torch.equal(stored.float(), net.mask):
        return ()
    return ("another mask is taken than the one that the checkpoint keeps, and weights not trained for it lose by it",)


def mask_facts(net: Masked) -> dict[str, Any] | None:
    """SHA-256 of the mask's float32 numbers (little-endian, line by line), its lines, samples and mean."""
    if net.mask is None:
        return None
    mask = net.mask.float().cpu().numpy()
    digest = hashlib.sha256(mask.astype("<f4").tobytes()).hexdigest()
    lines, samples = mask.shape
    return {"sha256": digest, "lines": lines, "samples": samples, "mean": float(mask.mean(dtype=np.float64))}


def mask_text(net: Masked) -> str:
    """The mask for people."""
    facts = mask_facts(net)
    if facts is None:
        return "no mask"
    return f"mask of {facts['lines']}x{facts['samples']}, {facts['mean']:.3f} open, SHA-256 {facts['sha256'][:12]}"


def mask_size(net: Masked) -> tuple[int, int]:
    """Lines and samples of what is restored; the benchmark's without a mask."""
    if net.mask is None:
        return NATIVE
    lines, samples = net.mask.shape
    return lines, samples


def frame_size(net: Masked) -> tuple[int, int]:
    """Lines and samples of what is measured."""
    lines, samples = mask_size(net)
    return lines, samples + DISPERSED


def signature(net: Masked, lines: int, samples: int) -> Signature:
    """Of a network at its one frame."""
    return Signature(
        Plane("measurement", 1, lines, samples, "coded"),
        Plane("cube", BANDS, lines, samples - DISPERSED),
        tiling="fixed",
        band_groups=False,
    )


def instrument(net: Masked) -> dict[str, Float32]:
    """The mask, where there is one."""
    return {} if net.mask is None else {STORED: net.mask.float().cpu().numpy()}


def measure(instrument: Mapping[str, Float32], task: str, clean: Float32, rng: np.random.Generator) -> Float32:
    """What the instrument measures of a cube [28, lines, samples] through its mask: [1, lines, samples + 54].

    Raises:
        CheckpointError: there is no mask.
        InputError: it is none, see `cassi.checked_mask`.
        CubeError: the cube is not as large as the mask.
    """
    if STORED not in instrument:
        raise _no_mask()
    seen = cassi.measure(clean, cassi.checked_mask(instrument[STORED].astype(np.float64), STORED))
    return (cassi.noisy(seen, rng, ELECTRONS, READ) if task == "noisy" else seen)[None]


def _no_mask() -> CheckpointError:
    return CheckpointError("no mask was given, and none is in the weights", key="mask", remedy=WANTED)
