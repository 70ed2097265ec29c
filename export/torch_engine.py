"""PyTorch behind the engine's contract: the reference every other engine is measured against."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from export.networks import architecture_of
from runtime.engines import Engine, EngineSpec
from runtime.engines.contract import Float32


def spec_of(net: nn.Module, lines: int, samples: int) -> EngineSpec:
    """Shapes of a network's engine at a frame size."""
    c = net.config
    return EngineSpec(c.bands, lines, samples, c.metrics, c.layers, c.experts)


class TorchEngine(Engine):
    """Eager PyTorch on the CPU, in float32; `spec` may be any frame size the network takes."""

    def __init__(self, net: nn.Module, lines: int, samples: int) -> None:
        super().__init__(spec_of(net, lines, samples))
        self._net = net.eval()

    def infer_impl(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32]:
        with torch.inference_mode():
            restored, gates = self._net(torch.from_numpy(frame), torch.from_numpy(metrics))
        return restored.numpy(), gates[0].numpy().astype(np.float32)

    def infer_with_margins(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32, Float32]:
        """`infer`, and by how much each layer's last chosen expert was ahead of the next, float32 [layers], 0 to 1.

        1 where all experts run, so that nothing was to be chosen.
        """
        with architecture_of(self._net).probabilities(self._net) as seen:
            restored, gates = self.infer(frame, metrics)
        k = self._net.config.top_k
        margins = np.ones(len(seen), np.float32)
        for layer, p in enumerate(seen):
            if p.shape[-1] > k:
                ranked = p[0].sort(descending=True).values
                margins[layer] = float(ranked[k - 1] - ranked[k])
        return restored, gates, margins

    def describe(self) -> dict[str, str]:
        return {
            "engine": "pytorch",
            "version": torch.__version__,
            "device": f"CPU, {torch.get_num_threads()} threads",
            "computes in": "fp32",
        }
