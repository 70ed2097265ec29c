"""What a BiSRNet is made of: every hyper-parameter that fixes its state dict."""

from dataclasses import asdict, dataclass
from typing import Any

SIZE_MULTIPLE = 8
"""Lines and samples that the network is padded to."""


@dataclass(frozen=True)
class BisrnetConfig:
    """Hyper-parameters of one BiSRNet (arXiv 2305.10299).

    Attributes:
        stages: bodies in sequence.
        blocks: of the two levels and the bottleneck; a level's decoder has as many as its encoder.
    """

    stages: int = 1
    blocks: tuple[int, int, int] = (1, 1, 1)

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ValueError(f"stages must be one at least, not {self.stages}")
        if len(self.blocks) != 3 or min(self.blocks) < 0:
            raise ValueError(f"blocks must be three whole numbers, not {self.blocks}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
