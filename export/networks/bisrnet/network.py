"""BiSRNet in torch, with the reference's state-dict names: convolutions of signs with signs, and no attention.

Evaluation only: the reference's smooth stand-ins for the sign, by which it is trained, cancel here and are left out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.simulation.cassi import BANDS

from ..cassi import Masked, Site, needed_mask, untouched
from .config import SIZE_MULTIPLE, BisrnetConfig


class Bias(nn.Module):
    """A number per channel, added to [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Rectifier(nn.Module):
    """`PReLU(x + a0) + a1`, a slope and two biases per channel (RPReLU)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pr_bias0, self.pr_prelu, self.pr_bias1 = Bias(channels), nn.PReLU(channels), Bias(channels)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.pr_bias1(self.pr_prelu(self.pr_bias0(x)))
        return made


class Move(nn.Module):
    """`k x + b` with two numbers per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.k = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.k * x + self.b


class Sign(nn.Module):
    """The sign, of zero zero; `beta` shapes what stands in for it in training."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


class BinaryConv(nn.Conv2d):
    """A convolution whose weights are signs times their mean size over an output channel."""

    def binary(self) -> Tensor:
        """The weights that count."""
        return self.weight.abs().mean(dim=(1, 2, 3), keepdim=True) * torch.sign(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.binary(), padding=self.padding, groups=self.groups)


class Unit(nn.Module):
    """`Rectifier(conv(sign(k x + b))) + x` on [B, C, H, W]."""

    def __init__(self, channels: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.move0, self.binary_activation = Move(channels), Sign()
        self.binary_conv = BinaryConv(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.relu = Rectifier(channels)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.relu(self.binary_conv(self.binary_activation(self.move0(x)))) + x
        return made


class Widened(nn.Module):
    """Two units of all channels, one behind the other: C -> 2C."""

    def __init__(self, channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.biconv_1, self.biconv_2 = Unit(channels, kernel), Unit(channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.biconv_1(x), self.biconv_2(x)], dim=1)


class Narrowed(nn.Module):
    """The mean of two units, one of each half of the channels: 2C -> C."""

    def __init__(self, channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.biconv_1, self.biconv_2 = Unit(channels, kernel), Unit(channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        made: Tensor = (self.biconv_1(first) + self.biconv_2(second)) / 2
        return made


class Down(Widened):
    """[B, C, H, W] -> [B, 2C, H / 2, W / 2]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(x, 2))


class Doubled(nn.Module):
    """[B, C, H, W] -> [B, C, 2H, 2W], linear between the middles of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Up(Narrowed):
    """[B, 2C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, kernel)
        self.doubled = Doubled()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.doubled(x))


class Block(nn.Module):
    """A normed feed-forward part with a residual, on [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.fn = nn.Module()
        self.fn.net = nn.Sequential(
            Widened(channels), Widened(2 * channels), Rectifier(wide), Unit(wide, 3, groups=channels), Rectifier(wide),
            Narrowed(2 * channels), Narrowed(channels),
        )  # fmt: skip
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, site: Site = untouched) -> Tensor:
        made: Tensor = x + self.fn.net(site(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), "block"))
        return made


class Blocks(nn.Module):
    """Blocks in sequence."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels) for _ in range(count))

    def forward(self, x: Tensor, site: Site = untouched) -> Tensor:
        x = site(x, "group")
        for block in self.blocks:
            x = block(x, site)
        return x


class Body(nn.Module):
    """One stage, [B, 28, H, W] -> the same: two levels down and up again."""

    def __init__(self, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        widths = BANDS, 2 * BANDS
        self.embedding = Unit(BANDS, 3)
        self.encoder_layers = nn.ModuleList(
            nn.ModuleList([Blocks(width, count), Down(width, 3)]) for width, count in zip(widths, blocks, strict=False)
        )
        self.bottleneck = Blocks(4 * BANDS, blocks[-1])
        self.decoder_layers = nn.ModuleList(
            nn.ModuleList([Up(width, 3), Narrowed(width), Blocks(width, count)])
            for width, count in zip(widths[::-1], blocks[1::-1], strict=True)
        )
        self.mapping = Unit(BANDS, 3)

    def forward(self, given: Tensor, site: Site = untouched) -> Tensor:
        x, skips = self.embedding(given), []
        for blocks, down in self.encoder_layers:
            skips.append(blocks(x, site))
            x = down(skips[-1])
        x = self.bottleneck(x, site)
        for (up, fusion, blocks), skip in zip(self.decoder_layers, reversed(skips), strict=True):
            x = blocks(fusion(torch.cat([up(x), skip], dim=1)), site)
        made: Tensor = self.mapping(x) + given
        return made


class Bisrnet(Masked):
    """`forward(measurement [B, 1, H, W + 54]) -> cube [B, 28, H, W]`, through the mask [H, W] that it has.

    Source: Cai et al., "Binarized Spectral Compressive Imaging", NeurIPS 2023.
    """

    def __init__(self, config: BisrnetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(BANDS, BANDS, 3, padding=1, bias=False)
        self.fution = nn.Conv2d(2 * BANDS, BANDS, 1)
        self.body = nn.ModuleList(Body(config.blocks) for _ in range(config.stages))
        self.conv_out = nn.Conv2d(BANDS, BANDS, 3, padding=1, bias=False)

    def forward(self, measurement: Tensor) -> Tensor:
        bands = self.bands(measurement)
        return self.restore(bands, needed_mask(self).expand(bands.shape))

    def restore(self, bands: Tensor, mask: Tensor, site: Site = untouched) -> Tensor:
        """A cube from the bands of a measurement and the mask of each, both [B, 28, H, W]."""
        lines, samples = bands.shape[-2:]
        x = self.fution(torch.cat([bands, mask], dim=1))
        x = F.pad(x, (0, -samples % SIZE_MULTIPLE, 0, -lines % SIZE_MULTIPLE), mode="reflect")
        return run(self, self.conv_in(x), site)[..., :lines, :samples]


def run(net: nn.Module, stem: Tensor, site: Site = untouched) -> Tensor:
    """The way of what `conv_in` gives through a network, or its static form, whose parts have these names."""
    x = stem
    for body in net.body:
        x = body(x, site)
    return net.conv_out(x) + stem
