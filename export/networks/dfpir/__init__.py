"""DFPIR (arXiv 2505.12630): network, checkpoint detection, prompts, static deployment form."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runtime.arrays import Float32
from runtime.errors import CheckpointError
from runtime.prompts import Condition
from runtime.signature import Plane, Prompt, Signature

from ..architecture import Architecture
from .checkpoint import build, chosen, recognises, stored_state, told_configuration
from .config import PERTURBED, SIZE_MULTIPLE, DfpirConfig
from .deployment import deployment_form, module_name
from .network import Dfpir, gaps, smallest_gap
from .prompts import OPTIONS, WANTED, TextCode

__all__ = [
    "ARCHITECTURE", "SIZE_MULTIPLE", "Condition", "Dfpir", "DfpirConfig", "TextCode", "conditions", "constants",
    "deployment_form", "gaps", "smallest_gap",
]  # fmt: skip

TASKS = {
    "denoise15": ("grain",), "denoise25": ("grain",), "denoise50": ("grain",), "noise": ("grain",),
    "derain": ("rain",), "rain": ("rain",), "dehaze": ("haze",), "haze": ("haze",),
    "deblur": ("motionblur",), "lowlight": ("lowlight",),
}  # fmt: skip
"""Prompt -> what a network is measured by with it."""
PHOTOGRAPHS = ("haze", "rain", "lowlight", "motionblur", "grain")
LEVEL_NAMES = ("level1", "level2", "level3", "latent")


def conditions(net: Dfpir) -> dict[str, Condition]:
    """{name: what it makes of the network} of the prompts that it was loaded with, in their order."""
    return {
        name: Condition(_constants(net, code), TASKS.get(name, ()), _about_code(net, code))
        for name, code in net.prompts.items()
    }


def constants(net: Dfpir) -> dict[str, Float32]:
    """The constant of the first prompt. Raises CheckpointError without one."""
    if not net.prompts:
        raise CheckpointError("no prompt was given, and none is in the weights", key="prompt", remedy=WANTED)
    return _constants(net, next(iter(net.prompts.values())))


def _constants(net: Dfpir, code: TextCode) -> dict[str, Float32]:
    return {"perturbation": net.perturbation(code.tensor).detach().float().numpy()}


def _about_code(net: Dfpir, code: TextCode) -> dict[str, Any]:
    """Gaps are the smallest between neighbours of an order, of the numbers that it goes by."""
    ranked = _ranked(net, code.values)
    about: dict[str, Any] = {
        "sentence": code.sentence,
        "sha256": hashlib.sha256(code.values.astype("<f4").tobytes()).hexdigest(),
        "gaps": {level: float(-values.diff().max()) for level, (values, _) in ranked.items()},
        "orders": {level: order[0].tolist() for level, (_, order) in ranked.items()},
    }
    if code.tower is not None:
        about["clip"] = {"difference": float(np.abs(code.tower - code.values).max()), "moved": _moved(net, code)}
    return about


def _ranked(net: Dfpir, code: Float32) -> dict[str, tuple[Tensor, Tensor]]:
    """{level: (what its channels go by, from large to small; their order)}, [1, 2C] each."""
    blocks = net.perturbing().items()
    return {LEVEL_NAMES[PERTURBED[name]]: block.ranked(torch.from_numpy(code)[None]) for name, block in blocks}


def _moved(net: Dfpir, code: TextCode) -> dict[str, int]:
    """{level: places at which the code of a local CLIP puts another channel}."""
    if code.tower is None:
        return {}
    own, tower = _ranked(net, code.values), _ranked(net, code.tower)
    return {level: int((own[level][1] != tower[level][1]).sum()) for level in own}


def _signature(net: Dfpir, lines: int, samples: int) -> Signature:
    bands = net.config.bands
    kind: Literal["rgb", "cube"] = "rgb" if bands == 3 else "cube"
    return Signature(
        Plane("frame", bands, lines, samples, kind),
        Plane("restored", bands, lines, samples, kind),
        (Prompt("perturbation", (1, sum(net.config.perturbation)), "constant", "prompts/perturbation.npy"),),
        # Three bands are the colours of a photograph.
        band_groups=bands != 3,
    )


def _about(net: Dfpir) -> str:
    told = f"{net.config.dim} channels, prompts: {', '.join(net.prompts) or 'none'}"
    moved = {name: sum(_moved(net, code).values()) for name, code in net.prompts.items()}
    apart = ", ".join(f"{count} channels of {name}" for name, count in moved.items() if count)
    return f"{told}; the local CLIP would place {apart} otherwise than the saved code" if apart else told


ARCHITECTURE = Architecture(
    id="dfpir",
    module=Dfpir,
    multiple=SIZE_MULTIPLE,
    recognises=recognises,
    load=build,
    signature=_signature,
    static=deployment_form,
    configuration=told_configuration,
    about=_about,
    stored=stored_state,
    module_name=module_name,
    options=OPTIONS,
    chosen=chosen,
    kept=(*OPTIONS, "prompts"),
    constants=constants,
    conditions=conditions,
    gap=smallest_gap,
    # What chooses the scores that stay: in lower precisions others would.
    exact=lambda node: node.rpartition("/")[0].endswith((".select_attn", ".select_attn.softmax")),
    tasks=PHOTOGRAPHS,
)
