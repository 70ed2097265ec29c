"""A spectral diffusion prior inside MST or BiSRNet: what is told of the measurement modulates the backbone's features.

Written from the description of "Learning Spectral Diffusion Prior for Hyperspectral Image Reconstruction" (arXiv
2507.13769), of which there is no public code; what it leaves open is said in docs/sdp.md.
"""

import torch
from torch import Tensor, nn

from runtime.errors import CubeError
from runtime.simulation.cassi import BANDS

from ..bisrnet import Bisrnet, BisrnetConfig
from ..cassi import Masked, Site, needed_mask
from ..mst import Mst, MstConfig
from ..mst.network import shifted
from .config import SdpConfig
from .prior import Diffusion, Extractor, Injector, injected, noise


class Sdp(Masked):
    """A backbone with a prior: `forward(measurement [B, 1, H, W + 54]) -> cube [B, 28, H, W]`.

    Attributes:
        prior: hyper-parameters of the prior; `config` are the backbone's.
        seed: of what the reverse chain starts from; None where that is given with every measurement.
    """

    prior: SdpConfig
    hfe: Extractor
    diffusion: Diffusion
    spim: nn.ModuleList
    seed: int | None = 0

    def add(self, prior: SdpConfig, widths: list[int]) -> None:
        """Put a prior beside the backbone's parts, for places of these channels."""
        self.prior, self.hfe, self.diffusion = prior, Extractor(prior), Diffusion(prior)
        self.spim = nn.ModuleList(Injector(prior, width) for width in widths)

    def forward(self, measurement: Tensor, latent: Tensor | None = None) -> Tensor:
        """A cube.

        Args:
            measurement: [B, 1, H, W + 54].
            latent: what the reverse chain starts from, [1, 1, d]; without it that of the seed, or of 0 without a seed.

        Raises:
            CubeError: the latent has another shape, or the measurement is not one through the mask.
        """
        bands = self.bands(measurement)
        if latent is None:
            latent = torch.from_numpy(noise(self.seed or 0, self.prior)).to(bands)
        return self.informed(bands, self.estimated(bands, checked(latent, self.prior)))

    def estimated(self, bands: Tensor, latent: Tensor) -> Tensor:
        """The prior [B, d] of the bands of measurements, by the reverse chain from numbers [1, 1, d] or [B, 1, d]."""
        prior: Tensor = self.diffusion(latent[:, 0].expand(len(bands), -1), self.hfe(bands))
        return prior

    def informed(self, bands: Tensor, prior: Tensor) -> Tensor:
        """A cube from the bands of a measurement [B, 28, H, W] and a prior [B, d]."""
        raise NotImplementedError

    def site(self, prior: Tensor) -> Site:
        """What a prior does to the backbone's features."""
        return injected(self.spim, prior, self.prior.spim_sites)


def checked(latent: Tensor, prior: SdpConfig) -> Tensor:
    """A latent. Raises CubeError where it is not [1, 1, d]."""
    if latent.shape != (1, 1, prior.latent_dims):
        raise CubeError(
            "the latent is not of this network",
            key="latent",
            value=tuple(latent.shape),
            remedy=f"[1, 1, {prior.latent_dims}] is expected",
        )
    return latent


class SdpMst(Sdp, Mst):
    """An MST with a prior."""

    def __init__(self, config: MstConfig, prior: SdpConfig) -> None:
        Mst.__init__(self, config)
        levels = [*range(config.levels + 1), *reversed(range(config.levels))]
        parts = {"group": [1] * len(config.blocks), "block": [2 * blocks for blocks in config.blocks]}
        self.add(prior, [config.dim << level for level in levels for _ in range(parts[prior.spim_sites][level])])

    def informed(self, bands: Tensor, prior: Tensor) -> Tensor:
        return self.restore(bands, shifted(needed_mask(self)), self.site(prior))


class SdpBisrnet(Sdp, Bisrnet):
    """A BiSRNet with a prior, which stays in real numbers."""

    def __init__(self, config: BisrnetConfig, prior: SdpConfig) -> None:
        Bisrnet.__init__(self, config)
        parts = {"group": (1, 1, 1), "block": config.blocks}[prior.spim_sites]
        self.add(prior, [BANDS << level for level in (0, 1, 2, 1, 0) for _ in range(parts[level])] * config.stages)

    def informed(self, bands: Tensor, prior: Tensor) -> Tensor:
        return self.restore(bands, needed_mask(self).expand(bands.shape), self.site(prior))


def blank(config: MstConfig | BisrnetConfig, prior: SdpConfig) -> SdpMst | SdpBisrnet:
    """A network of these hyper-parameters at its start."""
    return SdpMst(config, prior) if isinstance(config, MstConfig) else SdpBisrnet(config, prior)


def wrap(backbone: Mst | Bisrnet, prior: SdpConfig) -> SdpMst | SdpBisrnet:
    """A network of the same weights and mask with a prior that changes nothing yet.

    Args:
        backbone: as loaded.
        prior: what to put beside it.
    """
    net = blank(backbone.config, prior)
    net.load_state_dict(backbone.state_dict(), strict=False)
    net.mask, net.said = backbone.mask, dict(backbone.said)
    return net.eval()
