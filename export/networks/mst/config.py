"""What an MST is made of: every hyper-parameter that fixes its state dict."""

from dataclasses import asdict, dataclass
from typing import Any

from runtime.simulation.cassi import BANDS

SIZE_MULTIPLE = 4
"""Lines and samples of a mask are multiples of it, with two levels."""


@dataclass(frozen=True)
class MstConfig:
    """Hyper-parameters of one MST (arXiv 2111.07910).

    Attributes:
        blocks: of the levels, the first one first, and of the bottleneck; a level's decoder has as many as its encoder.
        dim: channels of the first level and of a head; level i has dim * 2**i. They are those of the shifted mask.
    """

    blocks: tuple[int, ...] = (2, 2, 2)
    dim: int = BANDS

    def __post_init__(self) -> None:
        if not 2 <= len(self.blocks) <= 5 or min(self.blocks) < 1:
            raise ValueError(f"blocks must be two to five whole numbers from 1 on, not {self.blocks}")
        if self.dim != BANDS:
            raise ValueError(f"dim must be {BANDS}, the bands of the mask, not {self.dim}")

    @property
    def levels(self) -> int:
        """Times that the frame is halved."""
        return len(self.blocks) - 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
