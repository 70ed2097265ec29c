"""The degradation extractor: a frame to its embedding E_d, with branches while it is trained and merged afterwards."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import DPMambaConfig


class CentralDifference(nn.Conv2d):
    """sum_q w(q) x(p + q) - theta x(p) sum_q w(q): a convolution whose centre weighs less by theta sum w."""

    def __init__(self, channels: int, width: int, kernel: int, theta: float) -> None:
        super().__init__(channels, width, kernel, padding=kernel // 2, bias=False)
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.theta * F.conv2d(x, self.weight.sum((2, 3), keepdim=True))


class Branches(nn.Module):
    """Central differences and a plain convolution side by side, summed: [B, bands, H, W] -> [B, width, H, W]."""

    def __init__(self, config: DPMambaConfig) -> None:
        super().__init__()
        self.central = nn.ModuleList(
            CentralDifference(config.bands, config.extractor_widths[0], kernel, config.theta)
            for kernel in config.cdc_kernels
        )
        self.plain = _conv(config.bands, config.extractor_widths[0], config.plain_kernel)

    def forward(self, x: Tensor) -> Tensor:
        return sum((branch(x) for branch in self.central), self.plain(x))


class Extractor(nn.Module):
    """`forward(frame [B, bands, H, W], share [B, 1, H, W] or None) -> embedding [B, E]`, of any H and W.

    The mean over pixels is by their shares, which count in squares of the last stage's. What follows it is affine: the
    mean of the embeddings of tiles is that of their pooled features.
    """

    def __init__(self, config: DPMambaConfig, branched: bool = False) -> None:
        super().__init__()
        widths = config.extractor_widths
        if branched:
            self.branches = Branches(config)
        else:
            self.enter = _conv(config.bands, widths[0], max(config.kernels))
        self.stages = nn.ModuleList(
            nn.ModuleList([_conv(narrow, wide, 3, stride=2), _conv(wide, wide, 3)]) for narrow, wide in pairwise(widths)
        )
        self.embed = nn.Linear(widths[-1], config.embedding)

    def features(self, frame: Tensor, share: Tensor | None = None) -> Tensor:
        """The pooled features [B, width]."""
        x = F.gelu(self.branches(frame) if hasattr(self, "branches") else self.enter(frame))
        for down, conv in self.stages:
            x = F.gelu(conv(F.gelu(down(x))))
        if share is None:
            return x.mean((2, 3))
        share = F.avg_pool2d(share, 2 ** len(self.stages), ceil_mode=True, count_include_pad=False)
        return (x * share).sum((2, 3)) / share.sum((2, 3))

    def forward(self, frame: Tensor, share: Tensor | None = None) -> Tensor:
        return self.embed(self.features(frame, share))


def _conv(narrow: int, wide: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(narrow, wide, kernel, stride, kernel // 2)


def merged(extractor: Extractor, config: DPMambaConfig) -> Extractor:
    """An extractor that gives the same by one convolution, the sum of its branches, which is made in float64.

    Itself where it has no branches.
    """
    if not hasattr(extractor, "branches"):
        return extractor
    state = {key: value.detach() for key, value in extractor.state_dict().items()}
    own = state["branches.plain.weight"]
    kernels = [value for key, value in state.items() if key.startswith("branches.central.")]
    size = max(value.shape[-1] for value in (own, *kernels))
    total = _widened(own.double(), size)
    for kernel in kernels:
        total = total + _widened(kernel.double(), size)
        total[:, :, size // 2, size // 2] -= config.theta * kernel.double().sum((2, 3))
    rest = {key: value for key, value in state.items() if not key.startswith("branches.")}
    bias = state["branches.plain.bias"].clone()
    with torch.device("meta"):
        one = Extractor(config)
    one.load_state_dict({**rest, "enter.weight": total.to(own.dtype), "enter.bias": bias}, assign=True)
    return one.train(extractor.training)


def _widened(kernel: Tensor, size: int) -> Tensor:
    return F.pad(kernel, ((size - kernel.shape[-1]) // 2,) * 4)
