"""Differential window attention and the norms, with the state-dict names of the public reference."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import WINDOW

# The first vectorised sqrt of a process was seen to run at half precision in one thread: spend it on one element.
torch.sqrt(torch.rand(1))

LAMBDA_INITIAL = 0.8
MAX_LOGIT_SCALE = math.log(100.0)
NORM_EPS = 1e-5
L2_EPS = 1e-12


def relative_position_index() -> Tensor:
    """Swin's index [64, 64] of the bias-table row for query i and key j in an 8x8 window."""
    line, sample = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
    line, sample = line.flatten(), sample.flatten()
    reach = 2 * WINDOW - 1
    return (line[:, None] - line[None] + WINDOW - 1) * reach + (sample[:, None] - sample[None] + WINDOW - 1)


def windows(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B * windows, 64, C], windows in line-major order."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
    return x.transpose(2, 3).reshape(-1, WINDOW * WINDOW, c)


def unwindowed(x: Tensor, h: int, w: int) -> Tensor:
    """Inverse of `windows`: [B * windows, 64, C] -> [B, h, w, C]."""
    x = x.reshape(-1, h // WINDOW, w // WINDOW, WINDOW, WINDOW, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, h, w, x.shape[-1])


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [B, C, H, W]; BiasFree divides by the centred deviation without centring."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(channels))
        if bias:
            self.body.bias = nn.Parameter(torch.zeros(channels))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        if self.bias:
            x = F.layer_norm(x, x.shape[-1:], self.body.weight, self.body.bias, NORM_EPS)
        else:
            variance = x.var(dim=-1, keepdim=True, unbiased=False)
            x = x / torch.sqrt(variance + NORM_EPS) * self.body.weight
        return x.permute(0, 3, 1, 2)


class HeadNorm(nn.Module):
    """RMSNorm over the last axis with a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast a gain of another type leaves the fast path.
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), NORM_EPS)


class DifferentialAttention(nn.Module):
    """Cosine attention inside 8x8 windows whose heads subtract in pairs.

    Heads 2i and 2i+1 share one value head of twice the width: O = (P0 - lambda P1) V.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, channels // heads
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            setattr(self, name, nn.Parameter(0.1 * torch.randn(self.width)))
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * WINDOW - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index())
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)
        self.diff_norm = HeadNorm(2 * self.width)

    def scale(self) -> Tensor:
        """Factor of the cosine similarity, [heads, 1, 1]."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def position_bias(self) -> Tensor:
        """Bias of the similarity, [heads, 64, 64]."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def difference(self) -> Tensor:
        """lambda, the weight of the second head of a pair; a scalar."""
        first = (self.lambda_q1 * self.lambda_k1).sum().exp()
        second = (self.lambda_q2 * self.lambda_k2).sum().exp()
        return first - second + LAMBDA_INITIAL

    def forward(self, x: Tensor) -> Tensor:
        """x [windows, 64, C] -> the same shape."""
        n, tokens, channels = x.shape
        pairs = self.heads // 2
        # The factor cancels in the normalisation; with it the float32 rounding follows the reference's more closely.
        q = self.q_proj(x).view(n, tokens, self.heads, self.width).transpose(1, 2) * self.width**-0.5
        k = self.k_proj(x).view(n, tokens, self.heads, self.width).transpose(1, 2)
        v = self.v_proj(x).view(n, tokens, pairs, 2 * self.width).transpose(1, 2)
        q, k = F.normalize(q, dim=-1, eps=L2_EPS), F.normalize(k, dim=-1, eps=L2_EPS)
        p = torch.softmax((q * self.scale()) @ k.transpose(-1, -2) + self.position_bias(), dim=-1)
        first, second = p.view(n, pairs, 2, tokens, tokens).unbind(2)
        out = (first - self.difference() * second) @ v
        out = self.diff_norm(out) * (1 - LAMBDA_INITIAL)
        return self.out_proj(out.transpose(1, 2).reshape(n, tokens, channels))


class WindowAttention(nn.Module):
    """LayerNorm, then attention in windows rolled by `shift`; no mask at the seams, as in the reference."""

    def __init__(self, channels: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels, NORM_EPS)
        self.attn = DifferentialAttention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, W, C] -> the same shape."""
        h, w = x.shape[1:3]
        x = self.norm1(x)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = unwindowed(self.attn(windows(x)), h, w)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class FeedForward(nn.Module):
    """1x1, gelu, depthwise 3x3, gelu, 1x1; parameters under `fn.net.{0,2,4}` after `norm`."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, NORM_EPS)
        self.fn = nn.Module()
        self.fn.net = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.GELU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, W, C] -> the same shape."""
        return self.fn.net(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SpatialAttention(nn.Module):
    """Window attention, shifted window attention, feed-forward; each with its residual."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.wa = WindowAttention(channels, heads, 0)
        self.swa = WindowAttention(channels, heads, WINDOW // 2)
        self.pn = FeedForward(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> the same shape."""
        x = x.permute(0, 2, 3, 1)
        x = x + self.wa(x)
        x = x + self.swa(x)
        x = x + self.pn(x)
        return x.permute(0, 3, 1, 2)
