"""The static form of a network with a prior: the backbone's, and the reverse chain as so many steps one by one."""

import copy

import torch
from torch import Tensor, nn

from ..bisrnet.deployment import StaticBisrnet
from ..bisrnet.deployment import deployment_form as static_bisrnet
from ..cassi import shift_back
from ..mst import Mst
from ..mst.deployment import StaticMst
from ..mst.deployment import deployment_form as static_mst
from .network import Sdp, checked
from .prior import injected, noise


class StaticSdp(nn.Module):
    """`Sdp` for deployment: `forward(measurement [1, 1, H, W + 54] [, latent [1, 1, d]]) -> cube [1, 28, H, W]`."""

    latent: Tensor | None

    def __init__(self, net: Sdp, backbone: StaticMst | StaticBisrnet) -> None:
        super().__init__()
        self.backbone, self.prior = backbone, net.prior
        self.hfe, self.diffusion, self.spim = (copy.deepcopy(part) for part in (net.hfe, net.diffusion, net.spim))
        self.register_buffer("latent", None if net.seed is None else torch.from_numpy(noise(net.seed, net.prior)))

    def forward(self, measurement: Tensor, latent: Tensor | None = None) -> Tensor:
        bands = shift_back(measurement, self.backbone.samples)
        start = self.latent if latent is None else checked(latent, self.prior)
        assert start is not None, "it is an input where none is stored"
        prior = self.diffusion(start[:, 0], self.hfe(bands))
        return self.backbone.restore(bands, injected(self.spim, prior, self.prior.spim_sites))


def module_name(part: str) -> str:
    """The network's module that a part of the static form stands for; the backbone's have its own names."""
    return part.removeprefix("backbone.")


@torch.no_grad()
def deployment_form(net: Sdp) -> StaticSdp:
    """The static form of a trained network, in eval mode. Raises CheckpointError as the backbone's does."""
    return StaticSdp(net, static_mst(net) if isinstance(net, Mst) else static_bisrnet(net)).eval()
