"""What networks for snapshots learn: the root of the mean squared error, and two stages where there is a prior.

Taken literally, a prior whose learned target has no loss of its own collapses. So `learned` targets are anchored by the
reconstruction, as public relatives do it, and `pooled` ones by what they are; see docs/sdp.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.quality import psnr
from export.networks import network_of, save_checkpoint
from export.networks.mst import Mst
from export.networks.sdp import SdpMst
from export.networks.sdp.prior import Extractor, remaining
from runtime.arrays import Float32
from runtime.simulation.cassi import BANDS
from training.snapshot.draws import Batch, Held, mask_of
from training.snapshot.recipe import REGIONS, Prior, SnapshotRecipe

STAGES = {"learned": ("true prior", "estimated prior"), "pooled": ("prior alone", "estimated prior")}
"""Columns of the two stages."""


def loss(restored: Tensor, clean: Tensor) -> Tensor:
    """The root of the mean squared error of the batch."""
    return torch.sqrt((restored - clean).square().mean())


def clipped(held: Held, restored: Callable[[Batch], Tensor]) -> Iterator[tuple[Float32, Float32]]:
    """(restored and clipped to [0, 1], clean) of every tile of a scene, [28, H, W] each."""
    return zip(restored(held.batch).clamp(0, 1).numpy(), held.batch.clean.numpy(), strict=True)


def decibels(held: Sequence[Held], restored: Callable[[Batch], Tensor]) -> dict[str, float]:
    """{scene: mean PSNR of its tiles}."""
    return {each.scene: float(np.mean([psnr(*pair) for pair in clipped(each, restored)])) for each in held}


class MstLesson:
    """See `training.lessons.Lesson`."""

    columns: tuple[str, ...] = ("restored",)

    def __init__(self, recipe: SnapshotRecipe, held: Sequence[Held]) -> None:
        self.recipe, self.held = recipe, held

    def begin(self) -> Mst:
        net = Mst(self.recipe.config)
        net.mask = torch.from_numpy(mask_of(self.recipe))
        return net

    def learn(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        restored = net(batch.measured)
        return loss(restored, batch.clean), _errors(restored, batch.clean), self.columns * len(batch.clean)

    @torch.no_grad()
    def figures(self, net: nn.Module) -> Mapping[str, float]:
        """PSNR of every scene in dB."""
        found = decibels(self.held, lambda batch: net(batch.measured))
        return {**found, "mean": float(np.mean([*found.values()]))}

    def write(self, net: nn.Module, file: Path, about: str) -> Path:
        return save_checkpoint(network_of(net), file, about=about, half=True)


def _errors(restored: Tensor, clean: Tensor) -> Tensor:
    return (restored - clean).abs().flatten(1).mean(1).detach()


class Learning(nn.Module):
    """A network and what knows the prior of a truth, which is thrown away.

    Attributes:
        net: the network.
        target: encoder of truth and bands behind each other; None where regions are pooled.
        mean, deviation: of the spectra of regions, [28] each.
    """

    def __init__(self, net: SdpMst, prior: Prior, spectra: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.net = net
        self.target = Extractor(net.prior, 2 * BANDS) if prior.target == "learned" else None
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", spectra[0])
        self.register_buffer("deviation", spectra[1])

    def true(self, batch: Batch) -> Tensor:
        """The prior of the truth, [B, d]."""
        if self.target is not None:
            made: Tensor = self.target(torch.cat([batch.clean, self.net.bands(batch.measured)], dim=1))
            return made
        regions = F.adaptive_avg_pool2d(batch.clean, REGIONS)
        return ((regions - self.mean[:, None, None]) / self.deviation[:, None, None]).flatten(1)

    def informed(self, batch: Batch) -> Tensor:
        """A cube by the prior of its truth: the most that an estimate may hope for."""
        return self.net.informed(self.net.bands(batch.measured), self.true(batch))


def spectra_of(cubes: Sequence[Float32], size: int) -> tuple[Tensor, Tensor]:
    """(mean, deviation) [28] of the mean spectra of regions of patches of this size, all over the cubes."""
    regions = [F.avg_pool2d(torch.from_numpy(cube), size // REGIONS).flatten(1) for cube in cubes]
    found = torch.cat(regions, dim=1).double()
    return found.mean(1).float(), found.std(1).clamp(min=1e-3).float()


class SdpLesson:
    """See `training.lessons.Lesson`."""

    def __init__(self, recipe: SnapshotRecipe, held: Sequence[Held], cubes: Sequence[Float32]) -> None:
        assert recipe.prior is not None
        self.recipe, self.held, self.prior = recipe, held, recipe.prior
        self.columns: tuple[str, ...] = STAGES[self.prior.target]
        self.spectra = spectra_of(cubes, recipe.patches.size)
        left = remaining(self.prior.config)[-1]
        self._mixed = left**0.5, (1 - left) ** 0.5

    def begin(self) -> Learning:
        """The backbone's own start is that of a run without a prior, with the same seed."""
        net = SdpMst(self.recipe.config, self.prior.config)
        net.mask = torch.from_numpy(mask_of(self.recipe))
        return Learning(net, self.prior, self.spectra)

    def learn(self, net: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        assert isinstance(net, Learning)
        first = step < self.recipe.first_stage
        columns = (self.columns[0 if first else 1],) * len(batch.clean)
        if first and self.prior.target == "learned":
            restored = net.informed(batch)
            return loss(restored, batch.clean), _errors(restored, batch.clean), columns
        with torch.no_grad():
            true = net.true(batch)
        bands = net.net.bands(batch.measured)
        estimated = net.net.estimated(bands, self.noised(true, step))
        missed = (estimated - true).abs().mean()
        if first:
            return missed, _errors(estimated, true), columns
        restored = net.net.informed(bands, estimated)
        both = loss(restored, batch.clean) + self.prior.weight * missed
        return both, _errors(restored, batch.clean), columns

    def noised(self, true: Tensor, step: int) -> Tensor:
        """What the reverse chain starts from in training, [B, 1, d]: nearly all of it noise."""
        rng = np.random.default_rng([self.recipe.seed, step, 1])
        drawn = torch.from_numpy(rng.standard_normal(true.shape).astype(np.float32))
        return (self._mixed[0] * true + self._mixed[1] * drawn)[:, None]

    @torch.no_grad()
    def figures(self, net: nn.Module) -> Mapping[str, float]:
        """PSNR of every scene in dB, and of all of them with the prior of the truth."""
        assert isinstance(net, Learning)
        found = decibels(self.held, lambda batch: net.net(batch.measured))
        bound = decibels(self.held, net.informed)
        mean, most = (float(np.mean([*each.values()])) for each in (found, bound))
        return {**found, "true prior": most, "mean": mean}

    def write(self, net: nn.Module, file: Path, about: str) -> Path:
        assert isinstance(net, Learning)
        return save_checkpoint(network_of(net.net), file, about=about, half=True)
