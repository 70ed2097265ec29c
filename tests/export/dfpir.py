"""DFPIR networks with rebuildable weights, and what one computes restated from the facts alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from export.networks.dfpir import Dfpir, DfpirConfig, TextCode
from tests.golden.dfpir_state import golden_state, text_code

TEXT = 16
SMALL = DfpirConfig(
    bands=3, dim=8, heads=(1, 1, 2, 2), blocks=(1, 1, 0, 1), refinement_blocks=1, hidden=(16, 32, 64, 128), text=TEXT
)
"""The smallest network that has every kind of part, and a level without blocks."""
PROMPTS = ("noise", "rain")


def network(config: DfpirConfig, prompts: tuple[str, ...] = ()) -> Dfpir:
    """A network in eval mode whose weights follow from its keys; its prompts have codes of `code`."""
    net = Dfpir(config)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(value) for key, value in golden_state(shapes).items()})
    net.prompts = {name: TextCode(code(name, config.text), name.capitalize()) for name in prompts}
    return net.eval()


def code(name: str, text: int = TEXT) -> np.ndarray:
    """A text code of a prompt, [text] float32."""
    return text_code(sum(name.encode()))[:text]


def restated(state: Mapping[str, Tensor], config: DfpirConfig, frame: Tensor, text: Tensor) -> Tensor:
    """The network without any folding: channels are sorted and gathered, masks scattered. float64 throughout.

    Args:
        state: its weights.
        config: its hyper-parameters.
        frame: [B, bands, H, W].
        text: codes [B, text].
    """
    w = {key: value.double() for key, value in state.items()}

    def conv(x: Tensor, key: str, groups: int = 1) -> Tensor:
        weight = w[f"{key}.weight"]
        return F.conv2d(x, weight, w.get(f"{key}.bias"), padding=weight.shape[-1] // 2, groups=groups)

    def deep(x: Tensor, key: str) -> Tensor:
        return conv(x, key, x.shape[1])

    def norm(x: Tensor, key: str) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        gain, bias = w[f"{key}.body.weight"], w.get(f"{key}.body.bias")
        scaled = x / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * gain
        return (scaled if bias is None else F.layer_norm(x, x.shape[-1:], gain, bias)).permute(0, 3, 1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, masked: bool) -> Tensor:
        b, c, h, width = q.shape
        heads, d = len(temperature), c // len(temperature)
        q, k, v = (t.reshape(b, heads, d, h * width) for t in (q, k, v))
        q, k = (t / t.norm(dim=-1, keepdim=True).clamp(min=1e-12) for t in (q, k))
        s = torch.einsum("bhip,bhjp->bhij", q, k) * temperature
        if masked:
            best = s.topk(int(d * 9 / 10), dim=-1).indices
            s = torch.full_like(s, -torch.inf).scatter(-1, best, s.gather(-1, best))
        return torch.einsum("bhij,bhjp->bhip", s.softmax(-1), v).reshape(b, c, h, width)

    def feed(x: Tensor, key: str) -> Tensor:
        gate, value = deep(conv(x, f"{key}.project_in"), f"{key}.dwconv").chunk(2, 1)
        return conv(F.gelu(gate) * value, f"{key}.project_out")

    def group(x: Tensor, name: str, count: int) -> Tensor:
        for j in range(count):
            at = f"{name}.{j}"
            q, k, v = deep(conv(norm(x, f"{at}.norm1"), f"{at}.attn.qkv"), f"{at}.attn.qkv_dwconv").chunk(3, 1)
            x = x + conv(attend(q, k, v, w[f"{at}.attn.temperature"], False), f"{at}.attn.project_out")
            x = x + feed(norm(x, f"{at}.norm2"), f"{at}.ffn")
        return x

    def perturb(x: Tensor, at: str) -> Tensor:
        p = text.double() @ w[f"{at}.linear_layer1.weight"].T + w[f"{at}.linear_layer1.bias"]
        p = p @ w[f"{at}.linear_layer3.weight"].T + w[f"{at}.linear_layer3.bias"]
        order = p.argsort(dim=1, descending=True)[:, :, None, None]
        u = conv(x, f"{at}.conv1x1")
        u = conv(u.gather(1, order.expand(u.shape)), f"{at}.conv_out")
        part = f"{at}.select_attn"
        q = deep(conv(norm(u, f"{at}.norm1"), f"{part}.q"), f"{part}.q_dwconv")
        k, v = deep(conv(norm(x, f"{at}.norm2"), f"{part}.kv"), f"{part}.kv_dwconv").chunk(2, 1)
        x = conv(attend(q, k, v, w[f"{part}.temperature"], True) * w[f"{part}.attn4"], f"{part}.project_out")
        return x + feed(norm(x, f"{at}.norm3"), f"{at}.ffn")

    one, two, three, four = config.blocks
    e1 = group(conv(frame, "patch_embed.proj"), "encoder_level1", one)
    e2 = group(F.pixel_unshuffle(conv(e1, "down1_2.body.0"), 2), "encoder_level2", two)
    e3 = group(F.pixel_unshuffle(conv(e2, "down2_3.body.0"), 2), "encoder_level3", three)
    x = group(F.pixel_unshuffle(conv(e3, "down3_4.body.0"), 2), "latent", four)
    x = F.pixel_shuffle(conv(perturb(x, "latent_shuffle_channel"), "up4_3.body.0"), 2)
    x = conv(torch.cat([x, perturb(e3, "encoder_shuffle_channel3")], 1), "reduce_chan_level3")
    x = F.pixel_shuffle(conv(group(x, "decoder_level3", three), "up3_2.body.0"), 2)
    x = conv(torch.cat([x, perturb(e2, "encoder_shuffle_channel2")], 1), "reduce_chan_level2")
    x = F.pixel_shuffle(conv(group(x, "decoder_level2", two), "up2_1.body.0"), 2)
    x = group(torch.cat([x, perturb(e1, "encoder_shuffle_channel1")], 1), "decoder_level1", one)
    return conv(group(x, "refinement", config.refinement_blocks), "output") + frame
