"""What a DFPIR is made of: every hyper-parameter that fixes its state dict and its arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

LEVELS = 4
"""Encoder levels, the latent one included: the frame is halved three times."""
SIZE_MULTIPLE = 2 ** (LEVELS - 1)
"""Lines and samples of a frame are multiples of this."""
PERTURBED = {
    "latent_shuffle_channel": 3, "encoder_shuffle_channel3": 2, "encoder_shuffle_channel2": 1,
    "encoder_shuffle_channel1": 0,
}  # fmt: skip
"""{perturbation block: its level}, in the order in which they run and lie in the prompt."""

LARGEST_PROMPT = 1 << 20
"""Numbers of the prompt, as a signature allows; reached at dim 111."""

Norm = Literal["WithBias", "BiasFree"]


def kept(scores: int) -> int:
    """How many of a row's scores the masked attention keeps: nine tenths, rounded down."""
    return scores * 9 // 10


@dataclass(frozen=True)
class DfpirConfig:
    """Hyper-parameters of one DFPIR (arXiv 2505.12630).

    Attributes:
        bands: bands in and out.
        dim: channels at the first level, even; level i has dim * 2**i.
        heads: attention heads of the four levels, the latent one last; two channels each at least.
        blocks: of the three encoder levels and the latent one; a decoder level has as many as its encoder level.
        refinement_blocks: blocks after the decoder.
        hidden: hidden channels of the feed-forward parts at dim, 2 dim, 4 dim and 8 dim channels.
        norm: `WithBias`, or `BiasFree` (no mean subtraction in the numerator, no bias).
        conv_bias: whether convolutions within blocks, between decoder levels and at the end have biases.
        text: numbers of a text code.
    """

    bands: int = 3
    dim: int = 48
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    refinement_blocks: int = 4
    hidden: tuple[int, int, int, int] = (127, 255, 510, 1021)
    norm: Norm = "WithBias"
    conv_bias: bool = False
    text: int = 512

    def __post_init__(self) -> None:
        for name, values, least in (("heads", self.heads, 1), ("blocks", self.blocks, 0), ("hidden", self.hidden, 1)):
            if len(values) != LEVELS or min(values) < least:
                raise ValueError(f"{name} must be {LEVELS} whole numbers from {least} on, not {values}")
        if min(self.bands, self.dim, self.text) < 1 or self.dim % 2 or self.refinement_blocks < 0:
            raise ValueError("bands, dim and text must be positive, dim even, refinement_blocks not negative")
        if self.norm not in ("WithBias", "BiasFree"):
            raise ValueError(f"norm must be WithBias or BiasFree, not {self.norm}")
        for level, heads in enumerate(self.heads):
            if self.width(level) % heads or self.width(level) // heads < 2:
                raise ValueError(f"heads of level {level} must share {self.width(level)} channels, not {heads}")
        if sum(self.perturbation) > LARGEST_PROMPT:
            raise ValueError(f"dim must be smaller: the prompt would have {sum(self.perturbation)} numbers")

    def width(self, level: int) -> int:
        """Channels of a level, 0 (shallowest) to 3 (latent)."""
        return self.dim << level

    @property
    def perturbation(self) -> tuple[int, ...]:
        """Numbers of the prompt for each perturbation block: a matrix [w, w] and a bias [w]."""
        return tuple(self.width(level) ** 2 + self.width(level) for level in PERTURBED.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
