"""How a network begins: with its bands running straight through, or restoring exactly as a trained smaller one does.

To a smaller one depth is added, never width: blocks that it lacks begin with nothing to add (their last weights are
zero), as in Net2Net (Chen et al. 2016) and zero-initialised residual branches.
"""

import torch
from torch import nn

from export.networks.damp import Damp
from export.networks.damp.blocks import DecoderBlock, EncoderBlock
from runtime.errors import ConfigError

CONSTANT_SHARE = 1 / 12


def start_transparent(net: Damp, gain: float = 4.0, constant: float = 2.0) -> None:
    """Start with bands running straight through the network and nothing added to the frame.

    The frame is added at the end, so noise must reach the output to be taken away: from a random start the weights
    spend thousands of steps on finding that way (31 bands, dim 32: loss after 60 steps 0.10, with this start 0.05).

    A twelfth of the channels on the way up starts as the number `constant`. LayerNorm takes the scale of a pixel's
    channels away; beside a constant it can be read again, and a correction be as large as what it corrects (dim 48,
    after 500 steps: noise +10.8 dB with constants, +6.8 without).
    """
    with torch.no_grad():
        net.output.weight.zero_()
        embed = net.patch_embed.proj.weight.mul_(0.1)
        for band in range(min(embed.shape[:2])):
            embed[band, band, 1, 1] += gain
        for up, merge, _ in net.dec:
            channels = len(merge.weight)
            merge.weight[:, channels:].mul_(0.1)
            merge.weight[:, channels:, 0, 0] += torch.eye(channels)
            # At the first level the bands' own way stays free.
            spare = channels - net.config.bands if channels == net.config.dim else channels
            for channel in range(channels - min(max(0, spare), max(1, round(CONSTANT_SHARE * channels))), channels):
                up.body.weight[:, channel].zero_()
                up.body.bias[channel] = constant
                merge.weight[channel].zero_()
                merge.weight[channel, channel] = 1


def grow(net: Damp, given: Damp) -> None:
    """Give `net` the weights of `given`, and what it has beyond them the start of a block that adds nothing.

    The prompt's encoder begins anew where the two see other metrics.

    Raises:
        ConfigError: `given` is no part of `net`: other widths, or blocks that `net` lacks.
    """
    state, mine = given.state_dict(), net.state_dict()
    if given.config.metric_set != net.config.metric_set:
        state = {key: value for key, value in state.items() if not key.startswith("dep.")}
    blocks = ("encoder_blocks", "decoder_blocks", "refinement_blocks", "metric_set")
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
