"""The spatial attention of one DAMP block, or of several side by side, in its static form."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import L2_EPS, LAMBDA_INITIAL, NORM_EPS, SpatialAttention, WindowAttention
from .config import WINDOW

TOKENS = WINDOW * WINDOW
BLOCK = WINDOW // 2
"""Shifted windows are half a window off, so blocks of that side are moved as they are."""


def to_last(x: Tensor) -> Tensor:
    """[1, C, H, W] -> [1, H, W, C]."""
    return x.permute(0, 2, 3, 1)


def to_first(x: Tensor) -> Tensor:
    """[1, H, W, C] -> [1, C, H, W]."""
    return x.permute(0, 3, 1, 2)


def blocked(x: Tensor) -> Tensor:
    """[1, H, W, C] -> [blocks, 16, C]: the pixels of each 4x4 block; four blocks in turn are a window of attention."""
    _, h, w, c = x.shape
    x = x.reshape(h // WINDOW, 2, BLOCK, w // WINDOW, 2, BLOCK * c)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, BLOCK * BLOCK, c)


def unblocked(x: Tensor, h: int, w: int) -> Tensor:
    """Inverse of `blocked`: [blocks, 16, C] -> [1, h, w, C]."""
    c = x.shape[-1]
    x = x.reshape(h // WINDOW, w // WINDOW, 2, 2, BLOCK, BLOCK * c)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(1, h, w, c)


def rolled(x: Tensor, shift: int, h: int, w: int) -> Tensor:
    """`torch.roll` of lines and samples of a `blocked` picture by so many blocks, as one Gather."""
    places = torch.arange(len(x), device=x.device).reshape(h // WINDOW, w // WINDOW, 2, 2)
    places = torch.roll(places.transpose(1, 2).reshape(h // BLOCK, w // BLOCK), (shift, shift), (0, 1))
    return x.index_select(0, places.reshape(h // WINDOW, 2, w // WINDOW, 2).transpose(1, 2).flatten())


def group_norm_last(x: Tensor, groups: int) -> Tensor:
    """LayerNorm without gain of each group of channels of [..., groups * C]."""
    if groups == 1:
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    return F.layer_norm(grouped, grouped.shape[-1:], eps=NORM_EPS).reshape(x.shape)


class StaticWindowAttention(nn.Module):
    """One or several `WindowAttention` side by side on `blocked` pixels, as one attention with all their heads.

    The norm's gain and bias are folded into q, k and v (block-diagonal over the groups). q and k are one product with
    twice the heads until both are normalised; v, which is not, is a product of its own. Heads are sorted so that the
    first heads of all pairs come before the second ones.
    """

    def __init__(self, modules: Sequence[WindowAttention]) -> None:
        super().__init__()
        self.shift, self.width = modules[0].shift // BLOCK, modules[0].attn.width
        self.groups, self.pairs = len(modules), len(modules) * modules[0].attn.heads // 2
        attns = [m.attn for m in modules]
        with torch.no_grad():
            heads = torch.arange(2 * self.pairs).reshape(-1, 2).T.flatten()
            rows = (heads[:, None] * self.width + torch.arange(self.width)).flatten()
            made = []
            for name, order in (("q_proj", rows), ("k_proj", rows), ("v_proj", slice(None))):
                linear = [getattr(a, name) for a in attns]
                gained = [lin.weight * m.norm1.weight for lin, m in zip(linear, modules, strict=True)]
                shifted = [lin.bias + lin.weight @ m.norm1.bias for lin, m in zip(linear, modules, strict=True)]
                made.append((torch.block_diag(*gained)[order].T, torch.cat(shifted)[order]))
            (q, q_bias), (k, k_bias), (v, v_bias) = made
            self.qk_weight, self.qk_bias = nn.Parameter(torch.cat([q, k], 1)), nn.Parameter(torch.cat([q_bias, k_bias]))
            self.v_weight, self.v_bias = nn.Parameter(v.contiguous()), nn.Parameter(v_bias)
            gains = [(a.diff_norm.weight * (1 - LAMBDA_INITIAL)).repeat(a.heads // 2) for a in attns]
            out = [a.out_proj.weight * gain for a, gain in zip(attns, gains, strict=True)]
            self.out_weight = nn.Parameter(torch.block_diag(*out).T.contiguous())
            self.out_bias = nn.Parameter(torch.cat([a.out_proj.bias for a in attns]))
            scale = torch.cat([a.scale() for a in attns])[heads].reshape(-1, 1)
            self.register_buffer("inverse_scale", torch.cat([1 / scale, torch.ones_like(scale)]))
            places = torch.arange(TOKENS).reshape(2, BLOCK, 2, BLOCK).transpose(1, 2).flatten()
            bias = torch.cat([a.position_bias() for a in attns])[heads]
            self.register_buffer("bias", bias[:, places][:, :, places].clone())
            differences = [a.difference().expand(a.heads // 2) for a in attns]
            self.register_buffer("difference", torch.cat(differences)[:, None, None].clone())

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        """x [blocks, 16, groups * C] of a picture of h x w -> the same shape, without the residual."""
        x = group_norm_last(x, self.groups)
        if not self.shift:
            return self._attend(x)
        return rolled(self._attend(rolled(x, -self.shift, h, w)), self.shift, h, w)

    def _attend(self, x: Tensor) -> Tensor:
        heads = 2 * self.pairs
        both = (x @ self.qk_weight + self.qk_bias).reshape(-1, TOKENS, 2 * heads, self.width)
        v = (x @ self.v_weight + self.v_bias).reshape(-1, TOKENS, self.pairs, 2 * self.width).transpose(1, 2)
        # clamp survives the exporter's optimiser, an added epsilon of 1e-12 would not.
        norm = torch.linalg.vector_norm(both, dim=-1, keepdim=True).clamp(min=L2_EPS)
        q, k = (both / (norm * self.inverse_scale)).transpose(1, 2).split(heads, dim=1)
        p = torch.softmax(q @ k.transpose(-1, -2) + self.bias, dim=-1)
        first, second = p.split(self.pairs, dim=1)
        out = (first - self.difference * second) @ v
        out = out / torch.sqrt((out * out).mean(dim=-1, keepdim=True) + NORM_EPS)
        return out.transpose(1, 2).reshape(x.shape) @ self.out_weight + self.out_bias


class StaticSpatialAttention(nn.Module):
    """One or several `SpatialAttention` side by side on [1, H, W, groups * C]."""

    def __init__(self, modules: Sequence[SpatialAttention]) -> None:
        super().__init__()
        self.groups = len(modules)
        self.wa = StaticWindowAttention([m.wa for m in modules])
        self.swa = StaticWindowAttention([m.swa for m in modules])
        nets = [m.pn.fn.net for m in modules]
        with torch.no_grad():
            widen = [n[0].weight * m.pn.norm.weight[:, None, None] for n, m in zip(nets, modules, strict=True)]
            shift = [n[0].weight[:, :, 0, 0] @ m.pn.norm.bias for n, m in zip(nets, modules, strict=True)]
            self.widen_weight, self.widen_bias = nn.Parameter(torch.cat(widen)), nn.Parameter(torch.cat(shift))
            self.depthwise = nn.Parameter(torch.cat([n[2].weight for n in nets]))
            self.narrow = nn.Parameter(torch.cat([n[4].weight for n in nets]))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        x = blocked(x)
        x = x + self.wa(x, h, w)
        x = unblocked(x + self.swa(x, h, w), h, w)
        y = to_first(group_norm_last(x, self.groups))
        y = F.gelu(F.conv2d(y, self.widen_weight, self.widen_bias, groups=self.groups))
        y = F.gelu(F.conv2d(y, self.depthwise, padding=1, groups=len(self.depthwise)))
        return x + to_last(F.conv2d(y, self.narrow, groups=self.groups))
