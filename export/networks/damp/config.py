"""What a DAMP is made of: every hyper-parameter that fixes its state dict and its arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from runtime.metrics import METRIC_SETS, MetricSet

WINDOW = 8
LEVELS = 4
"""Encoder levels, the latent one included: the frame is halved three times."""
SIZE_MULTIPLE = WINDOW * 2 ** (LEVELS - 1)
"""Lines and samples of a frame are multiples of this (64): whole windows at the latent level."""
EXPERT_HEADS = 2
EXPERT_EXPANSION = 4
EXPERT_RANK_DIVISOR = 4
PROMPT_HIDDEN = 64
MAX_EXPERTS = 4

Gate = Literal["additive", "concat"]
Norm = Literal["WithBias", "BiasFree"]


@dataclass(frozen=True)
class DampConfig:
    """Hyper-parameters of one DAMP (arXiv 2512.20251).

    Attributes:
        bands: spectral bands in and out.
        dim: channels at the first level; level i has dim * 2**i.
        heads: attention heads of level 0, 1, 2 and the latent level; even.
        encoder_blocks: blocks of the three encoder levels and the latent level.
        decoder_blocks: blocks of the decoder stages at level 0, 1, 2 (the stage at level 2 runs first).
        refinement_blocks: encoder blocks after the decoder.
        expansion: hidden channels of the feed-forward parts per channel.
        norm: `WithBias`, or `BiasFree` (no mean subtraction in the numerator, no bias).
        experts: experts of each mixture, 1 to 4.
        top_k: experts that run for a frame, 1 to `experts`.
        embedding: channels of the prompt embedding.
        gate: `additive` (Wg GAP(x) + Wf e, the public reference) or `concat` (Wg gelu(Wm [GAP(x), e]), the paper).
        metric_set: `reference15`, `paper6`, or `log6`: the logarithms of the six.
    """

    bands: int = 31
    dim: int = 64
    heads: tuple[int, int, int, int] = (2, 2, 2, 4)
    encoder_blocks: tuple[int, int, int, int] = (1, 2, 2, 3)
    decoder_blocks: tuple[int, int, int] = (1, 2, 2)
    refinement_blocks: int = 2
    expansion: float = 4
    norm: Norm = "WithBias"
    experts: int = 4
    top_k: int = 1
    embedding: int = 128
    gate: Gate = "additive"
    metric_set: MetricSet = "reference15"

    def __post_init__(self) -> None:
        for name, value in (("heads", self.heads), ("encoder_blocks", self.encoder_blocks)):
            if len(value) != LEVELS or min(value) < 0:
                raise ValueError(f"{name} must be {LEVELS} whole numbers, not {value}")
        if len(self.decoder_blocks) != LEVELS - 1 or min(self.decoder_blocks) < 0:
            raise ValueError(f"decoder_blocks must be {LEVELS - 1} whole numbers, not {self.decoder_blocks}")
        if not 1 <= self.experts <= MAX_EXPERTS:
            raise ValueError(f"experts must be 1 to {MAX_EXPERTS}, not {self.experts}")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k must be 1 to {self.experts} (the number of experts), not {self.top_k}")
        if self.metric_set not in METRIC_SETS:
            raise ValueError(f"metric_set must be one of {', '.join(METRIC_SETS)}, not {self.metric_set}")
        if self.gate not in ("additive", "concat"):
            raise ValueError(f"gate must be additive or concat, not {self.gate}")
        if self.norm not in ("WithBias", "BiasFree"):
            raise ValueError(f"norm must be WithBias or BiasFree, not {self.norm}")
        for level, heads in enumerate(self.heads):
            if heads < 2 or heads % 2 or self.width(level) % heads:
                raise ValueError(f"heads of level {level} must be even and divide {self.width(level)}, not {heads}")
        if self.dim < 1 or self.dim % (EXPERT_RANK_DIVISOR * EXPERT_HEADS):
            raise ValueError(f"dim must be a multiple of {EXPERT_RANK_DIVISOR * EXPERT_HEADS}, not {self.dim}")
        if self.bands < 1 or self.embedding < 1 or self.refinement_blocks < 0 or self.expansion <= 0:
            raise ValueError("bands, embedding and expansion must be positive, refinement_blocks not negative")

    @property
    def metrics(self) -> int:
        """Number of prompt metrics."""
        return len(METRIC_SETS[self.metric_set])

    @property
    def layers(self) -> int:
        """Number of mixtures, that is of decoder blocks."""
        return sum(self.decoder_blocks)

    def width(self, level: int) -> int:
        """Channels of a level, 0 (shallowest) to 3 (latent)."""
        return self.dim * 2**level

    def hidden(self, channels: int) -> int:
        """Hidden channels of a feed-forward part of `channels` channels."""
        return int(channels * self.expansion)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DampConfig:
        """The configuration of `as_dict`; raises ValueError or TypeError when a value or key is wrong."""
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**tuples)
