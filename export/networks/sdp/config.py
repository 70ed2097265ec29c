"""What a spectral diffusion prior is made of; what its description leaves open has our default: docs/sdp.md."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_type_hints

Sites = Literal["group", "block"]
LARGEST = 4096
"""Of any of its numbers: steps and layers are unrolled."""


@dataclass(frozen=True)
class SdpConfig:
    """Hyper-parameters of the prior beside a backbone (arXiv 2507.13769).

    Attributes:
        latent_dims: numbers d of the prior.
        latent_tokens: vectors of so many numbers; one.
        hfe_input: what is looked at, the bands of the measurement as the backbone sees them.
        hfe_width, hfe_blocks: channels, and residual blocks of two convolutions, of the feature extractor.
        diffusion_steps: T, of the reverse chain.
        first_beta, last_beta: of the schedule, linear between them.
        predicts: what the denoiser gives, the prior itself and not the noise.
        denoiser_layers, denoiser_slope: linear maps after the first one, and the slope below zero between them.
        spim_sites: features are modulated where a `group` of blocks begins, or before what a `block` adds to them.
        spim_form: `x (1 + s) + t`, which leaves the backbone as it is while s and t are zero.
    """

    latent_dims: int = 256
    latent_tokens: int = 1
    hfe_input: Literal["bands"] = "bands"
    hfe_width: int = 64
    hfe_blocks: int = 4
    diffusion_steps: int = 4
    first_beta: float = 0.1
    last_beta: float = 0.99
    predicts: Literal["prior"] = "prior"
    denoiser_layers: int = 5
    denoiser_slope: float = 0.1
    spim_sites: Sites = "group"
    spim_form: Literal["residual"] = "residual"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            known = get_args(get_type_hints(type(self))[name])
            if known and value not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, not {value}")
        for name in ("latent_dims", "hfe_width", "diffusion_steps", "denoiser_layers"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} must be from 1 to {LARGEST}, not {getattr(self, name)}")
        if self.latent_tokens != 1:
            raise ValueError(f"latent_tokens must be 1, not {self.latent_tokens}")
        if self.hfe_blocks < 0:
            raise ValueError(f"hfe_blocks must be zero at least, not {self.hfe_blocks}")
        if not 0 < self.first_beta <= self.last_beta < 1:
            raise ValueError(f"betas must rise between 0 and 1, not from {self.first_beta} to {self.last_beta}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


FULL = SdpConfig()
SMALL = SdpConfig(latent_dims=128, hfe_width=32, hfe_blocks=2)
