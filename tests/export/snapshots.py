"""Networks of a snapshot spectrometer with rebuildable weights, their masks, and the cases of the golden vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.networks.bisrnet import Bisrnet, BisrnetConfig
from export.networks.mst import Mst, MstConfig
from tests.golden import cassi_inputs
from tests.golden.scene import scene

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SIDE = 16
"""Lines and samples of the masks of small networks."""


def snapshot_network(config: MstConfig | BisrnetConfig, mask: np.ndarray | None = None) -> Any:
    """A network in eval mode whose weights follow from its keys."""
    net = seeded(Mst(config) if isinstance(config, MstConfig) else Bisrnet(config))
    net.mask = None if mask is None else torch.from_numpy(mask)
    return net


def seeded(net: Any) -> Any:
    """The same network in eval mode, with weights that follow from its keys."""
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(value) for key, value in cassi_inputs.state(shapes).items()})
    return net.eval()


def small_mask(lines: int = SIDE, samples: int = SIDE, seed: int = 5) -> np.ndarray:
    """A grey one, float32."""
    return cassi_inputs.mask(seed, lines, samples, grey=True)


def mask_file(folder: Path) -> Path:
    """The small mask as `.npy`."""
    np.save(folder / "mask.npy", small_mask())
    return folder / "mask.npy"


def bands_of(net: Mst | Bisrnet, seed: int = 3) -> Tensor:
    """A measurement through the network's mask, [1, 1, lines, samples + 54]."""
    mask = net.mask.float().numpy()
    measured = cassi_inputs.measure(scene(seed, cassi_inputs.BANDS, *mask.shape), mask)
    return torch.from_numpy(measured)[None, None]


@dataclass(frozen=True)
class Case:
    """A golden case: its settings, its arrays by name, its mask, and what is measured, [1, 1, lines, samples + 54]."""

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    mask: np.ndarray
    measurement: Tensor

    def apart(self, found: Tensor, name: str, step: tuple[int, ...]) -> float:
        """The largest difference of [1, C, H, W] from the thinned array, as a share of the range of all."""
        thinned = found[0].numpy()[tuple(slice(None, None, each) for each in step)]
        span = self.arrays["range"] if name == "restored" else np.ptp(self.arrays[name])
        return float(np.abs(thinned - self.arrays[name]).max() / span)


def golden_case(file: str, case: str) -> Case:
    """A case of a file; what is measured is as it was."""
    with np.load(GOLDEN / file) as held:
        arrays = {key.removeprefix(f"{case}/"): held[key] for key in held if key.startswith(f"{case}/")}
    config = json.loads(str(arrays.pop("config")))
    lines, samples = config["lines"], config["samples"]
    mask = cassi_inputs.mask(config["mask"], lines, samples, config["grey"])
    measured = cassi_inputs.measure(scene(config["scene"], cassi_inputs.BANDS, lines, samples), mask)
    stats = [measured.mean(), measured.std(), measured.max()]
    np.testing.assert_allclose(stats, arrays["measurement_stats"], rtol=1e-5)
    return Case(config, arrays, mask, torch.from_numpy(measured)[None, None])
