"""MST in torch, with the reference's state-dict names: attention among channels, guided by the coded aperture."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.simulation.cassi import BANDS, DISPERSED, STEP

from ..cassi import Masked, Site, needed_mask, untouched
from .config import MstConfig

L2_EPS = 1e-12


class Guide(nn.Module):
    """What a level's mask makes of every value of the attention: [1, C, H, W'] -> [1, C, H, W].

    Channel i is moved back as the light of band i was moved, shrunk as the frame is: `STEP / 4**level` samples a
    channel, as the reference has it at 256 lines.
    """

    def __init__(self, channels: int, level: int) -> None:
        super().__init__()
        self.level = level
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.depth_conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)

    def forward(self, mask: Tensor, samples: int) -> Tensor:
        u = self.conv1(mask)
        u = u + u * torch.sigmoid(self.depth_conv(self.conv2(u)))
        starts = (STEP * i // 4**self.level for i in range(u.shape[1]))
        return torch.cat([u[:, i : i + 1, :, start : start + samples] for i, start in enumerate(starts)], dim=1)


def convolved(x: Tensor, *linear: nn.Linear) -> Tensor:
    """Linear maps of the channels of [B, C, H, W], one behind the other."""
    weight = torch.cat([each.weight for each in linear])[:, :, None, None]
    return F.conv2d(x, weight, linear[0].bias)


def attended(qk: Tensor, v: Tensor, rescale: Tensor) -> Tensor:
    """Cosine attention among the channels of each head, a channel's pixels being its vector; rows are the keys'.

    Args:
        qk: queries and keys, [B, 2C, H, W]; heads are contiguous groups of channels.
        v: [B, C, H, W].
        rescale: [heads, 1, 1].
    """
    heads, shape = len(rescale), v.shape
    inner = shape[1] // heads, shape[2] * shape[3]
    qk = qk.reshape(shape[0], 2 * heads, *inner)
    # Divided before the product, in which FP16 would overflow.
    length = torch.sqrt((qk * qk).sum(dim=-1, keepdim=True)).clamp(min=L2_EPS)
    q, k = (qk / length).split(heads, dim=1)
    scores = torch.softmax(k @ q.transpose(-1, -2) * rescale, dim=-1)
    return (scores @ v.reshape(shape[0], heads, *inner)).reshape(shape)


class Attention(nn.Module):
    """Channels of [B, C, H, W] attend to each other; their values are weighted by the mask of the level."""

    def __init__(self, channels: int, heads: int, level: int) -> None:
        super().__init__()
        self.rescale = nn.Parameter(torch.ones(heads, 1, 1))
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.proj = nn.Linear(channels, channels)
        self.pos_emb = nn.Sequential(depthwise(channels), nn.GELU(), depthwise(channels))
        self.mm = Guide(channels, level)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        v = convolved(x, self.to_v)
        made = attended(convolved(x, self.to_q, self.to_k), v * self.mm(mask, x.shape[-1]), self.rescale)
        return convolved(made, self.proj) + self.pos_emb(v)


def depthwise(channels: int) -> nn.Conv2d:
    """A 3x3 convolution of every channel by itself."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


class FeedForward(nn.Module):
    """LayerNorm over the channels of [B, C, H, W], then 1x1, depthwise 3x3 and 1x1 with gelu between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.fn = nn.Module()
        self.fn.net = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.GELU(), depthwise(wide), nn.GELU(),
            nn.Conv2d(wide, channels, 1, bias=False),
        )  # fmt: skip
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, site: Site = untouched) -> Tensor:
        made: Tensor = self.fn.net(site(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), "block"))
        return made


class Group(nn.Module):
    """Blocks of attention and feed-forward, each with a residual."""

    def __init__(self, config: MstConfig, level: int) -> None:
        super().__init__()
        channels, heads = config.dim << level, 1 << level
        self.blocks = nn.ModuleList(
            nn.ModuleList([Attention(channels, heads, level), FeedForward(channels)])
            for _ in range(config.blocks[level])
        )

    def forward(self, x: Tensor, mask: Tensor, site: Site = untouched) -> Tensor:
        x = site(x, "group")
        for attention, feed in self.blocks:
            x = x + attention(site(x, "block"), mask)
            x = x + feed(x, site)
        return x


class Mst(Masked):
    """`forward(measurement [B, 1, H, W + 54]) -> cube [B, 28, H, W]`, through the mask [H, W] that it has.

    Source: Cai et al., "Mask-guided Spectral-wise Transformer for Efficient Hyperspectral Image Reconstruction",
    CVPR 2022. Lines and samples of the mask are multiples of 2 ** levels.
    """

    def __init__(self, config: MstConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Conv2d(BANDS, config.dim, 3, padding=1, bias=False)
        widths = [config.dim << level for level in range(config.levels)]
        self.encoder_layers = nn.ModuleList(
            nn.ModuleList([Group(config, level), halved(width), halved(width)]) for level, width in enumerate(widths)
        )
        self.bottleneck = Group(config, config.levels)
        self.decoder_layers = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.ConvTranspose2d(2 * width, width, 2, stride=2),
                    nn.Conv2d(2 * width, width, 1, bias=False),
                    Group(config, level),
                ]
            )
            for level, width in reversed([*enumerate(widths)])
        )
        self.mapping = nn.Conv2d(config.dim, BANDS, 3, padding=1, bias=False)

    def forward(self, measurement: Tensor) -> Tensor:
        return self.restore(self.bands(measurement), shifted(needed_mask(self)))

    def restore(self, bands: Tensor, phi: Tensor, site: Site = untouched) -> Tensor:
        """A cube from the bands of a measurement [B, 28, H, W] and the shifted mask [1, 28, H, W + 54]."""
        return run(self, bands, self.masks(phi), site)

    def masks(self, phi: Tensor) -> list[Tensor]:
        """The shifted mask as every level sees it, that of the bottleneck last."""
        masks = [phi]
        for _, _, down in self.encoder_layers:
            masks.append(down(masks[-1]))
        return masks


def halved(channels: int) -> nn.Conv2d:
    """A convolution to half the lines and samples, and twice the channels."""
    return nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False)


def shifted(mask: Tensor) -> Tensor:
    """The mask [H, W] of every band where its light falls on the detector, zeros elsewhere: [1, 28, H, W + 54]."""
    moved = [F.pad(mask, (STEP * i, DISPERSED - STEP * i)) for i in range(BANDS)]
    return torch.stack(moved)[None]


def run(net: nn.Module, bands: Tensor, masks: Sequence[Tensor], site: Site = untouched) -> Tensor:
    """The way of a measurement's bands through a network, or its static form, whose parts have these names."""
    x, skips = F.leaky_relu(net.embedding(bands), 0.1), []
    for (group, down, *_), mask in zip(net.encoder_layers, masks, strict=False):
        skips.append(group(x, mask, site))
        x = down(skips[-1])
    x = net.bottleneck(x, masks[-1], site)
    for (up, fusion, group), skip, mask in zip(net.decoder_layers, reversed(skips), masks[-2::-1], strict=True):
        x = group(fusion(torch.cat([up(x), skip], dim=1)), mask, site)
    return net.mapping(x) + bands
