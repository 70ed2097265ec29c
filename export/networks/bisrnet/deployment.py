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
from .network import BinaryConv, Bisrnet, Unit, Up, run


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


class StaticDoubled(nn.Module):
    """`Doubled` as a convolution: no engine of ours resizes, since that makes large tensors of small graphs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([[0.25, 0.75, 0], [0, 0.75, 0.25]])
        # [line and sample within the doubled pixel, kernel], the same for every channel.
        kernels = torch.einsum("ai,bj->abij", line, line).reshape(4, 1, 3, 3)
        self.register_buffer("kernels", kernels.repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
        x = torch.cat([x[..., :1], x, x[..., -1:]], dim=3)
        return nn.functional.pixel_shuffle(nn.functional.conv2d(x, self.kernels, groups=x.shape[1]), 2)


class StaticBisrnet(nn.Module):
    """`Bisrnet` for deployment: `forward(measurement [1, 1, H, W + 54]) -> cube [1, 28, H, W]`."""

    def __init__(self, net: Bisrnet) -> None:
        super().__init__()
        self.samples = mask_size(net)[1]
        self.conv_in, self.conv_out = StaticStem(net), net.conv_out
        self.body = copy.deepcopy(net.body)
        for unit in list(self.body.modules()):
            if isinstance(unit, Up):
                unit.doubled = StaticDoubled(unit.biconv_1.binary_conv.in_channels * 2)
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
