"""The static form of DPMambaIR: one frame and its embedding in, the same arithmetic, the scan without a loop.

What does not depend on the input is folded into constants: gains and biases of the norms before products, 1 + a of the
high-frequency enhancement, -exp(A_log). The modulations of all blocks are one product.
"""

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nodes import own_operator
from .config import LEVELS, DPMambaConfig
from .network import NORM_EPS, Block, ChannelNorm, DPMambaIR, FeedForward, HighFrequency, StateSpace
from .scan import scan

_ATANH = (1.99999967, 0.66676003, 0.39589462, 0.3422605)
"""Of which 2 atanh(s) / s = sum of f[i] s^(2 i) for s <= 1/3, within 1.7e-7 of itself: a minimax fit."""


def _conv(weight: Tensor, bias: Tensor | None = None, **options: int) -> nn.Conv2d:
    """A convolution of a weight [out, in, 1, 1] or [out, in], and its bias."""
    weight = weight.detach().reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
    with torch.device("meta"):
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=bias is not None, **options)
    conv.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def _matrix(conv: nn.Conv2d) -> Tensor:
    return conv.weight.detach()[:, :, 0, 0]


def normed(x: Tensor) -> Tensor:
    """LayerNorm over the channels of [1, C, H, W], without gain and bias."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=NORM_EPS).permute(0, 3, 1, 2)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x) within 4e-7 of itself however small, in additions and products, which every engine computes alike.

    With y = exp(-|x|) it is max(x, 0) + 2 atanh(s) where s = y / (y + 2) <= 1/3. Softplus and logarithms of engines
    overflow, are slow, or lose small results: OpenVINO 2026.4 errs by 13 % where softplus is 1e-5.
    """
    y = torch.exp(-x.abs())
    s = y / (y + 2)
    square = s * s
    series: Tensor | float = _ATANH[-1]
    for factor in reversed(_ATANH[:-1]):
        series = series * square + factor
    return F.relu(x) + s * series


class Scan(nn.Module):
    """Softplus, the recurrence, the sum over its states and D x: what stays in float32 on every target."""

    def __init__(self, ssm: StateSpace) -> None:
        super().__init__()
        self.how, self.outside = ssm.config.discretisation, ssm.config.delta == "outside"
        self.turned = ssm.config.order == "columns"
        self.register_buffer("a", -ssm.A_log.detach().exp())
        self.register_buffer("skip", ssm.D.detach()[:, None, None].clone())

    def forward(self, u: Tensor, delta: Tensor, b: Tensor, c: Tensor, alpha: Tensor | None) -> Tensor:
        """u, delta (before softplus) [1, D, H, W], b, c [1, N, H, W], alpha [1, D, 1, 1] or None -> [1, D, H, W]."""
        delta = softplus(delta)
        if alpha is not None:
            delta = alpha * delta
        given = [t.transpose(2, 3) if self.turned else t for t in (u, delta, b, c)]
        if torch.onnx.is_in_onnx_export():
            y = own_operator("Scan", (*given[:2], self.a, *given[2:]), given[0].shape, how=self.how)
        else:
            x, delta, b, c = (t.flatten(2) for t in given)
            y = scan(x, delta, self.a, b, c, self.how).reshape(given[0].shape)
        return (y.transpose(2, 3) if self.turned else y) + self.skip * u


class StaticStateSpace(nn.Module):
    """`StateSpace` behind its norm and before `after_ssm`, with these folded in."""

    def __init__(self, ssm: StateSpace, norm: ChannelNorm, after: nn.Module) -> None:
        super().__init__()
        self.config, self.parts = ssm.config, ssm.parts
        with torch.no_grad():
            both = _matrix(ssm.in_proj)
            halves = zip((both * norm.weight).chunk(2), (both @ norm.bias).chunk(2), strict=True)
            # Products of their own: splitting a common one would copy it.
            self.in_proj, self.gate = (_conv(weight, bias) for weight, bias in halves)
            self.conv, self.x_proj, self.norm = ssm.conv, ssm.x_proj, ssm.norm
            full = ssm.config.modulation == "full"
            inside = full and ssm.config.delta == "inside"
            self.dt_proj = _conv(ssm.dt_proj.weight, None if inside else ssm.dt_proj.bias)
            self.register_buffer("bias", ssm.dt_proj.bias.detach()[:, None, None].clone() if inside else None)
            self.scan = Scan(ssm)
            out = _matrix(ssm.out_proj)
            enhanced = isinstance(after, HighFrequency)
            self.out_proj = _conv(out * (1 + after.gain) if enhanced else out)
            self.mean = _conv(-after.gain * out) if enhanced else None

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        """x [1, w, H, W] before its norm, alpha [1, modulated, 1, 1] -> [1, w, H, W], without the way around."""
        y = normed(x)
        u = F.silu(self.conv(self.in_proj(y)))
        projected = self.x_proj(u)
        outer = None
        if self.config.modulation == "rank":
            r, b, c = (projected * alpha).split(self.parts, dim=1)
            delta = self.dt_proj(r)
        else:
            rank, *states = self.parts
            of_delta, of_states = alpha.split((alpha.shape[1] - sum(states), sum(states)), dim=1)
            r, both = projected.split((rank, sum(states)), dim=1)
            b, c = (both * of_states).split(states, dim=1)
            delta = self.dt_proj(r)
            if self.bias is not None:
                delta = of_delta * delta + self.bias
            else:
                outer = of_delta
        y = self.norm(self.scan(u, delta, b, c, outer)) * F.silu(self.gate(y))
        out = self.out_proj(y)
        return out if self.mean is None else out + self.mean(y.mean((2, 3), keepdim=True))


class StaticFeedForward(nn.Module):
    """`FeedForward` behind its norm and `before_ffn`, with these folded in."""

    def __init__(self, ffn: FeedForward, norm: ChannelNorm, before: nn.Module) -> None:
        super().__init__()
        with torch.no_grad():
            weight = _matrix(ffn.project_in)
            gained, bias = weight * norm.weight, weight @ norm.bias
            enhanced = isinstance(before, HighFrequency)
            # The bias of the norm is the same everywhere: nothing of it is far from its mean.
            self.project_in = _conv(gained * (1 + before.gain) if enhanced else gained, None if enhanced else bias)
            self.mean = _conv(-before.gain * gained, bias) if enhanced else None
        self.dwconv, self.project_out = ffn.dwconv, ffn.project_out

    def forward(self, x: Tensor) -> Tensor:
        y = normed(x)
        hidden = self.project_in(y)
        if self.mean is not None:
            hidden = hidden + self.mean(y.mean((2, 3), keepdim=True))
        gate, value = self.dwconv(hidden).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class StaticBlock(nn.Module):
    """`Block` on [1, w, H, W]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.ssm = StaticStateSpace(block.ssm, block.norm1, block.after_ssm)
        self.ffn = StaticFeedForward(block.ffn, block.norm2, block.before_ffn)
        for name in ("skip1", "skip2"):
            self.register_buffer(name, getattr(block, name).detach()[:, None, None].clone())

    def forward(self, z: Tensor, alpha: Tensor) -> Tensor:
        z = self.skip1 * z + self.ssm(z, alpha)
        return self.skip2 * z + self.ffn(z)


class StaticDPMambaIR(nn.Module):
    """`DPMambaIR` for deployment: `forward(frame [1, bands, H, W], embedding [1, E]) -> restored`."""

    def __init__(self, net: DPMambaIR) -> None:
        super().__init__()
        levels = [*net.encoder, net.latent, *reversed(net.decoder), net.refinement]
        own = [block.ssm.modulation for level in levels for block in level.blocks]
        self.sizes = [linear.out_features for linear in own]
        self.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in own]))
        self.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in own]))
        self.embed, self.down, self.up, self.merge, self.output = net.embed, net.down, net.up, net.merge, net.output
        self.encoder, self.decoder = (
            nn.ModuleList(_blocks(level) for level in part) for part in (net.encoder, net.decoder)
        )
        self.latent, self.refinement = _blocks(net.latent), _blocks(net.refinement)

    def forward(self, frame: Tensor, embedding: Tensor) -> Tensor:
        alphas = iter(F.linear(embedding, self.weight, self.bias)[:, :, None, None].split(self.sizes, dim=1))

        def run(level: nn.Module, z: Tensor) -> Tensor:
            for block in level.blocks:
                z = block(z, next(alphas))
            return z

        z, skips = self.embed(frame), []
        for level, down in zip(self.encoder, self.down, strict=True):
            skips.append(run(level, z))
            z = down(skips[-1])
        z = run(self.latent, z)
        for i in reversed(range(LEVELS - 1)):
            z = run(self.decoder[i], self.merge[i](torch.cat([self.up[i](z), skips[i]], dim=1)))
        return self.output(run(self.refinement, z)) + frame


def _blocks(level: nn.Module) -> nn.Module:
    made = nn.Module()
    made.blocks = nn.ModuleList(map(StaticBlock, level.blocks))
    return made


def deployment_form(net: DPMambaIR) -> StaticDPMambaIR:
    """The static form of a trained network, in eval mode; shares what it does not fold."""
    return StaticDPMambaIR(net).eval()


_ALONE, _AGAIN, _ZOH = 5.0, 12.0, 1.1
"""Tensors of [D, N, L] that ONNX Runtime holds for a scan, and where another of the same size follows.

Measured with 1.31: 3 are needed and 4.3 live at once; buffers that it plans to use again, other scans' among them, stay
till their last use.
"""
_PLANES = 40
_WEIGHTS = 3


def memory(config: DPMambaConfig, lines: int, samples: int) -> int:
    """Bytes that ONNX Runtime takes for the graph at its peak, estimated; with the weights."""
    scans: Counter[int] = Counter()
    for (channels, pixels), blocks in _scans(config, lines, samples):
        scans[config.inner(channels) * config.states * pixels] += blocks
    held = max(size * (_ALONE if blocks == 1 else _AGAIN) for size, blocks in scans.items() if blocks)
    planes = _PLANES * config.dim * lines * samples
    with torch.device("meta"):
        weights = sum(p.numel() for p in DPMambaIR(config).parameters())
    return int(4 * (held * (_ZOH if config.discretisation == "zoh" else 1) + planes + _WEIGHTS * weights))


def _scans(config: DPMambaConfig, lines: int, samples: int) -> list[tuple[tuple[int, int], int]]:
    """((channels, pixels), blocks) of every level."""
    shallow, *_ = pixels = [lines * samples // 4**i for i in range(LEVELS)]
    encoder = [((config.width(i), pixels[i]), n) for i, n in enumerate(config.encoder_blocks)]
    decoder = [((config.width(max(i, 1)), pixels[i]), n) for i, n in enumerate(config.decoder_blocks)]
    return [*encoder, *decoder, ((config.width(1), shallow), config.refinement_blocks)]
