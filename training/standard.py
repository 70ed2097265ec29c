"""Metrics that enter a network in one size: less their mean over what it is trained on, divided by their deviation.

Both are folded into the prompt's first Linear, so that a state dict keeps its form and a deployment sees raw metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from export.networks.damp import Damp

SMALLEST = 1e-6
"""A metric of less deviation never changes; it keeps its size, or a rounding error would be many deviations."""


@dataclass(frozen=True)
class Standard:
    """Mean and deviation of every metric, float32 [M] each."""

    mean: Tensor
    deviation: Tensor

    def to(self, device: torch.device) -> Standard:
        """The same on a device."""
        return Standard(self.mean.to(device), self.deviation.to(device))

    def of(self, metrics: Tensor) -> Tensor:
        """Metrics [..., M] as the network in training sees them."""
        return (metrics - self.mean) / self.deviation

    def fold(self, net: Damp) -> None:
        """Have a network of standardised metrics take raw ones."""
        self._set(net, 1 / self.deviation.double(), -self.mean.double() / self.deviation.double())

    def unfold(self, net: Damp) -> None:
        """The reverse of `fold`, for a network that is trained on."""
        self._set(net, self.deviation, self.mean)

    @staticmethod
    def _set(net: Damp, factor: Tensor, offset: Tensor) -> None:
        first = net.dep.feature_encoder.encoder[0]
        with torch.no_grad():
            weight = first.weight.double()
            first.bias.copy_(first.bias.double() + weight @ offset.double())
            first.weight.copy_(weight * factor.double())


def identity(count: int) -> Standard:
    """The standard that changes nothing."""
    return Standard(torch.zeros(count), torch.ones(count))


def standard_of(metrics: Tensor) -> Standard:
    """Mean and deviation of metrics [patches, M]."""
    wide = metrics.double()
    deviation = wide.std(0)
    return Standard(wide.mean(0).float(), torch.where(deviation < SMALLEST, 1.0, deviation).float())
