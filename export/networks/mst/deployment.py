"""The static form of MST: one measurement in, the same arithmetic.

What the mask makes of the values does not depend on the measurement: it is computed once and lies in the graph.
Parts are called as the network's are.
"""

import copy

import torch
from torch import Tensor, nn

from runtime.errors import CheckpointError

from ..cassi import Site, mask_size, needed_mask, shift_back, untouched
from .network import Attention, Group, Mst, attended, run, shifted


class StaticAttention(nn.Module):
    """`Attention` on [1, C, H, W] at one size; linear maps are 1x1 convolutions, that of queries and keys is one."""

    def __init__(self, module: Attention, mask: Tensor, samples: int) -> None:
        super().__init__()
        self.to_q, self.to_v = convolution(module.to_q, module.to_k), convolution(module.to_v)
        self.proj, self.pos_emb = convolution(module.proj), module.pos_emb
        self.register_buffer("guide", module.mm(mask, samples))
        self.register_buffer("rescale", module.rescale.clone())

    def forward(self, x: Tensor, mask: None) -> Tensor:
        v = self.to_v(x)
        return self.proj(attended(self.to_q(x), v * self.guide, self.rescale)) + self.pos_emb(v)


def convolution(*linear: nn.Linear) -> nn.Conv2d:
    """A 1x1 convolution that gives what these maps give, one behind the other."""
    weight, bias = torch.cat([each.weight for each in linear]), linear[0].bias
    with torch.device("meta"):
        made = nn.Conv2d(weight.shape[1], len(weight), 1, bias=bias is not None)
    made.weight, made.bias = nn.Parameter(weight[:, :, None, None]), bias
    return made


class StaticMst(nn.Module):
    """`Mst` for deployment: `forward(measurement [1, 1, H, W + 54]) -> cube [1, 28, H, W]`."""

    def __init__(self, net: Mst) -> None:
        super().__init__()
        self.samples = mask_size(net)[1]
        for name in ("embedding", "encoder_layers", "bottleneck", "decoder_layers", "mapping"):
            self.add_module(name, copy.deepcopy(getattr(net, name)))
        levels = [(level, layer[0]) for level, layer in enumerate(self.encoder_layers)]
        levels += [(net.config.levels - 1 - i, layer[2]) for i, layer in enumerate(self.decoder_layers)]
        masks = net.masks(shifted(needed_mask(net)))
        for level, group in (*levels, (net.config.levels, self.bottleneck)):
            _make_static(group, masks[level], self.samples >> level)
        for layer in self.encoder_layers:
            del layer[2]

    def forward(self, measurement: Tensor) -> Tensor:
        return self.restore(shift_back(measurement, self.samples))

    def restore(self, bands: Tensor, site: Site = untouched) -> Tensor:
        """A cube from the bands of a measurement, both [1, 28, H, W]."""
        return run(self, bands, [None] * (len(self.encoder_layers) + 1), site)


def _make_static(group: Group, mask: Tensor, samples: int) -> None:
    for block in group.blocks:
        block[0] = StaticAttention(block[0], mask, samples)


@torch.no_grad()
def deployment_form(net: Mst) -> StaticMst:
    """The static form of a trained network, in eval mode.

    Raises:
        CheckpointError: the network has no mask, or one that cannot be halved as often as its frames are.
    """
    lines, samples = needed_mask(net).shape
    multiple = 2**net.config.levels
    if lines % multiple or samples % multiple:
        raise CheckpointError(
            "the network does not take a mask of this size",
            key="mask",
            value=f"{lines}x{samples}",
            remedy=f"lines and samples are multiples of {multiple}",
        )
    return StaticMst(net).eval()
