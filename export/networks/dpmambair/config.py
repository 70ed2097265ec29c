"""What a DPMambaIR is made of; what the paper leaves open is a key whose default is our choice: docs/dpmambair.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

LEVELS = 4
"""Encoder levels, the latent one included: the frame is halved three times."""
SIZE_MULTIPLE = 2 ** (LEVELS - 1)
"""Lines and samples of a frame are multiples of this (8)."""

Modulation = Literal["rank", "full"]
Delta = Literal["inside", "outside"]
Discretisation = Literal["euler", "zoh"]
HighFrequency = Literal["before_ffn", "after_ssm", "none"]
Order = Literal["rows", "columns"]
CHOICES: dict[str, tuple[str, ...]] = {
    "modulation": get_args(Modulation),
    "delta": get_args(Delta),
    "discretisation": get_args(Discretisation),
    "high_frequency": get_args(HighFrequency),
    "order": get_args(Order),
}


@dataclass(frozen=True)
class DPMambaConfig:
    """Hyper-parameters of one DPMambaIR (arXiv 2504.17732).

    Attributes:
        bands: in and out.
        dim: channels w at the first level; level i has dim * 2**i, the decoder's first level and the refinement 2 dim.
        encoder_blocks: blocks of the three encoder levels and the latent level.
        decoder_blocks: blocks of the decoder at level 1, 2, 3 (the last runs first).
        refinement_blocks: blocks after the decoder.
        expand: inner channels D of the state space model per channel.
        states: N of each inner channel.
        expansion: hidden channels of the feed-forward part per channel.
        high_frequency: where x + a (x - mean of x) stands: `before_ffn`, `after_ssm` or nowhere (`none`).
        modulation: alpha_Delta multiplies what Delta is projected from (`rank`) or what it is projected to (`full`).
        delta: alpha_Delta is `inside` the softplus or `outside`; the latter with `full` only.
        discretisation: of B: `euler` (Delta B) or `zoh` ((exp(Delta A) - 1) / A B).
        order: the scan goes along `rows` or `columns`, from the top left.
        embedding: numbers of E_d.
        extractor_widths: channels of the extractor's stages; each halves the frame but the first.
        cdc_kernels, plain_kernel: odd sizes of its central difference convolutions, and of the plain one beside them.
        theta: share of the centre that a central difference takes off.
    """

    bands: int = 3
    dim: int = 48
    encoder_blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    decoder_blocks: tuple[int, int, int] = (2, 4, 4)
    refinement_blocks: int = 4
    expand: float = 2
    states: int = 16
    expansion: float = 2
    high_frequency: HighFrequency = "before_ffn"
    modulation: Modulation = "rank"
    delta: Delta = "inside"
    discretisation: Discretisation = "euler"
    order: Order = "rows"
    embedding: int = 512
    extractor_widths: tuple[int, ...] = (48, 96, 192, 384)
    cdc_kernels: tuple[int, ...] = (3, 5, 7, 9)
    plain_kernel: int = 9
    theta: float = 0.7

    def __post_init__(self) -> None:
        for name, value, length in (
            ("encoder_blocks", self.encoder_blocks, LEVELS), ("decoder_blocks", self.decoder_blocks, LEVELS - 1)
        ):  # fmt: skip
            if len(value) != length or min(value) < 0:
                raise ValueError(f"{name} must be {length} whole numbers, not {value}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, not {getattr(self, name)}")
        if self.delta == "outside" and self.modulation == "rank":
            raise ValueError("delta is outside with modulation full only: with rank there is nothing of its width")
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim must be even, not {self.dim}")
        if min(self.bands, self.states, self.embedding, *self.extractor_widths) < 1 or not self.extractor_widths:
            raise ValueError("bands, states, embedding and extractor_widths must be positive")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"cdc_kernels and plain_kernel must be odd, not {self.kernels}")
        if self.refinement_blocks < 0 or self.inner(self.dim) < 1 or self.hidden(self.dim) < 1:
            raise ValueError("expand and expansion must be positive, refinement_blocks not negative")
        if not self.blocks:
            raise ValueError("there must be a block")

    @property
    def blocks(self) -> int:
        """Of the whole network; each has one scan."""
        return sum(self.encoder_blocks) + sum(self.decoder_blocks) + self.refinement_blocks

    @property
    def kernels(self) -> tuple[int, ...]:
        """Of the extractor's branches, the plain one last."""
        return (*self.cdc_kernels, self.plain_kernel)

    def width(self, level: int) -> int:
        """Channels of a level, 0 (shallowest) to 3 (latent)."""
        return self.dim * 2**level

    def inner(self, channels: int) -> int:
        """Channels D that are scanned in a block of `channels` channels."""
        return int(channels * self.expand)

    def rank(self, channels: int) -> int:
        """Numbers R that Delta is projected from."""
        return -(-channels // 16)

    def modulated(self, channels: int) -> int:
        """Numbers that E_d multiplies in a block: alpha_Delta, alpha_B, alpha_C."""
        of_delta = self.rank(channels) if self.modulation == "rank" else self.inner(channels)
        return of_delta + 2 * self.states

    def hidden(self, channels: int) -> int:
        """Hidden channels of a feed-forward part of `channels` channels."""
        return int(channels * self.expansion)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DPMambaConfig:
        """The configuration of `as_dict`; raises ValueError or TypeError when a value or key is wrong."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
