"""Networks with rebuildable weights, checkpoint files of every kind, and ways to damage them."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.networks import network_of, save_checkpoint
from export.networks.damp import Damp, DampConfig
from tests.golden.golden_state import golden_state
from tests.golden.scene import KINDS, degraded, scene

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

SMALL = DampConfig(
    bands=3,
    dim=8,
    heads=(2, 2, 2, 2),
    encoder_blocks=(1, 1, 1, 1),
    decoder_blocks=(1, 0, 0),
    refinement_blocks=0,
    expansion=2,
    experts=2,
    top_k=1,
    embedding=16,
)
"""The smallest network that has every kind of part."""


def network(config: DampConfig) -> Damp:
    """A network in eval mode whose weights follow from its keys; alphas keep their initial values."""
    net = Damp(config)
    net.load_state_dict(_weights(net), strict=False)
    return net.eval()


def _weights(net: Damp) -> dict[str, Tensor]:
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    return {key: torch.from_numpy(value) for key, value in golden_state(shapes).items()}


@dataclass(frozen=True)
class Golden:
    """A network of the golden files and what the public reference gives for it."""

    net: Damp
    arrays: Mapping[str, np.ndarray]
    scene_seed: int
    degradation_seed: int
    size: int

    def cube(self, kind: str) -> np.ndarray:
        """The input of `kind`."""
        clean = scene(self.scene_seed, self.net.config.bands, self.size, self.size)
        return degraded(kind, clean, self.degradation_seed + KINDS.index(kind))

    def thinned(self, restored: np.ndarray) -> np.ndarray:
        """The part of a restored cube that the files keep."""
        return restored[::3] if self.size == 64 else restored[::5, ::2, ::2]


def golden(name: str) -> Golden:
    """`options`, `main` (both float32) or `odd` (float64)."""
    with np.load(GOLDEN / f"damp-{name}-small.npz") as file:
        arrays = dict(file)
    net = Damp(from_reference(json.loads(str(arrays["config"]))))
    weights = _weights(net)
    if name == "odd":
        for key, value in weights.items():
            if key.endswith("logit_scale"):
                value += 2.5
    net.load_state_dict(weights, strict=False)
    net.eval()
    if name == "odd":
        return Golden(net.double(), arrays, 9, 200, 64)
    return Golden(net, arrays, 7, 100, 128 if name == "main" else 64)


def golden_keys(name: str) -> dict[str, Any]:
    """config, parameters and state_dict of a full-size network of the reference."""
    content: dict[str, Any] = json.loads((GOLDEN / f"damp-{name}-keys.json").read_text(encoding="utf-8"))
    return content


def from_reference(values: Mapping[str, Any]) -> DampConfig:
    """Our configuration for the arguments of the reference's network."""
    return DampConfig(
        bands=values["inp_channels"],
        dim=values["dim"],
        heads=tuple(values["heads"]),
        encoder_blocks=tuple(values["num_blocks"]),
        decoder_blocks=tuple(values["num_dec_blocks"]),
        refinement_blocks=values["num_refinement_blocks"],
        expansion=values["ffn_expansion_factor"],
        norm=values["LayerNorm_type"],
        experts=values["num_experts"],
        top_k=values["topk"],
        embedding=values["emb_dim"],
    )


def training_options(config: DampConfig) -> dict[str, Any]:
    """What the reference's training script leaves in `config.json` beside a checkpoint."""
    return {
        "dimention": config.dim,
        "num_blocks": list(config.encoder_blocks),
        "num_dec_blocks": list(config.decoder_blocks),
        "num_exp_blocks": config.experts,
        "num_refinement_blocks": config.refinement_blocks,
        "heads": list(config.heads),
        "topk": config.top_k,
        "expansion_factor": config.expansion,
        "LayerNorm_type": config.norm,
        "emb_dim": config.embedding,
        "epochs": 100,
        "lr": 1e-4,
        "data_path": "somewhere",
    }


def write_options(folder: Path, config: DampConfig, **changes: Any) -> Path:
    """Write `config.json` of the training script; a change to None leaves its key out."""
    options = {k: v for k, v in (training_options(config) | changes).items() if v is not None}
    path = folder / "config.json"
    path.write_text(json.dumps(options), encoding="utf-8")
    return path


FILE_KINDS: dict[str, Callable[[Damp, Path], object]] = {
    "zip": lambda net, path: torch.save(net.state_dict(), path),
    "legacy": lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda net, path: save_checkpoint(network_of(net), path),
}
"""{kind: write a network to a path}."""


def file_bytes(kind: str, net: Damp, folder: Path) -> bytes:
    """A checkpoint of `kind` as bytes."""
    path = folder / f"whole-{kind}"
    FILE_KINDS[kind](net, path)
    return path.read_bytes()


def structure(kind: str, data: bytes) -> list[range]:
    """Where a file of `kind` holds what is not weights; the part that names the tensors is the first."""
    if kind == "safetensors":
        return [range(8, 8 + struct.unpack("<Q", data[:8])[0]), range(8)]
    if kind == "legacy":
        # Magic number, protocol, machine, state dict, storage keys: five pickles, then the weights.
        stream = io.BytesIO(data)
        starts = [0]
        for _ in range(5):
            all(True for _ in pickletools.genops(stream))
            starts.append(stream.tell())
        return [range(starts[3], starts[4]), range(starts[3]), range(starts[4], starts[5])]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        names: list[range] = []
        parts = [range(archive.start_dir, len(data))]
    for member in members:
        name, extra = struct.unpack("<HH", data[member.header_offset + 26 : member.header_offset + 30])
        start = member.header_offset + 30 + name + extra
        parts.append(range(member.header_offset, start))
        if member.filename.endswith("data.pkl"):
            names.append(range(start, start + member.file_size))
    return names + parts


def _flipped_names(kind: str, data: bytes, chance: random.Random) -> bytes:
    return _flipped(data, structure(kind, data)[0], chance.choice((1, 1, 3)), chance)


def _flipped_rest(kind: str, data: bytes, chance: random.Random) -> bytes:
    parts = structure(kind, data)[1:]
    return _flipped(data, chance.choice((parts[0], chance.choice(parts))), chance.choice((1, 1, 3)), chance)


def _flipped_anywhere(kind: str, data: bytes, chance: random.Random) -> bytes:
    return _flipped(data, range(len(data)), chance.choice((1, 8, 200)), chance)


def _flipped(data: bytes, part: range, count: int, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for place in chance.sample(part, min(count, len(part))):
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncated(kind: str, data: bytes, chance: random.Random) -> bytes:
    return data[: chance.choice((chance.randrange(len(data)), chance.randrange(64), -chance.randrange(1, 64)))]


def _zeroed(kind: str, data: bytes, chance: random.Random) -> bytes:
    part = chance.choice((range(len(data)), *structure(kind, data)))
    at = chance.choice(part)
    length = min(chance.choice((1, 16, 512, 65536)), len(data) - at)
    return data[:at] + bytes(length) + data[at + length :]


def _wrong_magic(kind: str, data: bytes, chance: random.Random) -> bytes:
    starts = (b"\x89HDF\r\n\x1a\n", b"PK\x05\x06", b"PK\x03\x04\xff", b"GGUF", b"\x80\x05", bytes(9), b"{" * 9, b"\n")
    start = chance.choice(starts)
    return start + data[chance.choice((0, len(start))) :]


Damage = Callable[[str, bytes, random.Random], bytes]
DAMAGES: dict[str, Damage] = {
    "flips in names and shapes": _flipped_names,
    "flips in headers": _flipped_rest,
    "flips anywhere": _flipped_anywhere,
    "truncated": _truncated,
    "zeroed": _zeroed,
    "wrong magic": _wrong_magic,
}
"""{name: damage a file of a kind}."""


def changed_bytes(one: bytes, other: bytes) -> int:
    """How many bytes differ; a difference in length counts too."""
    common = min(len(one), len(other))
    a, b = (np.frombuffer(x[:common], np.uint8) for x in (one, other))
    return int((a != b).sum()) + abs(len(one) - len(other))
