"""PyTorch behind the engine's contract: the reference every other engine is measured against, and compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.devices import usable
from export.networks import architecture_of
from runtime.engines import Engine, EngineSpec
from runtime.engines.contract import Float32
from runtime.errors import InputError, MachineError

FORMS = ("reference", "deployment", "compiled", "graph")
AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision -> what products are cast to; float32 is exact, without TF32."""
WARM_UP = 3

Forward = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]


def spec_of(net: nn.Module, lines: int, samples: int) -> EngineSpec:
    """Shapes of a network's engine at a frame size."""
    c = net.config
    return EngineSpec(c.bands, lines, samples, c.metrics, c.layers, c.experts)


class TorchEngine(Engine):
    """PyTorch on a CPU or a GPU; frames may be of any size that the network takes.

    Args:
        net: the network; it stays where it is, a GPU gets a copy.
        lines, samples: of a frame.
        device: PyTorch's name of it, such as `cpu`, `cuda`, `cuda:1`. On a GPU TF32 is turned off for the process.
        form: `reference` is the network as it was trained and `deployment` its static form, as it is exported, both
            eager; `compiled` is the static form by `torch.compile`, `graph` the same in a CUDA graph.
        precision: one of AUTOCAST.

    Raises:
        InputError: no such form or precision.
        MachineError: no such device here, one without CUDA graphs, or `torch.compile` fails.
    """

    def __init__(
        self,
        net: nn.Module,
        lines: int,
        samples: int,
        device: str = "cpu",
        form: str = "reference",
        precision: str = "fp32",
    ) -> None:
        super().__init__(spec_of(net, lines, samples))
        for key, value, known in (("form", form, FORMS), ("precision", precision, tuple(AUTOCAST))):
            if value not in known:
                raise InputError(
                    f"PyTorch runs no such {key}", key=key, value=value, remedy=f"one of {', '.join(known)}"
                )
        self._device, self._form, self._precision = usable(device), form, precision
        if form == "graph" and self._device.type != "cuda":
            raise MachineError(
                "only a GPU has CUDA graphs", key="form", value=f"graph on {device}", remedy="choose another form"
            )
        self._net = net.eval() if form == "reference" else architecture_of(net).deployment_form(net)
        if self._device.type == "cuda":
            self._net = copy.deepcopy(self._net).to(self._device)
        self._run: Forward = self._net
        if form in ("compiled", "graph"):
            self._run = self._prepared()

    def on_device(self, frame: Tensor, metrics: Tensor) -> tuple[Tensor, Tensor]:
        """(restored, gates) of tensors that lie on the device.

        The GPU may still be at work on them; what `compiled` and `graph` gave is written over by the next call.
        """
        # Without the cache of cast weights, which a CUDA graph must not hold.
        dtype = AUTOCAST[self._precision]
        cast = torch.autocast(self._device.type, dtype, enabled=dtype is not None, cache_enabled=False)
        with torch.inference_mode(), cast:
            return self._run(frame, metrics)

    def infer_impl(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32]:
        try:
            restored, gates = self.on_device(*(torch.from_numpy(array).to(self._device) for array in (frame, metrics)))
            return restored.float().cpu().numpy(), gates.float().cpu().numpy().reshape(self.spec.gates_shape)
        except torch.OutOfMemoryError as error:
            raise MachineError(
                "PyTorch has no memory left on the GPU",
                key="device",
                value=str(self._device),
                remedy="close other programs that use it, or choose smaller frames",
            ) from error

    def infer_with_margins(self, frame: Float32, metrics: Float32) -> tuple[Float32, Float32, Float32]:
        """`infer`, and by how much each layer's last chosen expert was ahead of the next, float32 [layers], 0 to 1.

        1 where all experts run, so that nothing was to be chosen. The reference form alone can tell.
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
        place = f"CPU, {torch.get_num_threads()} threads"
        if self._device.type == "cuda":
            place = f"GPU {self._device.index or 0}, {torch.cuda.get_device_name(self._device)}"
        return {
            "engine": "pytorch",
            "version": torch.__version__,
            "device": place,
            "form": self._form,
            "computes in": "fp32" if self._precision == "fp32" else f"{self._precision} by autocast",
        }

    def _prepared(self) -> Forward:
        """What runs a frame. Compiling and capturing are done here, so that no frame has to wait for them."""
        given = [torch.zeros(shape, device=self._device) for shape in (self.spec.frame_shape, self.spec.metrics_shape)]
        try:
            if self._form == "graph":
                return self._captured(*given)
            self._run = _compiled(self._net)
            for _ in range(WARM_UP):
                self.on_device(*given)
        # What is raised where a compiler is missing, or fails, derives from it.
        except RuntimeError as error:
            raise MachineError(
                "PyTorch cannot make this form here",
                key="form",
                value=f"{self._form}: {str(error).strip()}".partition("\n")[0],
                remedy="choose another form; compiling needs a C++ compiler, on a GPU Triton",
            ) from error
        return self._run

    def _captured(self, frame: Tensor, metrics: Tensor) -> Forward:
        """The network in a CUDA graph, which reads and writes the same memory every time."""
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.on_device(frame, metrics)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = self.on_device(frame, metrics)

        def run(new_frame: Tensor, new_metrics: Tensor) -> tuple[Tensor, Tensor]:
            frame.copy_(new_frame)
            metrics.copy_(new_metrics)
            graph.replay()
            return results

        return run


def _compiled(net: nn.Module) -> Forward:
    run: Any = torch.compile(net, mode="reduce-overhead", dynamic=False, fullgraph=True)

    def marked(frame: Tensor, metrics: Tensor) -> tuple[Tensor, Tensor]:
        # The results of the frame before may be written over.
        torch.compiler.cudagraph_mark_step_begin()
        restored, gates = run(frame, metrics)
        return restored, gates

    return marked
