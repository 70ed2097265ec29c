"""A larger network that begins by restoring exactly as a trained smaller one does.

Depth is added, never width: blocks that the smaller network lacks begin with nothing to add (their last weights are
zero), as in Net2Net (Chen et al. 2016) and zero-initialised residual branches.
"""

from __future__ import annotations

import torch
from torch import nn

from export.networks.damp import Damp
from export.networks.damp.blocks import DecoderBlock, EncoderBlock
from runtime.errors import ConfigError


def grow(net: Damp, given: Damp) -> None:
    """Give `net` the weights of `given`, and what it has beyond them the start of a block that adds nothing.

    Raises:
        ConfigError: `given` is no part of `net`: other widths, or blocks that `net` lacks.
    """
    state, mine = given.state_dict(), net.state_dict()
    blocks = ("encoder_blocks", "decoder_blocks", "refinement_blocks")
    for key, value in given.config.as_dict().items():
        if key not in blocks and net.config.as_dict()[key] != value:
            raise ConfigError(
                "the start is no part of the recipe's network",
                key=f"start: {key}",
                value=value,
                remedy=f"the recipe says {net.config.as_dict()[key]}",
            )
    for key, value in state.items():
        if key not in mine or mine[key].shape != value.shape:
            raise ConfigError(
                "the start is no part of the recipe's network",
                key=f"start: {key}",
                value=tuple(value.shape),
                remedy="the network may have more blocks than its start, not fewer, and no other widths",
            )
    for name, block in net.named_modules():
        if isinstance(block, EncoderBlock | DecoderBlock) and not any(key.startswith(f"{name}.") for key in state):
            add_nothing(block)
    net.load_state_dict(state, strict=False)


def add_nothing(block: EncoderBlock | DecoderBlock) -> None:
    """Make a block pass its input on unchanged, and able to learn."""
    ends: list[nn.Module] = [block.ffn.project_out]
    if isinstance(block, DecoderBlock):
        ends.append(block.DAMoE.mixer.fuse)
    else:
        # The attention passes its own input on, which is what the norm makes of the block's.
        ends += [block.norms[0].body, block.mixer.pn.fn.net[4]]
        ends += [block.mixer.wa.attn.out_proj, block.mixer.swa.attn.out_proj]
    with torch.no_grad():
        for end in ends:
            for parameter in end.parameters():
                parameter.zero_()
