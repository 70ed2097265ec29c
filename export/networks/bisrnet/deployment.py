"""The static form of BiSRNet: one measurement in, the same arithmetic but for the order of its sums.

Binary weights are real ones here, with the first bias of the rectifier behind them. What the mask gives is a constant
map, so that its bias stays out of the padding of the convolution behind it. Parts are called as the network's are.
"""

import copy

import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError
from runtime.simulation.cassi import BANDS

from ..cassi import Site, mask_size, needed_mask, shift_back, untouched
from .config import SIZE_MULTIPLE
from .network import BinaryConv, Bisrnet, Unit, run


class StaticStem(nn.Module):
    """`fution` and `conv_in` of bands [1, 28, H, W] and a mask: one 3x3 convolution, and a map that is added."""

    def __init__(self, net: Bisrnet) -> None:
        super().__init__()
        fuse, bias, enter = net.fution.weight.double(), net.fution.bias.double(), net.conv_in
        weight = torch.einsum("omhw,mi->oihw", enter.weight.double(), fuse[:, :BANDS, 0, 0])
        self.conv = convolution(enter, weight.to(enter.weight.dtype))
        masked = nn.functional.conv2d(needed_mask(net).double().expand(1, BANDS, -1, -1), fuse[:, BANDS:], bias)
        constant = nn.functional.conv2d(masked, enter.weight.double(), padding=enter.padding)
        self.register_buffer("constant", constant.to(enter.weight.dtype))

    def forward(self, bands: Tensor) -> Tensor:
        made: Tensor = self.conv(bands) + self.constant
        return made


def convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A convolution with these weights, and padding and groups as another has."""
    with torch.device("meta"):
        made = nn.Conv2d(
            like.in_channels, like.out_channels, like.kernel_size, padding=like.padding, groups=like.groups,
            bias=bias is not None,
        )  # fmt: skip
    made.weight, made.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    return made


class StaticBisrnet(nn.Module):
    """`Bisrnet` for deployment: `forward(measurement [1, 1, H, W + 54]) -> cube [1, 28, H, W]`."""

    def __init__(self, net: Bisrnet) -> None:
        super().__init__()
        self.samples = mask_size(net)[1]
        self.conv_in, self.conv_out = StaticStem(net), net.conv_out
        self.body = copy.deepcopy(net.body)
        for unit in self.body.modules():
            if isinstance(unit, Unit) and isinstance(unit.binary_conv, BinaryConv):
                first = unit.relu.pr_bias0.bias.flatten()
                unit.binary_conv = convolution(unit.binary_conv, unit.binary_conv.binary(), first)
                unit.relu.pr_bias0 = nn.Identity()

    def forward(self, measurement: Tensor) -> Tensor:
        return self.restore(shift_back(measurement, self.samples))

    def restore(self, bands: Tensor, site: Site = untouched) -> Tensor:
        """A cube from the bands of a measurement, both [1, 28, H, W]."""
        return run(self, self.conv_in(bands), site)


@torch.no_grad()
def deployment_form(net: Bisrnet) -> StaticBisrnet:
    """The static form of a trained network, in eval mode.

    Raises:
        CheckpointError: the network has no mask, or one at which it would pad frames.
    """
    lines, samples = needed_mask(net).shape
    if lines % SIZE_MULTIPLE or samples % SIZE_MULTIPLE:
        raise CheckpointError(
            "the network is not deployed with a mask of this size, at which it would pad its frames",
            key="mask",
            value=f"{lines}x{samples}",
            remedy=f"lines and samples are multiples of {SIZE_MULTIPLE}",
        )
    return StaticBisrnet(net).eval()
